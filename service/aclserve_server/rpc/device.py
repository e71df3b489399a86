"""DeviceService: the server's device, and the server itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import grpc.aio

from aclserve.v1 import device_pb2 as pb
from aclserve.v1 import device_pb2_grpc
from aclserve_server.engine.devices import DeviceDirectory
from aclserve_server.engine.leases import MemoryLimits
from aclserve_server.rpc import convert_memory as convert
from aclserve_server.rpc.paging import page

Context = grpc.aio.ServicerContext[Any, Any]


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """What the server tells about itself. `acl_version` is "" where the library cannot tell."""

    version: str
    acl_version: str
    features: tuple[str, ...]
    max_message_bytes: int
    max_queue_rows: int
    max_stream_items: int
    memory: MemoryLimits


class DeviceService(device_pb2_grpc.DeviceServiceServicer):
    """The native device service."""

    def __init__(self, devices: DeviceDirectory, info: ServerInfo, uptime_s: Callable[[], float]) -> None:
        """`uptime_s` tells for how many seconds the server has been ready, 0 before that."""
        self._devices = devices
        self._info = info
        self._uptime_s = uptime_s

    async def ListDevices(self, request: pb.ListDevicesRequest, context: Context) -> pb.ListDevicesResponse:  # noqa: N802
        devices = {device.id: device for device in await self._devices.list_devices()}
        shown, token = page(sorted(devices), request.page_size, request.page_token)
        listed = [convert.device_to_proto(devices[key]) for key in shown]
        return pb.ListDevicesResponse(devices=listed, next_page_token=token)

    async def GetServerInfo(self, request: pb.GetServerInfoRequest, context: Context) -> pb.GetServerInfoResponse:  # noqa: N802
        info = self._info
        return pb.GetServerInfoResponse(
            version=info.version,
            acl_version=info.acl_version,
            features=info.features,
            limits=_limits_to_proto(info),
            uptime=convert.seconds_to_proto(self._uptime_s()),
        )


def _limits_to_proto(info: ServerInfo) -> pb.Limits:
    memory = info.memory
    return pb.Limits(
        max_message_bytes=info.max_message_bytes,
        max_queue_rows=info.max_queue_rows,
        max_stream_items=info.max_stream_items,
        max_leases=memory.max_leases,
        max_lease_device_bytes=memory.max_lease_device_bytes,
        max_lease_host_bytes=memory.max_lease_host_bytes,
        max_lease_ttl=convert.seconds_to_proto(memory.max_ttl_s),
        max_upload_bytes=memory.max_upload_bytes,
    )
