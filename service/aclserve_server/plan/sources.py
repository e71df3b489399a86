"""Who sends: streams with their window and frame policy, as `rpc.stream` has them, and unary calls."""

from __future__ import annotations

from array import array
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from aclserve_server.engine.frames import Frame, FrameWindow, Policy
from aclserve_server.engine.items import DropReason
from aclserve_server.plan.agenda import Action, Agenda, Worker
from aclserve_server.plan.process import Job, Process

_ANY_BYTES = 1 << 62

_RETRY_S = 0.05
"""After a refusal a closed client waits so long, as the service's hint says where it has nothing better."""

BINS = 60
"""Into so many parts the time is cut for pictures."""


_Ready = tuple[float, int]
"""An item that a client has: since when, and its rows."""


@dataclass
class Tally:
    """What became of the items of one kind of traffic, in the time from `begin` to `end`. Latencies in seconds."""

    begin: float
    end: float
    offered: int = 0
    ok: int = 0
    rows: int = 0
    drops: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    latencies: array[float] = field(default_factory=lambda: array("d"))
    timeline: list[int] = field(default_factory=lambda: [0] * BINS)
    lost: list[int] = field(default_factory=lambda: [0] * BINS)

    def offer(self, now: float, items: int) -> None:
        """Clients have items ready."""
        if self.begin <= now <= self.end:
            self.offered += items

    def answer(self, now: float, due: float, rows: int) -> None:
        """An item was executed and answered."""
        if self.begin <= now <= self.end:
            self.ok += 1
            self.rows += rows
            self.latencies.append(now - due)
            self.timeline[self._bin(now)] += 1

    def miss(self, now: float, reason: str) -> None:
        """An item was given up by its stream's policy, or refused, or its deadline came."""
        if self.begin <= now <= self.end:
            (self.drops if reason in DropReason.__members__ else self.refused)[reason] += 1
            self.lost[self._bin(now)] += 1

    def _bin(self, now: float) -> int:
        return min(int((now - self.begin) / (self.end - self.begin) * BINS), BINS - 1)


@dataclass(frozen=True)
class Manner:
    """How clients of one kind send. `priority` counts from 0; times in seconds, None for no bound.

    With `closed`, a client has so many items pending at any time and sends the next when one is answered.
    """

    model: str
    rows: int = 1
    message_items: int = 1
    policy: Policy = Policy.WAIT
    priority: int = 1
    window: int = 128
    timeout_s: float | None = None
    max_age_s: float | None = None
    closed: int = 0


class Road:
    """The way between clients and a process: a proxy's thread, where there is one, and the process's event loop."""

    def __init__(self, process: Process, proxy: Worker | None, proxy_s: float) -> None:
        """`proxy_s`: what a message costs the proxy, in either direction."""
        self.process = process
        self._proxy = proxy
        self._proxy_s = proxy_s

    def up(self, seconds: float, action: Action) -> None:
        """To the process, whose loop takes so long for it."""
        if self._proxy is None:
            self.process.loop.do(seconds, action)
        else:
            self._proxy.do(self._proxy_s, partial(self.process.loop.do, seconds, action))

    def down(self, seconds: float, written: Action, there: Action) -> None:
        """From the process, whose loop takes so long for it."""
        self.process.loop.do(seconds, partial(self._leave, written, there))

    def _leave(self, written: Action, there: Action) -> None:
        written()
        if self._proxy is None:
            there()
        else:
            self._proxy.do(self._proxy_s, there)


class Stream:
    """One stream, open from the beginning to the end."""

    def __init__(self, agenda: Agenda, road: Road, manner: Manner, tally: Tally, window: int) -> None:
        """`window` is the server's bound of items that are accepted and not answered."""
        self._agenda = agenda
        self._road = road
        self._manner = manner
        self._tally = tally
        self._model = road.process.models[manner.model]
        self._costs = road.process.costs
        items = min(manner.window, window)
        self._frames = FrameWindow(manner.policy, items, _ANY_BYTES, _may_be_given_up, self._give_up)
        self._held_back: deque[_Ready] = deque()
        self._away = 0
        self._last: Job | None = None

    def send(self, items: int, rows: int = 0) -> None:
        """The client has items ready. With WAIT it holds back what does not fit the window."""
        now = self._agenda.now
        self._tally.offer(now, items)
        ready = [(now, rows or self._manner.rows)] * items
        if self._manner.policy is Policy.WAIT:
            self._held_back.extend(ready)
            self._send_held_back()
        else:
            self._message(ready)

    def start(self) -> None:
        """Sends what a closed client has pending."""
        self.send(self._manner.closed)

    def _send_held_back(self) -> None:
        frames, held = self._frames, self._held_back
        while held and not (self._last is not None and self._last.parked):
            room = frames.max_items - frames.pending_items - self._away
            count = min(room, len(held), self._manner.message_items)
            if count <= 0:
                return
            self._away += count
            self._message([held.popleft() for _ in range(count)])

    def _message(self, ready: list[_Ready]) -> None:
        costs = self._costs
        self._road.up(costs.message_s + costs.item_s * len(ready), partial(self._received, ready))

    def _received(self, ready: list[_Ready]) -> None:
        now = self._agenda.now
        manner = self._manner
        for due, rows in ready:
            job = Job("", 0, now, rows=rows, due=due, source=self, stream=self, priority=manner.priority)
            self._away -= manner.policy is Policy.WAIT
            reason = self._frames.arrive(job)
            if reason is not None:
                self._miss(reason.name)
                continue
            job.patient = manner.policy is Policy.WAIT
            if manner.timeout_s is not None:
                job.deadline = now + manner.timeout_s
            age = manner.max_age_s
            if age is not None and (job.deadline is None or now + age < job.deadline):
                job.deadline, job.drops = now + age, True
            refused = self._model.submit(job)
            if refused:
                self.ended(job, refused)
            else:
                self._last = job

    def answered(self, jobs: list[Job]) -> None:
        costs = self._costs
        self._road.down(
            costs.message_s + costs.item_s * len(jobs), partial(self._written, jobs), partial(self._there, jobs)
        )

    def _written(self, jobs: list[Job]) -> None:
        for job in jobs:
            self._frames.leave(job)
        if self._held_back:
            self._send_held_back()

    def _there(self, jobs: list[Job]) -> None:
        now = self._agenda.now
        for job in jobs:
            self._tally.answer(now, job.due, job.rows)
        if self._manner.closed:
            self.send(len(jobs))

    def ended(self, job: Job, outcome: str) -> None:
        self._frames.leave(job)
        self._miss(outcome)
        if self._held_back:
            self._send_held_back()

    def _give_up(self, frame: Frame, reason: DropReason) -> None:
        assert isinstance(frame, Job)
        self._model.cancel(frame)
        self.ended(frame, reason.name)

    def _miss(self, reason: str) -> None:
        now = self._agenda.now
        self._tally.miss(now, reason)
        if self._manner.closed:
            self._agenda.at(now + _RETRY_S, partial(self.send, 1))


def _may_be_given_up(frame: Frame) -> bool:
    assert isinstance(frame, Job)
    return frame.waiting or frame.parked


class Calls:
    """Unary calls of one kind: each finds its process anew, and has a share of its own."""

    def __init__(self, agenda: Agenda, choose: Callable[[], Road], manner: Manner, tally: Tally) -> None:
        self._agenda = agenda
        self._choose = choose
        self._manner = manner
        self._tally = tally

    def send(self, items: int, rows: int = 0) -> None:
        """So many calls at the same time."""
        now = self._agenda.now
        self._tally.offer(now, items)
        for _ in range(items):
            road = self._choose()
            road.process.active += 1
            road.up(road.process.costs.call_s / 2, partial(_Call(self, road).received, now, rows or self._manner.rows))

    def start(self) -> None:
        """Makes the calls that closed clients have open."""
        self.send(self._manner.closed)

    def over(self, road: Road, job: Job, outcome: str = "") -> None:
        """A call has ended."""
        road.process.active -= 1
        now = self._agenda.now
        if outcome:
            self._tally.miss(now, outcome)
        else:
            self._tally.answer(now, job.due, job.rows)
        if self._manner.closed:
            self._agenda.at(now + (_RETRY_S if outcome else 0.0), partial(self.send, 1))

    @property
    def manner(self) -> Manner:
        """How its clients send."""
        return self._manner


class _Call:
    """One unary call."""

    def __init__(self, calls: Calls, road: Road) -> None:
        self._calls = calls
        self._road = road

    def received(self, due: float, rows: int) -> None:
        manner, process = self._calls.manner, self._road.process
        now = process.agenda.now
        job = Job("", 0, now, rows=rows, due=due, source=self, stream=self, priority=manner.priority)
        if manner.timeout_s is not None:
            job.deadline = now + manner.timeout_s
        refused = process.models[manner.model].submit(job)
        if refused:
            self.ended(job, refused)

    def answered(self, jobs: list[Job]) -> None:
        (job,) = jobs
        self._road.down(self._half_s, _nothing, partial(self._calls.over, self._road, job))

    def ended(self, job: Job, outcome: str) -> None:
        self._road.down(self._half_s, _nothing, partial(self._calls.over, self._road, job, outcome))

    @property
    def _half_s(self) -> float:
        return self._road.process.costs.call_s / 2


def _nothing() -> None:
    """A call has no window."""
