"""Whose turn it is among members that wait: start-time fair queueing, for principals and for the streams of each."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from heapq import heapify, heappop, heappush
from typing import Any

Entry = tuple[float, int, Any]

SLACK = 64
"""Stale entries that may lie about before they are swept out."""

_REMEMBERED = 1024
"""Members without waiting tickets whose virtual time is kept, so that none gains by leaving and coming back."""


class Member:
    """Who takes turns. `place` is the number of its heap entries that hold, 0 for none; others are stale."""

    __slots__ = ("given", "key", "place")

    key: Hashable
    given: float
    place: int


class Turns:
    """Members that wait, `size` of them; the one furthest behind is next."""

    __slots__ = ("_finished", "_heap", "_places", "size", "virtual")

    def __init__(self, places: Iterator[int]) -> None:
        """`places` are numbers that are used once."""
        self._places = places
        self._heap: list[Entry] = []
        self._finished: dict[Hashable, float] = {}
        self.size = 0
        self.virtual = 0.0

    @property
    def now(self) -> float:
        """The virtual time of the member furthest behind, as `behind` has just found it."""
        return self._heap[0][0]

    def join(self, member: Member) -> None:
        """A member has something to give; `place` follows."""
        member.given = max(self.virtual, self._finished.pop(member.key, 0.0))
        self.size += 1

    def leave(self, member: Member) -> None:
        """A member has nothing to give any more."""
        member.place = 0
        self.size -= 1
        self._finished[member.key] = member.given
        if len(self._finished) > _REMEMBERED:
            del self._finished[next(iter(self._finished))]

    def place(self, member: Member) -> None:
        """Puts a member where what it was given says."""
        member.place = next(self._places)
        heappush(self._heap, (member.given, member.place, member))
        if len(self._heap) > 2 * self.size + SLACK:
            sweep(self._heap)

    def behind(self) -> Any:
        """The member furthest behind of those that have a place; None where none has."""
        while self._heap and self._heap[0][1] != self._heap[0][2].place:
            heappop(self._heap)
        return self._heap[0][2] if self._heap else None

    def advance(self) -> None:
        """Who joins from now on begins where those furthest behind are, as `behind` has just found them."""
        now = self._heap[0][0]
        if now > self.virtual:
            self.virtual = now

    def clear(self) -> None:
        """Forgets all: everybody is equal again."""
        self._heap.clear()
        self._finished.clear()
        self.size = 0
        self.virtual = 0.0


def sweep(heap: list[Entry]) -> None:
    """Takes stale entries out of a heap."""
    heap[:] = [entry for entry in heap if entry[1] == entry[2].place]
    heapify(heap)
