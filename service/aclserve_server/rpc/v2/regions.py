"""System shared memory over the registry of regions, and the calls for memory of CUDA devices, of which there is none.

A client that shows a lease sees the regions of that lease; clients without one share the regions of their principal, or
those that belong to nobody.
"""

from __future__ import annotations

from typing import Any

import grpc.aio

from aclserve.errors import NotFound, Unimplemented
from aclserve_server.engine.memory import MemoryManager
from aclserve_server.engine.regions import Regions
from aclserve_server.kserve import inference_pb2 as pb
from aclserve_server.rpc.metadata import lease_id_of

Context = grpc.aio.ServicerContext[Any, Any]


class RegionCalls:
    """The six calls."""

    def __init__(self, regions: Regions, memory: MemoryManager) -> None:
        self._regions = regions
        self._memory = memory

    async def system_status(
        self, request: pb.SystemSharedMemoryStatusRequest, context: Context
    ) -> pb.SystemSharedMemoryStatusResponse:
        listed = self._regions.list(self._owner(context))
        shown = [region for region in listed if request.name in ("", region.name)]
        if request.name and not shown:
            raise _unknown(request.name)
        status = pb.SystemSharedMemoryStatusResponse.RegionStatus
        return pb.SystemSharedMemoryStatusResponse(
            regions={
                one.name: status(name=one.name, key=one.key, offset=one.offset_bytes, byte_size=one.size_bytes)
                for one in shown
            }
        )

    async def system_register(
        self, request: pb.SystemSharedMemoryRegisterRequest, context: Context
    ) -> pb.SystemSharedMemoryRegisterResponse:
        self._regions.register(self._owner(context), request.name, request.key, request.offset, request.byte_size)
        return pb.SystemSharedMemoryRegisterResponse()

    async def system_unregister(
        self, request: pb.SystemSharedMemoryUnregisterRequest, context: Context
    ) -> pb.SystemSharedMemoryUnregisterResponse:
        owner = self._owner(context)
        if not request.name:
            self._regions.unregister_all(owner)
        elif self._regions.find(owner, request.name) is not None:
            self._regions.unregister(owner, request.name)
        return pb.SystemSharedMemoryUnregisterResponse()

    async def cuda_status(
        self, request: pb.CudaSharedMemoryStatusRequest, context: Context
    ) -> pb.CudaSharedMemoryStatusResponse:
        if request.name:
            raise _unknown(request.name)
        return pb.CudaSharedMemoryStatusResponse()

    async def cuda_register(
        self, request: pb.CudaSharedMemoryRegisterRequest, context: Context
    ) -> pb.CudaSharedMemoryRegisterResponse:
        raise Unimplemented(
            "this server runs on an Ascend NPU and cannot open memory of a CUDA device; register system shared memory, "
            "or allocate a buffer with aclserve.v1.MemoryService and name its id as the region",
            reason="CUDA_UNSUPPORTED",
        )

    async def cuda_unregister(
        self, request: pb.CudaSharedMemoryUnregisterRequest, context: Context
    ) -> pb.CudaSharedMemoryUnregisterResponse:
        return pb.CudaSharedMemoryUnregisterResponse()

    def _owner(self, context: Context) -> str:
        """The lease that the call shows, or who owns what has none; raises NotFound for a lease that has ended."""
        lease_id = lease_id_of(context)
        if lease_id:
            self._memory.check_lease(lease_id)
        return lease_id


def _unknown(name: str) -> NotFound:
    return NotFound(
        f"there is no region {name[:100]!r} of this kind; register it first",
        reason="REGION_NOT_FOUND",
    )
