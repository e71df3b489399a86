"""Reads the hot requests straight off the received bytes: no message objects, no copy of a tensor's data.

The result equals what protobuf's generated classes would have parsed (KNOWN_FIELDS of `wire_fields` says what is
known): fields in any order, repeated or split, the last scalar wins, submessages merge, the last member of a oneof
wins, unknown fields are skipped, and what they refuse is refused. Two kinds of refusal:

- Bytes that are not protobuf: `InvalidArgument`, reason MALFORMED_MESSAGE (or MESSAGE_TOO_COMPLEX past MAX_FIELDS
  fields).
- An item that is wrong in itself: text that is not UTF-8 (INVALID_UTF8), a data type that is not known
  (DATA_TYPE_UNSUPPORTED), a limit exceeded. In a stream that must not hurt the neighbours: the item carries it as
  `error`.

Most items of a client look like the one before, but for the id, the times and the data. So every item is first held
against templates (`wire_templates`), which is a few comparisons of bytes; only what fits none is walked field by
field.

Everything here runs on the event loop's thread. What is returned refers to the message and keeps it alive.
"""

from __future__ import annotations

from functools import lru_cache

from google.protobuf.message import DecodeError

from aclserve.errors import InvalidArgument
from aclserve.tensors import DTYPES
from aclserve.v1 import model_pb2
from aclserve_server.engine.items import BufferSlice, Fill, Input, Item, OutputRequest, RegionSlice
from aclserve_server.rpc.varint import (
    MAX_DEPTH,
    check_packed,
    malformed,
    read_length,
    read_tag,
    read_varint,
    to_int32,
    to_int64,
    too_complex,
)
from aclserve_server.rpc.wire_templates import ITEMS, MESSAGES, remember_slice
from aclserve_server.rpc.wire_times import Time, capture_bytes, seconds_of
from aclserve_server.rpc.wire_walk import INVALID_UTF8, NOWHERE, Place, Walk

MAX_ID_BYTES = 128
MAX_INPUTS = 256
MAX_OUTPUTS = 256
MAX_DIMENSIONS = 32
MAX_PRIORITY = 3

StreamRequest = list[Item] | model_pb2.StreamConfig | model_pb2.CancelItems

_PATTERNS = "the server makes zeros (FILL_PATTERN_ZEROS) or random values (FILL_PATTERN_RANDOM)"


def scan_infer_request(message: bytes) -> Item:
    """The item of an `InferRequest`. Raises `InvalidArgument` for a malformed message and for a wrong item alike."""
    view = memoryview(message)
    end = len(message)
    item = ITEMS.match(message, view, 0, end)
    if item is not None:
        return item
    try:
        item = _Scan(message, view).item(0, end, MAX_DEPTH)
    except IndexError:
        raise malformed("it is cut off") from None
    if item.error is not None:
        raise item.error
    return item


def scan_stream_request(message: bytes) -> StreamRequest:
    """A `StreamInferRequest`: its items as a list, or the configuration or the cancellation as a message object.

    An item that is wrong in itself has `error` set. A malformed message raises `InvalidArgument`, and so does one that
    is none of the three (REQUEST_EMPTY).
    """
    view = memoryview(message)
    item = MESSAGES.match(message, view, 0, len(message))
    if item is not None:
        return [item]
    try:
        request = _Scan(message, view).stream_request()
    except IndexError:
        raise malformed("it is cut off") from None
    except DecodeError:
        raise malformed("its config or cancel is broken") from None
    if request is None:
        raise InvalidArgument("the message has neither config nor items nor cancel", reason="REQUEST_EMPTY")
    return request


def _shown(name: str) -> str:
    return repr(name if len(name) <= 100 else name[:97] + "...")


@lru_cache(4096)
def _packed(raw: bytes) -> tuple[int, ...]:
    """Packed int64 values; a few shapes recur."""
    values = []
    pos = 0
    while pos < len(raw):
        value, pos = read_varint(raw, pos)
        values.append(to_int64(value))
    return tuple(values)


class _Scan(Walk):
    """The hot requests. An item's place is kept for its template."""

    __slots__ = ("item_start", "item_stop")

    def __init__(self, message: bytes, view: memoryview) -> None:
        super().__init__(message, view)
        self.item_start = self.item_stop = 0

    def stream_request(self) -> StreamRequest | None:
        """The oneof of the outermost message: the last member wins, and merges with itself only."""
        message = self.message
        end = len(message)
        request: StreamRequest | None = None
        pos = 0
        while pos < end:
            tag, pos = self.tag(pos)
            if tag != 0x12 and tag != 0x0A and tag != 0x1A:
                pos = self.skip(pos, end, tag, MAX_DEPTH)
                continue
            pos, stop = self.span(pos, end)
            if tag != 0x12 and type(request) is list:
                self.drop(request)
            if tag == 0x12:
                if type(request) is not list:
                    request = []
                self.items(pos, stop, request)
            elif tag == 0x0A:
                if not isinstance(request, model_pb2.StreamConfig):
                    request = model_pb2.StreamConfig()
                request.MergeFromString(message[pos:stop])
            else:
                if not isinstance(request, model_pb2.CancelItems):
                    request = model_pb2.CancelItems()
                request.MergeFromString(message[pos:stop])
            pos = stop
        self.finish(pos, end)
        if type(request) is list and len(request) == 1 and request[0].error is None:
            self.learn_message(request[0])
        return request

    def drop(self, items: list[Item]) -> None:
        """Items that another member of the oneof replaces: they do not count, but what protobuf refuses is refused."""
        for item in items:
            if item.error is not None and item.error.reason == INVALID_UTF8:
                raise item.error

    def learn_message(self, item: Item) -> None:
        """Makes a template of the whole message, whose only item this is, where that ends with it."""
        end = len(self.message)
        if self.item_stop == end:
            MESSAGES.learn(self.message, 0, self.item_start, end, item)

    def items(self, pos: int, end: int, items: list[Item]) -> None:
        """Appends the items of one ItemList."""
        message, view, match = self.message, self.view, ITEMS.match
        while pos < end:
            if message[pos] != 0x0A:
                tag, pos = self.tag(pos)
                if tag != 0x0A:
                    pos = self.skip(pos, end, tag, MAX_DEPTH - 1)
                    continue
                pos -= 1
            length, start = message[pos + 1], pos + 2
            if length >= 0x80:
                second = message[start]
                if second < 0x80:
                    length += (second - 1) << 7
                    start += 1
                else:
                    length, start = read_length(message, pos + 1)
            pos = stop = start + length
            if stop > end:
                raise malformed("an item is longer than its list")
            item = match(message, view, start, stop)
            if item is None:
                self.budget -= 1
                item = self.item(start, stop, MAX_DEPTH - 2)
            else:
                self.budget -= 1 + len(item.inputs)
                if self.budget < 0:
                    raise too_complex()
            items.append(item)
            self.item_start, self.item_stop = start, stop
        self.finish(pos, end)

    def item(self, pos: int, end: int, depth: int) -> Item:
        """An InferItem, or an InferRequest: same fields, same numbers."""
        message = self.message
        start = pos
        self.error = None
        item = Item()
        timeout: Time | None = None
        capture: Time | None = None
        fields, most = 0, self.budget
        while pos < end:
            fields += 1
            if fields > most:
                raise too_complex()
            tag, pos = message[pos], pos + 1
            if tag >= 0x80 or tag < 8:
                tag, pos = read_tag(message, pos - 1)
            if tag == 0x38:
                item.version, pos = read_varint(message, pos)
                continue
            if tag == 0x40:
                priority, pos = read_varint(message, pos)
                item.priority = to_int32(priority)
                continue
            if tag & 7 != 2 or tag > 0x32:
                pos = self.skip(pos, end, tag, depth)
                continue
            length, pos = message[pos], pos + 1
            if length >= 0x80:
                length, pos = read_length(message, pos - 1)
            stop = pos + length
            if stop > end:
                raise malformed("a field is longer than its item")
            if tag == 0x1A:
                tensor = self.tensor(pos, stop, depth - 1)
                if len(item.inputs) < MAX_INPUTS:
                    item.inputs.append(tensor)
                else:
                    self.refuse(f"an item has at most {MAX_INPUTS} inputs", "TOO_MANY_INPUTS")
            elif tag == 0x0A:
                item.id = self.text(pos, stop, "id", MAX_ID_BYTES, "ITEM_ID_TOO_LONG")
            elif tag == 0x12:
                item.model = self.text(pos, stop, "model")
            elif tag == 0x32:
                capture = self.time(pos, stop, capture, depth - 1)
            elif tag == 0x2A:
                timeout = self.time(pos, stop, timeout, depth - 1)
            elif len(item.outputs) < MAX_OUTPUTS:
                item.outputs.append(self.output(pos, stop, depth - 1))
            else:
                self.output(pos, stop, depth - 1)
                self.refuse(f"an item asks for at most {MAX_OUTPUTS} outputs", "TOO_MANY_OUTPUTS")
            pos = stop
        self.budget -= fields
        self.finish(pos, end)
        item.timeout_s = None if timeout is None else seconds_of(timeout)
        item.capture_time = b"" if capture is None else capture_bytes(capture)
        if not 0 <= item.priority <= MAX_PRIORITY:
            self.refuse(f"priority {item.priority} is unknown; use LOW, NORMAL or HIGH", "PRIORITY_UNKNOWN")
        item.error = self.error
        if item.error is None:
            ITEMS.learn(message, start, start, end, item)
        return item

    def tensor(self, pos: int, end: int, depth: int) -> Input:
        """An input. What is wrong with it is left in `error`."""
        message = self.message
        name, data_type = "", 0
        dims: list[int] = []
        source, data, place, fill = 0, self.view[0:0], NOWHERE, (0, 0)
        fields, most = 0, self.budget
        while pos < end:
            fields += 1
            if fields > most:
                raise too_complex()
            tag, pos = message[pos], pos + 1
            if tag >= 0x80 or tag < 8:
                tag, pos = read_tag(message, pos - 1)
            if tag == 0x10:
                data_type, pos = read_varint(message, pos)
            elif tag == 0x18:
                dim, pos = read_varint(message, pos)
                self.add_dimension(dims, dim)
            elif tag & 7 == 2 and tag <= 0x3A and tag != 0x12:
                length, pos = message[pos], pos + 1
                if length >= 0x80:
                    length, pos = read_length(message, pos - 1)
                stop = pos + length
                if stop > end:
                    raise malformed("a field is longer than its tensor")
                if tag == 0x0A:
                    name = self.text(pos, stop, "name of an input")
                elif tag == 0x1A:
                    self.packed_shape(pos, stop, dims)
                else:
                    if tag == 0x22:
                        data = self.view[pos:stop]
                    elif tag == 0x32:
                        fill = self.fill(pos, stop, fill if source == tag else (0, 0), depth - 1)
                    else:
                        first = source != tag
                        what = "buffer_id" if tag == 0x2A else "region_id"
                        place = self.place(pos, stop, NOWHERE if first else place, depth - 1, what)
                        if first and self.error is None:
                            remember_slice(message[pos:stop], place)
                    source = tag
                pos = stop
            else:
                pos = self.skip(pos, end, tag, depth)
        self.budget -= fields
        self.finish(pos, end)
        dtype = DTYPES.get(to_int32(data_type))
        if dtype is None:
            self.refuse(
                f"input {_shown(name)} has data type {to_int32(data_type)}; known are 1 (BOOL) to 13 (FLOAT64)",
                "DATA_TYPE_UNSUPPORTED",
            )
            dtype = DTYPES[1]
        if source == 0x2A:
            return Input(name, dtype, tuple(dims), buffer=BufferSlice(*place))
        if source == 0x3A:
            return Input(name, dtype, tuple(dims), region=RegionSlice(*place))
        if source == 0x32:
            return Input(name, dtype, tuple(dims), fill=self.made(name, fill))
        return Input(name, dtype, tuple(dims), data)

    def packed_shape(self, pos: int, end: int, dims: list[int]) -> None:
        if end - pos <= MAX_DIMENSIONS * 10:
            more = _packed(self.message[pos:end])
            if len(dims) + len(more) <= MAX_DIMENSIONS:
                dims += more
                return
        else:
            check_packed(self.message, pos, end)
        self.refuse(f"a tensor has at most {MAX_DIMENSIONS} dimensions", "TOO_MANY_DIMENSIONS")

    def add_dimension(self, dims: list[int], dim: int) -> None:
        if len(dims) < MAX_DIMENSIONS:
            dims.append(to_int64(dim))
        else:
            self.refuse(f"a tensor has at most {MAX_DIMENSIONS} dimensions", "TOO_MANY_DIMENSIONS")

    def fill(self, pos: int, end: int, merged: tuple[int, int], depth: int) -> tuple[int, int]:
        """The pattern and the seed of a Fill."""
        pattern, seed = merged
        while pos < end:
            tag, pos = self.tag(pos)
            if tag == 0x08:
                pattern, pos = read_varint(self.message, pos)
            elif tag == 0x10:
                seed, pos = read_varint(self.message, pos)
            else:
                pos = self.skip(pos, end, tag, depth)
        self.finish(pos, end)
        return to_int32(pattern), seed

    def made(self, name: str, fill: tuple[int, int]) -> Fill:
        pattern, seed = fill
        if pattern == 0:
            self.refuse(f"input {_shown(name)} has no fill pattern; {_PATTERNS}", "FILL_PATTERN_UNSPECIFIED")
        elif pattern > 2 or pattern < 0:
            self.refuse(f"input {_shown(name)} has fill pattern {pattern}; {_PATTERNS}", "FILL_PATTERN_UNSUPPORTED")
        return Fill(pattern == 2, seed)

    def output(self, pos: int, end: int, depth: int) -> OutputRequest:
        name = ""
        buffer: Place | None = None
        region: Place | None = None
        while pos < end:
            tag, pos = self.tag(pos)
            if tag == 0x0A or tag == 0x12 or tag == 0x1A:
                pos, stop = self.span(pos, end)
                if tag == 0x0A:
                    name = self.text(pos, stop, "name of an output")
                elif tag == 0x12:
                    buffer = self.place(pos, stop, buffer or NOWHERE, depth - 1, "buffer_id")
                else:
                    region = self.place(pos, stop, region or NOWHERE, depth - 1, "region_id")
                pos = stop
            else:
                pos = self.skip(pos, end, tag, depth)
        self.finish(pos, end)
        return OutputRequest(name, buffer and BufferSlice(*buffer), region and RegionSlice(*region))
