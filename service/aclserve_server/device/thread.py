"""A thread that makes device calls for others.

One thread owns the calls, others send functions: `submit` forgets, `call` blocks, `run` is awaited by an event loop.
Functions run one at a time in the order they were sent. The device's context is current throughout.

Invariants: every function that was accepted runs, also those sent before `close`; a result is delivered through the
loop's own thread, and only to a future that is not done, so that a cancelled caller disturbs nobody; results that
nobody can take any more go to `discard`. The queue is bounded: a full one refuses at once, it never blocks an event
loop. The bound may be overshot by the number of threads that send at the same moment.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, TypeVar

from aclserve.errors import AclserveError, FailedPrecondition, ResourceExhausted
from aclserve_server.device.device import Device
from aclserve_server.device.owned import Owned

_log = logging.getLogger(__name__)

_FULL_RETRY_S = 0.05

T = TypeVar("T")


class DeviceThread(Owned):
    """One worker thread with the device's context. It starts at once; close it before its device."""

    def __init__(self, name: str, device: Device, capacity: int = 4096) -> None:
        self._device = device
        self._capacity = capacity
        self._queue: SimpleQueue[Callable[[], Any] | None] = SimpleQueue()
        self._lock = threading.Lock()  # guards the order of the last function and the sentinel
        self._sealed = False
        self._refusal: AclserveError | None = None
        self._awaited: set[asyncio.Future[Any]] = set()  # what callers wait for; on their loop
        self._number = 0  # of the function that runs, 0 between functions
        self._patience = 1
        started: Future[None] = Future()
        self._thread = threading.Thread(target=self._work, args=(started,), name=f"aclserve-{name}", daemon=True)
        self._thread.start()
        try:
            started.result()
        except BaseException:
            self._thread.join()
            raise
        super().__init__(f"device thread {name!r}")

    @property
    def name(self) -> str:
        """The thread's name."""
        return self._thread.name

    @property
    def pending(self) -> int:
        """How many functions wait."""
        return self._queue.qsize()

    def under_way(self) -> list[tuple[int, int]]:
        """For the watchdog: the function that runs, and how patient to be with it. Any thread."""
        number = self._number
        return [(number, self._patience)] if number else []

    def be_patient(self, factor: int) -> None:
        """From within a function: it may take so many times as long as others, as a load does."""
        self._patience = factor

    def refuse(self, error: AclserveError) -> None:
        """The device is lost: callers of `run` that wait get `error` now, and later ones at once, but for clean-up.

        Called on the loop of those callers.
        """
        self._refusal = error
        for future in list(self._awaited):
            if not future.done():
                future.set_exception(error)

    def submit(self, function: Callable[[], object]) -> None:
        """Have it run; what it returns is dropped, what it raises is logged.

        Raises `ResourceExhausted`, reason DEVICE_QUEUE_FULL, and `FailedPrecondition` after `close`.
        """
        self._put(function)

    def call(self, function: Callable[[], T]) -> T:
        """Run it there and wait for its result, blocking. From the thread itself it simply runs."""
        if threading.current_thread() is self._thread:
            return function()
        future: Future[T] = Future()

        def work() -> None:
            try:
                result = function()
            except BaseException as error:
                future.set_exception(error)
            else:
                future.set_result(result)

        self._put(work)
        return future.result()

    async def run(
        self, function: Callable[[], T], discard: Callable[[T], object] | None = None, *, cleanup: bool = False
    ) -> T:
        """Run it there and await its result. A cancelled caller does not stop it.

        `discard` gets, on the device thread, a result that nobody took because the caller was cancelled or its loop
        is gone: give it where the result owns something. `cleanup` tells that it only gives back what is held, which
        is done even when the device is lost.
        """
        if self._refusal is not None and not cleanup:
            raise self._refusal
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()

        def work() -> None:
            result: T | None = None
            error: BaseException | None = None
            try:
                result = function()
            except BaseException as raised:
                error = raised
            try:
                loop.call_soon_threadsafe(deliver, result, error)
            except RuntimeError:  # the loop is closed
                refuse(result, error)

        def deliver(result: Any, error: BaseException | None) -> None:
            if future.done():
                self._give_back(refuse, result, error)
            elif error is not None:
                future.set_exception(error)
            else:
                future.set_result(result)

        def refuse(result: Any, error: BaseException | None) -> None:
            if error is None and discard is not None:
                discard(result)
            elif error is not None:
                _log.warning("a device call failed after its caller was gone: %s", error)

        self._put(work)
        if not cleanup:
            self._awaited.add(future)
        try:
            return await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled():
                self._give_back(refuse, future.result() if future.exception() is None else None, future.exception())
            raise
        finally:
            self._awaited.discard(future)

    def _give_back(self, refuse: Callable[..., None], result: object, error: BaseException | None) -> None:
        """Run `refuse` on the thread; on the calling one if the thread has ended meanwhile."""
        try:
            self._put(lambda: refuse(result, error), bounded=False)
        except FailedPrecondition:
            refuse(result, error)

    def _put(self, work: Callable[[], Any], bounded: bool = True) -> None:
        if bounded and self._queue.qsize() >= self._capacity:
            raise ResourceExhausted(
                f"{self._capacity} calls wait for the device thread already",
                reason="DEVICE_QUEUE_FULL",
                retry_delay=_FULL_RETRY_S,
            )
        with self._lock:
            if self._sealed:
                raise FailedPrecondition("the device thread is closed", reason="RESOURCE_CLOSED")
            self._queue.put(work)

    def _work(self, started: Future[None]) -> None:
        try:
            self._device.bind_thread()
        except BaseException as error:
            started.set_exception(error)
            return
        started.set_result(None)
        count = 0
        while True:
            work = self._queue.get()
            if work is None:
                return
            count += 1
            self._patience = 1
            self._number = count
            try:
                work()
            except BaseException:
                _log.exception("a function on %s failed", self._thread.name)
            self._number = 0
            del work  # nothing it holds may live on while this thread waits

    def close(self) -> None:
        """Let what was accepted run, then end the thread. Not from the thread itself."""
        if threading.current_thread() is self._thread:
            raise FailedPrecondition("a device thread cannot close itself", reason="DEVICE_THREAD_SELF_CLOSE")
        super().close()

    def _release(self) -> None:
        with self._lock:
            self._sealed = True
            self._queue.put(None)
        self._thread.join()
