"""How streams end other than by the client's half-close: refused, unanswered, going away, broken, given up."""

from __future__ import annotations

import asyncio
import threading

import numpy as np
import pytest

import aclserve_client as ac
from aclserve import errors


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


def test_going_away_answers_every_item_and_refuses_more(server):
    server.accept_items = 5
    with ac.Client(server.address) as client, client.stream("echo", order="submission") as stream:
        stream.send_many([row(number) for number in range(7)])
        results = list(stream.results())
        assert [result.id for result in results] == [str(number) for number in range(7)]
        assert [result.error is None for result in results] == [True] * 5 + [False] * 2
        assert results[-1].error.reason == "SERVER_GOING_AWAY"
        assert stream.going_away
        assert stream.last_accepted_id == "4"
        with pytest.raises(ac.Unavailable):
            stream.send(row(9))


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_map_tells_that_the_server_went_away(server, kind):
    server.accept_items = 20
    answered = []

    def blocking():
        with ac.Client(server.address) as client, client.stream("echo") as stream:
            answered.extend(result for result in stream.map(map(row, range(100)), pack=3) if not result.error)

    async def work(client):
        async with client.stream("echo") as stream:
            async for result in stream.map(map(row, range(100)), pack=3):
                if not result.error:
                    answered.append(result)

    with pytest.raises(ac.Unavailable, match="shutting down"):
        blocking() if kind == "sync" else run(server.address, work)
    assert len(answered) == 20


def test_a_stream_the_server_refuses(server):
    with ac.Client(server.address) as client:
        with pytest.raises(ac.NotFound) as caught, client.stream("nonsense"):
            pass
        assert caught.value.reason == "MODEL_NOT_FOUND"

    async def work(client):
        with pytest.raises(ac.NotFound):
            async with client.stream("nonsense"):
                pass

    run(server.address, work)


def test_a_stream_nobody_answers(server):
    server.silent = True
    options = ac.Options(timeout=0.05)
    with ac.Client(server.address, options) as client:
        with pytest.raises(ac.DeadlineExceeded) as caught, client.stream("echo"):
            pass
        assert caught.value.reason == "STREAM_NOT_READY"

    async def work(client):
        with pytest.raises(ac.DeadlineExceeded) as caught:
            async with client.stream("echo"):
                pass
        return caught.value.reason

    assert run(server.address, work, options) == "STREAM_NOT_READY"


def test_a_stream_with_a_deadline(server):
    server.gate.clear()
    with ac.Client(server.address) as client, client.stream("echo", timeout=0.2) as stream:
        stream.send(row(1))
        with pytest.raises(ac.DeadlineExceeded):
            next(stream.results())
        with pytest.raises(ac.DeadlineExceeded):
            stream.send(row(1))


def test_a_server_that_dies_breaks_the_stream(make_server):
    server = make_server()
    server.gate.clear()
    with ac.Client(server.address) as client, client.stream("echo") as stream:
        stream.send(row(1))
        server.close()
        with pytest.raises(ac.AclserveError) as caught:
            list(stream.results())
        assert caught.value.code in (1, 14)


@pytest.mark.parametrize("left_by", ["leaving", "error"])
def test_leaving_the_block_gives_the_stream_up(server, left_by):
    server.gate.clear()

    class LeftError(Exception):
        pass

    def leave():
        if left_by == "error":
            raise LeftError

    threads = set(threading.enumerate())
    with ac.Client(server.address) as client:
        try:
            with client.stream("echo") as stream:
                stream.send(row(1))
                leave()
        except LeftError:
            assert left_by == "error"
        with pytest.raises(ac.Cancelled):
            stream.send(row(1))

    async def work(client):
        try:
            async with client.stream("echo") as stream:
                await stream.send(row(1))
                leave()
        except LeftError:
            assert left_by == "error"
        with pytest.raises(ac.Cancelled):
            await stream.send(row(1))

    run(server.address, work)
    server.gate.set()
    assert not {thread for thread in set(threading.enumerate()) - threads if "aclserve" in thread.name}


def test_an_unopened_stream_says_so(server):
    with ac.Client(server.address) as client, pytest.raises(ac.FailedPrecondition, match="not open"):
        client.stream("echo").send(row(1))


def test_status_details_of_a_stream_are_translated(server):
    server.faults.plan["StreamInfer"] = [errors.ResourceExhausted("full", reason="TOO_MANY_STREAMS", retry_delay=1)]
    with ac.Client(server.address) as client:
        with pytest.raises(ac.ResourceExhausted) as caught, client.stream("echo"):
            pass
        assert (caught.value.reason, caught.value.retry_delay) == ("TOO_MANY_STREAMS", 1)
