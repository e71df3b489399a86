"""The real service and the planner, side by side, on a device that ends one execution when it is told to.

Both get the same history of items and steps. What became of each item is an `Ending`; it depends on no clock, because
nothing ends by itself.
"""

from __future__ import annotations

import asyncio
import threading
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc

from aclserve.v1 import model_pb2 as pb
from aclserve_server.emulator import EmulatorConfig, Latency
from aclserve_server.plan.agenda import Action, Agenda, Meter, Worker
from aclserve_server.plan.lanes import Device
from aclserve_server.plan.process import Costs, Job, Limits, Process, Served, Totals
from aclserve_server.plan.sources import Calls, Manner, Road, Stream, Tally
from e2e.raw import INFER, STREAM_INFER, refusal_of, tensor
from serving import Serving, rows

Ending = tuple[str, int, int]
"""OK with the step and the rows of the batch, or why not, and zeros."""

MODEL = "relu"


class Gate:
    """Lets the emulated device's executions pass one by one; all of them before `close`."""

    def __init__(self) -> None:
        self._permits = threading.Semaphore(0)
        self._closed = threading.Event()

    def config(self) -> EmulatorConfig:
        return EmulatorConfig(latency=Latency(task_us={"aclmdlExecuteAsync": 1.0}), sleep=self._pass)

    def close(self) -> None:
        self._closed.set()

    def open(self) -> None:
        """Lets everything pass from now on."""
        self._closed.clear()
        self._permits.release(1000)

    def step(self) -> None:
        self._permits.release()

    def _pass(self, seconds: float) -> None:
        if self._closed.is_set() and not self._permits.acquire(timeout=60):
            raise TimeoutError("nobody lets the device go on")


class SteppedDevice(Device):
    """The planner's device that ends its execution when it is told to."""

    def __init__(self, agenda: Agenda) -> None:
        super().__init__(agenda, 1, Meter(0.0, float("inf")))
        self.pending: list[Action] = []

    def execute(self, seconds: float, started: Action, ended: Action) -> None:
        started()
        self.pending.append(ended)

    def step(self) -> None:
        self.pending.pop(0)()


class Log(Tally):
    """Keeps how each item ended, by the moment it was sent at, which is its number."""

    def __init__(self, endings: dict[int, Ending], answers: dict[float, list[int]]) -> None:
        super().__init__(0.0, float("inf"))
        self._endings = endings
        self._answers = answers
        self.sent = -1

    def answer(self, now: float, due: float, rows: int) -> None:
        self._answers[now].append(int(due))

    def miss(self, now: float, reason: str) -> None:
        raise AssertionError("the simulation tells whose end it is")


class Planned:
    """The planner's side. Event number n happens at time n."""

    def __init__(self, manners: list[Manner], calls: Manner, limits: Limits, max_rows: int, window: int) -> None:
        self.endings: dict[int, Ending] = {}
        self._answers: dict[float, list[int]] = defaultdict(list)
        self.agenda = Agenda()
        meter = Meter(0.0, float("inf"))
        self.device = SteppedDevice(self.agenda)
        process = Process(self.agenda, Worker(self.agenda, meter), [self.device], Costs())
        gears = list(range(1, max_rows + 1))
        lanes = process.lanes(1, 2)
        span = (0.0, float("inf"))
        process.models[MODEL] = Served(process, gears, lambda gear: 1.0, limits, lanes, Totals(), span)
        road = Road(process, None, 0.0)
        log = Log(self.endings, self._answers)
        self.streams = [_Stream(self, road, manner, log, window) for manner in manners]
        self.calls = _Calls(self, road, calls, log)

    def send(self, at: int, stream: int) -> None:
        """An item of a stream, or (-1) a unary call."""
        source = self.calls if stream < 0 else self.streams[stream]
        self._at(at, lambda: source.send(1))

    def may_send(self, stream: int) -> bool:
        """Whether the service would read an item of a stream at once."""
        return stream < 0 or self.streams[stream].has_room

    def step(self, at: int) -> None:
        self._at(at, self.device.step)
        answered = self._answers.pop(float(at))
        for number in answered:
            self.endings[number] = ("OK", at, len(answered))

    def _at(self, at: int, action: Action) -> None:
        self.agenda.at(float(at), action)
        self.agenda.run(float(at))


class _Stream(Stream):
    def __init__(self, planned: Planned, road: Road, manner: Manner, log: Log, window: int) -> None:
        super().__init__(planned.agenda, road, manner, log, window)
        self._planned = planned

    @property
    def has_room(self) -> bool:
        if self._manner.policy.value != "wait":
            return True
        outside = self._last is not None and self._last.parked
        return self._frames.pending_items < self._frames.max_items and not outside

    def ended(self, job: Job, outcome: str) -> None:
        self._frames.leave(job)
        self._planned.endings[int(job.due)] = (outcome, 0, 0)

    def _miss(self, reason: str) -> None:
        self._planned.endings[int(self._agenda.now)] = (reason, 0, 0)


class _Calls(Calls):
    def __init__(self, planned: Planned, road: Road, manner: Manner, log: Log) -> None:
        super().__init__(planned.agenda, lambda: road, manner, log)
        self._planned = planned

    def over(self, road: Road, job: Job, outcome: str = "") -> None:
        if outcome:
            self._planned.endings[int(job.due)] = (outcome, 0, 0)
        else:
            super().over(road, job)


@dataclass
class Real:
    """The service's side, through gRPC."""

    served: Serving
    gate: Gate
    channel: Any
    streams: list[Any]
    endings: dict[int, Ending] = field(default_factory=dict)
    sent: int = 0
    told: int = 0
    steps: int = 0
    at: int = 0
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    async def send(self, at: int, stream: int, timeout: int = 0) -> None:
        one = tensor("x", rows(at, 1))
        if stream < 0:
            before = self._calls
            request = pb.InferRequest(model=MODEL, inputs=[one])
            if timeout:  # in the message: gRPC would round it, and so change the order
                request.timeout.FromSeconds(timeout)
            task = asyncio.create_task(self._call(at, request))
            self.tasks.append(task)
            await self._until(lambda: task.done() or self._calls == before + 1)
        else:
            item = pb.InferItem(id=str(at), inputs=[one])
            await self.streams[stream].write(pb.StreamInferRequest(items=pb.ItemList(items=[item])).SerializeToString())
            self.sent += 1
            await self._until(lambda: sum(session.received for session in self._sessions) == self.sent)
        await self._settle()

    async def step(self, at: int) -> None:
        self.at = at
        self.steps += 1
        self.gate.step()
        await self._until(lambda: self._runner.totals.executions == self.steps)
        await self._settle()

    async def _settle(self) -> None:
        """Until the engine has done all it can, and everything that was answered is here."""
        await asyncio.to_thread(self.served.run, _nothing())
        await self._until(
            lambda: (
                all(not session._unwritten and not session._outbox for session in self._sessions)
                and self.told == sum(s.succeeded + s.failed + s.drops.total() for s in self._sessions)
                and self._calls == sum(not task.done() for task in self.tasks) + len(self.streams)
            )
        )

    async def _until(self, condition: Callable[[], bool]) -> None:
        for _ in range(3000):
            if condition():
                return
            await asyncio.sleep(0.001)
        raise AssertionError("the condition did not come true")

    @property
    def _sessions(self) -> list[Any]:
        return list(self.served.server.models.sessions)

    @property
    def _calls(self) -> int:
        return len(self.served.server.calls)

    @property
    def _runner(self) -> Any:
        (record,) = self.served.server.engine.records()
        return record.runner

    async def _call(self, at: int, request: pb.InferRequest) -> None:
        try:
            answer = await self.channel.unary_unary(INFER)(request.SerializeToString())
        except grpc.aio.AioRpcError as error:
            self.endings[at] = (refusal_of(error).reason, 0, 0)
        else:
            self.endings[at] = ("OK", self.at, pb.InferResponse.FromString(answer).timing.batch_rows)

    def _keep(self, number: int, result: pb.InferResult) -> None:
        kind = result.WhichOneof("outcome")
        if kind == "dropped":
            reason = pb.DropReason.Name(result.dropped.reason).removeprefix("DROP_REASON_")
            self.endings[number] = (reason, 0, 0)
        elif kind == "error":
            self.endings[number] = (result.error.reason, 0, 0)
        else:
            self.endings[number] = ("OK", self.at, result.timing.batch_rows)

    async def read(self, stream: Any) -> None:
        """Reads a stream's answers until it ends."""
        while (message := await stream.read()) is not grpc.aio.EOF:
            response = pb.StreamInferResponse.FromString(message)
            for result in response.results.results:
                self._keep(int(result.id), result)
                self.told += 1


async def _nothing() -> None:
    """What the server's loop runs behind everything that is ready."""


@asynccontextmanager
async def real(served: Serving, gate: Gate, policies: list[str]) -> AsyncIterator[Real]:
    """Opens a stream for each policy, then closes the gate."""
    async with grpc.aio.insecure_channel(served.address) as channel:
        streams = [channel.stream_stream(STREAM_INFER)() for _ in policies]
        side = Real(served, gate, channel, streams)
        for stream, policy in zip(streams, policies, strict=True):
            config = pb.StreamConfig(model=MODEL, policy=f"FRAME_POLICY_{policy.upper()}")
            await stream.write(pb.StreamInferRequest(config=config).SerializeToString())
            await stream.read()
        readers = [asyncio.create_task(side.read(stream)) for stream in streams]
        side.steps = side._runner.totals.executions
        gate.close()
        try:
            yield side
        finally:
            gate.open()
            for stream in streams:
                await stream.done_writing()
            await asyncio.gather(*readers, *side.tasks)
