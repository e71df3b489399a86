"""Operations that outlive their callers: what AscendCL has begun cannot be interrupted, only waited for."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class Operations:
    """A scope of operations that each end by themselves. Cancelling a caller leaves its operation running."""

    def __init__(self) -> None:
        self._running: set[asyncio.Task[Any]] = set()

    def __len__(self) -> int:
        """How many are under way."""
        return len(self._running)

    def start(self, operation: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Starts one; whoever awaits the task must shield it."""
        task = asyncio.get_running_loop().create_task(operation)
        self._running.add(task)
        task.add_done_callback(self._forget)
        return task

    async def finish(self, operation: Coroutine[Any, Any, T]) -> T:
        """Runs one to its end, whatever becomes of the caller."""
        return await asyncio.shield(self.start(operation))

    async def drain(self) -> None:
        """Returns when none is left."""
        while self._running:
            await asyncio.wait(self._running)

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        if not task.cancelled():
            task.exception()  # a caller that still waits gets it all the same
