"""Many streams, cancellations and dying clients: every surviving item is answered once and rightly."""

from __future__ import annotations

import asyncio
import gc
import random
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from aclserve.errors import Cancelled
from aclserve_client import AsyncClient
from serving import Serving, elementwise, put_model, rows, serving

STREAMS = 64
ITEMS = 24
ROUNDS = 20
_KILLED = """
import sys
import numpy as np
from aclserve_client import Client
with Client(sys.argv[1]) as client, client.stream("relu") as stream:
    for number in range(100000):
        stream.send({"x": np.full((1 + number % 5, 4), number, np.float32)})
        if number == 16:
            print("sending", flush=True)
"""


async def survivor(client: AsyncClient, number: int, seed: int) -> None:
    """Sends items of mixed rows, takes some back, and holds every answer against what it sent."""
    chance = random.Random(seed * 1000 + number)
    sent: dict[str, tuple[int, int]] = {}
    cancelled: set[str] = set()
    answered: set[str] = set()
    async with client.stream("relu", max_pending=ITEMS) as stream:

        async def send() -> None:
            for index in range(ITEMS):
                first, count = number * 100 + index, chance.choice((1, 1, 1, 2, 3, 7, 32))
                item_id = f"{index}"
                sent[item_id] = (first, count)
                await stream.send({"x": rows(first, count)}, id=item_id)
                if chance.random() < 0.15:
                    cancelled.add(item_id)
                    await stream.cancel([item_id])
            await stream.finish()

        async with asyncio.TaskGroup() as group:
            group.create_task(send())
            async for result in stream.results():
                assert result.id not in answered
                answered.add(result.id)
                if result.error is not None:
                    assert isinstance(result.error, Cancelled)
                    assert result.id in cancelled
                else:
                    np.testing.assert_array_equal(result.outputs["y"], rows(*sent[result.id]))
    assert answered == set(sent)
    assert stream.summary is not None
    assert stream.summary.received_items == ITEMS


async def deserter(client: AsyncClient, number: int) -> None:
    """Leaves in the middle without a word."""
    async with client.stream("relu") as stream:
        for index in range(number % 9):
            await stream.send({"x": rows(index, 1 + index)})
        await anext(aiter(stream.results()), None) if number % 2 and number % 9 else None
        raise asyncio.CancelledError


async def one_round(address: str, seed: int) -> None:
    async with AsyncClient(address) as one, AsyncClient(address) as other, asyncio.TaskGroup() as group:
        for number in range(STREAMS):
            client = one if number % 2 else other
            if number % 8 == 7:
                group.create_task(gone(client, number))
            else:
                group.create_task(survivor(client, number, seed))


async def gone(client: AsyncClient, number: int) -> None:
    with pytest.raises(asyncio.CancelledError):
        await deserter(client, number)


def kill_a_client(address: str) -> None:
    with subprocess.Popen([sys.executable, "-c", _KILLED, address], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"sending\n"
        process.send_signal(signal.SIGKILL)


def wait_until_idle(up: Serving) -> None:
    """All streams have ended and nothing waits; bounded."""
    for _ in range(2000):
        if not up.run(_sessions(up)) and up.server.engine.queue_rows("relu") == 0:
            return
    raise AssertionError("streams of clients that are gone stay open")


async def _sessions(up: Serving) -> int:
    await asyncio.sleep(0.005)
    return len(up.server.models.sessions)


@pytest.mark.slow
def test_streams_cancellations_and_killed_clients_leave_nothing_behind(tmp_path: Path) -> None:
    put_model(tmp_path, "relu", elementwise("Relu"))
    blocks: list[int] = []
    with serving(tmp_path) as up:
        at_rest = up.emulator.ledger()
        for number in range(ROUNDS):
            asyncio.run(one_round(up.address, number))
            if number % 7 == 0:
                kill_a_client(up.address)
            wait_until_idle(up)
            assert up.emulator.ledger() == at_rest
            gc.collect()
            blocks.append(sys.getallocatedblocks())
    # Python's objects, which do not depend on what else this process has done. The rounds of the second half send
    # 12,000 items: one object kept for each shows. Memory outside Python is the soak's matter (tests/chaos).
    assert min(blocks[ROUNDS // 2 :]) - min(blocks[4 : ROUNDS // 2]) < 6000, blocks
