"""The device nodes: which there are, whether this user may use them, and which the environment lets through."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence

from aclserve_server.doctor.cann import DRIVER_INFO
from aclserve_server.doctor.findings import Finding, error, listed, ok, plural, private, warning
from aclserve_server.doctor.host import Host, field

VISIBLE = "ASCEND_RT_VISIBLE_DEVICES"
CONTAINER_VISIBLE = "ASCEND_VISIBLE_DEVICES"

MANAGERS = ("davinci_manager", "davinci_manager_docker")
HELPERS = (("devmm_svm", "svm0"), ("hisi_hdc",))
"""What a device needs besides its own node: one name of each group. svm0 is that of the boards."""

_NODE = re.compile(r"v?davinci(\d+)")


def device_nodes(host: Host) -> list[int]:
    """The numbers of the devices' nodes, in order; virtual devices count."""
    return [number for number, _ in _nodes(host)]


def check_nodes(host: Host, devices: Sequence[int], flag: str = "--device") -> Iterator[Finding]:
    """The nodes, their permissions, and the variables that choose among them. `devices` are those that `flag` names."""
    numbers = device_nodes(host)
    if not numbers:
        yield error("nodes.devices", "there is no /dev/davinciN: no NPU is visible here", _missing(host, "davinci0"))
    else:
        yield ok("nodes.devices", f"{plural(len(numbers), 'device node')}: {listed(name for _, name in _nodes(host))}")
    names = set(host.names("/dev"))
    for group in (MANAGERS, *HELPERS):
        if numbers and not names & set(group):
            yield error(
                "nodes.helpers", f"there is no /dev/{group[0]}, which every device needs", _missing(host, group[0])
            )
    yield from _permissions(host, [name for _, name in _nodes(host)])
    yield from _visible(host, numbers, devices, flag)


def _nodes(host: Host) -> list[tuple[int, str]]:
    """Number and name of each device's node, in order."""
    return sorted((int(found[1]), found[0]) for found in map(_NODE.fullmatch, host.names("/dev")) if found)


def _missing(host: Host, name: str) -> str:
    if host.in_container:
        return (
            f"start the container with --device /dev/{name} (and davinci_manager, devmm_svm, hisi_hdc), or with "
            "--runtime=ascend and ASCEND_VISIBLE_DEVICES; in Kubernetes ask for huawei.com/Ascend... resources"
        )
    return (
        "see that the driver is loaded (`npu-smi info`, `lsmod | grep drv_`) and the card is there (`lspci | grep d1`)"
    )


def _permissions(host: Host, devices: list[str]) -> Iterator[Finding]:
    others = {name for group in (MANAGERS, *HELPERS) for name in group}
    names = [*devices, *(name for name in host.names("/dev") if name in others)]
    closed = [name for name in names if not host.access(host.at(f"/dev/{name}"), os.R_OK | os.W_OK)]
    if not closed:
        if names:
            yield ok("nodes.permission", "this user may read and write all of them")
        return
    group = _group(host, f"/dev/{closed[0]}")
    user = private(host.user or "USER", "the server's user")
    yield error(
        "nodes.permission",
        f"{user} may not read and write {listed(f'/dev/{name}' for name in closed)}",
        f"`sudo usermod -aG {private(group, 'the group of the nodes')} {user}` and log in again; in a container "
        "`--group-add` that group's number, or run as its user",
    )


def _group(host: Host, path: str) -> str:
    """The name of the group that a node belongs to; else the one that the driver's installer wrote down."""
    try:
        number = host.at(path).stat().st_gid
    except OSError:
        number = -1
    for line in (host.text("/etc/group") or "").splitlines():
        cells = line.split(":")
        if len(cells) > 2 and cells[2] == str(number) and number:
            return cells[0]
    return field(host.text(DRIVER_INFO), "UserGroup") or "HwHiAiUser"


def _visible(host: Host, numbers: list[int], devices: Sequence[int], flag: str) -> Iterator[Finding]:
    check = "nodes.visible"
    if host.environ.get(CONTAINER_VISIBLE, "").strip() == "void":
        yield warning(
            check,
            f"{CONTAINER_VISIBLE} is void: the Ascend container runtime gives this container no device",
            f"start the container with {CONTAINER_VISIBLE}=0, or another list",
        )
    text = host.environ.get(VISIBLE)
    if text is None:
        count = len(numbers)
    else:
        problem, chosen = _parse(text, numbers)
        if problem:
            words = private(f"{VISIBLE}={text!r}: {problem}", f"{VISIBLE}: {problem}")
            yield (warning if chosen else error)(
                check, words, f"give ids in ascending order without blanks, such as {VISIBLE}=0,1, or unset it"
            )
        else:
            yield ok(check, f"{VISIBLE} lets {plural(len(chosen), 'device')} through, counted from 0 anew")
        count = len(chosen)
    beyond = [device for device in devices if device >= count]
    if numbers and beyond:
        yield error(
            "nodes.chosen",
            f"{flag} names {listed(beyond)}, and this process may use {plural(count, 'device')}",
            f"give {flag} numbers below {count}" if count else f"correct {VISIBLE}",
        )


def _parse(text: str, numbers: list[int]) -> tuple[str, list[int]]:
    """What is wrong with the variable, and the ids that count: the runtime stops reading at the first bad one."""
    chosen: list[int] = []
    if not text:
        return "it is empty, and what that means is not documented", [*range(len(numbers))]
    for part in text.split(","):
        if not part.isdecimal() or not part.isascii():
            return f"{part!r} is no number, and the rest is not read", chosen
        number = int(part)
        if chosen and number <= chosen[-1]:
            return "the ids do not ascend, which is an error", []
        if numbers and number >= len(numbers):
            return f"there is no device {number}, and the rest is not read", chosen
        chosen.append(number)
    return "", chosen
