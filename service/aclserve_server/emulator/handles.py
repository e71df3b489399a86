"""Opaque handles: numbers that stand for the emulator's objects and can be told apart when stale."""

from __future__ import annotations

import threading
from typing import TypeVar

T = TypeVar("T")

_FIRST = 0x5AC1_0000_0000
_STEP = 0x40


class Handles:
    """Handle numbers and what they stand for. A number is never used twice. Any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards the next number
        self._next = _FIRST
        self._objects: dict[int, object] = {}

    def add(self, item: object) -> int:
        """A new handle for an object."""
        with self._lock:
            handle = self._next
            self._next += _STEP
        self._objects[handle] = item
        return handle

    def get(self, handle: int | None, kind: type[T]) -> T | None:
        """The object of a handle, None when the handle is null, stale or of another kind."""
        item = self._objects.get(handle) if handle is not None else None
        return item if isinstance(item, kind) else None

    def remove(self, handle: int) -> None:
        """Make a handle stale."""
        self._objects.pop(handle, None)

    def all_of(self, kind: type[T]) -> list[T]:
        """Every live object of a kind."""
        return [item for item in list(self._objects.values()) if isinstance(item, kind)]
