"""Scaffolding for client tests: a server on a real socket that behaves as the protos say, with one in-memory model.

The model `echo` takes `x`, float32 [-1, 3], and gives `y` = 2 x. `solo` is the same without batching. Everything a
test wants to know is counted or recorded; a test holds answers back with `gate`.
"""

from __future__ import annotations

import itertools
import queue
import threading
from concurrent.futures import ThreadPoolExecutor

import google_crc32c
import grpc
import numpy as np
from google.protobuf.any_pb2 import Any
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

from aclserve import errors
from aclserve.tensors import array_from_tensor, tensor_from_array
from aclserve.v1 import device_pb2, device_pb2_grpc, memory_pb2, memory_pb2_grpc, model_pb2, model_pb2_grpc, tensor_pb2

CODES = {code.value[0]: code for code in grpc.StatusCode}


def details_of(error, domain=errors.DOMAIN):
    """The bytes of grpc-status-details-bin for an error."""
    info = ErrorInfo(reason=error.reason, domain=domain, metadata=error.metadata)
    details = [Any(), Any()][: 1 if error.retry_delay is None else 2]
    details[0].Pack(info)
    if error.retry_delay is not None:
        delay = Duration()
        delay.FromNanoseconds(round(error.retry_delay * 1e9))
        details[1].Pack(RetryInfo(retry_delay=delay))
    return Status(code=error.code, message=error.message, details=details).SerializeToString()


def abort(context, error):
    context.set_trailing_metadata((("grpc-status-details-bin", details_of(error)),))
    context.abort(CODES[error.code], error.message)


class Faults(grpc.ServerInterceptor):
    """Counts calls by method and fails those that a test planned: `plan[method] = [error, ...]`, one for each call."""

    def __init__(self):
        self.calls = []
        self.metadata = []
        self.plan = {}

    def intercept_service(self, continuation, details):
        method = details.method.rsplit("/", 1)[1]
        self.calls.append(method)
        self.metadata.append(dict(details.invocation_metadata))
        handler = continuation(details)
        if not self.plan.get(method):
            return handler
        error = self.plan[method].pop(0)

        def fail(request, context):
            abort(context, error)

        def fail_stream(request, context):
            abort(context, error)
            yield

        make = {
            (False, False): grpc.unary_unary_rpc_method_handler,
            (True, False): grpc.stream_unary_rpc_method_handler,
            (False, True): grpc.unary_stream_rpc_method_handler,
            (True, True): grpc.stream_stream_rpc_method_handler,
        }[handler.request_streaming, handler.response_streaming]
        behaviour = fail_stream if handler.response_streaming else fail
        return make(behaviour, handler.request_deserializer, handler.response_serializer)


class EchoServer:
    def __init__(self, *, window=8, page_size=2, lease_ttl=60.0, max_message_bytes=1 << 20):
        self.window = window
        self.page_size = page_size
        self.lease_ttl = lease_ttl
        self.max_message_bytes = max_message_bytes
        self.gate = threading.Event()
        self.gate.set()
        self.closing = threading.Event()
        self.faults = Faults()
        self.messages = []  # ids of the items of each message of all streams, in order
        self.cancels = []
        self.most_pending = 0
        self.accept_items = None  # go away after that many items of a stream
        self.silent = False  # never answers a stream's configuration
        self.leases = {}
        self.uploads = {}
        self.loaded = {}
        self.renewed = threading.Semaphore(0)
        self.stream_ended = threading.Semaphore(0)
        self.corrupt_reads = 0
        self.lose_copies = False
        self._ids = (f"id-{number}" for number in itertools.count())
        options = [("grpc.max_receive_message_length", 70 << 20), ("grpc.max_send_message_length", 70 << 20)]
        self._server = grpc.server(ThreadPoolExecutor(16), interceptors=[self.faults], options=options)
        device_pb2_grpc.add_DeviceServiceServicer_to_server(DeviceServicer(self), self._server)
        memory_pb2_grpc.add_MemoryServiceServicer_to_server(MemoryServicer(self), self._server)
        model_pb2_grpc.add_ModelServiceServicer_to_server(ModelServicer(self), self._server)
        self.port = self._server.add_insecure_port("127.0.0.1:0")
        self.address = f"127.0.0.1:{self.port}"
        self._server.start()

    def close(self):
        self.gate.set()
        self.closing.set()
        self._server.stop(0).wait()

    def new_id(self):
        return next(self._ids)

    def lease(self, context):
        lease_id = dict(context.invocation_metadata()).get("aclserve-lease")
        if lease_id is None:
            abort(context, errors.Unauthenticated("show a lease", reason="LEASE_REQUIRED"))
        if lease_id not in self.leases:
            abort(context, errors.NotFound("no such lease", reason="LEASE_NOT_FOUND"))
        return self.leases[lease_id]

    def page(self, items, request):
        start = int(request.page_token or 0)
        size = min(self.page_size, request.page_size or 100)
        return items[start : start + size], str(start + size) if start + size < len(items) else ""


class DeviceServicer(device_pb2_grpc.DeviceServiceServicer):
    def __init__(self, server):
        self._server = server

    def ListDevices(self, request, context):
        memory = [device_pb2.DeviceMemory(kind="DDR", free_bytes=3 << 30, total_bytes=8 << 30)]
        devices = [
            device_pb2.Device(
                id=0, soc_name="Ascend310P3", run_mode=device_pb2.RUN_MODE_HOST, emulated=True, memory=memory
            ),
            device_pb2.Device(id=1, soc_name="Ascend310", run_mode=device_pb2.RUN_MODE_DEVICE, utilization_percent=7),
            device_pb2.Device(id=2, soc_name="Ascend910", run_mode=99),
        ]
        devices, token = self._server.page(devices, request)
        return device_pb2.ListDevicesResponse(devices=devices, next_page_token=token)

    def GetServerInfo(self, request, context):
        limits = device_pb2.Limits(max_message_bytes=64 << 20, max_stream_items=8, max_lease_ttl=Duration(seconds=3600))
        return device_pb2.GetServerInfoResponse(
            version="0.1.0",
            acl_version="1.2.3",
            features=["reflection"],
            limits=limits,
            uptime=Duration(seconds=5, nanos=500_000_000),
        )


class MemoryServicer(memory_pb2_grpc.MemoryServiceServicer):
    def __init__(self, server):
        self._server = server

    def _message(self, lease_id):
        held = self._server.leases[lease_id]
        ttl = Duration()
        ttl.FromNanoseconds(int(held["ttl"] * 1e9))
        used = sum(len(b[1]) for b in held["buffers"].values() if b[0].space == memory_pb2.MEMORY_SPACE_DEVICE)
        return memory_pb2.Lease(id=lease_id, ttl=ttl, remaining=ttl, device_bytes=used, device_quota_bytes=1 << 20)

    def CreateLease(self, request, context):
        lease_id = self._server.new_id()
        ttl = request.ttl.ToNanoseconds() / 1e9 if request.HasField("ttl") else self._server.lease_ttl
        self._server.leases[lease_id] = {"id": lease_id, "ttl": ttl, "buffers": {}}
        return memory_pb2.CreateLeaseResponse(lease=self._message(lease_id))

    def RenewLease(self, request, context):
        lease = self._server.lease(context)
        self._server.renewed.release()
        return memory_pb2.RenewLeaseResponse(lease=self._message(lease["id"]))

    def ReleaseLease(self, request, context):
        lease = self._server.lease(context)
        del self._server.leases[lease["id"]]
        return memory_pb2.ReleaseLeaseResponse(buffers_freed=len(lease["buffers"]))

    def AllocateBuffer(self, request, context):
        lease = self._server.lease(context)
        if request.size_bytes > 1 << 20:
            abort(context, errors.ResourceExhausted("over the quota", reason="LEASE_QUOTA_EXCEEDED"))
        buffer = memory_pb2.Buffer(
            id=self._server.new_id(), space=request.space, size_bytes=request.size_bytes, policy=request.policy
        )
        lease["buffers"][buffer.id] = (buffer, bytearray(request.size_bytes))
        return memory_pb2.AllocateBufferResponse(buffer=buffer)

    def _range(self, context, buffer_id, offset, length):
        buffers = self._server.lease(context)["buffers"]
        if buffer_id not in buffers:
            abort(context, errors.NotFound("no such buffer", reason="BUFFER_NOT_FOUND"))
        content = memoryview(buffers[buffer_id][1])
        length = length or len(content) - offset
        if offset + length > len(content):
            abort(context, errors.OutOfRange("past the end", reason="RANGE_OUTSIDE_BUFFER"))
        return content[offset : offset + length]

    def FreeBuffer(self, request, context):
        self._range(context, request.buffer_id, 0, 0).release()
        del self._server.lease(context)["buffers"][request.buffer_id]
        return memory_pb2.FreeBufferResponse()

    def ListBuffers(self, request, context):
        buffers = [buffer for buffer, _ in self._server.lease(context)["buffers"].values()]
        buffers, token = self._server.page(buffers, request)
        return memory_pb2.ListBuffersResponse(buffers=buffers, next_page_token=token)

    def SetMemory(self, request, context):
        view = self._range(context, request.buffer_id, request.offset_bytes, request.length_bytes)
        view[:] = bytes([request.value]) * len(view)
        return memory_pb2.SetMemoryResponse()

    def CopyMemory(self, request, context):
        length = request.length_bytes
        source = self._range(context, request.source_buffer_id, request.source_offset_bytes, length)
        target = self._range(context, request.destination_buffer_id, request.destination_offset_bytes, length)
        if not self._server.lose_copies:
            target[:] = bytes(source)
        return memory_pb2.CopyMemoryResponse()

    def WriteBuffer(self, request_iterator, context):
        header = next(request_iterator).header
        content = b"".join(part.data for part in request_iterator)
        if len(content) != header.length_bytes or google_crc32c.value(content) != header.crc32c:
            abort(context, errors.DataLoss("wrong", reason="CHECKSUM_MISMATCH"))
        self._range(context, header.buffer_id, header.offset_bytes, header.length_bytes)[:] = content
        return memory_pb2.WriteBufferResponse(crc32c=header.crc32c)

    def ReadBuffer(self, request, context):
        content = bytes(self._range(context, request.buffer_id, request.offset_bytes, request.length_bytes))
        for at in range(0, len(content), 1000):
            last = at + 1000 >= len(content)
            crc = google_crc32c.value(content) ^ self._server.corrupt_reads if last else None
            yield memory_pb2.ReadBufferResponse(data=content[at : at + 1000], crc32c=crc)

    def QueryMemory(self, request, context):
        attributes = request.attributes or [memory_pb2.MEMORY_ATTRIBUTE_DDR, memory_pb2.MEMORY_ATTRIBUTE_HBM]
        return memory_pb2.QueryMemoryResponse(
            usage=[memory_pb2.MemoryUsage(attribute=a, free_bytes=10 * a, total_bytes=100 * a) for a in attributes]
        )


class ModelServicer(model_pb2_grpc.ModelServiceServicer):
    def __init__(self, server):
        self._server = server

    def ListModels(self, request, context):
        models = [
            model_pb2.Model(name="echo", version=1, state=model_pb2.MODEL_STATE_READY),
            model_pb2.Model(name="solo", version=1, state=model_pb2.MODEL_STATE_READY),
            model_pb2.Model(name="broken", version=3, state=model_pb2.MODEL_STATE_UNAVAILABLE, reason="no such op"),
        ]
        models, token = self._server.page(models, request)
        return model_pb2.ListModelsResponse(models=models, next_page_token=token)

    def _description(self, name):
        batched = name != "solo"
        shape = [-1, 3] if batched else [3]
        spec = {"data_type": tensor_pb2.DATA_TYPE_FLOAT32, "shape": shape, "format": "ND", "max_bytes": 96}
        return model_pb2.ModelDescription(
            model=model_pb2.Model(name=name, version=1, state=model_pb2.MODEL_STATE_READY),
            inputs=[model_pb2.TensorSpec(name="x", **spec)],
            outputs=[model_pb2.TensorSpec(name="y", **spec)],
            gears=[model_pb2.Gear(kind="batch", values=[n]) for n in (1, 8)] if batched else [],
            batching=model_pb2.BATCHING_ROWS if batched else model_pb2.BATCHING_NONE,
            batching_reason="axis 0 varies",
            max_rows=8 if batched else 1,
            execution_mode=model_pb2.EXECUTION_MODE_ASYNCHRONOUS,
            memory_owner=model_pb2.MEMORY_OWNER_ASCENDCL,
            max_queue_delay=Duration(nanos=2_000_000),
            slots=2,
            sample_json="{}",
        )

    def _known(self, name, context):
        if name not in ("echo", "solo", *self._server.loaded):
            abort(
                context,
                errors.NotFound(f"there is no model {name!r}", reason="MODEL_NOT_FOUND", metadata={"model": name}),
            )

    def GetModel(self, request, context):
        self._known(request.model, context)
        return model_pb2.GetModelResponse(description=self._description(request.model))

    def QueryModelSize(self, request, context):
        if request.source.WhichOneof("source") == "upload_id":
            self._server.lease(context)
            return model_pb2.QueryModelSizeResponse(work_bytes=len(self._server.uploads[request.source.upload_id]))
        return model_pb2.QueryModelSizeResponse(work_bytes=11, weight_bytes=22)

    def UploadModel(self, request_iterator, context):
        self._server.lease(context)
        header = next(request_iterator).header
        content = b"".join(part.data for part in request_iterator)
        assert (len(content), google_crc32c.value(content)) == (header.size_bytes, header.crc32c)
        upload_id = self._server.new_id()
        self._server.uploads[upload_id] = content
        return model_pb2.UploadModelResponse(upload_id=upload_id, crc32c=header.crc32c)

    def LoadModel(self, request, context):
        name = request.name or request.source.repository.model
        self._server.loaded[name] = request
        return model_pb2.LoadModelResponse(description=self._description(name))

    def UnloadModel(self, request, context):
        self._known(request.model, context)
        self._server.loaded.pop(request.model, None)
        return model_pb2.UnloadModelResponse()

    def Infer(self, request, context):
        self._server.gate.wait()
        self._known(request.model, context)
        try:
            outputs = self._run(request, context)
        except errors.AclserveError as error:
            abort(context, error)
        captured = request.capture_time if request.HasField("capture_time") else None
        return model_pb2.InferResponse(id=request.id, outputs=outputs, timing=TIMING, capture_time=captured)

    def _run(self, request, context):
        tensor = request.inputs[0]
        source = tensor.WhichOneof("source")
        if source == "data":
            x = array_from_tensor(tensor)
        elif source == "fill":
            value = 0.0 if tensor.fill.pattern == tensor_pb2.FILL_PATTERN_ZEROS else 0.5
            x = np.full(tuple(tensor.shape), value, np.float32)
        else:
            content = self._server.lease(context)["buffers"][tensor.buffer.buffer_id][1]
            count = int(np.prod(tensor.shape))
            x = np.frombuffer(content, np.float32, count, tensor.buffer.offset_bytes).reshape(tuple(tensor.shape))
        if x.shape[-1:] != (3,):
            raise errors.InvalidArgument(f"got shape {list(x.shape)}", reason="SHAPE_MISMATCH", metadata={"input": "x"})
        y = tensor_from_array("y", x * 2 if x.dtype == np.float32 else x)
        for wanted in request.outputs:
            if wanted.HasField("buffer"):
                content = self._server.lease(context)["buffers"][wanted.buffer.buffer_id][1]
                content[: len(y.data)] = y.data
                y.buffer.CopyFrom(wanted.buffer)
        return model_pb2.Outputs(tensors=[y])

    def StreamInfer(self, request_iterator, context):
        server = self._server
        first = next(request_iterator)
        if server.silent:
            server.closing.wait()
            return
        if first.config.model:
            self._known(first.config.model, context)
        window = min(server.window, first.config.max_pending_items or server.window)
        order = first.config.order or model_pb2.RESULT_ORDER_COMPLETION
        yield model_pb2.StreamInferResponse(
            ready=model_pb2.StreamReady(
                order=order, max_pending_items=window, max_message_bytes=server.max_message_bytes
            )
        )
        yield from _Session(self, server, window, context).run(request_iterator)
        server.stream_ended.release()


TIMING = model_pb2.Timing(
    wait_ns=1000, copy_in_ns=1, execute_ns=500, copy_out_ns=1, total_ns=2000, batch_rows=4, gear_rows=8
)


class _Session:
    """One stream after `ready`: a thread reads, the generator answers."""

    def __init__(self, servicer, server, window, context):
        self._servicer, self._server, self._window, self._context = servicer, server, window, context
        self._events = queue.Queue()
        self._accepted = 0
        self._pending = 0
        self._lock = threading.Lock()
        self._waiting = {}

    def run(self, requests):
        threading.Thread(target=self._read, args=(requests,), daemon=True).start()
        counts = {"outputs": 0, "error": 0}
        while (event := self._events.get()) is not None:
            if isinstance(event, model_pb2.GoingAway):
                yield model_pb2.StreamInferResponse(going_away=event)
                continue
            self._server.gate.wait()
            results = [self._answer(item) for item in event]
            for result in results:
                counts[result.WhichOneof("outcome")] += 1
            yield model_pb2.StreamInferResponse(results=model_pb2.ResultList(results=results))
        yield model_pb2.StreamInferResponse(
            summary=model_pb2.StreamSummary(
                received_items=sum(counts.values()), succeeded_items=counts["outputs"], failed_items=counts["error"]
            )
        )

    def _answer(self, item):
        with self._lock:
            self._pending -= 1
            cancelled = self._waiting.pop(item.id)
        captured = item.capture_time if item.HasField("capture_time") else None
        if cancelled:
            error = model_pb2.ItemError(code=1, reason="ITEM_CANCELLED", message="taken back")
            return model_pb2.InferResult(id=item.id, error=error)
        try:
            outputs = self._servicer._run(item, self._context)
        except errors.AclserveError as error:
            wire = model_pb2.ItemError(
                code=error.code,
                reason=error.reason,
                message=error.message,
                metadata=error.metadata,
                retry_delay=Duration(seconds=2),
            )
            return model_pb2.InferResult(id=item.id, error=wire)
        return model_pb2.InferResult(id=item.id, outputs=outputs, timing=TIMING, capture_time=captured)

    def _read(self, requests):
        try:
            for request in requests:
                if request.HasField("cancel"):
                    self._server.cancels.append(list(request.cancel.ids))
                    with self._lock:
                        self._waiting.update({i: True for i in request.cancel.ids if i in self._waiting})
                elif not self._take(list(request.items.items)):
                    break
        except grpc.RpcError:
            pass
        self._events.put(None)

    def _take(self, items):
        self._server.messages.append([item.id for item in items])
        with self._lock:
            limit = self._server.accept_items
            taken = items if limit is None else items[: max(0, limit - self._accepted)]
            self._accepted += len(taken)
            self._pending += len(taken)
            self._waiting.update({item.id: False for item in taken})
            self._server.most_pending = max(self._server.most_pending, self._pending)
        if taken:
            self._events.put(taken)
        if len(taken) == len(items):
            return True
        self._events.put(model_pb2.GoingAway(last_accepted_id=taken[-1].id if taken else ""))
        return False
