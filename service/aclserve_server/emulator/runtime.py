"""Devices, contexts, streams and events: who may submit what, and when it runs.

Things and their owners. A device has one primary context (made by aclrtSetDevice, shared by all threads) and
any number of explicit ones. A context owns streams and events. A thread has at most one current context; every
call that needs one takes it from there. Handles are numbers; a number that is not in the table is stale.

A stream is a queue of tasks and one thread, started with the first task. A task is checked when it is submitted
and again when it runs, because memory may have been freed in between; it reads its sources and writes its
outputs only when it runs. Its life is: submitted, at the head, running, done. Tasks of one stream are done in
the order of submission. Between streams there is no order but through events, through the host (a call that
waited), or through a blocking callback.

A stream's head may run when the gate is open (`hold` closes it for all streams), and, if it is a wait, when the
event's record it waits for is done. A record and a wait mean the moment of their submission: a wait submitted
before any record waits for nothing. Every task has a number in its stream; a stream also keeps, for each other
stream, the highest number that is certain to be done before its next task (a vector clock, carried by events).
So "may these two run at once?" has one answer at submission, whatever the threads do: that is how two
executions of one model id are caught.

A task that fails leaves its outputs poisoned, calls the exception callback, and puts its code on the stream:
the first code stays there until a synchronise of that stream (or of its device) takes it away and returns it.
Later tasks run, unless the stream is set to stop at failures. So a callback that follows a failed task fires
all the same and says nothing about it.

One lock guards all of this state. It is never held while a task runs, while a callback runs, or while a caller
waits.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from aclserve_server.emulator import status
from aclserve_server.emulator.config import EmulatorConfig
from aclserve_server.emulator.counters import Counters
from aclserve_server.emulator.entities import Context, Device, Event, Stream, Task
from aclserve_server.emulator.faults import Failure, FaultPlan
from aclserve_server.emulator.handles import Handles
from aclserve_server.emulator.threads import Threads

_LOG = logging.getLogger(__name__)


class Runtime:
    """All devices, contexts, streams and events of the process, and the threads that run the streams."""

    def __init__(
        self,
        config: EmulatorConfig,
        handles: Handles,
        threads: Threads,
        counters: Counters,
        faults: FaultPlan,
        errors: list[BaseException],
    ) -> None:
        self.config = config
        self.handles = handles
        self.threads = threads
        self.counters = counters
        self.faults = faults
        self.errors = errors
        self.lock = threading.RLock()
        self.devices = [Device(number) for number in range(config.device_count)]
        self.streams: set[Stream] = set()
        self.event_count = 0
        self.default_device: int | None = None
        self.on_failure: Callable[[Task, int], None] | None = None
        self.on_stream_end: Callable[[Stream], None] | None = None
        self._next_number = 1
        self._held = False
        self._opened = threading.Condition(self.lock)
        self._recorded = threading.Condition(self.lock)

    # ---- contexts

    def current(self) -> Context:
        """The calling thread's context; 107002 when it has none or a dead one."""
        context = self.threads.state().context
        if context is None and self.default_device is not None:
            context = self.set_device(self.default_device)
        if context is None:
            raise Failure(
                status.RT_CONTEXT_NULL,
                "this thread has no current context: call aclrtSetDevice or aclrtSetCurrentContext",
            )
        if not context.live:
            raise Failure(status.RT_CONTEXT_NULL, "the current context of this thread has been destroyed")
        return context

    def set_device(self, number: int) -> Context:
        """Make a device's primary context current in the calling thread, opening the device at the first time."""
        device = self.device(number)
        with self.lock:
            if device.primary is None:
                device.primary = self.new_context(device, explicit=False)
            self.threads.state().context = device.primary
            return device.primary

    def device(self, number: int) -> Device:
        """A device by number; 107001 when there is none."""
        if not 0 <= number < len(self.devices):
            raise Failure(status.RT_INVALID_DEVICEID, f"device {number} does not exist, there are {len(self.devices)}")
        if number in self.config.broken_devices:
            raise Failure(status.RT_DEV_SETUP_ERROR, f"open device {number} failed")
        return self.devices[number]

    def new_context(self, device: Device, explicit: bool) -> Context:
        """A live context with a handle."""
        context = Context(device, explicit)
        context.handle = self.handles.add(context)
        return context

    def end_context(self, context: Context, wait: bool = True) -> None:
        """End a context and its streams, after their work or at once."""
        for stream in list(context.streams):
            self.end_stream(stream, wait)
        with self.lock:
            context.live = False
            self.handles.remove(context.handle)

    def end_device(self, device: Device, wait: bool) -> None:
        """Let a device go: its primary context ends with all its streams. Explicit contexts stay."""
        with self.lock:
            device.references = 0
            context, device.primary = device.primary, None
        if context is not None:
            self.end_context(context, wait)

    # ---- streams

    def new_stream(self, context: Context, flags: int = 0, priority: int = 0) -> Stream:
        """A stream of a context; 207008 when the device has no more."""
        with self.lock:
            if sum(1 for s in self.streams if s.context.device is context.device) >= self.config.stream_limit:
                raise Failure(
                    status.RT_NO_STREAM_RESOURCE, f"all {self.config.stream_limit} streams of the device are in use"
                )
            stream = Stream(context, self._next_number, self.lock, flags, priority)
            self._next_number += 1
            stream.handle = self.handles.add(stream)
            context.streams.add(stream)
            self.streams.add(stream)
            return stream

    def default_stream(self, context: Context) -> Stream:
        """The stream a null handle means."""
        with self.lock:
            if context.default_stream is None:
                context.default_stream = self.new_stream(context)
            return context.default_stream

    def stream(self, handle: int | None, *, any_context: bool = False) -> Stream:
        """The stream of a handle, checked against the current context; null is its default stream."""
        context = self.current()
        if handle is None:
            return context.default_stream or self.default_stream(context)
        stream = self.handles.get(handle, Stream)
        if stream is None:
            raise Failure(status.RT_INVALID_HANDLE, f"{handle:#x} is not a live stream")
        if stream.context is not context and not any_context:
            raise Failure(status.RT_STREAM_CONTEXT, "the stream belongs to another context than the current one")
        return stream

    def end_stream(self, stream: Stream, wait: bool) -> None:
        """Destroy a stream, after its tasks or at once. The calling thread may not be the stream's own."""
        with self.lock:
            if wait:
                while stream.tasks and not stream.closing:
                    stream.progress.wait()
            stream.context.streams.discard(stream)
            stream.drop_tasks(aborted=True)
            stream.closing = True
            stream.wakeup.notify_all()
            stream.progress.notify_all()
            if stream.context.default_stream is stream:
                stream.context.default_stream = None
            self.streams.discard(stream)
            self.handles.remove(stream.handle)
            worker = stream.worker
            if self.on_stream_end is not None:
                self.on_stream_end(stream)
        if worker is not None and worker is not threading.current_thread():
            worker.join()

    def submit(self, stream: Stream, task: Task) -> None:
        """Queue a task; it runs when its turn comes. Refused with the stream's code after a stop."""
        task.fault = task.fault or self.faults.take_task(task.function)
        task.thread = threading.get_ident()
        with self.lock:
            if stream.stopped:
                raise Failure(stream.stopped, "the stream has stopped at a failure and takes no more tasks")
            if stream.closing:
                raise Failure(status.RT_STREAM_ABORT, "the stream is being destroyed")
            stream.submitted += 1
            task.number = stream.submitted
            task.stream = stream
            task.device = stream.context.device.number
            stream.tasks.append(task)
            if stream.worker is None:
                name = f"emulator-stream-{stream.number}"
                stream.worker = threading.Thread(target=self._work, args=(stream,), name=name, daemon=True)
                stream.worker.start()
            elif stream.idle_worker:
                stream.wakeup.notify()

    def synchronize(self, stream: Stream, timeout_ms: int = -1) -> None:
        """Wait for everything submitted so far; then give the stream's failure, once."""
        with self.lock:
            target, aborts = stream.submitted, stream.aborts

            def over() -> bool:
                return stream.done >= target or stream.closing or stream.aborts != aborts

            stream.waiters += 1
            try:
                done = self._wait(stream.progress, over, timeout_ms)
            finally:
                stream.waiters -= 1
            if stream.aborts != aborts:
                raise Failure(status.RT_STREAM_ABORT, "the stream was aborted")
            if not done:
                raise Failure(status.RT_STREAM_SYNC_TIMEOUT, f"the stream did not finish within {timeout_ms} ms")
            stream.raise_error()

    def synchronize_device(self, device: Device, timeout_ms: int = -1) -> None:
        """Wait for every stream of a device; then give the first failure, once each."""
        with self.lock:
            streams = [s for s in self.streams if s.context.device is device]
        first: Failure | None = None
        for stream in sorted(streams, key=lambda s: s.number):
            try:
                self.synchronize(stream, timeout_ms)
            except Failure as failure:
                first = first or failure
        if first is not None:
            raise first

    def abort(self, stream: Stream) -> None:
        """Drop a stream's tasks; whoever waits for it gets 107023. The stream is usable afterwards."""
        with self.lock:
            stream.drop_tasks(aborted=True)
            while stream.running is not None:
                stream.progress.wait()
            stream.error, stream.error_text = 0, ""

    # ---- events

    def record_done(self, event: Event, generation: int) -> None:
        """A record has been reached: let go who waited for it."""
        with self.lock:
            event.done = max(event.done, generation)
            event.reset = False
            event.time = self.config.clock()
            for stream in event.waiting:
                stream.wakeup.notify_all()
            event.waiting.clear()
            self._recorded.notify_all()

    def await_event(self, event: Event, timeout_ms: int) -> None:
        """Wait in the calling thread until the records submitted so far are reached."""
        with self.lock:
            target = event.submitted
            if not self._wait(self._recorded, lambda: event.done >= target, timeout_ms):
                raise Failure(status.RT_EVENT_SYNC_TIMEOUT, f"the event was not reached within {timeout_ms} ms")

    # ---- the gate

    def hold(self) -> None:
        """From now no task of any stream starts."""
        with self.lock:
            self._held = True

    def release(self) -> None:
        """Let the tasks go on."""
        with self.lock:
            self._held = False
            self._opened.notify_all()
            for stream in self.streams:
                stream.wakeup.notify_all()

    def pass_gate(self) -> None:
        """Wait until the gate is open: a synchronous execution is device work as well."""
        if self._held:
            with self.lock:
                while self._held:
                    self._opened.wait()

    def run_now(self, task: Task) -> None:
        """Run a task in the calling thread, outside every stream, as a synchronous execution does."""
        task.fault = task.fault or self.faults.take_task(task.function)
        task.thread = threading.get_ident()
        self.pass_gate()
        failure = self._run(task)
        with self.lock:
            if failure is None and task.fault:
                failure = Failure(task.fault, task.reason)
            task.done = True
        if failure is not None:
            if task.poison is not None:
                task.poison()
            self.counters.count_failed_task()
            if self.on_failure is not None:
                self.on_failure(task, failure.code)
            raise failure

    def close(self) -> None:
        """Drop every task, open the gate, join every thread."""
        with self.lock:
            for stream in self.streams:
                stream.drop_tasks(aborted=True)
                stream.closing = True
        self.release()
        for stream in list(self.streams):
            self.end_stream(stream, wait=False)

    # ---- inside

    def _work(self, stream: Stream) -> None:
        while True:
            with self.lock:
                task = self._head(stream)
                while task is None:
                    if stream.closing:
                        return
                    stream.idle_worker = True
                    stream.wakeup.wait()
                    stream.idle_worker = False
                    task = self._head(stream)
                stream.running = task
            failure = self._run(task)
            with self.lock:
                if failure is None and task.fault and task.poison is not None:
                    failure = Failure(task.fault, task.reason)
            if failure is not None:
                self._fail(stream, task, failure)
            with self.lock:
                task.done = True
                task.run = task.poison = stream.running = None
                if stream.tasks and stream.tasks[0] is task:
                    stream.tasks.popleft()
                stream.done = task.number if stream.tasks else stream.submitted
                stream.progress.notify_all()

    def _head(self, stream: Stream) -> Task | None:
        if self._held or stream.closing or not stream.tasks:
            return None
        task = stream.tasks[0]
        event = task.awaits
        if event is not None and event.done < task.generation:
            event.waiting.add(stream)
            return None
        return task

    def _run(self, task: Task) -> Failure | None:
        try:
            seconds = self.config.latency.task_seconds(task.function, task.rows)
            if seconds > 0:
                self.config.sleep(seconds)
            if task.fault:
                return Failure(task.fault, task.reason)
            if task.run is not None:
                task.run()
        except Failure as failure:
            return failure
        except BaseException as error:
            self.errors.append(error)
            return Failure(status.RT_MODEL_EXECUTE, f"{task.function}: {error}")
        return None

    def _fail(self, stream: Stream, task: Task, failure: Failure) -> None:
        if task.poison is not None:
            task.poison()
        self.counters.count_failed_task()
        _LOG.debug("task %d of stream %d (%s) failed: %s", task.number, stream.number, task.function, failure)
        with self.lock:
            if not stream.error:
                stream.error, stream.error_text = failure.code, f"{task.function}: {failure.text}"
            if stream.stop_on_failure:
                for other in [s for s in stream.context.streams if s.stop_on_failure]:
                    other.stopped = failure.code
                    other.drop_tasks(aborted=False)
        if self.on_failure is not None:
            self.on_failure(task, failure.code)

    def _wait(self, condition: threading.Condition, ready: Callable[[], bool], timeout_ms: int) -> bool:
        if timeout_ms < 0:
            while not ready():
                condition.wait()
            return True
        return condition.wait_for(ready, timeout_ms / 1000)
