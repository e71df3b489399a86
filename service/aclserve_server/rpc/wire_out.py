"""Writes the hot answers: results straight into the bytes of a message, joined once.

A message is a list of fragments, most of them from caches, with the outputs' own views among them; one `b"".join`
copies everything, and that is the only copy of a tensor's data on its way out. What is written equals, byte for byte,
what the generated classes write for the same values, but for the Timestamp, which is echoed as it was read.

Everything here runs on one thread, the event loop's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from aclserve.errors import AclserveError
from aclserve.tensors import data_type_of
from aclserve_server.engine.items import Dropped, OutputTensor, Result, Timing
from aclserve_server.rpc.status import to_item_error_fields
from aclserve_server.rpc.varint import encode_varint

_MAX_REMEMBERED = 4096
_MAX_BATCHES = 64
_MAX_LIST_HEAD = 6

_LOW = [encode_varint(value) for value in range(1 << 14)]
_HIGH = [bytes((value & 0x7F | 0x80, value >> 7 | 0x80)) for value in range(1 << 14)]

_Key = tuple[str, np.dtype[Any], tuple[int, ...]]
_Fragments = list[bytes | memoryview]


class _Head(NamedTuple):
    """What precedes a tensor's data: within an Outputs of several tensors, and where it is the only one.

    The sizes count the data in; `single` has the tag and the length of the Outputs before it.
    """

    data_bytes: int
    fragment: bytes
    size: int
    single: bytes
    single_size: int


_heads: dict[_Key, _Head] = {}
_device_times: dict[tuple[int, int, int], bytes] = {}
_places: dict[tuple[int, int, int, int], bytes] = {}


def assemble_infer_response(result: Result) -> bytes:
    """An `InferResponse`. A result that is an error raises that error: a unary call has a status for it."""
    if result.error is not None:
        raise result.error
    fragments: _Fragments = []
    _add_result(fragments, result, _times(result.timing), False)
    return b"".join(fragments)


def assemble_results(results: Sequence[Result], max_bytes: int | None = None) -> list[bytes]:
    """`StreamInferResponse` messages with these results, in order.

    No message is longer than `max_bytes` (None: no limit) unless it holds a single result that is.
    """
    messages: list[bytes] = []
    fragments: _Fragments = [b""]
    total = 0
    times, timing = b"", None
    for result in results:
        if result.timing is not timing:
            timing = result.timing
            times = _times(timing)
        at = len(fragments)
        size = _add_result(fragments, result, times, True)
        if total and max_bytes is not None and total + size + _MAX_LIST_HEAD > max_bytes:
            following = fragments[at:]
            del fragments[at:]
            fragments[0] = b"\x12" + varint(total)
            messages.append(b"".join(fragments))
            fragments = [b"", *following]
            total = 0
        total += size
    if total:
        fragments[0] = b"\x12" + varint(total)
        messages.append(b"".join(fragments))
    return messages


def varint(value: int) -> bytes:
    """The shortest encoding of a value of 0 or more, by table below 2**28."""
    if value < 0x4000:
        return _LOW[value]
    if value < 0x10000000:
        return _HIGH[value & 0x3FFF] + _LOW[value >> 14]
    return encode_varint(value)


def _add_result(fragments: _Fragments, result: Result, times: bytes, listed: bool) -> int:
    """Appends an InferResult (or an InferResponse, which equals it); returns its size.

    `times` begins its timing, if it has one. `listed`: with the tag and the length it has within a list.
    """
    raw_id = result.item_id.encode()
    front = b"\x0a" + varint(len(raw_id)) + raw_id if raw_id else b""
    tail = b"" if result.timing is None else _timing(times, result.timing, result.shift)
    captured = result.capture_time
    if captured:
        tail += b"\x2a" + varint(len(captured)) + captured
    if result.dropped is not None:
        notice = _dropped(result.dropped)
        tail += b"\x32" + varint(len(notice)) + notice
    outputs = result.outputs
    between: _Fragments = []
    if outputs is not None and len(outputs) == 1 and (data := outputs[0].data) is not None:
        output = outputs[0]
        head = _head(output.name, output.dtype, output.shape, data)
        size = len(front) + head.single_size + len(tail)
        front += head.single
        between.append(data)
    elif result.error is not None:
        error = _error(result.error)
        front += b"\x1a" + varint(len(error)) + error
        size = len(front) + len(tail)
    else:
        size = len(front) + len(tail)
        if outputs is not None:
            size += _add_outputs(between, outputs)
    if listed:
        prefix = b"\x0a" + varint(size)
        size += len(prefix)
        front = prefix + front
    fragments.append(front)
    fragments += between
    fragments.append(tail)
    return size


def _dropped(dropped: Dropped) -> bytes:
    age = b"\x10" + varint(dropped.age_ns) if dropped.age_ns else b""
    return b"\x08" + varint(dropped.reason) + age


def _add_outputs(fragments: _Fragments, outputs: Sequence[OutputTensor]) -> int:
    """Appends the `outputs` field of any number of tensors; returns its bytes."""
    at = len(fragments)
    fragments.append(b"")
    total = 0
    for output in outputs:
        if output.data is not None:
            head = _head(output.name, output.dtype, output.shape, output.data)
            fragments.append(head.fragment)
            fragments.append(output.data)
            total += head.size
        else:
            body = _fixed_part(output.name, output.dtype, output.shape)
            if output.buffer is not None:
                body += _place(b"\x2a", output.buffer.buffer_id, output.buffer.offset_bytes, output.buffer.length_bytes)
            elif output.region is not None:
                body += _place(b"\x3a", output.region.name, output.region.offset_bytes, output.region.length_bytes)
            tensor = b"\x0a" + varint(len(body)) + body
            fragments.append(tensor)
            total += len(tensor)
    outer = b"\x12" + varint(total)
    fragments[at] = outer
    return total + len(outer)


def _head(name: str, dtype: np.dtype[Any], shape: tuple[int, ...], data: memoryview | bytes) -> _Head:
    """What precedes `data`; remembered by all that it depends on."""
    data_bytes = data.nbytes if isinstance(data, memoryview) else len(data)
    key = (name, dtype, shape)
    head = _heads.get(key)
    if head is not None and head.data_bytes == data_bytes:
        return head
    inner = _fixed_part(name, dtype, shape) + b"\x22" + varint(data_bytes)
    fragment = b"\x0a" + varint(len(inner) + data_bytes) + inner
    size = len(fragment) + data_bytes
    outer = b"\x12" + varint(size)
    if len(_heads) >= _MAX_REMEMBERED:
        _heads.clear()
    _heads[key] = head = _Head(data_bytes, fragment, size, outer + fragment, len(outer) + size)
    return head


def _fixed_part(name: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> bytes:
    dims = b"".join(varint(dim) for dim in shape)
    return (
        _text(b"\x0a", name)
        + b"\x10"
        + varint(int(data_type_of(dtype)))
        + (b"\x1a" + varint(len(dims)) + dims if shape else b"")
    )


def _place(tag: bytes, name: str, offset_bytes: int, length_bytes: int) -> bytes:
    """The `buffer` or the `region` field of a Tensor."""
    body = _text(b"\x0a", name)
    if offset_bytes:
        body += b"\x10" + varint(offset_bytes)
    if length_bytes:
        body += b"\x18" + varint(length_bytes)
    return tag + varint(len(body)) + body


def _times(timing: Timing | None) -> bytes:
    """The times of a `timing` field. Items of one batch share the device's."""
    if timing is None:
        return b""
    device = (timing.copy_in_ns, timing.execute_ns, timing.copy_out_ns)
    device_times = _device_times.get(device)
    if device_times is None:
        if len(_device_times) >= _MAX_BATCHES:
            _device_times.clear()
        _device_times[device] = device_times = _numbers(2, device)
    wait, total = timing.wait_ns, timing.total_ns
    return ((b"\x08" + varint(wait)) if wait else b"") + device_times + ((b"\x28" + varint(total)) if total else b"")


def _timing(times: bytes, timing: Timing, shift: int) -> bytes:
    """The `timing` field. Places in batches recur."""
    place = (timing.batch_rows, timing.gear_rows, timing.position + shift, timing.queue_rows)
    rows = _places.get(place)
    if rows is None:
        if len(_places) >= _MAX_REMEMBERED:
            _places.clear()
        _places[place] = rows = _numbers(6, place)
    return b"\x22" + _LOW[len(times) + len(rows)] + times + rows


def _numbers(first: int, values: Sequence[int]) -> bytes:
    """Unsigned fields with consecutive numbers, below 16, from `first`; zeros are left out."""
    return b"".join(_LOW[number << 3] + varint(value) for number, value in enumerate(values, first) if value)


def _error(error: AclserveError) -> bytes:
    """The contents of an ItemError, bounded as a call's status is."""
    code, reason, message, metadata, retry_delay = to_item_error_fields(error)
    body = b"\x08" + varint(code) + _text(b"\x12", reason) + _text(b"\x1a", message)
    for key, value in metadata.items():
        entry = (_text(b"\x0a", key) or b"\x0a\x00") + (_text(b"\x12", value) or b"\x12\x00")
        body += b"\x22" + varint(len(entry)) + entry
    if retry_delay is not None:
        delay = _duration(retry_delay)
        body += b"\x2a" + varint(len(delay)) + delay
    return body


def _duration(seconds: float) -> bytes:
    """The contents of a Duration of 0 or more."""
    whole, nanos = divmod(round(max(seconds, 0.0) * 1e9), 1_000_000_000)
    return (b"\x08" + varint(whole) if whole else b"") + (b"\x10" + varint(nanos) if nanos else b"")


def _text(tag: bytes, text: str) -> bytes:
    """A string field; nothing for an empty one. What UTF-8 cannot hold (a lone surrogate) becomes '?'."""
    if not text:
        return b""
    raw = text.encode("utf-8", "replace")
    return tag + varint(len(raw)) + raw
