"""One description for both formats, as JSON and as text."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from aclserve_server.inspect.om import MAGIC, OmFile, read_om
from aclserve_server.inspect.onnx import OnnxFile, OnnxTensor, read_onnx
from aclserve_server.inspect.problem import InspectError

_MAX_TEXT = 200


@dataclass(frozen=True, slots=True)
class FileDescription:
    """A model file: `format` is "om" or "onnx", and the field of that name is set. `file` is its name, no folders."""

    file: str
    size_bytes: int
    format: str
    om: OmFile | None = None
    onnx: OnnxFile | None = None

    def to_json(self) -> str:
        """JSON with the fields of the dataclasses; the other format's field is left out."""
        fields = {name: value for name, value in asdict(self).items() if value is not None}
        return json.dumps(fields, indent=2)


def describe_file(path: Path) -> FileDescription:
    """Reads a model file. The bytes decide the format; the ending counts only where they are damaged.

    Raises InspectError for a file that is neither or is damaged, OSError where it cannot be read.
    """
    if path.is_dir():
        raise InspectError("a folder; give a model file")
    size_bytes = path.stat().st_size
    if not size_bytes:
        raise InspectError("the file is empty")
    with path.open("rb") as file:
        is_om = file.read(len(MAGIC)) == MAGIC or path.suffix.lower() == ".om"
    if is_om:
        return FileDescription(path.name, size_bytes, "om", om=read_om(path))
    return FileDescription(path.name, size_bytes, "onnx", onnx=read_onnx(path))


def format_text(description: FileDescription) -> str:
    """The description for people, a fact per line, without control characters from the file."""
    lines: list[tuple[str, str]] = [("file", description.file), ("size", _size(description.size_bytes))]
    if description.om is not None:
        lines += _om_lines(description.om)
    if description.onnx is not None:
        lines += _onnx_lines(description.onnx)
    width = max(len(label) for label, _ in lines) + 2
    return "\n".join(f"{label:<{width}}{_printable(text)}".rstrip() for label, text in lines) + "\n"


def _om_lines(om: OmFile) -> Iterator[tuple[str, str]]:
    yield "format", "Ascend OM (offline model; the header does not name the chip it was built for)"
    yield "model name", om.name or "(empty)"
    yield "header version", f"0x{om.header_version:08x}"
    yield "model type", f"{om.model_type} ({om.model_type_name})"
    yield "models in file", str(om.model_count)
    yield "shapes", "dynamic" if om.dynamic else "static"
    yield "generation", om.generation_mode
    yield "OM IR version", str(om.om_ir_version)
    yield "platform", f"{om.platform_version or '(empty)'}, type {om.platform_type}"
    yield "encrypted", "yes" if om.encrypted else "no"
    yield "checksum", "yes" if om.has_checksum else "no"
    yield "host", "OS and CPU must match" if om.check_os_and_cpu else "not checked"
    if om.ops_kops:
        yield "computing power", f"{om.ops_kops} Kops"
    if om.user_defined:
        yield "user defined", om.user_defined
    for number, table in enumerate(om.tables, 1):
        yield f"table {number}", f"{om.table_form}, {len(table)} partitions, {_size(sum(p.size_bytes for p in table))}"
        for partition in table:
            place = f"{_size(partition.size_bytes)} at {partition.offset_bytes}"
            yield f"  type {partition.type}", f"{partition.name}: {place}"
    for note in om.notes:
        yield "note", note


def _onnx_lines(model: OnnxFile) -> Iterator[tuple[str, str]]:
    yield "format", f"ONNX, IR version {model.ir_version}"
    yield "graph", model.graph_name or "(no name)"
    yield "producer", f"{model.producer or '(not named)'} {model.producer_version}"
    yield "operator sets", ", ".join(f"{domain} {version}" for domain, version in model.opsets.items()) or "(none)"
    yield from _tensor_lines("input", model.inputs)
    yield from _tensor_lines("output", model.outputs)
    operators = ", ".join(f"{count} {name}" for name, count in list(model.operators.items())[:8])
    more = len(model.operators) - 8
    yield "nodes", f"{model.node_count}: {operators}" + (f" and {more} more kinds" if more > 0 else "")
    external = f", {_size(model.external_bytes)} of them in other files" if model.external_bytes else ""
    yield "constants", f"{model.constant_count}, {_size(model.constant_bytes)}{external}"
    for key, value in model.metadata.items():
        yield "metadata", f"{key} = {value}"


def _tensor_lines(label: str, tensors: Iterable[OnnxTensor]) -> Iterator[tuple[str, str]]:
    for tensor in tensors:
        shape = "" if tensor.shape is None else f" {list(tensor.shape)}".replace("'", "").replace("None", "?")
        yield label, f"{tensor.name}: {tensor.dtype}{shape}"


def _size(size_bytes: int) -> str:
    for unit, factor in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if size_bytes >= factor:
            return f"{size_bytes} bytes ({size_bytes / factor:.1f} {unit})"
    return f"{size_bytes} bytes" if size_bytes != 1 else "1 byte"


def _printable(text: str) -> str:
    """One line of printable text: other characters escaped, the rest cut."""
    shown = "".join(character if character.isprintable() else ascii(character)[1:-1] for character in text)
    return shown if len(shown) <= _MAX_TEXT else shown[: _MAX_TEXT - 3] + "..."
