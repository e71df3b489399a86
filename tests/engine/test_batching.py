"""The invariants of engine/batching.py, against random histories with a clock of the test's own."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from aclserve.errors import ResourceExhausted
from aclserve_server.engine.batching import BatchQueue
from hypothesis import given
from hypothesis import strategies as st


@dataclass(eq=False)
class Ticket:
    number: int
    rows: int
    received: float
    deadline: float | None = None
    stream: int = 0
    priority: int = 1
    waiting: bool = False


def queue(**options: float) -> BatchQueue[Ticket]:
    settings = {"max_rows": 8, "max_items": 8, "max_queue_rows": 64, "max_delay": 0.0} | options
    return BatchQueue(**settings)  # type: ignore[arg-type]


def test_an_idle_device_takes_what_waits_at_once() -> None:
    waiting = queue()
    waiting.add(Ticket(0, 3, received=1.0))
    assert waiting.ready(1.0, idle=True)
    assert [ticket.number for ticket in waiting.take()] == [0]
    assert not waiting.ready(1.0, idle=True)


def test_a_busy_device_lets_a_batch_grow_until_it_is_full() -> None:
    waiting = queue()
    for number in range(7):
        waiting.add(Ticket(number, 1, received=0.0))
        assert not waiting.ready(100.0, idle=False)
    waiting.add(Ticket(7, 1, received=0.0))
    assert waiting.ready(0.0, idle=False)
    assert len(waiting.take()) == 8


def test_the_delay_holds_a_batch_open_for_company() -> None:
    waiting = queue(max_delay=0.01)
    waiting.add(Ticket(0, 1, received=1.0))
    assert not waiting.ready(1.005, idle=True)
    assert waiting.next_wakeup(idle=True) == pytest.approx(1.01)
    assert waiting.next_wakeup(idle=False) is None
    assert waiting.ready(1.0101, idle=True)


def test_a_deadline_closes_a_batch_before_its_delay() -> None:
    waiting = queue(max_delay=0.01)
    waiting.add(Ticket(0, 1, received=1.0, deadline=1.012))
    assert waiting.ready(1.0021, idle=True)


def test_items_that_do_not_fit_together_make_two_batches() -> None:
    waiting = queue()
    for number in range(2):
        waiting.add(Ticket(number, 5, received=0.0))
    assert waiting.ready(0.0, idle=False)
    assert [ticket.number for ticket in waiting.take()] == [0]
    assert [ticket.number for ticket in waiting.take()] == [1]


def test_one_item_an_execution() -> None:
    waiting = queue(max_items=1)
    for number in range(3):
        waiting.add(Ticket(number, 1, received=0.0))
    assert [len(waiting.take()) for _ in range(3)] == [1, 1, 1]


def test_a_full_queue_refuses_at_once_and_says_so() -> None:
    waiting = queue(max_queue_rows=4)
    waiting.add(Ticket(0, 3, received=0.0))
    with pytest.raises(ResourceExhausted) as caught:
        waiting.add(Ticket(1, 2, received=0.0))
    assert caught.value.reason == "QUEUE_FULL"
    assert caught.value.retry_delay is not None
    assert "3 rows wait" in caught.value.message
    waiting.add(Ticket(2, 1, received=0.0))
    assert waiting.rows == 4


def test_expired_and_cancelled_tickets_leave_once() -> None:
    waiting = queue()
    late, taken_back, stays = (Ticket(n, 1, 0.0, deadline=1.0 if n == 0 else None) for n in range(3))
    for ticket in (late, taken_back, stays):
        waiting.add(ticket)
    assert waiting.cancel(taken_back)
    assert not waiting.cancel(taken_back)
    assert waiting.expire(0.999) == []
    assert waiting.expire(1.0) == [late]
    assert waiting.expire(2.0) == []
    assert waiting.rows == 1
    assert waiting.take() == [stays]


steps = st.one_of(
    st.tuples(st.just("add"), st.integers(1, 8), st.none() | st.integers(0, 20)),
    st.tuples(st.just("tick"), st.integers(1, 10), st.none()),
    st.tuples(st.just("cancel"), st.integers(0, 30), st.none()),
    st.tuples(st.just("take"), st.booleans(), st.none()),
)


@given(st.lists(steps, max_size=60), st.integers(0, 5), st.integers(1, 8))
def test_every_ticket_leaves_exactly_once_in_order_within_capacity(
    history: list[tuple[str, int, int | None]], delay: int, max_items: int
) -> None:
    waiting = queue(max_delay=float(delay), max_items=max_items, max_queue_rows=40)
    now = 0.0
    inside: dict[int, Ticket] = {}
    left: list[int] = []
    added: list[Ticket] = []
    for kind, value, deadline in history:
        if kind == "add":
            ticket = Ticket(len(added), int(value), now, None if deadline is None else now + deadline)
            rows_before = waiting.rows
            try:
                waiting.add(ticket)
            except ResourceExhausted:
                assert rows_before + ticket.rows > 40
                continue
            added.append(ticket)
            inside[ticket.number] = ticket
        elif kind == "tick":
            now += value
            for ticket in waiting.expire(now):
                assert ticket.deadline is not None
                assert ticket.deadline <= now
                left.append(inside.pop(ticket.number).number)
        elif kind == "cancel" and added:
            ticket = added[int(value) % len(added)]
            assert waiting.cancel(ticket) == (ticket.number in inside)
            if inside.pop(ticket.number, None):
                left.append(ticket.number)
        elif kind == "take":
            oldest = min((ticket.received for ticket in inside.values()), default=None)
            ready = waiting.ready(now, idle=bool(value))
            if value and oldest is not None and now - oldest >= delay:
                assert ready, "an idle device leaves nothing older than the delay bound"
            if ready:
                batch = waiting.take()
                assert 1 <= sum(ticket.rows for ticket in batch) <= 8
                assert len(batch) <= max_items
                expected = sorted(inside)[: len(batch)]
                assert [ticket.number for ticket in batch] == expected
                for ticket in batch:
                    left.append(inside.pop(ticket.number).number)
        assert waiting.rows == sum(ticket.rows for ticket in inside.values()) <= 40
        assert waiting.items == len(inside)
    assert len(left) == len(set(left))
    assert sorted([*left, *inside]) == [ticket.number for ticket in added]
