"""The emulated device as a library: for every row of the prototype table a C function pointer, behind one guard."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from ctypes import CFUNCTYPE, c_void_p, cast
from typing import Any

from aclserve_server.acl.abi import PROTOTYPES, Check, Prototype
from aclserve_server.emulator import status
from aclserve_server.emulator.aipp import AippCalls
from aclserve_server.emulator.callback_calls import CallbackCalls
from aclserve_server.emulator.calls import Calls
from aclserve_server.emulator.config import EmulatorConfig
from aclserve_server.emulator.copy_calls import CopyCalls
from aclserve_server.emulator.counters import Counters
from aclserve_server.emulator.describe_calls import DescribeCalls
from aclserve_server.emulator.device_calls import DeviceCalls
from aclserve_server.emulator.execute_calls import ExecuteCalls
from aclserve_server.emulator.faults import Failure, FaultPlan
from aclserve_server.emulator.load_calls import LoadCalls
from aclserve_server.emulator.machine import Machine
from aclserve_server.emulator.memory_calls import MemoryCalls
from aclserve_server.emulator.stream_calls import StreamCalls
from aclserve_server.emulator.system_calls import SystemCalls
from aclserve_server.emulator.tensor_calls import TensorCalls

_LOG = logging.getLogger(__name__)
_FUNCTION_POINTER = type(CFUNCTYPE(None))
_SILENT = ("aclrtPeekAtLastError", "aclrtGetLastError")  # their result is an answer, not a failure of theirs


class Emulator:
    """One emulated machine and its C functions. Close it when no thread is inside a call any more."""

    def __init__(self, config: EmulatorConfig | None = None) -> None:
        self.config = config or EmulatorConfig()
        self._machine = Machine(self.config)
        self._functions: dict[str, Any] = {}  # keeps the C functions alive
        self._addresses: dict[str, int] = {}
        self._closed = False
        groups = _groups(self._machine)
        for name, row in PROTOTYPES.items():
            if not row.variadic:
                self._export(name, row, _implementation(groups, name))

    # ---- what tests and services use

    def addresses(self) -> Mapping[str, int]:
        """The address of every emulated C function by its C name; valid until `close`."""
        return dict(self._addresses)

    @property
    def faults(self) -> FaultPlan:
        """Plan failures here."""
        return self._machine.faults

    @property
    def counters(self) -> Counters:
        """What has been done."""
        return self._machine.counters

    @property
    def errors(self) -> list[BaseException]:
        """Exceptions inside entry points or tasks: defects of the emulator, for tests to raise again."""
        return self._machine.errors

    @property
    def leaks(self) -> dict[str, int]:
        """What was live, by kind, when the library was last finalised."""
        return self._machine.leaks

    @property
    def waiters(self) -> int:
        """How many threads wait in a synchronise of a stream at this moment."""
        return sum(stream.waiters for stream in list(self._machine.runtime.streams))

    def pending_conflicts(self, model_id: int) -> int:
        """How many executions of a model wait or run that will fail because they overlap another one."""
        pending = self._machine.models.get(model_id).exclusion.pending
        return sum(1 for task in list(pending) if task.fault and not task.done)

    def ledger(self) -> dict[str, int]:
        """How many objects of each kind the callers have made and not destroyed."""
        return self._machine.ledger()

    def hold(self) -> None:
        """Close the gate: no stream task and no synchronous execution starts, submissions return as ever."""
        self._machine.runtime.hold()

    def release(self) -> None:
        """Open the gate."""
        self._machine.runtime.release()

    def close(self) -> None:
        """End every thread and give the memory back. The C functions may not be called afterwards. Idempotent."""
        if not self._closed:
            self._closed = True
            self._machine.close()

    def __enter__(self) -> Emulator:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    # ---- the guard

    def _export(self, name: str, row: Prototype, implementation: Callable[..., Any]) -> None:
        # Handles and function pointers are plain addresses in C: taking them as such spares an object per argument.
        plain = tuple(c_void_p if _is_address(kind) else kind for kind in row.arguments)
        result = c_void_p if row.result is not None and _is_address(row.result) else row.result
        entry = CFUNCTYPE(result, *plain)(self._guard(name, row, implementation))
        self._functions[name] = entry
        self._addresses[name] = cast(entry, c_void_p).value or 0

    def _guard(self, name: str, row: Prototype, implementation: Callable[..., Any]) -> Callable[..., Any]:
        machine = self._machine
        count_call = machine.counters.count_call
        take_call = machine.faults.take_call
        is_status = row.check is Check.STATUS or name in _SILENT
        bad = status.FAILURE if is_status else (None if row.check in (Check.HANDLE, Check.TEXT, Check.VOID) else 0)
        delay = self.config.latency.call_us.get(name, 0.0) / 1e6
        sleep = self.config.sleep

        def entry(*arguments: Any) -> Any:
            try:
                count_call(name)
                code = take_call(name)
                if code:
                    raise Failure(code, f"{name}: planned failure")
                if delay:
                    sleep(delay)
                answer = implementation(*arguments)
                return 0 if is_status and answer is None else answer
            except Failure as failure:
                state = machine.threads.state()
                state.error_text = f"[{name}] {failure.text}"
                if name not in _SILENT:
                    state.last_error = failure.code
                return failure.code if is_status else bad
            except BaseException as error:
                machine.errors.append(error)
                _LOG.error("%s failed inside the emulated device", name, exc_info=error)
                return bad

        return entry


def _is_address(kind: Any) -> bool:
    return isinstance(kind, type) and (issubclass(kind, c_void_p) or isinstance(kind, _FUNCTION_POINTER))


def _groups(machine: Machine) -> tuple[Calls, ...]:
    loading = LoadCalls(machine)
    describing = DescribeCalls(machine, loading)
    return (
        SystemCalls(machine),
        DeviceCalls(machine),
        MemoryCalls(machine),
        CopyCalls(machine),
        StreamCalls(machine),
        CallbackCalls(machine),
        TensorCalls(machine),
        loading,
        describing,
        ExecuteCalls(machine, describing),
        AippCalls(machine),
    )


def _implementation(groups: tuple[Calls, ...], name: str) -> Callable[..., Any]:
    found = [getattr(group, name) for group in groups if hasattr(group, name)]
    if len(found) != 1:
        raise AssertionError(f"{name} is emulated {len(found)} times, expected once")
    implementation: Callable[..., Any] = found[0]
    return implementation
