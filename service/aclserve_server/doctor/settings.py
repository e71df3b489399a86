"""The options in force: where each value comes from, what cannot be used, and the files that they name."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aclserve_server.access.directory import FileError, open_directory
from aclserve_server.config import Config, ConfigError, is_loopback, options
from aclserve_server.device_list import MOST, numbers
from aclserve_server.doctor.findings import Finding, Setting, error, ok, private, warning
from aclserve_server.doctor.host import Host
from aclserve_server.doctor.probe import Request
from aclserve_server.options import origins, read

HIDDEN_METAVARS = ("FILE", "PATH", "DIR", "ADDRESS", "emulator|PATH")
"""Options of such values name a place or an address of the machine."""

FILES = ("tls_cert", "tls_key", "tls_client_ca", "principals")

ReadTls = Callable[[str, str, str], object]
"""Reads certificate, key and clients' authorities; raises OSError with words for the operator."""


@dataclass(frozen=True)
class Options:
    """Options as given: values by name, with the default where what was given cannot be used; where each comes from;
    and what is wrong with them.
    """

    values: Mapping[str, Any]
    sources: Mapping[str, str]
    problems: tuple[str, ...] = ()

    @property
    def emulated(self) -> bool:
        return bool(self.values["acl_library"] == "emulator")

    @property
    def devices(self) -> tuple[int, ...]:
        """The devices to drive: those of --devices, else that of --device."""
        with suppress(ValueError):
            if found := numbers(self.values["devices"]):
                return found[:MOST]
        return (self.values["device"],)

    def settings(self) -> tuple[Setting, ...]:
        """All of them, as for the flags."""
        return tuple(
            Setting(
                option.name,
                option.show(self.values[option.name]),
                self.sources.get(option.name, "default"),
                hidden=option.metavar in HIDDEN_METAVARS and self.values[option.name] not in ("", "emulator"),
            )
            for option in options()
        )


def options_given(namespace: argparse.Namespace, environ: Mapping[str, str]) -> Options:
    """The options of a command line and an environment, whatever is wrong with them."""
    values, problems = read(options(), namespace, environ)
    found = list(problems.values())
    try:
        Config(**values)
    except ConfigError as caught:
        found += [text for text in caught.problems if text.partition(":")[0] not in problems]
    complete = {option.name: option.default for option in options()} | values
    return Options(complete, origins(options(), namespace, environ), tuple(found))


def options_of_config(config: Config, sources: Mapping[str, str]) -> Options:
    """The options of a server that runs."""
    return Options({option.name: getattr(config, option.name) for option in options()}, sources)


def request_for(given: Options, device: int, *, open_device: bool) -> Request:
    """What the probe is to open for these options; without `open_device` only what needs no device."""
    values = given.values
    opened = device if open_device else None
    if not given.emulated:
        return Request(values["acl_library"], None, opened)
    machine = {
        "run_mode": values["emulator_run_mode"],
        "memory_bytes": values["emulator_memory_bytes"],
        "profile": values["emulator_profile"],
        "device_count": max(given.devices) + 1,
    }
    return Request("", machine, opened)


def check_options(host: Host, given: Options, read_tls: ReadTls) -> Iterator[Finding]:
    """What is wrong with the options themselves, with their files, and what they open to strangers."""
    for text in given.problems:
        flag, _, rest = text.partition(":")
        what, split, fix = rest.rpartition(": ")
        rest, fix = (what, fix) if split else (rest, "")
        told = private(rest.strip(), "its value cannot be used")
        yield error("options.value", f"{flag}: {told}", private(fix, "see the option's help") if fix else "see --help")
    if not given.problems:
        yield ok("options.value", "all options can be used")
    yield from _files(host, given.values, read_tls)
    yield from _exposure(given.values)


def _files(host: Host, values: Mapping[str, Any], read_tls: ReadTls) -> Iterator[Finding]:
    readable = set()
    for name in FILES:
        path = values[name]
        if not path:
            continue
        flag, shown = "--" + name.replace("_", "-"), private(path, "its file")
        if not host.access(Path(path), os.R_OK):
            there = "may not be read by this user" if Path(path).exists() else "is not there"
            yield error("options.file", f"{flag}: {shown} {there}", "give another file, or its rights to the user")
        else:
            readable.add(name)
    tls = {name for name in FILES[:3] if values[name]}
    if {"tls_cert", "tls_key"} <= tls <= readable:
        yield _tried(
            "options.tls", "certificate and key fit together", lambda: read_tls(*(values[name] for name in FILES[:3]))
        )
        yield from _key_mode(Path(values["tls_key"]))
    if "principals" in readable:
        file = str(values["principals"])
        yield _tried("options.principals", "the file of principals can be used", lambda: open_directory(file))


def _tried(check: str, text: str, attempt: Callable[[], object]) -> Finding:
    try:
        attempt()
    except (FileError, OSError, ValueError) as problem:
        return error(
            check, private(problem, "a file cannot be used"), "correct the file; a server that runs reads it again"
        )
    return ok(check, text)


def _key_mode(key: Path) -> Iterator[Finding]:
    try:
        mode = key.stat().st_mode
    except OSError:
        return
    if mode & 0o004:
        yield warning("options.tls", "every user of the host may read the private key", "`chmod o-r` it")


def _exposure(values: Mapping[str, Any]) -> Iterator[Finding]:
    if is_loopback(values["host"]) or values["principals"] or values["tls_client_ca"]:
        return
    yield warning(
        "options.exposure",
        "the server listens beyond this host, and everybody who reaches it may run models",
        "name who may call with --principals, or ask for client certificates with --tls-client-ca",
    )
