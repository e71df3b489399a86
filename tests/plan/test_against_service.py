"""The planner says of every item what the service does with it: in which batch it is answered, or why it is not."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from pathlib import Path

import pytest

from aclserve_server.engine.frames import Policy
from aclserve_server.plan.process import Limits
from aclserve_server.plan.sources import Manner
from plan.stepped import MODEL, Ending, Gate, Planned, real
from serving import elementwise, put_model, serving

POLICIES = ["wait", "drop_oldest", "drop_newest", "latest_only"]
WINDOW, QUEUE_ROWS, MAX_ROWS, EVENTS = 4, 16, 4, 300


@pytest.mark.parametrize(
    ("seed", "haste", "bound"), [(1, False, 0), (2, False, 0), (3, True, 0), (4, True, 0), (7, False, 2), (6, True, 2)]
)
def test_every_item_ends_as_planned(tmp_path: Path, seed: int, haste: bool, bound: int) -> None:
    """`haste`: calls have a deadline, far away, but it changes their turn. `bound`: of a stream's rows in a batch."""
    put_model(tmp_path, MODEL, elementwise("Relu"), f"max_batch_size: {MAX_ROWS}\ndynamic_batching {{}}\n")
    gate = Gate()
    manners = [Manner(MODEL, policy=Policy(policy.replace("_", " "))) for policy in POLICIES]
    calls = Manner(MODEL, timeout_s=1e6 if haste else None)
    planned = Planned(manners, calls, Limits(QUEUE_ROWS, bound), MAX_ROWS, WINDOW)
    limits = {"max_stream_items": WINDOW, "max_queue_rows": QUEUE_ROWS, "max_stream_rows": bound}
    with serving(tmp_path, emulator=gate.config(), **limits) as served:
        got = asyncio.run(history(served, gate, planned, random.Random(seed), haste))
    assert got == planned.endings
    kinds = Counter(name for name, _, _ in got.values())
    print(f"seed {seed}: {dict(kinds)}")
    assert kinds["OK"] > 50
    assert {"OLDEST", "NEWEST", "SUPERSEDED", "QUEUE_FULL"} <= set(kinds)


async def history(
    served: object, gate: Gate, planned: Planned, chance: random.Random, haste: bool
) -> dict[int, Ending]:
    """Plays items and steps to both sides, more items than the device is let do; then lets it do the rest."""
    at = 0
    async with real(served, gate, POLICIES) as service:  # type: ignore[arg-type]
        while at < EVENTS or planned.device.pending:
            at += 1
            if planned.device.pending and (at >= EVENTS or chance.random() < 0.12):
                await service.step(at)
                planned.step(at)
                assert service.endings == planned.endings, (at, "step")
                continue
            stream = chance.choice([-1, -1, *range(len(POLICIES))])
            if at < EVENTS and planned.may_send(stream):
                await service.send(at, stream, 1000 if haste else 0)
                planned.send(at, stream)
                assert service.endings == planned.endings, (at, stream)
        return dict(service.endings)
