"""How streams behave on the wire: policies, presets, windows, priorities, dropped items; and the report about them."""

from __future__ import annotations

import asyncio
import threading

import numpy as np
import pytest

import aclserve_client as ac
from aclserve.v1 import model_pb2 as pb


def row(value):
    return {"x": np.full((1, 3), value, np.float32)}


def test_settings_are_carried_and_told(server):
    with ac.Client(server.address) as client:
        with client.stream(
            "echo", 3, policy="drop_oldest", max_pending=5, max_pending_bytes=999, max_age=0.25, priority="high"
        ) as stream:
            facts = (stream.policy, stream.order, stream.window, stream.window_bytes, stream.max_age, stream.priority)
            assert facts == ("drop_oldest", "completion", 5, 999, 0.25, "high")
        with client.stream("echo", preset=ac.StreamPreset.LIVE) as stream:
            assert stream.policy is ac.FramePolicy.LATEST_ONLY
        with client.stream("echo", preset="file", policy="drop_newest") as stream:
            assert (stream.policy, stream.order, stream.max_age) == ("drop_newest", "submission", None)
    config = server.configs[0]
    assert (config.model, config.version, config.preset) == ("echo", 3, 0)
    assert [config.preset for config in server.configs] == [0, 2, 1]


@pytest.mark.parametrize("setting", ["preset", "policy", "order", "priority"])
def test_unknown_settings_are_refused_here(server, setting):
    with ac.Client(server.address) as client, pytest.raises(ac.InvalidArgument) as caught:
        client.stream("echo", **{setting: "nonsense"})
    assert caught.value.reason == "CHOICE_UNKNOWN"


def test_before_it_is_open_a_stream_knows_nothing(server):
    with ac.Client(server.address) as client:
        stream = client.stream("echo", policy="latest_only")
        assert (stream.policy, stream.order, stream.window, stream.max_age) == ("unspecified", "unspecified", 0, None)


def test_priorities_of_items(server):
    seen = []
    with ac.Client(server.address) as client:
        assert client.infer("echo", row(1), priority="low").error is None
        with client.stream("echo") as stream:
            stream.send(row(1), priority=ac.Priority.HIGH)
            stream.send_many([ac.Item(row(2), priority="low"), row(3)])
            stream.finish()
            seen += [result.id for result in stream.results()]
    assert sorted(seen) == ["0", "1", "2"]
    assert server.priorities == [1, 3, 1, 0]


def test_dropped_items_are_results_and_counted(server):
    server.drop_ids = {"1", "3"}

    async def asynchronous():
        async with ac.AsyncClient(server.address) as client, client.stream("echo", preset="live") as stream:
            return [result async for result in stream.map(map(row, range(5)))], stream.summary

    with ac.Client(server.address) as client, client.stream("echo", preset="live") as stream:
        blocking = list(stream.map(map(row, range(5)))), stream.summary
    for results, summary in (blocking, asyncio.run(asyncio.wait_for(asynchronous(), 60))):
        dropped = {result.id: result.dropped for result in results if result.dropped}
        assert dropped == dict.fromkeys(["1", "3"], ac.Dropped(ac.DropReason.TOO_OLD, 1_500_000))
        assert summary == ac.StreamSummary(5, 3, 0, 2, {"too_old": 2})


def test_a_window_that_shrinks_and_grows_holds_and_frees_the_sender(make_server):
    server = make_server(window=4)
    server.gate.clear()
    with ac.Client(server.address) as client, client.stream("echo") as stream:
        stream.send_many(map(row, range(4)))
        server.say(window=pb.StreamWindow(max_pending_items=2))
        results = stream.results()
        sender = threading.Thread(target=lambda: (stream.send_many(map(row, range(4, 40))), stream.finish()))
        sender.start()
        server.gate.set()
        first = [next(results) for _ in range(4)]
        while stream.window != 2:
            first.append(next(results))
        server.most_pending = 0
        first += [next(results) for _ in range(10)]
        assert server.most_pending <= 2
        server.say(window=pb.StreamWindow(max_pending_items=6, max_pending_bytes=36))
        first += results
        sender.join(20)
        assert len(first) == 40
        assert (stream.window, stream.window_bytes) == (6, 36)
    assert server.most_pending <= 3  # rows of 12 bytes


def test_a_window_in_bytes_is_obeyed_async(make_server):
    server = make_server(window=8, window_bytes=30)

    async def main():
        async with ac.AsyncClient(server.address) as client, client.stream("echo") as stream:
            assert stream.window_bytes == 30
            return [result async for result in stream.map(map(row, range(20)))]

    assert len(asyncio.run(asyncio.wait_for(main(), 60))) == 20
    assert server.most_pending == 2


def test_a_policy_that_drops_does_not_hold_the_sender_at_the_window(server):
    server.gate.clear()
    with ac.Client(server.address) as client, client.stream("echo", policy="drop_newest", max_pending=2) as stream:
        stream.send_many(map(row, range(10)))  # does not wait
        server.gate.set()
        stream.finish()
        assert len(list(stream.results())) == 10


def test_watch_streams(server):
    with ac.Client(server.address) as client:
        reports = client.watch_streams(0.5)
        first, second = next(reports), next(reports)
        assert first.models == (ac.ModelStatus("echo", 1, 5, 4.0, 26.0, 6.5, 0.8125),)
        (stream,) = second.streams
        assert (stream.number, stream.model, stream.policy, stream.priority) == (7, "echo", "latest_only", "high")
        assert (stream.received_per_second, stream.answered_per_second) == (30.0, 10.5)
        assert (stream.pending_items, stream.window_items, stream.oldest_age_ns) == (2, 8, 3_400_000_000)
        assert (stream.received_items, stream.succeeded_items, stream.failed_items) == (60, 20, 0)
        assert (stream.dropped_items, stream.drops) == (40, {"superseded": 40})
        reports.close()
        assert server.watch_ended.acquire(timeout=20)

    async def main():
        async with ac.AsyncClient(server.address) as client:
            reports = client.watch_streams(0.5)
            found = [await anext(reports), await anext(reports)]
            await reports.aclose()
            return found

    assert asyncio.run(asyncio.wait_for(main(), 60)) == [first, second]
    assert server.watch_ended.acquire(timeout=20)


def test_a_watch_that_breaks_raises(make_server):
    server = make_server()
    with ac.Client(server.address) as client:
        reports = client.watch_streams()
        next(reports)
        server.close()
        with pytest.raises(ac.AclserveError):
            list(reports)
        with pytest.raises(ac.Unavailable):
            list(client.watch_streams())

    async def main():
        async with ac.AsyncClient(server.address) as client:
            with pytest.raises(ac.Unavailable):
                await anext(client.watch_streams())

    asyncio.run(asyncio.wait_for(main(), 60))
