"""What runners of all kinds of models share: admission, the queue, those that wait outside it, the end.

All state is touched on the event loop only. Every admitted item is answered once, by its execution or without one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from time import perf_counter

from aclserve.errors import AclserveError, DeadlineExceeded, FailedPrecondition
from aclserve_server.engine.batching import BatchQueue
from aclserve_server.engine.company import apart, has, join, take_out
from aclserve_server.engine.contract import Contract, Sink, Ticket
from aclserve_server.engine.hazards import Hazards
from aclserve_server.engine.items import DropReason, Item, Result
from aclserve_server.engine.outcomes import Account, Observer, cancelled, expired
from aclserve_server.engine.parking import Parking
from aclserve_server.engine.slots import Slot
from aclserve_server.engine.statistics import Totals


class Runner:
    """The items of one model, `version` of it. `submit`, `cancel` and `drain` belong to the event loop."""

    contract: Contract
    slots: list[Slot]

    def __init__(
        self, name: str, contract: Contract, queue: BatchQueue[Ticket], hazards: Hazards, observe: Observer
    ) -> None:
        self.name = name
        self.version = 0
        self.contract = contract
        self._queue = queue
        self._hazards = hazards
        self.account = Account(observe)
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._rings_at = 0.0
        self._pump_scheduled = False
        self._parking = Parking(self._loop, self._over)
        self._busy_until = 0.0
        self._in_flight = 0
        self.totals = Totals()
        self._lost: AclserveError | None = None
        self._draining = False
        self._drained = asyncio.Event()

    @property
    def queue_rows(self) -> int:
        """Rows that wait."""
        return self._queue.rows

    def submit(self, item: Item, sink: Sink) -> Ticket:
        """Admits an item; its one answer reaches `sink` later. Raises what is wrong with it instead of answering."""
        now = perf_counter()
        try:
            if self._lost is not None:
                raise self._lost
            if self._draining:
                raise FailedPrecondition(f"model {self.name!r} is being unloaded", reason="MODEL_NOT_READY")
            ticket = self.contract.admit(item, sink, now)
        except AclserveError as error:
            self.account.refused(error.code_name, now, 1 + len(item.company or ()))
            raise
        if item.company:
            join(ticket, item, item.company)
        ticket.owner = self
        ticket.queue_rows = self._queue.rows
        ticket.alone = bool(ticket.region_pins) and self._goes_alone(ticket)
        try:
            if ticket.deadline is not None and not ticket.drops:
                self._refuse_if_hopeless(ticket)
            if not ticket.rows:
                self._answer_empty(ticket)
            elif not ticket.pins or self._hazards.enter(ticket, self._unpark):
                self._enqueue(ticket)
            else:
                self._parking.add(ticket)
        except AclserveError as error:
            self._release(ticket, failed=True)
            self.account.refused(error.code_name, now, ticket.items)
            raise
        return ticket

    def _goes_alone(self, ticket: Ticket) -> bool:
        """Whether a ticket with tensors in shared memory is to have its batch to itself."""
        return False

    def cancel(self, ticket: Ticket, reason: DropReason | None = None) -> bool:
        """Takes back an item that waits: True, and the caller sends the answer. One that runs is discarded.

        `reason` tells that its stream drops it, which is no failure.
        """
        if not self._parking.remove(ticket) and not self._queue.cancel(ticket):
            ticket.cancelled = True
            return False
        self._release(ticket, failed=True)
        self.account.taken_back(ticket, reason)
        if self._parking.for_room:
            self._pump_soon()
        self._check_drained()
        return True

    def take_back(self, ticket: Ticket, item_id: str) -> Result | None:
        """Takes one item of a ticket back; the others it stands for wait on. None where the item runs."""
        if ticket.members is None or (ticket.items == 1 and has(ticket, item_id)):
            return cancelled(ticket.item_id, ticket.capture_time) if self.cancel(ticket) else None
        if not has(ticket, item_id) or not (ticket.waiting or ticket.parked):
            return None
        rows = ticket.rows
        member = take_out(ticket, item_id)
        if ticket.waiting:
            self._queue.shrunk(ticket, rows - ticket.rows, served=False)
        self.account.refused("CANCELLED", ticket.received)
        self._pump_soon()
        return cancelled(member.item_id, member.capture_time)

    @property
    def company_rows(self) -> int:
        """The most rows that alike items of one message may bring together; 0 where each needs a ticket of its own."""
        return 0

    async def drain(self) -> None:
        """Takes no more items and returns when all admitted ones are answered."""
        self._draining = True
        if self._lost is None:
            self.hurry()
        await self._drained.wait()

    def lose(self, error: AclserveError) -> None:
        """The device is lost: takes no more items, and answers with `error` all there are. `flush` comes next."""
        self._lost = error

    def flush(self) -> None:
        """Answers what waits and what runs, after every runner was told of the loss: items may wait for another's.

        What runs is waited for no more, not even by `drain`; it keeps what it holds until it ends.
        """
        assert self._lost is not None
        for ticket in self._parking.tickets():
            if self._parking.remove(ticket):  # releasing one may have answered another already
                self._fail_alone(ticket, self._lost)
        while self._queue.rows:
            for ticket in self._queue.take():
                self._fail_alone(ticket, self._lost)
        for ticket in list(self._running_tickets()):
            if not ticket.cancelled:
                ticket.cancelled = True  # whatever comes of it is discarded
                self._tell(ticket, self._lost)
        self._drained.set()

    def _fail_alone(self, ticket: Ticket, error: AclserveError) -> None:
        """Answers an item that did not run."""
        self._release(ticket, failed=True)
        self._tell(ticket, error)

    def _tell(self, ticket: Ticket, error: AclserveError) -> None:
        self.account.refused(error.code_name, ticket.received, ticket.items)
        ticket.sink.deliver(apart(ticket, Result(ticket.item_id, ticket.capture_time, error=error)))

    def _running_tickets(self) -> Iterable[Ticket]:
        """Items that are on their way through the device."""
        raise NotImplementedError

    def hurry(self) -> None:
        """Waits for no more company: the server stops, or the model is unloaded."""
        self._queue.max_delay = 0.0
        self._pump()

    def close(self) -> None:
        """Frees what the runner itself holds of the device (not the slots), on an ACL thread, after `drain`."""
        raise NotImplementedError

    def _enqueue(self, ticket: Ticket) -> None:
        """Queues a ticket; a patient one waits outside while there is no room, or others are there before it."""
        if ticket.patient and (self._parking.for_room or not self._queue.has_patient_room(ticket.rows)):
            self._parking.add(ticket, for_room=True)
        else:
            self._queue.add(ticket)
            self._pump_soon()

    def _let_in(self) -> None:
        """Queues those that wait outside, as far as there is room now."""
        while self._parking.for_room:
            ticket = next(iter(self._parking.for_room))
            if not self._queue.has_patient_room(ticket.rows):
                break
            self._parking.remove(ticket)
            self._queue.add(ticket)

    def _pump_soon(self) -> None:
        if not self._pump_scheduled:
            self._pump_scheduled = True
            self._loop.call_soon(self._pump)

    def _unpark(self, ticket: Ticket, written: bool) -> None:
        """What the ticket's buffers had to wait for is done."""
        self._parking.remove(ticket)
        try:
            if self._lost is not None:
                raise self._lost
            if not written:
                raise FailedPrecondition(
                    "the item before this one, which was to write an input buffer of it, has failed; send both again",
                    reason="INPUT_NOT_WRITTEN",
                )
            self._enqueue(ticket)
        except AclserveError as error:
            self._fail_alone(ticket, error)
            self._check_drained()

    def _release(self, ticket: Ticket, *, failed: bool) -> None:
        """Lets go of all that a ticket holds, and of those that wait for it."""
        if ticket.pins:
            self._hazards.leave(ticket, failed=failed)
        ticket.release()

    def _expire(self, now: float) -> None:
        """Answers the items whose deadline has come, and lets others take their place."""
        for ticket in self._queue.expire(now):
            self._over(ticket)
        self._let_in()

    def _over(self, ticket: Ticket) -> None:
        """Answers an item whose deadline has come while it waited."""
        self._release(ticket, failed=True)
        result = expired(ticket)
        self.account.expired(ticket, result)
        ticket.sink.deliver(apart(ticket, result))
        self._check_drained()

    def _pump(self) -> None:
        """Starts what is due, and sees to it that it is called again in time."""
        raise NotImplementedError

    def _call_again(self, *, idle: bool) -> None:
        """Arms the timer for the queue's next change by time. One that rings earlier is left: then it is armed anew."""
        wakeup = self._queue.next_wakeup(idle=idle)
        if self._timer is not None:
            if wakeup is not None and self._rings_at <= wakeup:
                return
            self._timer.cancel()
            self._timer = None
        if wakeup is not None:
            self._timer = self._loop.call_later(max(wakeup - perf_counter(), 0.0), self._ring)
            self._rings_at = wakeup

    def _ring(self) -> None:
        self._timer = None
        self._pump()

    def _refuse_if_hopeless(self, ticket: Ticket) -> None:
        """Refuses an item at once whose deadline will pass before its turn comes, by what was learned."""
        if not ticket.rows:
            return
        assert ticket.deadline is not None
        allowed = ticket.deadline - ticket.received
        wait = self._queue.predicted_wait(ticket, self._busy_s(ticket.received), self._lane_count(), allowed)
        if wait is not None and wait > allowed:
            raise DeadlineExceeded(
                f"the item would wait about {wait * 1e3:.0f} ms for its execution, its deadline allows "
                f"{allowed * 1e3:.0f} ms; allow more, or send less",
                reason="DEADLINE_UNREACHABLE",
                metadata={"predicted_wait_ms": f"{wait * 1e3:.0f}", "allowed_ms": f"{allowed * 1e3:.0f}"},
                retry_delay=wait,
            )

    def _busy_s(self, now: float) -> float:
        """How long, by what was learned, the device has to do with what it has."""
        return max(self._busy_until - now, 0.0)

    def _lane_count(self) -> int:
        """How many batches are executed at a time."""
        return 1

    def _answer_empty(self, ticket: Ticket) -> None:
        """Answers an item without rows, which needs no device."""
        raise NotImplementedError

    def _check_drained(self) -> None:
        if self._draining and not self._in_flight and not self._queue.rows and not self._parking:
            self._drained.set()
