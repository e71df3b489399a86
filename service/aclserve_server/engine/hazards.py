"""Order between items that share clients' buffers, so that models can be chained on the device.

An item that reads a buffer waits for the item before it that writes the buffer; one that writes waits for those
before it that read or write it. "Before" is the order of arrival. So a client sends both items of a chain one after
the other, without waiting for an answer, and the second model finds what the first one wrote. Where the writer fails,
so does the reader: it would have read something else than was meant.

An item that is taken back while it waits keeps its place in that order until those before it are done, because those
behind it rely on it to have waited for them.

Invariants (tests/engine/test_hazards.py): two items that run at the same time never write the same buffer, nor does
one read what the other writes; items that share a buffer which one of them writes run in order of arrival; an item is
told `written=False` exactly if the last writer before it of something it reads was under way when it arrived, and
failed; when all have left, nothing is kept.

Pure bookkeeping; everything belongs to the event loop.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from aclserve_server.device.buffers import Buffer
from aclserve_server.engine.contract import Ticket

Go = Callable[[Ticket, bool], None]


@dataclass(slots=True, eq=False)
class _Access:
    """Who uses a buffer now or next: the last writer, and the readers since."""

    writer: Ticket | None = None
    readers: set[Ticket] = field(default_factory=set)


@dataclass(slots=True, eq=False)
class _Use:
    """A ticket under way: its buffers, those it waits for, the writers among them of what it reads (`sources`).

    `go` is told whether those wrote; it is None where the ticket was taken back.
    """

    buffers: set[Buffer]
    waits_for: set[Ticket]
    sources: set[Ticket]
    go: Go | None
    written: bool = True
    followers: list[Ticket] = field(default_factory=list)


class Hazards:
    """The items under way that use clients' buffers."""

    def __init__(self) -> None:
        self._accesses: dict[Buffer, _Access] = {}
        self._uses: dict[Ticket, _Use] = {}
        self._due: deque[tuple[Ticket, bool]] = deque()
        self._busy = False

    def enter(self, ticket: Ticket, go: Go) -> bool:
        """True where the ticket may run at once; otherwise `go(ticket, written)` follows, or `leave` comes first."""
        reads, writes = _buffers(ticket)
        waits_for: set[Ticket] = set()
        sources: set[Ticket] = set()
        for buffer in reads | writes:
            access = self._accesses.setdefault(buffer, _Access())
            if access.writer is not None:
                waits_for.add(access.writer)
                if buffer in reads:
                    sources.add(access.writer)
            if buffer in writes:
                waits_for |= access.readers
                access.writer, access.readers = ticket, set()
            else:
                access.readers.add(ticket)
        self._uses[ticket] = _Use(reads | writes, waits_for, sources, go)
        for before in waits_for:
            self._uses[before].followers.append(ticket)
        return not waits_for

    def leave(self, ticket: Ticket, *, failed: bool) -> None:
        """The ticket is answered, or will never run. Those that waited for it may run now.

        A `go` that leaves in its turn is no recursion: it is seen to afterwards, however long the chain.
        """
        use = self._uses.get(ticket)
        if use is None:
            return
        if use.waits_for:
            use.go = None
            return
        self._due.append((ticket, failed))
        if self._busy:
            return
        self._busy = True
        try:
            while self._due:
                self._end(*self._due.popleft())
        finally:
            self._busy = False

    def _end(self, ticket: Ticket, failed: bool) -> None:
        use = self._uses.pop(ticket, None)
        if use is None:
            return
        for buffer in use.buffers:
            access = self._accesses[buffer]
            if access.writer is ticket:
                access.writer = None
            access.readers.discard(ticket)
            if access.writer is None and not access.readers:
                del self._accesses[buffer]
        for follower in use.followers:
            after = self._uses[follower]
            after.waits_for.discard(ticket)
            if failed and ticket in after.sources:
                after.written = False
            if not after.waits_for:
                if after.go is None:
                    self._due.append((follower, True))
                else:
                    after.go(follower, after.written)


def _buffers(ticket: Ticket) -> tuple[set[Buffer], set[Buffer]]:
    """The clients' buffers that a ticket reads, and those that it writes."""
    writes = {wanted.pin.buffer for wanted in ticket.outputs if wanted.pin is not None}
    reads = {part.pin.buffer for part in ticket.parts if part.pin is not None}
    return reads, writes
