"""Clients' sealed shared memory, mapped into this process and made known to the device.

    map (event loop) -> attach (device thread) -> ... -> unmap (event loop) -> detach (device thread)

Until it is attached, and where the device refuses it, bytes are copied instead: `device_address` tells.
"""

from __future__ import annotations

import logging
import mmap

from aclserve.errors import AclserveError
from aclserve_server.acl.errors import AclError
from aclserve_server.device.device import Device
from aclserve_server.device.registration import Registration
from aclserve_server.device.thread import DeviceThread

log = logging.getLogger(__name__)


class Mapping:
    """One object, mapped from its first byte on. `device_address` is where the device finds that byte; 0: nowhere."""

    def __init__(self, descriptor: int, size_bytes: int) -> None:
        self.device_address = 0
        self.size_bytes = size_bytes
        self._map = mmap.mmap(descriptor, size_bytes)
        self._registration: Registration | None = None

    def attach(self, device: Device) -> None:
        """Makes it known to the device; where that fails nothing is lost but the copies it would have spared."""
        try:
            self._registration = device.register(self._map)
            self.device_address = self._registration.address
        except AclError as error:
            log.info("the device cannot use shared memory where it lies, it is copied: %s", error)

    def detach(self) -> None:
        """The device forgets it, then it is unmapped."""
        self.device_address = 0
        try:
            if self._registration is not None:
                self._registration.close()
        finally:
            self._map.close()


class Mapper:
    """Maps objects for one device. `map`, `unmap` and `close` belong to the event loop."""

    def __init__(self, device: Device, thread: DeviceThread) -> None:
        self._device = device
        self._thread = thread
        self._left: list[Mapping] = []  # to be detached as soon as the thread's queue has room

    def map(self, descriptor: int, size_bytes: int) -> Mapping | None:
        """Maps an object, whose descriptor may be closed afterwards; None where there is no room for it."""
        try:
            mapping = Mapping(descriptor, size_bytes)
        except (OSError, ValueError, OverflowError) as error:
            log.info("shared memory of %d bytes cannot be mapped, it is copied: %s", size_bytes, error)
            return None
        try:
            self._thread.submit(lambda: mapping.attach(self._device))
        except AclserveError:  # its queue is full
            log.debug("the device thread has no time for shared memory, it is copied")
        return mapping

    def unmap(self, mapping: Mapping) -> None:
        """Takes back what `map` did, once nothing uses the mapping."""
        self._left.append(mapping)
        self._detach()

    def close(self) -> None:
        """Takes back the rest. The thread runs what it was given, and closes later."""
        self._detach()

    def _detach(self) -> None:
        while self._left:
            try:
                self._thread.submit(self._left[-1].detach)
            except AclserveError:
                return
            self._left.pop()


def make_mapper(mode: str, device: Device, thread: DeviceThread, *, emulated: bool) -> Mapper | None:
    """What maps clients' memory, by the option `map_shared_memory`; None where it is not to be, or cannot be, mapped.

    Where host and device memory are apart nothing is gained: the rows would cross the bus one by one.
    """
    wanted = emulated if mode == "auto" else mode == "on"
    if not wanted or device.run_mode == "host" or not device.library.has("aclrtHostRegister"):
        return None
    return Mapper(device, thread)
