"""Planned failures, and the one exception by which an entry point says its status code."""

from __future__ import annotations

import random
import threading
from collections.abc import Mapping
from dataclasses import dataclass

from aclserve_server.emulator.config import PlannedFault


class Failure(Exception):
    """A status code other than 0, with the text that aclGetRecentErrMsg will give in the failing thread."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"{code}: {text}")
        self.code = code
        self.text = text


@dataclass(slots=True)
class _Plan:
    code: int
    skip: int
    times: int


class FaultPlan:
    """Which calls and tasks fail. Counting starts when a failure is planned: `call=1` is the next. Any thread."""

    def __init__(self, faults: tuple[PlannedFault, ...], rates: Mapping[str, tuple[float, int]], seed: int) -> None:
        self._lock = threading.Lock()  # guards the two plans and the random numbers
        self._calls: dict[str, list[_Plan]] = {}
        self._tasks: dict[str, list[_Plan]] = {}
        self._rates = dict(rates)
        self._random = random.Random(seed)
        for fault in faults:
            (self._plan_task if fault.task else self._plan_call)(fault.function, fault.code, fault.nth, fault.times)

    def fail_call(self, function: str, code: int, call: int = 1, times: int = 1) -> None:
        """From now, calls `call` to `call + times - 1` of `function` return `code` and have no effect."""
        self._plan_call(function, code, call, times)

    def fail_task(self, function: str, code: int, task: int = 1, times: int = 1) -> None:
        """From now, tasks `task` to `task + times - 1` that `function` submits fail on the device with `code`."""
        self._plan_task(function, code, task, times)

    def clear(self) -> None:
        """Forget what is planned and has not happened."""
        with self._lock:
            self._calls.clear()
            self._tasks.clear()
            self._rates.clear()

    def is_clear(self) -> bool:
        """Whether all that was planned has happened."""
        with self._lock:
            return not self._calls and not self._tasks

    def take_call(self, function: str) -> int:
        """The code this call must return, 0 for none."""
        if not self._calls and not self._rates:
            return 0
        with self._lock:
            rate = self._rates.get(function)
            if rate is not None and self._random.random() < rate[0]:
                return rate[1]
            return _take(self._calls, function)

    def take_task(self, function: str) -> int:
        """The code this task must fail with, 0 for none."""
        if not self._tasks:
            return 0
        with self._lock:
            return _take(self._tasks, function)

    def _plan_call(self, function: str, code: int, nth: int, times: int) -> None:
        with self._lock:
            self._calls.setdefault(function, []).append(_new_plan(code, nth, times))

    def _plan_task(self, function: str, code: int, nth: int, times: int) -> None:
        with self._lock:
            self._tasks.setdefault(function, []).append(_new_plan(code, nth, times))


def _new_plan(code: int, nth: int, times: int) -> _Plan:
    if nth < 1 or times < 1 or code == 0:
        raise ValueError(f"a planned failure needs a code other than 0, and counts from 1: code {code}, {nth}, {times}")
    return _Plan(code, nth - 1, times)


def _take(plans: dict[str, list[_Plan]], function: str) -> int:
    code = 0
    for plan in plans.get(function, ()):
        if plan.skip:
            plan.skip -= 1
        elif plan.times and not code:
            plan.times -= 1
            code = plan.code
    if code:
        left = [plan for plan in plans[function] if plan.times]
        if left:
            plans[function] = left
        else:
            del plans[function]
    return code
