"""Messages for the tests of the wire codec in any encoding, and what generated classes and codec make of them."""

from __future__ import annotations

from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import strategies as st

from aclserve.tensors import DTYPES
from aclserve.v1 import model_pb2 as pb
from aclserve_server.engine.items import BufferSlice, Item, RegionSlice

DATA_TYPES = {dtype: number for number, dtype in DTYPES.items()}


def varint(value: int, padding: int = 0) -> bytes:
    """A value in the shortest form, plus bytes that add nothing to it."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    for _ in range(padding):
        out[-1] |= 0x80
        out.append(0)
    return bytes(out)


@st.composite
def padded(draw: st.DrawFn, value: int, longest: int) -> bytes:
    """A varint of at most `longest` bytes, rarely longer than needed."""
    spare = longest - len(varint(value))
    padding = draw(st.integers(0, spare)) if draw(st.integers(0, 9)) == 0 else 0
    return varint(value, padding)


def values() -> st.SearchStrategy[int]:
    edges = [0, 1, 2, 127, 128, 16383, 16384, 1 << 31, (1 << 32) - 1, 1 << 32, (1 << 32) + 7, 1 << 63, (1 << 64) - 1]
    return st.one_of(st.integers(0, 200), st.sampled_from(edges), st.integers(0, (1 << 64) - 1))


@st.composite
def tag(draw: st.DrawFn, number: int, wire: int) -> bytes:
    return draw(padded(number << 3 | wire, 5))


@st.composite
def delimited(draw: st.DrawFn, number: int, contents: bytes) -> bytes:
    return draw(tag(number, 2)) + draw(padded(len(contents), 5)) + contents


@st.composite
def number(draw: st.DrawFn, field: int, value: int | None = None) -> bytes:
    return draw(tag(field, 0)) + draw(padded(draw(values()) if value is None else value, 10))


@st.composite
def string(draw: st.DrawFn, field: int) -> bytes:
    text = draw(st.one_of(st.text(max_size=6), st.sampled_from(["", "input", "é", "\U0001f600", "\x00"])))
    return draw(delimited(field, text.encode("utf-8", "replace")))


@st.composite
def unknown(draw: st.DrawFn, known: dict[int, tuple[int, ...]], deep: int = 2) -> bytes:
    """A field that the message does not have, or has with another wire type."""
    field = draw(st.one_of(st.integers(1, 9), st.sampled_from([15, 16, 2047, 2048, (1 << 29) - 1])))
    wires = [wire for wire in (0, 1, 2, 3, 5) if wire not in known.get(field, ())]
    wire = draw(st.sampled_from(wires))
    if wire == 0:
        return draw(number(field))
    if wire == 1:
        return draw(tag(field, 1)) + draw(st.binary(min_size=8, max_size=8))
    if wire == 5:
        return draw(tag(field, 5)) + draw(st.binary(min_size=4, max_size=4))
    if wire == 2:
        return draw(delimited(field, draw(st.binary(max_size=8))))
    inner = b"".join(draw(st.lists(unknown({}, deep - 1), max_size=2))) if deep else b""
    return draw(tag(field, 3)) + inner + draw(tag(field, 4))


@st.composite
def message(
    draw: st.DrawFn, known: dict[int, tuple[int, ...]], *fields: st.SearchStrategy[bytes], most: int = 5
) -> bytes:
    """Fields in any order and number, unknown ones among them; seldom with none left out."""
    if draw(st.integers(0, 3)) == 0:
        return b"".join(draw(field) for field in fields)
    choice = st.one_of(*fields) if draw(st.integers(0, 2)) else st.one_of(unknown(known), *fields)
    return b"".join(draw(st.lists(choice, max_size=most)))


def slices() -> st.SearchStrategy[bytes]:
    return message({1: (2,), 2: (0,), 3: (0,)}, string(1), number(2), number(3), most=3)


def fills() -> st.SearchStrategy[bytes]:
    pattern = st.one_of(number(1), number(1, 1), number(1, 2))
    return message({1: (0,), 2: (0,)}, pattern, number(2), most=3)


def times() -> st.SearchStrategy[bytes]:
    return message({1: (0,), 2: (0,)}, number(1), number(2), most=3)


def nested(field: int, contents: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    return contents.flatmap(lambda raw: delimited(field, raw))


@st.composite
def packed(draw: st.DrawFn, field: int) -> bytes:
    dims = draw(st.lists(values(), max_size=4))
    return draw(delimited(field, b"".join(draw(padded(dim, 10)) for dim in dims)))


def tensors() -> st.SearchStrategy[bytes]:
    data = st.binary(max_size=40).flatmap(lambda raw: delimited(4, raw))
    data_type = st.integers(1, 13).flatmap(lambda value: number(2, value))
    return message(
        {1: (2,), 2: (0,), 3: (0, 2), 4: (2,), 5: (2,), 6: (2,), 7: (2,)},
        string(1),
        st.one_of(data_type, data_type, data_type, number(2)),
        st.one_of(packed(3), number(3)),
        st.one_of(data, data, nested(5, slices()), nested(6, fills()), nested(7, slices())),
        most=6,
    )


def outputs() -> st.SearchStrategy[bytes]:
    return message({1: (2,), 2: (2,), 3: (2,)}, string(1), nested(2, slices()), nested(3, slices()), most=4)


def items() -> st.SearchStrategy[bytes]:
    """An InferItem or InferRequest in any encoding."""
    known = dict.fromkeys(range(1, 7), (2,)) | {7: (0,), 8: (0,)}
    priority = st.integers(0, 3).flatmap(lambda value: number(8, value))
    return message(
        known,
        string(1),
        string(2),
        nested(3, tensors()),
        nested(3, tensors()),
        nested(4, outputs()),
        nested(5, times()),
        nested(6, times()),
        number(7),
        priority,
        most=9,
    )


def stream_requests() -> st.SearchStrategy[bytes]:
    """A StreamInferRequest in any encoding."""
    listed = message({1: (2,)}, nested(1, items()), nested(1, items()), most=4)
    numbers = (2, 3, 4, 5, 6, 8, 9)
    known = dict.fromkeys(numbers, (0,)) | {1: (2,), 7: (2,)}
    config = message(known, string(1), nested(7, times()), *map(number, numbers))
    cancel = message({1: (2,)}, string(1))
    return st.one_of(
        nested(2, listed),
        message({1: (2,), 2: (2,), 3: (2,)}, nested(2, listed), nested(1, config), nested(3, cancel), most=4),
    )


def slice_of(buffer: Any) -> tuple[str, int, int]:
    return buffer.buffer_id, buffer.offset_bytes, buffer.length_bytes


def parsed_region(region: Any) -> tuple[str, int, int]:
    return region.region_id, region.offset_bytes, region.length_bytes


def scanned_region(region: RegionSlice) -> tuple[str, int, int]:
    return region.name, region.offset_bytes, region.length_bytes


def parsed_item(item: Any) -> dict[str, Any]:
    """What the generated classes made of an item, comparable."""
    return {
        "id": item.id,
        "model": item.model,
        "version": item.version,
        "priority": item.priority,
        "inputs": [
            (tensor.name, tensor.data_type, tuple(tensor.shape), *parsed_source(tensor)) for tensor in item.inputs
        ],
        "outputs": [
            (
                output.name,
                slice_of(output.buffer) if output.HasField("buffer") else None,
                parsed_region(output.region) if output.HasField("region") else None,
            )
            for output in item.outputs
        ],
        "timeout": item.timeout.seconds + item.timeout.nanos * 1e-9 if item.HasField("timeout") else None,
        "capture_time": (
            (item.capture_time.seconds, item.capture_time.nanos) if item.HasField("capture_time") else None
        ),
    }


def parsed_source(tensor: Any) -> tuple[str, Any]:
    source = tensor.WhichOneof("source")
    if source == "buffer":
        return "buffer", slice_of(tensor.buffer)
    if source == "region":
        return "region", parsed_region(tensor.region)
    if source == "fill":
        return "fill", (tensor.fill.pattern == 2, tensor.fill.seed)
    return "data", tensor.data


def scanned_item(item: Item) -> dict[str, Any]:
    """What the codec made of an item, in the same form."""
    captured = Timestamp.FromString(item.capture_time) if item.capture_time else None
    return {
        "id": item.id,
        "model": item.model,
        "version": item.version,
        "priority": item.priority,
        "inputs": [
            (tensor.name, DATA_TYPES[tensor.dtype], tensor.shape, *scanned_source(tensor)) for tensor in item.inputs
        ],
        "outputs": [
            (output.name, output.buffer and slice_of(output.buffer), output.region and scanned_region(output.region))
            for output in item.outputs
        ],
        "timeout": item.timeout_s,
        "capture_time": captured and (captured.seconds, captured.nanos),
    }


def scanned_source(tensor: Any) -> tuple[str, Any]:
    present = [source for source in (tensor.data, tensor.buffer, tensor.fill, tensor.region) if source is not None]
    assert len(present) == 1
    if isinstance(present[0], BufferSlice):
        return "buffer", slice_of(present[0])
    if isinstance(present[0], RegionSlice):
        return "region", scanned_region(present[0])
    if tensor.fill is not None:
        return "fill", (tensor.fill.random, tensor.fill.seed)
    assert tensor.data.readonly
    return "data", bytes(tensor.data)


def reasons(item: pb.InferItem | pb.InferRequest) -> set[str]:
    """What the codec must find wrong with an item that protobuf accepts."""
    found = set()
    if len(item.id.encode()) > 128:
        found.add("ITEM_ID_TOO_LONG")
    if len(item.inputs) > 256:
        found.add("TOO_MANY_INPUTS")
    if item.priority not in (0, 1, 2, 3):
        found.add("PRIORITY_UNKNOWN")
    for tensor in item.inputs:
        if tensor.data_type not in DTYPES:
            found.add("DATA_TYPE_UNSUPPORTED")
        if len(tensor.shape) > 32:
            found.add("TOO_MANY_DIMENSIONS")
        if tensor.WhichOneof("source") == "fill" and tensor.fill.pattern not in (1, 2):
            found.add("FILL_PATTERN_UNSUPPORTED" if tensor.fill.pattern else "FILL_PATTERN_UNSPECIFIED")
    return found
