// Puts what is made from the .proto files into generated/: the files themselves, which the client loads, and types.
// In an installed package generated/ is there already, and protos/ is not.

import { execFileSync } from 'node:child_process';
import { cpSync, existsSync, rmSync } from 'node:fs';
import { fileURLToPath } from 'node:url';

const from = fileURLToPath(new URL('../../protos/', import.meta.url));
const to = fileURLToPath(new URL('generated/', import.meta.url));
const program = fileURLToPath(new URL('node_modules/.bin/proto-loader-gen-types', import.meta.url));
const files = ['device', 'memory', 'model'].map((name) => `aclserve/v1/${name}.proto`);

if (existsSync(from)) {
    rmSync(to, { recursive: true, force: true });
    const isProto = (/** @type {string} */ path) => !/\.[a-z]+$/.test(path) || path.endsWith('.proto');
    cpSync(`${from}aclserve/v1`, `${to}aclserve/v1`, { recursive: true, filter: isProto });
    const options = ['--longs=Number', '--enums=String', '--oneofs', '--defaults', '--includeComments'];
    const output = ['--grpcLib=@grpc/grpc-js', '--importFileExtension=.js'];
    execFileSync(program, [...options, ...output, '-I', from, '-O', to, ...files], {
        stdio: ['ignore', 'ignore', 'inherit'],
        shell: process.platform === 'win32',
    });
}
