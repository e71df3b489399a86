"""Host callbacks, host functions, and the exception callback."""

from __future__ import annotations

import itertools

from aclserve_server.acl.types import aclrtExceptionInfoCallback, aclrtHostFunc
from aclserve_server.emulator import status
from aclserve_server.emulator.calls import Calls, check_timeout, need, refuse, unsupported
from aclserve_server.emulator.entities import Task
from aclserve_server.emulator.faults import Failure
from aclserve_server.emulator.machine import Machine

_NOTHING = 0xFFFFFFFF


class CallbackCalls(Calls):
    """acl/acl_rt.h: aclrtSubscribeReport to aclrtUnSubscribeReport, aclrtLaunchHostFunc, exception info."""

    def __init__(self, machine: Machine) -> None:
        super().__init__(machine)
        self._callback: int | None = None
        self._more_callbacks: list[int] = []
        self._infos: dict[int, tuple[Task, int]] = {}  # failed tasks being reported, by the handle the callback gets
        self._next_info = itertools.count(0x5AC2_0000_0000, 0x40)
        machine.runtime.on_failure = self._report_failure

    def aclrtSubscribeReport(self, thread: int, stream: int | None) -> None:
        self.machine.reports.subscribe(thread, self.runtime.stream(stream))

    def aclrtUnSubscribeReport(self, thread: int, stream: int | None) -> None:
        self.machine.reports.unsubscribe(thread, self.runtime.stream(stream, any_context=True))

    def aclrtLaunchCallback(self, function: int | None, user_data: int | None, block: int, stream: int | None) -> None:
        if block not in (0, 1):
            raise refuse(f"block type {block} is not known")
        if function is None:
            raise Failure(status.RT_PARAM_INVALID, "the callback is NULL")
        self.machine.reports.launch(self.runtime.stream(stream), function, user_data, block == 1)

    def aclrtProcessReport(self, timeout_ms: int) -> None:
        if timeout_ms == 0 or timeout_ms < -1:
            raise refuse(f"timeout is {timeout_ms} ms, expected -1 or more than 0")
        self.machine.reports.process(timeout_ms)

    def aclrtLaunchHostFunc(self, stream: int | None, function: int | None, arguments: int | None) -> None:
        if function is None:
            raise Failure(status.RT_PARAM_INVALID, "the host function is NULL")
        target = self.runtime.stream(stream)
        with self.runtime.lock:
            if target.report_thread is not None:
                raise Failure(status.RT_STREAM_SUBSCRIBE, "the stream is subscribed for aclrtLaunchCallback")
            target.host_functions = True
        call = aclrtHostFunc(function)
        self.runtime.submit(target, Task("aclrtLaunchHostFunc", lambda: call(arguments)))

    def aclrtSubscribeHostFunc(self, thread: int, stream: int | None) -> None:
        raise unsupported("aclrtSubscribeHostFunc")

    def aclrtProcessHostFunc(self, timeout_ms: int) -> None:
        check_timeout(timeout_ms, zero_allowed=False)
        raise unsupported("aclrtProcessHostFunc")

    def aclrtUnSubscribeHostFunc(self, thread: int, stream: int | None) -> None:
        raise unsupported("aclrtUnSubscribeHostFunc")

    # ---- failed tasks

    def aclrtSetExceptionInfoCallback(self, function: int | None) -> None:
        self._callback = function

    def aclrtExceptionInfoCallbackRegister(self, function: int | None) -> None:
        need(function, "callback")
        if function in self._more_callbacks:
            raise refuse("the callback is registered already")
        self._more_callbacks.append(function or 0)

    def aclrtExceptionInfoCallbackUnregister(self, function: int | None) -> None:
        need(function, "callback")
        if function not in self._more_callbacks:
            raise refuse("the callback is not registered")
        self._more_callbacks.remove(function or 0)

    def aclrtGetTaskIdFromExceptionInfo(self, info: int | None) -> int:
        found = self._infos.get(info or 0)
        return found[0].number if found else _NOTHING

    def aclrtGetStreamIdFromExceptionInfo(self, info: int | None) -> int:
        found = self._infos.get(info or 0)
        return found[0].stream.number if found and found[0].stream is not None else _NOTHING

    def aclrtGetThreadIdFromExceptionInfo(self, info: int | None) -> int:
        found = self._infos.get(info or 0)
        return found[0].thread & 0xFFFFFFFF if found else _NOTHING

    def aclrtGetDeviceIdFromExceptionInfo(self, info: int | None) -> int:
        found = self._infos.get(info or 0)
        return found[0].device if found else _NOTHING

    def aclrtGetErrorCodeFromExceptionInfo(self, info: int | None) -> int:
        found = self._infos.get(info or 0)
        return found[1] if found else _NOTHING

    def _report_failure(self, task: Task, code: int) -> None:
        callbacks = [function for function in (self._callback, *self._more_callbacks) if function]
        if not callbacks:
            return
        handle = next(self._next_info)
        self._infos[handle] = (task, code)
        try:
            for function in callbacks:
                aclrtExceptionInfoCallback(function)(handle)
        finally:
            del self._infos[handle]
