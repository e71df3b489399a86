"""One `StreamInfer` call: what came in, what is owed, what goes out.

Two tasks in one group: `_receive` reads messages and hands their items to the engine, `_send` writes what is ready.
Between them stand the window (items accepted and not yet written back) and the outbox. What a client may leave unread
is bounded: results by the window, notices of dropped items by `_UNREAD`; the window itself is told when it is written.
A result is assembled into bytes the moment the engine delivers it, because its views die then; what is ready together
leaves in one message. Every item gets exactly one result; the summary counts them.

With WAIT an item is read and held, not accepted, while there is no room: a cancellation behind it is still seen.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import grpc

from aclserve.errors import AclserveError, FailedPrecondition
from aclserve.v1 import model_pb2 as pb
from aclserve_server.engine.contract import Ticket
from aclserve_server.engine.frames import Frame, FrameWindow, Policy
from aclserve_server.engine.items import Dropped, DropReason, Item, Result
from aclserve_server.engine.outcomes import Observe, dropped, duplicate
from aclserve_server.rpc.groups import CompanyRows, Group
from aclserve_server.rpc.outbox import Message, joined
from aclserve_server.rpc.stream_log import StreamEnd
from aclserve_server.rpc.stream_settings import (
    POLICIES,
    StreamLimits,
    StreamSettings,
    settings_from_proto,
    summary_to_proto,
)
from aclserve_server.rpc.tracing import CallTrace
from aclserve_server.rpc.wire import scan_stream_request
from aclserve_server.rpc.wire_out import assemble_results

_UNREAD = 4096
"""Results not written yet, beyond the window, at which the server reads no further."""

_HALF_CLOSE_S = 1.0
"""How long a stream that is going away waits, after its last answer, for the client's half-close."""

_LATENCIES = 256
Submit = Callable[[Item, "StreamSession"], Ticket]


@dataclass(slots=True, eq=False)
class _Entry(Frame):
    """An item that is not answered yet. `ticket` is None until the engine has admitted it.

    In order of submission its answer waits here, as `messages`, until those before it have left; one that never became
    `pending` is here only for its turn.
    """

    model: str = ""
    ticket: Ticket | None = None
    messages: list[bytes] | None = None
    pending: bool = True


class StreamSession:
    """The state of one stream; the `Sink` of its items. Lives on the event loop."""

    def __init__(
        self,
        number: int,
        submit: Submit,
        lease_id: str,
        limits: StreamLimits,
        observe: Observe,
        company_rows: CompanyRows,
        trace: CallTrace | None = None,
    ) -> None:
        """`observe` is for items that never reach their model."""
        self.number = number
        self._observe = observe
        self._trace = trace
        self.settings: StreamSettings | None = None
        self.received = self.succeeded = self.failed = self.input_bytes = 0
        self.drops: Counter[DropReason] = Counter()
        self.latencies_ns: deque[int] = deque(maxlen=_LATENCIES)
        self.frames = FrameWindow(
            Policy.WAIT,
            limits.max_items,
            limits.max_bytes,
            lambda frame: self._waiting(frame) is not None,
            self._give_up,
        )
        self._submit = submit
        self._group = Group(company_rows)
        self._lease_id = lease_id
        self._limits = limits
        self._share = limits.max_items
        self._entries: dict[str, _Entry] = {}
        self._turns: deque[_Entry] = deque()
        self._outbox: list[Message] = []
        self._unwritten = 0
        self._in_order = False
        self._told_window = limits.max_items
        self._deadline: float | None = None
        self._last_accepted = ""
        self._last_ticket: Ticket | None = None
        self._wake = asyncio.Event()
        self._room = asyncio.Event()
        self._reading_done = False
        self._read_out = asyncio.Event()
        self._going_away = False
        self._failure: AclserveError | None = None
        self._reader: asyncio.Task[None] | None = None
        self._ended = False

    async def run(self, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        """Serves the call until its items are answered. Raises the `AclserveError` that ends a broken stream."""
        remaining = context.time_remaining()
        began = perf_counter()
        if remaining is not None:
            self._deadline = began + remaining
        try:
            async with asyncio.TaskGroup() as group:
                self._reader = group.create_task(self._receive(context))
                group.create_task(self._send(context))
        finally:
            entries, self._entries = self._entries, {}
            for entry in entries.values():
                if entry.ticket is not None and entry.ticket.owner is not None:
                    entry.ticket.owner.cancel(entry.ticket)
            self._tell_end(perf_counter() - began)

    def _tell_end(self, duration_s: float) -> None:
        code = "OK" if self._ended else "CANCELLED" if self._failure is None else self._failure.code_name
        model = "" if self.settings is None else self.settings.model
        drops = {reason.name: count for reason, count in self.drops.items()}
        totals = (self.received, self.succeeded, self.failed)
        StreamEnd("aclserve.v1", self.number, model, code, *totals, drops, self.input_bytes, duration_s).tell()

    def go_away(self) -> None:
        """Takes no further message: the server drains."""
        if self._reader is not None and not self._reading_over:
            notice = pb.StreamInferResponse(going_away=pb.GoingAway(last_accepted_id=self._last_accepted))
            self._put(None, notice.SerializeToString())
            self._going_away = True
            self._room.set()

    def share(self, max_items: int) -> None:
        """Sets this stream's part of the server's queue; the client is told when its window changes by that."""
        self._share = max_items
        if self.settings is not None:
            self.frames.max_items = min(self.settings.max_items, max_items)
            self._room.set()
            self._wake.set()

    def deliver(self, results: list[Result]) -> None:
        """Takes results from the engine: assembles them now, sends them when it is their turn.

        A dropped item is not pending any more at once, others when their result is written.
        """
        take = self._entries.get if self._in_order else self._entries.pop
        live: list[Result] = []
        frames: list[Frame] = []
        for result in results:
            if (entry := take(result.item_id, None)) is None:
                continue
            self._count(result, entry.model, entry.received)
            if result.dropped is not None:
                self.frames.leave(entry)
            if self._in_order:
                entry.messages = assemble_results([result])
            else:
                live.append(result)
                frames.append(entry)
        if self._in_order:
            self._put_in_order()
        elif live:
            self._put_all(frames, assemble_results(live, self._limits.packed_bytes))

    def _count(self, result: Result, model: str, received: float) -> None:
        if self._trace is not None:
            self._trace.item(result, model, received)
        if result.error is not None:
            self.failed += 1
        elif result.dropped is not None:
            self.drops[result.dropped.reason] += 1
        else:
            self.succeeded += 1
            if result.timing is not None:
                self.latencies_ns.append(result.timing.total_ns)

    def _put_in_order(self) -> None:
        while self._turns and self._turns[0].messages is not None:
            entry = self._turns.popleft()
            if entry.pending:
                del self._entries[entry.item_id]
            self._put_all([entry] if entry.pending else [], entry.messages or [])

    def _put_all(self, frames: list[Frame], messages: list[bytes]) -> None:
        for message in messages[:-1]:
            self._put([], message)
        self._put(frames, messages[-1])

    def _put(self, frames: list[Frame] | None, message: bytes) -> None:
        self._outbox.append((frames, message))
        self._unwritten += 1
        self._wake.set()

    @property
    def _reading_over(self) -> bool:
        return self._reading_done or self._going_away

    async def _receive(self, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        """Reads to the end, also after the notice of going away: unread data would make the closing connection reset,
        and answers under way would be lost.

        What breaks the stream is raised by `_send`, between two writes: after a cancelled write no status could leave.
        """
        try:
            while (message := await context.read()) is not grpc.aio.EOF:
                await self._take(message)
        except AclserveError as error:
            self._failure = error
        self._reading_done = True
        self._read_out.set()
        self._wake.set()

    def _must_wait(self) -> bool:
        """Whether to accept no further item for now: no room, with WAIT, or a client that does not read."""
        if self._unwritten + len(self._turns) >= _UNREAD + self.frames.max_items:
            return True
        if self.frames.policy is not Policy.WAIT:
            return False
        return self.frames.full or (self._last_ticket is not None and self._last_ticket.outside)

    async def _take(self, message: bytes) -> None:
        if self._going_away:
            return
        request = scan_stream_request(message)
        if isinstance(request, pb.StreamConfig):
            self._configure(request)
        elif self.settings is None:
            raise FailedPrecondition(
                "the first message of a stream must be its configuration; send `config` first",
                reason="STREAM_NOT_CONFIGURED",
            )
        elif isinstance(request, list):
            now = perf_counter()
            for item in request:
                while self._must_wait() and not self._going_away:
                    self._hand_over()
                    self._room.clear()
                    await self._room.wait()
                    now = perf_counter()
                if self._going_away:
                    break
                self._accept(item, self.settings, now)
            self._hand_over()
        else:
            self._cancel(request.ids)

    def _configure(self, config: pb.StreamConfig) -> None:
        if self.settings is not None:
            raise FailedPrecondition(
                "the stream is configured already; open another stream for another configuration",
                reason="STREAM_ALREADY_CONFIGURED",
            )
        limits = self._limits
        settings = self.settings = settings_from_proto(config, limits.max_items, limits.max_bytes)
        self._in_order = settings.in_order
        self.frames.policy = POLICIES[settings.policy]
        self.frames.max_items = min(settings.max_items, self._share)
        self.frames.max_bytes = settings.max_bytes
        self._told_window = self.frames.max_items
        ready = settings.ready(self._told_window, limits.max_message_bytes)
        self._put(None, pb.StreamInferResponse(ready=ready).SerializeToString())

    def _accept(self, item: Item, settings: StreamSettings, now: float) -> None:
        item_id = item.id = item.id or str(self.received)
        self.received += 1
        if not item.model:
            item.model, item.version = settings.model, item.version or settings.version
        if item_id in self._entries:
            self._refuse_duplicate(item)
            return
        size = 0
        for tensor in item.inputs:
            if tensor.data is not None:
                size += tensor.data.nbytes
        self.input_bytes += size
        entry = _Entry(item_id, size, now, item.model)
        reason = self.frames.arrive(entry)
        self._last_accepted = item_id
        if reason is not None:
            self._observe(item.model, item.version).dropped(reason)
            self._answer_alone(item, Result(item.id, item.capture_time, dropped=Dropped(reason, 0)))
            return
        self._entries[item_id] = entry
        if self._in_order:
            self._turns.append(entry)
        item.priority = item.priority or settings.priority
        if self._deadline is not None:
            remaining = self._deadline - now
            item.timeout_s = remaining if item.timeout_s is None else min(item.timeout_s, remaining)
        item.max_age_s = settings.max_age_s
        item.patient = self.frames.policy is Policy.WAIT
        item.lease_id = self._lease_id
        if item.error is not None:
            self._observe(item.model, item.version).answered(item.error.code_name)
            self.deliver([Result(item.id, item.capture_time, error=item.error)])
            return
        if not self._group.admits(item):
            self._hand_over()
        self._group.add(item)
        if not item.patient:  # the frame policy looks at tickets
            self._hand_over()

    def _hand_over(self) -> None:
        """Gives the engine what was accepted."""
        if not (items := self._group.take()):
            return
        try:
            self._last_ticket = self._submit(items[0], self)
        except AclserveError as error:
            self.deliver([Result(item.id, item.capture_time, error=error) for item in items])
            return
        for item in items:
            self._entries[item.id].ticket = self._last_ticket

    def _refuse_duplicate(self, item: Item) -> None:
        error = duplicate(item.id)
        self._observe(item.model, item.version).answered(error.code_name)
        self._answer_alone(item, Result(item.id, item.capture_time, error=error))

    def _answer_alone(self, item: Item, result: Result) -> None:
        """Answers an item that never became pending."""
        self._count(result, item.model, perf_counter())
        entry = _Entry(item.id, 0, 0.0, messages=assemble_results([result]), pending=False)
        if self._in_order:
            self._turns.append(entry)
            self._put_in_order()
        else:
            self._put_all([], entry.messages or [])

    def _give_up(self, frame: Frame, reason: DropReason) -> None:
        ticket = self._waiting(frame)
        if ticket is not None and ticket.owner is not None and ticket.owner.cancel(ticket, reason):
            self.deliver([dropped(ticket, reason)])

    def _cancel(self, ids: Iterable[str]) -> None:
        for item_id in ids:
            entry = self._entries.get(item_id)
            ticket = None if entry is None else self._waiting(entry)
            answer = None if ticket is None or ticket.owner is None else ticket.owner.take_back(ticket, item_id)
            if answer is not None:
                self.deliver([answer])

    def _waiting(self, frame: Frame) -> Ticket | None:
        """The ticket of an item that has not begun to execute."""
        entry = self._entries.get(frame.item_id)
        ticket = None if entry is not frame else entry.ticket
        return ticket if ticket is not None and (ticket.waiting or ticket.parked) else None

    async def _send(self, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        while self._outbox or not self._reading_over or self._entries:
            if self._failure is not None:
                raise self._failure
            if not self._outbox and self._told_window == self.frames.max_items:
                self._wake.clear()
                await self._wake.wait()
                continue
            outbox, self._outbox = self._outbox, []
            for frames, message in joined(outbox):
                await context.write(message)
                for frame in frames or ():
                    self.frames.leave(frame)
                self._room.set()
            self._unwritten -= len(outbox)
            self._room.set()
            await self._tell_window(context)
        if self._failure is not None:
            raise self._failure
        summary = summary_to_proto(self.received, self.succeeded, self.failed, self.drops)
        await context.write(pb.StreamInferResponse(summary=summary).SerializeToString())
        self._ended = True
        if not self._reading_done and self._reader is not None:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._read_out.wait(), _HALF_CLOSE_S)
            self._reader.cancel()

    async def _tell_window(self, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        """Tells a window that has changed, however often it did, once."""
        window, told = self.frames.max_items, self._told_window
        self._told_window = window
        if window != told and not self._reading_over:
            notice = pb.StreamWindow(max_pending_items=window, max_pending_bytes=self.frames.max_bytes)
            await context.write(pb.StreamInferResponse(window=notice).SerializeToString())
