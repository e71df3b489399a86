"""Values of the client <-> messages of aclserve.v1. Pure functions; what goes in or out of a stub passes here."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Any, TypeVar, cast

import numpy as np
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from numpy.typing import NDArray

from aclserve.errors import InvalidArgument
from aclserve.tensors import DTYPES, array_from_tensor, data_type_of, tensor_from_array
from aclserve.v1 import device_pb2, memory_pb2, model_pb2, tensor_pb2
from aclserve_client import data, stream_data
from aclserve_client.errors import error_from_item, seconds_of
from aclserve_client.shared_memory import RegionRef
from aclserve_client.usage import ModelUsage

_E = TypeVar("_E", bound=StrEnum)

ENUMS: Mapping[type[StrEnum], Any] = {
    data.RunMode: device_pb2.RunMode,
    data.ModelState: model_pb2.ModelState,
    data.ExecutionMode: model_pb2.ExecutionMode,
    data.MemoryOwner: model_pb2.MemoryOwner,
    data.Batching: model_pb2.Batching,
    data.ResultOrder: model_pb2.ResultOrder,
    stream_data.FramePolicy: model_pb2.FramePolicy,
    stream_data.StreamPreset: model_pb2.StreamPreset,
    stream_data.Priority: model_pb2.Priority,
    stream_data.DropReason: model_pb2.DropReason,
    data.MemorySpace: memory_pb2.MemorySpace,
    data.AllocationPolicy: memory_pb2.AllocationPolicy,
    data.MemoryAttribute: memory_pb2.MemoryAttribute,
}
"""The client's enums and those of the wire. A member's value is the wire's name without its prefix, in lower case."""


def enum_to_wire(cls: type[_E], value: _E | str) -> Any:
    """The wire's number. Raises `InvalidArgument`, reason CHOICE_UNKNOWN, for a value that is none of the enum's."""
    try:
        member = cls(value)
    except ValueError:
        choices = ", ".join(member.value for member in cls)
        raise InvalidArgument(f"{cls.__name__} {value!r} is none of {choices}", reason="CHOICE_UNKNOWN") from None
    wire = ENUMS[cls]
    return wire.Value(_prefix(wire) + member.value.upper())


def enum_from_wire(cls: type[_E], number: int) -> _E:
    """The enum's member; a number that a newer server sends is "unspecified"."""
    wire = ENUMS[cls]
    try:
        return cls(wire.Name(number).removeprefix(_prefix(wire)).lower())
    except ValueError:
        return cls("unspecified")


def _prefix(wire: Any) -> str:
    return str(wire.Name(0)).removesuffix("UNSPECIFIED")


def dtype_name(data_type: int) -> str:
    """The name of a data type of the wire, "float32" for DATA_TYPE_FLOAT32."""
    try:
        return tensor_pb2.DataType.Name(tensor_pb2.DataType.ValueType(data_type)).removeprefix("DATA_TYPE_").lower()
    except ValueError:
        return f"unknown({data_type})"


_DATA_TYPES: Mapping[str, tensor_pb2.DataType] = {
    dtype_name(number): cast("tensor_pb2.DataType", number) for number in DTYPES
}


def data_type_from_name(dtype: Any) -> tensor_pb2.DataType:
    """The wire's data type of a dtype's name, or of anything that numpy takes for a dtype."""
    if isinstance(dtype, str) and dtype in _DATA_TYPES:
        return _DATA_TYPES[dtype]
    try:
        return data_type_of(np.dtype(dtype))
    except TypeError:
        raise InvalidArgument(f"{dtype!r} is not a data type", reason="DATA_TYPE_UNSUPPORTED") from None


def duration_to_wire(seconds: float | None) -> Duration | None:
    """A Duration, or None for None."""
    if seconds is None:
        return None
    nanos = round(seconds * 1e9)
    return Duration(seconds=nanos // 1_000_000_000, nanos=nanos % 1_000_000_000)


def tensor_to_wire(name: str, value: data.Input) -> tensor_pb2.Tensor:
    """One input. Raises TypeError for a value that cannot be one."""
    match value:
        case np.ndarray():
            return tensor_from_array(name, value)
        case data.Typed():
            return tensor_from_array(name, value.array, data_type_from_name(value.dtype))
        case np.generic():
            return tensor_from_array(name, np.asarray(value))
        case data.BufferRef():
            tensor = _tensor(name, value.dtype, value.shape)
            tensor.buffer.CopyFrom(_slice_to_wire(value))
        case RegionRef():
            data_type = cast("tensor_pb2.DataType", value.data_type)
            tensor = tensor_pb2.Tensor(name=name, data_type=data_type, shape=value.shape, region=_region_to_wire(value))
        case data.Zeros():
            tensor = _tensor(name, value.dtype, value.shape)
            tensor.fill.pattern = tensor_pb2.FILL_PATTERN_ZEROS
        case data.Random():
            tensor = _tensor(name, value.dtype, value.shape)
            tensor.fill.pattern = tensor_pb2.FILL_PATTERN_RANDOM
            tensor.fill.seed = value.seed
        case _:
            raise TypeError(
                f"input {name!r} is a {type(value).__name__}; pass a numpy array, BufferRef, Zeros, Random or Typed"
            )
    return tensor


def _tensor(name: str, dtype: str, shape: tuple[int, ...]) -> tensor_pb2.Tensor:
    return tensor_pb2.Tensor(name=name, data_type=data_type_from_name(dtype), shape=shape)


def _slice_to_wire(ref: data.BufferRef) -> tensor_pb2.BufferSlice:
    return tensor_pb2.BufferSlice(buffer_id=ref.buffer_id, offset_bytes=ref.offset_bytes, length_bytes=ref.length_bytes)


def _region_to_wire(ref: RegionRef) -> tensor_pb2.RegionSlice:
    return tensor_pb2.RegionSlice(region_id=ref.region_id, offset_bytes=ref.offset_bytes, length_bytes=ref.length_bytes)


def outputs_to_wire(outputs: data.OutputChoice) -> list[model_pb2.OutputRequest]:
    """Which outputs to return, and where to."""
    if outputs is None:
        return []
    if isinstance(outputs, str):
        raise TypeError(f"outputs is the text {outputs!r}; pass a list of names or a mapping")
    if not isinstance(outputs, Mapping):
        return [model_pb2.OutputRequest(name=name) for name in outputs]
    return [
        model_pb2.OutputRequest(name=name, region=_region_to_wire(ref))
        if isinstance(ref, RegionRef)
        else model_pb2.OutputRequest(name=name, buffer=None if ref is None else _slice_to_wire(ref))
        for name, ref in outputs.items()
    ]


def item_fields(item: data.Item) -> dict[str, Any]:
    """The fields that InferRequest and InferItem have in common."""
    return {
        "id": item.id,
        "model": item.model,
        "version": item.version,
        "inputs": [tensor_to_wire(name, value) for name, value in item.inputs.items()],
        "outputs": outputs_to_wire(item.outputs),
        "timeout": duration_to_wire(item.max_wait),
        "capture_time": _timestamp(item.capture_time_ns),
        "priority": _priority(item.priority),
    }


def _priority(priority: stream_data.Priority | str) -> Any:
    """The wire's number; most items leave it to their stream."""
    return 0 if priority == "unspecified" else enum_to_wire(stream_data.Priority, priority)


def inline_bytes(item: data.Item) -> int:
    """Bytes of the inputs that travel with the item: what counts in a window of bytes."""
    size = 0
    for value in item.inputs.values():
        array = value.array if isinstance(value, data.Typed) else value
        if isinstance(array, _ARRAYS):
            size += array.nbytes
    return size


def size_bound(item: data.Item) -> int:
    """Bytes of the item's message at the most. Measuring the message itself would cost as much as serialising it."""
    size = 128 + 4 * (len(item.id) + len(item.model))
    for name, value in item.inputs.items():
        array = value.array if isinstance(value, data.Typed) else value
        inline = array.nbytes + 10 * array.ndim if isinstance(array, _ARRAYS) else _MADE_BYTES
        size += 64 + 4 * len(name) + inline
    if item.outputs is not None:
        size += sum(_MADE_BYTES + 4 * len(name) for name in item.outputs)
    return size


_ARRAYS = (np.ndarray, np.generic)
_MADE_BYTES = 512
"""Room for a tensor or output whose bytes are elsewhere: ids, offsets, at most 32 dimensions."""


def _timestamp(time_ns: int | None) -> Timestamp | None:
    if time_ns is None:
        return None
    return Timestamp(seconds=time_ns // 1_000_000_000, nanos=time_ns % 1_000_000_000)


def result_from_wire(
    message: model_pb2.InferResponse | model_pb2.InferResult,
    read: Callable[[tensor_pb2.Tensor], NDArray[Any]] = array_from_tensor,
) -> data.Result:
    """The answer to one item, of Infer or of a stream. `read` makes arrays of outputs in shared memory."""
    error, dropped = None, None
    if isinstance(message, model_pb2.InferResult):
        match message.WhichOneof("outcome"):
            case "error":
                error = error_from_item(message.error)
            case "dropped":
                reason = enum_from_wire(stream_data.DropReason, message.dropped.reason)
                dropped = stream_data.Dropped(reason, message.dropped.age_ns)
    outputs, buffers = {}, {}
    for tensor in message.outputs.tensors:
        match tensor.WhichOneof("source"):
            case "buffer":
                buffers[tensor.name] = _ref_from_wire(tensor)
            case "region":
                outputs[tensor.name] = read(tensor)
            case _:
                outputs[tensor.name] = array_from_tensor(tensor)
    captured = message.capture_time
    return data.Result(
        id=message.id,
        outputs=outputs,
        buffers=buffers,
        timing=_timing(message.timing) if message.HasField("timing") else None,
        error=error,
        capture_time_ns=captured.seconds * 1_000_000_000 + captured.nanos if message.HasField("capture_time") else None,
        dropped=dropped,
    )


def _ref_from_wire(tensor: tensor_pb2.Tensor) -> data.BufferRef:
    where = tensor.buffer
    return data.BufferRef(
        where.buffer_id, tuple(tensor.shape), dtype_name(tensor.data_type), where.offset_bytes, where.length_bytes
    )


def _timing(timing: model_pb2.Timing) -> data.Timing:
    return data.Timing(
        wait_ns=timing.wait_ns,
        copy_in_ns=timing.copy_in_ns,
        execute_ns=timing.execute_ns,
        copy_out_ns=timing.copy_out_ns,
        total_ns=timing.total_ns,
        batch_rows=timing.batch_rows,
        gear_rows=timing.gear_rows,
        position=timing.position,
        queue_rows=timing.queue_rows,
    )


def device_from_wire(device: device_pb2.Device) -> data.DeviceInfo:
    return data.DeviceInfo(
        id=device.id,
        soc_name=device.soc_name,
        run_mode=enum_from_wire(data.RunMode, device.run_mode),
        emulated=device.emulated,
        memory=tuple(data.MemoryUsage(m.kind.lower(), m.free_bytes, m.total_bytes) for m in device.memory),
        utilization_percent=device.utilization_percent if device.HasField("utilization_percent") else None,
    )


def server_info_from_wire(info: device_pb2.GetServerInfoResponse) -> data.ServerInfo:
    limits = info.limits
    return data.ServerInfo(
        version=info.version,
        acl_version=info.acl_version,
        features=tuple(info.features),
        limits=data.Limits(
            max_message_bytes=limits.max_message_bytes,
            max_queue_rows=limits.max_queue_rows,
            max_stream_items=limits.max_stream_items,
            max_leases=limits.max_leases,
            max_lease_device_bytes=limits.max_lease_device_bytes,
            max_lease_host_bytes=limits.max_lease_host_bytes,
            max_lease_ttl_s=seconds_of(limits.max_lease_ttl),
            max_upload_bytes=limits.max_upload_bytes,
            max_stream_bytes=limits.max_stream_bytes,
            max_regions=limits.max_regions,
            max_lease_buffers=limits.max_lease_buffers,
            max_metadata_bytes=limits.max_metadata_bytes,
            max_connection_calls=limits.max_connection_calls,
            max_item_id_bytes=limits.max_item_id_bytes,
            max_item_inputs=limits.max_item_inputs,
            max_item_outputs=limits.max_item_outputs,
            max_dimensions=limits.max_dimensions,
            max_text_bytes=limits.max_text_bytes,
            max_fill_bytes=limits.max_fill_bytes,
            max_page_size=limits.max_page_size,
            max_region_name_bytes=limits.max_region_name_bytes,
            max_config_bytes=limits.max_config_bytes,
            max_load_parameters=limits.max_load_parameters,
            max_health_watchers=limits.max_health_watchers,
            min_lease_ttl_s=seconds_of(limits.min_lease_ttl),
        ),
        uptime_s=seconds_of(info.uptime),
        principal=info.caller.principal,
        groups=tuple(info.caller.groups),
    )


def model_from_wire(model: model_pb2.Model) -> data.ModelInfo:
    return data.ModelInfo(model.name, model.version, enum_from_wire(data.ModelState, model.state), model.reason)


def description_from_wire(description: model_pb2.ModelDescription) -> data.ModelDescription:
    model, usage = description.model, description.usage
    return data.ModelDescription(
        name=model.name,
        version=model.version,
        state=enum_from_wire(data.ModelState, model.state),
        reason=model.reason,
        inputs=tuple(_spec(spec) for spec in description.inputs),
        outputs=tuple(_spec(spec) for spec in description.outputs),
        gears=tuple(data.Gear(gear.kind, tuple(gear.values)) for gear in description.gears),
        batching=enum_from_wire(data.Batching, description.batching),
        batching_reason=description.batching_reason,
        max_rows=description.max_rows,
        execution_mode=enum_from_wire(data.ExecutionMode, description.execution_mode),
        memory_owner=enum_from_wire(data.MemoryOwner, description.memory_owner),
        max_queue_delay_s=seconds_of(description.max_queue_delay),
        slots=description.slots,
        work_bytes=description.work_bytes,
        weight_bytes=description.weight_bytes,
        sample_json=description.sample_json,
        parameters=dict(description.parameters),
        usage=ModelUsage(usage.grpcurl, usage.ghz, usage.python, usage.python_v2),
    )


def _spec(spec: model_pb2.TensorSpec) -> data.TensorSpec:
    return data.TensorSpec(spec.name, dtype_name(spec.data_type), tuple(spec.shape), spec.format, spec.max_bytes)


def lease_from_wire(lease: memory_pb2.Lease) -> data.LeaseInfo:
    return data.LeaseInfo(
        id=lease.id,
        ttl_s=seconds_of(lease.ttl),
        remaining_s=seconds_of(lease.remaining),
        device_bytes=lease.device_bytes,
        device_quota_bytes=lease.device_quota_bytes,
        host_bytes=lease.host_bytes,
        host_quota_bytes=lease.host_quota_bytes,
    )


def buffer_from_wire(buffer: memory_pb2.Buffer) -> data.BufferInfo:
    return data.BufferInfo(
        id=buffer.id,
        space=enum_from_wire(data.MemorySpace, buffer.space),
        size_bytes=buffer.size_bytes,
        policy=enum_from_wire(data.AllocationPolicy, buffer.policy),
        pins=buffer.pins,
    )


def usage_from_wire(usage: memory_pb2.MemoryUsage) -> data.MemoryUsage:
    kind = enum_from_wire(data.MemoryAttribute, usage.attribute).value
    return data.MemoryUsage(kind, usage.free_bytes, usage.total_bytes)


def byte_count(tensor: tensor_pb2.Tensor) -> int:
    """Bytes of a tensor of that type and shape. Every dimension must be 0 or more."""
    if any(dim < 0 for dim in tensor.shape):
        raise InvalidArgument(f"shape {list(tensor.shape)} has a negative dimension", reason="SHAPE_MISMATCH")
    return DTYPES[tensor.data_type].itemsize * math.prod(tensor.shape)
