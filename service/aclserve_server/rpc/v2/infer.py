"""ModelInfer and ModelStreamInfer: requests of the KServe v2 protocol, on the same engine calls as the native API."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from typing import Any

import grpc.aio

from aclserve.errors import AclserveError
from aclserve_server.access.principal import CURRENT
from aclserve_server.engine.contract import Ticket
from aclserve_server.engine.engine import Engine, Record
from aclserve_server.engine.items import BufferSlice, Input, OutputRequest, RegionSlice, Result
from aclserve_server.engine.memory import MemoryManager
from aclserve_server.engine.regions import Regions
from aclserve_server.rpc.calls import OpenCalls
from aclserve_server.rpc.metadata import lease_id_of
from aclserve_server.rpc.stream_settings import StreamLimits
from aclserve_server.rpc.tracing import Tell, Tracing
from aclserve_server.rpc.v2.answers import check_classified, shown
from aclserve_server.rpc.v2.stream import StreamSession
from aclserve_server.rpc.v2.wire_in import V2Item, scan_model_infer_request
from aclserve_server.rpc.v2.wire_out import assemble_infer_response

Context = grpc.aio.ServicerContext[Any, Any]

_SERVICE = "inference.GRPCInferenceService"

GRPC_ERROR_KEY = "triton_grpc_error"
"""The metadata key by which a client asks that an error ends its stream with the error's status."""


class Inference:
    """The two calls. Messages come and go as bytes."""

    def __init__(
        self, engine: Engine, memory: MemoryManager, regions: Regions, limits: StreamLimits, calls: OpenCalls
    ) -> None:
        self._engine = engine
        self._memory = memory
        self._regions = regions
        self._limits = limits
        self._calls = calls
        self._numbers = itertools.count(1)
        self.tracing: Tracing | None = None

    async def infer(self, message: bytes, context: Context) -> bytes:
        with self._calls.call():
            item = scan_model_infer_request(message)
            remaining = context.time_remaining()
            if remaining is not None and (item.timeout_s is None or remaining < item.timeout_s):
                item.timeout_s = remaining
            item.lease_id = lease_id_of(context)
            item.flow = CURRENT.get()
            future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
            tell = None if self.tracing is None else self.tracing.single(context, f"{_SERVICE}/ModelInfer", item.model)
            answer = _Answer(item, future, tell)
            try:
                answer.record, ticket = self.submit(item, answer)
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
        metadata = dict(context.invocation_metadata() or ())
        number = next(self._numbers)
        tracing = self.tracing
        session = StreamSession(
            number,
            self.submit,
            lease_id_of(context),
            self._limits.of_caller(),
            None if tracing is None else tracing.call(context, f"{_SERVICE}/ModelStreamInfer", number),
            errors_end_it=str(metadata.get(GRPC_ERROR_KEY, "")).lower() == "true",
        )
        with self._calls.stream(session):
            await session.run(context)

    def submit(self, item: V2Item, sink: Any) -> tuple[Record, Ticket]:
        """Hands an item to its model; also returns which version that is. Raises what is wrong with it."""
        try:
            if item.error is not None:
                raise item.error
            record = self._engine.find(item.model, item.version)
            if item.top_k:
                check_classified(item)
            if item.placed:
                self._name_buffers(item)
        except AclserveError as error:
            self._engine.observer(item.model, item.version).answered(error.code_name)
            raise
        assert record.runner is not None
        item.timed = self.tracing is not None
        return record, record.runner.submit(item, sink)

    def _name_buffers(self, item: V2Item) -> None:
        """Takes what is no region for a buffer of the lease, so that clients of this protocol can use both."""
        tensors: list[Input | OutputRequest] = [*item.inputs, *item.outputs]
        for tensor in tensors:
            buffer = None if tensor.region is None else self._as_buffer(item.lease_id, tensor.region)
            if buffer is not None:
                tensor.buffer, tensor.region = buffer, None

    def _as_buffer(self, lease_id: str, region: RegionSlice) -> BufferSlice | None:
        if not lease_id or self._regions.find(lease_id, region.name) is not None:
            return None
        if not self._memory.has_buffer(lease_id, region.name):
            return None
        return BufferSlice(region.name, region.offset_bytes, region.length_bytes)


class _Answer:
    """The sink of a unary call."""

    record: Record

    def __init__(self, item: V2Item, future: asyncio.Future[bytes], tell: Tell | None) -> None:
        self._item = item
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
            return
        item, record = self._item, self.record
        try:
            result = shown(item, record, result)
            message = assemble_infer_response(record.name, record.version, item.client_id, result)
            self._future.set_result(message)
        except Exception as error:  # whatever it is: the caller waits for an answer
            self._future.set_exception(error)
