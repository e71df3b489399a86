"""The watchdog in a time of the test's own."""

from __future__ import annotations

import pytest

from aclserve_server.engine.watchdog import Key, Watchdog

BATCH, CALL = ("a batch", 1), ("a call", 1)


def look_until(watchdog: Watchdog, seconds: float, *under_way: tuple[Key, int], start: float = 0.0) -> float:
    """Looks at its own pace; when something hangs, or infinity where nothing does within the time."""
    for tick in range(int(seconds / watchdog.interval_s) + 1):
        now = start + tick * watchdog.interval_s
        if watchdog.look(now, under_way) is not None:
            return now - start
    return float("inf")


@pytest.mark.parametrize("bound_s", [0.5, 8.0, 60.0, 3600.0])
def test_what_lasts_hangs_when_its_bound_is_over_and_not_before(bound_s: float) -> None:
    found = look_until(Watchdog(bound_s), 3 * bound_s, (BATCH, 1))
    assert bound_s <= found <= bound_s + Watchdog(bound_s).interval_s


def test_what_may_take_longer_gets_longer() -> None:
    assert 80 <= look_until(Watchdog(8.0), 1000, (CALL, 10)) <= 81


def test_the_first_that_breaks_its_bound_is_told_with_it() -> None:
    watchdog = Watchdog(8.0)
    told = None
    for tick in range(20):
        told = told or watchdog.look(float(tick), [(CALL, 10), (BATCH, 1)])
    assert told == (BATCH, 8.0)


def test_many_short_ones_are_no_hang() -> None:
    watchdog = Watchdog(8.0)
    for tick in range(1000):
        assert watchdog.look(float(tick), [(("a batch", tick // 7), 1)]) is None


def test_a_gap_between_two_begins_anew() -> None:
    watchdog = Watchdog(8.0)
    for tick in range(1000):
        assert watchdog.look(float(tick), [(BATCH, 1)] if tick % 7 else []) is None


def test_a_process_that_slept_does_not_take_that_for_a_hang() -> None:
    watchdog = Watchdog(60.0)
    assert watchdog.look(0.0, [(BATCH, 1)]) is None
    assert watchdog.look(100_000.0, [(BATCH, 1)]) is None
    assert look_until(watchdog, 100.0, (BATCH, 1), start=100_000.0) >= 57
