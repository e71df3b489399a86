"""What the server's device is, and how much of its memory and time is in use."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from aclserve.errors import Unimplemented
from aclserve_server.acl.types import aclrtMemAttr
from aclserve_server.device.device import Device
from aclserve_server.device.thread import DeviceThread


@dataclass(frozen=True, slots=True)
class AttributeUse:
    """Free and total memory of one kind; 0 of 0 where the chip or this CANN does not have it."""

    attribute: aclrtMemAttr
    free_bytes: int
    total_bytes: int


@dataclass(frozen=True, slots=True)
class DeviceSnapshot:
    """A device at one moment. `utilization_percent` is None where the device cannot tell."""

    id: int
    soc_name: str
    run_mode: str
    emulated: bool
    memory: list[AttributeUse]
    utilization_percent: int | None


class DeviceDirectory:
    """The devices of this server; there is one. AclError comes up as it is."""

    def __init__(self, device: Device, device_id: int, emulated: bool, blocking: DeviceThread) -> None:
        self._device = device
        self._id = device_id
        self._emulated = emulated
        self._blocking = blocking

    async def list_devices(self) -> list[DeviceSnapshot]:
        """All devices, by id; of memory only the kinds that the chip has."""
        return [await self._blocking.run(self._snapshot)]

    async def query_memory(self, attributes: Iterable[aclrtMemAttr] = ()) -> list[AttributeUse]:
        """Free and total memory by attribute, in the order asked for; none given means all that the device has."""
        wanted = list(attributes)
        if not wanted:
            return await self._blocking.run(self._present)
        return await self._blocking.run(lambda: [self._use(attribute) for attribute in wanted])

    def _snapshot(self) -> DeviceSnapshot:
        device = self._device
        return DeviceSnapshot(
            self._id, device.soc_name, device.run_mode, self._emulated, self._present(), device.utilization()
        )

    def _present(self) -> list[AttributeUse]:
        return [use for use in map(self._use, aclrtMemAttr) if use.total_bytes]

    def _use(self, attribute: aclrtMemAttr) -> AttributeUse:
        try:
            free, total = self._device.memory_info(attribute)
        except Unimplemented:
            free = total = 0
        return AttributeUse(attribute, free, total)
