"""Memory that clients hold: buffers on device and host, and uploads, all owned by leases.

All state is touched on the event loop only; everything that calls AscendCL or moves more than a few bytes runs on the
thread for calls that block, one call after the other. That thread's order is also what guards the staging memory.

What a buffer goes through:
    allocate -> in its lease under a random id -> id gone (free, release, expiry) -> last pin released -> memory freed
An operation pins the buffers it works on, so no memory goes away under a call; it runs to its end even when its caller
is cancelled, because AscendCL cannot be interrupted. A lease that ends while an allocation is on its way gets nothing:
the allocation frees itself.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

from aclserve.errors import InvalidArgument, Unavailable
from aclserve_server.acl.types import aclrtMemMallocPolicy
from aclserve_server.device.buffers import Buffer, Space
from aclserve_server.device.device import Device
from aclserve_server.device.thread import DeviceThread
from aclserve_server.engine.holdings import BufferInfo, ClientBuffer, Quota, QuotaAllocator, Upload, too_small
from aclserve_server.engine.items import BufferSlice
from aclserve_server.engine.leases import Lease, LeaseInfo, Leases, MemoryLimits, lease_not_found
from aclserve_server.engine.operations import Operations
from aclserve_server.engine.transfers import BufferReader, BufferWriter, Staging
from aclserve_server.engine.uploads import Transfer, UploadPin, UploadWriter, reserve

__all__ = ["BufferInfo", "LeaseInfo", "MemoryLimits", "MemoryManager", "MemoryUse", "Pin", "UploadPin"]

log = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class MemoryUse:
    """Totals over all leases, what is freed but still pinned included."""

    leases: int
    buffers: int
    uploads: int
    device_bytes: int
    host_bytes: int


class Pin:
    """Keeps a range of a buffer until `release`, which is idempotent and belongs to the event loop."""

    __slots__ = ("_unpin", "buffer", "length_bytes", "offset_bytes")

    def __init__(self, buffer: Buffer, offset_bytes: int, length_bytes: int, unpin: Callable[[], None]) -> None:
        self.buffer = buffer
        self.offset_bytes = offset_bytes
        self.length_bytes = length_bytes
        self._unpin: Callable[[], None] | None = unpin

    def release(self) -> None:
        """The range is not used any more."""
        unpin, self._unpin = self._unpin, None
        if unpin is not None:
            unpin()


class MemoryManager:
    """All leases of a server and what they hold. Every method belongs to the event loop.

    Errors of every method with a lease id: Unauthenticated LEASE_REQUIRED for "", NotFound LEASE_NOT_FOUND; with a
    buffer id: NotFound BUFFER_NOT_FOUND. Ranges outside a buffer are OutOfRange, RANGE_OUTSIDE_BUFFER; a length of 0
    means to the end of the buffer. AclError comes up from the device as it is.
    """

    def __init__(
        self,
        device: Device,
        blocking: DeviceThread,
        limits: MemoryLimits,
        clock: Callable[[], float] = time.monotonic,
        ids: Callable[[], str] = secrets.token_urlsafe,
        ended: Callable[[str], object] = lambda lease_id: None,
    ) -> None:
        """`clock` is in seconds; `ids` makes secrets; `ended` is told of every lease that ends. `start` comes next."""
        self._device = device
        self._blocking = blocking
        self._limits = limits
        self._clock = clock
        self._ids = ids
        self._ended = ended
        self._leases = Leases(limits, ids, self._end)
        self._allocator = QuotaAllocator(device, blocking)
        self._staging = Staging(device)
        self._live: set[ClientBuffer] = set()
        self._operations = Operations()
        self._lease_added = asyncio.Event()
        self._closed = False

    async def start(self) -> None:
        """Allocates what is needed to move bytes between host and device, once for all."""
        await self._blocking.run(self._staging.open)

    async def close(self) -> None:
        """Ends all leases, waits for the operations under way and frees everything; nothing may be in use any more."""
        self._closed = True
        self._leases.clear()
        await self._operations.drain()
        if self._live:
            log.warning("%d buffers of clients are still in use at the end; they are freed", len(self._live))
        await self._free_all(list(self._live))
        await self._blocking.run(self._staging.close, cleanup=True)

    def use(self) -> MemoryUse:
        """Totals for metrics."""
        leases = self._leases
        return MemoryUse(
            len(leases),
            len(self._live),
            leases.upload_count,
            leases.device_total.used_bytes,
            leases.host_total.used_bytes,
        )

    def create_lease(self, ttl_s: float | None = None) -> LeaseInfo:
        """Raises InvalidArgument (LEASE_TTL_OUT_OF_RANGE) and ResourceExhausted (TOO_MANY_LEASES)."""
        if self._closed:
            raise Unavailable("the server is shutting down and opens no more leases", reason="SERVER_STOPPING")
        now = self._clock()
        lease = self._leases.create(ttl_s, now)
        self._lease_added.set()
        return lease.info(now)

    def renew(self, lease_id: str) -> LeaseInfo:
        """Starts the lease's time to live anew."""
        lease, now = self._lease(lease_id), self._clock()
        lease.expires_at = now + lease.ttl_s
        return lease.info(now)

    def check_lease(self, lease_id: str) -> None:
        """Raises what is wrong with a lease."""
        self._lease(lease_id)

    async def release(self, lease_id: str) -> int:
        """Ends a lease; returns how many buffers that freed, or will when they are not used any more."""
        lease = self._lease(lease_id)
        count = len(lease.buffers)
        self._leases.remove(lease)
        freeing = self._end(lease)
        if freeing is not None:
            await asyncio.shield(freeing)
        return count

    def expire_due(self, now: float) -> float | None:
        """Ends what has expired and returns when the next lease will, None when there is none."""
        return self._leases.expire(now)

    async def run_expiry(self) -> None:
        """Ends leases as they expire, until it is cancelled."""
        while True:
            self._lease_added.clear()
            deadline = self.expire_due(self._clock())
            delay = None if deadline is None else max(deadline - self._clock(), 0.0)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._lease_added.wait(), delay)

    async def allocate(
        self,
        lease_id: str,
        space: Space,
        size_bytes: int,
        policy: aclrtMemMallocPolicy = aclrtMemMallocPolicy.ACL_MEM_MALLOC_HUGE_FIRST,
    ) -> BufferInfo:
        """Raises InvalidArgument (SIZE_IS_ZERO) and ResourceExhausted (LEASE_QUOTA_EXCEEDED).

        `policy` is for device memory. When the caller is cancelled, the buffer is freed again.
        """
        lease = self._lease(lease_id)
        if size_bytes < 1:
            raise InvalidArgument("a buffer of 0 bytes was asked for; expected 1 or more", reason="SIZE_IS_ZERO")
        self._leases.check_count(lease)
        quota = lease.device if space == "device" else lease.host
        operation = self._operations.start(self._allocate(lease, quota, size_bytes, policy))
        try:
            buffer = await asyncio.shield(operation)
        except asyncio.CancelledError:
            operation.add_done_callback(lambda done: self._abandon(lease, done))
            raise
        return buffer.info()

    async def free(self, lease_id: str, buffer_id: str) -> None:
        """The id is gone at once; returns when the memory is freed, or at once while it is pinned."""
        lease = self._lease(lease_id)
        buffer = lease.buffer(buffer_id)
        self._drop(lease, buffer)
        if not buffer.pins:
            await self._operations.finish(self._free(buffer))

    def list_buffers(self, lease_id: str) -> list[BufferInfo]:
        """The lease's buffers, by id."""
        buffers = self._lease(lease_id).buffers
        return [buffers[key].info() for key in sorted(buffers)]

    def has_buffer(self, lease_id: str, buffer_id: str) -> bool:
        """Whether the lease has such a buffer."""
        return buffer_id in self._lease(lease_id).buffers

    async def set_memory(self, lease_id: str, buffer_id: str, offset_bytes: int, length_bytes: int, value: int) -> None:
        """Sets every byte of a range. Raises InvalidArgument, reason VALUE_NOT_A_BYTE."""
        buffer = self._lease(lease_id).buffer(buffer_id)
        if not 0 <= value <= 255:
            raise InvalidArgument(f"got value {value}, expected a byte, 0 to 255", reason="VALUE_NOT_A_BYTE")
        length = buffer.require_range(offset_bytes, length_bytes)
        await self._run_pinned([buffer], lambda: self._device.set_memory(buffer.memory, offset_bytes, length, value))

    async def copy(
        self,
        lease_id: str,
        source_id: str,
        source_offset_bytes: int,
        target_id: str,
        target_offset_bytes: int,
        length_bytes: int,
    ) -> None:
        """Copies 1 byte or more, in any direction. Raises InvalidArgument: SIZE_IS_ZERO, RANGES_OVERLAP."""
        lease = self._lease(lease_id)
        source, target = lease.buffer(source_id), lease.buffer(target_id)
        if length_bytes < 1:
            raise InvalidArgument("a copy of 0 bytes was asked for; expected 1 or more", reason="SIZE_IS_ZERO")
        source.require_range(source_offset_bytes, length_bytes)
        target.require_range(target_offset_bytes, length_bytes)
        if source is target and abs(source_offset_bytes - target_offset_bytes) < length_bytes:
            raise InvalidArgument(
                f"{length_bytes} bytes from offset {source_offset_bytes} and from offset {target_offset_bytes} of one "
                "buffer overlap; copy through a second buffer",
                reason="RANGES_OVERLAP",
            )
        await self._run_pinned(
            [source, target],
            lambda: self._device.copy(
                target.memory, target_offset_bytes, source.memory, source_offset_bytes, length_bytes
            ),
        )

    def begin_write(
        self, lease_id: str, buffer_id: str, offset_bytes: int, length_bytes: int, crc32c: int | None = None
    ) -> BufferWriter:
        """A writer for a range of 1 byte or more; 0 is InvalidArgument, reason SIZE_IS_ZERO."""
        buffer = self._lease(lease_id).buffer(buffer_id)
        transfer = Transfer(length_bytes, crc32c)
        buffer.require_range(offset_bytes, length_bytes)
        return BufferWriter(
            self._run_pinned, self._staging, lambda: self._lease(lease_id).buffer(buffer_id), offset_bytes, transfer
        )

    def begin_read(self, lease_id: str, buffer_id: str, offset_bytes: int, length_bytes: int) -> BufferReader:
        """A reader for a range."""
        length = self._lease(lease_id).buffer(buffer_id).require_range(offset_bytes, length_bytes)
        return BufferReader(
            self._run_pinned, self._staging, lambda: self._lease(lease_id).buffer(buffer_id), offset_bytes, length
        )

    def pin(self, lease_id: str, part: BufferSlice, need_bytes: int, *, output: bool = False) -> Pin:
        """Keeps a range for an inference: at least `need_bytes` of it, 0 where that is not known yet.

        An input's range must lie inside the buffer. An output that does not fit is FailedPrecondition,
        BUFFER_TOO_SMALL.
        """
        buffer = self._lease(lease_id).buffer(part.buffer_id)
        offset, size = part.offset_bytes, buffer.size_bytes
        length = part.length_bytes or (0 if output else need_bytes)
        if offset + length > size:
            raise buffer.outside(offset, length)
        available = part.length_bytes or size - offset
        if available < need_bytes:
            raise too_small(available, need_bytes)
        return self._pin(buffer, offset, part.length_bytes or need_bytes or available)

    def pin_model_memory(self, lease_id: str, buffer_id: str, need_bytes: int) -> Pin:
        """Keeps a whole device buffer for a model's work or weights, until the model is unloaded.

        Raises InvalidArgument (BUFFER_NOT_ON_DEVICE) and FailedPrecondition (BUFFER_TOO_SMALL).
        """
        buffer = self._lease(lease_id).buffer(buffer_id)
        if buffer.memory.space != "device":
            raise InvalidArgument(
                "a model's work and weights need device memory; this buffer is host memory",
                reason="BUFFER_NOT_ON_DEVICE",
            )
        if buffer.size_bytes < need_bytes:
            raise too_small(buffer.size_bytes, need_bytes)
        return self._pin(buffer, 0, buffer.size_bytes)

    def begin_upload(self, lease_id: str, size_bytes: int, crc32c: int | None = None) -> UploadWriter:
        """A writer for a new upload; use it in `with`.

        Raises InvalidArgument (SIZE_IS_ZERO, UPLOAD_TOO_LARGE) and ResourceExhausted (LEASE_QUOTA_EXCEEDED).
        """
        lease = self._lease(lease_id)
        transfer = Transfer(size_bytes, crc32c)
        if size_bytes > self._limits.max_upload_bytes:
            raise InvalidArgument(
                f"an upload of {size_bytes} bytes was announced; this server takes at most "
                f"{self._limits.max_upload_bytes}",
                reason="UPLOAD_TOO_LARGE",
                metadata={"size_bytes": size_bytes, "max_upload_bytes": self._limits.max_upload_bytes},
            )
        self._leases.check_count(lease)
        lease.host.charge(size_bytes)
        upload = Upload(self._ids(), reserve(size_bytes), size_bytes, lease.host)
        lease.uploads[upload.id] = upload
        return UploadWriter(lease, upload, transfer, lambda: self._lease(lease_id), self._blocking)

    def pin_upload(self, lease_id: str, upload_id: str) -> UploadPin:
        """A complete upload's bytes, for a load. Raises NotFound, reason UPLOAD_NOT_FOUND."""
        return UploadPin(self._lease(lease_id).upload(upload_id))

    def _lease(self, lease_id: str) -> Lease:
        return self._leases.find(lease_id, self._clock())

    async def _run_pinned(self, buffers: Sequence[ClientBuffer], function: Callable[[], T]) -> T:
        """Runs a function on the blocking thread; the buffers stay until it has ended, whoever is cancelled."""
        pins = [self._pin(buffer, 0, 0) for buffer in buffers]

        async def operate() -> T:
            try:
                return await self._blocking.run(function)
            finally:
                for pin in pins:
                    pin.release()

        return await self._operations.finish(operate())

    async def _allocate(
        self, lease: Lease, quota: Quota, size_bytes: int, policy: aclrtMemMallocPolicy
    ) -> ClientBuffer:
        lease.allocating += 1
        try:
            memory = await self._allocator.allocate(quota, size_bytes, policy)
        finally:
            lease.allocating -= 1
        buffer = ClientBuffer(self._ids(), memory, quota)
        self._live.add(buffer)
        if lease.ended:
            await self._free_all([buffer])
            raise lease_not_found()
        lease.buffers[buffer.id] = buffer
        return buffer

    def _abandon(self, lease: Lease, allocation: asyncio.Task[ClientBuffer]) -> None:
        """Nobody has learnt the id of this buffer."""
        if allocation.cancelled() or allocation.exception() is not None:
            return
        buffer = allocation.result()
        if not buffer.gone:
            self._drop(lease, buffer)
            if not buffer.pins:
                self._operations.start(self._free_all([buffer]))

    def _pin(self, buffer: ClientBuffer, offset_bytes: int, length_bytes: int) -> Pin:
        buffer.pins += 1
        return Pin(buffer.memory, offset_bytes, length_bytes, lambda: self._unpin(buffer))

    def _unpin(self, buffer: ClientBuffer) -> None:
        buffer.pins -= 1
        if buffer.gone and not buffer.pins and buffer in self._live:
            self._operations.start(self._free_all([buffer]))

    @staticmethod
    def _drop(lease: Lease, buffer: ClientBuffer) -> None:
        del lease.buffers[buffer.id]
        buffer.gone = True

    def _end(self, lease: Lease) -> asyncio.Task[None] | None:
        """Takes all from a lease that is out of the table; the task frees what nobody uses."""
        self._ended(lease.id)
        for upload in lease.uploads.values():
            upload.drop()
        lease.uploads.clear()
        buffers = list(lease.buffers.values())
        for buffer in buffers:
            self._drop(lease, buffer)
        idle = [buffer for buffer in buffers if not buffer.pins]
        return self._operations.start(self._free_all(idle)) if idle else None

    async def _free(self, buffer: ClientBuffer) -> None:
        self._live.discard(buffer)
        await self._allocator.free(buffer.quota, buffer.memory)

    async def _free_all(self, buffers: Sequence[ClientBuffer]) -> None:
        for buffer in buffers:
            try:
                await self._free(buffer)
            except Exception:
                log.exception("a buffer of %d bytes could not be freed", buffer.size_bytes)
