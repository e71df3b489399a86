// The services of the contract, as @grpc/grpc-js makes them from the .proto files.

import { fileURLToPath } from 'node:url';

import * as grpc from '@grpc/grpc-js';
import { loadSync } from '@grpc/proto-loader';

/** @typedef {import('../generated/model.js').ProtoGrpcType & import('../generated/device.js').ProtoGrpcType
 *      & import('../generated/memory.js').ProtoGrpcType} Loaded */

const files = ['model', 'device', 'memory'].map((name) => `aclserve/v1/${name}.proto`);
const includeDirs = [fileURLToPath(new URL('../generated/', import.meta.url))];
const rules = { longs: Number, enums: String, oneofs: true, defaults: true };
const loaded = /** @type {unknown} */ (grpc.loadPackageDefinition(loadSync(files, { ...rules, includeDirs })));

export const { ModelService, DeviceService, MemoryService } = /** @type {Loaded} */ (loaded).aclserve.v1;
