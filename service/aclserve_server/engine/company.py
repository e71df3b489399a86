"""Items of one message that are alike travel as one ticket: the cost in Python is per ticket, not per row.

Alike are neighbours that differ in their id, their capture time and their bytes only. The first one leads: its checks
hold for all. Everyone gets an answer of his own, and can be taken out while the ticket waits.
"""

from __future__ import annotations

from dataclasses import replace

from aclserve_server.engine.items import Item, OutputTensor, Result
from aclserve_server.engine.tickets import Member, Part, Ticket

_SAME_DEADLINE_S = 1e-3


def may_lead(item: Item) -> bool:
    """Whether others may join an item: all of it is inline, and all its outputs are sent."""
    return item.error is None and not item.outputs and all(tensor.data is not None for tensor in item.inputs)


def alike(leader: Item, item: Item) -> bool:
    """Whether an item may join one that may lead."""
    if item.kind is not None and item.kind is leader.kind and item.timeout_s == leader.timeout_s:
        return item.priority == leader.priority and item.model == leader.model and item.version == leader.version
    ours, theirs = leader.inputs, item.inputs
    if item.error is not None or item.outputs or len(ours) != len(theirs):
        return False
    if item.model != leader.model or item.version != leader.version or item.priority != leader.priority:
        return False
    if (item.timeout_s is None) != (leader.timeout_s is None):
        return False
    if item.timeout_s is not None and abs(item.timeout_s - (leader.timeout_s or 0.0)) > _SAME_DEADLINE_S:
        return False
    for a, b in zip(ours, theirs, strict=True):
        if a.shape != b.shape or a.dtype is not b.dtype or a.name != b.name:
            return False
        if a.data is None or b.data is None or a.data.nbytes != b.data.nbytes:
            return False
    return True


def join(ticket: Ticket, leader: Item, company: list[Item]) -> None:
    """Takes the rest of the company into its leader's ticket, which has been admitted."""
    items = [leader, *company]
    names = [tensor.name for tensor in leader.inputs]
    for part, at in zip(ticket.parts, _order(ticket, leader, names), strict=True):
        part.pieces = [data for item in items if (data := item.inputs[at].data) is not None]
        part.size_bytes *= len(items)
    ticket.members = [Member(item.id, item.capture_time) for item in items]
    ticket.rows *= len(items)


def _order(ticket: Ticket, leader: Item, names: list[str]) -> list[int]:
    """Where each part's input is in the items, which may list their inputs in another order than the model."""
    places = {id(tensor.data): at for at, tensor in enumerate(leader.inputs)}
    return [places[id(part.data)] for part in ticket.parts]


def has(ticket: Ticket, item_id: str) -> bool:
    """Whether a ticket of several still stands for an item."""
    return any(member.item_id == item_id for member in ticket.members or ())


def split(ticket: Ticket, count: int) -> Ticket:
    """Takes the first `count` items out of a ticket of more, into one of their own that does not wait."""
    members, items = ticket.members, ticket.items
    assert members is not None
    rows = ticket.rows // items
    parts: list[Part] = []
    paid = count if ticket.paid else 0
    first = replace(ticket, rows=rows * count, members=members[:count], parts=parts, waiting=False, paid=paid)
    ticket.paid -= paid
    ticket.members = members[count:]
    ticket.rows -= first.rows
    for part in ticket.parts:
        pieces, size = part.pieces or [], part.size_bytes // items
        parts.append(replace(part, pieces=pieces[:count], size_bytes=size * count))
        part.pieces, part.size_bytes = pieces[count:], part.size_bytes - size * count
    ticket.item_id, ticket.capture_time = ticket.members[0].item_id, ticket.members[0].capture_time
    return first


def take_out(ticket: Ticket, item_id: str) -> Member:
    """Takes one item out of a ticket of several."""
    members = ticket.members
    assert members is not None
    count = len(members)
    at = next(index for index, member in enumerate(members) if member.item_id == item_id)
    taken = members.pop(at)
    ticket.rows -= ticket.rows // count
    for part in ticket.parts:
        part.size_bytes -= part.size_bytes // count
        if part.pieces is not None:
            del part.pieces[at]
    ticket.item_id, ticket.capture_time = members[0].item_id, members[0].capture_time
    return taken


def apart(ticket: Ticket, result: Result) -> list[Result]:
    """The answers of all that a ticket stands for, from its own."""
    members = ticket.members
    if members is None:
        return [result]
    count = len(members)
    rows = ticket.rows // count
    given, error, timing, dropped = result.outputs, result.error, result.timing, result.dropped
    if given is not None and len(given) == 1 and (data := given[0].data) is not None:
        output, size = given[0], len(data) // count
        name, dtype, shape = output.name, output.dtype, (rows, *output.shape[1:])
        return [
            Result(
                member.item_id,
                member.capture_time,
                [OutputTensor(name, dtype, shape, data[at * size : (at + 1) * size])],
                None,
                timing,
                None,
                at * rows,
            )
            for at, member in enumerate(members)
        ]
    results = []
    for at, member in enumerate(members):
        outputs = None if given is None else [_piece(output, at, count, rows) for output in given]
        results.append(Result(member.item_id, member.capture_time, outputs, error, timing, dropped, at * rows))
    return results


def _piece(output: OutputTensor, at: int, count: int, rows: int) -> OutputTensor:
    """One item's rows of an output."""
    data = output.data
    if data is not None:
        size = len(data) // count
        data = data[at * size : (at + 1) * size]
    return OutputTensor(output.name, output.dtype, (rows, *output.shape[1:]), data)
