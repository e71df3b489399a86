// A stream of items to the server and of results back.

import { AclserveError, fromStatus } from './errors.js';
import { ModelService } from './stubs.js';
import { fromMessages, toMessages } from './tensors.js';

/** @typedef {import('../generated/aclserve/v1/StreamConfig.js').StreamConfig} StreamConfig */
/** @typedef {import('../generated/aclserve/v1/StreamInferResponse.js').StreamInferResponse__Output} Response */
/** @typedef {import('../generated/aclserve/v1/StreamSummary.js').StreamSummary__Output} Summary */
/** @typedef {import('../generated/aclserve/v1/InferResult.js').InferResult__Output} ResultMessage */
/** @typedef {Omit<import('../generated/aclserve/v1/InferItem.js').InferItem, 'inputs'>} ItemOptions */
/** @typedef {import('../generated/aclserve/v1/ModelService.js').ModelServiceClient} Stub */
/** @typedef {import('@grpc/grpc-js').ClientDuplexStream<Buffer, Response>} Call */

/**
 * The one answer to an item: `outputs` by name, or an `error`, or why it was `dropped` by the stream's policy.
 * @typedef {Partial<Omit<ResultMessage, 'outputs' | 'error' | 'outcome'>> & { id: string,
 *     outputs?: Record<string, import('./tensors.js').Tensor>, error?: AclserveError }} Result
 */

/**
 * @typedef {object} StreamOptions
 * @property {boolean} [resume] when the server goes away or the connection breaks, go on at the next address: send again
 *     what is not answered. An item may so run twice; it has one result all the same.
 * @property {number} [resumeAttempts] how often in a row, without an answer in between; 8
 * @property {number} [backoffMs] the wait before the second attempt, doubled each time up to 5 s; 200
 * @property {number} [timeoutMs] for the stream to become ready; 30 s
 * @property {number} [maxUnread] the results that are kept for a caller who does not read; 1024
 */

const DEFAULTS = { resume: false, resumeAttempts: 8, backoffMs: 200, timeoutMs: 30_000, maxUnread: 1024 };
const MAX_BACKOFF_MS = 5_000;
const AHEAD_ITEMS = 32;
const { path, requestSerialize, responseDeserialize } = ModelService.service.StreamInfer;

/** @typedef {{ message: Buffer, bytes: number, sent: boolean }} Entry an item that is not answered */

/** Items that are under way, and the bytes of their inputs. */
class Load {
    items = 0;
    bytes = 0;

    /** @param {number} bytes @param {number} [sign] */
    add(bytes, sign = 1) {
        this.items += sign;
        this.bytes += sign * bytes;
    }
}

/**
 * @param {Omit<ResultMessage, 'id'>} message
 * @returns {Omit<Result, 'id'>}
 */
function fromMessage({ outputs, error, outcome, ...rest }) {
    try {
        if (outputs) return { ...rest, outputs: fromMessages(outputs.tensors) };
    } catch (failure) {
        return { ...rest, error: new AclserveError(`the answer cannot be read: ${failure}`, { code: 13 }) };
    }
    return error ? { ...rest, error: new AclserveError(error.message, error) } : rest;
}

/**
 * Send with `send`, then `finish`; read with `for await`, at the same time; or let `map` do both. Every item has exactly
 * one result, unless the stream breaks: then reading throws. Leaving the loop early closes the stream.
 */
export class InferStream {
    /** @type {Summary | undefined} The totals, when all results were read. */
    summary;
    /** How often the stream was opened again. */
    resumptions = 0;
    /** The window that the server stated; `bytes` of 0 is no limit. Items under way are never more. */
    window = { items: 0, bytes: 0 };

    #options;
    #stubs;
    #config;
    /** @type {Call | undefined} */
    #call;
    #calls = 0;
    #connected = false;
    #goingAway = false;
    #drops = false;
    #maxMessageBytes = Infinity;
    #failures = 0;
    /** @type {NodeJS.Timeout | undefined} */
    #timer;

    /** @type {Map<string, Entry>} */
    #pending = new Map();
    /** @type {Entry[]} what is not on its way to a server */
    #unsent = [];
    #added = new Load();
    #away = new Load();
    #position = 0;
    #finished = false;
    /** @type {Promise<void>} */
    #turn = Promise.resolve();

    /** @type {Result[]} */
    #results = [];
    #isRead = false;
    #over = false;
    /** @type {AclserveError | undefined} */
    #error;
    /** @type {Summary} */
    #counts = { receivedItems: 0, succeededItems: 0, failedItems: 0, droppedItems: 0, drops: {} };
    /** @type {(() => void)[]} */
    #waiters = [];

    /** @param {Stub[]} stubs @param {StreamConfig} config @param {StreamOptions} [options] */
    constructor(stubs, config, options = {}) {
        this.#options = { ...DEFAULTS, ...options };
        this.#stubs = stubs;
        this.#config = requestSerialize({ config });
        this.#open();
        this.ready = this.#until(() => this.#alive() && this.window.items > 0);
    }

    /** Items that were added and are not answered. */
    get pending() {
        return this.#pending.size;
    }

    /**
     * Sends one item when there is room in the window, and gives its id: its position where none is set. The values are
     * copied at once. Throws for an item that cannot be sent; the stream goes on.
     * @param {Record<string, import('./tensors.js').Input>} inputs
     * @param {ItemOptions} [options]
     */
    async send(inputs, options = {}) {
        const id = options.id || String(this.#position);
        this.#position += 1;
        const tensors = toMessages(inputs);
        const bytes = tensors.reduce((sum, { data }) => sum + (data?.length ?? 0), 0);
        const message = requestSerialize({ items: { items: [{ ...options, id, inputs: tensors }] } });
        const before = this.#turn;
        /** @type {() => void} */
        let next = () => {};
        this.#turn = new Promise((resolve) => (next = resolve));
        try {
            await before;
            await this.#until(() => this.#admits(bytes));
            if (message.length > this.#maxMessageBytes) {
                const text = `item ${id} takes ${message.length} bytes; one message may have ${this.#maxMessageBytes}`;
                throw new AclserveError(text, { code: 8, reason: 'MESSAGE_TOO_LARGE' });
            }
            if (this.#pending.has(id)) {
                throw new AclserveError(`item ${id} is pending`, { code: 6, reason: 'DUPLICATE_ITEM_ID' });
            }
            const entry = { message, bytes, sent: false };
            this.#pending.set(id, entry);
            this.#unsent.push(entry);
            this.#added.add(bytes);
            this.#flush();
        } finally {
            next();
        }
        return id;
    }

    /** Nothing follows what was given to `send`. That is still answered; then reading ends, and `summary` is there. */
    finish() {
        this.#turn = this.#turn.then(() => {
            this.#finished = true;
            this.#flush();
        });
    }

    /** Gives the stream up; it has no effect on one that has ended. */
    close() {
        this.#end(new AclserveError('the stream was closed', { code: 1, reason: 'STREAM_CLOSED' }));
    }

    /**
     * Sends all items, each an object of inputs, and gives one result for each, in the order that `config.order` asks for.
     * @param {Iterable<Record<string, import('./tensors.js').Input>>
     *     | AsyncIterable<Record<string, import('./tensors.js').Input>>} items
     */
    async *map(items) {
        const sending = (async () => {
            for await (const inputs of items) await this.send(inputs);
            this.finish();
        })();
        sending.catch((error) => this.#end(error));
        this.#isRead = true;
        yield* this;
        await sending;
    }

    [Symbol.asyncIterator]() {
        this.#isRead = true;
        return this;
    }

    /** @returns {Promise<IteratorResult<Result, undefined>>} the next result */
    async next() {
        this.#isRead = true;
        await this.#until(() => this.#results.length > 0 || this.#over);
        const value = this.#results.shift();
        if (value) {
            if (this.#call?.isPaused() && this.#results.length < this.#options.maxUnread / 2) this.#call.resume();
            return { value, done: false };
        }
        if (this.#error) throw this.#error;
        return { value: undefined, done: true };
    }

    /** @returns {Promise<IteratorResult<Result, undefined>>} what leaving a `for await` calls */
    async return() {
        this.close();
        return { value: undefined, done: true };
    }

    #open() {
        const stub = /** @type {Stub} */ (this.#stubs[this.#calls++ % this.#stubs.length]);
        const call = stub.makeBidiStreamRequest(path, (/** @type {Buffer} */ bytes) => bytes, responseDeserialize);
        this.#call = call;
        this.#goingAway = false;
        /** @type {AclserveError | undefined} */
        let failure;
        const timer = setTimeout(() => {
            const text = `the server did not accept the stream within ${this.#options.timeoutMs} ms`;
            failure = new AclserveError(text, { code: 4, reason: 'STREAM_NOT_READY' });
            call.cancel();
        }, this.#options.timeoutMs);
        call.on('error', () => {}); // `status` says the same
        call.on('status', (ending) => (failure ??= ending.code ? fromStatus(ending) : undefined));
        call.on('data', (response) => {
            clearTimeout(timer);
            if (!this.#over) this.#receive(response);
        });
        call.on('end', () => {
            clearTimeout(timer);
            if (!this.#over) this.#ended(failure);
        });
        call.write(this.#config);
    }

    /** @param {Response} response */
    #receive(response) {
        const { ready, results, window, goingAway, summary } = response;
        if (ready) {
            if (this.window.items > 0) this.resumptions += 1;
            this.#connected = true;
            this.#drops = !['FRAME_POLICY_UNSPECIFIED', 'FRAME_POLICY_WAIT'].includes(ready.policy);
            this.#maxMessageBytes = ready.maxMessageBytes || Infinity;
            if (!this.#pending.size) this.#failures = 0;
        }
        const stated = ready ?? window;
        if (stated) this.window = { items: Math.max(1, stated.maxPendingItems), bytes: stated.maxPendingBytes };
        if (results) {
            this.#failures = 0;
            for (const { id, ...result } of results.results) this.#answer(id, fromMessage(result));
            if (this.#results.length >= this.#options.maxUnread) this.#call?.pause();
        }
        if (goingAway) this.#goingAway = true;
        if (summary && !this.#options.resume) this.summary = summary;
        this.#flush();
    }

    /** @param {string} id @param {Omit<Result, 'id'>} result hands out the one result of an item */
    #answer(id, result) {
        const entry = this.#pending.get(id);
        if (!entry) return;
        this.#pending.delete(id);
        this.#added.add(entry.bytes, -1);
        if (entry.sent) this.#away.add(entry.bytes, -1);
        this.#results.push({ ...result, id });
        const { outputs, error, dropped } = result;
        this.#counts.receivedItems += 1;
        this.#counts[outputs ? 'succeededItems' : error ? 'failedItems' : 'droppedItems'] += 1;
        const reason = dropped?.reason.replace('DROP_REASON_', '');
        if (reason) this.#counts.drops[reason] = (this.#counts.drops[reason] ?? 0) + 1;
    }

    /**
     * The call is over: with OK, then the server leaves nothing unanswered unless it goes away; or with an error.
     * @param {AclserveError | undefined} failure
     */
    #ended(failure) {
        this.#connected = false;
        const isDone = this.#finished && !this.#pending.size;
        const away = new AclserveError('the server is shutting down and takes no further item; send it elsewhere', {
            code: 14,
            reason: 'SERVER_GOING_AWAY',
        });
        if (this.#options.resume && !isDone && (failure ? failure.isLoss : this.#goingAway)) {
            this.#resume(failure ?? away);
        } else if (failure && !(isDone && this.#options.resume)) {
            this.#end(failure);
        } else {
            const error = this.#goingAway ? away : new AclserveError('the server left the item out', { code: 13 });
            for (const id of this.#pending.keys()) this.#answer(id, { error });
            this.#end();
        }
    }

    /** @param {AclserveError} error why the stream is opened again, after a wait */
    #resume(error) {
        this.#failures += 1;
        if (this.#failures > this.#options.resumeAttempts) return this.#end(error);
        this.#away = new Load();
        this.#unsent = [...this.#pending.values()];
        for (const entry of this.#unsent) entry.sent = false;
        const backoff = Math.min(this.#options.backoffMs * 2 ** (this.#failures - 1), MAX_BACKOFF_MS);
        const isHandOver = error.reason === 'SERVER_GOING_AWAY' && this.#failures === 1;
        const delay = error.retryDelayMs ?? (isHandOver ? 0 : backoff * (0.5 + Math.random() / 2));
        this.#timer = setTimeout(() => {
            try {
                this.#open();
            } catch (failure) {
                this.#end(new AclserveError(`${failure}`, { code: 1 })); // the client was closed
            }
        }, delay);
    }

    /** @param {AclserveError} [error] */
    #end(error) {
        if (this.#over) return;
        this.#over = true;
        this.#error = error;
        this.#pending.clear();
        this.#unsent = [];
        clearTimeout(this.#timer);
        this.#call?.cancel();
        if (this.#options.resume && !error) this.summary = this.#counts;
        this.#wake();
    }

    /** True while items may be sent; throws what keeps them from it. */
    #alive() {
        if (this.#error) throw this.#error;
        if (this.#over || this.#finished) {
            throw new AclserveError('the stream takes no more items; open another one', { reason: 'STREAM_FINISHED' });
        }
        return true;
    }

    /** @param {number} bytes whether an item of that size may be added now */
    #admits(bytes) {
        if (!this.#isRead && this.#results.length >= this.#options.maxUnread) {
            const text = `${this.#results.length} results were not read; read while sending, or use map()`;
            throw new AclserveError(text, { code: 8, reason: 'RESULTS_NOT_READ' });
        }
        return this.#alive() && this.#fits(this.#added, bytes);
    }

    /**
     * Whether an item may join a load; one alone always may. A policy that drops must see the items that are too many.
     * @param {Load} load
     * @param {number} bytes
     */
    #fits(load, bytes) {
        const { items, bytes: limit } = this.window;
        const ahead = this.#drops ? Math.max(items, AHEAD_ITEMS) : 0;
        if (load.items >= (items && items + ahead)) return false;
        return !load.items || !limit || load.bytes + bytes <= (this.#drops ? 2 : 1) * limit;
    }

    #flush() {
        if (this.#connected && !this.#goingAway && this.#call) {
            while (this.#unsent[0] && this.#fits(this.#away, this.#unsent[0].bytes)) {
                const entry = /** @type {Entry} */ (this.#unsent.shift());
                entry.sent = true;
                this.#away.add(entry.bytes);
                this.#call.write(entry.message);
            }
            if (this.#finished && !this.#unsent.length && !this.#call.writableEnded) this.#call.end();
        }
        this.#wake();
    }

    /** @param {() => boolean} test what to wait for; it may throw */
    async #until(test) {
        while (!test()) await new Promise((/** @type {(value?: unknown) => void} */ go) => this.#waiters.push(go));
    }

    #wake() {
        for (const go of this.#waiters.splice(0)) go();
    }
}
