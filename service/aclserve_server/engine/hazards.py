"""Order between items that share clients' buffers, so that models can be chained on the device.

An item that reads a buffer waits for the item before it that writes the buffer; one that writes waits for those
before it that read or write it. "Before" is the order of arrival. So a client sends both items of a chain one after
the other, without waiting for an answer, and the second model finds what the first one wrote. Where the writer fails,
so does the reader: it would have read something else than was meant.

Pure bookkeeping; everything belongs to the event loop.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from aclserve_server.device.buffers import Buffer
from aclserve_server.engine.contract import Ticket


@dataclass(slots=True, eq=False)
class _Access:
    """Who uses a buffer now or next: the last writer, and the readers since."""

    writer: Ticket | None = None
    readers: set[Ticket] = field(default_factory=set)


@dataclass(slots=True, eq=False)
class _Parked:
    """A ticket that waits for others; `go` is told whether what it reads was written."""

    go: Callable[[Ticket, bool], None]
    waits_for: set[Ticket]
    written: bool = True


class Hazards:
    """The items under way that use clients' buffers."""

    def __init__(self) -> None:
        self._accesses: dict[Buffer, _Access] = {}
        self._parked: dict[Ticket, _Parked] = {}
        self._followers: dict[Ticket, list[Ticket]] = {}

    def enter(self, ticket: Ticket, go: Callable[[Ticket, bool], None]) -> bool:
        """True where the ticket may run at once; otherwise `go(ticket, written)` follows, or `leave` comes first."""
        waits_for: set[Ticket] = set()
        reads, writes = _buffers(ticket)
        for buffer in reads | writes:
            access = self._accesses.setdefault(buffer, _Access())
            if access.writer is not None:
                waits_for.add(access.writer)
            if buffer in writes:
                waits_for |= access.readers
                access.writer, access.readers = ticket, set()
            else:
                access.readers.add(ticket)
        waits_for.discard(ticket)
        if not waits_for:
            return True
        self._parked[ticket] = _Parked(go, waits_for)
        for before in waits_for:
            self._followers.setdefault(before, []).append(ticket)
        return False

    def leave(self, ticket: Ticket, *, failed: bool) -> None:
        """The ticket is answered, or will never run. Call it while its pins are still held."""
        self._parked.pop(ticket, None)
        reads, writes = _buffers(ticket)
        for buffer in reads | writes:
            access = self._accesses.get(buffer)
            if access is not None:
                if access.writer is ticket:
                    access.writer = None
                access.readers.discard(ticket)
                if access.writer is None and not access.readers:
                    del self._accesses[buffer]
        for after in self._followers.pop(ticket, ()):
            parked = self._parked.get(after)
            if parked is None:
                continue
            parked.waits_for.discard(ticket)
            if failed and writes & _buffers(after)[0]:
                parked.written = False
            if not parked.waits_for:
                del self._parked[after]
                parked.go(after, parked.written)


def _buffers(ticket: Ticket) -> tuple[set[Buffer], set[Buffer]]:
    """The clients' buffers that a ticket reads, and those that it writes."""
    writes = {wanted.pin.buffer for wanted in ticket.outputs if wanted.pin is not None}
    reads = {part.pin.buffer for part in ticket.parts if part.pin is not None}
    return reads, writes
