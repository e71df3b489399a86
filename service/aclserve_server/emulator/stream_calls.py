"""Streams and events."""

from __future__ import annotations

from typing import Any

from aclserve_server.acl.types import (
    ACL_EVENT_CAPTURE_STREAM_PROGRESS,
    ACL_EVENT_DEVICE_USE_ONLY,
    ACL_EVENT_EXTERNAL,
    ACL_EVENT_IPC,
    ACL_EVENT_SYNC,
    ACL_EVENT_TIME_LINE,
    ACL_STREAM_CPU_SCHEDULE,
    ACL_STREAM_DEVICE_USE_ONLY,
    ACL_STREAM_PERSISTENT,
)
from aclserve_server.emulator import status
from aclserve_server.emulator.calls import Calls, check_timeout, need, refuse
from aclserve_server.emulator.entities import Event, Task
from aclserve_server.emulator.faults import Failure

_NEVER_WAITED = ACL_STREAM_PERSISTENT | ACL_STREAM_CPU_SCHEDULE | ACL_STREAM_DEVICE_USE_ONLY
_EVENT_FLAGS = (
    ACL_EVENT_SYNC
    | ACL_EVENT_CAPTURE_STREAM_PROGRESS
    | ACL_EVENT_TIME_LINE
    | ACL_EVENT_DEVICE_USE_ONLY
    | ACL_EVENT_EXTERNAL
    | ACL_EVENT_IPC
)
_PLAIN_EVENT = ACL_EVENT_SYNC | ACL_EVENT_CAPTURE_STREAM_PROGRESS | ACL_EVENT_TIME_LINE


class StreamCalls(Calls):
    """acl/acl_rt.h: aclrtCreateStream to aclrtStreamAbort, aclrtCreateEvent to aclrtEventElapsedTime."""

    def aclrtCreateStream(self, stream: Any) -> None:
        need(stream, "stream")
        stream[0] = self.runtime.new_stream(self.runtime.current()).handle

    def aclrtCreateStreamWithConfig(self, stream: Any, priority: int, flags: int) -> None:
        need(stream, "stream")
        stream[0] = self.runtime.new_stream(self.runtime.current(), flags, priority).handle

    def aclrtDestroyStream(self, handle: int | None) -> None:
        self._destroy(handle, wait=True)

    def aclrtDestroyStreamForce(self, handle: int | None) -> None:
        self._destroy(handle, wait=False)

    def aclrtSynchronizeStream(self, handle: int | None) -> None:
        self._synchronize(handle, -1)

    def aclrtSynchronizeStreamWithTimeout(self, handle: int | None, timeout_ms: int) -> None:
        check_timeout(timeout_ms, zero_allowed=False)
        self._synchronize(handle, timeout_ms)

    def aclrtStreamQuery(self, handle: int | None, state: Any) -> None:
        need(state, "status")
        stream = self.runtime.stream(handle, any_context=True)
        state[0] = 0 if not stream.tasks else 1

    def aclrtStreamAbort(self, handle: int | None) -> None:
        need(handle, "stream")
        self.runtime.abort(self.runtime.stream(handle))

    def aclrtSetStreamFailureMode(self, handle: int | None, mode: int) -> None:
        if mode not in (0, 1):
            raise refuse(f"failure mode {mode} is not known")
        stream = self.runtime.stream(handle)
        whole_card = self.config.soc_name.startswith(("Ascend910B", "Ascend910_93", "Ascend950"))
        if stream is stream.context.default_stream and not whole_card:
            raise Failure(status.RT_FEATURE_NOT_SUPPORT, "the default stream of this chip has one failure mode")
        if stream.stop_on_failure and mode == 0:
            raise Failure(status.RT_PARAM_INVALID, "stopping at failures cannot be undone")
        stream.stop_on_failure = mode == 1

    def aclrtStreamGetId(self, handle: int | None, number: Any) -> None:
        need(number, "streamId")
        number[0] = self.runtime.stream(handle, any_context=True).number

    def aclrtStreamGetPriority(self, handle: int | None, priority: Any) -> None:
        need(priority, "priority")
        priority[0] = self.runtime.stream(handle, any_context=True).priority

    def aclrtStreamGetFlags(self, handle: int | None, flags: Any) -> None:
        need(flags, "flags")
        flags[0] = self.runtime.stream(handle, any_context=True).flags

    def aclrtGetStreamAvailableNum(self, count: Any) -> None:
        need(count, "streamCount")
        device = self.runtime.current().device
        used = sum(1 for stream in list(self.runtime.streams) if stream.context.device is device)
        count[0] = self.config.stream_limit - used

    # ---- events

    def aclrtCreateEvent(self, event: Any) -> None:
        self._create_event(event, _PLAIN_EVENT)

    def aclrtCreateEventWithFlag(self, event: Any, flags: int) -> None:
        _check_flags(flags)
        self._create_event(event, flags)

    def aclrtCreateEventExWithFlag(self, event: Any, flags: int) -> None:
        _check_flags(flags)
        self._create_event(event, flags, extended=True)

    def aclrtDestroyEvent(self, handle: int | None) -> None:
        event = self._event(handle)
        with self.runtime.lock:
            self.machine.handles.remove(event.handle)
            self.runtime.event_count -= 1

    def aclrtRecordEvent(self, handle: int | None, stream: int | None) -> None:
        event = self._event(handle)
        target = self.runtime.stream(stream)
        with self.runtime.lock:
            generation = event.submitted + 1
            task = Task("aclrtRecordEvent", lambda: self.runtime.record_done(event, generation))
            self.runtime.submit(target, task)
            event.submitted = generation
            event.clock = {**target.clock, target.number: task.number}

    def aclrtStreamWaitEvent(self, stream: int | None, handle: int | None) -> None:
        self._wait_event("aclrtStreamWaitEvent", stream, handle)

    def aclrtStreamWaitEventWithTimeout(self, stream: int | None, handle: int | None, timeout_ms: int) -> None:
        check_timeout(timeout_ms, zero_allowed=False)
        self._wait_event("aclrtStreamWaitEventWithTimeout", stream, handle)

    def aclrtResetEvent(self, handle: int | None, stream: int | None) -> None:
        event = self._event(handle)
        if event.extended or not event.flags & ACL_EVENT_SYNC:
            raise Failure(status.RT_PARAM_INVALID, "this event cannot be reset: it was made without ACL_EVENT_SYNC")

        def reset() -> None:
            event.reset = True

        self.runtime.submit(self.runtime.stream(stream), Task("aclrtResetEvent", reset))

    def aclrtQueryEvent(self, handle: int | None, state: Any) -> None:
        event = self._queried(handle, state)
        state[0] = 0 if _complete(event) or not event.submitted else 1

    def aclrtQueryEventStatus(self, handle: int | None, state: Any) -> None:
        event = self._event(handle)
        need(state, "status")
        state[0] = 1 if _complete(event) or not event.submitted else 0

    def aclrtQueryEventWaitStatus(self, handle: int | None, state: Any) -> None:
        event = self._queried(handle, state)
        state[0] = 1 if event.waiting else 0

    def aclrtSynchronizeEvent(self, handle: int | None) -> None:
        self._await_event(handle, -1)

    def aclrtSynchronizeEventWithTimeout(self, handle: int | None, timeout_ms: int) -> None:
        check_timeout(timeout_ms, zero_allowed=True)
        self._await_event(handle, timeout_ms)

    def aclrtEventElapsedTime(self, milliseconds: Any, start: int | None, end: int | None) -> None:
        need(milliseconds, "ms")
        first, last = self._event(start), self._event(end)
        for event in (first, last):
            if not event.flags & ACL_EVENT_TIME_LINE or not event.submitted or not _complete(event):
                raise Failure(
                    status.RT_EVENT_TIMESTAMP_INVALID, "an event has no time: not recorded, or made without it"
                )
        if last.time < first.time:
            raise Failure(status.RT_EVENT_TIMESTAMP_REVERSAL, "the end event is earlier than the start event")
        milliseconds[0] = (last.time - first.time) * 1000

    def aclrtEventGetTimestamp(self, handle: int | None, timestamp: Any) -> None:
        event = self._event(handle)
        need(timestamp, "timestamp")
        if not event.flags & ACL_EVENT_TIME_LINE or not event.submitted or not _complete(event):
            raise Failure(status.RT_EVENT_TIMESTAMP_INVALID, "the event has no time: not recorded, or made without it")
        timestamp[0] = int(event.time * 1e6)

    def aclrtGetEventId(self, handle: int | None, number: Any) -> None:
        event = self._event(handle)
        need(number, "eventId")
        number[0] = event.number

    def aclrtGetEventAvailNum(self, count: Any) -> None:
        need(count, "eventCount")
        self.runtime.current()
        count[0] = self.config.event_limit - self.runtime.event_count

    # ---- inside

    def _destroy(self, handle: int | None, wait: bool) -> None:
        need(handle, "stream")
        stream = self.runtime.stream(handle)
        if stream is stream.context.default_stream:
            raise refuse("the default stream of a context cannot be destroyed")
        if stream.waiters:
            raise Failure(status.RESOURCE_IN_USE, "another thread is waiting for the stream")
        self.runtime.end_stream(stream, wait)

    def _synchronize(self, handle: int | None, timeout_ms: int) -> None:
        stream = self.runtime.stream(handle, any_context=True)
        if not stream.flags & _NEVER_WAITED:
            self.runtime.synchronize(stream, timeout_ms)

    def _create_event(self, out: Any, flags: int, extended: bool = False) -> None:
        need(out, "event")
        context = self.runtime.current()
        with self.runtime.lock:
            if self.runtime.event_count >= self.config.event_limit:
                raise Failure(status.RT_NO_EVENT_RESOURCE, f"all {self.config.event_limit} events are in use")
            self.runtime.event_count += 1
            event = Event(context, self.runtime.event_count, flags, extended)
            event.handle = self.machine.handles.add(event)
        out[0] = event.handle

    def _event(self, handle: int | None) -> Event:
        need(handle, "event")
        event = self.machine.handles.get(handle, Event)
        if event is None:
            raise Failure(status.RT_INVALID_HANDLE, f"{handle or 0:#x} is not a live event")
        return event

    def _queried(self, handle: int | None, state: Any) -> Event:
        event = self._event(handle)
        need(state, "status")
        if event.extended:
            raise Failure(status.RT_PARAM_INVALID, "an event made with aclrtCreateEventExWithFlag cannot be queried so")
        return event

    def _wait_event(self, function: str, stream: int | None, handle: int | None) -> None:
        event = self._event(handle)
        if not event.flags & ACL_EVENT_SYNC and not event.extended:
            raise Failure(status.RT_PARAM_INVALID, "a stream cannot wait for an event made without ACL_EVENT_SYNC")
        target = self.runtime.stream(stream)
        with self.runtime.lock:
            self.runtime.submit(target, Task(function, awaits=event, generation=event.submitted))
            for number, certain in event.clock.items():
                target.clock[number] = max(target.clock.get(number, 0), certain)

    def _await_event(self, handle: int | None, timeout_ms: int) -> None:
        event = self._event(handle)
        self.runtime.current()
        self.runtime.await_event(event, timeout_ms)


def _complete(event: Event) -> bool:
    return event.done >= event.submitted and not event.reset


def _check_flags(flags: int) -> None:
    if flags == 0 or flags & ~_EVENT_FLAGS:
        raise refuse(f"event flags {flags:#x} are not known")
