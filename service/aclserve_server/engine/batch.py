"""One batch on its way: which tickets, in which slot, and where in its buffers each one lies."""

from __future__ import annotations

from dataclasses import dataclass, field
from time import perf_counter_ns

from aclserve.errors import AclserveError
from aclserve_server.device.description import Gear
from aclserve_server.engine.contract import Contract, RowContract, Ticket, output_bytes
from aclserve_server.engine.regions import RegionPin
from aclserve_server.engine.slots import Lent, Slot

ADDRESS_ALIGNMENT = 64
"""What the addresses of a model's buffers are multiples of."""


@dataclass(slots=True, eq=False)
class Batch:
    """Tickets on their way through a slot. Times are nanoseconds of `perf_counter_ns`.

    `error` is what all of them failed with; `errors` are those of single ones by their place, whose shared-memory
    regions could not be read or written. `repeated` tells that its submission was made a second time. `lent_inputs` and
    `lent_outputs` are those, by index, that the device reads and writes in the client's own memory.
    """

    slot: Slot
    tickets: list[Ticket]
    rows: int
    gear: Gear
    gear_rows: int
    positions: list[int]
    input_offsets: list[list[int]]
    output_offsets: list[list[int]]
    output_sizes: list[list[int]]
    closed_ns: int
    packed_ns: int = 0
    started_ns: int = 0
    executed_ns: int = 0
    finished_ns: int = 0
    upload_ns: int = 0
    execute_ns: int = 0
    download_ns: int = 0
    repeated: bool = False
    error: Exception | None = None
    errors: dict[int, AclserveError] = field(default_factory=dict)
    lent_inputs: dict[int, Lent] = field(default_factory=dict)
    lent_outputs: dict[int, Lent] = field(default_factory=dict)
    used_input_bytes: list[int] = field(default_factory=list)
    used_output_bytes: list[int] = field(default_factory=list)


def form(contract: Contract, slot: Slot, tickets: list[Ticket]) -> Batch:
    """Places the tickets' rows in a slot."""
    batch = _rows(contract, slot, tickets) if isinstance(contract, RowContract) else _whole(contract, slot, tickets[0])
    if slot.staged:
        batch.used_input_bytes = _inline_input_bytes(batch)
        batch.used_output_bytes = _inline_output_bytes(batch)
    if len(tickets) == 1 and tickets[0].region_pins and slot.marks is None:
        _lend(batch, tickets[0])
    return batch


def _lend(batch: Batch, ticket: Ticket) -> None:
    """Lets the device work in the client's own memory where the item is the whole batch and its memory allows that."""
    if ticket.rows != (batch.gear_rows or ticket.rows) or ticket.members is not None:
        return
    for index, part in enumerate(ticket.parts):
        if part.region is not None and (lent := _lent(part.region, part.size_bytes)):
            batch.lent_inputs[index] = lent
            part.region.read_bytes += part.size_bytes
    taken = list(batch.lent_inputs.values())
    for wanted in ticket.outputs:
        size = batch.output_sizes[0][wanted.index]
        if wanted.region is None or not (lent := _lent(wanted.region, size)):
            continue
        if all(
            lent.address + size <= other.address or other.address + other.size_bytes <= lent.address for other in taken
        ):
            batch.lent_outputs[wanted.index] = lent
            taken.append(lent)
            wanted.region.written_bytes += size


def _lent(pin: RegionPin, size_bytes: int) -> Lent | None:
    address = pin.device_address
    return Lent(address, size_bytes) if address and size_bytes and not address % ADDRESS_ALIGNMENT else None


def _rows(contract: RowContract, slot: Slot, tickets: list[Ticket]) -> Batch:
    rows, positions = 0, []
    for ticket in tickets:
        positions.append(rows)
        rows += ticket.rows
    gear_rows, gear = contract.gear_for(rows)
    in_bytes, out_bytes = contract.input_row_bytes, contract.output_row_bytes
    return Batch(
        slot,
        tickets,
        rows,
        gear,
        gear_rows,
        positions,
        [[at * size for size in in_bytes] for at in positions],
        [[at * size for size in out_bytes] for at in positions],
        [[ticket.rows * size for size in out_bytes] for ticket in tickets],
        perf_counter_ns(),
    )


def _whole(contract: Contract, slot: Slot, ticket: Ticket) -> Batch:
    """One item, whose shapes chose the gear."""
    gear = ticket.gear
    assert gear is not None
    sizes = [part.size_bytes for part in ticket.parts]
    out = [output_bytes(info, shape) for info, shape in zip(contract.outputs, gear.output_shapes, strict=True)]
    return Batch(
        slot,
        [ticket],
        1,
        gear,
        0,
        [0],
        [[0] * len(sizes)],
        [[0] * len(out)],
        [out],
        perf_counter_ns(),
    )


def pack(batch: Batch) -> None:
    """Copies the batch's rows into its slot and lets go of the messages they came in. What cannot be read from a region
    becomes its item's error.
    """
    slot = batch.slot
    for at, (ticket, offsets) in enumerate(zip(batch.tickets, batch.input_offsets, strict=True)):
        for index, part in enumerate(ticket.parts):
            if part.pieces is not None:
                size = part.size_bytes // len(part.pieces)
                for piece, data in enumerate(part.pieces):
                    slot.copy_in(index, offsets[index] + piece * size, data)
                part.data = part.pieces = None
            elif part.data is not None:
                if part.size_bytes:
                    slot.copy_in(index, offsets[index], part.data)
                part.data = None
            elif part.region is not None and index not in batch.lent_inputs:
                try:
                    slot.read_in(index, offsets[index], part.size_bytes, part.region)
                except AclserveError as error:
                    batch.errors.setdefault(at, error)
    batch.packed_ns = perf_counter_ns()


def writes_regions(batch: Batch) -> bool:
    """Whether an output of the batch is to be copied into a region."""
    lent = batch.lent_outputs
    return any(
        wanted.region is not None and wanted.index not in lent for ticket in batch.tickets for wanted in ticket.outputs
    )


def write_regions(batch: Batch) -> None:
    """Copies outputs into the clients' regions, once it is known that every task succeeded. What cannot be written
    becomes its item's error. Any thread, while the batch has its slot.
    """
    began = perf_counter_ns()
    ports = batch.slot.outputs
    for at, ticket in enumerate(batch.tickets):
        offsets, sizes = batch.output_offsets[at], batch.output_sizes[at]
        for wanted in ticket.outputs:
            if wanted.region is None or wanted.index in batch.lent_outputs or at in batch.errors or ticket.cancelled:
                continue
            start = offsets[wanted.index]
            try:
                wanted.region.write(ports[wanted.index].view[start : start + sizes[wanted.index]])
            except AclserveError as error:
                batch.errors[at] = error
    batch.download_ns = (batch.download_ns or batch.finished_ns - batch.executed_ns) + perf_counter_ns() - began


def _inline_input_bytes(batch: Batch) -> list[int]:
    """How much of each input comes by way of the host: nothing of one that comes only from clients' buffers."""
    ends = [0] * len(batch.slot.inputs)
    for ticket, offsets in zip(batch.tickets, batch.input_offsets, strict=True):
        for index, part in enumerate(ticket.parts):
            if part.pin is None and part.size_bytes:
                ends[index] = offsets[index] + part.size_bytes
    return ends


def _inline_output_bytes(batch: Batch) -> list[int]:
    """How much of each output the host must see: nothing of one that goes only into clients' buffers."""
    ends = [0] * len(batch.slot.outputs)
    for ticket, offsets, sizes in zip(batch.tickets, batch.output_offsets, batch.output_sizes, strict=True):
        for wanted in ticket.outputs:
            if wanted.pin is None:
                ends[wanted.index] = offsets[wanted.index] + sizes[wanted.index]
    return ends
