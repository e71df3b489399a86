"""Shared memory between a client and a server on a real socket: what travels, what is left, what happens without it."""

from __future__ import annotations

import asyncio
import itertools
import logging
import threading
from pathlib import Path

import numpy as np
import pytest

import aclserve_client as ac
from aclserve import errors
from aclserve_client import shared_memory

FRAME_ROWS = 524_288  # of 12 bytes: 6 MiB


def options(shared_memory=True, **others):
    """Options under which 16 KiB are worth sharing."""
    return ac.Options(shared_memory=shared_memory, shared_memory_min_bytes=16 << 10, retry_backoff=0.001, **others)


ON, OFF, AUTO = options(), options(False), options("auto")
WARNER = "aclserve_client.share_verbs"


def frame(value, rows=FRAME_ROWS):
    return {"x": np.full((rows, 3), value, np.float32)}


def value_of(result):
    (array,) = result.raise_for_error().outputs.values()
    assert (array == array[0, 0]).all()
    return array[0, 0] / 2


def left(server):
    return [key for key in server.regions.keys if (Path("/dev/shm") / key[1:]).exists()]


def infer_all(address, settings, items):
    """Runs items by `infer` of both clients, one after the other."""
    with ac.Client(address, settings) as client:
        found = [value_of(client.infer("echo", item)) for item in items]

    async def main():
        async with ac.AsyncClient(address, settings) as client:
            return [value_of(await client.infer("echo", item)) for item in items]

    return found + asyncio.run(asyncio.wait_for(main(), 60))


def stream_all(kind, address, chosen, items, **settings):
    """Results of a stream of one kind of client, and the stream."""
    if kind == "sync":
        with ac.Client(address, chosen) as client, client.stream("echo", **settings) as stream:
            return list(stream.map(items, pack=1)), stream

    async def main():
        async with ac.AsyncClient(address, chosen) as client, client.stream("echo", **settings) as stream:
            return [result async for result in stream.map(items, pack=1)], stream

    return asyncio.run(asyncio.wait_for(main(), 60))


@pytest.fixture
def sharer(make_server):
    server = make_server(shared_memory=True)
    yield server
    assert left(server) == []


both = pytest.mark.parametrize("kind", ["sync", "async"])


def test_a_frame_of_6_mib_is_a_message_of_a_hundred_bytes(sharer):
    assert infer_all(sharer.address, ON, [frame(1), frame(2)]) == [1, 2, 1, 2]
    assert len(sharer.message_bytes) == 4
    assert max(sharer.message_bytes) < 150
    assert max(sharer.answer_bytes) < 150
    assert sharer.regions.registered == 2
    assert sharer.faults.calls.count("CreateLease") == sharer.faults.calls.count("ReleaseLease") == 2
    assert sharer.faults.calls.count("GetModel") == 2


@both
def test_frames_of_a_stream(sharer, kind):
    results, stream = stream_all(kind, sharer.address, ON, map(frame, range(20)), order="submission")
    assert [value_of(result) for result in results] == list(range(20))
    assert stream.summary.succeeded_items == 20
    assert max(sharer.message_bytes) < 150
    assert max(sharer.answer_bytes) < 4 * 150
    assert sharer.regions.registered == 1
    assert sharer.leases == {}


def test_parts_of_items_under_way_never_overlap(sharer):
    sharer.gate.clear()
    with ac.Client(sharer.address, ON) as client, client.stream("echo") as stream:
        for value in range(5):
            stream.send(frame(value, 5000))
        sharer.gate.set()
        stream.finish()
        assert sorted(map(value_of, stream.results())) == list(range(5))
    ranges = sorted((offset, offset + length) for _, offset, length in sharer.regions.used)
    assert len(ranges) == 10
    assert all(end <= begin for (_, end), (begin, _) in itertools.pairwise(ranges))


def test_parts_are_used_again(sharer):
    with ac.Client(sharer.address, options(shared_memory_bytes=200_000)) as client:
        assert [value_of(client.infer("echo", frame(value, 5000))) for value in range(20)] == list(range(20))
    assert {offset for _, offset, _ in sharer.regions.used} == {0, 60_032}


@both
def test_what_does_not_fit_and_what_is_small_travels_in_the_message(sharer, kind):
    small = options(shared_memory_bytes=130_000)
    items = [frame(value, 6000 if value % 2 else 5000) for value in range(6)]  # 144 000 and 120 000 bytes of both
    results, _ = stream_all(kind, sharer.address, small, items, order="submission", max_pending=1)
    assert [value_of(result) for result in results] == list(range(6))
    assert [size > 70_000 for size in sharer.message_bytes] == [False, True] * 3
    sharer.message_bytes.clear()
    results, _ = stream_all(kind, sharer.address, small, [frame(1, 5)])
    assert value_of(results[0]) == 1
    assert len(sharer.regions.used) == 6


def test_a_window_of_bytes_counts_what_travels(make_server):
    server = make_server(shared_memory=True, window_bytes=100_000)
    server.gate.clear()
    with ac.Client(server.address, ON) as client, client.stream("echo") as stream:
        sender = threading.Thread(target=stream.send_many, args=([frame(value, 5000) for value in range(8)],))
        sender.start()
        sender.join(30)
        assert not sender.is_alive()
        server.gate.set()
        stream.finish()
        assert len(list(stream.results())) == 8


@pytest.mark.parametrize("cause", ["off", "elsewhere", "unimplemented", "no /dev/shm", "too many"])
def test_without_shared_memory_auto_goes_on_and_says_so_once(make_server, monkeypatch, caplog, cause):
    caplog.set_level(logging.WARNING, WARNER)
    server = make_server(shared_memory=cause != "off")
    server.regions.visible = cause != "elsewhere"
    if cause == "no /dev/shm":
        monkeypatch.setattr(shared_memory, "FOLDER", Path("/nonexistent"))
    if cause == "unimplemented":
        server.faults.plan["RegisterRegion"] = [errors.Unimplemented("Method not found!", reason="UNIMPLEMENTED")] * 9
    if cause == "too many":
        server.faults.plan["CreateLease"] = [errors.ResourceExhausted("no more", reason="TOO_MANY_LEASES")] * 9
    with ac.Client(server.address, AUTO) as client:
        for value in range(3):
            assert value_of(client.infer("echo", frame(value, 5000))) == value
            with client.stream("echo") as stream:
                assert [value_of(result) for result in stream.map([frame(value, 5000)] * 2)] == [value] * 2
    (record,) = caplog.records
    assert f"no shared memory with {server.address}" in record.getMessage()
    assert "--system-shared-memory" in record.getMessage()
    assert server.faults.calls.count("CreateLease") == 1
    assert server.leases == {}
    assert left(server) == []
    assert min(server.message_bytes) > 60_000


@both
@pytest.mark.parametrize("resume", [False, True])
def test_asked_for_shared_memory_is_had_or_the_reason_raised(server, kind, resume):
    with pytest.raises(ac.FailedPrecondition) as caught:
        stream_all(kind, server.address, OFF, [frame(1, 5000)], shared_memory=True, resume=resume)
    assert caught.value.reason == "SHARED_MEMORY_OFF"
    with pytest.raises(ac.FailedPrecondition):
        infer_all(server.address, ON, [frame(1, 5000)])
    assert infer_all(server.address, ON, [frame(1, 5)]) == [1, 1]
    assert server.leases == {}
    assert left(server) == []


def test_the_mode_is_checked():
    with pytest.raises(ac.InvalidArgument, match='shared_memory must be True, False or "auto"'):
        ac.Options(shared_memory="on")
    with ac.Client() as client, pytest.raises(ac.InvalidArgument):
        client.stream("echo", shared_memory="yes")


def test_a_stream_may_differ_from_its_client_and_one_with_a_lease_has_none(sharer):
    with ac.Client(sharer.address, ON) as client:
        with client.stream("echo", shared_memory=False) as stream:
            assert value_of(*stream.map([frame(1, 5000)])) == 1
        with client.lease() as lease, client.stream("echo", lease=lease) as stream:
            assert value_of(*stream.map([frame(1, 5000)])) == 1
            assert value_of(client.infer("echo", frame(1, 5000), lease=lease)) == 1
    assert sharer.regions.registered == 0
    assert value_of(stream_all("sync", sharer.address, OFF, [frame(1, 5000)], shared_memory="auto")[0][0]) == 1
    assert sharer.regions.registered == 1


def test_an_expired_lease_of_infer_costs_nothing_but_bytes(sharer):
    with ac.Client(sharer.address, ON) as client:
        assert value_of(client.infer("echo", frame(1, 5000))) == 1
        sharer.leases.clear()
        assert [value_of(client.infer("echo", frame(value, 5000))) for value in (2, 3)] == [2, 3]
    assert [size > 60_000 for size in sharer.message_bytes] == [False, False, True, False]
    assert sharer.regions.registered == 2


def test_infer_renews_its_lease_by_the_way(make_server):
    server = make_server(shared_memory=True, lease_ttl=0.003)
    with ac.Client(server.address, ON) as client:
        assert value_of(client.infer("echo", frame(1, 5000))) == 1
        threading.Event().wait(0.002)
        assert value_of(client.infer("echo", frame(2, 5000))) == 2
        assert server.faults.calls.count("RenewLease") == 1
        threading.Event().wait(0.002)
        server.leases.clear()
        assert [value_of(client.infer("echo", frame(3, 5000)))] == [3]  # inline, and then anew
    assert max(server.message_bytes) > 60_000


@both
def test_items_of_a_lost_lease_are_sent_again_in_messages(sharer, kind, caplog):
    def items():
        for value in range(12):
            if value == 6:
                sharer.leases.clear()
            yield frame(value, 5000)

    results, _ = stream_all(kind, sharer.address, ON, items(), max_pending=2)
    assert sorted(map(value_of, results)) == list(range(12))
    assert len({result.id for result in results}) == 12
    assert [record.getMessage().split(";")[0] for record in caplog.records if record.name.endswith("streams")] == [
        "the server lost the shared memory (REGION_NOT_FOUND)"
    ]
    assert max(sharer.message_bytes) > 60_000


@both
def test_an_output_that_has_outgrown_its_model_is_sent_again(sharer, kind, monkeypatch):
    monkeypatch.setattr("aclserve_client.sharing.output_bytes", lambda model, item: {"y": 20_000})
    results, _ = stream_all(kind, sharer.address, ON, [frame(1, 5000), frame(2, 5000)], max_pending=1)
    assert [value_of(result) for result in results] == [1, 2]
    assert infer_all(sharer.address, ON, [frame(1, 5000)]) == [1, 1]


@both
def test_a_stream_that_resumes_moves_its_items(make_server, kind):
    """With the server back, the items that were not answered leave again, in a region of the new server."""
    server = make_server(shared_memory=True)
    server.break_after = 5
    results, stream = stream_all(
        kind, server.address, ON, [frame(value, 5000) for value in range(20)], order="submission", resume=True
    )
    assert [value_of(result) for result in results] == list(range(20))
    assert stream.resumptions == 1
    assert server.regions.registered == 2
    assert max(server.message_bytes) < 300
    assert left(server) == []


@both
def test_a_stream_that_resumes_without_shared_memory_sends_its_items_in_messages(make_server, kind):
    first, second = make_server(shared_memory=True), make_server()
    first.accept_items = 3
    addresses = f"{first.address},{second.address}"
    results, stream = stream_all(
        kind, addresses, AUTO, [frame(value, 5000) for value in range(10)], order="submission", resume=True
    )
    assert sorted(map(value_of, results)) == list(range(10))
    assert stream.resumptions == 1
    assert max(first.message_bytes) < 300
    assert min(second.message_bytes) > 60_000
    assert left(first) == left(second) == []


def test_the_memory_of_a_call_given_up_is_not_used_again(sharer):
    with ac.Client(sharer.address, ON) as client:
        assert value_of(client.infer("echo", frame(1, 5000))) == 1
        sharer.gate.clear()
        with pytest.raises(ac.DeadlineExceeded):
            client.infer("echo", frame(2, 5000), timeout=0.2)
        sharer.gate.set()
        assert value_of(client.infer("echo", frame(3, 5000))) == 3
    assert sharer.regions.registered == 2
    assert sharer.leases == {}


def test_a_cancelled_call_gives_its_memory_up(sharer):
    async def main():
        async with ac.AsyncClient(sharer.address, ON) as client:
            sharer.gate.clear()
            call = asyncio.create_task(client.infer("echo", frame(2, 5000)))
            assert await asyncio.to_thread(sharer.infer_began.acquire, timeout=30)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            sharer.gate.set()
            assert value_of(await client.infer("echo", frame(3, 5000))) == 3

    asyncio.run(asyncio.wait_for(main(), 60))
    assert sharer.regions.registered == 2
    assert sharer.leases == {}


@both
def test_nothing_is_left_after_an_exception(sharer, kind):
    def items():
        yield frame(1, 5000)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        stream_all(kind, sharer.address, ON, items())
    assert sharer.leases == {}


def test_many_threads_share_the_memory_of_infer(sharer):
    with ac.Client(sharer.address, ON) as client:
        client.infer("echo", frame(0, 5000))
        found = []

        def work(value):
            found.extend(value_of(client.infer("echo", frame(value, 5000 + value))) for _ in range(10))

        threads = [threading.Thread(target=work, args=(value,)) for value in range(1, 5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert sorted(found) == sorted([1, 2, 3, 4] * 10)
    assert sharer.regions.registered == 1
    assert max(sharer.message_bytes) < 150


def test_a_failed_item_gives_its_memory_back(sharer):
    with ac.Client(sharer.address, options(shared_memory_bytes=200_000)) as client:
        for _ in range(5):
            with pytest.raises(ac.InvalidArgument):
                client.infer("echo", {"x": np.zeros((5000, 4), np.float32)})
        with client.stream("echo", max_pending=1) as stream:
            results = list(stream.map([{"x": np.zeros((5000, 4), np.float32)}] * 9, pack=1))
            assert {result.error.reason for result in results} == {"SHAPE_MISMATCH"}
    assert max(sharer.message_bytes) < 300
    assert sharer.regions.registered == 2
