"""Compares the planner with the service on the emulated device under open and closed loads, and prints the error.

    python -m tests.plan.validate [--seconds S] [SCENARIO ...]

The server is a process of its own whose device takes a known time for a call and a row. A shared machine is never
equally fast twice, so the planner is told when items really were sent, and what executions took on average, as
`aclserve plan measure --repeats 0` reads it from the server after the load. Latency is the server's own, from the
receipt of an item to its answer.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile
from pathlib import Path
from typing import Any

import grpc

from aclserve.v1 import model_pb2 as pb
from aclserve_server.plan import arrivals, files, report, simulation
from aclserve_server.plan.balance import chance_of, stream_count
from aclserve_server.plan.measure import Access, measure
from aclserve_server.plan.settings import Arrival, Plan
from tests.load.server import started

MODEL = "digits"
LATENCY = {"task_us": {"aclmdlExecuteAsync": 40_000.0}, "row_us": 8000.0}
WARMUP_S = 1.0

SCENARIOS: dict[str, dict[str, Any]] = {
    "light": {"traffic": {"streams": 8, "rate": 25}},
    "busy": {"traffic": {"streams": 8, "rate": 85}},
    "unary": {"traffic": {"unary": True, "rate": 60}},
    "closed": {"traffic": {"streams": 4, "arrivals": "closed", "in_flight": 32}},
    "cameras": {"traffic": {"streams": 30, "arrivals": "periodic", "fps": 6, "policy": "latest_only"}},
    "bursts": {
        "traffic": {
            "streams": 6, "arrivals": "burst", "burst_items": 40, "rate": 150, "policy": "drop_oldest", "window": 16
        }
    },
    "refused": {"traffic": {"unary": True, "rate": 180}, "server": {"max_queue_rows": 48}},
}  # fmt: skip
"""What each adds to the plan."""

BOUNDS = {"answered": 0.05, "rows": 0.10, "fill": 0.06, "lost": 0.10, "p50": 0.15, "p99": 0.30}
"""The error that is allowed: of rates and latencies as a part of what was planned; of the fill, and of losses as a part
of what was offered, in parts of 1."""


@dataclass
class Seen:
    """What came of a load. `latencies_s` are the server's; `late_s`: how late the clients were, which tells how far the
    machine is to be believed.
    """

    offered: int = 0
    answered: int = 0
    lost: Counter[str] = field(default_factory=Counter)
    latencies_s: list[float] = field(default_factory=list)
    batches: float = 0.0
    rows: int = 0
    gear_rows: float = 0.0
    late_s: float = 0.0

    def keep(self, timing: pb.Timing) -> None:
        """An answered item: its share of its batch."""
        self.answered += 1
        self.latencies_s.append(timing.total_ns / 1e9)
        self.rows += 1
        self.batches += 1 / timing.batch_rows
        self.gear_rows += timing.gear_rows / timing.batch_rows

    def percentile(self, share: float) -> float:
        """Of the latencies, in milliseconds."""
        ordered = sorted(self.latencies_s)
        return 1e3 * ordered[min(int(len(ordered) * share), len(ordered) - 1)] if ordered else 0.0


def plan_of(name: str, costs: dict[str, Any], seconds: float) -> Plan:
    """A scenario's plan. The emulated device executes one batch of its one instance at a time."""
    extra = SCENARIOS[name]
    document = {
        "title": name,
        "duration_s": seconds,
        "warmup_s": WARMUP_S,
        "models": {MODEL: {"gears": costs["gears"], "costs_us": costs["costs_us"]}},
        "traffic": {name: {"model": MODEL, **extra["traffic"]}},
        "server": extra.get("server", {}),
    }
    return files.build(document, Path())


class Load:
    """Sends what a plan's one traffic sends."""

    def __init__(self, channel: Any, plan: Plan) -> None:
        ((self._name, self._traffic),) = plan.traffic.items()
        self._plan = plan
        self._channel = channel
        self._seen = Seen()
        self.sent: list[Arrival] = []
        self._end = plan.run.warmup_s + plan.run.duration_s
        self._began = 0.0
        fill = {"pattern": "FILL_PATTERN_ZEROS"}
        shape = {"name": "image", "data_type": "DATA_TYPE_FLOAT32", "shape": [1, 8, 8], "fill": fill}
        wanted = {"name": "label"}
        self._call = pb.InferRequest(model=MODEL, inputs=[shape], outputs=[wanted]).SerializeToString()  # type: ignore[list-item]
        self._item = pb.InferItem(inputs=[shape], outputs=[wanted])  # type: ignore[list-item]

    async def run(self) -> Seen:
        """The whole load; returns when all is answered."""
        self._began = time.perf_counter() + 0.5
        count = stream_count(self._plan, self._name)
        sender = self._calls if self._traffic.unary else self._stream
        await asyncio.gather(*(sender(number) for number in range(count)))
        return self._seen

    def _schedule(self, number: int) -> list[tuple[float, int]]:
        plan, traffic = self._plan, self._traffic
        chance = chance_of(plan, "arrivals", self._name, number)
        moments = arrivals.moments(traffic, stream_count(plan, self._name), number, chance)
        return [(when, items) for when, items, _ in takewhile(lambda moment: moment[0] <= self._end, moments)]

    @property
    def _now(self) -> float:
        return time.perf_counter() - self._began

    @property
    def _counts(self) -> bool:
        return self._plan.run.warmup_s <= self._now <= self._end

    async def _wait(self, when: float) -> None:
        await asyncio.sleep(max(when - self._now, 0.0))
        self._seen.late_s = max(self._seen.late_s, self._now - when)

    async def _calls(self, number: int) -> None:
        infer = self._channel.unary_unary("/aclserve.v1.ModelService/Infer")
        async with asyncio.TaskGroup() as group:
            for when, items in self._schedule(number):
                await self._wait(when)
                self._seen.offered += items * self._counts
                for _ in range(items):
                    self.sent.append(Arrival(self._now))
                    group.create_task(self._one(infer))

    async def _one(self, infer: Any) -> None:
        try:
            answer = pb.InferResponse.FromString(await infer(self._call))
        except grpc.aio.AioRpcError as error:
            if self._counts:
                self._seen.lost[error.code().name] += 1
        else:
            if self._counts:
                self._seen.keep(answer.timing)

    async def _stream(self, number: int) -> None:
        traffic = self._traffic
        call = self._channel.stream_stream("/aclserve.v1.ModelService/StreamInfer")()
        config = pb.StreamConfig(
            model=MODEL,
            policy=pb.FramePolicy.Value(f"FRAME_POLICY_{traffic.policy.upper()}"),
            max_pending_items=traffic.window,
        )
        await call.write(pb.StreamInferRequest(config=config).SerializeToString())
        await call.read()
        closed = traffic.arrivals == "closed"
        reading = asyncio.create_task(self._read(call, number, again=closed))
        if closed:
            await self._wait(0.0)
            await self._send(call, number, traffic.in_flight)
            await self._wait(self._end)
        else:
            for when, items in self._schedule(number):
                await self._wait(when)
                await self._send(call, number, items)
        await call.done_writing()
        await reading

    async def _send(self, call: Any, number: int, items: int) -> None:
        self._seen.offered += items * self._counts
        for _ in range(items):  # a message for each: the planner's traffic has one item in a message
            self.sent.append(Arrival(self._now, stream=str(number)))
            request = pb.StreamInferRequest(items=pb.ItemList(items=[self._item]))
            await call.write(request.SerializeToString())

    async def _read(self, call: Any, number: int, *, again: bool) -> None:
        while (message := await call.read()) is not grpc.aio.EOF:
            results = pb.StreamInferResponse.FromString(message).results.results
            for result in results:
                if self._counts and result.WhichOneof("outcome") == "outputs":
                    self._seen.keep(result.timing)
                elif self._counts:
                    self._seen.lost[result.WhichOneof("outcome") or ""] += 1
            if again and results and self._now < self._end - 0.01:
                await self._send(call, number, len(results))


async def load(address: str, plan: Plan) -> tuple[Seen, list[Arrival]]:
    """Puts a plan's load on a server; what came of it, and what was sent."""
    async with grpc.aio.insecure_channel(address) as channel:
        work = Load(channel, plan)
        return await work.run(), sorted(work.sent, key=lambda arrival: arrival.at)


def as_sent(plan: Plan, sent: list[Arrival]) -> Plan:
    """The plan with the arrivals that there were; those of closed clients follow from the answers."""
    ((name, traffic),) = plan.traffic.items()
    if traffic.arrivals == "closed":
        return plan
    return replace(plan, traffic={name: replace(traffic, arrivals="trace")}, traces={name: sent})


@dataclass(frozen=True)
class Line:
    """One figure of a scenario, as it was planned and seen, and how far they are apart."""

    what: str
    planned: float
    seen: float
    error: float

    @property
    def allowed(self) -> float:
        return BOUNDS[self.what]


def compare(plan: Plan, seen: Seen) -> list[Line]:
    """The planner's figures beside the service's."""
    found = report.document(simulation.simulate(plan))
    (traffic,), (model,) = found["traffic"].values(), found["models"].values()
    seconds = plan.run.duration_s
    lost = sum(traffic["dropped_per_s"].values()) + sum(traffic["refused_per_s"].values())
    offered = traffic["offered_per_s"]
    pairs = {
        "answered": (traffic["answered_per_s"], seen.answered / seconds),
        "rows": (model["rows_per_batch"], seen.rows / seen.batches),
        "fill": (model["fill"], seen.rows / seen.gear_rows),
        "lost": (lost / offered, seen.lost.total() / max(seen.offered, 1)),
        "p50": (traffic["p50_ms"], seen.percentile(0.50)),
        "p99": (traffic["p99_ms"], seen.percentile(0.99)),
    }
    absolute = ("fill", "lost")
    return [
        Line(what, planned, real, real - planned if what in absolute else real / planned - 1)
        for what, (planned, real) in pairs.items()
    ]


def run(name: str, seconds: float) -> tuple[list[Line], float]:
    """A scenario on a server of its own, compared; and how late its clients were, in seconds."""
    options = SCENARIOS[name].get("server", {})
    with started({"latency": LATENCY, "options": options}) as place:
        access = Access(place.grpc)
        seen, sent = asyncio.run(load(place.grpc, plan_of(name, measure(MODEL, access, repeats=1), seconds)))
        plan = plan_of(name, measure(MODEL, access, repeats=0), seconds)
        return compare(as_sent(plan, sent), seen), seen.late_s


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line; 0 when every error is allowed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenarios", nargs="*", metavar="SCENARIO", help=f"{', '.join(SCENARIOS)}; without any: all")
    parser.add_argument("--seconds", type=float, default=20.0, metavar="S", help="of each scenario (20)")
    arguments = parser.parse_args(argv)
    if unknown := set(arguments.scenarios) - set(SCENARIOS):
        parser.error(f"no scenario {', '.join(sorted(unknown))}; there are {', '.join(SCENARIOS)}")
    wrong = 0
    for name in arguments.scenarios or SCENARIOS:
        lines, late_s = run(name, arguments.seconds)
        print(f"{name:8}  the machine let clients send up to {1e3 * late_s:.0f} ms late")
        for line in lines:
            beyond = abs(line.error) > line.allowed
            wrong += beyond
            mark = f"  beyond {100 * line.allowed:.0f} %" if beyond else ""
            figures = f"planned {line.planned:9.3f}  seen {line.seen:9.3f}  error {100 * line.error:+6.1f} %"
            print(f"{name:8}  {line.what:8}  {figures}{mark}", flush=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
