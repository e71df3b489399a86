"""One ModelStreamInfer call: requests come in, for any models; answers leave in the order of the requests.

Every request gets exactly one answer. A failed one is a message with its text, and the stream goes on, unless the
client asked with the metadata `triton_grpc_error` that the first failure ends the call with its status; a message that
is none ends it always. What was asked before that is answered first. How much is accepted and not yet answered is
bounded: beyond that the server reads no further, and HTTP/2 holds the client back.
A stream never finds a queue full: its requests wait outside until there is room.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import grpc.aio

from aclserve.errors import AclserveError
from aclserve_server.engine.contract import Ticket
from aclserve_server.engine.engine import Record
from aclserve_server.engine.items import Result
from aclserve_server.rpc.calls import going_away
from aclserve_server.rpc.status import service_error, to_item_error_fields
from aclserve_server.rpc.stream_log import StreamEnd
from aclserve_server.rpc.stream_settings import StreamLimits
from aclserve_server.rpc.tracing import CallTrace
from aclserve_server.rpc.v2.answers import shown
from aclserve_server.rpc.v2.wire_in import V2Item, scan_model_infer_request
from aclserve_server.rpc.v2.wire_out import assemble_stream_error, assemble_stream_response

PACKAGE = "inference"
"""The protocol, by the name of its proto package."""

_HALF_CLOSE_S = 1.0
"""How long a stream that is going away waits, after its last answer, for the client's half-close."""

Submit = Callable[[V2Item, "StreamSession"], tuple[Record, Ticket]]


@dataclass(slots=True, eq=False)
class _Entry:
    """A request whose answer has not left. `message` is the answer, once there is one; `ends` ends the call instead."""

    item: V2Item
    size_bytes: int
    received: float
    record: Record | None = None
    ticket: Ticket | None = None
    message: bytes | None = None
    ends: AclserveError | None = None


class StreamSession:
    """The state of one stream; the `Sink` of its items. Lives on the event loop."""

    def __init__(
        self,
        number: int,
        submit: Submit,
        lease_id: str,
        limits: StreamLimits,
        trace: CallTrace | None,
        *,
        errors_end_it: bool,
    ) -> None:
        self.number = number
        self.received = self.succeeded = self.failed = self.input_bytes = 0
        self._trace = trace
        self._ended = False
        self._submit = submit
        self._lease_id = lease_id
        self._limits = limits
        self._errors_end_it = errors_end_it
        self._deadline: float | None = None
        self._entries: dict[str, _Entry] = {}
        self._turns: deque[_Entry] = deque()
        self._pending_bytes = 0
        self._last_ticket: Ticket | None = None
        self._wake = asyncio.Event()
        self._room = asyncio.Event()
        self._read_out = asyncio.Event()
        self._going_away = False
        self._leave_at = 0.0
        self._over = False
        self._failure: AclserveError | None = None

    async def run(self, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        """Serves the call until its requests are answered. Raises the `AclserveError` that ends it before that."""
        remaining = context.time_remaining()
        began = perf_counter()
        if remaining is not None:
            self._deadline = began + remaining
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._receive(context))
                group.create_task(self._send(context))
        finally:
            entries, self._entries = self._entries, {}
            for entry in entries.values():
                if entry.ticket is not None and entry.ticket.owner is not None:
                    entry.ticket.owner.cancel(entry.ticket)
            code = "OK" if self._ended else "CANCELLED" if self._failure is None else self._failure.code_name
            totals = (self.received, self.succeeded, self.failed)
            StreamEnd(PACKAGE, self.number, "", code, *totals, {}, self.input_bytes, perf_counter() - began).tell()

    def go_away(self) -> None:
        """Answers further requests with an error: the server drains. Ends when nothing is owed any more."""
        self._going_away = True
        self._wake.set()

    def deliver(self, results: list[Result]) -> None:
        """Takes results from the engine: assembles them now, sends them when it is their turn."""
        entries, trace = self._entries, self._trace
        for result in results:
            entry = entries.pop(result.item_id, None)
            if entry is None:
                continue
            if trace is not None:
                trace.item(result, entry.item.model, entry.received)
            if result.error is None:
                self._succeed(entry, result)
            else:
                self._fail(entry, result.error)
        turns = self._turns
        if turns and turns[0].message is not None:
            self._wake.set()

    def _succeed(self, entry: _Entry, result: Result) -> None:
        item, record = entry.item, entry.record
        assert record is not None
        try:
            result = shown(item, record, result)
            entry.message = assemble_stream_response(record.name, record.version, item.client_id, result)
            self.succeeded += 1
        except Exception as error:  # whatever it is: the request is owed an answer, and its neighbours theirs
            self._fail(entry, service_error(error))

    def _fail(self, entry: _Entry, error: AclserveError) -> None:
        self.failed += 1
        if self._errors_end_it:
            self._over, entry.ends = True, error
        item, record = entry.item, entry.record
        text = to_item_error_fields(error)[2]
        if item.client_id:
            text = f"[request id: {item.client_id}] {text}"
        version = 0 if record is None else record.version
        entry.message = assemble_stream_error(text, item.client_id, item.model, version)

    async def _receive(self, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        """Reads to the end, also while going away: unread data would make the closing connection reset.

        What comes after an error that ends the call is not looked at.
        """
        while (message := await context.read()) is not grpc.aio.EOF:
            while self._must_wait():
                self._room.clear()
                await self._room.wait()
            if not self._over:
                self._accept(message)
        self._read_out.set()
        self._wake.set()

    def _must_wait(self) -> bool:
        """Whether to accept no further request for now."""
        turns, limits = self._turns, self._limits
        if len(turns) >= limits.max_items or (turns and self._pending_bytes >= limits.max_bytes):
            return True
        return self._last_ticket is not None and self._last_ticket.outside

    def _accept(self, message: bytes) -> None:
        try:
            item = scan_model_infer_request(message)
        except AclserveError as error:
            self._over = True
            self._turns.append(_Entry(V2Item(), 0, perf_counter(), message=b"", ends=error))
            self._wake.set()
            return
        item.id = str(self.received)
        self.received += 1
        entry = _Entry(item, len(message), perf_counter())
        self.input_bytes += len(message)
        self._turns.append(entry)
        self._pending_bytes += len(message)
        self._entries[item.id] = entry
        item.lease_id = self._lease_id
        item.patient = True
        if self._deadline is not None:
            remaining = self._deadline - perf_counter()
            item.timeout_s = remaining if item.timeout_s is None else min(item.timeout_s, remaining)
        try:
            if self._going_away:
                raise going_away()
            entry.record, entry.ticket = self._submit(item, self)
            self._last_ticket = entry.ticket
        except AclserveError as error:
            self.deliver([Result(item.id, error=error)])

    async def _send(self, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        turns = self._turns
        while turns or not self._read_out.is_set():
            if not turns or turns[0].message is None:
                await self._next(linger=self._going_away and not turns)
                continue
            entry = turns[0]
            assert entry.message is not None
            if entry.ends is not None:
                self._failure = entry.ends
                raise entry.ends
            await context.write(entry.message)
            turns.popleft()
            self._pending_bytes -= entry.size_bytes
            self._room.set()
        self._ended = True

    async def _next(self, *, linger: bool) -> None:
        """Waits until there is something to do; `linger`: for the client's half-close, and not for long."""
        self._wake.clear()
        if not linger:
            await self._wake.wait()
            return
        now = asyncio.get_running_loop().time()
        self._leave_at = self._leave_at or now + _HALF_CLOSE_S
        try:
            await asyncio.wait_for(self._wake.wait(), max(self._leave_at - now, 0.0))
        except TimeoutError:
            self._failure = going_away()
            raise self._failure from None
