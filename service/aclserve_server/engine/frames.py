"""What becomes of a stream's items when they come faster than they can be executed. Pure; time is an argument
(seconds).

    WAIT          the caller stops reading while `full`; nothing is given up
    DROP_OLDEST   at the limit the item that has waited longest makes room
    DROP_NEWEST   at the limit the item that comes is given up
    LATEST_ONLY   at most one item waits: the newest

A `FrameWindow` knows the stream's pending items (accepted and not yet answered) in order. Those that still wait may
be given up, which its caller knows and does: it takes the victims out of their queue and answers them.

Invariants (tests/engine/test_frames.py): with every policy but WAIT no more than `max_items` items and, but for a
single item, `max_bytes` bytes are pending after an item was accepted; with LATEST_ONLY at most one waits; an item is
given up at most once, and never after it began to execute; no item is given up for one that finds no room all the
same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from aclserve_server.engine.items import DropReason


class Policy(Enum):
    """A stream's frame policy."""

    WAIT = "wait"
    DROP_OLDEST = "drop oldest"
    DROP_NEWEST = "drop newest"
    LATEST_ONLY = "latest only"


@dataclass(slots=True, eq=False)
class Frame:
    """A pending item: its id, the bytes of its inline inputs, when it came. Told apart by identity: ids may come
    again.
    """

    item_id: str
    size_bytes: int
    received: float


GiveUp = Callable[[Frame, DropReason], None]
"""Takes a waiting frame out of its queue and answers it, by which it leaves the window."""


def share_of_queue(max_items: int, streams: int, max_queue_rows: int) -> int:
    """The window of each of so many streams, in powers of two, so that obeying streams never find the queue full."""
    share = max_items
    while share > 1 and share * streams > max_queue_rows:
        share //= 2
    return share


class FrameWindow:
    """The pending items of one stream."""

    def __init__(
        self, policy: Policy, max_items: int, max_bytes: int, waits: Callable[[Frame], bool], give_up: GiveUp
    ) -> None:
        """`waits` tells whether a frame may still be given up."""
        self.policy = policy
        self.max_items = max_items
        self.max_bytes = max_bytes
        self._waits = waits
        self._give_up = give_up
        self._frames: dict[Frame, None] = {}
        self.pending_bytes = 0

    @property
    def pending_items(self) -> int:
        """Items accepted and not yet answered."""
        return len(self._frames)

    @property
    def full(self) -> bool:
        """Whether the next item must wait for room (WAIT), or costs another its place."""
        return len(self._frames) >= self.max_items or (bool(self._frames) and self.pending_bytes >= self.max_bytes)

    def oldest(self) -> Frame | None:
        """The item that has been pending longest."""
        return next(iter(self._frames), None)

    def arrive(self, frame: Frame) -> DropReason | None:
        """Accepts an item, giving up others where the policy says so; the reason where it is given up itself."""
        if self.policy is Policy.WAIT:
            self._frames[frame] = None
            self.pending_bytes += frame.size_bytes
            return None
        victims = self._victims(frame)
        if victims is None:
            return DropReason.NEWEST
        reason = DropReason.SUPERSEDED if self.policy is Policy.LATEST_ONLY else DropReason.OLDEST
        for victim in victims:
            self._give_up(victim, reason)
        self._frames[frame] = None
        self.pending_bytes += frame.size_bytes
        return None

    def leave(self, frame: Frame) -> None:
        """An item is answered, however; a second time is nothing."""
        if frame in self._frames:
            del self._frames[frame]
            self.pending_bytes -= frame.size_bytes

    def _victims(self, frame: Frame) -> list[Frame] | None:
        """What is to be given up for an item; None where it finds no room even so."""
        victims: list[Frame] = []
        items, size = len(self._frames), self.pending_bytes
        latest = self.policy is Policy.LATEST_ONLY
        if latest or self.policy is Policy.DROP_OLDEST:
            for pending in self._frames:
                if not latest and self._fits(frame, items, size):
                    break
                if self._waits(pending):
                    victims.append(pending)
                    items -= 1
                    size -= pending.size_bytes
        return victims if self._fits(frame, items, size) else None

    def _fits(self, frame: Frame, items: int, size: int) -> bool:
        return items < self.max_items and (not items or size + frame.size_bytes <= self.max_bytes)
