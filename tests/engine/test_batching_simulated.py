"""The promises of engine/batching.py over time: a device in simulated time, and streams that are not kind to it."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aclserve.errors import ResourceExhausted
from aclserve_server.engine.frames import Frame, FrameWindow, Policy
from engine.simulation import Device, Ticket, queue

GEARS = [1, 2, 4, 8]

arrivals = st.lists(
    st.tuples(
        st.sampled_from([0.0, 0.0, 0.001, 0.01, 0.1]),  # seconds after the one before
        st.integers(0, 4),  # stream
        st.integers(0, 2),  # priority
        st.integers(1, 8),  # rows
        st.none() | st.sampled_from([0.005, 0.05, 0.5]),  # seconds to its deadline
        st.none() | st.sampled_from([0.0, 0.02, 0.2]),  # seconds until it is cancelled
    ),
    max_size=60,
)


@settings(deadline=None)
@given(
    arrivals,
    st.sampled_from([0.0, 0.004, 0.05]),
    st.sampled_from([0, 3]),
    st.sampled_from([1, 8]),
    st.sampled_from([(0.0001, 0.0), (0.02, 0.001), (0.1, 0.05)]),
    st.integers(1, 3),
)
def test_whatever_comes(
    history: list[tuple[float, int, int, int, float | None, float | None]],
    delay: float,
    bound: int,
    max_items: int,
    speed: tuple[float, float],
    slots: int,
) -> None:
    waiting = queue(max_delay=delay, max_rows_per_stream=bound, max_items=max_items, gears=GEARS)
    device = Device(waiting, lambda gear: speed[0] + speed[1] * gear, slots)
    added: list[Ticket] = []
    cancelled: set[int] = set()

    def add(ticket: Ticket) -> None:
        rows = waiting.rows
        wait = waiting.predicted_wait(ticket, device.busy_s)
        assert wait is None or wait >= device.busy_s
        try:
            waiting.add(ticket)
        except ResourceExhausted:
            assert rows + ticket.rows > waiting.max_queue_rows
        else:
            added.append(ticket)

    def cancel(ticket: Ticket) -> None:
        if waiting.cancel(ticket):
            ticket.left += 1
            cancelled.add(ticket.number)

    when = 0.0
    for number, (gap, stream, priority, rows, deadline, cancelled_after) in enumerate(history):
        when += gap
        ticket = Ticket(number, rows, when, None if deadline is None else when + deadline, stream, priority)
        device.at(when, lambda ticket=ticket: add(ticket))
        if cancelled_after is not None:
            device.at(when + cancelled_after, lambda ticket=ticket: cancel(ticket))
    device.run()

    assert waiting.rows == waiting.items == 0
    assert [ticket.number for ticket in added if ticket.left != 1] == []
    executed = [ticket.number for batch in device.batches for ticket in batch]
    assert len(executed) == len(set(executed))
    assert not cancelled & set(executed)
    order: defaultdict[tuple[object, int], list[int]] = defaultdict(list)
    for batch in device.batches:
        shares: defaultdict[object, list[int]] = defaultdict(list)
        for ticket in batch:
            order[ticket.stream, ticket.priority].append(ticket.number)
            shares[ticket.stream].append(ticket.rows)
        assert not bound or all(len(rows) == 1 or sum(rows) <= bound for rows in shares.values())
    assert all(numbers == sorted(numbers) for numbers in order.values())
    check_delay(device, added, delay)


def check_delay(device: Device, added: list[Ticket], delay: float) -> None:
    """While the device has nothing to do, nothing waits longer than the delay after its arrival."""
    busy = sorted({(batch[0].started, batch[0].closed) for batch in device.batches})
    ends = [0.0]
    for batch in sorted(device.batches, key=lambda batch: batch[0].started or 0.0):
        rows = sum(ticket.rows for ticket in batch)
        ends.append((batch[0].started or 0.0) + device.seconds(device.waiting.costs.gear_for(rows)))
    for end, (start, _) in zip(ends, busy, strict=False):
        assert start is not None
        if start > end:  # the device was free from `end` to `start`
            for ticket in added:
                if ticket.started is not None and ticket.started >= start and ticket.received < start:
                    assert start <= max(end, ticket.received + delay) + 1e-9


@pytest.mark.parametrize("load", [0.05, 0.1, 0.3], ids=["half load", "full load", "overload"])
@pytest.mark.parametrize("bound", [0, 4])
@pytest.mark.parametrize("haste", [False, True], ids=["", "with deadlines"])
def test_a_greedy_stream_takes_nothing_from_the_others(load: float, bound: int, haste: bool) -> None:
    """Ten streams, one of which sends 100 times as much: the nine get 90 % of what they get when all send alike."""
    alike = served([load] * 10, bound, haste)
    greedy = served([100 * load] + [load] * 9, bound, haste)
    for stream in range(1, 10):
        assert greedy[stream] >= 0.9 * alike[stream], (stream, greedy, alike)


def served(loads: list[float], bound: int, haste: bool) -> dict[object, int]:
    """Rows of each stream that a device executes in 3 s, at loads in parts of what it can do; windows drop the rest."""
    waiting = queue(max_rows_per_stream=bound, max_queue_rows=10_000, gears=GEARS)
    device = Device(waiting, lambda gear: 0.008)  # 1000 rows a second
    windows = [FrameWindow(Policy.DROP_NEWEST, 64, 1 << 30, lambda frame: False, refuse) for _ in loads]
    frames: dict[int, tuple[FrameWindow, Frame]] = {}
    chance = random.Random(4)

    def send(stream: int, gap: float) -> None:
        frame = Frame("", 1, device.now)
        if windows[stream].arrive(frame) is None:
            deadline = device.now + 0.05 if haste and stream == 0 else None
            ticket = Ticket(len(frames), 1, device.now, deadline, stream)
            frames[ticket.number] = windows[stream], frame
            waiting.add(ticket)
        device.at(device.now + gap * chance.uniform(0.5, 1.5), lambda: send(stream, gap))

    def leave(ticket: Ticket) -> None:
        window, frame = frames[ticket.number]
        window.leave(frame)

    device.on_done = device.on_expired = leave
    for stream, load in enumerate(loads):
        device.at(0.0, lambda stream=stream, load=load: send(stream, 0.001 / load))
    device.run(until=3.0)
    return device.served


def refuse(frame: Frame, reason: object) -> None:
    raise AssertionError("a window that drops the newest gives up none that waits")


SIZES = st.sampled_from([1, 2, 4, 8])
"""Rows of tickets that can fill a batch between them: what only small ones can use is nobody's share."""


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(SIZES, st.integers(1, 3), st.booleans(), st.booleans()), min_size=1, max_size=4),
    SIZES,
    st.integers(1, 3),
)
def test_a_stream_with_rows_waiting_gets_its_share(
    others: list[tuple[int, int, bool, bool]], victim_rows: int, slots: int
) -> None:
    """Whatever the others send: large tickets, haste, or just one that comes again the moment it was taken."""
    waiting = queue(max_queue_rows=10_000)
    device = Device(waiting, lambda gear: 0.01, slots)

    def top_up(stream: int, rows: int, count: int, hasty: bool) -> None:
        held = waiting._levels[1]._flows.get(stream)
        for _ in range(count - (0 if held is None else held.rows // rows)):
            waiting.add(Ticket(0, rows, device.now, device.now + 100.0 if hasty else None, stream))

    def tick() -> None:
        top_up(-1, victim_rows, 40, False)
        for stream, (rows, count, hasty, _) in enumerate(others):
            top_up(stream, rows, count, hasty)
        if device.now < 2.0:
            device.at(device.now + 0.005, tick)

    for stream, (_rows, _count, _hasty, at_once) in enumerate(others):
        if at_once:  # comes again whenever it was answered, before the next batch is chosen

            def again(ticket: Ticket, before: Callable[[Ticket], None] = device.on_done, stream: int = stream) -> None:
                before(ticket)
                top_up(stream, others[stream][0], others[stream][1], others[stream][2])

            device.on_done = again
    tick()
    device.run(until=2.0)
    total = sum(device.served.values())
    assert len(device.batches) > 150
    assert device.served[-1] >= total / (len(others) + 1) - 4 * waiting.max_rows


def test_earliest_deadline_first_within_a_batch_of_rows() -> None:
    waiting = queue(max_queue_rows=1000)
    for number in range(40):
        waiting.add(Ticket(number, 1, 0.0, stream="patient"))
    for number in range(40):
        waiting.add(Ticket(number, 1, 0.0, deadline=100.0, stream="hasty"))
    waiting.add(Ticket(0, 1, 0.0, deadline=50.0, stream="late but hastier"))
    first = waiting.take()
    assert [ticket.stream for ticket in first] == ["late but hastier"] + ["hasty"] * 7
    taken = defaultdict(int, {"hasty": 7})
    while taken["patient"] < 40 and waiting.rows:
        for ticket in waiting.take():
            taken[str(ticket.stream)] += 1
        if taken["hasty"] < 40:
            assert taken["hasty"] - taken["patient"] <= waiting.max_rows + 2


@pytest.mark.parametrize("slots", [1, 2])
def test_the_prediction_comes_true(slots: int) -> None:
    """One stream, a device of known speed: the predicted wait is the wait, but for a batch that is still open."""
    waiting = queue(max_queue_rows=10_000)
    device = Device(waiting, lambda gear: 0.1, slots)
    waiting.costs.learn(8, 0.1)
    predictions: list[tuple[Ticket, float]] = []
    chance = random.Random(slots)

    def send() -> None:
        ticket = Ticket(len(predictions), chance.randint(1, 3), device.now)
        wait = waiting.predicted_wait(ticket, device.busy_s)
        assert wait is not None
        predictions.append((ticket, wait))
        waiting.add(ticket)

    for _ in range(300):
        device.at(chance.uniform(0.0, 5.0), send)
    device.run()
    for ticket, wait in predictions:
        assert ticket.started is not None
        assert abs(ticket.started - ticket.received - wait) <= 0.1 + 0.2 * wait + 1e-9
    assert any(wait > 1.0 for _, wait in predictions)
    assert all(before.started <= after.started for (before, _), (after, _) in pairwise(predictions))  # type: ignore[operator]
