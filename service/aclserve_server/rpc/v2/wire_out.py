"""Writes the answers of the KServe v2 protocol: results straight into the bytes of a message, joined once.

Outputs are raw always, an entry for each, because clients find them by position; the entry of an output that went into
shared memory, or has no elements, is empty. What is written equals, byte for byte, what the generated classes write.

Everything here runs on one thread, the event loop's. A result's data is taken before the functions return.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from aclserve_server.engine.items import OutputTensor, Result
from aclserve_server.rpc.v2.datatypes import BYTES, datatype_of
from aclserve_server.rpc.varint import encode_varint
from aclserve_server.rpc.wire_out import varint

_MAX_REMEMBERED = 4096
_NO_BYTES = b"\x32\x00"
_MASK = (1 << 64) - 1

_FINAL = b"\x22\x1b\x0a\x15triton_final_response\x12\x02\x08\x01"
"""The parameter triton_final_response, true."""

_Key = tuple[str, np.dtype[Any], tuple[int, ...]]
_Fragments = list[bytes | memoryview]


class BytesTensor(OutputTensor):
    """An output of the datatype BYTES: `data` has the elements one after another, each with its length before it in
    four bytes, little-endian."""

    __slots__ = ()

    def __init__(self, name: str, shape: tuple[int, ...], data: bytes) -> None:
        super().__init__(name, BYTES, shape, data)


class _Head(NamedTuple):
    """What precedes the data of an output: its description, and the beginning of its raw entry of `data_bytes`."""

    data_bytes: int
    described: bytes
    raw: bytes
    both: bytes


_heads: dict[_Key, _Head] = {}
_models: dict[tuple[str, int], bytes] = {}


def assemble_infer_response(model: str, version: int, client_id: str, result: Result) -> bytes:
    """A `ModelInferResponse`. A result that is an error raises that error: a unary call has a status for it."""
    fragments: _Fragments = [_identity(model, version, client_id)]
    _add_outputs(fragments, result)
    return b"".join(fragments)


def assemble_stream_response(model: str, version: int, client_id: str, result: Result) -> bytes:
    """A `ModelStreamInferResponse` with the one and last answer to a request. Raises as `assemble_infer_response`."""
    identity = _identity(model, version, client_id)
    outputs = result.outputs
    if outputs is not None and len(outputs) == 1 and (data := outputs[0].data) is not None:
        head = _head(outputs[0], data)
        front = _front(len(identity) + len(_FINAL) + len(head.both) + head.data_bytes)
        return b"".join((front, identity, _FINAL, head.both, data))
    fragments: _Fragments = [b"", identity, _FINAL]
    size = len(identity) + len(_FINAL) + _add_outputs(fragments, result)
    fragments[0] = _front(size)
    return b"".join(fragments)


@lru_cache(1024)
def _front(size: int) -> bytes:
    """What precedes the answer in its message."""
    return b"\x12" + varint(size)


def assemble_stream_error(text: str, client_id: str, model: str = "", version: int = 0) -> bytes:
    """A `ModelStreamInferResponse` that tells what is wrong with a request, and which one it was.

    With the version that it was given to, the answer names model and version and is marked final; without (0), for a
    request that reached no model, it has the id only. An empty text would mean success, so it is replaced.
    """
    raw = (text or "the request failed").encode("utf-8", "replace")
    answer = _identity(model, version, client_id) + _FINAL if version else _text(b"\x1a", client_id)
    return b"".join((b"\x0a", varint(len(raw)), raw, b"\x12", varint(len(answer)), answer))


def _identity(model: str, version: int, client_id: str) -> bytes:
    """The fields model_name, model_version and id."""
    known = _models.get((model, version))
    if known is None:
        if len(_models) >= _MAX_REMEMBERED:
            _models.clear()
        known = _models[model, version] = _text(b"\x0a", model) + _text(b"\x12", str(version) if version else "")
    if not client_id:
        return known
    raw = client_id.encode("utf-8", "replace")
    return known + b"\x1a" + varint(len(raw)) + raw


def _add_outputs(fragments: _Fragments, result: Result) -> int:
    """Appends the fields outputs and raw_output_contents; returns their bytes."""
    if result.error is not None:
        raise result.error
    outputs = result.outputs or ()
    if len(outputs) == 1 and (data := outputs[0].data) is not None:
        output = outputs[0]
        head = _head(output, data)
        fragments.append(head.both)
        fragments.append(data)
        return len(head.both) + head.data_bytes
    size = 0
    raw: _Fragments = []
    for output in outputs:
        data = output.data
        if data is None:
            described, entry = _placed(output), _NO_BYTES
        else:
            head = _head(output, data)
            described, entry = head.described, head.raw
            size += head.data_bytes
        fragments.append(described)
        raw.append(entry)
        if data is not None:
            raw.append(data)
        size += len(described) + len(entry)
    fragments += raw
    return size


def _head(output: OutputTensor, data: memoryview | bytes) -> _Head:
    """What precedes `data`; remembered by all that it depends on."""
    data_bytes = data.nbytes if isinstance(data, memoryview) else len(data)
    key = (output.name, output.dtype, output.shape)
    head = _heads.get(key)
    if head is not None and head.data_bytes == data_bytes:
        return head
    body = _described(output)
    described = b"\x2a" + varint(len(body)) + body
    raw = b"\x32" + varint(data_bytes)
    if len(_heads) >= _MAX_REMEMBERED:
        _heads.clear()
    _heads[key] = head = _Head(data_bytes, described, raw, described + raw)
    return head


def _placed(output: OutputTensor) -> bytes:
    """An entry of outputs whose data was written elsewhere; the parameters echo where."""
    body = _described(output)
    if output.region is not None:
        body += _place(output.region.name, output.region.offset_bytes, output.region.length_bytes)
    elif output.buffer is not None:
        body += _place(output.buffer.buffer_id, output.buffer.offset_bytes, output.buffer.length_bytes)
    return b"\x2a" + varint(len(body)) + body


def _place(name: str, offset_bytes: int, length_bytes: int) -> bytes:
    parameters = _parameter("shared_memory_region", _text(b"\x1a", name) or b"\x1a\x00")
    if offset_bytes:
        parameters += _parameter("shared_memory_offset", b"\x10" + varint(offset_bytes))
    return parameters + _parameter("shared_memory_byte_size", b"\x10" + varint(length_bytes))


def _parameter(key: str, value: bytes) -> bytes:
    """An entry of an output's parameters."""
    entry = _text(b"\x0a", key) + b"\x12" + varint(len(value)) + value
    return b"\x22" + varint(len(entry)) + entry


def _described(output: OutputTensor) -> bytes:
    """Name, datatype and shape of an entry of outputs."""
    dims = b"".join(encode_varint(dim & _MASK) for dim in output.shape)
    shape = b"\x1a" + varint(len(dims)) + dims if dims else b""
    return _text(b"\x0a", output.name) + _text(b"\x12", datatype_of(output.dtype)) + shape


def _text(tag: bytes, text: str) -> bytes:
    """A string field; nothing for an empty one. What UTF-8 cannot hold (a lone surrogate) becomes '?'."""
    if not text:
        return b""
    raw = text.encode("utf-8", "replace")
    return tag + varint(len(raw)) + raw
