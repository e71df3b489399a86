"""As `lease`, for asyncio."""

from __future__ import annotations

import asyncio
import logging
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Any, Self

from numpy.typing import NDArray

from aclserve.errors import AclserveError, FailedPrecondition, NotFound
from aclserve_client import data, verbs
from aclserve_client.calls import CLOSING_TIMEOUT_S, AsyncCaller, Background
from aclserve_client.options import DEFAULT, Timeout
from aclserve_client.verbs import RENEWALS_PER_TTL, Source, SourceLike, buffer_id

logger = logging.getLogger(__name__)


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
        await self._release(self._timeout, logging.WARNING)

    async def _end(self, *, release: bool) -> None:
        """As `Lease._end`."""
        await self._scope.aclose()
        if release:
            await self._release(CLOSING_TIMEOUT_S, logging.DEBUG)

    async def _release(self, timeout: Timeout, level: int) -> None:
        try:
            await self._caller.run(verbs.release_lease(), timeout, self.id)
        except AclserveError as failure:
            logger.log(level, "the lease could not be released, it will expire: %s", failure)

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
