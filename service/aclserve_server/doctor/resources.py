"""What the host gives the server: memory, shared memory, open files."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from aclserve_server.doctor.findings import Finding, error, note, ok, size, warning
from aclserve_server.doctor.host import Host

MIB = 1 << 20
SCARCE_BYTES = 512 * MIB
"""Available memory below which a server and a model hardly fit."""

SHM_BYTES = 256 * MIB
"""Shared memory below which few frames of several clients fit: Docker and Kubernetes give 64 MiB by themselves."""

FILES_ERROR, FILES_WARNING, FILES_NOTE = 256, 1024, 4096
"""Open files: below the first a server with a few clients fails, below the last one with many."""

_CGROUPS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)
_MORE_MEMORY = "end what else uses it, give the container more (`docker run --memory`, resources.limits.memory)"


def check_resources(host: Host, values: Mapping[str, Any], *, emulated: bool) -> Iterator[Finding]:
    """Memory, /dev/shm and the limit of open files. `values` are the options' values by name."""
    yield from _memory(host, int(values["emulator_memory_bytes"]) if emulated else 0)
    yield _shared_memory(host, wanted=bool(values["system_shared_memory"]))
    yield _files(host)


def _memory(host: Host, device_bytes: int) -> Iterator[Finding]:
    found = dict(re.findall(r"^(\w+):\s+(\d+) kB$", host.text("/proc/meminfo") or "", re.MULTILINE))
    if "MemAvailable" not in found:
        yield note("memory.available", "how much memory is available cannot be told here")
        return
    available, total = int(found["MemAvailable"]) << 10, int(found.get("MemTotal", "0")) << 10
    bound = _cgroup(host)
    whose = "the host"
    if bound is not None and bound[0] < total:
        total, whose = bound[0], "the container"
        available = min(available, max(0, bound[0] - bound[1]))
    text = f"{size(available)} of {size(total)} of {whose} are available"
    if available < SCARCE_BYTES:
        yield warning("memory.available", text, f"{_MORE_MEMORY}, or lower --slots and the --max-...-bytes options")
    else:
        yield ok("memory.available", text)
    if device_bytes > available:
        yield note(
            "memory.emulated",
            f"the emulated device may grow to {size(device_bytes)}, which is more than is available",
            f"give --emulator-memory-bytes a value below {available // MIB}MiB",
        )


def _cgroup(host: Host) -> tuple[int, int] | None:
    """The container's limit and what it uses, in bytes; None without a limit."""
    for limit, use in _CGROUPS:
        most, used = (host.text(limit) or "").strip(), (host.text(use) or "").strip()
        if most.isdecimal():
            return int(most), int(used) if used.isdecimal() else 0
    return None


def _shared_memory(host: Host, *, wanted: bool) -> Finding:
    check = "shared_memory.size"
    purpose = "--system-shared-memory is on" if wanted else "--system-shared-memory is off"
    try:
        space = host.space(host.at("/dev/shm"))  # noqa: S108 (only measured)
    except OSError:
        if not wanted:
            return ok(check, f"there is no /dev/shm, and nothing needs it: {purpose}")
        return error(check, f"there is no /dev/shm, and {purpose}", "mount a tmpfs there, or turn the option off")
    text = f"{size(space.free_bytes)} of {size(space.total_bytes)} in /dev/shm are free; {purpose}"
    if wanted and (space.total_bytes < SHM_BYTES or space.free_bytes < SHM_BYTES // 8):
        return warning(
            check,
            f"{text}: a client whose region does not fit dies of SIGBUS",
            "`docker run --shm-size=1g`, `--ipc=host`, in Kubernetes an emptyDir of medium Memory, on a host "
            "`mount -o remount,size=1g /dev/shm`; remove what dead clients left there",
        )
    return ok(check, text)


def _files(host: Host) -> Finding:
    check = "limits.open_files"
    found = re.search(r"^Max open files\s+(\w+)\s+(\w+)", host.text("/proc/self/limits") or "", re.MULTILINE)
    if found is None:
        return note(check, "the limit of open files cannot be told here")
    soft = int(found[1]) if found[1].isdecimal() else 1 << 63
    text = f"this process may open {found[1]} files (at most {found[2]}); each connection and each region is one"
    fix = (
        "`ulimit -n 65536` before the start, LimitNOFILE=65536 in the systemd unit, `docker run --ulimit "
        "nofile=65536`; a higher hard limit goes into /etc/security/limits.conf"
    )
    if soft < FILES_ERROR:
        return error(check, text, fix)
    if soft < FILES_WARNING:
        return warning(check, text, fix)
    return note(check, text, fix) if soft < FILES_NOTE else ok(check, text)
