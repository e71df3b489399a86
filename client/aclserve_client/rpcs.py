"""The RPCs of aclserve.v1 as data, and a step of a verb: which RPC to call with which request.

Clients make their callables from these rows, for grpc and grpc.aio alike. A test holds the rows against the services'
descriptors.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from google.protobuf.message import Message

from aclserve.v1 import device_pb2, memory_pb2, model_pb2

Kind = Literal["unary_unary", "unary_stream", "stream_unary", "stream_stream"]


@dataclass(frozen=True)
class Rpc:
    """One RPC. `is_read`: changes nothing on the server, so it may be tried again."""

    path: str
    request: type[Message]
    response: type[Message]
    kind: Kind = "unary_unary"
    is_read: bool = False

    def bind(self, channel: Any) -> Any:
        """The multi-callable of a grpc or grpc.aio channel."""
        make = getattr(channel, self.kind)
        return make(
            self.path, request_serializer=self.request.SerializeToString, response_deserializer=self.response.FromString
        )


@dataclass(frozen=True)
class Step:
    """One call that a verb wants made. The answer is the response, or the list of responses for a server's stream.

    `lease_id`: shown instead of the verb's.
    """

    rpc: Rpc
    request: Message | Iterable[Message]
    lease_id: str = ""


T = TypeVar("T")
Steps = Generator[Step, Any, T]
"""A verb under way. A call's error is thrown into it."""


def _rpc(module: Any, service: str, name: str, kind: Kind = "unary_unary", *, is_read: bool = False) -> Rpc:
    path = f"/aclserve.v1.{service}/{name}"
    return Rpc(path, getattr(module, f"{name}Request"), getattr(module, f"{name}Response"), kind, is_read)


LIST_DEVICES = _rpc(device_pb2, "DeviceService", "ListDevices", is_read=True)
GET_SERVER_INFO = _rpc(device_pb2, "DeviceService", "GetServerInfo", is_read=True)
GET_DIAGNOSIS = _rpc(device_pb2, "DeviceService", "GetDiagnosis", is_read=True)

CREATE_LEASE = _rpc(memory_pb2, "MemoryService", "CreateLease")
RENEW_LEASE = _rpc(memory_pb2, "MemoryService", "RenewLease")
RELEASE_LEASE = _rpc(memory_pb2, "MemoryService", "ReleaseLease")
ALLOCATE_BUFFER = _rpc(memory_pb2, "MemoryService", "AllocateBuffer")
FREE_BUFFER = _rpc(memory_pb2, "MemoryService", "FreeBuffer")
LIST_BUFFERS = _rpc(memory_pb2, "MemoryService", "ListBuffers", is_read=True)
SET_MEMORY = _rpc(memory_pb2, "MemoryService", "SetMemory")
COPY_MEMORY = _rpc(memory_pb2, "MemoryService", "CopyMemory")
WRITE_BUFFER = _rpc(memory_pb2, "MemoryService", "WriteBuffer", "stream_unary")
READ_BUFFER = _rpc(memory_pb2, "MemoryService", "ReadBuffer", "unary_stream", is_read=True)
QUERY_MEMORY = _rpc(memory_pb2, "MemoryService", "QueryMemory", is_read=True)
REGISTER_REGION = _rpc(memory_pb2, "MemoryService", "RegisterRegion")
UNREGISTER_REGION = _rpc(memory_pb2, "MemoryService", "UnregisterRegion")
LIST_REGIONS = _rpc(memory_pb2, "MemoryService", "ListRegions", is_read=True)

LIST_MODELS = _rpc(model_pb2, "ModelService", "ListModels", is_read=True)
GET_MODEL = _rpc(model_pb2, "ModelService", "GetModel", is_read=True)
QUERY_MODEL_SIZE = _rpc(model_pb2, "ModelService", "QueryModelSize", is_read=True)
UPLOAD_MODEL = _rpc(model_pb2, "ModelService", "UploadModel", "stream_unary")
LOAD_MODEL = _rpc(model_pb2, "ModelService", "LoadModel")
UNLOAD_MODEL = _rpc(model_pb2, "ModelService", "UnloadModel")
INFER = _rpc(model_pb2, "ModelService", "Infer")
STREAM_INFER = _rpc(model_pb2, "ModelService", "StreamInfer", "stream_stream")
WATCH_STREAMS = _rpc(model_pb2, "ModelService", "WatchStreams", "unary_stream")

KEEP_LEASE_ALIVE_PATH = "/aclserve.v1.MemoryService/KeepLeaseAlive"
"""The one RPC the client does not use: it renews with RenewLease, which outlives a broken connection."""

RPCS = tuple(value for value in list(globals().values()) if isinstance(value, Rpc))
