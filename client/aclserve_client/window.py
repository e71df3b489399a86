"""How many items of a stream may be on their way, in number and in bytes of inline inputs."""

from __future__ import annotations

from dataclasses import dataclass

_AHEAD_ITEMS = 32


@dataclass(slots=True)
class Load:
    """So many items of so many bytes."""

    items: int = 0
    size_bytes: int = 0

    def add(self, size_bytes: int) -> None:
        self.items += 1
        self.size_bytes += size_bytes

    def remove(self, size_bytes: int) -> None:
        self.items -= 1
        self.size_bytes -= size_bytes

    def clear(self) -> None:
        self.items = self.size_bytes = 0


@dataclass(slots=True)
class Window:
    """The window that the server stated; a `size_bytes` of 0 is no limit. Nothing fits before it is stated.

    `drops`: the stream's frame policy gives up items that are too many. So the server must see them, and as many again
    as the window has may be on their way, at least 32. The server answers those above its window at once.
    """

    items: int = 0
    size_bytes: int = 0
    drops: bool = False

    def set(self, items: int, size_bytes: int) -> None:
        """A new window. One item is always allowed."""
        self.items, self.size_bytes = max(1, items), size_bytes

    @property
    def limit(self) -> int:
        """Items that may be on their way at a time."""
        return self.items + max(self.items, _AHEAD_ITEMS) if self.drops and self.items else self.items

    def fits(self, load: Load, size_bytes: int) -> bool:
        """Whether an item of that size may join a load. One alone always may, however large."""
        if load.items >= self.limit:
            return False
        limit = 2 * self.size_bytes if self.drops else self.size_bytes
        return not load.items or not limit or load.size_bytes + size_bytes <= limit
