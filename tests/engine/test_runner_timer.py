"""The one timer of a runner: it rings no later than the queue's next change by time, and is armed anew seldom."""

from __future__ import annotations

import asyncio
from time import perf_counter
from typing import Any, cast

from aclserve_server.engine.batching import BatchQueue
from aclserve_server.engine.runner import Runner
from engine.simulation import Ticket

HOUR = 3600.0


class Quiet(Runner):
    """Starts nothing; tells when something has expired."""

    expired: asyncio.Event

    def _pump(self) -> None:
        if self._queue.expire(perf_counter()):
            self.expired.set()
        self._call_again(idle=False)


def runner() -> Quiet:
    queue: BatchQueue[Any] = BatchQueue(max_rows=8, max_items=8, max_queue_rows=100)
    made = Quiet("model", cast(Any, None), queue, cast(Any, None), cast(Any, None))
    made.expired = asyncio.Event()
    return made


def test_a_timer_that_rings_in_time_is_left_and_one_that_would_ring_late_is_not() -> None:
    async def main() -> None:
        model, now = runner(), perf_counter()
        model._call_again(idle=False)
        assert model._timer is None
        waiting = [Ticket(number, 1, now, deadline=now + hours * HOUR) for number, hours in enumerate((2, 3, 1))]
        model._queue.add(cast(Any, waiting[0]))
        model._call_again(idle=False)
        first = model._timer
        assert first is not None
        model._queue.add(cast(Any, waiting[1]))
        model._call_again(idle=False)
        assert model._timer is first
        model._queue.add(cast(Any, waiting[2]))
        model._call_again(idle=False)
        assert first.cancelled()
        second = model._timer
        assert second is not None
        model._queue.cancel(cast(Any, waiting[2]))
        model._call_again(idle=False)
        assert model._timer is second  # it rings too early, which costs one look
        for ticket in waiting:
            model._queue.cancel(cast(Any, ticket))
        model._call_again(idle=False)
        assert second.cancelled()
        assert model._timer is None

    asyncio.run(main())


def test_after_a_ring_it_is_armed_for_what_waits_then() -> None:
    async def main() -> None:
        model, now = runner(), perf_counter()
        soon = Ticket(0, 1, now, deadline=now + 0.01)
        later = Ticket(1, 1, now, deadline=now + HOUR)
        for ticket in (soon, later):
            model._queue.add(cast(Any, ticket))
        model._call_again(idle=False)
        await model.expired.wait()
        assert not soon.waiting
        assert later.waiting
        assert model._timer is not None
        assert model._rings_at == later.deadline
        model._timer.cancel()

    asyncio.run(main())
