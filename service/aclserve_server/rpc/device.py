"""DeviceService: the server's device, and the server itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import grpc.aio

from aclserve.v1 import device_pb2 as pb
from aclserve.v1 import device_pb2_grpc
from aclserve_server.access.principal import CURRENT, Principal
from aclserve_server.doctor.findings import Diagnosis
from aclserve_server.engine import fills, regions
from aclserve_server.engine.devices import DeviceDirectory
from aclserve_server.engine.leases import MIN_TTL_S, MemoryLimits
from aclserve_server.rpc import convert_memory as convert
from aclserve_server.rpc import wire
from aclserve_server.rpc.convert_diagnosis import diagnosis_to_proto
from aclserve_server.rpc.health import MAX_WATCHERS
from aclserve_server.rpc.model_config import MAX_FILE_BYTES
from aclserve_server.rpc.paging import MAX_PAGE_SIZE, page
from aclserve_server.rpc.ports import MAX_CONNECTION_CALLS, MAX_METADATA_BYTES
from aclserve_server.rpc.v2.repository import MAX_PARAMETERS
from aclserve_server.rpc.wire_walk import MAX_TEXT_BYTES

Context = grpc.aio.ServicerContext[Any, Any]
Diagnose = Callable[[], Awaitable[Diagnosis]]
"""Looks at the server; its answer is the public reading."""


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
    max_stream_bytes: int = 0
    max_regions: int = 0


class DeviceService(device_pb2_grpc.DeviceServiceServicer):
    """The native device service."""

    def __init__(
        self, devices: DeviceDirectory, info: ServerInfo, uptime_s: Callable[[], float], diagnose: Diagnose
    ) -> None:
        """`uptime_s` tells for how many seconds the server has been ready, 0 before that."""
        self._devices = devices
        self._info = info
        self._uptime_s = uptime_s
        self._diagnose = diagnose

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
            caller=_caller_to_proto(CURRENT.get()),
        )

    async def GetDiagnosis(self, request: pb.GetDiagnosisRequest, context: Context) -> pb.GetDiagnosisResponse:  # noqa: N802
        return diagnosis_to_proto(await self._diagnose())


def _caller_to_proto(principal: Principal | None) -> pb.Caller | None:
    if principal is None:
        return None
    return pb.Caller(principal=principal.name, groups=sorted(principal.groups), **dataclasses.asdict(principal.quotas))


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
        max_stream_bytes=info.max_stream_bytes,
        max_regions=info.max_regions,
        max_lease_buffers=memory.max_buffers_per_lease,
        max_metadata_bytes=MAX_METADATA_BYTES,
        max_connection_calls=MAX_CONNECTION_CALLS,
        max_item_id_bytes=wire.MAX_ID_BYTES,
        max_item_inputs=wire.MAX_INPUTS,
        max_item_outputs=wire.MAX_OUTPUTS,
        max_dimensions=wire.MAX_DIMENSIONS,
        max_text_bytes=MAX_TEXT_BYTES,
        max_fill_bytes=fills.MAX_BYTES,
        max_page_size=MAX_PAGE_SIZE,
        max_region_name_bytes=regions.MAX_NAME_BYTES,
        max_config_bytes=MAX_FILE_BYTES,
        max_load_parameters=MAX_PARAMETERS,
        max_health_watchers=MAX_WATCHERS,
        min_lease_ttl=convert.seconds_to_proto(MIN_TTL_S),
    )
