"""What every RPC needs, by service and method. An RPC that is missing here is not served, and a server with one does
not start: so a new one cannot forget its check.

Health is open, because probes have no credentials; its List names the models, and so is not. Reflection shows nothing
that is not public, but is a stream: the less there is for unknown callers the better, and its tools can send metadata.
What reads or changes settings in one call counts as change.
"""

from __future__ import annotations

from collections.abc import Mapping

from aclserve_server.access.principal import ADMIN, ANYONE, INFER, MEMORY, OPEN

METHODS: Mapping[str, Mapping[str, str]] = {
    "aclserve.v1.DeviceService": {"ListDevices": ANYONE, "GetServerInfo": ANYONE, "GetDiagnosis": ADMIN},
    "aclserve.v1.MemoryService": {
        "CreateLease": MEMORY,
        "RenewLease": MEMORY,
        "KeepLeaseAlive": MEMORY,
        "ReleaseLease": MEMORY,
        "AllocateBuffer": MEMORY,
        "FreeBuffer": MEMORY,
        "ListBuffers": MEMORY,
        "SetMemory": MEMORY,
        "CopyMemory": MEMORY,
        "WriteBuffer": MEMORY,
        "ReadBuffer": MEMORY,
        "QueryMemory": MEMORY,
        "RegisterRegion": MEMORY,
        "UnregisterRegion": MEMORY,
        "ListRegions": MEMORY,
    },
    "aclserve.v1.ModelService": {
        "ListModels": INFER,
        "GetModel": INFER,
        "QueryModelSize": ADMIN,
        "UploadModel": MEMORY,
        "LoadModel": ADMIN,
        "UnloadModel": ADMIN,
        "Infer": INFER,
        "StreamInfer": INFER,
        "WatchStreams": ADMIN,
    },
    "inference.GRPCInferenceService": {
        "ServerLive": OPEN,
        "ServerReady": OPEN,
        "ModelReady": INFER,
        "ServerMetadata": ANYONE,
        "ModelMetadata": INFER,
        "ModelInfer": INFER,
        "ModelStreamInfer": INFER,
        "ModelConfig": INFER,
        "ModelStatistics": INFER,
        "RepositoryIndex": INFER,
        "RepositoryModelLoad": ADMIN,
        "RepositoryModelUnload": ADMIN,
        "SystemSharedMemoryStatus": MEMORY,
        "SystemSharedMemoryRegister": MEMORY,
        "SystemSharedMemoryUnregister": MEMORY,
        "CudaSharedMemoryStatus": MEMORY,
        "CudaSharedMemoryRegister": MEMORY,
        "CudaSharedMemoryUnregister": MEMORY,
        "TraceSetting": ADMIN,
        "LogSettings": ADMIN,
    },
    "grpc.health.v1.Health": {"Check": OPEN, "Watch": OPEN, "List": ANYONE},
    "grpc.reflection.v1.ServerReflection": {"ServerReflectionInfo": ANYONE},
    "grpc.reflection.v1alpha.ServerReflection": {"ServerReflectionInfo": ANYONE},
}
"""Service by full name, method, and the group it needs: one of `GROUPS`, `ANYONE` or `OPEN`."""
