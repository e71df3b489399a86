"""ModelService: models and inference. Infer and StreamInfer take and give raw messages, the other calls the stubs'."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from typing import Any

import grpc

from aclserve.errors import AclserveError, InvalidArgument
from aclserve.v1 import model_pb2 as pb
from aclserve_server.access.principal import CURRENT
from aclserve_server.engine.batching import rows_of_one
from aclserve_server.engine.contract import Sink, Ticket
from aclserve_server.engine.engine import Engine, LoadOptions
from aclserve_server.engine.frames import share_of_queue
from aclserve_server.engine.items import Item, Result
from aclserve_server.engine.memory import MemoryManager, Pin
from aclserve_server.rpc.calls import OpenCalls
from aclserve_server.rpc.convert_model import description_to_proto, model_to_proto
from aclserve_server.rpc.metadata import lease_id_of
from aclserve_server.rpc.paging import page
from aclserve_server.rpc.stream import StreamSession
from aclserve_server.rpc.stream_settings import StreamLimits
from aclserve_server.rpc.tracing import Tell, Tracing
from aclserve_server.rpc.watch import Watch, interval_of
from aclserve_server.rpc.wire import scan_infer_request
from aclserve_server.rpc.wire_out import assemble_infer_response

SERVICE = pb.DESCRIPTOR.services_by_name["ModelService"].full_name

Context = grpc.aio.ServicerContext[Any, Any]

_MODES = {
    pb.EXECUTION_MODE_UNSPECIFIED: None,
    pb.EXECUTION_MODE_ASYNCHRONOUS: False,
    pb.EXECUTION_MODE_SYNCHRONOUS: True,
}


class _Answer:
    """The sink of a unary call."""

    def __init__(self, future: asyncio.Future[bytes], tell: Tell | None) -> None:
        self._future = future
        self._tell = tell

    def deliver(self, results: list[Result]) -> None:
        if self._future.done():
            return
        (result,) = results
        if self._tell is not None:
            self._tell(result)
        if result.error is not None:
            self._future.set_exception(result.error)
        else:
            self._future.set_result(assemble_infer_response(result))


class ModelService:
    """The servicer."""

    def __init__(
        self, engine: Engine, memory: MemoryManager, limits: StreamLimits, max_queue_rows: int, calls: OpenCalls
    ) -> None:
        """`calls` is where open inference calls are counted, so that the server can drain."""
        self._engine = engine
        self._memory = memory
        self._calls = calls
        self._limits = limits
        self._max_queue_rows = max_queue_rows
        self._share = limits.max_items
        self._sessions: set[StreamSession] = set()
        self._numbers = itertools.count(1)
        self._watch = Watch(engine)
        self.tracing: Tracing | None = None

    @property
    def sessions(self) -> frozenset[StreamSession]:
        """Open streams."""
        return frozenset(self._sessions)

    async def infer(self, message: bytes, context: Context) -> bytes:
        with self._calls.call():
            return await self._infer(message, context)

    async def _infer(self, message: bytes, context: Context) -> bytes:
        try:
            item = scan_infer_request(message)
        except AclserveError as error:
            self._engine.observer("", 0).answered(error.code_name)
            raise
        item.lease_id = lease_id_of(context)
        item.flow = CURRENT.get()
        remaining = context.time_remaining()
        if remaining is not None and (item.timeout_s is None or remaining < item.timeout_s):
            item.timeout_s = remaining
        future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        tell = None if self.tracing is None else self.tracing.single(context, f"{SERVICE}/Infer", item.model)
        try:
            ticket = self._engine.submit(item, _Answer(future, tell))
        except AclserveError as error:
            if tell is not None:
                tell(Result(item.id, error=error))
            raise
        try:
            return await future
        except asyncio.CancelledError:
            if ticket.owner is not None:
                ticket.owner.cancel(ticket)
            raise

    async def stream_infer(self, requests: AsyncIterator[bytes], context: Context) -> None:
        number = next(self._numbers)
        trace = None if self.tracing is None else self.tracing.call(context, f"{SERVICE}/StreamInfer", number)
        session = StreamSession(
            number,
            self._submit,
            lease_id_of(context),
            self._limits.of_caller(),
            self._engine.observer,
            self._engine.company_rows,
            trace,
        )
        with self._calls.stream(session):
            self._sessions.add(session)
            self._divide()
            session.share(self._share)
            try:
                await session.run(context)
            finally:
                self._sessions.discard(session)
                self._divide()

    async def watch_streams(self, request: pb.WatchStreamsRequest, context: Context) -> None:
        interval = interval_of(request)
        before = self._watch.look(self._sessions)
        while True:
            await asyncio.sleep(interval)
            after = self._watch.look(self._sessions)
            await context.write(after.since(before))
            before = after

    async def list_models(self, request: pb.ListModelsRequest, context: Context) -> pb.ListModelsResponse:
        records = {f"{record.name}\0{record.version:020}": record for record in self._engine.records()}
        keys, token = page(sorted(records), request.page_size, request.page_token)
        return pb.ListModelsResponse(models=[model_to_proto(records[key]) for key in keys], next_page_token=token)

    async def get_model(self, request: pb.GetModelRequest, context: Context) -> pb.GetModelResponse:
        record = self._engine.find(request.model, request.version)
        return pb.GetModelResponse(description=description_to_proto(record, request.version))

    async def query_model_size(self, request: pb.QueryModelSizeRequest, context: Context) -> pb.QueryModelSizeResponse:
        work, weight = await self._query_size(request.source, lease_id_of(context))
        return pb.QueryModelSizeResponse(work_bytes=work, weight_bytes=weight)

    async def upload_model(
        self, requests: AsyncIterator[pb.UploadModelRequest], context: Context
    ) -> pb.UploadModelResponse:
        first = await anext(aiter(requests), pb.UploadModelRequest())
        if first.WhichOneof("part") != "header":
            raise InvalidArgument("an upload begins with its header; send `header` first", reason="HEADER_MISSING")
        header = first.header
        crc32c = header.crc32c if header.HasField("crc32c") else None
        with self._memory.begin_upload(lease_id_of(context), header.size_bytes, crc32c) as writer:
            async for request in requests:
                if request.WhichOneof("part") == "header":
                    raise InvalidArgument("an upload has one header; send `data` after it", reason="HEADER_REPEATED")
                await writer.write(request.data)
            upload_id, checksum = writer.finish()
        return pb.UploadModelResponse(upload_id=upload_id, crc32c=checksum)

    async def load_model(self, request: pb.LoadModelRequest, context: Context) -> pb.LoadModelResponse:
        return await self._engine.operations.finish(self._load(request, lease_id_of(context)))

    async def _load(self, request: pb.LoadModelRequest, lease_id: str) -> pb.LoadModelResponse:
        pins: list[Pin] = []
        try:
            options = await self._load_options(request, lease_id, pins)
            if request.source.WhichOneof("source") == "upload_id":
                upload = self._memory.pin_upload(lease_id, request.source.upload_id)
                record = await self._engine.load_upload(request.name, upload, options)
            else:
                if request.name:
                    raise InvalidArgument(
                        "`name` is for uploads; a model of the repository keeps its own", reason="MODEL_NAME_INVALID"
                    )
                source = _repository(request.source)
                record = await self._engine.load(source.model, source.version, options)
            pins.clear()
        finally:
            for pin in pins:
                pin.release()
        return pb.LoadModelResponse(description=description_to_proto(record))

    async def unload_model(self, request: pb.UnloadModelRequest, context: Context) -> pb.UnloadModelResponse:
        await self._engine.operations.finish(self._engine.unload(request.model, request.version))
        return pb.UnloadModelResponse()

    def add_to_server(self, server: grpc.aio.Server) -> None:
        """Registers the calls; those of the hot path without (de)serialisers, so that they see bytes."""
        handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            "Infer": grpc.unary_unary_rpc_method_handler(self.infer),
            "StreamInfer": grpc.stream_stream_rpc_method_handler(self.stream_infer),
            "WatchStreams": grpc.unary_stream_rpc_method_handler(
                self.watch_streams, pb.WatchStreamsRequest.FromString, _serialise
            ),
            "ListModels": _unary(self.list_models, pb.ListModelsRequest),
            "GetModel": _unary(self.get_model, pb.GetModelRequest),
            "QueryModelSize": _unary(self.query_model_size, pb.QueryModelSizeRequest),
            "LoadModel": _unary(self.load_model, pb.LoadModelRequest),
            "UnloadModel": _unary(self.unload_model, pb.UnloadModelRequest),
            "UploadModel": grpc.stream_unary_rpc_method_handler(
                self.upload_model, pb.UploadModelRequest.FromString, _serialise
            ),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))

    def _divide(self) -> None:
        """Gives each stream its part of a queue, or where principals share it, of what one of them may fill."""
        rows = self._max_queue_rows if CURRENT.get() is None else rows_of_one(self._max_queue_rows)
        share = share_of_queue(self._limits.max_items, len(self._sessions), rows)
        if share != self._share:
            self._share = share
            for session in self._sessions:
                session.share(share)

    def _submit(self, item: Item, sink: Sink) -> Ticket:
        return self._engine.submit(item, sink)

    async def _load_options(self, request: pb.LoadModelRequest, lease_id: str, pins: list[Pin]) -> LoadOptions:
        """What the request asks for; the caller's memory is pinned, and noted in `pins`."""
        if request.execution_mode not in _MODES:
            raise InvalidArgument(
                f"execution mode {request.execution_mode} is unknown", reason="EXECUTION_MODE_UNKNOWN"
            )
        synchronous = _MODES[request.execution_mode]
        if request.memory_owner not in pb.MemoryOwner.values():
            raise InvalidArgument(f"memory owner {request.memory_owner} is unknown", reason="MEMORY_OWNER_UNKNOWN")
        if request.memory_owner != pb.MEMORY_OWNER_CALLER:
            if request.work_buffer_id or request.weight_buffer_id:
                raise InvalidArgument(
                    "buffers were named, but memory_owner is not MEMORY_OWNER_CALLER; set it, or name none",
                    reason="MEMORY_OWNER_MISMATCH",
                )
            return LoadOptions(synchronous)
        work, weight = await self._query_size(request.source, lease_id)
        pins.append(self._memory.pin_model_memory(lease_id, request.work_buffer_id, work))
        pins.append(self._memory.pin_model_memory(lease_id, request.weight_buffer_id, weight))
        return LoadOptions(synchronous, pins[0], pins[1])

    async def _query_size(self, source: pb.ModelSource, lease_id: str) -> tuple[int, int]:
        if source.WhichOneof("source") != "upload_id":
            repository = _repository(source)
            return await self._engine.query_size(repository.model, repository.version)
        upload = self._memory.pin_upload(lease_id, source.upload_id)
        try:
            return await self._engine.query_size(upload.data)
        finally:
            upload.release()


def _repository(source: pb.ModelSource) -> pb.RepositoryModel:
    if source.WhichOneof("source") != "repository" or not source.repository.model:
        raise InvalidArgument("name a model of the repository or an upload in `source`", reason="MODEL_SOURCE_MISSING")
    return source.repository


def _serialise(message: Any) -> bytes:
    return bytes(message.SerializeToString())


def _unary(method: Any, request: Any) -> grpc.RpcMethodHandler[Any, Any]:
    return grpc.unary_unary_rpc_method_handler(method, request.FromString, _serialise)
