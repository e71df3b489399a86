"""Driving verbs over a channel, for both kinds of grpc: each step's call, its deadline, its retries and its errors."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, Self

import grpc
import grpc.aio

from aclserve.errors import AclserveError, FailedPrecondition
from aclserve_client.errors import CallContext, error_from_rpc
from aclserve_client.options import Deadline, Options, Retry, Timeout
from aclserve_client.rpcs import RPCS, Step
from aclserve_client.verbs import LEASE_KEY, Steps, T


class _CallerBase:
    """What both callers know: address, options, and the callables of the channel by path."""

    def __init__(self, address: str, options: Options, channel: Any) -> None:
        self.address = address
        self.options = options
        self._closed = False
        self.callables: dict[str, Any] = {rpc.path: rpc.bind(channel) for rpc in RPCS}

    def metadata(self, lease_id: str) -> tuple[tuple[str, str], ...]:
        """The metadata of a call, with the lease's id if there is one."""
        return self.options.metadata + (((LEASE_KEY, lease_id),) if lease_id else ())

    def check_open(self) -> None:
        """Raises when the client was closed."""
        if self._closed:
            raise FailedPrecondition("the client is closed; make another one", reason="CLIENT_CLOSED")

    def translate(self, error: grpc.RpcError, timeout: float | None) -> AclserveError:
        return error_from_rpc(error, CallContext(self.address, timeout))


class Caller(_CallerBase):
    """Runs verbs over a grpc channel, in the calling thread."""

    def __init__(self, address: str, options: Options) -> None:
        arguments, credentials = options.channel_arguments(), options.credentials
        if credentials is None:
            self._channel = grpc.insecure_channel(address, arguments)
        else:
            self._channel = grpc.secure_channel(address, credentials, arguments)
        super().__init__(address, options, self._channel)

    def close(self) -> None:
        self._closed = True
        self._channel.close()

    def run(self, steps: Steps[T], timeout: Timeout, lease_id: str = "") -> T:
        """The verb's result. `timeout` bounds all of its calls together."""
        self.check_open()
        deadline = Deadline(self.options.seconds(timeout))
        metadata = self.metadata(lease_id)
        answer = None
        while True:
            try:
                step = steps.send(answer)
            except StopIteration as stop:
                result: T = stop.value
                return result
            answer = self._call(step, deadline, metadata)

    def _call(self, step: Step, deadline: Deadline, metadata: tuple[tuple[str, str], ...]) -> Any:
        retry = Retry(self.options, is_read=step.rpc.is_read)
        call = self.callables[step.rpc.path]
        while True:
            try:
                answer = call(step.request, timeout=deadline.remaining(), metadata=metadata)
                return list(answer) if step.rpc.kind == "unary_stream" else answer
            except grpc.RpcError as error:
                translated = self.translate(error, deadline.timeout)
                delay = retry.delay_after(translated, deadline.remaining())
                if delay is None:
                    raise translated from error
            time.sleep(delay)


class AsyncCaller(_CallerBase):
    """Runs verbs over a grpc.aio channel, on the event loop that it was made on."""

    def __init__(self, address: str, options: Options) -> None:
        arguments, credentials = options.channel_arguments(), options.credentials
        if credentials is None:
            self._channel = grpc.aio.insecure_channel(address, arguments)
        else:
            self._channel = grpc.aio.secure_channel(address, credentials, arguments)
        super().__init__(address, options, self._channel)

    async def close(self) -> None:
        self._closed = True
        await self._channel.close()

    async def run(self, steps: Steps[T], timeout: Timeout, lease_id: str = "") -> T:
        """The verb's result. `timeout` bounds all of its calls together."""
        self.check_open()
        deadline = Deadline(self.options.seconds(timeout))
        metadata = self.metadata(lease_id)
        answer = None
        while True:
            try:
                step = steps.send(answer)
            except StopIteration as stop:
                result: T = stop.value
                return result
            answer = await self._call(step, deadline, metadata)

    async def _call(self, step: Step, deadline: Deadline, metadata: tuple[tuple[str, str], ...]) -> Any:
        retry = Retry(self.options, is_read=step.rpc.is_read)
        call = self.callables[step.rpc.path]
        while True:
            try:
                answer = call(step.request, timeout=deadline.remaining(), metadata=metadata)
                return [part async for part in answer] if step.rpc.kind == "unary_stream" else await answer
            except grpc.RpcError as error:
                translated = self.translate(error, deadline.timeout)
                delay = retry.delay_after(translated, deadline.remaining())
                if delay is None:
                    raise translated from error
            await asyncio.sleep(delay)


class Background:
    """One coroutine that runs for as long as the `async with` block and is cancelled at its end."""

    def __init__(self, work: Coroutine[Any, Any, None]) -> None:
        self._work = work
        self._group = asyncio.TaskGroup()

    async def __aenter__(self) -> Self:
        await self._group.__aenter__()
        self._task = self._group.create_task(self._work)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._task.cancel()
        # The block's own exception is not the group's: it must leave as it is, not in an ExceptionGroup.
        await self._group.__aexit__(None, None, None)
