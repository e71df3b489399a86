"""Driving verbs over a channel, for both kinds of grpc: each step's call, its deadline, its retries and its errors."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Coroutine, Iterable, Iterator
from types import TracebackType
from typing import Any, Self

import grpc
import grpc.aio
from google.protobuf.message import Message

from aclserve.errors import AclserveError, FailedPrecondition, InvalidArgument, Unavailable
from aclserve_client.errors import CallContext, error_from_rpc
from aclserve_client.options import Deadline, Options, Timeout, addresses_of, is_local
from aclserve_client.retries import NEVER, Retry, ServiceConfig, pushback_of, reads_policy
from aclserve_client.rpcs import CREATE_LEASE, RELEASE_LEASE, RPCS, Step, Steps, T
from aclserve_client.share_verbs import Sharing
from aclserve_client.verbs import LEASE_KEY, Watch

CLOSING_TIMEOUT_S = 1.0
"""How long a client or stream that is closed waits for the server to let go of what it shares."""


class Endpoint:
    """One address: its channel, and the callables of all RPCs by path."""

    def __init__(self, address: str, channel: Any) -> None:
        self.address = address
        self.channel = channel
        self.callables: dict[str, Any] = {rpc.path: rpc.bind(channel) for rpc in RPCS}

    def translate(self, error: grpc.RpcError, timeout: float | None) -> AclserveError:
        """The error that a call failed with."""
        return error_from_rpc(error, CallContext(self.address, timeout))


class _CallerBase:
    """What both callers know: options, endpoints, which one is in use, and on which one each lease is."""

    def __init__(self, address: str | Iterable[str], options: Options, grpc_module: Any) -> None:
        self.options = options
        self._closed = False
        arguments, credentials = options.channel_arguments(), options.credentials
        self.endpoints: list[Endpoint] = []
        for one in addresses_of(address):
            if options.token and credentials is None and not is_local(one):
                raise InvalidArgument(
                    f"the token would go to {one} in plain text, for others to read; use TLS: Options.credentials",
                    reason="TOKEN_NEEDS_TLS",
                )
            if credentials is None:
                channel = grpc_module.insecure_channel(one, arguments)
            else:
                channel = grpc_module.secure_channel(one, credentials, arguments)
            self.endpoints.append(Endpoint(one, channel))
        self.sharing = Sharing(options)
        self._config = ServiceConfig(options.service_config)
        self._budget = self._config.budget()
        self._in_use = 0
        self._homes: dict[str, Endpoint] = {}

    def endpoint(self, lease_id: str = "") -> Endpoint:
        """The lease's endpoint, otherwise the one in use."""
        return self._homes.get(lease_id) or self.endpoints[self._in_use]

    def leave(self, endpoint: Endpoint) -> None:
        """Uses the next address from now on, unless this endpoint is not in use any more."""
        at = self.endpoints.index(endpoint)
        if at == self._in_use:
            self._in_use = (at + 1) % len(self.endpoints)

    def metadata(self, lease_id: str) -> tuple[tuple[str, str], ...]:
        """The metadata of a call, with the lease's id if there is one."""
        token = self.options.token
        shown = (("authorization", f"Bearer {token}"),) if token else ()
        return self.options.metadata + shown + (((LEASE_KEY, lease_id),) if lease_id else ())

    def check_open(self) -> None:
        """Raises when the client was closed."""
        if self._closed:
            raise FailedPrecondition("the client is closed; make another one", reason="CLIENT_CLOSED")

    def _retry(self, step: Step, lease_id: str) -> Retry:
        repeatable = isinstance(step.request, Message)
        policy = self._config.policy(step.rpc.path) if repeatable else NEVER
        if policy is None:
            options = self.options
            policy = reads_policy(options.retry_attempts, options.retry_backoff) if step.rpc.is_read else NEVER
        elsewhere = len(self.endpoints) - 1 if repeatable and not lease_id else 0
        return Retry(policy, elsewhere=elsewhere, budget=self._budget)

    def _failed(self, error: AclserveError, endpoint: Endpoint) -> None:
        if isinstance(error, Unavailable):
            self.leave(endpoint)

    def _note(self, step: Step, answer: Any, endpoint: Endpoint, lease_id: str) -> None:
        """Remembers where a lease is, as long as there is one."""
        if step.rpc is CREATE_LEASE:
            self._homes[answer.lease.id] = endpoint
        elif step.rpc is RELEASE_LEASE:
            self._homes.pop(lease_id, None)


class Caller(_CallerBase):
    """Runs verbs over grpc channels, in the calling thread."""

    def __init__(self, address: str | Iterable[str], options: Options) -> None:
        super().__init__(address, options, grpc)

    def close(self) -> None:
        if not self._closed:
            self.run(self.sharing.close(), CLOSING_TIMEOUT_S)
        self._closed = True
        for endpoint in self.endpoints:
            endpoint.channel.close()

    def run(self, steps: Steps[T], timeout: Timeout, lease_id: str = "") -> T:
        """The verb's result. `timeout` bounds all of its calls together."""
        self.check_open()
        deadline = Deadline(self.options.seconds(timeout))
        try:
            step = next(steps)
            while True:
                try:
                    answer = self._call(step, deadline, step.lease_id or lease_id)
                except AclserveError as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(answer)
        except StopIteration as stop:
            result: T = stop.value
            return result
        finally:
            steps.close()

    def _call(self, step: Step, deadline: Deadline, lease_id: str) -> Any:
        retry = self._retry(step, lease_id)
        metadata = self.metadata(lease_id)
        while True:
            endpoint = self.endpoint(lease_id)
            try:
                answer = endpoint.callables[step.rpc.path](
                    step.request, timeout=deadline.remaining(), metadata=metadata
                )
                answer = list(answer) if step.rpc.kind == "unary_stream" else answer
                self._note(step, answer, endpoint, lease_id)
                retry.succeeded()
                return answer
            except grpc.RpcError as error:
                translated = endpoint.translate(error, deadline.timeout)
                self._failed(translated, endpoint)
                delay = retry.delay_after(translated, deadline.remaining(), _pushback(error))
                if delay is None:
                    raise translated from error
            time.sleep(delay)

    def watch(self, watch: Watch[T], timeout: Timeout) -> Iterator[T]:
        """What a server streams, each message as a value, until the iterator is closed."""
        self.check_open()
        seconds = self.options.seconds(timeout)
        endpoint = self.endpoint()
        call = endpoint.callables[watch.rpc.path](watch.request, timeout=seconds, metadata=self.metadata(""))
        try:
            for answer in call:
                yield watch.value(answer)
        except grpc.RpcError as error:
            translated = endpoint.translate(error, seconds)
            self._failed(translated, endpoint)
            raise translated from error
        finally:
            call.cancel()


class AsyncCaller(_CallerBase):
    """Runs verbs over grpc.aio channels, on the event loop that it was made on."""

    def __init__(self, address: str | Iterable[str], options: Options) -> None:
        super().__init__(address, options, grpc.aio)

    async def close(self) -> None:
        if not self._closed:
            await self.run(self.sharing.close(), CLOSING_TIMEOUT_S)
        self._closed = True
        for endpoint in self.endpoints:
            await endpoint.channel.close()

    async def run(self, steps: Steps[T], timeout: Timeout, lease_id: str = "") -> T:
        """The verb's result. `timeout` bounds all of its calls together."""
        self.check_open()
        deadline = Deadline(self.options.seconds(timeout))
        try:
            step = next(steps)
            while True:
                try:
                    answer = await self._call(step, deadline, step.lease_id or lease_id)
                except AclserveError as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(answer)
        except StopIteration as stop:
            result: T = stop.value
            return result
        finally:
            steps.close()

    async def _call(self, step: Step, deadline: Deadline, lease_id: str) -> Any:
        retry = self._retry(step, lease_id)
        metadata = self.metadata(lease_id)
        while True:
            endpoint = self.endpoint(lease_id)
            try:
                call = endpoint.callables[step.rpc.path](step.request, timeout=deadline.remaining(), metadata=metadata)
                answer = [part async for part in call] if step.rpc.kind == "unary_stream" else await call
                self._note(step, answer, endpoint, lease_id)
                retry.succeeded()
                return answer
            except grpc.RpcError as error:
                translated = endpoint.translate(error, deadline.timeout)
                self._failed(translated, endpoint)
                delay = retry.delay_after(translated, deadline.remaining(), _pushback(error))
                if delay is None:
                    raise translated from error
            await asyncio.sleep(delay)

    async def watch(self, watch: Watch[T], timeout: Timeout) -> AsyncIterator[T]:
        """What a server streams, each message as a value, until the iterator is closed."""
        self.check_open()
        seconds = self.options.seconds(timeout)
        endpoint = self.endpoint()
        call = endpoint.callables[watch.rpc.path](watch.request, timeout=seconds, metadata=self.metadata(""))
        try:
            async for answer in call:
                yield watch.value(answer)
        except grpc.RpcError as error:
            translated = endpoint.translate(error, seconds)
            self._failed(translated, endpoint)
            raise translated from error
        finally:
            call.cancel()


def _pushback(error: grpc.RpcError) -> float | None:
    call: Any = error  # as in `errors.error_from_rpc`
    return pushback_of(call.trailing_metadata())


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
