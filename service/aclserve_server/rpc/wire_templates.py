"""Items that look like one seen before, read by comparing bytes.

A template is made of an item that was walked field by field: the stretches of it that are constant (tags, lengths,
names, types, shapes) and the places between them that vary (the id, every tensor's data or slice, the two times).
Where the constant stretches are the same, the fields are the same, so an item can be made from what the template
holds and from slices. What varies has no say in the structure: its length is among the constant bytes.

A table keeps templates by length, a few for one length, and drops all when there are too many. Templates hold copies
of small stretches and never refer to a message. There are two tables: of items, and of whole messages with one item.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from aclserve_server.engine.items import BufferSlice, Fill, Input, Item, OutputRequest, RegionSlice
from aclserve_server.rpc.varint import DELIMITED, END_GROUP, GROUP, read_length, read_tag, skip_field
from aclserve_server.rpc.wire_times import EPOCH, is_plain, plain_seconds

MAX_TEMPLATES = 512
MAX_CONSTANT_BYTES = 2048
PER_LENGTH = 8
_MAX_LENGTHS = 4096
_MAX_SLICES = 4096
_MAX_SLICE_BYTES = 128

_DATA, _BUFFER, _FILL, _REGION = 0x22, 0x2A, 0x32, 0x3A
"""Tags of a tensor's sources."""

_Span = tuple[int, int]
_Source = tuple[int, int, int]
_slices: dict[bytes, tuple[str, int, int]] = {}


class _Tensor(NamedTuple):
    """An input: what is constant, and where its `source` is, by its tag: data or a slice (`fill` has no place)."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    start: int
    stop: int
    source: int
    fill: Fill | None


class _Template(NamedTuple):
    """An item but for its id, data and times. Places count from the template's beginning."""

    constants: tuple[tuple[int, bytes], ...]
    id_start: int
    id_stop: int
    model: str
    version: int
    tensors: tuple[_Tensor, ...]
    outputs: list[OutputRequest]
    timeout: _Span | None
    capture: _Span | None
    priority: int


class Table:
    """The templates of one kind of message."""

    __slots__ = ("_misses", "_templates")

    def __init__(self) -> None:
        self._templates: dict[int, tuple[_Template, ...]] = {}
        self._misses: dict[int, int] = {}

    def match(self, message: bytes, view: memoryview, pos: int, end: int) -> Item | None:
        """The item of `message[pos:end]`, or None where it fits no template. Raises nothing."""
        for template in self._templates.get(end - pos, ()):
            constants, id_start, id_stop, model, version, tensors, outputs, timeout, capture, priority = template
            for start, constant in constants:
                if not message.startswith(constant, pos + start):
                    break
            else:
                try:
                    item_id = message[pos + id_start : pos + id_stop].decode()
                except UnicodeDecodeError:
                    return None
                inputs = []
                for name, dtype, shape, start, stop, source, fill in tensors:
                    if source == _DATA:
                        inputs.append(Input(name, dtype, shape, view[pos + start : pos + stop]))
                    elif fill is not None:
                        inputs.append(Input(name, dtype, shape, None, None, fill))
                    else:
                        known = _slices.get(message[pos + start : pos + stop])
                        if known is None:
                            return None
                        if source == _BUFFER:
                            inputs.append(Input(name, dtype, shape, None, BufferSlice(*known)))
                        else:
                            inputs.append(Input(name, dtype, shape, region=RegionSlice(*known)))
                seconds, captured = None, b""
                if timeout is not None:
                    seconds = plain_seconds(message[pos + timeout[0] : pos + timeout[1]])
                    if seconds is None:
                        return None
                if capture is not None:
                    captured = message[pos + capture[0] : pos + capture[1]] or EPOCH
                    if not is_plain(captured):
                        return None
                return Item(
                    item_id, model, version, inputs, outputs, seconds, captured, "", None, priority, kind=template
                )
        return None

    def learn(self, message: bytes, origin: int, pos: int, end: int, item: Item) -> None:
        """Makes a template of `message[origin:end]`, whose `item` was walked from `pos` on without an error.

        Only when its length has come before: a client whose messages all differ in length gains nothing by it. And only
        now and then where one length has more layouts than are kept.
        """
        length = end - origin
        if len(self._misses) >= _MAX_LENGTHS:
            self._misses.clear()
        misses = self._misses[length] = self._misses.get(length, 0) + 1
        if misses == 1 or (misses > PER_LENGTH and misses % 16):
            return
        template = _template(message, origin, pos, end, item)
        if template is None:
            return
        if len(self._templates) >= MAX_TEMPLATES:
            self._templates.clear()
        others = [known for known in self._templates.get(length, ()) if known.constants != template.constants]
        self._templates[length] = (template, *others[: PER_LENGTH - 1])

    def clear(self) -> None:
        """Forgets everything."""
        self._templates.clear()
        self._misses.clear()


ITEMS = Table()
"""Single items: InferItem, and InferRequest, whose bytes are the same."""

MESSAGES = Table()
"""Whole StreamInferRequest messages that hold one item."""


def remember_slice(raw: bytes, place: tuple[str, int, int]) -> None:
    """Keeps what a BufferSlice or RegionSlice says (their bytes are alike), so that templates can read it."""
    if len(raw) <= _MAX_SLICE_BYTES:
        if len(_slices) >= _MAX_SLICES:
            _slices.clear()
        _slices[raw] = place


def _template(message: bytes, origin: int, pos: int, end: int, item: Item) -> _Template | None:
    """None for an item that is not laid out as encoders do: what may vary must have the only say in its field."""
    once: dict[int, _Span] = {}
    sources: list[_Source] = []
    varying: list[_Span] = []
    while pos < end:
        tag, begin, pos = _field(message, pos)
        span = (begin - origin, pos - origin)
        if tag == 0x1A:
            source = _source(message, begin, pos, origin)
            if source is None:
                return None
            sources.append(source)
            if source[0] >= 0:
                varying.append(source[:2])
        elif tag in (0x0A, 0x2A, 0x32):
            if tag in once:
                return None
            once[tag] = span
            varying.append(span)
        elif tag not in (0x12, 0x22, 0x38, 0x40):
            return None
    constants = _constants(message, origin, end, varying)
    if sum(len(constant) for _, constant in constants) > MAX_CONSTANT_BYTES:
        return None
    tensors = tuple(
        _Tensor(tensor.name, tensor.dtype, tensor.shape, *source, tensor.fill)
        for tensor, source in zip(item.inputs, sources, strict=True)
    )
    id_start, id_stop = once.get(0x0A, (0, 0))
    times = once.get(0x2A), once.get(0x32)
    return _Template(
        constants, id_start, id_stop, item.model, item.version, tensors, item.outputs, *times, item.priority
    )


def _field(message: bytes, pos: int) -> tuple[int, int, int]:
    """A field of an item that has been walked: its tag (0 for a group's), where its contents begin, where it ends."""
    tag, pos = read_tag(message, pos)
    if tag & 7 == DELIMITED:
        length, pos = read_length(message, pos)
        return tag, pos, pos + length
    if tag & 7 in (GROUP, END_GROUP):
        return 0, pos, pos
    return tag, pos, skip_field(message, pos, tag)


def _source(message: bytes, pos: int, end: int, origin: int) -> _Source | None:
    """Where a tensor's data or slice is, below 0 for a Fill; None where the tensor has not just one source."""
    source: _Source = (-1, -1, _FILL)
    count = 0
    while pos < end:
        tag, begin, pos = _field(message, pos)
        if tag == 0:
            return None
        if tag in (_DATA, _BUFFER, _REGION):
            source = (begin - origin, pos - origin, tag)
        count += tag in (_DATA, _BUFFER, _FILL, _REGION)
    return source if count == 1 else None


def _constants(message: bytes, origin: int, end: int, varying: list[_Span]) -> tuple[tuple[int, bytes], ...]:
    """The stretches between those that vary, with their places."""
    constants = []
    at = 0
    for begin, stop in (*varying, (end - origin, end - origin)):
        if begin > at:
            constants.append((at, message[origin + at : origin + min(begin, at + MAX_CONSTANT_BYTES + 1)]))
        at = stop
    return tuple(constants)
