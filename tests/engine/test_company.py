"""Items of one message that travel as one ticket: who may join, and what becomes of each."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from aclserve.errors import InvalidArgument
from aclserve_server.access.principal import Principal
from aclserve_server.engine.batching import BatchQueue
from aclserve_server.engine.company import alike, apart, has, join, may_lead, split, take_out
from aclserve_server.engine.items import Input, Item, OutputRequest, OutputTensor, RegionSlice, Result, Timing
from aclserve_server.engine.tickets import Part, Ticket, Wanted
from aclserve_server.rpc.groups import Group

FLOAT = np.dtype(np.float32)


class Nobody:
    def deliver(self, results: list[Result]) -> None:
        raise AssertionError("nothing is delivered here")


def item(name: str, value: int = 0, **changes: Any) -> Item:
    data = memoryview(np.full(4, value, FLOAT).tobytes())
    return replace(Item(id=name, model="m", inputs=[Input("x", FLOAT, (1, 4), data)]), **changes)


def ticket_of(*items: Item) -> Ticket:
    """A ticket of these items, as the runner makes it."""
    parts = [Part(given.shape, 16, given.data) for given in items[0].inputs]
    ticket = Ticket(items[0].id, items[0].capture_time, Nobody(), 1, parts, [Wanted(0)], 0.0, None, "stream")
    join(ticket, items[0], list(items[1:]))
    return ticket


def ids(ticket: Ticket) -> list[str]:
    return [member.item_id for member in ticket.members or ()]


def values(ticket: Ticket) -> list[int]:
    (part,) = ticket.parts
    return [int(np.frombuffer(piece, FLOAT)[0]) for piece in part.pieces or ()]


def test_items_that_differ_in_id_time_and_bytes_are_alike() -> None:
    assert alike(item("a"), item("b", 7, capture_time=b"t"))


@pytest.mark.parametrize(
    "other",
    [
        item("b", model="other"),
        item("b", version=2),
        item("b", priority=3),
        item("b", timeout_s=1.0),
        item("b", outputs=[OutputRequest("y")]),
        item("b", error=InvalidArgument("no", reason="NO")),
        item("b", inputs=[]),
        item("b", inputs=[Input("z", FLOAT, (1, 4), memoryview(bytes(16)))]),
        item("b", inputs=[Input("x", np.dtype(np.int32), (1, 4), memoryview(bytes(16)))]),
        item("b", inputs=[Input("x", FLOAT, (2, 2), memoryview(bytes(16)))]),
        item("b", inputs=[Input("x", FLOAT, (1, 4), memoryview(bytes(12)))]),
        item("b", inputs=[Input("x", FLOAT, (1, 4), None, region=RegionSlice("r", 0, 16))]),
    ],
)
def test_whoever_differs_in_anything_else_goes_alone(other: Item) -> None:
    assert not alike(item("a"), other)


def test_deadlines_that_were_reckoned_microseconds_apart_are_one() -> None:
    assert alike(item("a", timeout_s=1.0), item("b", timeout_s=0.99999))
    assert not alike(item("a", timeout_s=1.0), item("b", timeout_s=0.9))


def test_only_inline_items_lead() -> None:
    assert may_lead(item("a"))
    assert not may_lead(item("a", outputs=[OutputRequest("y")]))
    assert not may_lead(item("a", inputs=[Input("x", FLOAT, (1, 4), None, region=RegionSlice("r", 0, 16))]))


def test_inputs_in_another_order_than_the_models_stay_together() -> None:
    def two(name: str, value: int) -> Item:
        x, y = (memoryview(bytes([value + at])) for at in range(2))
        return Item(id=name, inputs=[Input("y", FLOAT, (1,), y), Input("x", FLOAT, (1,), x)])

    first = two("a", 10)
    parts = [Part((1,), 1, first.inputs[1].data), Part((1,), 1, first.inputs[0].data)]  # the model has x, then y
    ticket = Ticket("a", b"", Nobody(), 1, parts, [], 0.0, None, "stream")
    join(ticket, first, [two("b", 20)])
    assert [[bytes(piece)[0] for piece in part.pieces or ()] for part in ticket.parts] == [[10, 20], [11, 21]]


def test_everyone_gets_an_answer_of_his_own() -> None:
    ticket = ticket_of(item("a", 1), item("b", 2, capture_time=b"t"), item("c", 3))
    rows = np.arange(6, dtype=FLOAT).reshape(3, 2)
    whole = Result(
        "a", b"", [OutputTensor("y", FLOAT, (3, 2), memoryview(rows.tobytes()))], timing=Timing(5, position=4)
    )
    found = apart(ticket, whole)
    assert [(result.item_id, result.capture_time) for result in found] == [("a", b""), ("b", b"t"), ("c", b"")]
    assert [result.timing and (result.timing.wait_ns, result.timing.position + result.shift) for result in found] == [
        (5, 4),
        (5, 5),
        (5, 6),
    ]
    for result, row in zip(found, rows, strict=True):
        assert result.outputs is not None
        assert result.outputs[0].shape == (1, 2)
        assert bytes(result.outputs[0].data or b"") == row.tobytes()


def test_an_error_is_everyones() -> None:
    error = InvalidArgument("no", reason="NO")
    assert [result.error for result in apart(ticket_of(item("a"), item("b")), Result("a", error=error))] == [error] * 2


@pytest.mark.parametrize("gone", ["a", "b", "c"])
def test_one_is_taken_out_and_the_others_stay(gone: str) -> None:
    ticket = ticket_of(item("a", 1), item("b", 2), item("c", 3))
    assert take_out(ticket, gone).item_id == gone
    left = [name for name in "abc" if name != gone]
    assert (ids(ticket), ticket.item_id, ticket.rows, ticket.parts[0].size_bytes) == (left, left[0], 2, 32)
    assert values(ticket) == ["abc".index(name) + 1 for name in left]
    assert not has(ticket, gone)


def test_a_ticket_is_split_where_its_items_meet() -> None:
    ticket = ticket_of(*(item(name, at) for at, name in enumerate("abcde")))
    ticket.waiting = True
    first = split(ticket, 2)
    assert (ids(first), first.rows, first.parts[0].size_bytes, values(first)) == (["a", "b"], 2, 32, [0, 1])
    assert (ids(ticket), ticket.rows, ticket.parts[0].size_bytes, values(ticket)) == (["c", "d", "e"], 3, 48, [2, 3, 4])
    assert (first.item_id, ticket.item_id, first.waiting, ticket.waiting) == ("a", "c", False, True)


def test_a_queue_counts_the_rows_that_are_left() -> None:
    queue: BatchQueue[Ticket] = BatchQueue(max_rows=4, max_items=4, max_queue_rows=100)
    whole, other = ticket_of(*(item(name) for name in "abcd")), ticket_of(item("z"), item("y"))
    other.stream = "another"
    queue.add(whole)
    queue.add(other)
    first = split(whole, 3)
    queue.shrunk(whole, first.rows, served=True)
    assert queue.rows == 3
    take_out(other, "z")
    queue.shrunk(other, 1, served=False)
    assert queue.rows == 2
    drawn = queue.take()
    assert sorted(name for ticket in drawn for name in ids(ticket)) == ["d", "y"]
    assert (queue.rows, queue.items, queue.oldest()) == (0, 0, None)


def test_a_group_takes_neighbours_up_to_a_models_bound() -> None:
    group = Group(lambda model, version: 3)
    for name in "abc":
        assert group.admits(item(name))
        group.add(item(name))
    assert not group.admits(item("d"))
    first, *rest = group.take()
    assert (first.id, [one.id for one in first.company or ()], [one.id for one in rest]) == (
        "a",
        ["b", "c"],
        ["b", "c"],
    )
    assert group.take() == []


@pytest.mark.parametrize("bound", [0, 1])
def test_where_nothing_goes_together_everyone_goes_alone(bound: int) -> None:
    group = Group(lambda model, version: bound)
    group.add(item("a"))
    assert not group.admits(item("b"))
    assert group.take()[0].company is None


def test_items_without_rows_go_alone() -> None:
    empty = item("a", inputs=[Input("x", FLOAT, (0, 4), memoryview(b""))])
    group = Group(lambda model, version: 8)
    group.add(empty)
    assert not group.admits(empty)


def test_a_split_ticket_gives_back_what_was_paid_once() -> None:
    payer = Principal("camera")
    payer.take_items(4)
    whole = ticket_of(*(item(name) for name in "abcd"))
    whole.payer, whole.paid = payer, 4
    first = split(whole, 1)
    first.release()
    assert payer.items == 3
    whole.release()
    assert payer.items == 0
