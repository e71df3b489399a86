// What the tests run against: the digits, servers, and a proxy whose connections can be cut.

import { spawn } from 'node:child_process';
import { once } from 'node:events';
import net from 'node:net';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';

import { readNpy } from '../examples/npy.js';
import { tensor } from '../src/index.js';

/** @param {string} name */
function environment(name) {
    const value = process.env[name];
    if (!value) throw new Error(`${name} is not set; run the tests with: make client-node`);
    return value;
}

export const address = environment('ACLSERVE_ADDRESS');
const folder = process.env['ACLSERVE_DIGITS'] ?? fileURLToPath(new URL('../../../demo/digits', import.meta.url));
const images = readNpy(`${folder}/heldout_images.npy`).data;
export const labels = readNpy(`${folder}/heldout_labels.npy`).data;

/** @param {number} row */
export function digit(row) {
    return { image: tensor(Float32Array.from(images.subarray(row * 64, (row + 1) * 64)), [1, 8, 8]) };
}

/** Another server, on the same models. @param {import('node:test').TestContext} context */
export async function startServer(context) {
    const [program, ...words] = environment('ACLSERVE_SERVE').split(' ');
    const server = spawn(/** @type {string} */ (program), words, { stdio: ['ignore', 'pipe', 'inherit'] });
    context.after(() => server.kill('SIGKILL'));
    for await (const line of createInterface(server.stdout)) {
        const place = /^ready grpc=(\S+)/.exec(line)?.[1];
        if (place) return { place, stop: () => server.kill('SIGTERM'), stopped: once(server, 'exit') };
    }
    throw new Error('the server did not start');
}

/** A way to the server that counts and cuts connections. @param {import('node:test').TestContext} context */
export async function startProxy(context) {
    /** @type {Set<net.Socket>} */
    const sockets = new Set();
    const counts = { connections: 0 };
    const [host, port] = /** @type {[string, string]} */ (address.split(/:(?=\d+$)/));
    const proxy = net.createServer((near) => {
        const far = net.connect(Number(port), host);
        counts.connections += 1;
        for (const socket of [near, far]) {
            sockets.add(socket);
            socket.on('error', () => {});
            socket.on('close', () => [near, far].forEach((each) => each.destroy()));
        }
        near.pipe(far).pipe(near);
    });
    await once(proxy.listen(0, '127.0.0.1'), 'listening');
    const cut = () => sockets.forEach((socket) => socket.destroy());
    context.after(() => {
        proxy.close();
        cut();
    });
    return { place: `127.0.0.1:${/** @type {net.AddressInfo} */ (proxy.address()).port}`, cut, counts };
}
