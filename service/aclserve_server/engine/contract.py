"""What a loaded model accepts, and the admission of items: from names, types, shapes and sizes to a ticket.

A model is used in one of three ways:
    - rows: axis 0 of every input and output counts rows; rows of several items share an execution (`RowContract`);
    - gears or static: an item's shapes select one compiled shape, one item an execution (`ShapeContract`);
    - unknown: shapes are free where the model says -1 and outputs are known only afterwards (`FreeContract`).
Admission is the only place that judges a client's tensors. Its messages say what was got, what was expected, and the
smallest change that helps (`advice`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from aclserve.errors import AclserveError, InvalidArgument
from aclserve_server.access.principal import CURRENT
from aclserve_server.device.description import Gear, ModelDescription, TensorInfo
from aclserve_server.device.formats import storage_shape
from aclserve_server.engine.advice import dtype_fix, nearest, shape_fix, size_fix
from aclserve_server.engine.fills import Fills
from aclserve_server.engine.items import Input, Item, OutputRequest
from aclserve_server.engine.model_config import QueuePolicy
from aclserve_server.engine.reshapes import Reshapes
from aclserve_server.engine.tickets import Owner, Part, PinFunction, RegionPinFunction, Sink, Ticket, Wanted

__all__ = [
    "Contract",
    "FreeContract",
    "Owner",
    "Part",
    "PinFunction",
    "RegionPinFunction",
    "RowContract",
    "ShapeContract",
    "Sink",
    "Ticket",
    "Wanted",
    "output_bytes",
]


class Contract:
    """The checks that all ways of use share."""

    def __init__(self, description: ModelDescription, pin: PinFunction, pin_region: RegionPinFunction) -> None:
        self.inputs = description.inputs
        self.outputs = description.outputs
        self._pin = pin
        self._pin_region = pin_region
        self._fills = Fills()
        self.queue_policy = QueuePolicy()
        self._input_names = [info.name for info in self.inputs]
        self._all_outputs = [Wanted(index) for index in range(len(self.outputs))]
        self._output_index = {info.name: index for index, info in enumerate(self.outputs)}

    def admit(self, item: Item, sink: Sink, now: float) -> Ticket:
        """The item's ticket; raises the `AclserveError` that tells what is wrong with it. Takes no time to speak of."""
        ticket = Ticket(item.id, item.capture_time, sink, 1, (), self._all_outputs, now, None, sink)
        if item.priority:
            ticket.priority = item.priority - 1
        ticket.patient = item.patient
        ticket.timed = item.timed
        if item.timeout_s is not None:
            ticket.deadline = now + item.timeout_s
        if item.max_age_s is not None and (ticket.deadline is None or now + item.max_age_s < ticket.deadline):
            ticket.deadline, ticket.drops = now + item.max_age_s, True
        if self.queue_policy.timeout_s:
            self._bound(ticket)
        if item.flow is not None:
            ticket.stream = item.flow
        inputs = item.inputs
        if [given.name for given in inputs] != self._input_names:
            inputs = self._in_model_order(inputs)
        try:
            self._fit(ticket, inputs)
            ticket.parts = [
                self._part(ticket, given, info, item.lease_id) for given, info in zip(inputs, self.inputs, strict=True)
            ]
            if item.outputs:
                ticket.outputs = self._wanted(ticket, item.outputs, item.lease_id)
            if (payer := CURRENT.get()) is not None:
                paid = 1 + len(item.company or ())
                payer.take_items(paid)
                ticket.payer, ticket.paid = payer, paid
        except AclserveError:
            ticket.release()
            raise
        return ticket

    def output_shape(self, ticket: Ticket, index: int) -> tuple[int, ...] | None:
        """The shape of an output for this ticket, or None where it is known only after the run."""
        raise NotImplementedError

    def _bound(self, ticket: Ticket) -> None:
        """Applies the model's own bound of an item's wait."""
        latest = ticket.received + self.queue_policy.timeout_s
        own = ticket.deadline
        if own is None or own > latest or not (ticket.drops or self.queue_policy.allow_override):
            ticket.deadline, ticket.drops = latest, False

    def _fit(self, ticket: Ticket, inputs: Sequence[Input]) -> None:
        """Judges types and shapes; sets the ticket's rows or gear."""
        raise NotImplementedError

    def _in_model_order(self, inputs: list[Input]) -> list[Input]:
        if len(inputs) == 1 == len(self.inputs) and not inputs[0].name:
            return inputs
        known = self._input_names
        by_name = {given.name: given for given in inputs}
        for given in inputs:
            if given.name not in known:
                raise InvalidArgument(
                    f"the model has no input {given.name!r}; its inputs are {_names(known)}",
                    reason="INPUT_UNKNOWN",
                    metadata={"input": given.name},
                )
        for name in known:
            if name not in by_name:
                raise InvalidArgument(
                    f"input {name!r} is missing; the model's inputs are {_names(known)}",
                    reason="INPUT_MISSING",
                    metadata={"input": name},
                )
        if len(inputs) != len(known):
            raise InvalidArgument(
                f"{len(inputs)} inputs were given, some of them twice; give each once: {_names(known)}",
                reason="INPUT_DUPLICATE",
            )
        return [by_name[name] for name in known]

    def _check_dtype(self, given: Input, info: TensorInfo) -> None:
        if given.dtype != info.dtype:
            raise InvalidArgument(
                f"input {info.name!r} has type {given.dtype}, the model takes {info.dtype}; "
                f"{dtype_fix(given.dtype, info.dtype)}",
                reason="DATA_TYPE_MISMATCH",
                metadata={"input": info.name, "got": given.dtype, "expected": info.dtype},
            )

    def _part(self, ticket: Ticket, given: Input, info: TensorInfo, lease_id: str) -> Part:
        size = math.prod(given.shape) * info.dtype.itemsize
        if given.data is not None:
            if given.data.nbytes != size:
                raise _size_mismatch(info, given.shape, given.data.nbytes, size)
            return Part(given.shape, size, given.data)
        if given.fill is not None:
            return Part(given.shape, size, self._fills.get(given.fill, given.dtype, size))
        source = given.buffer or given.region
        length = 0 if source is None else source.length_bytes
        if length not in (0, size) or (source is None and size):
            raise _size_mismatch(info, given.shape, length, size)
        if size == 0:
            return Part(given.shape, 0, memoryview(b""))
        if given.buffer is not None:
            pin = self._pin(lease_id, given.buffer, size)
            ticket.pins += (pin,)
            return Part(given.shape, size, None, pin)
        assert given.region is not None
        region = self._pin_region(lease_id, given.region, size)
        ticket.region_pins += (region,)
        return Part(given.shape, size, None, region=region)

    def _wanted(self, ticket: Ticket, requests: Sequence[OutputRequest], lease_id: str) -> list[Wanted]:
        wanted = []
        for request in requests:
            index = self._output_index.get(request.name)
            if index is None:
                raise InvalidArgument(
                    f"the model has no output {request.name!r}; its outputs are {_names(self._output_index)}",
                    reason="OUTPUT_UNKNOWN",
                    metadata={"output": request.name},
                )
            wanted.append(self._choice(ticket, request, index, lease_id))
        if len({choice.index for choice in wanted}) != len(wanted):
            raise InvalidArgument("an output was asked for twice; ask for each once", reason="OUTPUT_DUPLICATE")
        return wanted

    def _choice(self, ticket: Ticket, request: OutputRequest, index: int, lease_id: str) -> Wanted:
        if request.buffer is None and request.region is None:
            return Wanted(index)
        info = self.outputs[index]
        if request.buffer is not None and request.region is not None:
            raise InvalidArgument(
                f"output {info.name!r} is to go into a buffer and into a region; give one of the two",
                reason="OUTPUT_DIRECTED_TWICE",
                metadata={"output": info.name},
            )
        if info.channel_block:
            raise InvalidArgument(
                f"output {info.name!r} lies in a private layout on the device and is converted on its way out; "
                "ask for it inline",
                reason="FORMAT_UNSUPPORTED",
                metadata={"output": info.name},
            )
        shape = self.output_shape(ticket, index)
        need = 0 if shape is None else output_bytes(info, shape)
        if request.buffer is not None:
            pin = self._pin(lease_id, request.buffer, need, output=True)
            ticket.pins += (pin,)
            return Wanted(index, request.buffer, pin)
        assert request.region is not None
        region = self._pin_region(lease_id, request.region, need, output=True)
        ticket.region_pins += (region,)
        return Wanted(index, region=region)


def output_bytes(info: TensorInfo, shape: tuple[int, ...]) -> int:
    """The bytes of an output of this shape as the device lays it out."""
    return math.prod(storage_shape(shape, info.channel_block)) * info.dtype.itemsize


class RowContract(Contract):
    """Axis 0 of every tensor counts rows. `gears` are the compiled row counts, ascending.

    `mixes_rows` marks a model whose rows are not independent: an item then runs alone, in the gear of just its rows.
    """

    def __init__(
        self,
        description: ModelDescription,
        pin: PinFunction,
        pin_region: RegionPinFunction,
        gears: Sequence[tuple[int, Gear]],
        *,
        mixes_rows: bool = False,
    ) -> None:
        super().__init__(description, pin, pin_region)
        self.gears = gears
        self.max_rows = gears[-1][0]
        self.mixes_rows = mixes_rows
        self.row_shapes = [info.shape[1:] for info in self.inputs]
        first = gears[0]
        self.output_row_shapes = [shape[1:] for shape in first[1].output_shapes]
        self.input_row_bytes = [
            math.prod(shape) * info.dtype.itemsize for shape, info in zip(self.row_shapes, self.inputs, strict=True)
        ]
        self.output_row_bytes = [
            output_bytes(info, (1, *shape)) for shape, info in zip(self.output_row_shapes, self.outputs, strict=True)
        ]

    def gear_for(self, rows: int) -> tuple[int, Gear]:
        """The smallest gear that fits; `rows` is at most `max_rows`."""
        for gear in self.gears:
            if gear[0] >= rows:
                return gear
        raise ValueError(f"{rows} rows do not fit {self.max_rows}")

    def output_shape(self, ticket: Ticket, index: int) -> tuple[int, ...]:
        return (ticket.rows, *self.output_row_shapes[index])

    def _fit(self, ticket: Ticket, inputs: Sequence[Input]) -> None:
        rows = -1
        for given, info, row_shape in zip(inputs, self.inputs, self.row_shapes, strict=True):
            if given.dtype is not info.dtype:
                self._check_dtype(given, info)
            shape = given.shape
            if not shape or shape[1:] != row_shape or shape[0] < 0:
                raise _shape_mismatch(info, shape, (-1, *row_shape), ("rows", *row_shape))
            if rows < 0:
                rows = shape[0]
            elif rows != shape[0]:
                raise InvalidArgument(
                    f"input {info.name!r} has {shape[0]} rows, the inputs before it {rows}; all must have as many: "
                    f"send {rows} of each, or {shape[0]}",
                    reason="SHAPE_MISMATCH",
                    metadata={"input": info.name, "got": list(shape)},
                )
        if rows > self.max_rows:
            raise InvalidArgument(
                f"the item has {rows} rows, the model takes at most {self.max_rows}; "
                f"send it in {-(-rows // self.max_rows)} items",
                reason="TOO_MANY_ROWS",
                metadata={"rows": rows, "max_rows": self.max_rows},
            )
        if self.mixes_rows and rows and not any(count == rows for count, _ in self.gears):
            counts = ", ".join(str(count) for count, _ in self.gears)
            raise InvalidArgument(
                f"the item has {rows} rows; this model's rows depend on each other, so it cannot be padded: "
                f"send one of {counts} rows",
                reason="SHAPE_MISMATCH",
                metadata={"rows": rows, "gears": counts},
            )
        ticket.rows = rows


class ShapeContract(Contract):
    """The inputs' shapes must be those of one gear (a static model has one)."""

    def __init__(self, description: ModelDescription, pin: PinFunction, pin_region: RegionPinFunction) -> None:
        super().__init__(description, pin, pin_region)
        self.gears = description.gears
        self._by_shapes = {gear.input_shapes: gear for gear in self.gears}

    def output_shape(self, ticket: Ticket, index: int) -> tuple[int, ...]:
        assert ticket.gear is not None
        return ticket.gear.output_shapes[index]

    def _fit(self, ticket: Ticket, inputs: Sequence[Input]) -> None:
        for given, info in zip(inputs, self.inputs, strict=True):
            if given.dtype is not info.dtype:
                self._check_dtype(given, info)
        gear = self._by_shapes.get(tuple(given.shape for given in inputs))
        if gear is None:
            raise self._no_gear(inputs)
        ticket.gear = gear

    def _no_gear(self, inputs: Sequence[Input]) -> InvalidArgument:
        for position, (given, info) in enumerate(zip(inputs, self.inputs, strict=True)):
            possible = sorted({gear.input_shapes[position] for gear in self.gears})
            if given.shape not in possible:
                if len(possible) == 1:
                    return _shape_mismatch(info, given.shape, possible[0])
                listed = ", ".join(str(list(shape)) for shape in possible)
                _, fix = nearest(given.shape, possible, info.format)
                return InvalidArgument(
                    f"input {info.name!r} has shape {list(given.shape)}; the model was compiled for {listed}; "
                    f"{fix.text}",
                    reason="SHAPE_MISMATCH",
                    metadata={"input": info.name, "got": list(given.shape), "expected": listed},
                )
        listed = "; ".join(", ".join(str(list(shape)) for shape in gear.input_shapes) for gear in self.gears)
        got = [given.shape for given in inputs]
        closest = max(self.gears, key=lambda gear: sum(a == b for a, b in zip(got, gear.input_shapes, strict=True)))
        changes = ", ".join(
            f"{info.name!r} as {list(want)}"
            for info, has, want in zip(self.inputs, got, closest.input_shapes, strict=True)
            if has != want
        )
        return InvalidArgument(
            f"the inputs' shapes do not go together; the model was compiled for {listed}; send {changes}",
            reason="SHAPE_MISMATCH",
            metadata={"expected": listed},
        )


class FreeContract(Contract):
    """-1 in a model's shape stands for any size; outputs are known after the run. `reshapes` are for who runs it."""

    def __init__(
        self,
        description: ModelDescription,
        pin: PinFunction,
        pin_region: RegionPinFunction,
        reshapes: Reshapes | None = None,
    ) -> None:
        super().__init__(description, pin, pin_region)
        self.reshapes = reshapes or Reshapes()

    def output_shape(self, ticket: Ticket, index: int) -> tuple[int, ...] | None:
        shape = self.outputs[index].shape
        return None if any(dim < 0 for dim in shape) else shape

    def _fit(self, ticket: Ticket, inputs: Sequence[Input]) -> None:
        for given, info in zip(inputs, self.inputs, strict=True):
            if given.dtype is not info.dtype:
                self._check_dtype(given, info)
            fits = len(given.shape) == len(info.shape) and all(
                got >= 0 and want in (-1, got) for got, want in zip(given.shape, info.shape, strict=True)
            )
            if not fits:
                raise _shape_mismatch(info, given.shape, info.shape)


def _names(names: Any) -> str:
    return ", ".join(repr(name) for name in names)


def _shape_mismatch(
    info: TensorInfo, got: tuple[int, ...], expected: tuple[int, ...], named: tuple[object, ...] = ()
) -> InvalidArgument:
    """`named` is `expected` as people read it."""
    wanted = "[" + ", ".join("any" if dim == -1 else str(dim) for dim in named or expected) + "]"
    return InvalidArgument(
        f"input {info.name!r} has shape {list(got)}, the model takes {wanted}; "
        f"{shape_fix(got, expected, info.format).text}",
        reason="SHAPE_MISMATCH",
        metadata={"input": info.name, "got": list(got), "expected": wanted},
    )


def _size_mismatch(info: TensorInfo, shape: tuple[int, ...], got: int, expected: int) -> InvalidArgument:
    return InvalidArgument(
        f"input {info.name!r} has {got} bytes; shape {list(shape)} of {info.dtype} needs {expected}; "
        f"{size_fix(shape, info.dtype, got)}",
        reason="TENSOR_SIZE_MISMATCH",
        metadata={"input": info.name, "got_bytes": got, "expected_bytes": expected},
    )
