"""The frame policies of engine/frames.py: whom they give up, and that a camera stays live on a slow device."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aclserve_server.engine.frames import Frame, FrameWindow, Policy
from aclserve_server.engine.items import DropReason
from engine.simulation import Device, Ticket, queue

DROPPING = [Policy.DROP_OLDEST, Policy.DROP_NEWEST, Policy.LATEST_ONLY]


@dataclass
class Stream:
    """A window, and what its caller would do: which frames wait, and who was given up."""

    policy: Policy
    max_items: int = 4
    max_bytes: int = 1000
    waiting: list[Frame] = field(default_factory=list)
    executing: list[Frame] = field(default_factory=list)
    dropped: list[tuple[Frame, DropReason]] = field(default_factory=list)
    accepted: int = 0

    def __post_init__(self) -> None:
        self.window = FrameWindow(self.policy, self.max_items, self.max_bytes, self.waits, self.give_up)

    def waits(self, frame: Frame) -> bool:
        return frame in self.waiting

    def give_up(self, frame: Frame, reason: DropReason) -> None:
        assert frame in self.waiting
        self.waiting.remove(frame)
        self.dropped.append((frame, reason))
        self.window.leave(frame)

    def send(self, name: str = "", size: int = 1) -> Frame:
        frame = Frame(name, size, 0.0)
        reason = self.window.arrive(frame)
        if reason is None:
            self.accepted += 1
            self.waiting.append(frame)
        else:
            self.dropped.append((frame, reason))
        return frame

    def execute(self) -> None:
        self.executing.append(self.waiting.pop(0))

    def answer(self) -> None:
        self.window.leave(self.executing.pop(0))

    @property
    def notices(self) -> list[tuple[str, DropReason]]:
        return [(frame.item_id, reason) for frame, reason in self.dropped]


def sent(stream: Stream, count: int) -> list[Frame]:
    return [stream.send(str(number)) for number in range(count)]


def test_waiting_gives_up_nothing_and_says_when_it_is_full() -> None:
    stream = Stream(Policy.WAIT, max_items=3)
    sent(stream, 2)
    assert not stream.window.full
    sent(stream, 1)
    assert stream.window.full
    assert stream.dropped == []


def test_waiting_is_full_by_bytes_but_never_empty_handed() -> None:
    stream = Stream(Policy.WAIT, max_bytes=10)
    assert not stream.window.full
    stream.send(size=50)
    assert stream.window.full
    stream.execute()
    stream.answer()
    assert not stream.window.full
    assert (stream.window.pending_items, stream.window.pending_bytes) == (0, 0)


def test_the_oldest_makes_room() -> None:
    stream = Stream(Policy.DROP_OLDEST)
    sent(stream, 1)
    stream.execute()
    for number in range(1, 7):
        stream.send(str(number))
    assert stream.notices == [(str(number), DropReason.OLDEST) for number in (1, 2, 3)]
    assert [frame.item_id for frame in stream.waiting] == ["4", "5", "6"]


def test_several_make_room_for_a_large_one() -> None:
    stream = Stream(Policy.DROP_OLDEST, max_items=9, max_bytes=10)
    for name in "abcde":
        stream.send(name, 2)
    stream.send("f", 5)
    assert stream.notices == [(name, DropReason.OLDEST) for name in "abc"]


def test_the_newest_is_given_up() -> None:
    stream = Stream(Policy.DROP_NEWEST)
    sent(stream, 6)
    assert stream.notices == [("4", DropReason.NEWEST), ("5", DropReason.NEWEST)]


def test_only_the_latest_waits() -> None:
    stream = Stream(Policy.LATEST_ONLY)
    sent(stream, 1)
    stream.execute()
    for number in range(1, 4):
        stream.send(str(number))
    assert stream.notices == [("1", DropReason.SUPERSEDED), ("2", DropReason.SUPERSEDED)]
    assert [frame.item_id for frame in stream.waiting] == ["3"]


@pytest.mark.parametrize("policy", [Policy.DROP_OLDEST, Policy.LATEST_ONLY])
def test_none_is_given_up_for_one_that_finds_no_room_all_the_same(policy: Policy) -> None:
    stream = Stream(policy, max_bytes=10)
    stream.send("executing", 6)
    stream.execute()
    stream.send("waiting", 3)
    stream.send("too large", 5)
    assert stream.notices == [("too large", DropReason.NEWEST)]
    assert [frame.item_id for frame in stream.waiting] == ["waiting"]


def test_a_window_that_became_smaller_is_reached_with_the_next_item() -> None:
    stream = Stream(Policy.DROP_OLDEST, max_items=8)
    sent(stream, 8)
    stream.window.max_items = 3
    stream.send("8")
    assert stream.window.pending_items == 3
    assert [frame.item_id for frame in stream.waiting] == ["6", "7", "8"]


def test_leaving_twice_is_leaving_once() -> None:
    stream = Stream(Policy.DROP_OLDEST)
    frame = stream.send(size=5)
    stream.window.leave(frame)
    stream.window.leave(frame)
    assert (stream.window.pending_items, stream.window.pending_bytes) == (0, 0)
    assert stream.window.oldest() is None


steps = st.lists(
    st.one_of(
        st.tuples(st.just("send"), st.integers(0, 12)),
        st.tuples(st.just("execute"), st.just(0)),
        st.tuples(st.just("answer"), st.just(0)),
    ),
    max_size=80,
)


@given(st.sampled_from(DROPPING), st.integers(1, 5), st.integers(1, 30), steps)
def test_the_invariants(policy: Policy, max_items: int, max_bytes: int, history: list[tuple[str, int]]) -> None:
    stream = Stream(policy, max_items, max_bytes)
    total = answered = 0
    for kind, size in history:
        before = list(stream.waiting)
        if kind == "send":
            total += 1
            frame = stream.send(str(total), size)
            refused = bool(stream.dropped) and stream.dropped[-1][0] is frame
            if refused:
                assert stream.waiting == before
            else:
                items, held = stream.window.pending_items, stream.window.pending_bytes
                assert items <= max_items
                assert held <= max_bytes or items == 1
                assert policy is not Policy.LATEST_ONLY or stream.waiting == [frame]
                assert stream.waiting[-1] is frame
        elif kind == "execute" and stream.waiting:
            stream.execute()
        elif kind == "answer" and stream.executing:
            stream.answer()
            answered += 1
        pending = stream.waiting + stream.executing
        assert stream.window.pending_items == len(pending)
        assert stream.window.pending_bytes == sum(frame.size_bytes for frame in pending)
        assert total == answered + len(pending) + len(stream.dropped)
    given_up = [frame for frame, _ in stream.dropped]
    assert len(given_up) == len(set(given_up))


INTERVAL_S, EXECUTION_S = 1 / 30, 0.1


@pytest.mark.parametrize("cameras", [1, 2])
@pytest.mark.parametrize("slots", [1, 2])
def test_a_camera_stays_live_on_a_device_that_is_three_times_too_slow(cameras: int, slots: int) -> None:
    """30 frames a second, 100 ms each, LATEST_ONLY: frames are never older than an execution and a frame's time."""
    waiting = queue(max_rows=cameras, max_items=cameras)
    device = Device(waiting, lambda gear: EXECUTION_S, slots)
    tickets: dict[Frame, Ticket] = {}
    frames: dict[Ticket, Frame] = {}
    received, answered, drops = 0, 0, dict.fromkeys(DropReason, 0)
    sizes: set[int] = set()

    def waits(frame: Frame) -> bool:
        return tickets[frame].waiting

    def drop(frame: Frame, reason: DropReason) -> None:
        assert waiting.cancel(tickets[frame])
        drops[reason] += 1
        forget(frame)

    def forget(frame: Frame) -> None:
        del frames[tickets.pop(frame)]
        windows[frame.item_id].leave(frame)

    windows = {str(number): FrameWindow(Policy.LATEST_ONLY, 128, 1 << 30, waits, drop) for number in range(cameras)}

    def shoot(camera: str) -> None:
        nonlocal received
        received += 1
        frame = Frame(camera, 1_000_000, device.now)
        assert windows[camera].arrive(frame) is None
        ticket = tickets[frame] = Ticket(received, 1, device.now, stream=camera)
        frames[ticket] = frame
        waiting.add(ticket)
        sizes.add(len(tickets) + len(waiting._arrivals))

    def done(ticket: Ticket) -> None:
        nonlocal answered
        answered += 1
        assert ticket.started is not None
        assert ticket.started - ticket.received <= EXECUTION_S + INTERVAL_S + 1e-9
        forget(frames[ticket])

    device.on_done = done
    for number in range(3000):
        for camera in windows:
            device.at(number * INTERVAL_S + int(camera) * 0.01, lambda camera=camera: shoot(camera))
    device.run()
    assert received == 3000 * cameras
    assert received == answered + sum(drops.values())
    assert drops[DropReason.SUPERSEDED] == sum(drops.values())
    assert answered >= cameras * 3000 * INTERVAL_S / EXECUTION_S - 10
    assert max(sizes) <= 200
    assert not tickets
    assert all(window.pending_bytes == 0 for window in windows.values())
