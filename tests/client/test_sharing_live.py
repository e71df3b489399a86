"""Shared memory with a real server."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack

import numpy as np
import pytest

import aclserve_client as ac
from serving import elementwise, put_model, serving

WIDTH = 30_000  # 120 kB a row
ON = ac.Options(shared_memory=True, retry_backoff=0.001)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    put_model(root, "same", elementwise("Identity", ("rows", WIDTH)))
    put_model(root, "solo", elementwise("Identity", (2, WIDTH)))
    return root


@pytest.fixture
def live(models):
    with serving(models, system_shared_memory=True) as server:
        yield server
        assert server.server.regions.use().descriptors == 0


def item(value, rows=2):
    return {"x": np.full((rows, WIDTH), value, np.float32)}


def value_of(result):
    array = result.raise_for_error().outputs["y"]
    assert (array == array[0, 0]).all()
    return array[0, 0]


@pytest.mark.parametrize("model", ["same", "solo"])
def test_calls_and_streams_of_both_clients(live, model):
    with ac.Client(live.address, ON) as client:
        assert [value_of(client.infer(model, item(value))) for value in range(3)] == [0, 1, 2]
        with client.stream(model, order="submission") as stream:
            assert [value_of(result) for result in stream.map(map(item, range(30)))] == list(range(30))

    async def main():
        async with ac.AsyncClient(live.address, ON) as client:
            found = [value_of(await client.infer(model, item(value))) for value in range(3)]
            async with client.stream(model, order="submission") as stream:
                return found, [value_of(result) async for result in stream.map(map(item, range(30)))]

    assert asyncio.run(asyncio.wait_for(main(), 60)) == ([0, 1, 2], list(range(30)))
    use = live.server.regions.use()
    assert use.read_bytes == use.written_bytes == 66 * 2 * WIDTH * 4
    assert use.pins == 0


def test_different_rows_have_the_room_they_need(live):
    with ac.Client(live.address, ON) as client, client.stream("same") as stream:
        results = list(stream.map(item(rows, rows) for rows in (1, 8, 3, 2, 7)))
    assert sorted((value_of(result), len(result.outputs["y"])) for result in results) == [
        (rows, rows) for rows in (1, 2, 3, 7, 8)
    ]
    assert live.server.regions.use().written_bytes == 21 * WIDTH * 4


def test_a_server_that_restarts_loses_nothing(models):
    """The stream is resumed on the next server, in a region of its own there, and the calls of `infer` too."""
    with ExitStack() as stack:
        first = stack.enter_context(ExitStack())
        servers = [first.enter_context(serving(models, system_shared_memory=True, drain_timeout_s=5))]
        servers.append(stack.enter_context(serving(models, system_shared_memory=True)))
        client = stack.enter_context(ac.Client([server.address for server in servers], ON))
        assert value_of(client.infer("same", item(1))) == 1

        def items():
            for value in range(40):
                if value == 20:
                    first.close()
                yield item(value)

        with client.stream("same", order="submission", resume=True, max_pending=4) as stream:
            assert sorted(value_of(result) for result in stream.map(items(), pack=1)) == list(range(40))
        assert stream.resumptions == 1
        assert [value_of(client.infer("same", item(value))) for value in (7, 8)] == [7, 8]
        uses = [server.server.regions.use() for server in servers]
        assert uses[0].read_bytes > 0
        assert uses[1].read_bytes > 5 * 2 * WIDTH * 4
        assert (uses[0].descriptors, uses[1].regions) == (0, 1)


def test_a_server_without_it_says_so(models):
    with serving(models) as server, ac.Client(server.address, ON) as client:
        with pytest.raises(ac.FailedPrecondition) as caught:
            client.infer("same", item(1))
        assert caught.value.reason == "SHARED_MEMORY_OFF"
        with client.stream("same", shared_memory="auto") as stream:
            assert [value_of(result) for result in stream.map(map(item, range(3)), pack=1)] == [0, 1, 2]


def test_an_expired_lease_is_made_anew(live):
    with ac.Client(live.address, ON) as client:
        assert value_of(client.infer("same", item(1))) == 1
        with client.stream("same", max_pending=2) as stream:
            for lease_id in list(client._caller._homes):
                client._caller.run(ac.client.verbs.release_lease(), 10, lease_id)
            assert sorted(value_of(result) for result in stream.map(map(item, range(6)), pack=1)) == list(range(6))
        assert [value_of(client.infer("same", item(value))) for value in (2, 3)] == [2, 3]
        assert live.server.regions.use().regions == 1
    assert live.server.regions.use().regions == 0
