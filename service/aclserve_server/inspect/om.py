"""Reads the head of an Ascend `.om` file: its 256-byte header and its partition tables, never the partitions.

Layout as GE's loader reads it (framework/common/types.h of graphengine and its history): little-endian, a fixed header,
then per model one partition table with its partitions. The header does not say which chip the model was built for.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from aclserve_server.inspect.problem import InspectError, counted

MAGIC = b"IMOD"
HEADER_BYTES = 256

_FLAGS = struct.Struct("<4B")  # encrypted, checksum kind, model type, generation mode; from byte 80
_MAX_FLOW_PARTITIONS = 4096
_MAX_PARTITIONS = 128
"""GE's loader takes "a small number"; 27 types are known, and none is there twice except in a flow model."""
_MAX_MODELS = 4096

_DEFINITION = 0
_MAX_DEFINITION_BYTES = 64 << 20
_CHIP = re.compile(rb"\x0a\x0bsoc_version\x12([\x03-\x42])\x12([\x01-\x40])([A-Za-z0-9_]{1,64})")
"""An entry of the attributes' map: the key, then an attribute whose field 2 is the text."""

MODEL_TYPES = {0: "IR", 1: "standard", 2: "tiny", 3: "flow", 4: "lite", 5: "bundle"}
_FLOW = 3

PARTITION_TYPES = {
    0: "model definition",
    1: "weights",
    2: "task information",
    3: "TBE kernels",
    4: "custom AI CPU kernels",
    5: "shared objects",
    6: "flow model",
    7: "flow submodel",
    8: "model input and output information",
    9: "static task description",
    10: "dynamic task description",
    11: "task parameters",
    12: "tiling data",
    20: "pre-built model description",
    21: "pre-built SQE",
    22: "pre-built kernel arguments",
    23: "pre-built extended description",
    24: "bundle model information",
    25: "bundle variable information",
    26: "custom operators",
}


@dataclass(frozen=True, slots=True)
class OmPartition:
    """One partition: `type` and its name ("unknown" for types newer than this program), where it lies in the file."""

    type: int
    name: str
    offset_bytes: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class OmFile:
    """What the header and the tables say. `tables` has one tuple of partitions per model. Lengths are bytes."""

    name: str
    header_version: int
    model_type: int
    model_type_name: str
    model_count: int
    dynamic: bool
    encrypted: bool
    has_checksum: bool
    generation_mode: str
    om_ir_version: int
    ops_kops: int
    platform_version: str
    platform_type: int
    user_defined: str
    check_os_and_cpu: bool
    payload_bytes: int
    table_form: str
    tables: tuple[tuple[OmPartition, ...], ...]
    notes: tuple[str, ...]


def read_om(path: Path) -> OmFile:
    """Reads the head of an OM file; InspectError where GE's loader would refuse it, OSError where it cannot be read."""
    size_bytes = path.stat().st_size
    with path.open("rb") as file:
        header = file.read(HEADER_BYTES)
        payload_bytes = _checked_payload(header, size_bytes)
        return _describe(file, header, payload_bytes)


def read_chip(path: Path) -> str:
    """The chip that `atc` built an OM file for, such as "Ascend310P3", or "" where the file does not say.

    It is an attribute of the model, `soc_version`, in the first partition of the model's definition. Raises as
    `read_om` does.
    """
    om = read_om(path)
    definitions = [part for table in om.tables for part in table if part.type == _DEFINITION]
    if not definitions or om.encrypted:
        return ""
    with path.open("rb") as file:
        file.seek(definitions[0].offset_bytes)
        content = file.read(min(definitions[0].size_bytes, _MAX_DEFINITION_BYTES))
    for match in _CHIP.finditer(content):
        entry, value, text = match[1][0], match[2][0], match[3]
        if entry == value + 2 and value <= len(text):
            return text[:value].decode("ascii")
    return ""


def _checked_payload(header: bytes, size_bytes: int) -> int:
    """The payload's length, after the checks that the loader makes on the header."""
    if header[:4] != MAGIC[: len(header)] or not header:
        raise InspectError(f"not an OM file: it begins with {header[:4]!r}, an OM file with {MAGIC!r}")
    if len(header) < HEADER_BYTES:
        raise InspectError(
            f"the OM file is cut short: it has {counted(size_bytes, 'byte')}, the header alone {HEADER_BYTES}"
        )
    stated_header = _u32(header, 4)
    if stated_header != HEADER_BYTES:
        raise InspectError(
            f"not an OM file: it begins with {MAGIC!r}, but its header size field says {stated_header} instead of "
            f"{HEADER_BYTES} (files of the IMOD image program begin with the same letters)"
        )
    length = _model_length(header) or _u32(header, 76)
    actual = size_bytes - HEADER_BYTES
    if length != actual:
        state = "cut short" if actual < length else "longer than it says"
        raise InspectError(
            f"the OM file is {state}: its header states {length} bytes after the header, the file has {actual}"
        )
    return length


def _describe(file: BinaryIO, header: bytes, payload_bytes: int) -> OmFile:
    version = _u32(header, 8)
    first = _is_first_version(version)
    encrypted, unchecked, model_type, online = _FLAGS.unpack_from(header, 80)
    model_count = 1 if first else _u32(header, 156)
    wide = _model_length(header) != 0 or model_type == _FLOW
    platform = 156 if first else 160
    notes: list[str] = []
    if model_count < 1 or model_count > _MAX_MODELS:
        raise InspectError(f"the OM header states {model_count} models; expected 1 to {_MAX_MODELS}")
    tables, end = _read_tables(file, payload_bytes, 1 if model_type == _FLOW else model_count, wide, model_type, notes)
    left = payload_bytes - end
    if left and len(tables) > 1:
        raise InspectError(f"the OM file's {len(tables)} models end {counted(left, 'byte')} before the end of the file")
    if left:
        notes.append(f"{counted(left, 'byte')} after the last partition")
    return OmFile(
        name=_text(header[84:116]),
        header_version=version,
        model_type=model_type,
        model_type_name=MODEL_TYPES.get(model_type, "unknown"),
        model_count=model_count,
        dynamic=not first and (model_count > 1 or header[193] == 1),
        encrypted=encrypted == 1,
        has_checksum=unchecked == 0 and any(header[12:76]),
        generation_mode="online" if online == 1 else "offline",
        om_ir_version=_u32(header, 152),
        ops_kops=_u32(header, 116),
        platform_version=_text(header[platform : platform + 20]),
        platform_type=header[platform + 20],
        user_defined=_text(header[120:152]),
        check_os_and_cpu=not first and header[192] == 1,
        payload_bytes=payload_bytes,
        table_form="wide" if wide else "narrow",
        tables=tables,
        notes=tuple(notes),
    )


def _read_tables(
    file: BinaryIO, payload_bytes: int, count: int, wide: bool, model_type: int, notes: list[str]
) -> tuple[tuple[tuple[OmPartition, ...], ...], int]:
    """All tables, and where the last partition ends in the payload."""
    limit = _MAX_FLOW_PARTITIONS if model_type == _FLOW else _MAX_PARTITIONS
    head = struct.Struct("<II" if wide else "<I")
    entry = struct.Struct("<IIQQ" if wide else "<III")
    tables: list[tuple[OmPartition, ...]] = []
    position = 0
    for index in range(count):
        table = f"partition table {index + 1} of {count}"
        start = position + head.size
        if start > payload_bytes:
            raise InspectError(f"the OM file is cut short: {table} would begin past its end")
        file.seek(HEADER_BYTES + position)
        (entries,) = struct.unpack_from("<I", file.read(head.size))
        if entries > limit:
            raise InspectError(f"{table} states {entries} partitions; expected at most {limit}")
        start += entries * entry.size
        if start > payload_bytes:
            raise InspectError(f"the OM file is cut short: {table} with {entries} partitions reaches past its end")
        rows = [entry.unpack(row) for row in _rows(file.read(entries * entry.size), entry.size)]
        partitions, position = _partitions(rows, start, payload_bytes, table, notes)
        tables.append(partitions)
    return tuple(tables), position


def _rows(data: bytes, size: int) -> list[bytes]:
    return [data[start : start + size] for start in range(0, len(data), size)]


def _partitions(
    rows: list[tuple[int, ...]], start: int, payload_bytes: int, table: str, notes: list[str]
) -> tuple[tuple[OmPartition, ...], int]:
    """The partitions of one table; their places are the running sum of sizes, as in GE's loader."""
    found: list[OmPartition] = []
    position = start
    for number, row in enumerate(rows, 1):
        kind, offset, size = row[0], row[-2], row[-1]
        name = PARTITION_TYPES.get(kind, "unknown")
        if position + size > payload_bytes:
            raise InspectError(
                f"partition {number} ({name}, type {kind}, {counted(size, 'byte')}) in {table} reaches "
                f"{counted(position + size - payload_bytes, 'byte')} past the end of the file"
            )
        if offset != position - start:
            notes.append(f"{table}: partition {number} states offset {offset}, but lies at {position - start}")
        found.append(OmPartition(kind, name, HEADER_BYTES + position, size))
        position += size
    return tuple(found), position


def _is_first_version(version: int) -> bool:
    """Version 1 (0x10000000) has no model count: other fields lie where later versions have it."""
    return version < 0x20000000


def _model_length(header: bytes) -> int:
    """The 64-bit payload length; 0 in files older than the field."""
    return 0 if _is_first_version(_u32(header, 8)) else int.from_bytes(header[184:192], "little")


def _u32(header: bytes, offset: int) -> int:
    return int.from_bytes(header[offset : offset + 4], "little")


def _text(field: bytes) -> str:
    """A text field: up to its first NUL, or whole."""
    return field.split(b"\0", 1)[0].decode("utf-8", "backslashreplace")
