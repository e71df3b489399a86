"""Simulated time: what happens when, and what serves one thing after the other. Times are seconds from 0."""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush

Action = Callable[[], None]


class Agenda:
    """What is to happen, in order of time; at equal times in order of entry.

    Everything of one moment happens before the `afterwards` of that moment, as an event loop runs what is ready before
    it looks at what came of it.
    """

    def __init__(self) -> None:
        self.now = 0.0
        self._events: list[tuple[float, int, Action]] = []
        self._sequence = 0
        self._afterwards: dict[Action, None] = {}

    def at(self, when: float, action: Action) -> None:
        """Does something at a time, at once where that is past."""
        self._sequence += 1
        heappush(self._events, (when, self._sequence, action))

    def afterwards(self, action: Action) -> None:
        """Does something when all of this moment has happened; the same thing once."""
        self._afterwards[action] = None

    def run(self, until: float = float("inf")) -> None:
        """Lets time pass, up to a time or until nothing is left to happen."""
        events = self._events
        while True:
            while events and events[0][0] <= self.now:
                heappop(events)[2]()
            if self._afterwards:
                actions, self._afterwards = self._afterwards, {}
                for action in actions:
                    action()
            elif not events or events[0][0] > until:
                return
            else:
                self.now = max(self.now, events[0][0])


class Meter:
    """How long something was busy between two times."""

    def __init__(self, begin: float, end: float) -> None:
        self.busy_s = 0.0
        self._begin = begin
        self._end = end

    def add(self, since: float, until: float) -> None:
        """It was busy from one time to another."""
        busy = min(until, self._end) - max(since, self._begin)
        if busy > 0:
            self.busy_s += busy

    @property
    def share(self) -> float:
        """The part of the time."""
        return self.busy_s / (self._end - self._begin)


class Worker:
    """Serves one thing at a time, in order of coming: an event loop, or a thread of a proxy."""

    def __init__(self, agenda: Agenda, meter: Meter) -> None:
        self.meter = meter
        self._agenda = agenda
        self._free = 0.0

    def do(self, seconds: float, action: Action) -> None:
        """Does something when all that came before is done, and takes so long for it."""
        now = self._agenda.now
        if not seconds and self._free <= now:
            action()
            return
        start = max(self._free, now)
        self._free = start + seconds
        self.meter.add(start, self._free)
        self._agenda.at(self._free, action)
