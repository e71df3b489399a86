"""What leases hold, and how it is charged: quotas, buffers, uploads. Event loop only; nothing here waits.

A holding outlives its id while it is pinned: once `gone`, the last unpin gives its memory back, and with it its quota.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from aclserve.errors import FailedPrecondition, OutOfRange, ResourceExhausted
from aclserve_server.access.principal import Principal
from aclserve_server.acl.types import aclrtMemMallocPolicy
from aclserve_server.device.buffers import Buffer, Space
from aclserve_server.device.device import Device
from aclserve_server.device.thread import DeviceThread

_RETRY_S = 0.05

RETRY_DELAY_S = 1.0
"""When to ask again for a lease or for its memory: leases of clients that have gone end by themselves."""


class Quota:
    """Bytes in use against a limit (None: only counted). A charge counts for `total` as well."""

    __slots__ = ("limit_bytes", "space", "total", "used_bytes")

    def __init__(self, space: Space, limit_bytes: int | None = None, total: Quota | None = None) -> None:
        self.space = space
        self.limit_bytes = limit_bytes
        self.total = total
        self.used_bytes = 0

    def charge(self, size_bytes: int) -> None:
        """Takes bytes from the quota. Raises what `check` raises, and then takes nothing."""
        self.check(size_bytes)
        self._add(size_bytes)

    def check(self, size_bytes: int) -> None:
        """Raises ResourceExhausted when a charge is more than is left: LEASE_QUOTA_EXCEEDED, QUOTA_EXCEEDED."""
        if self.limit_bytes is not None and size_bytes > self.limit_bytes - self.used_bytes:
            raise ResourceExhausted(
                f"{size_bytes} bytes of {self.space} memory were asked for; the lease holds {self.used_bytes} bytes of "
                f"the {self.limit_bytes} it may hold: free some, or ask for less",
                reason="LEASE_QUOTA_EXCEEDED",
                metadata={
                    "space": self.space,
                    "requested_bytes": size_bytes,
                    "used_bytes": self.used_bytes,
                    "quota_bytes": self.limit_bytes,
                },
            )
        if self.total is not None:
            self.total.check(size_bytes)

    def refund(self, size_bytes: int) -> None:
        """Gives charged bytes back."""
        self._add(-size_bytes)

    def _add(self, size_bytes: int) -> None:
        self.used_bytes += size_bytes
        if self.total is not None:
            self.total._add(size_bytes)


class PrincipalQuota(Quota):
    """What all leases of one principal hold, against what the principal may hold now."""

    __slots__ = ("_principal",)

    def __init__(self, space: Space, principal: Principal, total: Quota) -> None:
        super().__init__(space, None, total)
        self._principal = principal

    def check(self, size_bytes: int) -> None:
        quotas = self._principal.quotas
        most = quotas.max_device_bytes if self.space == "device" else quotas.max_host_bytes
        if most is not None and size_bytes > most - self.used_bytes:
            raise ResourceExhausted(
                f"{size_bytes} bytes of {self.space} memory were asked for; the caller's leases hold {self.used_bytes} "
                f"bytes of the {most} they may hold together: free some, or ask for less",
                reason="QUOTA_EXCEEDED",
                metadata={
                    "quota": f"{self.space}_bytes",
                    "requested_bytes": size_bytes,
                    "used_bytes": self.used_bytes,
                    "quota_bytes": most,
                },
                retry_delay=RETRY_DELAY_S,
            )


@dataclass(frozen=True, slots=True)
class BufferInfo:
    """A buffer as its owner sees it, at one moment. `policy` is None for host memory."""

    id: str
    space: Space
    size_bytes: int
    policy: aclrtMemMallocPolicy | None
    pins: int


@dataclass(slots=True, eq=False)
class ClientBuffer:
    """A buffer of a lease. When `gone`, its id is unknown and its memory is freed with the last pin."""

    id: str
    memory: Buffer
    quota: Quota
    pins: int = 0
    gone: bool = False

    @property
    def size_bytes(self) -> int:
        return self.memory.size_bytes

    def info(self) -> BufferInfo:
        """What the owner may know."""
        memory = self.memory
        return BufferInfo(self.id, memory.space, memory.size_bytes, memory.policy, self.pins)

    def require_range(self, offset_bytes: int, length_bytes: int) -> int:
        """The length of a range; length 0 means to the end. Raises `outside` when it leaves the buffer or is empty."""
        length = length_bytes or self.size_bytes - offset_bytes
        if length < 1 or offset_bytes + length > self.size_bytes:
            raise self.outside(offset_bytes, length_bytes)
        return length

    def outside(self, offset_bytes: int, length_bytes: int) -> OutOfRange:
        """The error for a range that is not inside this buffer."""
        what = f"{length_bytes} bytes" if length_bytes else "the bytes"
        return OutOfRange(
            f"{what} from offset {offset_bytes} were asked for; the buffer has {self.size_bytes} bytes",
            reason="RANGE_OUTSIDE_BUFFER",
            metadata={
                "buffer_id": self.id,
                "offset_bytes": offset_bytes,
                "length_bytes": length_bytes,
                "buffer_bytes": self.size_bytes,
            },
        )


@dataclass(slots=True, eq=False)
class Upload:
    """A model file in the server's ordinary memory; `data` is None once it is gone and no longer pinned."""

    id: str
    data: memoryview | None
    size_bytes: int
    quota: Quota
    complete: bool = False
    pins: int = 0
    gone: bool = False

    def drop(self) -> None:
        """The id is gone; the memory follows with the last pin."""
        self.gone = True
        self._settle()

    def unpin(self) -> None:
        """One pin less."""
        self.pins -= 1
        self._settle()

    def _settle(self) -> None:
        if self.gone and not self.pins and self.data is not None:
            self.data = None
            self.quota.refund(self.size_bytes)


class QuotaAllocator:
    """The device's allocator with quotas: charged before the device is asked, refunded when the device has freed."""

    def __init__(self, device: Device, blocking: DeviceThread) -> None:
        self._device = device
        self._blocking = blocking

    async def allocate(self, quota: Quota, size_bytes: int, policy: aclrtMemMallocPolicy) -> Buffer:
        """Raises ResourceExhausted before the device is asked, AclError when the device has no such memory left."""
        quota.charge(size_bytes)
        device = self._device
        try:
            if quota.space == "device":
                return await self._blocking.run(lambda: device.allocate(size_bytes, policy))
            return await self._blocking.run(lambda: device.allocate_host(size_bytes))
        except BaseException:
            quota.refund(size_bytes)
            raise

    async def free(self, quota: Quota, buffer: Buffer) -> None:
        """Raises AclError when the device refuses; the memory counts as gone all the same."""
        try:
            while True:
                try:
                    await self._blocking.run(buffer.close, cleanup=True)
                    return
                except ResourceExhausted as full:  # of the thread's queue; unlike other calls, a free must not be lost
                    await asyncio.sleep(full.retry_delay or _RETRY_S)
        finally:
            quota.refund(buffer.size_bytes)


def too_small(available_bytes: int, need_bytes: int) -> FailedPrecondition:
    """The error for a range that cannot hold what it was given for."""
    return FailedPrecondition(
        f"{need_bytes} bytes are needed; the range given has {available_bytes}",
        reason="BUFFER_TOO_SMALL",
        metadata={"available_bytes": available_bytes, "needed_bytes": need_bytes},
    )
