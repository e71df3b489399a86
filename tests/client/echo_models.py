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
            max_rows=self._server.max_rows if batched else 1,
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
        self._server.infer_began.release()
        self._server.gate.wait()
        self._known(request.model, context)
        try:
            self._server.message_bytes.append(request.ByteSize())
            outputs = self._run(request, context)
        except errors.AclserveError as error:
            abort(context, error)
        self._server.answer_bytes.append(outputs.ByteSize())
        captured = request.capture_time if request.HasField("capture_time") else None
        return model_pb2.InferResponse(id=request.id, outputs=outputs, timing=TIMING, capture_time=captured)

    def _run(self, request, context):
        self._server.priorities.append(request.priority)
        tensor = request.inputs[0]
        source = tensor.WhichOneof("source")
        if source == "data":
            x = array_from_tensor(tensor)
        elif source == "fill":
            value = 0.0 if tensor.fill.pattern == tensor_pb2.FILL_PATTERN_ZEROS else 0.5
            x = np.full(tuple(tensor.shape), value, np.float32)
        elif source == "region":
            content = self._server.regions.read(tensor.region, context, 4 * int(np.prod(tensor.shape)))
            x = np.frombuffer(content, np.float32).reshape(tuple(tensor.shape))
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
            if wanted.HasField("region"):
                self._server.regions.write(wanted.region, context, y.data)
                y.region.CopyFrom(wanted.region)
        return model_pb2.Outputs(tensors=[y])

    def StreamInfer(self, request_iterator, context):
        server = self._server
        first = next(request_iterator)
        if server.silent:
            server.closing.wait()
            return
        if first.config.model:
            self._known(first.config.model, context)
        config = first.config
        server.configs.append(config)
        window = min(server.window, config.max_pending_items or server.window)
        policy, order = PRESETS[config.preset]
        ready = model_pb2.StreamReady(
            order=config.order or order,
            max_pending_items=window,
            max_message_bytes=server.max_message_bytes,
            policy=config.policy or policy,
            max_pending_bytes=config.max_pending_bytes or server.window_bytes,
            priority=config.priority or model_pb2.PRIORITY_NORMAL,
        )
        if config.HasField("max_age"):
            ready.max_age.CopyFrom(config.max_age)
        session = _Session(self, server, context)
        server.sessions.append(session)
        yield model_pb2.StreamInferResponse(ready=ready)
        yield from session.run(request_iterator)
        server.sessions.remove(session)
        server.stream_ended.release()

    def WatchStreams(self, request, context):
        server = self._server
        server.watchers += 1
        over = threading.Event()
        context.add_callback(lambda: (over.set(), server.watch_ended.release()))
        for round in range(1, 4):
            stream = model_pb2.StreamStatus(
                number=7,
                model="echo",
                policy=model_pb2.FRAME_POLICY_LATEST_ONLY,
                priority=model_pb2.PRIORITY_HIGH,
                received_per_second=30,
                answered_per_second=10.5,
                pending_items=2,
                max_pending_items=8,
                oldest_age_ns=3_400_000_000,
                received_items=30 * round,
                succeeded_items=10 * round,
                dropped_items=20 * round,
                drops={"SUPERSEDED": 20 * round},
                p50_ns=1_200_000,
                p99_ns=9_900_000,
            )
            model = model_pb2.ModelStatus(
                name="echo", version=1, queue_rows=5, executions_per_second=4, rows_per_second=26,
                mean_batch_rows=6.5, fill=0.8125,
            )  # fmt: skip
            yield model_pb2.WatchStreamsResponse(streams=[stream], models=[model])
        over.wait()


PRESETS = {
    model_pb2.STREAM_PRESET_UNSPECIFIED: (model_pb2.FRAME_POLICY_WAIT, model_pb2.RESULT_ORDER_COMPLETION),
    model_pb2.STREAM_PRESET_FILE: (model_pb2.FRAME_POLICY_WAIT, model_pb2.RESULT_ORDER_SUBMISSION),
    model_pb2.STREAM_PRESET_LIVE: (model_pb2.FRAME_POLICY_LATEST_ONLY, model_pb2.RESULT_ORDER_COMPLETION),
}
TIMING = model_pb2.Timing(
    wait_ns=1000, copy_in_ns=1, execute_ns=500, copy_out_ns=1, total_ns=2000, batch_rows=4, gear_rows=8
)


class _Session:
    """One stream after `ready`: a thread reads, the generator answers."""

    def __init__(self, servicer, server, context):
        self._servicer, self._server, self._context = servicer, server, context
        self._events = queue.Queue()
        self._accepted = 0
        self._pending = 0
        self._lock = threading.Lock()
        self._waiting = {}

    def say(self, response):
        self._events.put(response)

    def run(self, requests):
        threading.Thread(target=self._read, args=(requests,), daemon=True).start()
        counts = {"outputs": 0, "error": 0, "dropped": 0}
        while (event := self._events.get()) is not None:
            if isinstance(event, model_pb2.StreamInferResponse):
                yield event
                continue
            self._server.gate.wait()
            results = []
            for item in event:
                if sum(counts.values()) == self._server.break_after:
                    self._server.break_after = None
                    abort(self._context, self._server.breaks_with)  # what this message had is lost
                results.append(self._answer(item))
                counts[results[-1].WhichOneof("outcome")] += 1
            self._server.answered.extend(result.id for result in results)
            response = model_pb2.StreamInferResponse(results=model_pb2.ResultList(results=results))
            self._server.answer_bytes.append(response.ByteSize())
            yield response
        yield model_pb2.StreamInferResponse(
            summary=model_pb2.StreamSummary(
                received_items=sum(counts.values()),
                succeeded_items=counts["outputs"],
                failed_items=counts["error"],
                dropped_items=counts["dropped"],
                drops={"TOO_OLD": counts["dropped"]} if counts["dropped"] else {},
            )
        )

    def _answer(self, item):
        with self._lock:
            self._pending -= 1
            cancelled = self._waiting.pop(item.id)
        if item.id in self._server.drop_ids:
            dropped = model_pb2.Dropped(reason=model_pb2.DROP_REASON_TOO_OLD, age_ns=1_500_000)
            return model_pb2.InferResult(id=item.id, dropped=dropped)
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
                    continue
                self._server.message_bytes.append(request.ByteSize())
                if not self._take(list(request.items.items)):
                    break
        except grpc.RpcError:
            pass
        self._events.put(None)

    def _take(self, items):
        self._server.messages.append([item.id for item in items])
        self._server.taken.release()
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
        notice = model_pb2.GoingAway(last_accepted_id=taken[-1].id if taken else "")
        self._events.put(model_pb2.StreamInferResponse(going_away=notice))
        return False
