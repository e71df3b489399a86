"""inference.GRPCInferenceService: the KServe v2 protocol with the extensions of Triton, beside the native API.

The two calls of inference see and give bytes; their codec is `wire_in` and `wire_out`. The rest uses the stubs.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import grpc.aio

from aclserve_server.engine.engine import Engine
from aclserve_server.engine.memory import MemoryManager
from aclserve_server.engine.regions import Regions
from aclserve_server.kserve import inference_pb2 as pb
from aclserve_server.rpc.calls import OpenCalls
from aclserve_server.rpc.tracing import Tracing
from aclserve_server.rpc.v2.config import ConfigCalls
from aclserve_server.rpc.v2.health import HealthCalls
from aclserve_server.rpc.v2.metadata import MetadataCalls
from aclserve_server.rpc.v2.regions import RegionCalls
from aclserve_server.rpc.v2.repository import RepositoryCalls
from aclserve_server.rpc.v2.settings import SettingCalls
from aclserve_server.rpc.v2.statistics import StatisticsCalls

Context = grpc.aio.ServicerContext[Any, Any]
Infer = Callable[[bytes, Context], Awaitable[bytes]]
StreamInfer = Callable[[AsyncIterator[bytes], Context], Awaitable[None]]

SERVICE = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """What the service tells of its server, and the bound of a load's files. `tracing` makes spans, if any are."""

    version: str
    device_id: int
    max_upload_bytes: int
    tracing: Tracing | None


class KserveService:
    """The servicer. `infer` and `stream_infer` are ModelInfer and ModelStreamInfer; `is_up` as in HealthCalls."""

    def __init__(
        self,
        engine: Engine,
        memory: MemoryManager,
        regions: Regions,
        calls: OpenCalls,
        facts: ServerFacts,
        *,
        infer: Infer,
        stream_infer: StreamInfer,
        is_up: Callable[[], bool],
    ) -> None:
        self._infer = infer
        self._stream_infer = stream_infer
        self._health = HealthCalls(engine, calls, is_up)
        self._metadata = MetadataCalls(engine, facts.version, ("system_shared_memory",) if regions.enabled else ())
        self._config = ConfigCalls(engine)
        self._statistics = StatisticsCalls(engine, facts.device_id)
        self._repository = RepositoryCalls(engine, facts.max_upload_bytes)
        self._regions = RegionCalls(regions, memory)
        self._settings = SettingCalls(engine, facts.tracing)

    def add_to_server(self, server: grpc.aio.Server) -> None:
        """Registers the calls, before the server starts."""
        handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            "ModelInfer": grpc.unary_unary_rpc_method_handler(self._infer),
            "ModelStreamInfer": grpc.stream_stream_rpc_method_handler(self._stream_infer),
            "ServerLive": _unary(self._health.server_live, pb.ServerLiveRequest),
            "ServerReady": _unary(self._health.server_ready, pb.ServerReadyRequest),
            "ModelReady": _unary(self._health.model_ready, pb.ModelReadyRequest),
            "ServerMetadata": _unary(self._metadata.server_metadata, pb.ServerMetadataRequest),
            "ModelMetadata": _unary(self._metadata.model_metadata, pb.ModelMetadataRequest),
            "ModelConfig": _unary(self._config.model_config, pb.ModelConfigRequest),
            "ModelStatistics": _unary(self._statistics.model_statistics, pb.ModelStatisticsRequest),
            "RepositoryIndex": _unary(self._repository.index, pb.RepositoryIndexRequest),
            "RepositoryModelLoad": _unary(self._repository.load, pb.RepositoryModelLoadRequest),
            "RepositoryModelUnload": _unary(self._repository.unload, pb.RepositoryModelUnloadRequest),
            "SystemSharedMemoryStatus": _unary(self._regions.system_status, pb.SystemSharedMemoryStatusRequest),
            "SystemSharedMemoryRegister": _unary(self._regions.system_register, pb.SystemSharedMemoryRegisterRequest),
            "SystemSharedMemoryUnregister": _unary(
                self._regions.system_unregister, pb.SystemSharedMemoryUnregisterRequest
            ),
            "CudaSharedMemoryStatus": _unary(self._regions.cuda_status, pb.CudaSharedMemoryStatusRequest),
            "CudaSharedMemoryRegister": _unary(self._regions.cuda_register, pb.CudaSharedMemoryRegisterRequest),
            "CudaSharedMemoryUnregister": _unary(self._regions.cuda_unregister, pb.CudaSharedMemoryUnregisterRequest),
            "TraceSetting": _unary(self._settings.trace_setting, pb.TraceSettingRequest),
            "LogSettings": _unary(self._settings.log_settings, pb.LogSettingsRequest),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))


def _unary(method: Any, request: Any) -> grpc.RpcMethodHandler[Any, Any]:
    return grpc.unary_unary_rpc_method_handler(method, request.FromString, _serialise)


def _serialise(message: Any) -> bytes:
    return bytes(message.SerializeToString())
