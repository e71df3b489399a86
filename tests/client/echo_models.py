"""Scaffolding for client tests: ModelService with one in-memory model, unary and streamed."""

from __future__ import annotations

import queue
import threading

import google_crc32c
import grpc
import numpy as np
from google.protobuf.duration_pb2 import Duration

from aclserve import errors
from aclserve.tensors import array_from_tensor, tensor_from_array
from aclserve.v1 import model_pb2, model_pb2_grpc, tensor_pb2
from client.echo_errors import abort


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
