"""Finds a device that hangs: calls and callbacks that do not end.

Pure but for `run`: what is under way and the time come from outside. Whatever is under way has a key that no other
ever has; one that is seen again and again for longer than the bound hangs. Of the time between two looks no more counts
than twice the usual, so that a process that was stopped and goes on does not take its own sleep for a hang.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from time import monotonic

from aclserve_server.device.loss import Loss
from aclserve_server.device.reports import ReportThread
from aclserve_server.device.thread import DeviceThread

Key = tuple[str, int]
"""What it is, in words, and which one."""

UnderWay = Iterable[tuple[Key, int]]
"""What is under way, and how many times the bound it may take."""

LOOKS = 8
"""How often it looks within the bound."""


class Watchdog:
    """Looks every `interval_s` seconds, a fraction of `bound_s`."""

    def __init__(self, bound_s: float) -> None:
        self.bound_s = bound_s
        self.interval_s = min(bound_s / LOOKS, 1.0)
        self._ages: dict[Key, float] = {}
        self._last: float | None = None

    def look(self, now: float, under_way: UnderWay) -> tuple[Key, float] | None:
        """What hangs, and the bound it broke; None where nothing does. `now` in seconds of a monotonic clock."""
        passed = 0.0 if self._last is None else min(now - self._last, 2 * self.interval_s)
        self._last = now
        ages: dict[Key, float] = {}
        hung: tuple[Key, float] | None = None
        for key, patience in under_way:
            known = self._ages.get(key)
            ages[key] = 0.0 if known is None else known + passed
            if hung is None and ages[key] >= self.bound_s * patience:
                hung = key, self.bound_s * patience
        self._ages = ages
        return hung

    async def run(
        self, loss: Loss, reports: ReportThread, threads: Iterable[DeviceThread], clock: Callable[[], float] = monotonic
    ) -> None:
        """Looks until something hangs, and tells `loss`; ends with the loss of the device."""
        threads = list(threads)
        while loss.error is None:
            under_way = [(("a batch", number), patience) for number, patience in reports.under_way()]
            for thread in threads:
                what = f"a call on {thread.name}"
                under_way += [((what, number), patience) for number, patience in thread.under_way()]
            hung = self.look(clock(), under_way)
            if hung is not None:
                (what, _), bound_s = hung
                loss.hang(what, bound_s)
            await asyncio.sleep(self.interval_s)
