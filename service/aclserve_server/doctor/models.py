"""The model repository: readable, each model's configuration, and whether its files fit the library and the chip."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from aclserve_server.doctor.findings import Finding, error, note, ok, plural, private, warning
from aclserve_server.doctor.host import Host
from aclserve_server.engine.repository import Entry, Repository
from aclserve_server.inspect import FileDescription, InspectError, describe_file, read_chip

MAX_FINDINGS = 200
MAX_READ_BYTES = 64 << 20
"""A larger ONNX file is not read: its graph would have to be taken into memory."""

_OM_MAGIC = b"IMOD"
_FAMILY = re.compile(r"Ascend(\d+(?:[PB](?=\d|$))?(?:_\d\d)?)")


def check_models(host: Host, repository: Repository, *, emulated: bool, soc_name: str) -> Iterator[Finding]:
    """All models. `soc_name` is the device's chip, "" where it is not known."""
    shown = private(host.named(repository.root.absolute()), "the model repository")
    if not host.access(repository.root, os.R_OK | os.X_OK):
        yield error(
            "models.repository",
            f"this user may not read {shown}",
            "give the server's user `r-x` on its folders and `r--` on its files",
        )
        return
    try:
        entries = [entry for entry in repository.scan() if entry.chosen]
    except (OSError, ValueError) as problem:
        words = private(problem, "see the server's log")
        yield error("models.repository", f"{shown} cannot be read: {words}", "see --model-repository")
        return
    if not entries:
        yield warning(
            "models.repository", f"{shown} holds no model", "lay models out as MODEL/VERSION/model.onnx or model.om"
        )
        return
    found = [finding for entry in entries for finding in _entry(host, entry, emulated=emulated, soc_name=soc_name)]
    kinds = Counter(finding.level for finding in found)
    broken = {finding.text.partition(":")[0] for finding in found if finding.level == "error"}
    yield ok(
        "models.repository",
        f"{shown} can be read: {plural(len(entries), 'version')} of "
        f"{plural(len({entry.name for entry in entries}), 'model')}, {len(broken)} with errors",
    )
    yield from found[:MAX_FINDINGS]
    if len(found) > MAX_FINDINGS:
        rest = ", ".join(f"{count} {level}" for level, count in sorted(kinds.items()))
        yield note("models.more", f"only {MAX_FINDINGS} findings on models are shown, of {rest}")


def _entry(host: Host, entry: Entry, *, emulated: bool, soc_name: str) -> Iterator[Finding]:
    title = f"model {entry.name} version {entry.version}"
    if entry.problem:
        yield error("models.config", f"{title}: {entry.problem}", "correct it; until then it is listed as unavailable")
        return
    for text in entry.config.notes:
        yield note("models.config", f"{title}: {text}", "take the field out of its config.pbtxt, or live without it")
    assert entry.file is not None
    if not host.access(entry.file, os.R_OK):
        yield error("models.file", f"{title}: this user may not read its file", "give the server's user `r--` on it")
        return
    try:
        yield from _file(title, entry.file, emulated=emulated, soc_name=soc_name)
    except InspectError as problem:
        yield error("models.file", f"{title}: {problem}", "copy the file again, or convert the model anew")
    except OSError as problem:
        yield error("models.file", f"{title}: its file cannot be read: {problem.strerror}", "see that it is there")


def _file(title: str, file: Path, *, emulated: bool, soc_name: str) -> Iterator[Finding]:
    size_bytes = file.stat().st_size
    with file.open("rb") as stream:
        is_om = stream.read(4) == _OM_MAGIC
    description = describe_file(file) if is_om or size_bytes <= MAX_READ_BYTES else None
    chip = read_chip(file) if is_om else ""
    if is_om and emulated:
        of = f", built for {chip}," if chip else ""
        yield error(
            "models.format",
            f"{title}: an OM file{of} runs on an NPU only, and the emulated device was chosen",
            "put the model's ONNX file there instead, or start with the CANN library as --acl-library",
        )
    elif not is_om and not emulated:
        yield error(
            "models.format",
            f"{title}: this is not an offline model (OM), and an NPU runs nothing else",
            f"`atc --framework=5 --model=model.onnx --output=model --soc_version={soc_name or '<chip>'}`",
        )
    elif is_om:
        yield from _chip(title, chip, soc_name, description)


def _chip(title: str, chip: str, soc_name: str, description: FileDescription | None) -> Iterator[Finding]:
    if description is not None and description.om is not None and description.om.encrypted:
        yield warning("models.format", f"{title}: the OM file is encrypted", "build it without encryption")
    if not chip:
        yield note("models.chip", f"{title}: its OM file does not say which chip it was built for")
    elif not soc_name:
        yield note("models.chip", f"{title}: built for {chip}; which chip the device has is not known")
    elif chip != soc_name:
        fix = f"build it anew with `atc --soc_version={soc_name}`"
        if family(chip) == family(soc_name):
            yield warning("models.chip", f"{title}: built for {chip}, the device is {soc_name} of the same family", fix)
        else:
            yield error("models.chip", f"{title}: built for {chip}, the device is {soc_name}: it will not load", fix)
    else:
        yield ok("models.chip", f"{title}: built for {chip}, as the device is")


def family(soc_name: str) -> str:
    """The part of a chip's name that its kin share: "310P" of Ascend310P3; the name itself where it is of no form."""
    found = _FAMILY.match(soc_name)
    return found[1] if found else soc_name
