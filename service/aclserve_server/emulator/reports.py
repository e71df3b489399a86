"""Host callbacks: which thread serves which stream, and what waits for it.

A thread subscribes to streams; a launched callback becomes a task of its stream, and when that task's turn
comes the callback waits for the thread to call aclrtProcessReport, which runs all that wait. A blocking
callback keeps its task running until the callback has returned; the other kind is done as soon as it is handed
over.
"""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass, field

from aclserve_server.acl.types import aclrtCallback
from aclserve_server.emulator import status
from aclserve_server.emulator.entities import Device, Stream, Task
from aclserve_server.emulator.faults import Failure
from aclserve_server.emulator.runtime import Runtime

THREAD_LIMIT = 1024


@dataclass(eq=False, slots=True)
class _Pending:
    function: int
    user_data: int | None
    finished: bool = False


@dataclass(eq=False, slots=True)
class _ReportThread:
    device: Device
    arrived: threading.Condition
    streams: set[Stream] = field(default_factory=set)
    pending: deque[_Pending] = field(default_factory=deque)


class Reports:
    """The subscriptions of all threads. The runtime's lock guards them."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._threads: dict[int, _ReportThread] = {}
        self._callbacks_done = threading.Condition(runtime.lock)
        runtime.on_stream_end = self.forget

    def subscribe(self, thread: int, stream: Stream) -> None:
        """Let a thread serve a stream's callbacks."""
        with self._runtime.lock:
            if stream.report_thread is not None or stream.host_functions:
                raise Failure(
                    status.RT_STREAM_SUBSCRIBE, "the stream is subscribed already, or used with aclrtLaunchHostFunc"
                )
            entry = self._threads.get(thread)
            if entry is None:
                if len(self._threads) >= THREAD_LIMIT:
                    raise Failure(507000, f"all {THREAD_LIMIT} report threads are in use")
                entry = _ReportThread(stream.context.device, threading.Condition(self._runtime.lock))
                self._threads[thread] = entry
            if entry.device is not stream.context.device:
                raise Failure(status.RT_THREAD_SUBSCRIBE, "the thread serves another device already")
            entry.streams.add(stream)
            stream.report_thread = thread

    def unsubscribe(self, thread: int, stream: Stream) -> None:
        """Undo `subscribe`."""
        with self._runtime.lock:
            entry = self._threads.get(thread)
            if entry is None:
                raise Failure(status.RT_THREAD_SUBSCRIBE, f"thread {thread} is not subscribed")
            if stream not in entry.streams:
                raise Failure(status.RT_STREAM_SUBSCRIBE, "the stream is not subscribed by that thread")
            self.forget(stream)

    def forget(self, stream: Stream) -> None:
        """Drop a stream's subscription, if it has one."""
        with self._runtime.lock:
            thread = stream.report_thread
            if thread is None:
                return
            stream.report_thread = None
            entry = self._threads[thread]
            entry.streams.discard(stream)
            if not entry.streams:
                del self._threads[thread]
                entry.arrived.notify_all()
            self._callbacks_done.notify_all()

    def launch(self, stream: Stream, function: int, user_data: int | None, block: bool) -> None:
        """Queue a callback behind the stream's tasks."""
        with self._runtime.lock:
            if stream.host_functions:
                raise Failure(status.RT_STREAM_SUBSCRIBE, "the stream is used with aclrtLaunchHostFunc")
            if stream.report_thread is None:
                raise Failure(status.RT_STREAM_NO_CB_REG, "no thread is subscribed to the stream")
            thread = stream.report_thread

        def deliver() -> None:
            self._deliver(stream, thread, _Pending(function, user_data), block)

        self._runtime.submit(stream, Task("aclrtLaunchCallback", deliver))

    def process(self, timeout_ms: int) -> None:
        """Wait for callbacks of the calling thread and run them all."""
        thread = threading.get_ident()
        with self._runtime.lock:
            entry = self._threads.get(thread)
            if entry is None:
                raise Failure(status.RT_THREAD_SUBSCRIBE, "this thread is not subscribed to any stream")

            def ready() -> bool:
                return bool(entry.pending) or self._threads.get(thread) is not entry

            if timeout_ms < 0:
                while not ready():
                    entry.arrived.wait()
            elif not entry.arrived.wait_for(ready, timeout_ms / 1000):
                raise Failure(status.RT_REPORT_TIMEOUT, f"no callback within {timeout_ms} ms")
            callbacks = list(entry.pending)
            entry.pending.clear()
        if not callbacks:
            raise Failure(status.RT_THREAD_SUBSCRIBE, "this thread is not subscribed any more")
        for callback in callbacks:
            aclrtCallback(callback.function)(callback.user_data)
            with self._runtime.lock:
                callback.finished = True
                self._callbacks_done.notify_all()

    def close(self) -> None:
        """Let every waiting thread go."""
        with self._runtime.lock:
            for entry in list(self._threads.values()):
                for stream in list(entry.streams):
                    self.forget(stream)

    def _deliver(self, stream: Stream, thread: int, callback: _Pending, block: bool) -> None:
        with self._runtime.lock:
            entry = self._threads.get(thread)
            if entry is None:
                return
            entry.pending.append(callback)
            entry.arrived.notify_all()
            while block and not callback.finished and stream.report_thread == thread and not stream.closing:
                self._callbacks_done.wait()
