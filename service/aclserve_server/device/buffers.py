"""Memory that AscendCL allocated: on the device, or pinned on the host."""

from __future__ import annotations

import ctypes
from ctypes import byref, c_void_p
from typing import TYPE_CHECKING, Literal

from aclserve.errors import FailedPrecondition, InvalidArgument, OutOfRange
from aclserve_server.acl.types import DevicePtr, aclrtMemcpyKind, aclrtMemMallocPolicy
from aclserve_server.device.owned import Owned

if TYPE_CHECKING:
    from aclserve_server.device.device import Device

Space = Literal["host", "device"]

_KINDS = {
    ("host", "host"): aclrtMemcpyKind.ACL_MEMCPY_HOST_TO_HOST,
    ("host", "device"): aclrtMemcpyKind.ACL_MEMCPY_HOST_TO_DEVICE,
    ("device", "host"): aclrtMemcpyKind.ACL_MEMCPY_DEVICE_TO_HOST,
    ("device", "device"): aclrtMemcpyKind.ACL_MEMCPY_DEVICE_TO_DEVICE,
}


class Buffer(Owned):
    """One allocation, freed by `close`. Both spaces are 64-byte aligned; the contents start undefined.

    `size_bytes` is what was asked for. `policy` is None for host memory and for memory that AscendCL allocated by
    itself. A buffer that a loaded model lives in cannot be closed before the model.
    """

    def __init__(
        self, device: Device, space: Space, address: int, size_bytes: int, policy: aclrtMemMallocPolicy | None
    ) -> None:
        super().__init__(f"{space} buffer of {size_bytes} bytes")
        self.device = device
        self.space: Space = space
        self.size_bytes = size_bytes
        self.policy = policy
        self._address = address
        self._loans = 0
        device.children.add("buffer", self)

    @classmethod
    def on_device(cls, device: Device, size_bytes: int, policy: aclrtMemMallocPolicy) -> Buffer:
        """Allocate device memory (at least one byte)."""
        _require_size(size_bytes)
        pointer = DevicePtr()
        device.library.aclrtMalloc(byref(pointer), size_bytes, policy)
        return cls(device, "device", pointer.value or 0, size_bytes, policy)

    @classmethod
    def on_host(cls, device: Device, size_bytes: int) -> Buffer:
        """Allocate pinned host memory (at least one byte)."""
        _require_size(size_bytes)
        pointer = c_void_p()
        device.library.aclrtMallocHost(byref(pointer), size_bytes)
        return cls(device, "host", pointer.value or 0, size_bytes, None)

    @property
    def address(self) -> int:
        """Where it is; an address of the device's own space where `space` is "device"."""
        self._require_open()
        return self._address

    @property
    def host_accessible(self) -> bool:
        """Whether the host may touch it: host memory always, device memory where both share one (run mode "device")."""
        return self.space == "host" or self.device.run_mode == "device"

    def view(self) -> memoryview:
        """All its bytes, writable, without a copy. The view must not be used after `close`."""
        self._require_open()
        if not self.host_accessible:
            raise FailedPrecondition(
                "device memory cannot be read or written by the host in run mode host; copy it",
                reason="BUFFER_NOT_HOST_ACCESSIBLE",
            )
        return memoryview((ctypes.c_ubyte * self.size_bytes).from_address(self._address)).cast("B")

    def check_range(self, offset_bytes: int, length_bytes: int) -> None:
        """`OutOfRange`, reason BUFFER_RANGE, unless the range lies inside."""
        if offset_bytes < 0 or length_bytes < 0 or offset_bytes + length_bytes > self.size_bytes:
            raise OutOfRange(
                f"{length_bytes} bytes from offset {offset_bytes} do not lie inside a buffer of {self.size_bytes}",
                reason="BUFFER_RANGE",
                metadata={
                    "offset_bytes": offset_bytes,
                    "length_bytes": length_bytes,
                    "size_bytes": self.size_bytes,
                },
            )

    def lend(self) -> None:
        """A model begins to live in it (called on the thread that loads and unloads)."""
        self._require_open()
        self._loans += 1

    def take_back(self) -> None:
        """A model that lived in it is gone."""
        self._loans -= 1

    def close(self) -> None:
        """Free it; `FailedPrecondition`, reason BUFFER_IN_USE, while a loaded model lives in it."""
        if self._loans:
            raise FailedPrecondition(f"{self._loans} loaded models use this {self._what}", reason="BUFFER_IN_USE")
        super().close()

    def _release(self) -> None:
        self.device.children.discard("buffer", self)
        if self.space == "device":
            self.device.library.aclrtFree(DevicePtr(self._address))
        else:
            self.device.library.aclrtFreeHost(c_void_p(self._address))


def copy_kind(dst: Buffer, src: Buffer) -> aclrtMemcpyKind:
    """AscendCL's kind of a copy between two buffers."""
    return _KINDS[src.space, dst.space]


def check_byte(value: int) -> None:
    """`InvalidArgument`, reason BYTE_VALUE_INVALID, unless a byte can have the value."""
    if not 0 <= value <= 255:
        raise InvalidArgument(f"a byte cannot be set to {value}; give 0 to 255", reason="BYTE_VALUE_INVALID")


def _require_size(size_bytes: int) -> None:
    if size_bytes < 1:
        raise InvalidArgument(
            f"a buffer of {size_bytes} bytes cannot be allocated; the least is 1", reason="BUFFER_SIZE_INVALID"
        )
