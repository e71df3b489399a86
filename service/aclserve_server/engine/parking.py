"""Admitted items that cannot enter their model's queue yet.

Some wait for buffers that items before them use (`hazards.py`), some for room in the queue. All of them can be taken
back, and expire by a timer of their own. Belongs to the event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import perf_counter

from aclserve_server.engine.contract import Ticket


class Parking:
    """The items of one model that are parked."""

    def __init__(self, loop: asyncio.AbstractEventLoop, expire: Callable[[Ticket], None]) -> None:
        """`expire` is called for a ticket whose deadline has come; it is not parked any more then."""
        self._loop = loop
        self._expire = expire
        self._timers: dict[Ticket, asyncio.TimerHandle | None] = {}
        self.for_room: dict[Ticket, None] = {}
        """Those that wait for room, in order of arrival."""

    def __len__(self) -> int:
        return len(self._timers)

    def add(self, ticket: Ticket, *, for_room: bool = False) -> None:
        """Parks a ticket; with `for_room` until the queue has room for it, in order of arrival."""
        timer = None
        if ticket.deadline is not None:
            timer = self._loop.call_later(max(ticket.deadline - perf_counter(), 0.0), self._over, ticket)
        self._timers[ticket] = timer
        ticket.parked = True
        if for_room:
            self.for_room[ticket] = None
            ticket.outside = True

    def remove(self, ticket: Ticket) -> bool:
        """Takes a ticket out; False where it is not parked."""
        if ticket not in self._timers:
            return False
        timer = self._timers.pop(ticket)
        if timer is not None:
            timer.cancel()
        self.for_room.pop(ticket, None)
        ticket.parked = ticket.outside = False
        return True

    def tickets(self) -> list[Ticket]:
        """All that are parked, in order of arrival."""
        return list(self._timers)

    def _over(self, ticket: Ticket) -> None:
        self.remove(ticket)
        self._expire(ticket)
