"""MemoryService: memory on the device and the server's host, by lease."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from typing import Any

import grpc.aio

from aclserve.v1 import memory_pb2 as pb
from aclserve.v1 import memory_pb2_grpc
from aclserve_server.engine.devices import DeviceDirectory
from aclserve_server.engine.memory import MemoryManager
from aclserve_server.engine.regions import Regions
from aclserve_server.rpc import convert_memory as convert
from aclserve_server.rpc.chunks import data_of, read_header
from aclserve_server.rpc.metadata import lease_id_of
from aclserve_server.rpc.paging import page

Context = grpc.aio.ServicerContext[Any, Any]


class MemoryService(memory_pb2_grpc.MemoryServiceServicer):
    """The native memory service over the engine's memory manager."""

    def __init__(self, memory: MemoryManager, devices: DeviceDirectory, regions: Regions) -> None:
        self._memory = memory
        self._devices = devices
        self._regions = regions

    async def CreateLease(self, request: pb.CreateLeaseRequest, context: Context) -> pb.CreateLeaseResponse:  # noqa: N802
        ttl_s = convert.seconds_from_proto(request.ttl) if request.HasField("ttl") else None
        return pb.CreateLeaseResponse(lease=convert.lease_to_proto(self._memory.create_lease(ttl_s)))

    async def RenewLease(self, request: pb.RenewLeaseRequest, context: Context) -> pb.RenewLeaseResponse:  # noqa: N802
        return pb.RenewLeaseResponse(lease=convert.lease_to_proto(self._memory.renew(lease_id_of(context))))

    async def KeepLeaseAlive(  # noqa: N802
        self, requests: AsyncIterator[pb.KeepLeaseAliveRequest], context: Context
    ) -> None:
        lease_id = lease_id_of(context)
        async for _ in requests:
            lease = self._memory.renew(lease_id)
            await context.write(pb.KeepLeaseAliveResponse(lease=convert.lease_to_proto(lease)))

    async def ReleaseLease(self, request: pb.ReleaseLeaseRequest, context: Context) -> pb.ReleaseLeaseResponse:  # noqa: N802
        return pb.ReleaseLeaseResponse(buffers_freed=await self._memory.release(lease_id_of(context)))

    async def AllocateBuffer(  # noqa: N802
        self, request: pb.AllocateBufferRequest, context: Context
    ) -> pb.AllocateBufferResponse:
        space, size_bytes, policy = convert.allocation_from_proto(request)
        buffer = await self._memory.allocate(lease_id_of(context), space, size_bytes, policy)
        return pb.AllocateBufferResponse(buffer=convert.buffer_to_proto(buffer))

    async def FreeBuffer(self, request: pb.FreeBufferRequest, context: Context) -> pb.FreeBufferResponse:  # noqa: N802
        await self._memory.free(lease_id_of(context), request.buffer_id)
        return pb.FreeBufferResponse()

    async def ListBuffers(self, request: pb.ListBuffersRequest, context: Context) -> pb.ListBuffersResponse:  # noqa: N802
        buffers = {buffer.id: buffer for buffer in self._memory.list_buffers(lease_id_of(context))}
        shown, token = page(sorted(buffers), request.page_size, request.page_token)
        listed = [convert.buffer_to_proto(buffers[key]) for key in shown]
        return pb.ListBuffersResponse(buffers=listed, next_page_token=token)

    async def SetMemory(self, request: pb.SetMemoryRequest, context: Context) -> pb.SetMemoryResponse:  # noqa: N802
        await self._memory.set_memory(
            lease_id_of(context), request.buffer_id, request.offset_bytes, request.length_bytes, request.value
        )
        return pb.SetMemoryResponse()

    async def CopyMemory(self, request: pb.CopyMemoryRequest, context: Context) -> pb.CopyMemoryResponse:  # noqa: N802
        await self._memory.copy(
            lease_id_of(context),
            request.source_buffer_id,
            request.source_offset_bytes,
            request.destination_buffer_id,
            request.destination_offset_bytes,
            request.length_bytes,
        )
        return pb.CopyMemoryResponse()

    async def WriteBuffer(  # noqa: N802
        self, requests: AsyncIterator[pb.WriteBufferRequest], context: Context
    ) -> pb.WriteBufferResponse:
        header: pb.WriteBufferHeader = await read_header(requests)
        crc32c = header.crc32c if header.HasField("crc32c") else None
        writer = self._memory.begin_write(
            lease_id_of(context), header.buffer_id, header.offset_bytes, header.length_bytes, crc32c
        )
        async for request in requests:
            await writer.write(data_of(request))
        return pb.WriteBufferResponse(crc32c=writer.finish())

    async def ReadBuffer(self, request: pb.ReadBufferRequest, context: Context) -> None:  # noqa: N802
        reader = self._memory.begin_read(
            lease_id_of(context), request.buffer_id, request.offset_bytes, request.length_bytes
        )
        while reader.remaining_bytes:
            data = await reader.read()
            crc32c = None if reader.remaining_bytes else reader.crc32c
            await context.write(pb.ReadBufferResponse(data=data, crc32c=crc32c))

    async def QueryMemory(self, request: pb.QueryMemoryRequest, context: Context) -> pb.QueryMemoryResponse:  # noqa: N802
        uses = await self._devices.query_memory(convert.attributes_from_proto(request.attributes))
        return pb.QueryMemoryResponse(usage=map(convert.usage_to_proto, uses))

    async def RegisterRegion(  # noqa: N802
        self, request: pb.RegisterRegionRequest, context: Context
    ) -> pb.RegisterRegionResponse:
        region = self._regions.register(
            self._owner(context),
            secrets.token_urlsafe(),
            request.key,
            request.offset_bytes,
            request.size_bytes,
            request.probe,
        )
        return pb.RegisterRegionResponse(region=convert.region_to_proto(region))

    async def UnregisterRegion(  # noqa: N802
        self, request: pb.UnregisterRegionRequest, context: Context
    ) -> pb.UnregisterRegionResponse:
        self._regions.unregister(self._owner(context), request.region_id)
        return pb.UnregisterRegionResponse()

    async def ListRegions(self, request: pb.ListRegionsRequest, context: Context) -> pb.ListRegionsResponse:  # noqa: N802
        return pb.ListRegionsResponse(regions=map(convert.region_to_proto, self._regions.list(self._owner(context))))

    def _owner(self, context: Context) -> str:
        """The lease that owns the call's regions; raises what is wrong with it."""
        lease_id = lease_id_of(context)
        self._memory.check_lease(lease_id)
        return lease_id
