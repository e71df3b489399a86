"""What enters and leaves the engine: items, their tensors, results.

An item is one request, unary or of a stream; it holds one or several rows. Tensor bytes are views of the message they
came in, and stay views until their one copy into a slot's row. A result's outputs are views of a slot's output
buffers: whoever gets a result must take what it needs before it returns, because the slot is reused afterwards.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import numpy as np

from aclserve.errors import AclserveError


@dataclass(slots=True, eq=False)
class BufferSlice:
    """A range of a client's buffer; `length_bytes` 0 means as long as the tensor."""

    buffer_id: str
    offset_bytes: int
    length_bytes: int


@dataclass(slots=True, eq=False)
class RegionSlice:
    """A range of a shared-memory region; `length_bytes` 0 means as long as the tensor."""

    name: str
    offset_bytes: int
    length_bytes: int


@dataclass(slots=True, eq=False)
class Fill:
    """Bytes made by the server: zeros, or seeded random values."""

    random: bool
    seed: int


@dataclass(slots=True, eq=False)
class Input:
    """One input tensor; exactly one of `data`, `buffer`, `fill` and `region` is set.

    `shape` is as the client gave it. `data` is a read-only byte view of the received message.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    data: memoryview | None = None
    buffer: BufferSlice | None = None
    fill: Fill | None = None
    region: RegionSlice | None = None


@dataclass(slots=True, eq=False)
class OutputRequest:
    """Which output is wanted, and the buffer or the region to write it into (neither: send it)."""

    name: str
    buffer: BufferSlice | None = None
    region: RegionSlice | None = None


@dataclass(slots=True, eq=False)
class Item:
    """One request. `outputs` empty means all outputs, inline.

    `timeout_s` bounds the wait for execution, in seconds from receipt. `capture_time` is opaque here and echoed.
    `lease_id` is what the call showed in its metadata, or "". An `error` was found while the item was read off the
    wire: it is the item's answer, and nothing but `id` is to be relied on. `outputs` may be shared between items:
    read only.
    `priority` is 1 (low), 2 (normal), 3 (high), or 0 where the item says nothing. After `max_age_s` seconds of waiting
    it is dropped, as its stream asked. A `patient` item waits where its model's queue has no room, others are refused.
    `company` are items that came in the same message and are alike (`engine.company`); they travel with this one.
    `flow` is whose share of the device it takes; None: its sink's own. `timed`: its answer is to have its `timing`.
    `kind`: items of the same one (None: of none) differ in id, times, bytes, and in what is set after they were read.
    """

    id: str = ""
    model: str = ""
    version: int = 0
    inputs: list[Input] = field(default_factory=list)
    outputs: list[OutputRequest] = field(default_factory=list)
    timeout_s: float | None = None
    capture_time: bytes = b""
    lease_id: str = ""
    error: AclserveError | None = None
    priority: int = 0
    max_age_s: float | None = None
    patient: bool = False
    company: list[Item] | None = None
    flow: Hashable = field(default=None, kw_only=True)
    timed: bool = field(default=True, kw_only=True)
    kind: object = field(default=None, kw_only=True)


class DropReason(IntEnum):
    """Why an item was given up by its stream's frame policy; the numbers are the wire's."""

    OLDEST = 1
    NEWEST = 2
    SUPERSEDED = 3
    TOO_OLD = 4


@dataclass(slots=True, eq=False)
class Dropped:
    """The notice that an item was given up, `age_ns` after its receipt."""

    reason: DropReason
    age_ns: int


@dataclass(slots=True, eq=False)
class Timing:
    """Where the time of an item went, in nanoseconds, and its place in the batch."""

    wait_ns: int = 0
    copy_in_ns: int = 0
    execute_ns: int = 0
    copy_out_ns: int = 0
    total_ns: int = 0
    batch_rows: int = 0
    gear_rows: int = 0
    position: int = 0
    queue_rows: int = 0


@dataclass(slots=True, eq=False)
class OutputTensor:
    """One output: its bytes as a view that dies with the call it is handed to, or where they were written to."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    data: memoryview | bytes | None = None
    buffer: BufferSlice | None = None
    region: RegionSlice | None = None


@dataclass(slots=True, eq=False)
class Result:
    """The one answer to an item: `outputs`, `error`, or `dropped`. `timing` is None where it never reached a batch, or
    was not asked for; items that travelled together share it, and `shift` is by how many rows this one lies further on.
    """

    item_id: str
    capture_time: bytes = b""
    outputs: list[OutputTensor] | None = None
    error: AclserveError | None = None
    timing: Timing | None = None
    dropped: Dropped | None = None
    shift: int = 0
