"""Whether the server's ports and its socket are free, told without binding or connecting to anything.

The kernel's table of sockets says who listens; so a server that runs, or one that starts just now, is not disturbed.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aclserve_server.doctor.findings import Finding, error, note, ok, private, warning
from aclserve_server.doctor.host import Host
from aclserve_server.unix_socket import MAX_PATH_BYTES

PORTS = ("port", "metrics_port", "health_port")
MAX_PROCESSES = 20_000
MAX_FILES = 100_000

_LISTEN = "0A"
_SOCKET = re.compile(r"socket:\[(\d+)\]")
Address = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True, slots=True)
class Listener:
    """A socket that listens. `inode` is how processes name it."""

    address: Address
    port: int
    inode: int


@dataclass(frozen=True, slots=True)
class Process:
    """Who holds a socket. `is_server`: it is an `aclserve serve`."""

    pid: int
    name: str
    is_server: bool


def check_ports(host: Host, values: Mapping[str, Any], devices: Sequence[int]) -> Iterator[Finding]:
    """The options' ports and Unix domain sockets. `values` are the options' values by name, `devices` all of them."""
    listeners = list(read_listeners(host))
    known = host.exists("/proc/net/tcp")
    for name in PORTS:
        port = int(values[name])
        flag = "--" + name.replace("_", "-")
        if not port:
            if name != "health_port":
                yield ok(f"ports.{name}", f"{flag} is 0: the server picks a free one")
        elif not known:
            yield note(f"ports.{name}", f"whether {flag} {port} is free cannot be told here")
        else:
            yield _port(host, name, flag, port, [one for one in listeners if _meets(one, values["host"], port)])
    first = int(values["worker_port"])
    for device in devices if first and known else ():
        takers = [one for one in listeners if _meets(one, values["host"], first + device)]
        told = f"port {first + device} of device {device} (--worker-port)"
        yield _port(host, "worker_port", "--worker-port", first + device, takers, told)
    if path := values["unix_socket"]:
        for each in [f"{path}.{device}" for device in devices] if values["devices"] else [path]:
            yield _unix_socket(host, Path(each).absolute())


def read_listeners(host: Host) -> Iterator[Listener]:
    """All TCP sockets of this network namespace that listen."""
    for file in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in (host.text(file) or "").splitlines()[1:]:
            cells = line.split()
            if len(cells) > 9 and cells[3] == _LISTEN:
                address, _, port = cells[1].partition(":")
                yield Listener(_address(address), int(port, 16), int(cells[9]))


def _address(text: str) -> Address:
    """The kernel writes addresses as words of 32 bits in the order of the machine, which is little-endian here."""
    raw = bytes.fromhex(text)
    raw = b"".join(raw[at : at + 4][::-1] for at in range(0, len(raw), 4))
    address = ipaddress.ip_address(raw)
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def _meets(listener: Listener, wanted: str, port: int) -> bool:
    """Whether a listener keeps a server from listening on an address; a name counts as any address."""
    if listener.port != port:
        return False
    try:
        address = ipaddress.ip_address("127.0.0.1" if wanted == "localhost" else wanted)
    except ValueError:
        return True
    if listener.address.is_unspecified or address.is_unspecified:
        return listener.address.version == address.version or 6 in _unspecified(listener.address, address)
    return listener.address == address


def _unspecified(*addresses: Address) -> set[int]:
    """Versions of the wildcards among the addresses: that of IPv6 takes IPv4 as well."""
    return {address.version for address in addresses if address.is_unspecified}


def _port(host: Host, name: str, flag: str, port: int, takers: list[Listener], told: str = "") -> Finding:
    check, told = f"ports.{name}", told or f"{flag} {port}"
    if not takers:
        start = (host.text("/proc/sys/net/ipv4/ip_unprivileged_port_start") or "1024").strip()
        if start.isdecimal() and port < int(start) and host.user != "root":
            return warning(check, f"{told} needs a privilege of its own", f"choose a port from {start} on")
        return ok(check, f"{told} is free")
    process = owner(host, {taker.inode for taker in takers})
    if process is None:
        who = "another user's process or another container"
    else:
        who = private(f"{process.name}, process {process.pid}", "another process")
    if process is not None and process.is_server:
        return note(check, f"{told}: an aclserve listens there already ({who})", f"for a second one: {flag} 0")
    return error(
        check, f"{told} is taken by {who}", f"end it (`ss -ltnp sport = :{port}`), or give another port; 0 picks"
    )


def owner(host: Host, inodes: set[int]) -> Process | None:
    """The process that holds one of the sockets, where this user may see it."""
    left = MAX_FILES
    for name in [name for name in host.names("/proc") if name.isdecimal()][:MAX_PROCESSES]:
        for descriptor in host.names(f"/proc/{name}/fd")[:left]:
            left -= 1
            try:
                target = os.readlink(host.at(f"/proc/{name}/fd/{descriptor}"))
            except OSError:
                continue
            found = _SOCKET.fullmatch(target)
            if found and int(found[1]) in inodes:
                return _process(host, name)
    return None


def _process(host: Host, pid: str) -> Process:
    words = [word for word in (host.text(f"/proc/{pid}/cmdline") or "").split("\0") if word]
    programs = {Path(word).name for word in words[:4]}
    is_server = "serve" in words and bool(programs & {"aclserve", "aclserve_server"})
    return Process(int(pid), (host.text(f"/proc/{pid}/comm") or "a process").strip(), is_server)


def _unix_socket(host: Host, path: Path) -> Finding:
    check, shown = "ports.unix_socket", private(path, "the socket's path")
    length = len(os.fsencode(path))
    if length > MAX_PATH_BYTES:
        return error(check, f"{shown} has {length} bytes, at most {MAX_PATH_BYTES} go", "choose a shorter path")
    folder = host.at(path.parent)
    if not folder.is_dir():
        return error(check, f"the folder of {shown} is not there", "make it, for the server's user alone")
    if not host.access(folder, os.W_OK | os.X_OK):
        return error(check, f"this user may not write in the folder of {shown}", "give it to the server's user")
    place = host.at(path)
    if place.exists() and not place.is_socket():
        return error(check, f"{shown} is there already and is no socket", "choose another path")
    return ok(check, f"{shown} can be used")
