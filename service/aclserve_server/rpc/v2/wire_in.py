"""Reads ModelInferRequest straight off the received bytes: no message objects, no copy of a tensor's raw data.

The rules are those of `rpc.wire`: what is returned equals what protobuf's generated classes would have parsed
(`wire_fields` says what is known), bytes that are not protobuf raise `InvalidArgument`, reason MALFORMED_MESSAGE or
MESSAGE_TOO_COMPLEX, and a request that is wrong in itself comes back with its `error` set, and with its id and its
model as far as they can be read, because in a stream it must not hurt the neighbours.

Which data belongs to which input is settled here, as Triton does it: inputs in shared memory take no raw entry, the
others take the entries in their order, and a request with raw entries has no typed contents. Whether names, types,
shapes and sizes fit the model is for the engine's contract to say.

Everything here runs on the event loop's thread. What is returned refers to the message and keeps it alive.
"""

from __future__ import annotations

import re
from functools import lru_cache

from aclserve.errors import InvalidArgument
from aclserve_server.engine.items import Input, OutputRequest
from aclserve_server.rpc.v2.datatypes import BY_DTYPE, BYTES, DATATYPES, SERVED
from aclserve_server.rpc.v2.wire_contents import Contents, ContentsWalk
from aclserve_server.rpc.v2.wire_parameters import REGION, REGION_BYTES, Value, shown
from aclserve_server.rpc.v2.wire_templates import (
    REQUESTS,
    KnownInput,
    Source,
    Span,
    V2Item,
    known_input,
    remember_input,
)
from aclserve_server.rpc.varint import (
    MAX_DEPTH,
    MAX_FIELDS,
    check_packed,
    malformed,
    read_length,
    read_tag,
    read_varint,
    to_int64,
    too_complex,
)
from aclserve_server.rpc.wire import MAX_DIMENSIONS, MAX_INPUTS, MAX_OUTPUTS

__all__ = ["V2Item", "scan_model_infer_request"]

_VERSION = re.compile(r"0*([1-9][0-9]{0,18})")
_MAX_VERSION = (1 << 63) - 1
_MIXED = "INPUT_DATA_AMBIGUOUS"


def scan_model_infer_request(message: bytes) -> V2Item:
    """The item of a ModelInferRequest. Raises `InvalidArgument` for a malformed message only."""
    view = memoryview(message)
    item = REQUESTS.match(message, view)
    if item is not None:
        return item
    try:
        return _Scan(message, view).request()
    except IndexError:
        raise malformed("it is cut off") from None
    except InvalidArgument as error:
        if error.reason != "MESSAGE_TOO_COMPLEX":
            raise
        raise InvalidArgument(
            f"the message has more than {MAX_FIELDS} fields; send data raw, or typed elements packed",
            reason=error.reason,
        ) from None


@lru_cache(4096)
def _packed(raw: bytes) -> tuple[int, ...]:
    """Packed int64 values; a few shapes recur."""
    values = []
    pos = 0
    while pos < len(raw):
        value, pos = read_varint(raw, pos)
        values.append(to_int64(value))
    return tuple(values)


class _Scan(ContentsWalk):
    """One request. Beside the item it keeps where things are, for the request's template."""

    __slots__ = ("ids", "inputs", "raw", "regular", "sources")

    def __init__(self, message: bytes, view: memoryview) -> None:
        super().__init__(message, view)
        self.ids: list[Span] = []
        self.inputs: list[tuple[Input, Contents | None, Span]] = []
        self.raw: list[Span] = []
        self.sources: list[Source] = []
        self.regular = True

    def request(self) -> V2Item:
        message, end = self.message, len(self.message)
        item = V2Item()
        version = ""
        parameters: dict[str, Value] = {}
        pos = 0
        while pos < end:
            self.budget -= 1
            if self.budget < 0:
                raise too_complex()
            tag, pos = message[pos], pos + 1
            if tag >= 0x80 or tag < 8:
                tag, pos = read_tag(message, pos - 1)
            if tag & 7 != 2 or tag > 0x3A:
                pos = self.skip(pos, end, tag, MAX_DEPTH)
                continue
            length, pos = message[pos], pos + 1
            if length >= 0x80:
                length, pos = read_length(message, pos - 1)
            stop = pos + length
            if stop > end:
                raise malformed("a field is longer than the message")
            if tag == 0x3A:
                if len(self.raw) >= MAX_INPUTS:
                    self.refuse(f"a request has at most {MAX_INPUTS} raw_input_contents", "TOO_MANY_INPUTS")
                else:
                    self.raw.append((pos, stop))
            elif tag == 0x2A:
                tensor = self.tensor(pos, stop, MAX_DEPTH - 1)
                if len(self.inputs) >= MAX_INPUTS:
                    self.refuse(f"a request has at most {MAX_INPUTS} inputs", "TOO_MANY_INPUTS")
                else:
                    self.inputs.append(tensor)
            elif tag == 0x0A:
                item.model = self.text(pos, stop, "model_name")
            elif tag == 0x12:
                version = self.text(pos, stop, "model_version")
            elif tag == 0x1A:
                item.client_id = item.id = self.text(pos, stop, "id")
                self.ids.append((pos, stop))
            elif tag == 0x22:
                self.parameter(pos, stop, parameters, MAX_DEPTH - 1)
            else:
                self.output(pos, stop, item)
            pos = stop
        self.finish(pos, end)
        item.version = self.version(version)
        if parameters:
            item.timeout_s, item.priority, item.empty_final = self.request_parameters(parameters)
        self.settle(item)
        item.placed = any(given.region is not None for given in item.inputs) or any(
            wanted.region is not None for wanted in item.outputs
        )
        item.error = self.error
        if item.error is None and self.regular:
            REQUESTS.learn(message, item, self.ids, self.sources)
        return item

    def version(self, text: str) -> int:
        """The version that a request names, 0 where it names none."""
        if not text:
            return 0
        match = _VERSION.fullmatch(text)
        if match is None or int(match[1]) > _MAX_VERSION:
            self.refuse(
                f"model_version is {shown(text)}; expected a whole number of 1 or more, or nothing for the server to "
                "choose",
                "VERSION_INVALID",
            )
            return 0
        return int(match[1])

    def tensor(self, pos: int, end: int, depth: int) -> tuple[Input, Contents | None, Span]:
        """An InferInputTensor: the input still without data, its typed contents, and where it stands."""
        raw = self.message[pos:end] if end - pos <= 256 else b""
        known = known_input(raw)
        if known is not None:
            self.budget -= known.fields
            if self.budget < 0:
                raise too_complex()
            return known.input(), None, (pos, end)
        budget, start = self.budget, pos
        name = datatype = ""
        dims: list[int] = []
        parameters: dict[str, Value] = {}
        contents: Contents | None = None
        while pos < end:
            tag, pos = self.tag(pos)
            if tag == 0x18:
                dim, pos = read_varint(self.message, pos)
                self.add_dimensions(dims, (to_int64(dim),))
            elif tag & 7 == 2 and tag <= 0x2A:
                pos, stop = self.span(pos, end)
                if tag == 0x0A:
                    name = self.text(pos, stop, "name of an input")
                elif tag == 0x12:
                    datatype = self.text(pos, stop, "datatype of an input")
                elif tag == 0x1A:
                    self.packed_shape(pos, stop, dims)
                elif tag == 0x22:
                    self.parameter(pos, stop, parameters, depth - 1)
                else:
                    contents = {} if contents is None else contents
                    self.contents(pos, stop, contents, depth - 1)
                pos = stop
            else:
                pos = self.skip(pos, end, tag, depth)
        self.finish(pos, end)
        made = self.judged(name, datatype, tuple(dims), parameters)
        if contents is None and self.error is None and raw:
            region = made.region
            place = None if region is None else (region.name, region.offset_bytes, region.length_bytes)
            remember_input(raw, KnownInput(name, made.dtype, made.shape, place, budget - self.budget))
        return made, contents, (start, end)

    def judged(self, name: str, datatype: str, shape: tuple[int, ...], parameters: dict[str, Value]) -> Input:
        """The input, where its own fields make sense."""
        if not name:
            self.refuse("an input has no name; state the name of the model's input", "INPUT_UNNAMED")
        row = DATATYPES.get(datatype)
        if row is None or row.dtype is BYTES:
            known = f"expected one of {', '.join(SERVED)}"
            if row is not None:
                known = f"this device holds no strings; send numbers: {known}"
            self.refuse(f"input {shown(name)} has datatype {shown(datatype)}; {known}", "DATA_TYPE_UNSUPPORTED")
            row = DATATYPES["BOOL"]
        region = self.input_parameters(name, parameters) if parameters else None
        if region is not None and not region.length_bytes and 0 not in shape:
            self.refuse(
                f"input {shown(name)} has {REGION_BYTES!r} 0; expected the bytes of the tensor",
                "SHARED_MEMORY_INCOMPLETE",
            )
        return Input(name, row.dtype, shape, None, None, None, region)

    def packed_shape(self, pos: int, end: int, dims: list[int]) -> None:
        if end - pos <= MAX_DIMENSIONS * 10:
            self.add_dimensions(dims, _packed(self.message[pos:end]))
        else:
            check_packed(self.message, pos, end)
            self.refuse(f"a tensor has at most {MAX_DIMENSIONS} dimensions", "TOO_MANY_DIMENSIONS")

    def add_dimensions(self, dims: list[int], more: tuple[int, ...]) -> None:
        if len(dims) + len(more) <= MAX_DIMENSIONS:
            dims += more
        else:
            self.refuse(f"a tensor has at most {MAX_DIMENSIONS} dimensions", "TOO_MANY_DIMENSIONS")

    def output(self, pos: int, end: int, item: V2Item) -> None:
        """An InferRequestedOutputTensor."""
        name = ""
        parameters: dict[str, Value] = {}
        while pos < end:
            tag, pos = self.tag(pos)
            if tag == 0x0A or tag == 0x12:
                pos, stop = self.span(pos, end)
                if tag == 0x0A:
                    name = self.text(pos, stop, "name of an output")
                else:
                    self.parameter(pos, stop, parameters, MAX_DEPTH - 2)
                pos = stop
            else:
                pos = self.skip(pos, end, tag, MAX_DEPTH - 1)
        self.finish(pos, end)
        region, top_k = self.output_parameters(name, parameters) if parameters else (None, 0)
        if len(item.outputs) >= MAX_OUTPUTS:
            self.refuse(f"a request asks for at most {MAX_OUTPUTS} outputs", "TOO_MANY_OUTPUTS")
            return
        item.outputs.append(OutputRequest(name, None, region))
        if top_k:
            item.top_k = item.top_k or {}
            item.top_k[name] = top_k

    def settle(self, item: V2Item) -> None:
        """Gives every input its data."""
        taken = 0
        for tensor, contents, place in self.inputs:
            item.inputs.append(tensor)
            if tensor.region is not None:
                if contents is not None:
                    self.refuse(
                        f"input {shown(tensor.name)} has both {REGION!r} and contents; send one of them", _MIXED
                    )
                self.source(tensor, place)
            elif contents is not None:
                if self.raw:
                    self.refuse(
                        f"input {shown(tensor.name)} has contents, and the request has raw_input_contents; send all "
                        "inputs raw, or none",
                        _MIXED,
                    )
                self.typed_input(tensor, contents)
            elif taken < len(self.raw):
                start, stop = self.raw[taken]
                tensor.data = self.view[start:stop]
                self.source(tensor, self.raw[taken])
                taken += 1
            elif self.raw or 0 not in tensor.shape:
                self.refuse(self.without_data(tensor), "INPUT_DATA_MISSING")
            else:
                tensor.data = self.view[0:0]
                self.source(tensor, (0, 0))
        if taken < len(self.raw):
            self.refuse(
                f"the request has {len(self.raw)} raw_input_contents, but only {taken} inputs that take one (inputs in "
                "shared memory take none)",
                "RAW_CONTENTS_LEFT_OVER",
            )

    def typed_input(self, tensor: Input, contents: Contents) -> None:
        row = BY_DTYPE[tensor.dtype]
        tensor.data = self.typed(tensor.name, row, contents)
        spans = contents.get(row.contents_number, ())
        if row.contents in ("fp32_contents", "fp64_contents") and len(spans) == 1:
            self.source(tensor, spans[0])
        else:
            self.regular = False

    def source(self, tensor: Input, place: Span) -> None:
        """Notes where the data of the next input is, or the input itself where that says it."""
        in_region = tensor.region is not None
        self.sources.append(Source(tensor.name, tensor.dtype, tensor.shape, *place, in_region))
        if in_region and place[1] - place[0] > 256:
            self.regular = False

    def without_data(self, tensor: Input) -> str:
        if not self.raw:
            return f"input {shown(tensor.name)} has no data; send it raw, in contents or in shared memory"
        return (
            f"input {shown(tensor.name)} has no data: the request has {len(self.raw)} raw_input_contents, expected one "
            "for each input that is not in shared memory"
        )
