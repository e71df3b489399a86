"""The verbs, once for both clients.

A verb is a generator of `Step`s that is sent each step's answer and returns the result. A client drives it: it makes
the call of each step and sends back what came. Nothing here waits or opens a connection.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic

import numpy as np
from google.protobuf.message import Message
from numpy.typing import NDArray

from aclserve.errors import DataLoss, InvalidArgument
from aclserve.tensors import array_from_tensor
from aclserve.v1 import device_pb2, memory_pb2, model_pb2, tensor_pb2
from aclserve_client import convert, convert_streams, data, rpcs
from aclserve_client.checksum import crc32c
from aclserve_client.diagnosis import Diagnosis, diagnosis_from_wire
from aclserve_client.options import Options
from aclserve_client.resume import Resumption
from aclserve_client.rpcs import Rpc, Step, Steps, T
from aclserve_client.stream_data import FramePolicy, Priority, StreamPreset, StreamsReport
from aclserve_client.streams import StreamState

BytesLike = bytes | bytearray | memoryview
SourceLike = BytesLike | NDArray[Any] | str | os.PathLike[str]
LEASE_KEY = "aclserve-lease"
_PAGE_SIZE = 1000


class Source:
    """The bytes of an array, a bytes object or a file, in chunks. A file is mapped, and closed with its last view."""

    def __init__(self, source: SourceLike, chunk_bytes: int) -> None:
        self._chunk_bytes = chunk_bytes
        if isinstance(source, str | os.PathLike):
            self._view = _mapped(Path(source))
        elif isinstance(source, np.ndarray):
            self._view = memoryview(np.ascontiguousarray(source).reshape(-1).view(np.uint8))  # type: ignore[arg-type]
        else:
            self._view = memoryview(source).cast("B")

    @property
    def size_bytes(self) -> int:
        return len(self._view)

    def chunks(self) -> Iterator[bytes]:
        for at in range(0, len(self._view), self._chunk_bytes):
            yield bytes(self._view[at : at + self._chunk_bytes])

    def checksum(self) -> int:
        """The CRC32C of all bytes. Takes some milliseconds per MiB."""
        value = 0
        for chunk in self.chunks():
            value = crc32c(chunk, value)
        return value


def _mapped(path: Path) -> memoryview:
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_size == 0:
            return memoryview(b"")
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def _pages(rpc: Rpc, **fields: Any) -> Generator[Step, Any, list[Any]]:
    """All pages of a list RPC."""
    pages, token = [], ""
    while True:
        page = yield Step(rpc, rpc.request(page_size=_PAGE_SIZE, page_token=token, **fields))
        pages.append(page)
        token = page.next_page_token
        if not token:
            return pages


def devices() -> Steps[list[data.DeviceInfo]]:
    pages = yield from _pages(rpcs.LIST_DEVICES)
    return [convert.device_from_wire(device) for page in pages for device in page.devices]


def server_info() -> Steps[data.ServerInfo]:
    info = yield Step(rpcs.GET_SERVER_INFO, device_pb2.GetServerInfoRequest())
    return convert.server_info_from_wire(info)


def diagnosis() -> Steps[Diagnosis]:
    answer = yield Step(rpcs.GET_DIAGNOSIS, device_pb2.GetDiagnosisRequest())
    return diagnosis_from_wire(answer)


def memory(attributes: Iterable[data.MemoryAttribute | str]) -> Steps[list[data.MemoryUsage]]:
    numbers = [convert.enum_to_wire(data.MemoryAttribute, attribute) for attribute in attributes]
    answer = yield Step(rpcs.QUERY_MEMORY, memory_pb2.QueryMemoryRequest(attributes=numbers))
    return [convert.usage_from_wire(usage) for usage in answer.usage]


def models() -> Steps[list[data.ModelInfo]]:
    pages = yield from _pages(rpcs.LIST_MODELS)
    return [convert.model_from_wire(model) for page in pages for model in page.models]


def describe(model: str, version: int) -> Steps[data.ModelDescription]:
    answer = yield Step(rpcs.GET_MODEL, model_pb2.GetModelRequest(model=model, version=version))
    return convert.description_from_wire(answer.description)


def _model_source(model: str, version: int, upload: str | None) -> model_pb2.ModelSource:
    if upload is None:
        return model_pb2.ModelSource(repository=model_pb2.RepositoryModel(model=model, version=version))
    if version:
        raise InvalidArgument("an upload has no version; leave `version` out", reason="VERSION_NOT_APPLICABLE")
    return model_pb2.ModelSource(upload_id=upload)


def query_model_size(model: str, version: int, upload: str | None) -> Steps[data.ModelSize]:
    request = model_pb2.QueryModelSizeRequest(source=_model_source(model, version, upload))
    answer = yield Step(rpcs.QUERY_MODEL_SIZE, request)
    return data.ModelSize(answer.work_bytes, answer.weight_bytes)


def load(
    model: str,
    version: int,
    upload: str | None,
    execution_mode: data.ExecutionMode | str,
    work_buffer: data.BufferInfo | None,
    weight_buffer: data.BufferInfo | None,
) -> Steps[data.ModelDescription]:
    if (work_buffer is None) != (weight_buffer is None):
        raise InvalidArgument("work_buffer and weight_buffer go together", reason="MODEL_MEMORY_INCOMPLETE")
    owner = data.MemoryOwner.UNSPECIFIED if work_buffer is None else data.MemoryOwner.CALLER
    request = model_pb2.LoadModelRequest(
        source=_model_source(model, version, upload),
        name="" if upload is None else model,
        execution_mode=convert.enum_to_wire(data.ExecutionMode, execution_mode),
        memory_owner=convert.enum_to_wire(data.MemoryOwner, owner),
        work_buffer_id="" if work_buffer is None else work_buffer.id,
        weight_buffer_id="" if weight_buffer is None else weight_buffer.id,
    )
    answer = yield Step(rpcs.LOAD_MODEL, request)
    return convert.description_from_wire(answer.description)


def unload(model: str, version: int) -> Steps[None]:
    yield Step(rpcs.UNLOAD_MODEL, model_pb2.UnloadModelRequest(model=model, version=version))


def create_lease(ttl: float | None) -> Steps[data.LeaseInfo]:
    answer = yield Step(rpcs.CREATE_LEASE, memory_pb2.CreateLeaseRequest(ttl=convert.duration_to_wire(ttl)))
    return convert.lease_from_wire(answer.lease)


def renew_lease() -> Steps[data.LeaseInfo]:
    answer = yield Step(rpcs.RENEW_LEASE, memory_pb2.RenewLeaseRequest())
    return convert.lease_from_wire(answer.lease)


def release_lease() -> Steps[int]:
    answer = yield Step(rpcs.RELEASE_LEASE, memory_pb2.ReleaseLeaseRequest())
    return int(answer.buffers_freed)


def allocate(
    size_bytes: int, space: data.MemorySpace | str, policy: data.AllocationPolicy | str
) -> Steps[data.BufferInfo]:
    request = memory_pb2.AllocateBufferRequest(
        space=convert.enum_to_wire(data.MemorySpace, space),
        size_bytes=size_bytes,
        policy=convert.enum_to_wire(data.AllocationPolicy, policy),
    )
    answer = yield Step(rpcs.ALLOCATE_BUFFER, request)
    return convert.buffer_from_wire(answer.buffer)


def free(buffer_id: str) -> Steps[None]:
    yield Step(rpcs.FREE_BUFFER, memory_pb2.FreeBufferRequest(buffer_id=buffer_id))


def buffers() -> Steps[list[data.BufferInfo]]:
    pages = yield from _pages(rpcs.LIST_BUFFERS)
    return [convert.buffer_from_wire(buffer) for page in pages for buffer in page.buffers]


def set_memory(buffer_id: str, value: int, offset_bytes: int, length_bytes: int) -> Steps[None]:
    request = memory_pb2.SetMemoryRequest(
        buffer_id=buffer_id, offset_bytes=offset_bytes, length_bytes=length_bytes, value=value
    )
    yield Step(rpcs.SET_MEMORY, request)


def copy(
    source_id: str, destination_id: str, length_bytes: int, source_offset_bytes: int, destination_offset_bytes: int
) -> Steps[None]:
    request = memory_pb2.CopyMemoryRequest(
        source_buffer_id=source_id,
        source_offset_bytes=source_offset_bytes,
        destination_buffer_id=destination_id,
        destination_offset_bytes=destination_offset_bytes,
        length_bytes=length_bytes,
    )
    yield Step(rpcs.COPY_MEMORY, request)


def write(buffer_id: str, source: Source, checksum: int, offset_bytes: int) -> Steps[None]:
    header = memory_pb2.WriteBufferHeader(
        buffer_id=buffer_id, offset_bytes=offset_bytes, length_bytes=source.size_bytes, crc32c=checksum
    )

    def messages() -> Iterator[memory_pb2.WriteBufferRequest]:
        yield memory_pb2.WriteBufferRequest(header=header)
        for chunk in source.chunks():
            yield memory_pb2.WriteBufferRequest(data=chunk)

    yield Step(rpcs.WRITE_BUFFER, messages())


def upload(source: Source, checksum: int) -> Steps[str]:
    header = model_pb2.UploadModelHeader(size_bytes=source.size_bytes, crc32c=checksum)

    def messages() -> Iterator[model_pb2.UploadModelRequest]:
        yield model_pb2.UploadModelRequest(header=header)
        for chunk in source.chunks():
            yield model_pb2.UploadModelRequest(data=chunk)

    answer = yield Step(rpcs.UPLOAD_MODEL, messages())
    return str(answer.upload_id)


def read(buffer_id: str, offset_bytes: int, length_bytes: int) -> Steps[bytes]:
    request = memory_pb2.ReadBufferRequest(buffer_id=buffer_id, offset_bytes=offset_bytes, length_bytes=length_bytes)
    responses = yield Step(rpcs.READ_BUFFER, request)
    content = b"".join(response.data for response in responses)
    expected = responses[-1].crc32c if responses and responses[-1].HasField("crc32c") else None
    if expected is None or (length_bytes and len(content) != length_bytes):
        raise DataLoss(
            f"the answer ended after {len(content)} bytes, before its checksum; read again", reason="READ_TRUNCATED"
        )
    if crc32c(content) != expected:
        raise DataLoss(
            f"the {len(content)} bytes that arrived do not have the checksum that was sent; read again",
            reason="CHECKSUM_MISMATCH",
        )
    return content


def read_array(buffer_id: str, shape: tuple[int, ...], dtype: str, offset_bytes: int) -> Steps[NDArray[Any]]:
    """An empty array is made here: a length of 0 would read to the end of the buffer."""
    tensor = tensor_pb2.Tensor(data_type=convert.data_type_from_name(dtype), shape=shape)
    length_bytes = convert.byte_count(tensor)
    tensor.data = (yield from read(buffer_id, offset_bytes, length_bytes)) if length_bytes else b""
    return array_from_tensor(tensor)


RENEWALS_PER_TTL = 3
"""How often a lease is renewed within its time to live, so that one lost renewal does no harm."""


def buffer_id(buffer: data.BufferInfo | data.BufferRef | str) -> str:
    """The id of a buffer given as what `allocate` returned, as a reference, or as the id itself."""
    match buffer:
        case data.BufferInfo():
            return buffer.id
        case data.BufferRef():
            return buffer.buffer_id
        case _:
            return buffer


@dataclass(frozen=True)
class Watch(Generic[T]):
    """A call whose answers come one after the other until it is given up, and what each of them means."""

    rpc: Rpc
    request: Message
    value: Callable[[Any], T]


def watch_streams(interval: float) -> Watch[StreamsReport]:
    request = model_pb2.WatchStreamsRequest(interval=convert.duration_to_wire(interval))
    return Watch(rpcs.WATCH_STREAMS, request, convert_streams.report_from_wire)


def stream_state(
    options: Options,
    *,
    model: str,
    version: int,
    preset: StreamPreset | str,
    policy: FramePolicy | str,
    order: data.ResultOrder | str,
    priority: Priority | str,
    max_pending: int,
    max_pending_bytes: int,
    max_age: float | None,
    resume: bool,
    lease: str,
) -> StreamState:
    """A stream that is to be opened."""
    if resume and lease:
        raise InvalidArgument(
            "a stream with resume=True has no lease: its buffers are on one server only", reason="NOT_RESUMABLE"
        )
    config = model_pb2.StreamConfig(
        model=model,
        version=version,
        preset=convert.enum_to_wire(StreamPreset, preset),
        policy=convert.enum_to_wire(FramePolicy, policy),
        order=convert.enum_to_wire(data.ResultOrder, order),
        priority=convert.enum_to_wire(Priority, priority),
        max_pending_items=max_pending,
        max_pending_bytes=max_pending_bytes,
        max_age=convert.duration_to_wire(max_age),
    )
    return StreamState(config, options, Resumption(options) if resume else None)
