"""The asynchronous stream: `StreamState` driven by a receiving task of its own and by the callers' tasks.

grpc's task takes the messages to send from `_requests`. Callers only ever wait for a change of the state, so
cancelling one of them (a timeout around `send`, say) does the stream no harm.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Iterable
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Any, Self

import grpc

from aclserve.errors import AclserveError, Cancelled, DeadlineExceeded, Unavailable
from aclserve.v1 import model_pb2 as pb
from aclserve_client import data
from aclserve_client.aio_lease import AsyncLease
from aclserve_client.calls import AsyncCaller, Background
from aclserve_client.options import Deadline, SharedMemory
from aclserve_client.rpcs import STREAM_INFER
from aclserve_client.stream_data import Priority
from aclserve_client.stream_facts import StreamFacts
from aclserve_client.stream_items import as_item, group_size
from aclserve_client.streams import StreamState


class AsyncStream(StreamFacts):
    """As `Stream`, for asyncio; use it in `async with`. For the tasks of one event loop."""

    def __init__(
        self,
        caller: AsyncCaller,
        state: StreamState,
        lease_id: str,
        timeout: float | None,
        sharing: SharedMemory = False,
    ) -> None:
        self._caller = caller
        self._lease_id = lease_id
        self._sharing = sharing
        self._share_lease: AsyncLease | None = None  # of the last call, to be released
        self._timeout = timeout
        self._deadline = Deadline(timeout)
        self._state = state
        self._change = asyncio.Event()
        self._reader: asyncio.Task[Any] | None = None
        self._call: Any = None
        self._calls = 0
        self._endpoint = caller.endpoint(lease_id)
        self._scope = AsyncExitStack()

    async def __aenter__(self) -> Self:
        self._caller.check_open()
        self._deadline = Deadline(self._timeout)
        try:
            await self._scope.enter_async_context(Background(self._run()))
            while self._state.ready is None and not self._state.ended:
                await self._changed()
            if self._state.ready is None:
                self._state.check_sendable()
        except BaseException:
            await self._close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._close()

    async def _close(self) -> None:
        self._state.fail(Cancelled("the stream was closed", reason="STREAM_CLOSED"))
        self._notify()
        if self._call is not None:
            self._call.cancel()
        await self._scope.aclose()
        if self._share_lease is not None:
            await self._share_lease._end(release=True)

    async def send(
        self,
        inputs: data.Inputs,
        *,
        id: str = "",
        model: str = "",
        version: int = 0,
        outputs: data.OutputChoice = None,
        max_wait: float | None = None,
        capture_time_ns: int | None = None,
        priority: Priority | str = Priority.UNSPECIFIED,
    ) -> str:
        """As `Stream.send`."""
        item = data.Item(inputs, id, model, version, outputs, max_wait, capture_time_ns, priority)
        return (await self.send_many([item]))[0]

    async def send_many(self, items: Iterable[data.Inputs | data.Item]) -> list[str]:
        """As `Stream.send_many`."""
        waiting = [as_item(item) for item in items]
        ids: list[str] = []
        try:
            for item in waiting:
                while not self._state.admits(item, reading_elsewhere=self._reading_elsewhere()):
                    self._notify()
                    await self._changed()
                ids.append(self._state.add(item))
        finally:
            self._notify()
        return ids

    async def cancel(self, ids: Iterable[str]) -> None:
        """As `Stream.cancel`."""
        self._state.cancel(ids)
        self._notify()

    async def finish(self) -> None:
        """As `Stream.finish`."""
        self._state.finish()
        self._notify()

    def results(self) -> AsyncIterator[data.Result]:
        """As `Stream.results`."""
        return _Results(self)

    async def map(
        self, items: Iterable[data.Inputs | data.Item] | AsyncIterable[data.Inputs | data.Item], *, pack: int = 8
    ) -> AsyncIterator[data.Result]:
        """As `Stream.map`; takes asynchronous iterables too."""
        source, exhausted = _iterate(items), False
        size = self._state.pack_items = group_size(pack, self.window)
        while True:
            while not exhausted and self._state.has_room(size):
                sent = await self._send_some(source, size)
                if sent is None:
                    break
                if exhausted := sent < size:
                    await self.finish()
            result = await self._next_result()
            if result is None:
                break
            yield result
        if not exhausted:
            self._state.check_sendable()

    async def _send_some(self, source: AsyncIterator[data.Inputs | data.Item], count: int) -> int | None:
        """Sends the next `count` items, fewer at the end; None when the server takes no more.

        Each is sent when the source has it; those that it has without waiting travel together.
        """
        for sent in range(count):
            try:
                item = await anext(source)
            except StopAsyncIteration:
                return sent
            try:
                await self.send_many([item])
            except Unavailable:
                if not self.going_away:
                    raise
                return None
        return count

    async def _next_result(self) -> data.Result | None:
        """The next result, None at the end."""
        task = asyncio.current_task()
        if task is not None and task is not self._reader:
            self._reader = task
            task.add_done_callback(self._reader_done)
        while (result := self._state.take()) is None and not self._state.drained:
            await self._changed()
        self._notify()
        return result

    def _reader_done(self, task: asyncio.Task[Any]) -> None:
        self._notify()

    def _reading_elsewhere(self) -> bool:
        reader = self._reader
        return reader is not None and reader is not asyncio.current_task() and not reader.done()

    async def _changed(self) -> None:
        """Waits for the next change of the state."""
        await self._change.wait()

    def _notify(self) -> None:
        change, self._change = self._change, asyncio.Event()
        change.set()

    async def _run(self) -> None:
        """Receives until the stream ends, on one call after the other."""
        try:
            while not self._state.ended:
                self._caller.check_open()
                await self._receive()
                if self._state.lost:
                    self._caller.leave(self._endpoint)
                    await asyncio.sleep(self._state.resume_after or 0)
                    self._state.reopen()
        except AclserveError as error:
            self._state.fail(error)
        except asyncio.CancelledError:
            self._state.fail(Cancelled("the stream was cancelled on this side", reason="STREAM_CANCELLED"))
            raise
        finally:
            self._notify()

    async def _receive(self) -> None:
        """Receives the responses of one call, and has its shared memory."""
        self._endpoint = self._caller.endpoint(self._lease_id)
        async with AsyncExitStack() as scope:
            try:
                lease_id = await self._open_share(scope)
            except AclserveError as error:
                self._state.lose(error, self._deadline.remaining())
                return
            await self._receive_under(lease_id)

    async def _open_share(self, scope: AsyncExitStack) -> str:
        """Opens the shared memory of the next call and returns its lease; the stream's own where there is none."""
        sharing, address = self._caller.sharing, self._endpoint.address
        lease, share = AsyncLease(self._caller, None, self._opening_timeout()), None
        if not self._lease_id and sharing.wanted(self._sharing, address):
            try:
                await lease.__aenter__()
                scope.push_async_callback(self._end_lease, lease)
                steps = sharing.register_for_stream(lease.id, *self._state.model)
                share = await self._caller.run(steps, self._opening_timeout(), lease.id)
            except AclserveError as error:
                await scope.aclose()
                sharing.refused(error, self._sharing, address)
        if share is not None and self._state.ended:  # closed meanwhile
            share.close()
            share = None
        self._state.attach(share)
        return lease.id if share is not None else self._lease_id

    async def _end_lease(self, lease: AsyncLease) -> None:
        """Ends the keeping of a call's lease. The last one is released by `_close`, which cancels what runs here."""
        self._share_lease = None if self._state.lost else lease
        await lease._end(release=False)

    def _opening_timeout(self) -> float | None:
        limits = [limit for limit in (self._caller.options.timeout, self._deadline.remaining()) if limit is not None]
        return min(limits, default=None)

    async def _receive_under(self, lease_id: str) -> None:
        """Receives the responses of one call; pauses while results that nobody takes are at their bound."""
        self._open(lease_id)
        limit = self._caller.options.timeout
        try:
            async with asyncio.timeout(limit) as opening:
                async for response in self._call:
                    self._state.receive(response)
                    if not self._state.connecting:
                        opening.reschedule(None)
                    self._notify()
                    while self._state.unread_full and not self._state.ended:
                        await self._changed()
            self._state.end(self._deadline.remaining())
        except grpc.RpcError as error:
            failure = self._endpoint.translate(error, self._timeout)
            failure.__cause__ = error
            self._state.lose(failure, self._deadline.remaining())
        except TimeoutError:
            message = f"{self._endpoint.address} did not accept the stream within {limit:g} s"
            self._state.lose(DeadlineExceeded(message, reason="STREAM_NOT_READY"), self._deadline.remaining())
        finally:
            self._call.cancel()
            self._notify()

    def _open(self, lease_id: str) -> None:
        """Begins a call."""
        self._endpoint = self._caller.endpoint(lease_id)
        self._calls += 1
        self._call = self._endpoint.callables[STREAM_INFER.path](
            self._requests(self._calls),
            timeout=self._deadline.remaining(),
            metadata=self._caller.metadata(lease_id),
        )

    async def _requests(self, number: int) -> AsyncIterator[pb.StreamInferRequest]:
        """What to send on a call; runs on grpc's task."""
        while number == self._calls:
            message = self._state.next_message()
            if message is not None:
                yield message
            elif self._state.sending_is_over:
                return
            else:
                await self._changed()


class _Results(AsyncIterator[data.Result]):
    def __init__(self, stream: AsyncStream) -> None:
        self._stream = stream

    async def __anext__(self) -> data.Result:
        result = await self._stream._next_result()
        if result is None:
            raise StopAsyncIteration
        return result


async def _iterate(
    items: Iterable[data.Inputs | data.Item] | AsyncIterable[data.Inputs | data.Item],
) -> AsyncIterator[data.Inputs | data.Item]:
    if isinstance(items, AsyncIterable):
        async for item in items:
            yield item
    else:
        for item in items:
            yield item
