"""One `StreamInfer` call: what came in, what is owed, what goes out.

Two tasks in one group: `_receive` reads messages and hands their items to the engine, `_send` writes what is ready.
Between them stand the window (items accepted and not yet written back) and the outbox, which the window bounds. A
result is assembled into bytes the moment the engine delivers it, because its views die then; what is ready together
leaves in one message. Every item gets exactly one result; the summary counts them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any

import grpc

from aclserve.errors import AclserveError, AlreadyExists, FailedPrecondition
from aclserve.v1 import model_pb2 as pb
from aclserve_server.engine.contract import Ticket
from aclserve_server.engine.items import Item, Result
from aclserve_server.engine.outcomes import cancelled
from aclserve_server.rpc.wire import scan_stream_request
from aclserve_server.rpc.wire_out import assemble_results

_JOINED_BYTES = 64 << 10
"""Messages below this size that are ready together are joined: two of them in a row parse as their merge."""

Submit = Callable[[Item, "StreamSession"], Ticket]


class StreamSession:
    """The state of one stream; the `Sink` of its items. Lives on the event loop."""

    def __init__(self, submit: Submit, lease_id: str, max_items: int, max_message_bytes: int) -> None:
        self._submit = submit
        self._lease_id = lease_id
        self._window = max_items
        self._max_message_bytes = max_message_bytes
        self._config: pb.StreamConfig | None = None
        self._in_order = False
        self._tickets: dict[str, Ticket | None] = {}
        self._held: dict[str, list[bytes] | None] = {}
        self._outbox: list[tuple[int, bytes]] = []
        self._pending = 0
        self._last_accepted = ""
        self._received = self._succeeded = self._failed = 0
        self._wake = asyncio.Event()
        self._room = asyncio.Event()
        self._reading_done = False
        self._going_away = False
        self._reader: asyncio.Task[None] | None = None

    @property
    def received(self) -> int:
        """Items received so far."""
        return self._received

    async def run(self, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        """Serves the call until its items are answered. Raises the `AclserveError` that ends a broken stream."""
        try:
            async with asyncio.TaskGroup() as group:
                self._reader = group.create_task(self._receive(context))
                group.create_task(self._send(context))
        except BaseExceptionGroup as failures:
            raise _first(failures) from None
        finally:
            for ticket in self._tickets.values():
                if ticket is not None and ticket.owner is not None:
                    ticket.owner.cancel(ticket)
            self._tickets.clear()

    def go_away(self) -> None:
        """Takes no further message: the server drains."""
        if self._reader is not None and not self._reading_done:
            notice = pb.StreamInferResponse(going_away=pb.GoingAway(last_accepted_id=self._last_accepted))
            self._put(0, notice.SerializeToString())
            self._going_away = True
            self._reader.cancel()

    def deliver(self, results: list[Result]) -> None:
        """Takes results from the engine: assembles them now, sends them when it is their turn."""
        tickets = self._tickets
        live = [result for result in results if result.item_id in tickets]
        for result in live:
            if result.error is None:
                self._succeeded += 1
            else:
                self._failed += 1
        if self._in_order:
            self._deliver_in_order(live)
            return
        for result in live:
            del tickets[result.item_id]
        messages = assemble_results(live, self._max_message_bytes)
        for message in messages[:-1]:
            self._put(0, message)
        if messages:
            self._put(len(live), messages[-1])

    def _deliver_in_order(self, results: list[Result]) -> None:
        for result in results:
            self._held[result.item_id] = assemble_results([result], self._max_message_bytes)
        while self._tickets:
            first = next(iter(self._tickets))
            messages = self._held.pop(first, None)
            if messages is None:
                return
            del self._tickets[first]
            for message in messages:
                self._put(1, message)

    def _put(self, items: int, message: bytes) -> None:
        self._outbox.append((items, message))
        self._wake.set()

    async def _receive(self, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        try:
            while (message := await context.read()) is not grpc.aio.EOF:
                self._take(message)
                while self._pending >= self._window:
                    self._room.clear()
                    await self._room.wait()
        except asyncio.CancelledError:
            if not self._going_away:
                raise
        finally:
            self._reading_done = True
            self._wake.set()

    def _take(self, message: bytes) -> None:
        request = scan_stream_request(message)
        if isinstance(request, pb.StreamConfig):
            self._configure(request)
        elif self._config is None:
            raise FailedPrecondition(
                "the first message of a stream must be its configuration; send `config` first",
                reason="STREAM_NOT_CONFIGURED",
            )
        elif isinstance(request, list):
            for item in request:
                self._accept(item)
        else:
            self._cancel(request.ids)

    def _configure(self, config: pb.StreamConfig) -> None:
        if self._config is not None:
            raise FailedPrecondition(
                "the stream is configured already; open another stream for another configuration",
                reason="STREAM_ALREADY_CONFIGURED",
            )
        self._config = config
        self._in_order = config.order == pb.RESULT_ORDER_SUBMISSION
        if config.max_pending_items:
            self._window = min(self._window, config.max_pending_items)
        ready = pb.StreamReady(
            order=pb.RESULT_ORDER_SUBMISSION if self._in_order else pb.RESULT_ORDER_COMPLETION,
            max_pending_items=self._window,
            max_message_bytes=self._max_message_bytes,
        )
        self._put(0, pb.StreamInferResponse(ready=ready).SerializeToString())

    def _accept(self, item: Item) -> None:
        config = self._config
        assert config is not None
        if not item.id:
            item.id = str(self._received)
        self._received += 1
        self._pending += 1
        if item.id in self._tickets:
            self._failed += 1
            error = AlreadyExists(
                f"item {item.id!r} is in flight on this stream; wait for its result or choose another id",
                reason="DUPLICATE_ITEM_ID",
            )
            for message in assemble_results([Result(item.id, item.capture_time, error=error)], None):
                self._put(1, message)
            return
        self._last_accepted = item.id
        self._tickets[item.id] = None
        if not item.model:
            item.model, item.version = config.model, item.version or config.version
        item.lease_id = self._lease_id
        try:
            if item.error is not None:
                raise item.error
            self._tickets[item.id] = self._submit(item, self)
        except AclserveError as error:
            self.deliver([Result(item.id, item.capture_time, error=error)])

    def _cancel(self, ids: Iterable[str]) -> None:
        for item_id in ids:
            ticket = self._tickets.get(item_id)
            if ticket is not None and ticket.waiting and ticket.owner is not None and ticket.owner.cancel(ticket):
                self.deliver([cancelled(ticket)])

    async def _send(self, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        while True:
            if not self._outbox:
                if self._reading_done and not self._pending:
                    break
                self._wake.clear()
                await self._wake.wait()
                continue
            outbox, self._outbox = self._outbox, []
            for items, message in _joined(outbox):
                await context.write(message)
                self._pending -= items
                self._room.set()
        summary = pb.StreamSummary(
            received_items=self._received, succeeded_items=self._succeeded, failed_items=self._failed
        )
        await context.write(pb.StreamInferResponse(summary=summary).SerializeToString())


def _joined(outbox: list[tuple[int, bytes]]) -> list[tuple[int, bytes]]:
    """Joins small messages in a row; the `ready` and `going_away` notices (no items) stay alone."""
    if len(outbox) == 1:
        return outbox
    joined: list[tuple[int, bytes]] = []
    run: list[bytes] = []
    items = size = 0
    for count, message in outbox:
        if run and (not count or size + len(message) > _JOINED_BYTES):
            joined.append((items, b"".join(run)))
            run, items, size = [], 0, 0
        if count:
            run.append(message)
            items += count
            size += len(message)
        else:
            joined.append((0, message))
    if run:
        joined.append((items, b"".join(run)))
    return joined


def _first(failures: BaseExceptionGroup[BaseException]) -> BaseException:
    """The failure to report of those two tasks."""
    flat: list[BaseException] = []
    for failure in failures.exceptions:
        flat.extend(failure.exceptions if isinstance(failure, BaseExceptionGroup) else [failure])
    return next((failure for failure in flat if isinstance(failure, AclserveError)), flat[0])
