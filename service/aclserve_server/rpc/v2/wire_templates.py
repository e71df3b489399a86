"""Requests that look like one seen before, read by comparing bytes; see `rpc.wire_templates`, whose idea this is.

Constant in a template are all bytes but those of the id, of raw entries, of typed elements that need no conversion, and
of inputs in shared memory. Of the latter, clients that rotate through their regions send ever the same few: their
meaning is remembered by their bytes.

Templates hold copies of small stretches and never refer to a message. Everything runs on the event loop's thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from aclserve_server.engine.items import Input, Item, OutputRequest, RegionSlice

MAX_TEMPLATES = 512
MAX_CONSTANT_BYTES = 2048
PER_LENGTH = 8
_MAX_LENGTHS = 4096
_MAX_INPUTS = 4096
_MAX_INPUT_BYTES = 256

Span = tuple[int, int]
Place = tuple[str, int, int]


@dataclass(slots=True, eq=False)
class V2Item(Item):
    """A request of the KServe v2 protocol.

    `client_id` is the id it is answered with. `top_k` has how many classes are wanted of which outputs (None: of none);
    it may be shared between items: read only. `empty_final`: triton_enable_empty_final_response was asked for.
    `placed`: a tensor of it lies in shared memory, or is to go there.
    """

    client_id: str = ""
    top_k: dict[str, int] | None = None
    empty_final: bool = False
    placed: bool = False
    timed: bool = field(default=False, kw_only=True)


class KnownInput(NamedTuple):
    """What the bytes of an InferInputTensor without contents say, and how many fields they are."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    region: Place | None
    fields: int

    def input(self) -> Input:
        """A new input, still without data."""
        region = None if self.region is None else RegionSlice(*self.region)
        return Input(self.name, self.dtype, self.shape, None, None, None, region)


class Source(NamedTuple):
    """An input of a template: where its data is in the message, or, if it is in shared memory, the input's message."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    start: int
    stop: int
    in_region: bool


class _Template(NamedTuple):
    constants: tuple[tuple[int, bytes], ...]
    id_start: int
    id_stop: int
    model: str
    version: int
    sources: tuple[Source, ...]
    outputs: list[OutputRequest]
    places: bool
    timeout_s: float | None
    priority: int
    top_k: dict[str, int] | None
    empty_final: bool
    placed: bool


_inputs: dict[bytes, KnownInput] = {}


def remember_input(raw: bytes, known: KnownInput) -> None:
    """Keeps what an InferInputTensor without contents says."""
    if len(raw) <= _MAX_INPUT_BYTES:
        if len(_inputs) >= _MAX_INPUTS:
            _inputs.clear()
        _inputs[raw] = known


def known_input(raw: bytes) -> KnownInput | None:
    """What was kept of these bytes."""
    return _inputs.get(raw)


class Table:
    """Templates by the length of the message, a few for each."""

    __slots__ = ("_misses", "_templates")

    def __init__(self) -> None:
        self._templates: dict[int, tuple[_Template, ...]] = {}
        self._misses: dict[int, int] = {}

    def match(self, message: bytes, view: memoryview) -> V2Item | None:
        """The item of a message, or None where it fits no template. Raises nothing."""
        for template in self._templates.get(len(message), ()):
            (
                constants,
                id_start,
                id_stop,
                model,
                version,
                sources,
                outputs,
                places,
                timeout_s,
                priority,
                top_k,
                empty_final,
                placed,
            ) = template
            for start, constant in constants:
                if not message.startswith(constant, start):
                    break
            else:
                try:
                    client_id = message[id_start:id_stop].decode()
                except UnicodeDecodeError:
                    return None
                inputs = []
                for name, dtype, shape, start, stop, in_region in sources:
                    if in_region:
                        known = _inputs.get(message[start:stop])
                        if known is None:
                            return None
                        inputs.append(known.input())
                    else:
                        inputs.append(Input(name, dtype, shape, view[start:stop]))
                if places:
                    outputs = [_copied(output) for output in outputs]
                return V2Item(
                    client_id,
                    model,
                    version,
                    inputs,
                    outputs,
                    timeout_s,
                    b"",
                    "",
                    None,
                    priority,
                    None,
                    False,
                    None,
                    client_id,
                    top_k,
                    empty_final,
                    placed,
                )
        return None

    def learn(self, message: bytes, item: V2Item, ids: Sequence[Span], sources: Sequence[Source]) -> None:
        """Makes a template of a message that was walked without an error.

        `ids` is where its id stands; the template has none where that is not once at most. As with native items, only
        when the length has come before, and only now and then where a length has more layouts than are kept.
        """
        length = len(message)
        if len(self._misses) >= _MAX_LENGTHS:
            self._misses.clear()
        misses = self._misses[length] = self._misses.get(length, 0) + 1
        if misses == 1 or (misses > PER_LENGTH and misses % 16) or len(ids) > 1:
            return
        varying = sorted((*ids, *((source.start, source.stop) for source in sources)))
        constants = _constants(message, varying)
        if sum(len(constant) for _, constant in constants) > MAX_CONSTANT_BYTES:
            return
        template = _Template(
            constants,
            *(ids[0] if ids else (0, 0)),
            item.model,
            item.version,
            tuple(sources),
            item.outputs,
            any(output.region is not None for output in item.outputs),
            item.timeout_s,
            item.priority,
            item.top_k,
            item.empty_final,
            item.placed,
        )
        if template.places:
            template = template._replace(outputs=[_copied(output) for output in item.outputs])
        if len(self._templates) >= MAX_TEMPLATES:
            self._templates.clear()
        others = [known for known in self._templates.get(length, ()) if known.constants != constants]
        self._templates[length] = (template, *others[: PER_LENGTH - 1])

    def clear(self) -> None:
        """Forgets everything."""
        self._templates.clear()
        self._misses.clear()
        _inputs.clear()


REQUESTS = Table()
"""ModelInferRequest messages, unary and of streams."""


def _copied(output: OutputRequest) -> OutputRequest:
    """An output's request of its own: whoever finds that its region is a buffer writes that down in it."""
    region = output.region
    place = None if region is None else RegionSlice(region.name, region.offset_bytes, region.length_bytes)
    return OutputRequest(output.name, None, place)


def _constants(message: bytes, varying: Sequence[Span]) -> tuple[tuple[int, bytes], ...]:
    """The stretches between those that vary, with their places."""
    constants = []
    at = 0
    for start, stop in (*varying, (len(message), len(message))):
        if start > at:
            constants.append((at, message[at : min(start, at + MAX_CONSTANT_BYTES + 1)]))
        at = max(at, stop)
    return tuple(constants)
