"""What the outcome of opening the library and the device means, and what to do about it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from aclserve_server.acl.codes import lookup
from aclserve_server.doctor.cann import DRIVER_FOLDERS, driver_root, installation_home
from aclserve_server.doctor.findings import Finding, error, listed, note, ok, plural, private, size, warning
from aclserve_server.doctor.host import Host
from aclserve_server.doctor.probe import Outcome, function_count

SCARCE_FRACTION = 0.1
"""Free device memory, of all, below which loads are likely to fail."""

_CORE = re.compile(r"lib(ascendcl|acl_\w+|ge_\w+|graph\w*|register|runtime)\.so")
"""Libraries of CANN alone; others, such as libc_sec.so, come with the driver, on boards in the system's folders."""

_LACKS = re.compile(r"(lib[\w.+-]+\.so[\w.]*): cannot open shared object file")
_UNDEFINED = re.compile(r"undefined symbol|symbol lookup error|version `[^']+' not found")

_OTHER_PROCESS = (
    "see with `npu-smi info` whether another process or container holds the device (one NPU goes to one container "
    "only), whether this user may use /dev/davinci*, and whether driver, firmware and CANN go together"
)
_STUB = (
    "let lib64 of the CANN root stand first on LD_LIBRARY_PATH, and no folder named stub or devlib; then start again"
)
_VISIBLE = "see that ASCEND_RT_VISIBLE_DEVICES names devices that there are, and --device counts from 0 among them"

FIXES: dict[int, str] = {
    100039: _STUB,
    100000: "unset what changes aclInit's configuration, and start again",
    107001: _VISIBLE,
    207001: "end other processes on the device (`npu-smi info` lists them), or choose another with --device",
    207004: f"{_VISIBLE}; that the driver is loaded (`npu-smi info`), and the nodes are in the container",
    500000: "the chip could not be read: see that the driver is loaded (`npu-smi info`) and its nodes can be used",
    507000: _OTHER_PROCESS,
    507008: _OTHER_PROCESS,
    507033: _OTHER_PROCESS,
    507899: _OTHER_PROCESS,
}
"""What to do about codes that come when a library or a device is opened, as users met them."""


def reached(outcome: Outcome) -> bool:
    """Whether it came to a device: only then another device has an outcome of its own."""
    return outcome.opened or (outcome.ended != "" and _failed_at(outcome) == "device.open")


def check_outcomes(host: Host, outcomes: Mapping[int, Outcome], *, emulated: bool) -> Iterator[Finding]:
    """The library as opened, then each device, by number. Where there are several, the findings say which."""
    for number, (device, outcome) in enumerate(outcomes.items()):
        found = _of_device(host, outcome) if number else check_outcome(host, outcome, emulated=emulated)
        for finding in found:
            names = len(outcomes) > 1 and (number or finding.check in ("device.open", "device.memory"))
            yield replace(finding, text=f"device {device}: {finding.text}") if names else finding


def check_outcome(host: Host, outcome: Outcome, *, emulated: bool) -> Iterator[Finding]:
    """The library as opened, then the device."""
    if outcome.library:
        yield from _library(outcome, emulated=emulated)
    if outcome.count:
        chip = f" ({outcome.soc_name})" if outcome.soc_name else ""
        kind = "emulated device" if emulated else "device"
        yield ok("device.count", f"{plural(outcome.count, kind)}{chip}, run mode {outcome.run_mode}")
    elif outcome.step == "done":
        yield error("device.count", "the library knows no device", FIXES[207004])
    yield from _of_device(host, outcome)


def _of_device(host: Host, outcome: Outcome) -> Iterator[Finding]:
    if outcome.ended:
        yield _failure(host, outcome)
    if outcome.opened:
        yield ok("device.open", "the device was opened")
        yield from _memory(outcome)


def _library(outcome: Outcome, *, emulated: bool) -> Iterator[Finding]:
    known = function_count()
    has = known - len(outcome.missing)
    place = "the emulated device" if emulated else private(outcome.library, "the AscendCL library")
    versions = [f"ACL {outcome.acl_version}"] if outcome.acl_version else []
    versions += [f"CANN {outcome.cann_version}"] if outcome.cann_version else []
    told = f", {' of '.join(versions)}" if versions else ""
    yield ok("library.open", f"{place} opens: {has} of {known} functions{told}")
    if outcome.missing and not emulated:
        yield note(
            "library.functions",
            f"this CANN lacks {plural(len(outcome.missing), 'function')} that aclserve can do without: "
            f"{listed(outcome.missing, 5)}",
        )
    yield from _origins(outcome.loaded)


def _origins(loaded: tuple[str, ...]) -> Iterator[Finding]:
    """Where CANN's and the driver's libraries came from; two CANN roots at once are an error."""
    folders: dict[str, int] = {}
    for path in loaded:
        folder = str(Path(path).parent)
        folders[folder] = folders.get(folder, 0) + 1
    if not folders:
        return
    shown = listed(
        f"{count} {'library' if count == 1 else 'libraries'} from {private(folder, 'a folder')}"
        for folder, count in sorted(folders.items())
    )
    roots = {installation_home(Path(path).parent) for path in loaded if _CORE.match(Path(path).name)}
    if len(roots) > 1:
        yield error(
            "library.mixed",
            f"libraries of {len(roots)} CANN installations are loaded together: {shown}",
            "start from a clean shell, and source set_env.sh of one installation only",
        )
    else:
        yield ok("library.origins", shown)


def _failed_at(outcome: Outcome) -> str:
    """The name of the check that fails."""
    return "device.open" if outcome.step.startswith(("aclrtSet", "aclrtGetMem", "aclrtReset")) else "library.open"


def _failure(host: Host, outcome: Outcome) -> Finding:
    check = _failed_at(outcome)
    if outcome.ended == "hung":
        return error(
            check,
            f"{'the end' if outcome.step == 'done' else outcome.step} did not come in time: the library or the "
            "driver hangs",
            "see `npu-smi info` (does it hang, too?) and `dmesg`; end processes that hold the device, reset the card "
            "(`npu-smi set -t reset`) or restart the host. A slow first start gets more time with --timeout-s",
        )
    if outcome.ended != "failed":
        return error(
            check,
            f"{outcome.step} {outcome.ended}",
            "driver, CANN and processor must fit together: see the findings above; `python -X faulthandler -m "
            "aclserve_server serve` shows where",
        )
    if not outcome.call:
        return _unopened(host, check, outcome.text)
    row = lookup(outcome.code)
    told = f"{outcome.call} failed with {outcome.code} ({row.name}): {row.meaning}"
    if outcome.text:
        told += private(f" | {outcome.text}", "")
    return error("cann.stub" if outcome.code == 100039 else check, told, FIXES.get(outcome.code) or row.action)


def _unopened(host: Host, check: str, text: str) -> Finding:
    """The library could not be opened or lacks functions; `text` is the driver's own words."""
    lacks = _LACKS.search(text)
    if lacks:
        found = _find(host, lacks[1])
        fix = (
            f"put {private(host.named(found.parent), 'its folder')} on LD_LIBRARY_PATH before the start"
            if found
            else f"{lacks[1]} is nowhere in the driver's folders: install the driver, or mount it into the container"
        )
        return error(check, f"the library needs {lacks[1]}, which is on no path: {_aside(text)}", fix)
    if _UNDEFINED.search(text):
        return error(
            "cann.mixed",
            f"the library does not fit a library that it needs: {_aside(text)}",
            "two CANN installations, or driver and CANN of releases too far apart, are mixed: source set_env.sh of one "
            "only, in a clean shell",
        )
    if "functions that aclserve needs" in text:
        return error(
            "library.functions",
            f"functions that aclserve needs are missing: {_aside(text)}",
            "use CANN 5.0.3 or later, and give its own libascendcl.so",
        )
    return error(
        check,
        f"it cannot be opened: {_aside(text)}",
        "see the findings above; without an NPU: --acl-library emulator",
    )


def _aside(text: str) -> str:
    return private(text, "its own words name places of the host")


def _find(host: Host, name: str) -> Path | None:
    """Where the driver has a library of that name."""
    root = driver_root(host)
    places = [root / folder / name for folder in DRIVER_FOLDERS]
    return next((place for place in places if host.exists(place)), None)


def _memory(outcome: Outcome) -> Iterator[Finding]:
    for kind, free, total in outcome.memory:
        text = f"{size(free)} of {size(total)} {kind} are free"
        if free < total * SCARCE_FRACTION:
            yield warning("device.memory", text, FIXES[207001])
        else:
            yield ok("device.memory", text)
