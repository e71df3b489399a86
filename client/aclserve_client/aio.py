"""The asynchronous client: the verbs of `client`, awaited."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from types import TracebackType
from typing import Self

from aclserve_client import data, share_verbs, verbs
from aclserve_client.aio_lease import AsyncLease, lease_id
from aclserve_client.aio_stream import AsyncStream
from aclserve_client.calls import AsyncCaller
from aclserve_client.diagnosis import Diagnosis
from aclserve_client.options import DEFAULT, DEFAULT_ADDRESS, Options, SharedMemory, Timeout
from aclserve_client.stream_data import FramePolicy, Priority, StreamPreset, StreamsReport
from aclserve_client.verbs import SourceLike


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

    async def diagnosis(self, *, timeout: Timeout = DEFAULT) -> Diagnosis:
        """As `Client.diagnosis`."""
        return await self._caller.run(verbs.diagnosis(), timeout)

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
        caller = self._caller
        steps = share_verbs.infer(item) if lease else caller.sharing.infer(item, caller.endpoint().address)
        return await caller.run(steps, timeout, lease_id(lease))

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
        shared_memory: SharedMemory | None = None,
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
        sharing = False if lease else options.sharing(shared_memory)
        return AsyncStream(self._caller, state, lease_id(lease), options.seconds(timeout), sharing)

    def watch_streams(self, interval: float = 1.0, *, timeout: Timeout = None) -> AsyncIterator[StreamsReport]:
        """As `Client.watch_streams`."""
        return self._caller.watch(verbs.watch_streams(interval), timeout)

    def lease(self, ttl: float | None = None, *, timeout: Timeout = DEFAULT) -> AsyncLease:
        """As `Client.lease`."""
        return AsyncLease(self._caller, ttl, timeout)
