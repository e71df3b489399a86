"""The invariants of engine/batching.py, against random histories with a clock of the test's own."""

from __future__ import annotations

import weakref

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aclserve.errors import ResourceExhausted
from aclserve_server.engine.batching import STARVED, BatchQueue
from engine.simulation import Ticket, queue


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


# What was learned.


def learned(costs: dict[int, float], **options: object) -> BatchQueue[Ticket]:
    waiting = queue(gears=sorted(costs), **options)
    for gear, seconds in costs.items():
        waiting.costs.learn(gear, seconds)
    return waiting


def predicted(waiting: BatchQueue[Ticket], rows: int = 1, *, busy_s: float = 0.0, **fields: object) -> float:
    ticket = Ticket(-1, rows, 0.0, **fields)  # type: ignore[arg-type]
    wait = waiting.predicted_wait(ticket, busy_s)
    assert wait is not None
    return wait


def fill(waiting: BatchQueue[Ticket], count: int, rows: int = 1, **fields: object) -> list[Ticket]:
    tickets = [Ticket(number, rows, 0.0, **fields) for number in range(count)]  # type: ignore[arg-type]
    for ticket in tickets:
        waiting.add(ticket)
    return tickets


def test_nothing_is_predicted_before_anything_was_executed() -> None:
    waiting = queue()
    fill(waiting, 5)
    assert waiting.predicted_wait(Ticket(9, 1, 0.0), 0.0) is None


def test_the_predicted_wait_counts_the_batches_before_and_not_the_own_one() -> None:
    waiting = learned({8: 0.1})
    assert predicted(waiting) == 0
    assert predicted(waiting, busy_s=0.3) == pytest.approx(0.3)
    fill(waiting, 7)
    assert predicted(waiting, busy_s=0.3) == pytest.approx(0.3)
    assert predicted(waiting, 2) == pytest.approx(0.1)
    fill(waiting, 10)
    assert predicted(waiting) == pytest.approx(0.2)
    assert waiting.predicted_wait(Ticket(-1, 1, 0.0), 0.0, 2) == pytest.approx(0.1)


def test_the_predicted_wait_of_a_quiet_stream_does_not_grow_with_anothers_backlog() -> None:
    waiting = learned({8: 0.1})
    fill(waiting, 60, stream="busy")
    assert predicted(waiting, stream="quiet") == 0
    assert predicted(waiting, stream="busy") == pytest.approx(0.7)


def test_the_predicted_wait_knows_of_priorities_and_deadlines() -> None:
    waiting = learned({8: 0.1})
    for stream in range(40):
        fill(waiting, 1, stream=stream)
    assert predicted(waiting, stream="new") == pytest.approx(0.5)
    assert predicted(waiting, stream="new", deadline=1.0) == 0
    assert predicted(waiting, stream="new", priority=2) == 0
    assert predicted(waiting, stream="new", priority=0) == pytest.approx(0.5)


def test_the_predicted_wait_where_every_item_is_an_execution() -> None:
    waiting = learned({8: 0.1}, max_items=1)
    fill(waiting, 3)
    assert predicted(waiting) == pytest.approx(0.3)


@given(
    st.lists(st.tuples(st.integers(1, 8), st.integers(0, 2), st.integers(0, 3), st.booleans()), max_size=30),
    st.floats(0, 0.5),
    st.integers(1, 3),
    st.floats(0, 1),
)
def test_who_goes_first_need_not_be_known_to_tell_that_a_wait_is_short_enough(
    waiting_ones: list[tuple[int, int, int, bool]], busy_s: float, lanes: int, enough: float
) -> None:
    waiting = learned({4: 0.06, 8: 0.1}, max_queue_rows=1000)
    for number, (rows, priority, stream, hasty) in enumerate(waiting_ones):
        waiting.add(Ticket(number, rows, 0.0, stream=stream, priority=priority, deadline=9.0 if hasty else None))
    for priority in range(3):
        ticket = Ticket(-1, 2, 0.0, stream=1, priority=priority, deadline=5.0)
        exact = waiting.predicted_wait(ticket, busy_s, lanes)
        quick = waiting.predicted_wait(ticket, busy_s, lanes, enough)
        assert exact is not None
        assert quick is not None
        assert (quick > enough) == (exact > enough)


def test_a_batch_waits_for_company_while_that_pays() -> None:
    waiting = learned({1: 0.1, 8: 0.1}, max_delay=1.0)
    for number in range(3):  # a row each 10 ms: 8 of them in 50 ms more, at the price of one
        waiting.add(Ticket(number, 1, number * 0.01))
    assert not waiting.ready(0.02, idle=True)
    assert waiting.ready(1.0, idle=True)


def test_a_batch_does_not_wait_where_a_fuller_gear_saves_nothing() -> None:
    waiting = learned({2: 0.2, 4: 0.4, 8: 0.8}, max_delay=1.0)
    for number in range(2):
        waiting.add(Ticket(number, 1, number * 0.01))
    assert waiting.ready(0.01, idle=True)


def test_a_batch_does_not_wait_for_company_that_would_come_too_late() -> None:
    waiting = learned({1: 1.0, 8: 1.0}, max_delay=0.1)
    for number in range(3):  # a row each 50 ms: the next five would take longer than the delay allows
        waiting.add(Ticket(number, 1, number * 0.05))
    waiting.take()
    waiting.add(Ticket(3, 1, 0.15))
    assert waiting.ready(0.15, idle=True)
    hurried = learned({1: 1.0, 8: 1.0}, max_delay=1.0)
    for number in range(3):
        hurried.add(Ticket(number, 1, number * 0.01, deadline=2.0))
    assert not hurried.ready(0.02, idle=True)
    hurried.add(Ticket(3, 1, 0.03, deadline=1.04))  # four more would come at 0.07, but that hurts this deadline
    assert hurried.ready(0.04, idle=True)


def test_a_full_queue_tells_when_to_come_again() -> None:
    waiting = learned({8: 0.5}, max_queue_rows=16)
    fill(waiting, 16)
    with pytest.raises(ResourceExhausted) as caught:
        waiting.add(Ticket(16, 1, 0.0))
    assert caught.value.reason == "QUEUE_FULL"
    assert caught.value.retry_delay == pytest.approx(1.0)


# Priorities and shares.


def test_a_higher_priority_overtakes() -> None:
    waiting = queue(max_rows=2)
    low, normal, high = (fill(waiting, 1, priority=priority)[0] for priority in (0, 1, 2))
    assert waiting.take() == [high, normal]
    assert waiting.take() == [low]


@given(
    st.integers(1, 8),
    st.lists(st.tuples(st.integers(1, 8), st.sampled_from("ab")), min_size=1, max_size=6),
    st.lists(st.integers(1, 8), max_size=4),
)
def test_no_priority_starves(high_rows: int, low: list[tuple[int, str]], normal: list[int]) -> None:
    """Though higher ones always have rows waiting, the ticket whose turn it is in the lowest goes within 16 batches."""
    waiting = queue(max_queue_rows=10_000)
    for rows, stream in low:
        waiting.add(Ticket(0, rows, 0.0, stream=stream, priority=0))
    for rows in normal:
        waiting.add(Ticket(1, rows, 0.0, priority=1))
    without = {0: 0, 1: 0}
    for _ in range(17 * len(low) + 18 * len(normal)):
        while sum(ticket[2].rows for ticket in waiting._arrivals if ticket[2].waiting) < 200:
            waiting.add(Ticket(2, high_rows, 0.0, priority=2))
        batch = waiting.take()
        for priority, bound in ((0, STARVED), (1, STARVED + 1)):
            waits = waiting._levels[priority].rows > 0
            served = any(ticket.priority == priority for ticket in batch)
            without[priority] = 0 if served or not waits else without[priority] + 1
            assert without[priority] <= bound
    assert waiting._levels[0].rows == waiting._levels[1].rows == 0


def test_a_large_ticket_of_a_low_priority_goes_though_small_ones_fit_beside_the_others() -> None:
    waiting = queue(max_queue_rows=1000)
    large = fill(waiting, 1, rows=8, stream="large", priority=0)[0]
    for _ in range(STARVED + 1):
        fill(waiting, 1, stream="small", priority=0)
        fill(waiting, 1, rows=7, priority=2)
        batch = waiting.take()
        if large in batch:
            break
    assert not large.waiting


def test_a_streams_bound_holds_over_its_priorities() -> None:
    waiting = queue(max_rows_per_stream=3)
    for priority in (0, 1, 2):
        fill(waiting, 2, stream="one", priority=priority)
    fill(waiting, 2, stream="other")
    rows = [ticket.stream for ticket in waiting.take()]
    assert rows.count("one") == 3
    assert rows.count("other") == 2


def test_a_ticket_larger_than_its_streams_bound_is_taken_all_the_same() -> None:
    waiting = queue(max_rows_per_stream=3)
    large, _ = fill(waiting, 2, rows=6)
    assert waiting.take() == [large]


def test_what_left_is_not_kept() -> None:
    """While the device is busy all the time, with a deadline far away: as a stream at ten times overload."""
    waiting = queue(max_queue_rows=64)
    alive: weakref.WeakSet[Ticket] = weakref.WeakSet()
    first = Ticket(-1, 1, 0.0, deadline=1.0, stream="first")
    waiting.add(first)
    for number in range(5000):
        ticket = Ticket(number, 1, 0.0, deadline=1e9 if number % 2 else None, stream=number % 3)
        alive.add(ticket)
        waiting.add(ticket)
        if number % 5 == 4:
            waiting.cancel(ticket)
        elif waiting.rows > 40:
            waiting.cancel(next(ticket for ticket in alive if ticket.waiting))
        del ticket
        assert len(alive) <= 2 * waiting.items + 100
        assert waiting.ready(0.0, idle=False) == (waiting.rows >= 8)
    while waiting.rows:
        waiting.take()
    assert not alive


def test_nobody_fills_the_queue_for_the_others() -> None:
    """One principal alone gets four fifths of the queue; another then gets its own part, and so does a third."""
    waiting = queue(max_rows=8, max_queue_rows=100)
    for payer, expected in (("greedy", 80), ("second", 16), ("third", 3)):
        for number in range(expected):
            waiting.add(Ticket(number, 1, 0.0, stream=(payer, number), payer=payer))
        with pytest.raises(ResourceExhausted) as caught:
            waiting.add(Ticket(expected, 1, 0.0, stream=payer, payer=payer))
        assert (caught.value.reason, caught.value.metadata["caller_rows"]) == ("QUEUE_FULL", str(expected))
        assert caught.value.retry_delay
    while waiting.rows:
        waiting.take()
    assert not waiting._held


def test_the_first_rows_of_a_principal_need_no_share_of_the_room() -> None:
    waiting = queue(max_rows=8, max_queue_rows=8)
    waiting.add(Ticket(0, 8, 0.0, payer="one"))
    waiting.take()
    waiting.add(Ticket(1, 4, 0.0, payer="one"))
    waiting.add(Ticket(2, 4, 0.0, payer="other"))
    waiting.cancel(waiting.take()[0])
    assert waiting.rows == 0
    assert not waiting._held
