"""The order that engine/hazards.py keeps between items that share buffers, against random histories."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aclserve_server.engine.contract import Part, Ticket, Wanted
from aclserve_server.engine.hazards import Hazards


def make(name: str, reads: Sequence[str] = (), writes: Sequence[str] = ()) -> Ticket:
    """A ticket that reads and writes buffers, which are known by letters."""
    parts = [Part((1,), 4, None, pin(buffer)) for buffer in reads]
    outputs = [Wanted(index, None, pin(buffer)) for index, buffer in enumerate(writes)]
    return Ticket(name, b"", Nowhere(), 1, parts, outputs, 0.0, None)


def pin(buffer: str) -> Any:
    return SimpleNamespace(buffer=buffer)


class Nowhere:
    def deliver(self, results: list[Any]) -> None:
        raise AssertionError


class Log:
    """Hazards, and who was let go, with what they were told."""

    def __init__(self) -> None:
        self.hazards = Hazards()
        self.gone: list[tuple[str, bool]] = []

    def enter(self, ticket: Ticket) -> bool:
        return self.hazards.enter(ticket, lambda who, written: self.gone.append((who.item_id, written)))

    def leave(self, ticket: Ticket, *, failed: bool = False) -> list[tuple[str, bool]]:
        """Who may go on by this."""
        before = len(self.gone)
        self.hazards.leave(ticket, failed=failed)
        return self.gone[before:]

    def check_empty(self) -> None:
        assert not self.hazards._uses
        assert not self.hazards._accesses


def test_a_reader_waits_for_the_writer_before_it() -> None:
    log = Log()
    writer, reader = make("w", writes="a"), make("r", reads="a", writes="b")
    assert log.enter(writer)
    assert not log.enter(reader)
    assert log.leave(writer) == [("r", True)]
    assert log.leave(reader) == []
    log.check_empty()


def test_a_writer_waits_for_all_readers_before_it() -> None:
    log = Log()
    readers = [make("r1", reads="a"), make("r2", reads="a")]
    assert all(log.enter(reader) for reader in readers)
    writer = make("w", writes="a")
    assert not log.enter(writer)
    assert log.leave(readers[1]) == []
    assert log.leave(readers[0]) == [("w", True)]


def test_items_of_other_buffers_do_not_wait() -> None:
    log = Log()
    assert log.enter(make("w1", writes="a"))
    assert log.enter(make("w2", reads="c", writes="b"))
    assert log.enter(make("r", reads="c"))


def test_an_item_that_works_in_place_does_not_wait_for_itself() -> None:
    log = Log()
    item = make("both", reads="a", writes="a")
    assert log.enter(item)
    assert log.leave(item) == []
    log.check_empty()


def test_the_reader_of_a_writer_that_failed_is_told() -> None:
    log = Log()
    writer, reader, rewriter = make("w", writes="a"), make("r", reads="a"), make("w2", writes="a")
    log.enter(writer)
    log.enter(reader)
    log.enter(rewriter)
    assert log.leave(writer, failed=True) == [("r", False)]
    assert log.leave(reader, failed=True) == [("w2", True)]
    log.leave(rewriter)
    log.check_empty()


def test_the_failure_of_an_earlier_writer_is_nothing_to_the_reader_of_a_later_one() -> None:
    log = Log()
    first, second = make("first", reads="c", writes="a"), make("second", writes="a")
    reader = make("reader", reads="a", writes="c")
    assert log.enter(first)
    assert not log.enter(second)
    assert not log.enter(reader)
    assert log.leave(first, failed=True) == [("second", True)]
    assert log.leave(second) == [("reader", True)]


@pytest.mark.parametrize("running", [make("r", reads="a"), make("w", writes="a")], ids=["reader", "writer"])
def test_one_that_is_taken_back_lets_nobody_overtake_those_before_it(running: Ticket) -> None:
    log = Log()
    taken_back, last, newcomer = make("b", writes="a"), make("l", writes="a"), make("n", reads="a")
    assert log.enter(running)
    assert not log.enter(taken_back)
    assert not log.enter(last)
    assert log.leave(taken_back, failed=True) == []
    assert not log.enter(newcomer)
    assert log.leave(running) == [("l", True)]
    assert log.leave(last) == [("n", True)]
    log.leave(newcomer)
    log.check_empty()


def test_the_reader_of_a_writer_that_was_taken_back_is_told_when_its_turn_comes() -> None:
    log = Log()
    running, taken_back, reader = make("w", writes="a"), make("b", writes="a"), make("r", reads="a")
    log.enter(running)
    log.enter(taken_back)
    log.enter(reader)
    assert log.leave(taken_back, failed=True) == []
    assert log.leave(running) == [("r", False)]
    log.leave(reader, failed=True)
    log.check_empty()


def test_a_ticket_that_never_entered_leaves_nothing_behind() -> None:
    log = Log()
    log.leave(make("w", writes="a"), failed=True)
    log.check_empty()


def test_a_chain_of_failures_is_no_deep_recursion() -> None:
    hazards = Hazards()
    told: list[bool] = []

    def fail(ticket: Ticket, written: bool) -> None:
        told.append(written)
        hazards.leave(ticket, failed=True)

    chain = [make(str(number), reads="ab"[number % 2], writes="ba"[number % 2]) for number in range(5000)]
    assert hazards.enter(chain[0], fail)
    assert not any(hazards.enter(ticket, fail) for ticket in chain[1:])
    hazards.leave(chain[0], failed=True)
    assert told == [False] * 4999
    assert not hazards._uses


buffers = st.sets(st.sampled_from("abcd"), max_size=3)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("enter"), buffers, buffers),
        st.tuples(st.just("end"), st.integers(0, 100), st.booleans()),
        st.tuples(st.just("take back"), st.integers(0, 100), st.just(True)),
    ),
    max_size=50,
)


class Reference:
    """What must hold, told by looking at all items in order of arrival."""

    def __init__(self) -> None:
        self.log = Log()
        self.reads: list[set[str]] = []
        self.writes: list[set[str]] = []
        self.tickets: list[Ticket] = []
        self.running: set[int] = set()
        self.parked: set[int] = set()
        self.succeeded: dict[int, bool] = {}
        self.sources: list[set[int]] = []

    def enter(self, reads: set[str], writes: set[str]) -> None:
        at = len(self.tickets)
        sources = set()
        for buffer in reads:
            writers = [earlier for earlier in range(at) if buffer in self.writes[earlier]]
            if writers and self.under_way(writers[-1]):
                sources.add(writers[-1])
        self.reads.append(reads)
        self.writes.append(writes)
        self.sources.append(sources)
        self.tickets.append(make(str(at), sorted(reads), sorted(writes)))
        if self.log.enter(self.tickets[at]):
            self.start(at)
        else:
            self.parked.add(at)
            assert any(self.conflict(at, earlier) and self.under_way(earlier) for earlier in range(at))

    def under_way(self, at: int) -> bool:
        """Whether an item counts for those behind it: also where it was taken back and those before it are not done."""
        return self.tickets[at] in self.log.hazards._uses

    def conflict(self, one: int, other: int) -> bool:
        return bool(self.writes[one] & (self.reads[other] | self.writes[other]) or self.reads[one] & self.writes[other])

    def start(self, at: int) -> None:
        for earlier in range(at):
            alive = earlier in self.running or earlier in self.parked
            assert not (alive and self.conflict(at, earlier)), "it does not wait for one it shares a buffer with"
        self.running.add(at)

    def end(self, at: int, failed: bool) -> None:
        self.running.discard(at)
        self.parked.discard(at)
        self.succeeded[at] = not failed
        for name, written in self.log.leave(self.tickets[at], failed=failed):
            follower = int(name)
            self.parked.remove(follower)
            assert written == all(self.succeeded[source] for source in self.sources[follower])
            self.start(follower)


@given(steps)
def test_random_histories(history: list[tuple[str, Any, Any]]) -> None:
    reference = Reference()
    for kind, first, second in history:
        if kind == "enter":
            reference.enter(first, second)
        elif kind == "end" and reference.running:
            reference.end(sorted(reference.running)[first % len(reference.running)], second)
        elif kind == "take back" and reference.parked:
            reference.end(sorted(reference.parked)[first % len(reference.parked)], True)
    while reference.running:
        reference.end(min(reference.running), False)
    assert not reference.parked
    reference.log.check_empty()
