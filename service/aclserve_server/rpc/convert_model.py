"""Models between the engine and `aclserve.v1`."""

from __future__ import annotations

from google.protobuf import json_format
from google.protobuf.duration_pb2 import Duration

from aclserve.tensors import data_type_of
from aclserve.v1 import model_pb2 as pb
from aclserve.v1 import tensor_pb2
from aclserve_server.device.description import TensorInfo
from aclserve_server.engine.contract import RowContract
from aclserve_server.engine.engine import Record, State
from aclserve_server.rpc.usage import usage_of

STATES = {
    State.UNLOADED: pb.MODEL_STATE_UNLOADED,
    State.LOADING: pb.MODEL_STATE_LOADING,
    State.READY: pb.MODEL_STATE_READY,
    State.UNLOADING: pb.MODEL_STATE_UNLOADING,
    State.UNAVAILABLE: pb.MODEL_STATE_UNAVAILABLE,
}

_FREE_DIM = 1
"""What a sample request puts where a dimension varies."""


def model_to_proto(record: Record) -> pb.Model:
    """A model, in short."""
    return pb.Model(name=record.name, version=record.version, state=STATES[record.state], reason=record.reason)


def description_to_proto(record: Record, version: int = 0) -> pb.ModelDescription:
    """Everything about a model that is ready. `version` is the one that the caller named, 0 for none."""
    prepared = record.prepared
    assert prepared is not None
    contract = prepared.contract
    described = prepared.model.description
    rows = isinstance(contract, RowContract)
    delay = Duration()
    delay.FromMicroseconds(round(prepared.delay_s * 1e6))
    sample = _sample(record, version)
    sample_json = json_format.MessageToJson(sample, indent=None)
    return pb.ModelDescription(
        model=model_to_proto(record),
        inputs=[_spec(info, rows) for info in contract.inputs],
        outputs=[_spec(info, rows) for info in contract.outputs],
        gears=[pb.Gear(kind=gear.kind, values=gear.values) for gear in described.gears if gear.kind != "static"],
        batching=pb.BATCHING_ROWS if prepared.batched else pb.BATCHING_NONE,
        batching_reason=prepared.batching_reason,
        max_rows=contract.max_rows if isinstance(contract, RowContract) else 1,
        execution_mode=(pb.EXECUTION_MODE_SYNCHRONOUS if prepared.synchronous else pb.EXECUTION_MODE_ASYNCHRONOUS),
        memory_owner=pb.MEMORY_OWNER_CALLER if record.pins else pb.MEMORY_OWNER_ASCENDCL,
        max_queue_delay=delay,
        slots=len(prepared.slots),
        work_bytes=described.work_bytes,
        weight_bytes=described.weight_bytes,
        sample_json=sample_json,
        parameters=dict(record.config.parameters),
        usage=usage_of(sample, sample_json),
    )


def _spec(info: TensorInfo, rows: bool) -> pb.TensorSpec:
    return pb.TensorSpec(
        name=info.name,
        data_type=data_type_of(info.dtype),
        shape=(-1, *info.shape[1:]) if rows else info.shape,
        format=info.format,
        max_bytes=info.size_bytes,
    )


def _sample(record: Record, version: int) -> pb.InferRequest:
    """A request for Infer with inputs made by the server, of the smallest gear."""
    assert record.prepared is not None
    contract = record.prepared.contract
    gears = record.prepared.description.gears
    request = pb.InferRequest(model=record.name, version=version)
    for index, info in enumerate(contract.inputs):
        shape = gears[0].input_shapes[index] if gears else tuple(_FREE_DIM if dim < 0 else dim for dim in info.shape)
        request.inputs.append(
            tensor_pb2.Tensor(
                name=info.name,
                data_type=data_type_of(info.dtype),
                shape=shape,
                fill=tensor_pb2.Fill(pattern=tensor_pb2.FILL_PATTERN_RANDOM, seed=1),
            )
        )
    return request
