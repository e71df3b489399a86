// Reads numpy's .npy files, as far as the digits need it.

import { readFileSync } from 'node:fs';

/**
 * The bytes of an array of uint8 in C order, and its shape.
 * @param {string} path
 */
export function readNpy(path) {
    const file = readFileSync(path);
    const end = 10 + file.readUInt16LE(8);
    const header = file.toString('latin1', 10, end);
    if (!header.includes("'|u1'") || !header.includes("'fortran_order': False")) {
        throw new Error(`${path} is not an array of uint8 in C order: ${header.trim()}`);
    }
    const shape = (/\(([^)]*)\)/.exec(header)?.[1] ?? '').split(',').filter((text) => text.trim());
    return { data: new Uint8Array(file.subarray(end)), shape: shape.map(Number) };
}
