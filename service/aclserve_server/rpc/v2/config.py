"""ModelConfig: the configuration of a model with what was derived from the model itself."""

from __future__ import annotations

from typing import Any

import grpc.aio

from aclserve_server.device.description import TensorInfo
from aclserve_server.engine.contract import RowContract
from aclserve_server.engine.engine import Engine
from aclserve_server.engine.model_config import ModelConfig, QueuePolicy, TensorConfig, VersionPolicy, Warmup
from aclserve_server.engine.records import Record
from aclserve_server.kserve import inference_pb2 as pb
from aclserve_server.kserve import model_config_pb2
from aclserve_server.rpc.v2.datatypes import data_type_of
from aclserve_server.rpc.v2.versions import version_from_text

Context = grpc.aio.ServicerContext[Any, Any]

_BACKENDS = {"onnx": "onnxruntime", "om": "acl"}
"""Kind of model file -> the backend's name, which a configuration may state too."""


class ConfigCalls:
    """The one call."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def model_config(self, request: pb.ModelConfigRequest, context: Context) -> pb.ModelConfigResponse:
        record = self._engine.find(request.name, version_from_text(request.version))
        return pb.ModelConfigResponse(config=config_to_proto(record))


def config_to_proto(record: Record) -> model_config_pb2.ModelConfig:
    """A model that is ready. `max_batch_size` above 0 says that rows share executions; `dims` are then of one row."""
    prepared, config = record.prepared, record.config
    assert prepared is not None
    contract = prepared.contract
    rows = isinstance(contract, RowContract)
    size = contract.max_rows if prepared.batched and isinstance(contract, RowContract) else 0
    stated = {tensor.name: tensor for tensor in (*config.inputs, *config.outputs)}
    return model_config_pb2.ModelConfig(
        name=record.name,
        platform=record.platform,
        backend=_BACKENDS.get(record.kind, ""),
        version_policy=_version_policy(config.version_policy),
        max_batch_size=size,
        input=[
            model_config_pb2.ModelInput(name=info.name, data_type=_data_type(info), dims=_dims(info, rows, size))
            for info in contract.inputs
        ],
        output=[
            model_config_pb2.ModelOutput(
                name=info.name,
                data_type=_data_type(info),
                dims=_dims(info, rows, size),
                label_filename=_label_filename(stated.get(info.name)),
            )
            for info in contract.outputs
        ],
        instance_group=[model_config_pb2.ModelInstanceGroup(count=len(prepared.instances))],
        default_model_filename=_file(record),
        dynamic_batching=_batching(config, prepared.delay_s) if size else None,
        parameters={
            key: model_config_pb2.ModelParameter(string_value=value) for key, value in config.parameters.items()
        },
        model_warmup=[_warmup(one) for one in config.warmups],
        model_transaction_policy=model_config_pb2.ModelTransactionPolicy(decoupled=False),
    )


def _data_type(info: TensorInfo) -> model_config_pb2.DataType:
    return model_config_pb2.DataType.Name(data_type_of(info.dtype))  # type: ignore[return-value]


def _dims(info: TensorInfo, rows: bool, max_batch_size: int) -> tuple[int, ...]:
    """Without the axis of rows where they share executions, else with it."""
    if max_batch_size:
        return info.shape[1:]
    return (-1, *info.shape[1:]) if rows else info.shape


def _label_filename(stated: TensorConfig | None) -> str:
    return "" if stated is None else stated.label_filename


def _file(record: Record) -> str:
    return record.config.file or ("" if record.file is None else record.file.name)


def _batching(config: ModelConfig, delay_s: float) -> model_config_pb2.ModelDynamicBatching:
    return model_config_pb2.ModelDynamicBatching(
        preferred_batch_size=config.preferred_batch_sizes,
        max_queue_delay_microseconds=round(delay_s * 1e6),
        default_queue_policy=_queue_policy(config.queue_policy),
    )


def _queue_policy(policy: QueuePolicy) -> model_config_pb2.ModelQueuePolicy | None:
    if policy == QueuePolicy():
        return None
    return model_config_pb2.ModelQueuePolicy(
        default_timeout_microseconds=round(policy.timeout_s * 1e6),
        allow_timeout_override=policy.allow_override,
        max_queue_size=policy.max_items,
    )


def _version_policy(policy: VersionPolicy) -> model_config_pb2.ModelVersionPolicy:
    kinds = model_config_pb2.ModelVersionPolicy
    if policy.specific:
        return kinds(specific=kinds.Specific(versions=policy.specific))
    if policy.latest is None:
        return kinds(all=kinds.All())
    return kinds(latest=kinds.Latest(num_versions=policy.latest))


def _warmup(warmup: Warmup) -> model_config_pb2.ModelWarmup:
    kinds = model_config_pb2.ModelWarmup
    inputs = {}
    for given in warmup.inputs:
        sample = kinds.Input(data_type=data_type_of(given.dtype), dims=given.dims)  # type: ignore[arg-type]
        if given.source == "file":
            sample.input_data_file = given.file
        else:
            setattr(sample, f"{given.source}_data", True)
        inputs[given.name] = sample
    return kinds(name=warmup.name, batch_size=warmup.rows, inputs=inputs, count=warmup.count)
