"""The asynchronous client: the verbs of `client`, awaited."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Any, Self

from numpy.typing import NDArray

from aclserve.errors import AclserveError, FailedPrecondition, NotFound
from aclserve_client import data, verbs
from aclserve_client.aio_stream import AsyncStream
from aclserve_client.calls import AsyncCaller, Background
from aclserve_client.options import DEFAULT, DEFAULT_ADDRESS, Options, Timeout
from aclserve_client.stream_data import FramePolicy, Priority, StreamPreset, StreamsReport
from aclserve_client.verbs import RENEWALS_PER_TTL, Source, SourceLike, buffer_id

logger = logging.getLogger(__name__)


class AsyncClient:
    """As `Client`, for asyncio. Make it on the event loop that uses it; use it in `async with`, or await `close`."""

    def __init__(self, address: str | Iterable[str] = DEFAULT_ADDRESS, options: Options | None = None) -> None:
        self._caller = AsyncCaller(address, options or Options())

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """As `Client.close`."""
        await self._caller.close()

    async def devices(self, *, timeout: Timeout = DEFAULT) -> list[data.DeviceInfo]:
        """As `Client.devices`."""
        return await self._caller.run(verbs.devices(), timeout)

    async def server_info(self, *, timeout: Timeout = DEFAULT) -> data.ServerInfo:
        """As `Client.server_info`."""
        return await self._caller.run(verbs.server_info(), timeout)

    async def memory(
        self, attributes: Iterable[data.MemoryAttribute | str] = (), *, timeout: Timeout = DEFAULT
    ) -> list[data.MemoryUsage]:
        """As `Client.memory`."""
        return await self._caller.run(verbs.memory(attributes), timeout)

    async def models(self, *, timeout: Timeout = DEFAULT) -> list[data.ModelInfo]:
        """As `Client.models`."""
        return await self._caller.run(verbs.models(), timeout)

    async def describe(self, model: str, version: int = 0, *, timeout: Timeout = DEFAULT) -> data.ModelDescription:
        """As `Client.describe`."""
        return await self._caller.run(verbs.describe(model, version), timeout)

    async def query_model_size(
        self,
        model: str = "",
        version: int = 0,
        *,
        upload: str | None = None,
        lease: AsyncLease | str | None = None,
        timeout: Timeout = DEFAULT,
    ) -> data.ModelSize:
        """As `Client.query_model_size`."""
        return await self._caller.run(verbs.query_model_size(model, version, upload), timeout, lease_id(lease))

    async def load(
        self,
        model: str,
        version: int = 0,
        *,
        upload: str | None = None,
        execution_mode: data.ExecutionMode | str = data.ExecutionMode.UNSPECIFIED,
        work_buffer: data.BufferInfo | None = None,
        weight_buffer: data.BufferInfo | None = None,
        lease: AsyncLease | str | None = None,
        timeout: Timeout = DEFAULT,
    ) -> data.ModelDescription:
        """As `Client.load`."""
        steps = verbs.load(model, version, upload, execution_mode, work_buffer, weight_buffer)
        return await self._caller.run(steps, timeout, lease_id(lease))

    async def upload_and_load(
        self,
        model: str,
        source: SourceLike,
        *,
        execution_mode: data.ExecutionMode | str = data.ExecutionMode.UNSPECIFIED,
        timeout: Timeout = DEFAULT,
    ) -> data.ModelDescription:
        """As `Client.upload_and_load`."""
        async with self.lease(timeout=timeout) as lease:
            upload = await lease.upload(source, timeout=timeout)
            return await self.load(model, upload=upload, execution_mode=execution_mode, lease=lease, timeout=timeout)

    async def unload(self, model: str, version: int = 0, *, timeout: Timeout = DEFAULT) -> None:
        """As `Client.unload`."""
        await self._caller.run(verbs.unload(model, version), timeout)

    async def infer(
        self,
        model: str,
        inputs: data.Inputs,
        *,
        version: int = 0,
        outputs: data.OutputChoice = None,
        id: str = "",
        max_wait: float | None = None,
        capture_time_ns: int | None = None,
        priority: Priority | str = Priority.UNSPECIFIED,
        lease: AsyncLease | str | None = None,
        timeout: Timeout = DEFAULT,
    ) -> data.Result:
        """As `Client.infer`."""
        item = data.Item(inputs, id, model, version, outputs, max_wait, capture_time_ns, priority)
        return await self._caller.run(verbs.infer(item), timeout, lease_id(lease))

    def stream(
        self,
        model: str = "",
        version: int = 0,
        *,
        preset: StreamPreset | str = StreamPreset.UNSPECIFIED,
        policy: FramePolicy | str = FramePolicy.UNSPECIFIED,
        order: data.ResultOrder | str = data.ResultOrder.UNSPECIFIED,
        priority: Priority | str = Priority.UNSPECIFIED,
        max_pending: int = 0,
        max_pending_bytes: int = 0,
        max_age: float | None = None,
        resume: bool = False,
        lease: AsyncLease | str | None = None,
        timeout: Timeout = None,
    ) -> AsyncStream:
        """As `Client.stream`."""
        options = self._caller.options
        state = verbs.stream_state(
            options,
            model=model,
            version=version,
            preset=preset,
            policy=policy,
            order=order,
            priority=priority,
            max_pending=max_pending,
            max_pending_bytes=max_pending_bytes,
            max_age=max_age,
            resume=resume,
            lease=lease_id(lease),
        )
        return AsyncStream(self._caller, state, lease_id(lease), options.seconds(timeout))

    def watch_streams(self, interval: float = 1.0, *, timeout: Timeout = None) -> AsyncIterator[StreamsReport]:
        """As `Client.watch_streams`."""
        return self._caller.watch(verbs.watch_streams(interval), timeout)

    def lease(self, ttl: float | None = None, *, timeout: Timeout = DEFAULT) -> AsyncLease:
        """As `Client.lease`."""
        return AsyncLease(self._caller, ttl, timeout)


class AsyncLease:
    """As `Lease`, renewed by a task until the `async with` block ends."""

    def __init__(self, caller: AsyncCaller, ttl: float | None, timeout: Timeout) -> None:
        self._caller = caller
        self._ttl = ttl
        self._timeout = timeout
        self._info: data.LeaseInfo | None = None
        self._scope = AsyncExitStack()

    async def __aenter__(self) -> Self:
        self._info = await self._caller.run(verbs.create_lease(self._ttl), self._timeout)
        await self._scope.enter_async_context(Background(self._keep_alive()))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._scope.aclose()
        try:
            await self._caller.run(verbs.release_lease(), self._timeout, self.id)
        except AclserveError as failure:
            logger.warning("the lease could not be released, it will expire: %s", failure)

    async def _keep_alive(self) -> None:
        interval = self._opened.ttl_s / RENEWALS_PER_TTL
        while True:
            await asyncio.sleep(interval)
            try:
                await self.renew(timeout=interval)
            except NotFound as gone:
                logger.warning("the lease is gone: %s", gone)
                return
            except AclserveError as failure:
                logger.info("the lease was not renewed, trying again: %s", failure)

    @property
    def _opened(self) -> data.LeaseInfo:
        if self._info is None:
            raise FailedPrecondition("the lease is not open; use it in `with`", reason="LEASE_NOT_OPEN")
        return self._info

    @property
    def id(self) -> str:
        """As `Lease.id`."""
        return self._opened.id

    async def renew(self, *, timeout: Timeout = DEFAULT) -> data.LeaseInfo:
        """As `Lease.renew`."""
        return await self._caller.run(verbs.renew_lease(), timeout, self.id)

    async def allocate(
        self,
        size_bytes: int,
        space: data.MemorySpace | str = data.MemorySpace.DEVICE,
        policy: data.AllocationPolicy | str = data.AllocationPolicy.UNSPECIFIED,
        *,
        timeout: Timeout = DEFAULT,
    ) -> data.BufferInfo:
        """As `Lease.allocate`."""
        return await self._caller.run(verbs.allocate(size_bytes, space, policy), timeout, self.id)

    async def free(self, buffer: data.BufferInfo | str, *, timeout: Timeout = DEFAULT) -> None:
        """As `Lease.free`."""
        await self._caller.run(verbs.free(buffer_id(buffer)), timeout, self.id)

    async def buffers(self, *, timeout: Timeout = DEFAULT) -> list[data.BufferInfo]:
        """As `Lease.buffers`."""
        return await self._caller.run(verbs.buffers(), timeout, self.id)

    async def set(
        self,
        buffer: data.BufferInfo | str,
        value: int,
        *,
        offset_bytes: int = 0,
        length_bytes: int = 0,
        timeout: Timeout = DEFAULT,
    ) -> None:
        """As `Lease.set`."""
        await self._caller.run(verbs.set_memory(buffer_id(buffer), value, offset_bytes, length_bytes), timeout, self.id)

    async def copy(
        self,
        source: data.BufferInfo | str,
        destination: data.BufferInfo | str,
        length_bytes: int,
        *,
        source_offset_bytes: int = 0,
        destination_offset_bytes: int = 0,
        timeout: Timeout = DEFAULT,
    ) -> None:
        """As `Lease.copy`."""
        ids = buffer_id(source), buffer_id(destination)
        steps = verbs.copy(*ids, length_bytes, source_offset_bytes, destination_offset_bytes)
        await self._caller.run(steps, timeout, self.id)

    async def write(
        self, buffer: data.BufferInfo | str, content: SourceLike, *, offset_bytes: int = 0, timeout: Timeout = DEFAULT
    ) -> None:
        """As `Lease.write`."""
        source = Source(content, self._caller.options.chunk_bytes)
        checksum = await asyncio.to_thread(source.checksum)
        steps = verbs.write(buffer_id(buffer), source, checksum, offset_bytes)
        await self._caller.run(steps, timeout, self.id)

    async def read(
        self,
        buffer: data.BufferInfo | str,
        *,
        offset_bytes: int = 0,
        length_bytes: int = 0,
        timeout: Timeout = DEFAULT,
    ) -> bytes:
        """As `Lease.read`."""
        return await self._caller.run(verbs.read(buffer_id(buffer), offset_bytes, length_bytes), timeout, self.id)

    async def read_array(
        self,
        buffer: data.BufferInfo | data.BufferRef | str,
        shape: tuple[int, ...],
        dtype: str,
        *,
        offset_bytes: int = 0,
        timeout: Timeout = DEFAULT,
    ) -> NDArray[Any]:
        """As `Lease.read_array`."""
        return await self._caller.run(verbs.read_array(buffer_id(buffer), shape, dtype, offset_bytes), timeout, self.id)

    async def upload(self, source: SourceLike, *, timeout: Timeout = DEFAULT) -> str:
        """As `Lease.upload`."""
        file = Source(source, self._caller.options.chunk_bytes)
        checksum = await asyncio.to_thread(file.checksum)
        return await self._caller.run(verbs.upload(file, checksum), timeout, self.id)


def lease_id(lease: AsyncLease | str | None) -> str:
    """The id to show, or "" for none."""
    return lease.id if isinstance(lease, AsyncLease) else lease or ""
