"""What every owner of a C resource shares: one `close`, a clear error after it, and a warning when it was forgotten.

The garbage collector never releases anything, because contexts belong to threads: a forgotten owner only warns, with
the place that made it. A parent knows its children weakly and closes those that are left, in the order of teardown.
"""

from __future__ import annotations

import sys
import threading
import warnings
import weakref
from abc import ABC, abstractmethod
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from aclserve.errors import FailedPrecondition

_PACKAGE = str(Path(__file__).parent)


def _origin() -> str:
    """`file:line` of the nearest caller outside this package."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"


def _warn(what: str, origin: str) -> None:
    warnings.warn(f"{what} made at {origin} was never closed", ResourceWarning, stacklevel=2)


class Owned(ABC):
    """The owner of one resource. Construct it only when the resource is already held."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._open = True
        self._finalizer = weakref.finalize(self, _warn, what, _origin())
        self._finalizer.atexit = False

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return not self._open

    def close(self) -> None:
        """Release the resource; again is nothing. It counts as closed even when the release itself fails."""
        if self._open:
            self._open = False
            self._finalizer.detach()
            self._release()

    @abstractmethod
    def _release(self) -> None:
        """Give the resource back; called once."""

    def _require_open(self) -> None:
        """`FailedPrecondition`, reason RESOURCE_CLOSED, after `close`."""
        if not self._open:
            raise FailedPrecondition(f"the {self._what} is closed", reason="RESOURCE_CLOSED")

    def __enter__(self) -> Self:
        self._require_open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Children:
    """The open children of a parent, by kind; `order` is the order they are closed in."""

    def __init__(self, *order: str) -> None:
        self._lock = threading.Lock()  # guards the sets: children are made and closed on several threads
        self._kinds: dict[str, weakref.WeakSet[Owned]] = {kind: weakref.WeakSet() for kind in order}

    def add(self, kind: str, child: Owned) -> None:
        """Remember a new child."""
        with self._lock:
            self._kinds[kind].add(child)

    def discard(self, kind: str, child: Owned) -> None:
        """Forget a child that closes itself."""
        with self._lock:
            self._kinds[kind].discard(child)

    def of(self, kind: str) -> list[Owned]:
        """Those of one kind that are still open."""
        with self._lock:
            return list(self._kinds[kind])

    def close(self) -> None:
        """Close all that are left. Every one is tried; the errors come afterwards, chained."""
        with ExitStack() as stack:
            for kind in reversed(self._kinds):
                for child in self.of(kind):
                    stack.callback(child.close)
