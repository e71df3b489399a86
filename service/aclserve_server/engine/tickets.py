"""Admitted items on their way: tickets, and what they are made of."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Protocol

from aclserve_server.access.principal import Principal
from aclserve_server.device.description import Gear, TensorInfo
from aclserve_server.engine.items import BufferSlice, DropReason, OutputTensor, RegionSlice, Result
from aclserve_server.engine.memory import Pin
from aclserve_server.engine.regions import RegionPin


class Sink(Protocol):
    """Where results go. Called on the event loop; takes what it needs of the views at once, and never raises."""

    def deliver(self, results: list[Result]) -> None:
        """Takes results that became ready together."""

    def __hash__(self) -> int:
        """Sinks are told apart: each is a stream, or a unary call."""


@dataclass(slots=True, eq=False)
class Member:
    """One of the items that a ticket stands for, where it stands for several."""

    item_id: str
    capture_time: bytes


@dataclass(slots=True, eq=False)
class Part:
    """One input of an admitted item: bytes to copy, or a pinned range of a device or host buffer or of a shared-memory
    region. What lies in a buffer is the only thing that does not come by way of the host: `pin` is None for all else.
    Where the ticket stands for several items, their bytes are the `pieces`, in order.
    """

    shape: tuple[int, ...]
    size_bytes: int
    data: memoryview | None
    pin: Pin | None = None
    region: RegionPin | None = None
    pieces: list[memoryview] | None = None


@dataclass(slots=True, eq=False)
class Wanted:
    """One output to return: its index in the model and, where it goes into a client's buffer, slice and pin; where it
    goes into a shared-memory region, that region's pin.
    """

    index: int
    slice: BufferSlice | None = None
    pin: Pin | None = None
    region: RegionPin | None = None

    @property
    def is_inline(self) -> bool:
        """Whether its bytes are sent."""
        return self.slice is None and self.region is None

    def placed(self, info: TensorInfo, shape: tuple[int, ...], data: memoryview | bytes | None) -> OutputTensor:
        """The output of an answer: with `data` where it is sent, otherwise with where it was written to."""
        if self.region is not None:
            return OutputTensor(info.name, info.dtype, shape, region=self.region.slice)
        return OutputTensor(info.name, info.dtype, shape, None if self.slice is not None else data, self.slice)


class Owner(Protocol):
    """Who runs a ticket."""

    def cancel(self, ticket: Ticket, reason: DropReason | None = None) -> bool:
        """Takes a ticket back; False where it no longer waits. With a reason, its stream drops it."""

    def take_back(self, ticket: Ticket, item_id: str) -> Result | None:
        """Takes one item of a ticket back, as its client asks: its answer; None where it no longer waits."""


@dataclass(slots=True, eq=False)
class Ticket:
    """An admitted item: all that is needed to run and answer it. Times are seconds of the monotonic clock.

    `drops` tells that its deadline is its stream's age limit: when it passes the item is dropped, which is no error.
    `patient` tells that it waits where the queue has no room, instead of being refused; while it does, it is `outside`.
    `alone` tells that it makes up a batch, because the device can work in its client's own memory then.
    `pins` are the buffers' and put tickets in order (`hazards`), `region_pins` the regions' and do not.
    `payer` is the principal whose quota `paid` items count for until the release.
    `timed` tells that its answer is to have its `timing`.
    `members` is None but for the ticket of several items, whose first one `item_id` and `capture_time` tell of.
    """

    item_id: str
    capture_time: bytes
    sink: Sink
    rows: int
    parts: Sequence[Part]
    outputs: Sequence[Wanted]
    received: float
    deadline: float | None
    stream: Hashable = None
    priority: int = 1
    owner: Owner | None = None
    gear: Gear | None = None
    queue_rows: int = 0
    waiting: bool = False
    parked: bool = False
    drops: bool = False
    patient: bool = False
    outside: bool = False
    alone: bool = False
    cancelled: bool = False
    pins: tuple[Pin, ...] = ()
    region_pins: tuple[RegionPin, ...] = ()
    members: list[Member] | None = None
    payer: Principal | None = None
    paid: int = 0
    timed: bool = True

    @property
    def items(self) -> int:
        """How many items it stands for."""
        return 1 if self.members is None else len(self.members)

    def release(self) -> None:
        """Lets go of the message's bytes, of the clients' buffers and of their regions."""
        self.parts = ()
        if self.payer is not None:
            self.payer.items -= self.paid
            self.payer = None
        if self.pins or self.region_pins:
            held: tuple[Pin | RegionPin, ...] = (*self.pins, *self.region_pins)
            self.pins = self.region_pins = ()
            for pin in held:
                pin.release()


class PinFunction(Protocol):
    """`MemoryManager.pin`: keeps a range of a client's buffer while an item uses it."""

    def __call__(self, lease_id: str, part: BufferSlice, need_bytes: int, *, output: bool = False) -> Pin:
        """Raises `NotFound`, `OutOfRange` or `FailedPrecondition` where the range cannot be used."""


class RegionPinFunction(Protocol):
    """`Regions.pin`: keeps a range of a shared-memory region while an item uses it."""

    def __call__(self, owner: str, part: RegionSlice, need_bytes: int, *, output: bool = False) -> RegionPin:
        """Raises `NotFound`, `OutOfRange` or `FailedPrecondition` where the range cannot be used."""
