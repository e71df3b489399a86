"""What becomes of items: the answers that are no outputs, and the times of those that are."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter

from aclserve.errors import AclserveError, Cancelled, DeadlineExceeded, Internal
from aclserve_server.acl.errors import AclError
from aclserve_server.device.faults import classify
from aclserve_server.engine.batch import Batch
from aclserve_server.engine.contract import Ticket
from aclserve_server.engine.items import Dropped, DropReason, Result, Timing

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class BatchReport:
    """What one execution was, for metrics. Times in seconds; `wait_s` and `total_s` are of the oldest item.

    `code` is the canonical status of its items.
    """

    model: str
    rows: int
    padding_rows: int
    items: int
    code: str
    wait_s: float
    execute_s: float
    total_s: float


Observer = Callable[[BatchReport], None]


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


def cancelled(ticket: Ticket) -> Result:
    """The answer to an item that its client took back."""
    return Result(
        ticket.item_id, ticket.capture_time, error=Cancelled("the item was cancelled", reason="ITEM_CANCELLED")
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


def report(name: str, batch: Batch, code: str) -> BatchReport:
    """What a batch was, for metrics."""
    received = min(ticket.received for ticket in batch.tickets)
    return BatchReport(
        name,
        batch.rows,
        max(batch.gear_rows - batch.rows, 0),
        len(batch.tickets),
        code,
        max(batch.closed_ns / 1e9 - received, 0.0),
        max(batch.executed_ns - batch.started_ns, 0) / 1e9,
        max(batch.finished_ns / 1e9 - received, 0.0),
    )
