// A client for aclserve: `Client` runs single items and opens streams; `ModelService` and its like are the plain stubs.

import * as grpc from '@grpc/grpc-js';

import { fromStatus } from './errors.js';
import { InferStream } from './stream.js';
import { ModelService } from './stubs.js';
import { fromMessages, toMessages } from './tensors.js';

export { AclserveError } from './errors.js';
export { InferStream } from './stream.js';
export { DeviceService, MemoryService, ModelService } from './stubs.js';
export { tensor } from './tensors.js';

const CHANNEL = {
    'grpc.max_receive_message_length': 65 * 2 ** 20,
    'grpc.max_send_message_length': 65 * 2 ** 20,
    'grpc.initial_reconnect_backoff_ms': 100,
    'grpc.max_reconnect_backoff_ms': 5_000,
};

/**
 * How a client behaves.
 * @typedef {object} ClientOptions
 * @property {grpc.ChannelCredentials} [credentials] for TLS; plain text without them
 * @property {grpc.ChannelOptions} [channel] more options of the channels
 * @property {number} [timeoutMs] the deadline of a single item, and for a stream to become ready; 30 s
 */

/** One server, or several that serve the same models: `one:8001,two:8001`. */
export class Client {
    #timeoutMs;
    #stubs;

    /**
     * @param {string} [addresses]
     * @param {ClientOptions} [options]
     */
    constructor(addresses = '127.0.0.1:8001', { credentials, channel, timeoutMs = 30_000 } = {}) {
        const safety = credentials ?? grpc.credentials.createInsecure();
        const names = addresses.split(',').map((address) => address.trim());
        this.#stubs = names.map((address) => new ModelService(address, safety, { ...CHANNEL, ...channel }));
        this.#timeoutMs = timeoutMs;
    }

    /**
     * Runs one item on the first server, and gives the outputs by name. A failure is an `AclserveError`.
     * @param {string} model
     * @param {Record<string, import('./tensors.js').Input>} inputs
     * @param {import('./stream.js').ItemOptions} [options]
     * @returns {Promise<Record<string, import('./tensors.js').Tensor>>}
     */
    async infer(model, inputs, options = {}) {
        const request = { ...options, model, inputs: toMessages(inputs) };
        return new Promise((resolve, reject) => {
            this.#stubs[0]?.infer(request, { deadline: Date.now() + this.#timeoutMs }, (error, answer) => {
                if (error) reject(fromStatus(error));
                else resolve(fromMessages(answer?.outputs?.tensors ?? []));
            });
        });
    }

    /**
     * Opens a stream and waits until it is ready.
     * @param {import('./stream.js').StreamConfig} config
     * @param {import('./stream.js').StreamOptions} [options]
     * @returns {Promise<import('./stream.js').InferStream>}
     */
    async stream(config, options = {}) {
        const stream = new InferStream(this.#stubs, config, { timeoutMs: this.#timeoutMs, ...options });
        await stream.ready;
        return stream;
    }

    /** Closes the connections. */
    close() {
        for (const stub of this.#stubs) stub.close();
    }
}
