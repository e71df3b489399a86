"""What executions cost and how fast rows arrive, learned while running. Pure: times are arguments, in seconds."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence

_SMOOTHING = 0.2
"""Weight of the newest observation in a running mean."""


class GearCosts:
    """Running means of the execution time of each gear (rows, ascending)."""

    def __init__(self, gears: Sequence[int]) -> None:
        self.gears = list(gears)
        self._seconds: dict[int, float] = {}

    def learn(self, gear: int, seconds: float) -> None:
        """Takes in one execution."""
        known = self._seconds.get(gear)
        self._seconds[gear] = seconds if known is None else known + _SMOOTHING * (seconds - known)

    def of(self, rows: int) -> float | None:
        """The expected time of executing `rows` in the smallest gear that fits.

        Where that gear has not run yet, the nearest larger one that has tells a safe bound, then the nearest smaller
        one, scaled by rows. None before the first execution.
        """
        gear = self.gear_for(rows)
        if (seconds := self._seconds.get(gear)) is not None:
            return seconds
        for known in self.gears:
            if known >= gear and known in self._seconds:
                return self._seconds[known]
        for known in reversed(self.gears):
            if known in self._seconds:
                return self._seconds[known] * rows / known
        return None

    def gear_for(self, rows: int) -> int:
        """The smallest gear that fits; the largest where none does."""
        return self.gears[min(bisect_left(self.gears, rows), len(self.gears) - 1)]

    def next_gear(self, rows: int) -> int:
        """The smallest gear above `rows`; the largest where there is none."""
        return self.gears[min(bisect_right(self.gears, rows), len(self.gears) - 1)]


class ArrivalRate:
    """A running mean of rows per second."""

    def __init__(self) -> None:
        self._last: float | None = None
        self._gap_s: float | None = None

    def learn(self, rows: int, now: float) -> None:
        """Takes in an arrival of `rows`."""
        if self._last is not None:
            gap = max(now - self._last, 0.0) / rows
            self._gap_s = gap if self._gap_s is None else self._gap_s + _SMOOTHING * (gap - self._gap_s)
        self._last = now if self._last is None else max(self._last, now)

    def time_for(self, rows: int) -> float | None:
        """How long that many rows will take to come; None where nothing is known."""
        return None if self._gap_s is None else rows * self._gap_s
