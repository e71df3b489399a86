import assert from 'node:assert/strict';
import { test } from 'node:test';

import { AclserveError, Client, ModelService, tensor } from '../src/index.js';
import { address, digit, labels, startProxy, startServer } from './support.js';

/** @typedef {import('../src/stream.js').Result} Result */

const LIMIT = { timeout: 60_000 };

/** @param {import('node:test').TestContext} context @param {string} [addresses] */
function connect(context, addresses = address) {
    const client = new Client(addresses);
    context.after(() => client.close());
    return client;
}

/** @param {Result} result */
function label(result) {
    assert.ok(result.outputs, `${result.id}: ${result.error} ${result.dropped?.reason}`);
    return Number(result.outputs['label']?.data[0]);
}

/** @param {number} count @param {number} [from] */
function* digits(count, from = 0) {
    for (let row = from; row < from + count; row += 1) yield digit(row);
}

/** @param {AsyncIterable<Result>} stream */
async function collect(stream) {
    const results = [];
    for await (const result of stream) results.push(result);
    return results;
}

test('a single item', LIMIT, async (context) => {
    const outputs = await connect(context).infer('digits', digit(0));
    assert.deepEqual(outputs['label']?.shape, [1]);
    assert.deepEqual(outputs['probabilities']?.shape, [1, 10]);
    assert.ok(outputs['probabilities']?.data instanceof Float32Array);
    assert.equal(Number(outputs['label']?.data[0]), labels[0]);
});

test('what the server refuses has its reason', LIMIT, async (context) => {
    const client = connect(context);
    await assert.rejects(client.infer('nothing', digit(0)), { code: 'NOT_FOUND', reason: 'MODEL_NOT_FOUND' });
    await assert.rejects(client.infer('digits', {}), { code: 'INVALID_ARGUMENT', reason: 'INPUT_MISSING' });
});

test('every digit is answered once, in the order asked for', LIMIT, async (context) => {
    const stream = await connect(context).stream({ model: 'digits', order: 'RESULT_ORDER_SUBMISSION' });
    const results = await collect(stream.map(digits(labels.length)));
    assert.deepEqual(
        results.map(({ id }) => Number(id)),
        [...labels.keys()],
    );
    const right = results.filter((result) => label(result) === labels[Number(result.id)]);
    assert.ok(right.length >= 0.95 * labels.length, `${right.length} of ${labels.length}`);
    const { receivedItems, succeededItems } = /** @type {import('../src/stream.js').Summary} */ (stream.summary);
    assert.deepEqual([receivedItems, succeededItems, stream.resumptions], [500, 500, 0]);
});

test('a bad item does not end the stream', LIMIT, async (context) => {
    const stream = await connect(context).stream({ model: 'digits' });
    const bad = { image: tensor(new Float32Array(9), [1, 3, 3]) };
    assert.equal(await stream.send(bad, { id: 'bad' }), 'bad');
    await stream.send(digit(1), { id: 'good' });
    // @ts-expect-error: refused here
    await assert.rejects(stream.send({ image: { data: [1, 2], shape: 7 } }), TypeError);
    stream.finish();
    const results = new Map((await collect(stream)).map((result) => [result.id, result]));
    assert.equal(results.size, 2);
    assert.equal(results.get('bad')?.error?.reason, 'SHAPE_MISMATCH');
    assert.equal(results.get('bad')?.error?.code, 'INVALID_ARGUMENT');
    assert.equal(label(/** @type {Result} */ (results.get('good'))), labels[1]);
    assert.equal(stream.summary?.failedItems, 1);
    await assert.rejects(stream.send(digit(0)), { reason: 'STREAM_FINISHED' });
});

test('an item larger than a message is refused here', LIMIT, async (context) => {
    const stream = await connect(context).stream({ model: 'digits' });
    const large = { image: tensor(new Float32Array(2 ** 24 + 1)) };
    await assert.rejects(stream.send(large), { reason: 'MESSAGE_TOO_LARGE' });
    const results = await collect(stream.map(digits(3)));
    assert.equal(results.length, 3);
});

test('no more items are under way than the window has', LIMIT, async (context) => {
    const stream = await connect(context).stream({ model: 'digits', maxPendingItems: 3 });
    assert.equal(stream.window.items, 3);
    let most = 0;
    async function send() {
        for (let row = 0; row < 60; row += 1) {
            await stream.send(digit(row));
            most = Math.max(most, stream.pending);
        }
        stream.finish();
    }
    const [results] = await Promise.all([collect(stream), send()]);
    assert.equal(results.length, 60);
    assert.ok(most <= 3 && most > 0, `${most}`);
});

test('a sender who does not read is told so', LIMIT, async (context) => {
    const stream = await connect(context).stream({ model: 'digits', maxPendingItems: 4 }, { maxUnread: 16 });
    const sending = (async () => {
        for (const item of digits(labels.length)) await stream.send(item);
    })();
    await assert.rejects(sending, { reason: 'RESULTS_NOT_READ' });
    const count = stream.pending;
    stream.finish();
    const results = await collect(stream);
    assert.ok(results.length >= 16 && results.length <= 16 + 8, `${results.length} and ${count} pending`);
});

test('a slow reader holds the sender back and loses nothing', LIMIT, async (context) => {
    const stream = await connect(context).stream({ model: 'digits' }, { maxUnread: 8 });
    let count = 0;
    for await (const result of stream.map(digits(300))) {
        assert.equal(label(result) >= 0, true);
        count += 1;
        if (count % 50 === 0) await new Promise((resolve) => setTimeout(resolve, 5));
    }
    assert.equal(count, 300);
});

test('a live stream says what it dropped', LIMIT, async (context) => {
    const config = { model: 'digits', preset: 'STREAM_PRESET_LIVE', maxPendingItems: 1 };
    const stream = await connect(context).stream(/** @type {import('../src/stream.js').StreamConfig} */ (config));
    const results = await collect(stream.map(digits(400)));
    assert.equal(new Set(results.map(({ id }) => id)).size, 400);
    const dropped = results.filter((result) => result.dropped);
    assert.equal(stream.summary?.droppedItems, dropped.length);
    assert.ok(dropped.length > 0);
    /** @type {Record<string, number>} */
    const drops = {};
    for (const { dropped: notice } of dropped) {
        const reason = notice?.reason.replace('DROP_REASON_', '') ?? '';
        drops[reason] = (drops[reason] ?? 0) + 1;
    }
    assert.deepEqual(stream.summary?.drops, drops);
});

test('leaving the loop closes the stream, and a source that fails fails map', LIMIT, async (context) => {
    const client = connect(context);
    const stream = await client.stream({ model: 'digits' });
    for await (const result of stream.map(digits(100))) {
        assert.ok(result.outputs);
        break;
    }
    await assert.rejects(stream.send(digit(0)), { reason: 'STREAM_CLOSED' });
    const other = await client.stream({ model: 'digits' });
    function* failing() {
        yield digit(0);
        throw new RangeError('no more film');
    }
    await assert.rejects(collect(other.map(failing())), RangeError);
});

test('a stream goes on when its connection breaks', LIMIT, async (context) => {
    const proxy = await startProxy(context);
    const client = connect(context, proxy.place);
    const config = { model: 'digits', maxPendingItems: 8 };
    const stream = await client.stream(config, { resume: true, backoffMs: 10 });
    const seen = new Map();
    for await (const result of stream.map(digits(300))) {
        assert.ok(!seen.has(result.id), `${result.id} came twice`);
        seen.set(result.id, label(result));
        if (seen.size === 40 || seen.size === 150) proxy.cut();
    }
    assert.equal(seen.size, 300);
    assert.ok(stream.resumptions >= 2 && proxy.counts.connections >= 3);
    assert.deepEqual([stream.summary?.receivedItems, stream.summary?.succeededItems], [300, 300]);
});

test('without `resume` a broken connection is an error', LIMIT, async (context) => {
    const proxy = await startProxy(context);
    const stream = await connect(context, proxy.place).stream({ model: 'digits' });
    await stream.send(digit(0));
    assert.ok((await stream.next()).value?.outputs);
    proxy.cut();
    await assert.rejects(collect(stream), AclserveError);
    await assert.rejects(stream.send(digit(0)), AclserveError);
});

test('a server that goes away hands the stream over', LIMIT, async (context) => {
    const server = await startServer(context);
    const client = connect(context, `${server.place},${address}`);
    const stream = await client.stream({ model: 'digits', maxPendingItems: 8 }, { resume: true });
    const seen = new Set();
    for await (const result of stream.map(digits(300))) {
        label(result);
        seen.add(result.id);
        if (seen.size === 50) server.stop();
    }
    assert.equal(seen.size, 300);
    assert.equal(stream.resumptions, 1);
    assert.equal(stream.summary?.succeededItems, 300);
    assert.deepEqual(await server.stopped, [0, null]);
});

test('where no server is, that is said', LIMIT, async (context) => {
    const client = connect(context, '127.0.0.1:1');
    await assert.rejects(client.infer('digits', digit(0)), { code: 'UNAVAILABLE' });
    await assert.rejects(client.stream({ model: 'digits' }), { code: 'UNAVAILABLE' });
    const twice = { resume: true, resumeAttempts: 2, backoffMs: 1 };
    await assert.rejects(client.stream({ model: 'digits' }, twice), { code: 'UNAVAILABLE' });
});

test('sends that were not awaited come before `finish`', LIMIT, async (context) => {
    const stream = await connect(context).stream({ model: 'digits', maxPendingItems: 2 });
    const sends = [...digits(20)].map((item) => stream.send(item));
    stream.finish();
    const [results, ids] = await Promise.all([collect(stream), Promise.all(sends)]);
    assert.deepEqual(ids, [...Array(20).keys()].map(String));
    assert.equal(results.length, 20);
});

test('a stream to be resumed ends with its client', LIMIT, async (context) => {
    const proxy = await startProxy(context);
    const client = new Client(proxy.place);
    const stream = await client.stream({ model: 'digits' }, { resume: true, backoffMs: 10 });
    client.close();
    proxy.cut();
    await assert.rejects(collect(stream), AclserveError);
    await assert.rejects(stream.send(digit(0)), AclserveError);
});

test('the plain stubs are there', LIMIT, async () => {
    const { credentials } = await import('@grpc/grpc-js');
    const stub = new ModelService(address, credentials.createInsecure());
    const models = await new Promise((resolve, reject) => {
        stub.listModels({}, (error, answer) => (error ? reject(error) : resolve(answer?.models)));
    });
    stub.close();
    assert.deepEqual(models, [{ name: 'digits', version: 1, state: 'MODEL_STATE_READY', reason: '' }]);
});
