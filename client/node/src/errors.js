// What went wrong, with the service's own reason where it gave one.

import { status } from '@grpc/grpc-js';
import protobuf from 'protobufjs';

// google/rpc/status.proto and error_details.proto, as far as they are read here.
const { root } = protobuf.parse(`
    syntax = "proto3";
    message Status { repeated Any details = 3; }
    message Any { string type_url = 1; bytes value = 2; }
    message ErrorInfo { string reason = 1; map<string, string> metadata = 3; }
    message RetryInfo { Duration retry_delay = 1; }
    message Duration { int64 seconds = 1; int32 nanos = 2; }
`);

/** @typedef {{ seconds: number | import('protobufjs').Long, nanos: number }} Duration */

/** `code` is gRPC's, by name; `reason` is stable and in UPPER_SNAKE_CASE, or empty; `message` is for people. */
export class AclserveError extends Error {
    /**
     * @param {string} message
     * @param {{ code?: number, reason?: string, metadata?: Record<string, string>, retryDelay?: Duration | null }} facts
     */
    constructor(message, { code = status.FAILED_PRECONDITION, reason = '', metadata = {}, retryDelay }) {
        super(reason ? `${message} (${reason})` : message);
        this.name = 'AclserveError';
        this.code = status[code] ?? 'UNKNOWN';
        this.reason = reason;
        this.metadata = metadata;
        /** When to try again, where the server says so. */
        this.retryDelayMs = retryDelay ? Number(retryDelay.seconds) * 1e3 + retryDelay.nanos / 1e6 : undefined;
    }

    /** True where the server or the connection was lost, and where the server says that it may work later. */
    get isLoss() {
        const broke = !this.reason && ['CANCELLED', 'UNKNOWN', 'INTERNAL'].includes(this.code);
        if (this.reason === 'STREAM_NOT_READY') return true;
        return this.code === 'UNAVAILABLE' || this.retryDelayMs !== undefined || broke;
    }
}

/**
 * The error of a call that failed.
 * @param {import('@grpc/grpc-js').StatusObject | import('@grpc/grpc-js').ServiceError} failure
 */
export function fromStatus({ code, details, metadata }) {
    const [bytes] = metadata?.get('grpc-status-details-bin') ?? [];
    const facts = { reason: '', metadata: {}, retryDelay: undefined };
    for (const { typeUrl, value } of bytes ? decode('Status', Buffer.from(bytes)).details : []) {
        if (typeUrl.endsWith('.ErrorInfo')) Object.assign(facts, decode('ErrorInfo', value));
        if (typeUrl.endsWith('.RetryInfo')) facts.retryDelay = decode('RetryInfo', value).retryDelay;
    }
    return new AclserveError(details, { ...facts, code });
}

/**
 * @param {string} type
 * @param {Uint8Array} bytes
 * @returns {any}
 */
function decode(type, bytes) {
    const found = root.lookupType(type);
    try {
        return found.decode(bytes);
    } catch {
        return found.create(); // details of another kind
    }
}
