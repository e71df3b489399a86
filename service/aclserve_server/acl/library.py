"""Open AscendCL, bind the whole prototype table to it, and check every call.

Binding starts from addresses, so a shared library and the emulator go the same way: each row becomes a ctypes function
at its address, and what the row says about its result is attached to it as `errcheck`. Call sites test no status.
"""

from __future__ import annotations

import ctypes
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from typing import Any, NoReturn

from aclserve_server.acl.abi import PROTOTYPES, REQUIRED, Check, Prototype
from aclserve_server.acl.errors import NO_OBJECT, AclError, LibraryError, Unsupported, first_seen
from aclserve_server.acl.install import (
    DEFAULT_ROOTS,
    Installation,
    describe_problems,
    environment_problems,
    find_installation,
)

_log = logging.getLogger(__name__)

Function = Callable[..., Any]
Judgement = Callable[[Any, Any, Any], Any]

STUB_CODE = 100039


class Library:
    """AscendCL's functions under their C names, as in ``library.aclrtMalloc(byref(pointer), size, policy)``.

    How a result is judged (`Check` of its row): a status other than 0 and a NULL handle raise `AclError`; a text comes
    as a str copied at once, or None; a plain value comes as it is. An absent function raises `Unsupported` when called.
    Any thread may call; AscendCL wants a current context in most calls. Calls into C release the GIL. A NULL callback
    is an empty instance of its type, as in ``aclrtExceptionInfoCallback()``; a callback object must outlive its use
    in C.
    """

    path: str
    """The file opened first, or "emulator"."""
    environment_hint: str
    """What in the process's environment does not fit the installation and how to repair it; "" where all fits."""
    on_failure: Callable[[AclError], object]
    """Told of every checked call that fails, in its thread, before the error is raised. Must return at once."""

    def __init__(
        self, path: str, addresses: Mapping[str, int], environment_hint: str = "", *, in_interpreter: bool = False
    ) -> None:
        """Bind every row that has an address. Raises one LibraryError that names all missing required functions.

        `in_interpreter`: the functions run in this interpreter, so that calls need not let it go before they begin.
        """
        self.path = path
        self.environment_hint = environment_hint
        self.missing = frozenset(name for name in PROTOTYPES if not addresses.get(name))
        _require(path, self.missing, environment_hint)
        self._raw: dict[str, Function] = {}
        self._checked: dict[str, Function] = {}
        for name, prototype in PROTOTYPES.items():
            if name in self.missing:
                self._raw[name] = self._checked[name] = _absent(name, prototype.since)
            else:
                judgement = self._judgement(name, prototype.check)
                address = addresses[name]
                bound = self._raw[name] = _bind(prototype, address, in_interpreter=in_interpreter)
                if judgement is not None:
                    bound = _bind(prototype, address, judgement, in_interpreter=in_interpreter)
                self._checked[name] = bound
        self._tracing = False
        self.on_failure: Callable[[AclError], object] = lambda error: None
        self.__dict__.update(self._checked)

    @classmethod
    def from_addresses(cls, path: str, addresses: Mapping[str, int], *, in_interpreter: bool = False) -> Library:
        """A library from C function addresses by name, kept valid by whoever made them. `path` is for messages."""
        return cls(path, addresses, in_interpreter=in_interpreter)

    def __getattr__(self, name: str) -> Function:
        # Only reached for names that are not in the table: every row is an attribute of the instance.
        raise AttributeError(f"{name} is not in the prototype table")

    def __repr__(self) -> str:
        return f"<Library {self.path}: {len(PROTOTYPES) - len(self.missing)} of {len(PROTOTYPES)} functions>"

    def has(self, name: str) -> bool:
        """Is this function of the table in the opened library?"""
        return name in PROTOTYPES and name not in self.missing

    def raw(self, name: str) -> Function:
        """The same function without judgement: it returns the C result as it is (a text as an address or None).

        For callers to whom a status is an answer, such as a time-out while polling.
        """
        function = self._raw[name]
        return _traced(name, function) if self._tracing else function

    def set_trace(self, enabled: bool) -> None:
        """Log each call at DEBUG: name, arguments, result, microseconds. Functions fetched before stay as they are."""
        self._tracing = enabled
        for name, function in self._checked.items():
            self.__dict__[name] = _traced(name, function) if enabled else function

    def _judgement(self, name: str, check: Check) -> Judgement | None:
        """What ctypes calls with each result of this row; None for plain values, so that they cost nothing."""

        def status(result: Any, function: Any, arguments: Any) -> Any:
            if result:
                self._fail(name, result)
            return result

        def handle(result: Any, function: Any, arguments: Any) -> Any:
            if not result:
                self._fail(name, NO_OBJECT, "it returned NULL instead of a new object")
            return result

        def text(result: Any, function: Any, arguments: Any) -> Any:
            return _copy_text(result)

        return {Check.STATUS: status, Check.HANDLE: handle, Check.TEXT: text}.get(check)

    def _fail(self, name: str, code: int, hint: str = "") -> NoReturn:
        """Raise for a failed call; runs in the failing thread right after the call, as aclGetRecentErrMsg demands."""
        if code == STUB_CODE:
            # A stub answers every call this way, whatever its result type is: nothing it returns may be read.
            raise AclError(name, code, "", _explain_stub(self.path))
        error = AclError(name, code, _copy_text(self._raw["aclGetRecentErrMsg"]()) or "", hint)
        self.on_failure(error)
        raise error


def open_library(path: str | None, environ: Mapping[str, str], roots: Iterable[str] = DEFAULT_ROOTS) -> Library:
    """Open the AscendCL of this machine.

    `path` is a library file, a folder or a CANN root; None searches (see `find_installation`). Raises LibraryError when
    there is none, when it cannot be opened, or when required functions are missing. An environment that does not fit is
    logged as a warning.
    """
    installation = find_installation(path, environ, roots)
    hint = describe_problems(installation, environment_problems(installation, environ))
    addresses: dict[str, int] = {}
    for file in installation.files:
        wanted = [name for name in PROTOTYPES if name not in addresses]
        if wanted:
            addresses |= _resolve(_load(str(file), installation, hint), wanted)
    library = Library(str(installation.files[0]), addresses, hint)
    if hint:
        _log.warning("%s", hint)
    return library


def _load(file: str, installation: Installation, hint: str) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(file)
    except OSError as error:
        repair = hint or (
            "A library it depends on may be missing from LD_LIBRARY_PATH; the driver's own are in "
            "/usr/local/Ascend/driver/lib64 and its folders common and driver"
        )
        raise LibraryError(f"{file} cannot be opened: {error}. {repair}") from error


def _resolve(library: ctypes.CDLL, names: Iterable[str]) -> dict[str, int]:
    found = {}
    for name in names:
        symbol = getattr(library, name, None)
        if symbol is not None:
            found[name] = ctypes.cast(symbol, ctypes.c_void_p).value or 0
    return found


def _require(path: str, missing: frozenset[str], hint: str) -> None:
    lacking = [name for name in PROTOTYPES if name in missing and name in REQUIRED]
    if lacking:
        listed = "".join(f"\n  {name} ({first_seen(PROTOTYPES[name].since)})" for name in lacking)
        repair = f"\n{hint}" if hint else ""
        raise LibraryError(
            f"{path} lacks {len(lacking)} functions that aclserve needs:{listed}\n"
            f"CANN 5.0.3 and later have all of them; is this another library, or an older CANN?{repair}"
        )


def _bind(
    prototype: Prototype, address: int, judgement: Judgement | None = None, *, in_interpreter: bool = False
) -> Function:
    kind = ctypes.PYFUNCTYPE if in_interpreter else ctypes.CFUNCTYPE
    function = kind(prototype.result, *prototype.arguments)(address)
    if judgement is not None:
        function.errcheck = judgement
    return function


def _absent(name: str, since: str) -> Function:
    def absent(*arguments: Any) -> NoReturn:
        raise Unsupported(name, since)

    return absent


def _copy_text(address: int | None) -> str | None:
    return ctypes.string_at(address).decode("utf-8", "backslashreplace") if address else None


def _explain_stub(path: str) -> str:
    return (
        f"{path} is the toolkit's stub library, made for linking without a driver: a wrong folder (devlib or stub) is "
        "first on LD_LIBRARY_PATH or was given as --acl-library. Use lib64 of the CANN root"
    )


def _traced(name: str, function: Function) -> Function:
    def traced(*arguments: Any) -> Any:
        start = time.perf_counter_ns()
        try:
            result = function(*arguments)
        except AclError as error:
            _log_call(name, arguments, f"failed {error.code}", start)
            raise
        _log_call(name, arguments, _show(result, None), start)
        return result

    return traced


def _log_call(name: str, arguments: tuple[Any, ...], result: str, start: int) -> None:
    microseconds = (time.perf_counter_ns() - start) / 1000
    declared = PROTOTYPES[name].arguments
    shown = ", ".join(_show(value, kind) for value, kind in zip(arguments, declared, strict=False))
    _log.debug("%s(%s) = %s [%.1f us]", name, shown, result, microseconds)


def _show(value: Any, declared: Any) -> str:
    """A value for the trace: numbers, handles and strings in full, of blocks of memory only kind and size."""
    if isinstance(value, bytes):
        return repr(value) if declared is ctypes.c_char_p else f"<{len(value)} bytes>"
    if isinstance(value, ctypes.c_void_p):
        return f"{type(value).__name__}({value.value or 0:#x})"
    target = getattr(value, "_obj", None)  # what byref() points at, with what the call wrote there
    if target is not None:
        return f"&{_show(target, None)}"
    if isinstance(value, ctypes.Structure | ctypes.Union | ctypes.Array):
        return f"<{type(value).__name__}, {ctypes.sizeof(value)} bytes>"
    if isinstance(value, Enum):
        return value.name
    return repr(value.value if isinstance(value, ctypes._SimpleCData) else value)
