"""Streams over a real socket, both kinds: window, packing, half-close, cancelling, going away, breaking off."""

from __future__ import annotations

import asyncio
import threading

import numpy as np
import pytest

import aclserve_client as ac


def row(value):
    return {"x": np.full((1, 3), value, np.float32)}


def value_of(result):
    return result.raise_for_error().outputs["y"][0, 0] / 2


def run(address, work, options=None):
    """Runs `work(client)` on an event loop of its own."""

    async def main():
        async with ac.AsyncClient(address, options) as client:
            return await work(client)

    return asyncio.run(asyncio.wait_for(main(), 60))


def test_send_finish_results_summary_sync(server):
    with ac.Client(server.address) as client, client.stream("echo", order="submission") as stream:
        assert stream.window == 8
        ids = [stream.send(row(number)) for number in range(20)]  # more than two windows, read by send itself
        assert ids == [str(number) for number in range(20)]
        stream.finish()
        assert [value_of(result) for result in stream.results()] == list(range(20))
        assert stream.summary == ac.StreamSummary(20, 20, 0)
        assert list(stream.results()) == []
    assert server.most_pending <= 8


def test_send_finish_results_summary_async(server):
    async def work(client):
        async with client.stream("echo", order=ac.ResultOrder.SUBMISSION) as stream:
            ids = [await stream.send(row(number)) for number in range(20)]
            await stream.finish()
            results = [result async for result in stream.results()]
            return ids, results, stream.summary

    ids, results, summary = run(server.address, work)
    assert ids == [result.id for result in results] == [str(number) for number in range(20)]
    assert [value_of(result) for result in results] == list(range(20))
    assert summary == ac.StreamSummary(20, 20, 0)
    assert server.most_pending <= 8


def test_the_window_holds_a_sender_back_sync(server):
    server.gate.clear()
    with ac.Client(server.address) as client, client.stream("echo", max_pending=3) as stream:
        assert stream.window == 3
        sent = []

        def send():
            for number in range(9):
                sent.append(stream.send(row(number)))
            stream.finish()

        sender = threading.Thread(target=send)
        sender.start()
        results = iter(stream.results())
        server.gate.set()
        assert sorted(value_of(result) for result in results) == list(range(9))
        sender.join(20)
        assert len(sent) == 9
    assert server.most_pending <= 3


def test_the_window_holds_a_sender_back_async(server):
    server.gate.clear()

    async def work(client):
        async with client.stream("echo", max_pending=3) as stream:
            await stream.send_many([row(number) for number in range(3)])
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(stream.send(row(3)), 0.01)
            server.gate.set()
            await stream.send(row(4))  # a send that was given up does the stream no harm
            await stream.finish()
            return sorted([value_of(result) async for result in stream.results()])

    assert run(server.address, work) == [0, 1, 2, 4]
    assert server.most_pending <= 3


def test_items_sent_together_travel_in_one_message(server):
    with ac.Client(server.address) as client, client.stream("echo") as stream:
        assert stream.send_many([row(1), ac.Item(row(2), id="b"), row(3)]) == ["0", "b", "2"]
        stream.finish()
        assert {result.id for result in stream.results()} == {"0", "b", "2"}
    assert server.messages == [["0", "b", "2"]]


def test_items_that_wait_leave_together_and_one_alone_at_once(server):
    """The window of 8 holds items back one by one; what has gathered meanwhile is one message."""
    with ac.Client(server.address) as client, client.stream("echo", max_pending=6) as stream:
        stream.send(row(0))
        assert value_of(next(stream.results())) == 0  # it did not wait for company
        server.gate.clear()
        stream.send(row(1))
        assert server.taken.acquire(timeout=30)
        assert server.taken.acquire(timeout=30)
        with stream._changed:  # nothing leaves while this is held
            for number in range(2, 6):
                stream._state.add(ac.Item(row(number)))
        stream.send(row(6))
        server.gate.set()
        stream.finish()
        assert sorted(map(value_of, stream.results())) == [1, 2, 3, 4, 5, 6]
    assert server.messages == [["0"], ["1"], ["2", "3", "4", "5", "6"]]


def test_an_asynchronous_source_that_takes_its_time_delays_nothing(server):
    """Each item is sent before the next one is there, however many would fit into a message."""

    async def source():
        for number in range(3):
            yield row(number)
            yield row(number + 10)
            assert await asyncio.to_thread(server.taken.acquire, timeout=30)

    async def work(client):
        async with client.stream("echo", max_pending=32) as stream:
            return [value_of(result) async for result in stream.map(source(), pack=8)]

    server.window = 32
    assert sorted(run(server.address, work)) == [0, 1, 2, 10, 11, 12]
    assert server.messages == [["0", "1"], ["2", "3"], ["4", "5"]]


@pytest.mark.parametrize(("pack", "expected"), [(1, [1] * 10), (4, [4, 4, 2]), (100, [4, 4, 2])])
def test_map_packs_and_keeps_the_order(server, pack, expected):
    with ac.Client(server.address) as client, client.stream("echo", order="submission") as stream:
        results = list(stream.map((row(number) for number in range(10)), pack=pack))
        assert stream.summary.received_items == 10
    assert [value_of(result) for result in results] == list(range(10))
    assert [len(message) for message in server.messages] == expected

    async def work(client):
        async with client.stream("echo", order="submission") as stream:
            return [value_of(result) async for result in stream.map([row(number) for number in range(10)], pack=pack)]

    server.messages.clear()
    assert run(server.address, work) == list(range(10))
    assert [len(message) for message in server.messages] == expected
    assert server.most_pending <= 8


def test_map_takes_asynchronous_iterables_and_none_at_all(server):
    async def source(count):
        for number in range(count):
            yield row(number)

    async def work(client):
        counts = []
        for count in (0, 5, 8):
            async with client.stream("echo") as stream:
                counts.append(len([result async for result in stream.map(source(count))]))
        return counts

    assert run(server.address, work) == [0, 5, 8]


def test_map_does_not_run_ahead_of_its_results(make_server):
    server = make_server(window=4)
    pulled = []

    def source():
        for number in range(50):
            pulled.append(number)
            yield row(number)

    with ac.Client(server.address) as client, client.stream("echo") as stream:
        for count, _ in enumerate(stream.map(source(), pack=2), start=1):
            assert len(pulled) <= count + 4
    assert len(pulled) == 50


def test_an_item_error_does_not_end_the_stream(server):
    with ac.Client(server.address) as client, client.stream("echo", order="submission") as stream:
        bad = {"x": np.zeros((1, 4), np.float32)}
        good, wrong, last = stream.map([row(1), ac.Item(bad, id="bad"), row(3)])
        assert (value_of(good), value_of(last)) == (1, 3)
        assert (wrong.id, type(wrong.error), wrong.error.reason) == ("bad", ac.InvalidArgument, "SHAPE_MISMATCH")
        assert (wrong.error.retry_delay, wrong.error.metadata) == (2, {"input": "x"})
        assert stream.summary == ac.StreamSummary(3, 2, 1)


def test_fields_of_an_item_are_carried(server):
    with ac.Client(server.address) as client, client.stream() as stream:
        stream.send(row(1), id="a", model="echo", capture_time_ns=5_000_000_001, max_wait=1)
        stream.finish()
        (result,) = stream.results()
        assert (result.id, result.capture_time_ns, result.timing.batch_rows) == ("a", 5_000_000_001, 4)


def test_buffers_of_a_lease_are_inputs_and_outputs_of_a_stream(server):
    with ac.Client(server.address) as client, client.lease() as lease:
        buffer = lease.allocate(12)
        lease.write(buffer, np.ones(3, np.float32))
        ref = buffer.ref((1, 3), "float32")
        with client.stream("echo", lease=lease) as stream:
            for result in stream.map([ac.Item({"x": ref}, outputs={"y": ref})] * 3, pack=1):
                assert result.buffers == {"y": ref}
        assert lease.read_array(buffer, (3,), "float32").tolist() == [8, 8, 8]


def test_cancel_takes_back_what_waits(server):
    server.gate.clear()
    with ac.Client(server.address) as client, client.stream("echo", order="submission") as stream:
        stream.send_many([row(0), row(1), row(2)])
        stream.cancel(["1", "nonsense"])
        stream.finish()
        results = stream.results()
        threading.Thread(target=_open_when, args=(server, lambda: server.cancels)).start()
        by_id = {result.id: result for result in results}
    assert server.cancels == [["1"]]
    assert (by_id["0"].error, by_id["2"].error) == (None, None)
    assert type(by_id["1"].error) is ac.Cancelled


def _open_when(server, condition):
    while not condition():
        threading.Event().wait(0.001)
    server.gate.set()


def test_cancel_async(server):
    server.gate.clear()

    async def work(client):
        async with client.stream("echo") as stream:
            await stream.send_many([row(0), row(1)])
            await stream.cancel(["0"])
            await stream.finish()
            opener = asyncio.to_thread(_open_when, server, lambda: server.cancels)
            _, results = await asyncio.gather(opener, _collect(stream))
            return {result.id: result.error and result.error.reason for result in results}

    assert run(server.address, work) == {"0": "ITEM_CANCELLED", "1": None}


async def _collect(stream):
    return [result async for result in stream.results()]


def test_sending_without_reading_is_told(make_server):
    server = make_server(window=4)
    options = ac.Options(max_unread_results=10)
    with ac.Client(server.address, options) as client, client.stream("echo") as stream:
        with pytest.raises(ac.ResourceExhausted) as caught:
            stream.send_many(map(row, range(100)))
        assert caught.value.reason == "RESULTS_NOT_READ"
        stream.finish()
        assert len(list(stream.results())) == stream.summary.received_items >= 10

    async def work(client):
        async with client.stream("echo") as stream:
            with pytest.raises(ac.ResourceExhausted):
                await stream.send_many(map(row, range(100)))
            await stream.finish()
            return len(await _collect(stream)) - stream.summary.received_items

    assert run(server.address, work, options) == 0


def test_a_sender_waits_for_a_reader_elsewhere(make_server):
    server = make_server(window=4)
    options = ac.Options(max_unread_results=8)
    with ac.Client(server.address, options) as client, client.stream("echo") as stream:
        results = stream.results()
        stream.send(row(0))
        read = [value_of(next(results))]  # this thread is the reader
        sender = threading.Thread(target=lambda: (stream.send_many(map(row, range(1, 60))), stream.finish()))
        sender.start()
        read += [value_of(result) for result in results]
        sender.join(20)
        assert sorted(read) == list(range(60))

    async def work(client):
        async with client.stream("echo") as stream, asyncio.TaskGroup() as tasks:
            reading = tasks.create_task(_collect(stream))
            await asyncio.sleep(0)
            for number in range(60):
                await stream.send(row(number))
            await stream.finish()
            return sorted([value_of(result) for result in await reading])

    assert run(server.address, work, options) == list(range(60))


def test_many_threads_share_one_stream(server):
    with ac.Client(server.address) as client, client.stream("echo") as stream:

        def send(start):
            for number in range(start, start + 25):
                stream.send(row(number), id=f"n{number}")

        threads = [threading.Thread(target=send, args=(start,)) for start in (0, 25, 50, 75)]
        for thread in threads:
            thread.start()
        results = stream.results()
        seen = {}
        for _ in range(100):
            result = next(results)
            seen[result.id] = value_of(result)
        for thread in threads:
            thread.join(20)
        assert seen == {f"n{number}": number for number in range(100)}
    assert server.most_pending <= 8
