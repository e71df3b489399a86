// Streams the held-out digits to a server, and prints how many it names right:  node examples/digits.js [HOST:PORT]

import { fileURLToPath } from 'node:url';

import { Client, tensor } from '../src/index.js';
import { readNpy } from './npy.js';

const address = process.argv[2] ?? process.env['ACLSERVE_ADDRESS'] ?? '127.0.0.1:8001';
const folder = process.env['ACLSERVE_DIGITS'] ?? fileURLToPath(new URL('../../../demo/digits', import.meta.url));
const images = readNpy(`${folder}/heldout_images.npy`);
const labels = readNpy(`${folder}/heldout_labels.npy`).data;

function* items() {
    for (let row = 0; row < labels.length; row += 1) {
        const pixels = images.data.subarray(row * 64, (row + 1) * 64);
        yield { image: tensor(Float32Array.from(pixels), [1, 8, 8]) };
    }
}

const client = new Client(address);
const stream = await client.stream({ model: 'digits' }, { resume: true });
let right = 0;
let answers = 0;
for await (const { id, outputs, error, dropped } of stream.map(items())) {
    if (!outputs) throw error ?? new Error(`item ${id} was dropped: ${dropped?.reason}`);
    answers += 1;
    if (Number(outputs['label']?.data[0]) === labels[Number(id)]) right += 1;
}
client.close();
console.log(`accuracy    ${((100 * right) / answers).toFixed(1)}% of ${answers} answers`);
