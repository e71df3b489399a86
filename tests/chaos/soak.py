"""Many items through one server whose device fails now and then: what the process holds does not grow."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil

from aclserve_client import AsyncClient
from aclserve_server.emulator import EmulatorConfig
from serving import Serving, elementwise, put_model, rows, serving

FAULTS = {
    "aclmdlExecuteAsync": (0.002, 507899),
    "aclrtSynchronizeStream": (0.002, 107000),
    "aclmdlSetDynamicBatchSize": (0.001, 207001),
    "aclrtLaunchCallback": (0.001, 207014),
}
"""Chance and code of failures none of which loses the device."""

STREAMS = 8
ROUNDS = 10


@dataclass
class Footprint:
    """What a process holds. Bytes resident; Python's objects."""

    threads: int
    descriptors: int
    resident_bytes: int
    objects: int
    ledger: dict[str, int]


@dataclass
class Soak:
    """What a soak found: answers by outcome, and the footprint after each round."""

    outcomes: Counter[str] = field(default_factory=Counter)
    footprints: list[Footprint] = field(default_factory=list)


def soak(root: Path, items: int) -> Soak:
    """Sends so many items, in rounds of streams that come and go; every answer is held against what was sent."""
    put_model(root, "relu", elementwise("Relu"))
    found = Soak()
    with serving(root, emulator=EmulatorConfig(fault_rates=FAULTS, seed=3)) as up:
        for number in range(ROUNDS):
            asyncio.run(_round(up, found, items // ROUNDS // STREAMS, number))
            found.footprints.append(_footprint(up))
        up.emulator.faults.clear()
    return found


def grown(found: Soak) -> list[str]:
    """What has grown from the end of the first third to the end, in words."""
    first, last = found.footprints[len(found.footprints) // 3], found.footprints[-1]
    told = []
    for name, allowed in (("threads", 2), ("descriptors", 4), ("objects", 3000), ("resident_bytes", 24 << 20)):
        before, after = getattr(first, name), getattr(last, name)
        if after - before > allowed:
            told.append(f"{name} grew from {before} to {after}")
    if first.ledger != last.ledger:
        told.append(f"the device's handles were {first.ledger}, are {last.ledger}")
    return told


async def _round(up: Serving, found: Soak, count: int, number: int) -> None:
    async with AsyncClient(up.address) as client, asyncio.TaskGroup() as group:
        for index in range(STREAMS):
            group.create_task(_stream(client, found, count, number * STREAMS + index))


async def _stream(client: AsyncClient, found: Soak, count: int, number: int) -> None:
    expected = [rows(number * 100 + index, 1 + index % 3) for index in range(64)]
    answered = 0
    async with client.stream("relu", max_pending=128) as stream:

        async def send() -> None:
            for index in range(0, count, 32):
                size = min(32, count - index)
                await stream.send_many([{"x": expected[(index + at) % 64]} for at in range(size)])
            await stream.finish()

        async with asyncio.TaskGroup() as group:
            group.create_task(send())
            async for result in stream.results():
                answered += 1
                if result.error is not None:
                    found.outcomes[result.error.reason] += 1
                    continue
                found.outcomes["OK"] += 1
                if not np.array_equal(result.outputs["y"], expected[int(result.id) % 64]):
                    found.outcomes["WRONG"] += 1
    if answered != count:
        found.outcomes["UNANSWERED"] += count - answered


def _footprint(up: Serving) -> Footprint:
    gc.collect()
    process = psutil.Process()
    return Footprint(
        threading.active_count(),
        process.num_fds(),
        process.memory_info().rss,
        len(gc.get_objects()),
        {kind: count for kind, count in up.emulator.ledger().items() if count},
    )
