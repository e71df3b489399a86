"""What becomes of a stream's items when they come faster than they can be executed. Pure; time is an argument
(seconds).

    WAIT          the caller stops reading while `full`; nothing is given up
    DROP_OLDEST   at the limit the item that has waited longest makes room
    DROP_NEWEST   at the limit the item that comes is given up
    LATEST_ONLY   at most one item waits: the newest

A `FrameWindow` knows the stream's pending items (accepted and not yet answered) in order, and which of them still
wait, that is, may be given up. It decides; its caller takes the victims out of their queue and answers them.

Invariants (tests/engine/test_frames.py): with every policy but WAIT no more than `max_items` items and, but for a
single item, `max_bytes` bytes are pending after `arrive`, unless they are executing already; with LATEST_ONLY at most
one waits; an item is given up at most once, and never after it began to execute.
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


GiveUp = Callable[[Frame, DropReason], bool]
"""Takes a waiting frame out of its queue and answers it; False where it does not wait any more."""


class FrameWindow:
    """The pending items of one stream."""

    def __init__(self, policy: Policy, max_items: int, max_bytes: int, give_up: GiveUp) -> None:
        self.policy = policy
        self.max_items = max_items
        self.max_bytes = max_bytes
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
        if self.policy is Policy.LATEST_ONLY:
            self._drop_waiting(DropReason.SUPERSEDED)
        elif self.policy is Policy.DROP_OLDEST:
            self._make_room(frame)
        if self.policy is not Policy.WAIT and self._too_much(frame):
            return DropReason.NEWEST
        self._frames[frame] = None
        self.pending_bytes += frame.size_bytes
        return None

    def leave(self, frame: Frame) -> None:
        """An item is answered, however; a second time is nothing."""
        if frame in self._frames:
            del self._frames[frame]
            self.pending_bytes -= frame.size_bytes

    def _too_much(self, frame: Frame) -> bool:
        if len(self._frames) + 1 > self.max_items:
            return True
        return bool(self._frames) and self.pending_bytes + frame.size_bytes > self.max_bytes

    def _make_room(self, frame: Frame) -> None:
        for waiting in list(self._frames):
            if not self._too_much(frame):
                return
            self._give_up(waiting, DropReason.OLDEST)

    def _drop_waiting(self, reason: DropReason) -> None:
        for waiting in list(self._frames):
            self._give_up(waiting, reason)
