"""Which worker is started, stopped or killed, and when. Pure: no process, no clock; time is an argument, in seconds.

    WAITING --due--> STARTING --ready--> READY --terminate--> STOPPING
       ^                 |                 |                     |
       +----- exited ----+-----------------+---------------------+      GIVEN_UP after too many failures in a row

The owner tells what happens (`heard`, `ready`, `exited`, `roll`, `stop`), then carries out what `due` returns, and
calls it again when something has happened or at `next_deadline`.

- A device has one process at the most: it is started only when the one before it has exited.
- An exit that nobody asked for is a failure. The n-th failure in a row is followed by a wait of `first_backoff_s` x
  2^(n-1), at most `MOST_BACKOFF_S`; a worker that had been ready for `stable_s` begins to count anew. After more than
  `restarts` failures in a row it is given up.
- A worker that is ready and has not been heard of for `silence_s` is killed, one that starts after `START_FACTOR` as
  long; so is one that is told to stop and does not, within `stop_s`.
- A rolling restart takes down one worker at a time, and only while all others that are not given up are ready. It gives
  those that are given up another chance. Where a worker does not come back from it and is given up, it ends: what
  breaks one would break the others.
- From `stop` on nothing is started.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Literal

MOST_BACKOFF_S = 30.0
"""The longest wait before a restart."""

START_FACTOR = 10
"""How much longer a start may be silent: the interpreter's own, and AscendCL's calls that open a device."""

LEAVE_S = 10.0
"""How long a killed process may take to be gone when everything is to end: a driver may hold it for ever."""


class Phase(Enum):
    """What a worker does."""

    WAITING = auto()
    """It has no process, and will have one."""
    STARTING = auto()
    READY = auto()
    STOPPING = auto()
    """It was told to stop, or killed."""
    GIVEN_UP = auto()
    ENDED = auto()
    """It has no process any more: the supervisor stops."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of restarts. 0 for `silence_s`: nobody is killed for silence."""

    first_backoff_s: float = 0.5
    restarts: int = 5
    stable_s: float = 60.0
    silence_s: float = 60.0
    stop_s: float = 45.0


@dataclass(slots=True)
class Worker:
    """The state of one worker. Times are the caller's."""

    device: int
    phase: Phase = Phase.WAITING
    since: float = 0.0
    """When the phase began; of WAITING: when it ends."""
    heard: float = 0.0
    ready_at: float = math.inf
    """When its process became ready; infinity before."""
    failures: int = 0
    """Exits in a row that nobody asked for."""
    restarts: int = 0
    """Starts but the first."""
    tried: bool = False
    """It has been ready, or has failed."""
    old: bool = False
    """The rolling restart has yet to replace it."""
    rolled: bool = False
    """The rolling restart has taken it down, and it is not ready again."""
    killed: bool = False
    asked: bool = False
    """Its exit is what it was told to do."""


@dataclass(frozen=True, slots=True)
class Action:
    """What the owner has to do now: start a process, send it SIGTERM, or SIGKILL."""

    kind: Literal["start", "terminate", "kill"]
    device: int


class Fleet:
    """All workers. Every worker waits for its start at first."""

    def __init__(self, devices: Iterable[int], limits: Limits, now: float) -> None:
        self.limits = limits
        self.workers = {device: Worker(device, since=now) for device in devices}
        self.stopping = False
        self.rolling = False

    # What happens.

    def heard(self, device: int, now: float) -> None:
        """The worker's process gave a sign of life."""
        self.workers[device].heard = now

    def excuse(self, now: float) -> None:
        """The owner itself did not run for a while: nobody's silence counts."""
        for worker in self.workers.values():
            worker.heard = now

    def ready(self, device: int, now: float) -> None:
        """The worker serves."""
        worker = self.workers[device]
        worker.heard = now
        if worker.phase is Phase.STARTING:
            worker.phase, worker.since, worker.ready_at = Phase.READY, now, now
            worker.tried, worker.rolled = True, False

    def exited(self, device: int, now: float) -> None:
        """The worker's process is gone, or could not be started."""
        worker = self.workers[device]
        if now >= worker.ready_at + self.limits.stable_s:
            worker.failures = 0
        asked = worker.asked
        worker.old = worker.killed = worker.asked = False
        worker.ready_at = math.inf
        if self.stopping:
            worker.phase, worker.since = Phase.ENDED, now
        elif asked:
            worker.phase, worker.since = Phase.WAITING, now
        else:
            self._failed(worker, now)

    def roll(self, now: float) -> None:
        """All processes of now are to be replaced, one after the other."""
        if self.stopping:
            return
        self.rolling = True
        for worker in self.workers.values():
            worker.old = worker.phase in (Phase.STARTING, Phase.READY)
            if worker.phase is Phase.GIVEN_UP:
                worker.phase, worker.since, worker.failures = Phase.WAITING, now, 0

    def stop(self, now: float) -> None:
        """Everything is to end."""
        self.stopping, self.rolling = True, False
        for worker in self.workers.values():
            if worker.phase is Phase.WAITING:
                worker.phase, worker.since = Phase.ENDED, now
            elif worker.killed:
                worker.since = now  # `LEAVE_S` counts from here

    # What follows from it.

    def due(self, now: float) -> list[Action]:
        """What is to be done now; it counts as done."""
        actions = [action for worker in self.workers.values() if (action := self._due(worker, now))]
        if self.rolling:
            actions += self._roll_on(now)
        return actions

    def next_deadline(self) -> float:
        """When `due` may return something though nothing happens before; infinity for never."""
        return min((self._deadline(worker) for worker in self.workers.values()), default=math.inf)

    @property
    def is_settled(self) -> bool:
        """Whether each worker has been ready or has failed, and one at least is ready."""
        workers = self.workers.values()
        return all(worker.tried for worker in workers) and any(worker.phase is Phase.READY for worker in workers)

    @property
    def is_over(self) -> bool:
        """Whether no worker has a process or will have one."""
        return all(worker.phase in (Phase.GIVEN_UP, Phase.ENDED) for worker in self.workers.values())

    @property
    def has_failed(self) -> bool:
        """Whether all workers are given up."""
        return all(worker.phase is Phase.GIVEN_UP for worker in self.workers.values())

    def _failed(self, worker: Worker, now: float) -> None:
        worker.failures += 1
        worker.tried = True
        if worker.failures > self.limits.restarts:
            worker.phase, worker.since = Phase.GIVEN_UP, now
            if worker.rolled:
                self.rolling = worker.rolled = False
                for other in self.workers.values():
                    other.old = False
            return
        wait_s = min(self.limits.first_backoff_s * 2.0 ** min(worker.failures - 1, 32), MOST_BACKOFF_S)
        worker.phase, worker.since = Phase.WAITING, now + wait_s

    def _due(self, worker: Worker, now: float) -> Action | None:
        if worker.phase is Phase.WAITING and now >= worker.since:
            worker.restarts += worker.tried
            worker.phase, worker.since, worker.heard = Phase.STARTING, now, now
            return Action("start", worker.device)
        if worker.phase in (Phase.STARTING, Phase.READY):
            if self.stopping:
                return self._terminate(worker, now)
            if now >= self._deadline(worker):
                return self._kill(worker, now)
        if worker.phase is Phase.STOPPING and now >= self._deadline(worker):
            if not worker.killed:
                return self._kill(worker, now)
            worker.phase, worker.since = Phase.ENDED, now
        return None

    def _deadline(self, worker: Worker) -> float:
        if worker.phase is Phase.WAITING:
            return worker.since
        if worker.phase is Phase.STOPPING and not worker.killed:
            return worker.since + self.limits.stop_s
        if worker.phase is Phase.STOPPING and self.stopping:
            return worker.since + LEAVE_S
        if worker.phase is Phase.STARTING and self.limits.silence_s:
            return worker.heard + START_FACTOR * self.limits.silence_s
        if worker.phase is Phase.READY and self.limits.silence_s:
            return worker.heard + self.limits.silence_s
        return math.inf

    def _roll_on(self, now: float) -> list[Action]:
        up = [worker for worker in self.workers.values() if worker.phase is not Phase.GIVEN_UP]
        if any(worker.phase is not Phase.READY for worker in up):
            return []
        worker = next((worker for worker in up if worker.old), None)
        if worker is None:
            self.rolling = False
            return []
        worker.rolled = True
        return [self._terminate(worker, now)]

    def _terminate(self, worker: Worker, now: float) -> Action:
        worker.phase, worker.since, worker.asked = Phase.STOPPING, now, True
        return Action("terminate", worker.device)

    def _kill(self, worker: Worker, now: float) -> Action:
        worker.phase, worker.since, worker.killed = Phase.STOPPING, now, True
        return Action("kill", worker.device)
