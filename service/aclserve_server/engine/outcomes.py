"""What becomes of items: the answers that are no outputs, and the times of those that are."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter, time
from typing import Protocol

from aclserve.errors import AclserveError, AlreadyExists, Cancelled, DeadlineExceeded, Internal
from aclserve_server.acl.errors import AclError
from aclserve_server.device.faults import classify
from aclserve_server.engine.batch import Batch
from aclserve_server.engine.contract import Ticket
from aclserve_server.engine.items import Dropped, DropReason, Result, Timing
from aclserve_server.engine.statistics import Execution, ModelStatistics

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class BatchReport:
    """What one execution was. Times in nanoseconds, moments those of `perf_counter_ns`; `code` is the canonical status
    of its items.

    `received` are the moments its items came in, `captures` their capture times as they brought them; empty where none
    has one. It was closed at `closed_ns`, answered at `answered_ns`.
    """

    rows: int
    padding_rows: int
    code: str
    received: Sequence[int]
    captures: Sequence[bytes]
    closed_ns: int
    copy_in_ns: int
    execute_ns: int
    copy_out_ns: int
    answered_ns: int

    @property
    def execution(self) -> Execution:
        """The sums for the model's statistics."""
        items, received = len(self.received), sum(self.received)
        return Execution(
            items,
            self.rows,
            max(self.closed_ns * items - received, 0),
            self.copy_in_ns,
            self.execute_ns,
            self.copy_out_ns,
            max(self.answered_ns * items - received, 0),
        )


class Observer(Protocol):
    """Whoever counts what becomes of one model version's items. Called on the event loop; never raises."""

    def batch(self, report: BatchReport) -> None:
        """An execution is over, and its items are answered."""

    def answered(self, code: str) -> None:
        """An item was answered without an execution: refused, expired, cancelled, or without rows."""

    def dropped(self, reason: DropReason) -> None:
        """An item was given up by its stream's frame policy."""


Observe = Callable[[str, int], Observer]
"""The observer of a model version; of "" version 0 for items that no model is known for."""


class Account:
    """Counts what becomes of one loaded model version's items: sums of its own, and whoever observes. On the event
    loop.
    """

    def __init__(self, observer: Observer) -> None:
        self.statistics = ModelStatistics()
        self.observer = observer

    def executed(self, done: BatchReport) -> None:
        """An execution is over, and its items are answered."""
        execution = done.execution
        if done.code == "OK":
            self.statistics.add_success(execution, _now_ms())
        else:
            self.statistics.add_failure(execution.items, execution.total_ns, executed=True, now_ms=_now_ms())
        self.observer.batch(done)

    def empty(self, received: float) -> None:
        """An item without rows is answered. Here and below `received` is in seconds of `perf_counter`."""
        self.statistics.add_success_without_rows(_since_ns(received), _now_ms())
        self.observer.answered("OK")

    def refused(self, code: str, received: float, items: int = 1) -> None:
        """Items that came together failed without an execution."""
        self.statistics.add_failure(items, items * _since_ns(received), executed=False, now_ms=_now_ms())
        for _ in range(items):
            self.observer.answered(code)

    def expired(self, ticket: Ticket, result: Result) -> None:
        """An item waited until its deadline: an error, or dropped where its stream asked for that."""
        if result.dropped is not None:
            for _ in range(ticket.items):
                self.observer.dropped(result.dropped.reason)
        else:
            self.refused("DEADLINE_EXCEEDED", ticket.received, ticket.items)

    def taken_back(self, ticket: Ticket, reason: DropReason | None) -> None:
        """An item that waited was dropped by its stream, or (None) cancelled."""
        if reason is not None:
            for _ in range(ticket.items):
                self.observer.dropped(reason)
        else:
            self.refused("CANCELLED", ticket.received, ticket.items)


def _since_ns(received: float) -> int:
    return max(int((perf_counter() - received) * 1e9), 0)


def _now_ms() -> int:
    return int(time() * 1e3)


def service_error(error: Exception) -> AclserveError:
    """The error a client sees for one that happened below; anything unforeseen is logged and stays inside."""
    if isinstance(error, AclserveError):
        return error
    if isinstance(error, AclError):
        return classify(error)
    log.error("unforeseen error while executing a batch", exc_info=error)
    return Internal("the server failed while it executed the item; its log tells more", reason="INTERNAL_ERROR")


def expired(ticket: Ticket) -> Result:
    """The answer to an item whose deadline came while it waited."""
    if ticket.drops:
        return dropped(ticket, DropReason.TOO_OLD)
    error = DeadlineExceeded(
        "the item's deadline passed while it waited for its execution; allow it more time or send less",
        reason="ITEM_EXPIRED",
    )
    return Result(ticket.item_id, ticket.capture_time, error=error)


def dropped(ticket: Ticket, reason: DropReason) -> Result:
    """The answer to an item that its stream's frame policy gives up."""
    age_ns = max(int((perf_counter() - ticket.received) * 1e9), 0)
    return Result(ticket.item_id, ticket.capture_time, dropped=Dropped(reason, age_ns))


def cancelled(item_id: str, capture_time: bytes) -> Result:
    """The answer to an item that its client took back."""
    return Result(item_id, capture_time, error=Cancelled("the item was cancelled", reason="ITEM_CANCELLED"))


def duplicate(item_id: str) -> AlreadyExists:
    """What is wrong with an item whose id is in flight."""
    return AlreadyExists(
        f"item {item_id!r} is in flight on this stream; wait for its result or choose another id",
        reason="DUPLICATE_ITEM_ID",
    )


def timing(batch: Batch, index: int, now: int) -> Timing:
    """The timing of one ticket of a batch that succeeded; `now` in nanoseconds."""
    ticket = batch.tickets[index]
    received = int(ticket.received * 1e9)
    return Timing(
        max(batch.closed_ns - received, 0),
        batch.packed_ns - batch.closed_ns + batch.upload_ns,
        batch.execute_ns or batch.executed_ns - batch.started_ns,
        batch.download_ns or batch.finished_ns - batch.executed_ns,
        max(now - received, 0),
        batch.rows,
        batch.gear_rows,
        batch.positions[index],
        ticket.queue_rows,
    )


def report(batch: Batch, code: str, now: int) -> BatchReport:
    """What a batch was, for those who count, without the items that failed alone; `now` in nanoseconds."""
    tickets = batch.tickets
    if batch.errors:
        tickets = [ticket for at, ticket in enumerate(tickets) if at not in batch.errors]
    return BatchReport(
        batch.rows,
        max(batch.gear_rows - batch.rows, 0),
        code,
        _moments(tickets),
        _captures(tickets),
        batch.closed_ns,
        max(batch.packed_ns - batch.closed_ns, 0) + batch.upload_ns,
        batch.execute_ns or max(batch.executed_ns - batch.started_ns, 0),
        batch.download_ns or max(batch.finished_ns - batch.executed_ns, 0) if batch.executed_ns else 0,
        now,
    )


def _moments(tickets: Sequence[Ticket]) -> Sequence[int]:
    """When each item came in."""
    moments: list[int] = []
    for ticket in tickets:
        if ticket.members is None:
            moments.append(int(ticket.received * 1e9))
        else:
            moments += [int(ticket.received * 1e9)] * len(ticket.members)
    return moments


def _captures(tickets: Sequence[Ticket]) -> Sequence[bytes]:
    """The capture times of all items, as they brought them; empty where none has one."""
    captures: list[bytes] = []
    for ticket in tickets:
        if ticket.members is None:
            captures.append(ticket.capture_time)
        else:
            captures += [member.capture_time for member in ticket.members]
    return captures if any(captures) else ()
