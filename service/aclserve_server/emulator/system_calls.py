"""Initialisation, versions, error text, and the functions that need no device."""

from __future__ import annotations

import ctypes
import json
import logging
from typing import Any

import numpy as np

from aclserve_server.acl.types import aclFinalizeCallbackFunc, aclInitCallbackFunc, aclRegisterCallbackType
from aclserve_server.emulator import status
from aclserve_server.emulator.calls import Calls, need, refuse
from aclserve_server.emulator.faults import Failure
from aclserve_server.emulator.machine import Machine
from aclserve_server.emulator.tensors import ITEM_BYTES

_LOG = logging.getLogger(__name__)
_API_VERSIONS = {"8.1": (1, 13, 0), "8.5": (1, 16, 0), "9.1": (1, 17, 0)}
_CANN_VERSIONS = {"8.1": "8.1.RC1", "8.5": "8.5.0", "9.1": "9.1.0"}
_CANN_NUMBERS = {"8.1": 80100000, "8.5": 80500000, "9.1": 90100000}
_PACKAGES = (b"cann", b"runtime", b"compiler", b"hccl", b"toolkit", b"opp", b"driver")
_NESTING_LIMIT = 10


class SystemCalls(Calls):
    """acl/acl_rt.h: aclInit to aclFinalize, versions, errors; acl/acl_base.h: plain helpers."""

    def __init__(self, machine: Machine) -> None:
        super().__init__(machine)
        self._init_callbacks: list[tuple[int, int, int | None]] = []
        self._finalize_callbacks: list[tuple[int, int, int | None]] = []
        self._soc_name = ctypes.create_string_buffer(machine.config.soc_name.encode())

    def aclInit(self, path: bytes | None) -> None:
        machine = self.machine
        if machine.initialized:
            if self.config.release >= (8, 5):
                machine.init_count += 1
            raise Failure(status.REPEAT_INITIALIZE, "aclInit has been called already")
        content = _read_config(path)
        if machine.initialized is False and content != machine.init_content:
            raise refuse("aclInit after aclFinalize must get the same configuration as the first time")
        if not self.config.device_count:
            raise Failure(status.FAILURE, "the SoC name cannot be read: no device is visible")
        default = json.loads(content).get("defaultDevice", {}).get("default_device")
        if default is not None:
            self.runtime.device(int(default))
            self.runtime.default_device = int(default)
        machine.initialized = True
        machine.init_count = 1
        machine.init_content = content
        for _, function, user_data in list(self._init_callbacks):
            self._call_init(function, user_data)

    def aclFinalize(self) -> None:
        if self.machine.initialized is False:
            raise Failure(status.REPEAT_FINALIZE, "aclFinalize has been called already")
        self._finalize()

    def aclFinalizeReference(self, count: Any) -> None:
        machine = self.machine
        if machine.init_count == 0:
            if count:
                count[0] = 0
            raise Failure(status.REPEAT_FINALIZE, "every aclInit has been matched already")
        if machine.init_count == 1:
            self._finalize()
        else:
            machine.init_count -= 1
        if count:
            count[0] = machine.init_count

    def aclInitCallbackRegister(self, kind: int, function: int | None, user_data: int | None) -> None:
        _check_callback(kind, function)
        assert function is not None
        self._init_callbacks.append((kind, function, user_data))
        if self.machine.initialized:
            self._call_init(function, user_data)

    def aclInitCallbackUnRegister(self, kind: int, function: int | None) -> None:
        _check_callback(kind, function)
        _remove_callback(self._init_callbacks, kind, function)

    def aclFinalizeCallbackRegister(self, kind: int, function: int | None, user_data: int | None) -> None:
        _check_callback(kind, function)
        assert function is not None
        self._finalize_callbacks.append((kind, function, user_data))

    def aclFinalizeCallbackUnRegister(self, kind: int, function: int | None) -> None:
        _check_callback(kind, function)
        _remove_callback(self._finalize_callbacks, kind, function)

    def aclrtGetVersion(self, major: Any, minor: Any, patch: Any) -> None:
        for pointer, value in zip((major, minor, patch), _API_VERSIONS[self.config.profile], strict=True):
            need(pointer, "a version pointer")
            pointer[0] = value

    def aclsysGetCANNVersion(self, package: int, version: Any) -> None:
        need(version, "version")
        if not 0 <= package < 8:
            raise refuse(f"package {package} is not known")
        text = _CANN_VERSIONS[self.config.profile]
        parts = text.split(".")
        record = version.contents
        record.version = text.encode()
        record.majorVersion, record.minorVersion = parts[0].encode(), parts[1].encode()
        record.releaseVersion, record.patchVersion = parts[2].encode(), b""

    def aclsysGetVersionStr(self, package: int | None, text: int | None) -> None:
        need(package, "pkgName")
        need(text, "versionStr")
        self._check_package(package)
        raw = _CANN_VERSIONS[self.config.profile].encode() + b"\0"
        ctypes.memmove(text or 0, raw, len(raw))

    def aclsysGetVersionNum(self, package: int | None, number: Any) -> None:
        need(package, "pkgName")
        need(number, "versionNum")
        self._check_package(package)
        number[0] = _CANN_NUMBERS[self.config.profile]

    def aclGetRecentErrMsg(self) -> int | None:
        state = self.machine.threads.state()
        if not state.error_text:
            return None
        state.error_buffer = ctypes.create_string_buffer(state.error_text.encode())
        state.error_text = ""
        return ctypes.addressof(state.error_buffer)

    def aclrtPeekAtLastError(self, level: int) -> int:
        _check_level(level)
        return self.machine.threads.state().last_error

    def aclrtGetLastError(self, level: int) -> int:
        _check_level(level)
        state = self.machine.threads.state()
        code, state.last_error = state.last_error, 0
        return code

    def aclrtGetSocName(self) -> int | None:
        return ctypes.addressof(self._soc_name) if self.config.device_count else None

    def aclDataTypeSize(self, data_type: int) -> int:
        return ITEM_BYTES.get(data_type, 0)

    def aclFloat16ToFloat(self, value: int) -> float:
        return float(np.array(value, np.uint16).view(np.float16))

    def aclFloatToFloat16(self, value: float) -> int:
        with np.errstate(over="ignore"):
            return int(np.array(value, np.float32).astype(np.float16).view(np.uint16))

    def _check_package(self, package: int | None) -> None:
        name = ctypes.string_at(package or 0)
        if name not in _PACKAGES:
            raise refuse(f"package {name!r} is not installed")

    def _call_init(self, function: int, user_data: int | None) -> None:
        content = (self.machine.init_content or "{}").encode()
        aclInitCallbackFunc(function)(content, len(content), user_data)

    def _finalize(self) -> None:
        machine = self.machine
        for _, function, user_data in list(self._finalize_callbacks):
            aclFinalizeCallbackFunc(function)(user_data)
        machine.leaks = {kind: count for kind, count in machine.ledger().items() if count}
        if machine.leaks:
            shown = ", ".join(f"{count} {kind}" for kind, count in machine.leaks.items())
            _LOG.warning("aclFinalize with live objects: %s", shown)
        machine.reports.close()
        for device in self.runtime.devices:
            self.runtime.end_device(device, wait=False)
        self.runtime.default_device = None
        machine.initialized = False
        machine.init_count = 0


def _read_config(path: bytes | None) -> str:
    """The configuration in one fixed form, so that two files can be compared by content."""
    if not path:
        return "{}"
    try:
        with open(path, encoding="utf-8") as file:
            parsed = json.loads(file.read() or "{}")
    except OSError:
        raise Failure(
            status.INVALID_FILE, f"configuration file {path.decode(errors='replace')!r} cannot be read"
        ) from None
    except ValueError as error:
        raise Failure(status.PARSE_FILE, f"the configuration is not JSON: {error}") from None
    if not isinstance(parsed, dict) or _depth(parsed) > _NESTING_LIMIT:
        raise Failure(status.PARSE_FILE, f"the configuration is no JSON object nested at most {_NESTING_LIMIT} deep")
    return json.dumps(parsed, sort_keys=True)


def _depth(value: object) -> int:
    if isinstance(value, dict):
        return 1 + max((_depth(item) for item in value.values()), default=0)
    if isinstance(value, list):
        return 1 + max((_depth(item) for item in value), default=0)
    return 0


def _check_callback(kind: int, function: int | None) -> None:
    need(function, "cbFunc")
    if kind not in list(aclRegisterCallbackType):
        raise refuse(f"callback type {kind} is not known")


def _remove_callback(callbacks: list[tuple[int, int, int | None]], kind: int, function: int | None) -> None:
    kept = [entry for entry in callbacks if entry[:2] != (kind, function)]
    if len(kept) == len(callbacks):
        raise refuse("the callback is not registered")
    callbacks[:] = kept


def _check_level(level: int) -> None:
    if level != 0:
        raise refuse(f"error level {level} is not ACL_RT_THREAD_LEVEL")
