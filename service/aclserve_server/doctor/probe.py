"""Opens the library and the device in a process of its own, which may hang, crash or be killed without harm.

The child, `python -m aclserve_server.doctor.probe`, gets one JSON document on its standard input and tells each step
before it takes it, so that the parent knows where it ended. Whatever the library prints goes nowhere.
"""

from __future__ import annotations

import json
import os
import re
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from aclserve.errors import AclserveError
from aclserve_server.acl.abi import PROTOTYPES
from aclserve_server.acl.errors import AclError, LibraryError
from aclserve_server.acl.library import Library, open_library
from aclserve_server.acl.types import aclrtMemAttr
from aclserve_server.device.device import Device
from aclserve_server.device.runtime import Runtime

KILLED_S = 2.0
"""How long a killed child may take to go: one that hangs in the driver may never, and is left behind."""

START_S = 60.0
"""How long a child may take until its first step: Python and its modules, on a busy machine."""

MAX_LOADED = 500
MAX_SAID_BYTES = 4 << 20

Tell = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Outcome:
    """What became of the library and the device. Fields that were not reached are empty.

    `step` is the last call that was begun, `ended` "" where all went well, else "failed" (see `call` to `text`),
    "hung", or how the process died. `memory` has kind, free and total bytes.
    """

    step: str = ""
    ended: str = ""
    library: str = ""
    missing: tuple[str, ...] = ()
    loaded: tuple[str, ...] = ()
    acl_version: str = ""
    cann_version: str = ""
    run_mode: str = ""
    count: int = 0
    soc_name: str = ""
    opened: bool = False
    memory: tuple[tuple[str, int, int], ...] = ()
    call: str = ""
    code: int = 0
    text: str = ""


@dataclass(frozen=True)
class Request:
    """What the child is to open. `library` "" searches; `emulator` holds fields of `EmulatorConfig`, for the emulated
    device. `device` None only asks what needs no device.
    """

    library: str = ""
    emulator: Mapping[str, Any] | None = None
    device: int | None = 0


def run(request: Request, environ: Mapping[str, str], timeout_s: float) -> Outcome:
    """Opens in a child, with `environ` as its environment. A step may take `timeout_s`; then the child is killed.

    Never call this in a process that has opened AscendCL: it does not survive the fork.
    """
    try:
        child = _start(request, environ)
    except OSError as error:
        return Outcome(step="starting a process", ended="failed", text=str(error))
    assert child.stdout is not None
    with child.stdout as pipe:
        output, is_over = _listen(pipe.fileno(), timeout_s)
        code = _end(child, timeout_s if is_over else 0.0)
    if not is_over or code is None:
        return _collect(output, "hung")
    return _collect(output, "" if code == 0 else _death(code))


def _start(request: Request, environ: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """The child, in a session of its own; its request is a file, so that nobody waits until it is read."""
    with tempfile.TemporaryFile() as document:
        document.write(json.dumps({**asdict(request), "environ": dict(environ)}).encode())
        document.seek(0)
        return subprocess.Popen(  # noqa: S603 (this program)
            [sys.executable, "-m", __name__],
            stdin=document,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=dict(environ),
            start_new_session=True,
        )


def _listen(pipe: int, timeout_s: float) -> tuple[bytes, bool]:
    """What a child says until it closes its end, or says nothing for too long; and whether it came to its end."""
    said = b""
    patience = START_S
    while len(said) < MAX_SAID_BYTES and select.select([pipe], [], [], patience)[0]:
        chunk = os.read(pipe, 1 << 16)
        if not chunk:
            return said, True
        said += chunk
        patience = timeout_s
    return said, False


def _end(child: subprocess.Popen[bytes], patience_s: float) -> int | None:
    """The exit code of a child, once it has ended by itself; after that time it is killed, with what it started."""
    with suppress(subprocess.TimeoutExpired):
        return child.wait(patience_s)
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    with suppress(subprocess.TimeoutExpired):
        child.wait(KILLED_S)
    return None


def _death(code: int) -> str:
    names = {known.value: known.name for known in signal.Signals}
    return f"died of {names.get(-code, f'signal {-code}')}" if code < 0 else f"ended with code {code}"


def _collect(output: bytes, ended: str) -> Outcome:
    facts: dict[str, Any] = {}
    for line in output.splitlines():
        with suppress(ValueError):
            told = json.loads(line)
            if isinstance(told, dict):
                facts |= told
    known = Outcome.__dataclass_fields__
    facts = {name: value for name, value in facts.items() if name in known}
    for name in ("missing", "loaded"):
        facts[name] = tuple(facts.get(name, ()))
    facts["memory"] = tuple((str(kind), int(free), int(total)) for kind, free, total in facts.get("memory", ()))
    return Outcome(**{**facts, "ended": ended or facts.get("ended", "")})


def examine(make: Callable[[], Library], device: int | None, tell: Tell) -> None:
    """Opens a library, AscendCL and, unless it is None, the device; closes all again. Tells what it does and finds.

    What fails is told, not raised.
    """
    try:
        _examine(make, device, tell)
    except AclError as error:
        tell({"ended": "failed", "call": error.call, "code": error.code, "text": _words(error.hint, error.text)})
    except (LibraryError, AclserveError, OSError) as error:
        tell({"ended": "failed", "text": str(error)})


def _examine(make: Callable[[], Library], device: int | None, tell: Tell) -> None:
    tell({"step": "opening the library"})
    library = make()
    tell({"library": library.path, "missing": sorted(library.missing)})
    tell({"loaded": loaded_libraries(), "step": "aclInit"})
    with Runtime.open(library) as runtime:
        tell({"run_mode": runtime.run_mode, "step": "aclrtGetVersion"})
        tell({"acl_version": runtime.acl_version(), "cann_version": runtime.cann_version()})
        tell({"step": "aclrtGetDeviceCount"})
        tell({"count": runtime.device_count(), "soc_name": runtime.soc_name()})
        if device is not None:
            tell({"step": "aclrtSetDevice"})
            with Device.open(runtime, device) as opened:
                tell({"opened": True, "step": "aclrtGetMemInfo"})
                tell({"memory": memory_of(opened), "loaded": loaded_libraries(), "step": "aclrtResetDevice"})
        tell({"step": "aclFinalize"})
    tell({"step": "done"})


def memory_of(device: Device) -> list[tuple[str, int, int]]:
    """The two kinds that matter, where the chip has them: free and total bytes."""
    found = []
    for attribute in (aclrtMemAttr.ACL_DDR_MEM, aclrtMemAttr.ACL_HBM_MEM):
        free, total = device.memory_info(attribute)
        if total:
            found.append((attribute.name.removeprefix("ACL_").removesuffix("_MEM"), free, total))
    return found


def loaded_libraries(maps: str = "/proc/self/maps") -> list[str]:
    """The shared libraries of this process that are not the system's or Python's own."""
    try:
        with open(maps, encoding="utf-8", errors="replace") as file:
            paths = {line[line.index("/") :].strip() for line in file if "/" in line}
    except OSError:
        return []
    return sorted(path for path in paths if is_vendors(path))[:MAX_LOADED]


_VENDORS = re.compile(
    r"lib(ascend|acl|runtime|hccl|ge_|graph|register|error_manager|slog|alog|mmpa|msprof|profapi|c_sec|te_fusion|"
    r"platform|opp|adump|exe_graph|metadef|davinci|drv|dcmi|tsdclient|unified_dlog)[\w-]*\.so(\.[\d.]+)?"
)


def is_vendors(path: str) -> bool:
    """Whether a library's name is one of CANN's or the driver's."""
    return _VENDORS.fullmatch(os.path.basename(path)) is not None


def function_count() -> int:
    """How many functions of AscendCL this program knows."""
    return len(PROTOTYPES)


def _words(*texts: str) -> str:
    return " | ".join(filter(None, texts))


def main() -> int:
    """The child. Standard output is kept for the parent: the library gets the null device instead."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    request = json.load(sys.stdin)

    def tell(facts: dict[str, Any]) -> None:
        print(json.dumps(facts), file=out, flush=True)

    emulator = request["emulator"]
    if emulator is None:
        examine(lambda: open_library(request["library"] or None, request["environ"]), request["device"], tell)
    else:
        from aclserve_server.emulator import Emulator, EmulatorConfig  # takes a second, and a real library needs none

        with Emulator(EmulatorConfig(**emulator)) as emulated:
            make = lambda: Library.from_addresses("emulator", emulated.addresses())  # noqa: E731
            examine(make, request["device"], tell)
    out.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
