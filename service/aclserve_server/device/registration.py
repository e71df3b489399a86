"""Host memory of this process that AscendCL knows: the device may use it where it lies."""

from __future__ import annotations

from ctypes import addressof, byref, c_char, c_void_p
from mmap import mmap
from typing import TYPE_CHECKING

from aclserve_server.acl.types import DevicePtr, aclrtHostRegisterType
from aclserve_server.device.owned import Owned

if TYPE_CHECKING:
    from aclserve_server.device.device import Device


class Registration(Owned):
    """A range of host memory, known to AscendCL until `close` (aclrtHostRegister, from CANN 8.1.RC1).

    The memory belongs to the caller and outlives this. `address` is what the device calls its first byte.
    """

    def __init__(self, device: Device, pointer: int, size_bytes: int, address: int) -> None:
        super().__init__(f"registration of {size_bytes} bytes")
        self.device = device
        self.size_bytes = size_bytes
        self.address = address
        self._pointer = pointer
        device.children.add("registration", self)

    @classmethod
    def create(cls, device: Device, memory: mmap) -> Registration:
        """Makes mapped memory known. Raises `AclError`."""
        pointer, size_bytes = addressof(c_char.from_buffer(memory)), len(memory)
        address = DevicePtr()
        kind = aclrtHostRegisterType.ACL_HOST_REGISTER_MAPPED
        device.library.aclrtHostRegister(c_void_p(pointer), size_bytes, kind, byref(address))
        return cls(device, pointer, size_bytes, address.value or 0)

    def _release(self) -> None:
        self.device.children.discard("registration", self)
        self.device.library.aclrtHostUnregister(c_void_p(self._pointer))
