"""What executions cost and how fast rows arrive, as it is learned."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aclserve_server.engine.costs import ArrivalRate, GearCosts


def test_nothing_is_known_at_first() -> None:
    costs = GearCosts([1, 4, 8])
    assert [costs.of(rows) for rows in (1, 5, 8)] == [None, None, None]
    assert ArrivalRate().time_for(3) is None


def test_the_gear_that_fits_and_the_next_one() -> None:
    costs = GearCosts([1, 4, 8])
    assert [costs.gear_for(rows) for rows in (1, 2, 4, 5, 8, 9)] == [1, 4, 4, 8, 8, 8]
    assert [costs.next_gear(rows) for rows in (1, 2, 3, 4, 7, 8)] == [4, 4, 4, 8, 8, 8]


def test_a_gear_that_did_not_run_is_told_from_a_larger_one_then_from_a_smaller_one() -> None:
    costs = GearCosts([1, 4, 8])
    costs.learn(4, 0.4)
    assert costs.of(1) == 0.4
    assert costs.of(3) == 0.4
    assert costs.of(8) == pytest.approx(0.8)
    assert costs.of(6) == pytest.approx(0.6)
    costs.learn(8, 0.5)
    assert costs.of(6) == 0.5
    costs.learn(1, 0.1)
    assert costs.of(1) == 0.1


@given(st.lists(st.floats(0.001, 10.0), min_size=1, max_size=30))
def test_the_mean_stays_within_what_was_seen_and_follows_it(seen: list[float]) -> None:
    costs = GearCosts([8])
    for seconds in seen:
        costs.learn(8, seconds)
    mean = costs.of(8)
    assert mean is not None
    assert min(seen) - 1e-9 <= mean <= max(seen) + 1e-9
    for _ in range(40):
        costs.learn(8, 1.0)
    assert costs.of(8) == pytest.approx(1.0, rel=0.01)


def test_the_rate_counts_rows() -> None:
    rate = ArrivalRate()
    for number in range(20):
        rate.learn(4, number * 0.1)
    assert rate.time_for(8) == pytest.approx(0.2)


def test_rows_that_come_together_take_no_time() -> None:
    rate = ArrivalRate()
    for _ in range(5):
        rate.learn(1, 7.0)
    assert rate.time_for(100) == 0.0


def test_an_item_that_was_kept_waiting_elsewhere_does_not_turn_time_back() -> None:
    rate, plain = ArrivalRate(), ArrivalRate()
    for when in (0.0, 1.0, 0.2, 2.0):
        rate.learn(1, when)
    for when in (0.0, 1.0, 1.0, 2.0):
        plain.learn(1, when)
    assert rate.time_for(1) == plain.time_for(1)
