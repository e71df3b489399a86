"""Who is next among streams: the order inside one priority, which engine/batching.py builds on."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from aclserve_server.engine.flows import Level, Room
from engine.simulation import Ticket


def ticket(
    stream: object, rows: int = 1, deadline: float | None = None, number: int = 0, payer: object = None
) -> Ticket:
    return Ticket(number, rows, 0.0, deadline, stream, payer, waiting=True)


def level(*tickets: Ticket, quantum: int = 8) -> Level[Ticket]:
    made: Level[Ticket] = Level(quantum)
    for one in tickets:
        made.add(one)
    return made


def draw(from_level: Level[Ticket], rows: int = 8, items: int = 8, bound: int = 0) -> list[Ticket]:
    drawn = from_level.draw(Room(rows, items), bound, {})
    for one in drawn:
        leave(from_level, one)
    return drawn


def leave(from_level: Level[Ticket], one: Ticket) -> None:
    one.waiting = False
    from_level.forget(one)


def streams(tickets: list[Ticket]) -> list[object]:
    return [one.stream for one in tickets]


def test_streams_share_a_batch() -> None:
    waiting = level(*(ticket("a") for _ in range(20)), *(ticket("b") for _ in range(20)))
    assert Counter(streams(draw(waiting))) == {"a": 4, "b": 4}


def test_a_stream_gives_a_few_rows_at_its_turn() -> None:
    waiting = level(*(ticket("a") for _ in range(9)), *(ticket("b") for _ in range(9)))
    assert streams(draw(waiting)) == ["a", "a", "b", "b", "a", "a", "b", "b"]


def test_a_ticket_that_does_not_fit_lets_others_pass_and_is_first_next_time() -> None:
    waiting = level(ticket("small"), ticket("large", 8), *(ticket("other") for _ in range(30)))
    assert "large" not in streams(draw(waiting))
    assert streams(draw(waiting)) == ["large"]


def test_a_stream_that_comes_back_goes_on_where_it_was() -> None:
    """Else it would be served first each time, by never having two tickets wait at once."""
    waiting = level(*(ticket("steady") for _ in range(100)), ticket("comes and goes", 8))
    served: Counter[object] = Counter()
    for _ in range(10):
        for one in draw(waiting):
            served[one.stream] += one.rows
            if one.stream == "comes and goes":
                waiting.add(ticket("comes and goes", 8))
    assert abs(served["steady"] - served["comes and goes"]) <= 16


def test_places_of_a_stream_that_was_gone_do_not_count_for_it_when_it_is_back() -> None:
    """A hasty stream is not found by its share: its old place there stays behind when it goes."""
    waiting = level(*(ticket("patient", number=number) for number in range(200)))
    served: Counter[object] = Counter()
    for _ in range(20):
        waiting.add(ticket("hasty", 8, deadline=9.0))
        for one in draw(waiting):
            served[one.stream] += one.rows
    assert served["hasty"] - served["patient"] <= 16


def test_when_nothing_waits_all_streams_are_equal_again() -> None:
    waiting = level(*(ticket("a") for _ in range(8)))
    draw(waiting)
    for stream in ("a", "a", "b", "b"):
        waiting.add(ticket(stream))
    assert streams(draw(waiting, rows=2)) == ["a", "a"]


def test_the_earliest_deadline_goes_first_up_to_a_batch_of_rows() -> None:
    waiting = level(
        *(ticket("none") for _ in range(30)), *(ticket("hasty", deadline=5.0) for _ in range(30)), quantum=4
    )
    assert streams(draw(waiting, rows=8))[:5] == ["hasty"] * 5
    served = Counter(streams(draw(waiting, rows=8)))
    assert served["none"] >= 3


def test_a_cancelled_head_gives_its_place_to_the_one_behind() -> None:
    first, second = ticket("a", deadline=1.0), ticket("a", deadline=9.0)
    waiting = level(first, second, ticket("b", deadline=5.0))
    leave(waiting, first)
    assert streams(draw(waiting)) == ["b", "a"]


def test_the_bound_counts_what_other_levels_gave() -> None:
    waiting = level(*(ticket("a") for _ in range(5)), *(ticket("b") for _ in range(5)))
    drawn = waiting.draw(Room(8, 8), 3, {"a": 2})
    assert Counter(streams(drawn)) == {"a": 1, "b": 3}


def test_how_many_rows_go_before() -> None:
    waiting = level(*(ticket("busy") for _ in range(50)), *(ticket("half", deadline=3.0) for _ in range(4)))
    assert waiting.rows_before(ticket("new")) == 2
    assert waiting.rows_before(ticket("busy")) == 54
    assert waiting.rows_before(ticket("half")) == 9
    assert waiting.rows_before(ticket("half", deadline=4.0)) == 4


def mine(payer: object, stream: object, count: int, rows: int = 1) -> list[Ticket]:
    return [ticket((payer, stream), rows, payer=payer) for _ in range(count)]


def test_a_principal_with_many_streams_has_one_share() -> None:
    many = [one for stream in range(9) for one in mine("many", stream, 40)]
    waiting = level(*many, *mine("one", 0, 400), *(ticket("nobody's") for _ in range(400)))
    served: Counter[object] = Counter()
    for _ in range(30):
        served.update(one.payer for one in draw(waiting))
    assert max(served.values()) - min(served.values()) <= 8, served


def test_the_streams_of_a_principal_share_what_is_its() -> None:
    waiting = level(*mine("a", 0, 90), *mine("a", 1, 90), *mine("a", 2, 90), *mine("b", 0, 90))
    served = Counter(one.stream for _ in range(15) for one in draw(waiting))
    assert abs(served["b", 0] - 60) <= 8
    assert all(abs(served["a", stream] - 20) <= 8 for stream in range(3))


def test_new_streams_bring_a_principal_nothing() -> None:
    """Else it would be served first each time, by a new stream for each item."""
    waiting = level(*mine("steady", 0, 200), *mine("new", -1, 1, 8))
    served: Counter[object] = Counter()
    for number in range(20):
        for one in draw(waiting):
            served[one.payer] += one.rows
            if one.payer == "new":
                waiting.add(ticket(("new", number), 8, payer="new"))
    assert abs(served["steady"] - served["new"]) <= 16


def test_how_many_rows_of_principals_go_before() -> None:
    waiting = level(*mine("a", 0, 10), *mine("a", 1, 10), *mine("b", 0, 50))
    assert waiting.rows_before(ticket("new", payer="new")) == 2
    assert waiting.rows_before(ticket(("a", 2), payer="a")) == 2 + 3
    assert waiting.rows_before(ticket(("b", 0), payer="b")) == 70


PAYERS = (None, "a", "a", "b", None)
"""Of each stream of a random history."""

events = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(0, 4), st.integers(1, 8), st.none() | st.floats(0, 9)),
        st.tuples(st.just("cancel"), st.integers(0, 100), st.just(0), st.none()),
        st.tuples(st.just("sweep"), st.just(0), st.just(0), st.none()),
        st.tuples(st.just("draw"), st.integers(1, 8), st.integers(0, 4), st.none()),
    ),
    max_size=80,
)


@given(events)
def test_each_ticket_is_drawn_once_in_its_streams_order(history: list[tuple[str, int, int, float | None]]) -> None:
    waiting: Level[Ticket] = Level(8)
    inside: list[Ticket] = []
    number = 0
    for kind, value, other, deadline in history:
        if kind == "add":
            number += 1
            inside.append(ticket(value, other, deadline, number, PAYERS[value]))
            waiting.add(inside[-1])
        elif kind == "cancel" and inside:
            leave(waiting, inside.pop(value % len(inside)))
        elif kind == "sweep":
            waiting.sweep()
        elif kind == "draw":
            first = waiting.first()
            assert (first is None) == (not inside)
            drawn = draw(waiting, 8, value, other)
            assert bool(drawn) == bool(inside)
            assert first is None or drawn[0] is first
            assert sum(one.rows for one in drawn) <= 8
            assert len(drawn) <= value
            for one in drawn:
                assert one.number == min(mine.number for mine in inside if mine.stream == one.stream)
                inside.remove(one)
        assert waiting.rows == sum(one.rows for one in inside)
        assert waiting.hasty_rows == sum(one.rows for one in inside if one.deadline is not None)
    while inside:
        for one in draw(waiting):
            inside.remove(one)
    assert not waiting._flows
    assert not waiting._shares
    assert waiting._turns.behind() is None
