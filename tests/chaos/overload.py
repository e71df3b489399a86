"""Three times as much as the server can do: what it does is done as before, the rest is refused at once."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2

from aclserve.v1 import model_pb2
from chaos.keeper import Keeper
from e2e.raw import INFER, refusal_of, tensor
from serving import elementwise, put_model, rows

ROW_US = 10_000.0
"""The device's time for a row: it sets the capacity, far below what the host can do."""

QUEUE_ROWS = 64


@dataclass
class Phase:
    """What one load came to. Seconds."""

    served: int = 0
    seconds: float = 0.0
    refused: Counter[str] = field(default_factory=Counter)
    without_retry: int = 0
    refusal_s: list[float] = field(default_factory=list)
    health_s: list[float] = field(default_factory=list)
    resident_bytes: int = 0

    @property
    def per_second(self) -> float:
        """Goodput: items served."""
        return self.served / self.seconds

    def percentile(self, values: list[float], share: float) -> float:
        """A percentile of seconds, 0 where there are none."""
        ordered = sorted(values)
        return ordered[int(share * (len(ordered) - 1))] if ordered else 0.0


def overload(root: Path, seconds: float, times: float = 3.0) -> tuple[Phase, Phase]:
    """The phases at capacity (so many calls at a time as keep it full) and at `times` the rate that this gave."""
    put_model(root, "relu", elementwise("Relu"))
    flags = ("--max-queue-rows", str(QUEUE_ROWS))
    with Keeper({"row_us": ROW_US}, root, root.with_suffix(".log"), *flags) as kept:
        address = f"127.0.0.1:{kept.port}"
        peak = asyncio.run(_closed(address, seconds))
        peak.resident_bytes = kept.resident_bytes
        over = asyncio.run(_open(address, seconds, times * peak.per_second))
        over.resident_bytes = kept.resident_bytes
    assert not kept.tally.problems, kept.tally.problems
    return peak, over


async def _closed(address: str, seconds: float) -> Phase:
    phase = Phase()
    async with grpc.aio.insecure_channel(address) as channel:
        end = time.monotonic() + seconds

        async def work() -> None:
            while time.monotonic() < end:
                await _call(channel, phase)

        began = time.monotonic()
        await asyncio.gather(*(work() for _ in range(QUEUE_ROWS // 2)))
        phase.seconds = time.monotonic() - began
    return phase


async def _open(address: str, seconds: float, rate: float) -> Phase:
    phase = Phase()
    calls: set[asyncio.Task[None]] = set()
    async with grpc.aio.insecure_channel(address) as channel:
        began = time.monotonic()
        probing = asyncio.create_task(_probe(address, phase))
        sent = 0
        while (passed := time.monotonic() - began) < seconds:
            while sent < passed * rate:
                sent += 1
                task = asyncio.create_task(_call(channel, phase))
                calls.add(task)
                task.add_done_callback(calls.discard)
            await asyncio.sleep(0.002)
        served = phase.served
        phase.seconds = time.monotonic() - began
        await asyncio.gather(*calls)
        phase.served = served  # within the time
        probing.cancel()
        await asyncio.gather(probing, return_exceptions=True)
    return phase


_REQUEST = model_pb2.InferRequest(model="relu", inputs=[tensor("x", rows(1, 1))]).SerializeToString()


async def _call(channel: grpc.aio.Channel, phase: Phase) -> None:
    began = time.monotonic()
    try:
        await channel.unary_unary(INFER)(_REQUEST, timeout=30)
        phase.served += 1
    except grpc.aio.AioRpcError as error:
        refusal: Any = refusal_of(error)
        phase.refused[refusal.reason] += 1
        phase.without_retry += refusal.retry_s is None
        phase.refusal_s.append(time.monotonic() - began)


async def _probe(address: str, phase: Phase) -> None:
    async with grpc.aio.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        check = channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            health_pb2.HealthCheckRequest.SerializeToString,
            health_pb2.HealthCheckResponse.FromString,
        )
        while True:
            began = time.monotonic()
            answer = await check(health_pb2.HealthCheckRequest(), timeout=30)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
            phase.health_s.append(time.monotonic() - began)
            await asyncio.sleep(0.05)
