"""What the codec knows of the contract: every field of the hot messages, checked against the descriptors.

`wire.py` and `wire_out.py` have these numbers and types written into them. A field that is added, renumbered or
retyped in the protos makes `check_descriptors` fail, at the start of the server and in the tests, until the codec has
learned it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from google.protobuf.descriptor import Descriptor
from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto

from aclserve.v1 import model_pb2

_PACKAGE = "aclserve.v1."
_TENSOR_FIELDS = (
    "1 string name, 2 enum data_type, 3 repeated int64 shape, 4 bytes data, 5 BufferSlice buffer, 6 Fill fill, "
    "7 RegionSlice region"
)
_ITEM_FIELDS = (
    "1 string id, 2 string model, 3 repeated Tensor inputs, 4 repeated OutputRequest outputs, "
    "5 google.protobuf.Duration timeout, 6 google.protobuf.Timestamp capture_time, 7 uint64 version, "
    "8 enum priority"
)
_SECONDS_AND_NANOS = "1 int64 seconds, 2 int32 nanos"

KNOWN_FIELDS: Mapping[str, str] = {
    "Tensor": _TENSOR_FIELDS,
    "BufferSlice": "1 string buffer_id, 2 uint64 offset_bytes, 3 uint64 length_bytes",
    "RegionSlice": "1 string region_id, 2 uint64 offset_bytes, 3 uint64 length_bytes",
    "Fill": "1 enum pattern, 2 uint64 seed",
    "OutputRequest": "1 string name, 2 BufferSlice buffer, 3 RegionSlice region",
    "InferRequest": _ITEM_FIELDS,
    "InferItem": _ITEM_FIELDS,
    "InferResponse": "1 string id, 2 Outputs outputs, 4 Timing timing, 5 google.protobuf.Timestamp capture_time",
    "InferResult": (
        "1 string id, 2 Outputs outputs, 3 ItemError error, 4 Timing timing, 5 google.protobuf.Timestamp capture_time, "
        "6 Dropped dropped"
    ),
    "Dropped": "1 enum reason, 2 uint64 age_ns",
    "Outputs": "1 repeated Tensor tensors",
    "Timing": (
        "1 uint64 wait_ns, 2 uint64 copy_in_ns, 3 uint64 execute_ns, 4 uint64 copy_out_ns, 5 uint64 total_ns, "
        "6 uint32 batch_rows, 7 uint32 gear_rows, 8 uint32 position, 9 uint32 queue_rows"
    ),
    "ItemError": (
        "1 int32 code, 2 string reason, 3 string message, 4 repeated ItemError.MetadataEntry metadata, "
        "5 google.protobuf.Duration retry_delay"
    ),
    "ItemError.MetadataEntry": "1 string key, 2 string value",
    "StreamInferRequest": "1 StreamConfig config, 2 ItemList items, 3 CancelItems cancel",
    "StreamConfig": (
        "1 string model, 2 enum order, 3 uint32 max_pending_items, 4 uint64 version, 5 enum policy, "
        "6 uint64 max_pending_bytes, 7 google.protobuf.Duration max_age, 8 enum preset, 9 enum priority"
    ),
    "ItemList": "1 repeated InferItem items",
    "CancelItems": "1 repeated string ids",
    "StreamInferResponse": (
        "1 StreamReady ready, 2 ResultList results, 3 StreamWindow window, 4 GoingAway going_away, "
        "5 StreamSummary summary"
    ),
    "StreamReady": (
        "1 enum order, 2 uint32 max_pending_items, 3 uint64 max_message_bytes, 4 enum policy, "
        "5 uint64 max_pending_bytes, 6 google.protobuf.Duration max_age, 7 enum priority"
    ),
    "StreamWindow": "1 uint32 max_pending_items, 2 uint64 max_pending_bytes",
    "ResultList": "1 repeated InferResult results",
    "GoingAway": "1 string last_accepted_id",
    "StreamSummary": (
        "1 uint64 received_items, 2 uint64 succeeded_items, 3 uint64 failed_items, 4 uint64 dropped_items, "
        "5 repeated StreamSummary.DropsEntry drops"
    ),
    "StreamSummary.DropsEntry": "1 string key, 2 uint64 value",
    "google.protobuf.Duration": _SECONDS_AND_NANOS,
    "google.protobuf.Timestamp": _SECONDS_AND_NANOS,
}
"""Message -> its fields, in order of number. Messages of the contract's own package go without its name."""

_ONEOFS: Mapping[str, tuple[str, ...]] = {
    "Tensor": ("data", "buffer", "fill", "region"),
    "InferResult": ("outputs", "error", "dropped"),
    "StreamInferRequest": ("config", "items", "cancel"),
    "StreamInferResponse": ("ready", "results", "window", "going_away", "summary"),
}

HOT_MESSAGES: tuple[Any, ...] = (
    model_pb2.InferRequest.DESCRIPTOR,
    model_pb2.InferResponse.DESCRIPTOR,
    model_pb2.StreamInferRequest.DESCRIPTOR,
    model_pb2.StreamInferResponse.DESCRIPTOR,
)
"""The messages the codec reads and writes; those within them follow from these."""

_TYPES: Mapping[int, str] = {
    FieldDescriptorProto.TYPE_STRING: "string",
    FieldDescriptorProto.TYPE_BYTES: "bytes",
    FieldDescriptorProto.TYPE_ENUM: "enum",
    FieldDescriptorProto.TYPE_INT32: "int32",
    FieldDescriptorProto.TYPE_INT64: "int64",
    FieldDescriptorProto.TYPE_UINT32: "uint32",
    FieldDescriptorProto.TYPE_UINT64: "uint64",
}


def check_descriptors(messages: Iterable[Any] = HOT_MESSAGES) -> None:
    """Compares what the codec knows with the generated descriptors, from `messages` down.

    Raises RuntimeError, which names what differs.
    """
    waiting = list(messages)
    seen: set[str] = set()
    while waiting:
        descriptor = waiting.pop()
        name = _short(descriptor)
        if name in seen:
            continue
        seen.add(name)
        known, actual = KNOWN_FIELDS.get(name, "nothing"), fields_of(descriptor)
        if known != actual:
            raise RuntimeError(f"the wire codec knows other fields of {name} than its descriptor: {known} / {actual}")
        oneofs = tuple(tuple(field.name for field in oneof.fields) for oneof in descriptor.oneofs)
        if oneofs != ((_ONEOFS[name],) if name in _ONEOFS else ()):
            raise RuntimeError(f"the wire codec knows other oneofs of {name} than its descriptor: {oneofs}")
        waiting.extend(field.message_type for field in descriptor.fields if field.message_type is not None)


def fields_of(descriptor: Descriptor) -> str:
    """The fields of a message in the form of `KNOWN_FIELDS`."""
    message = DescriptorProto()
    descriptor.CopyToProto(message)
    return ", ".join(_field(field) for field in sorted(message.field, key=lambda field: field.number))


def _field(field: FieldDescriptorProto) -> str:
    repeated = "repeated " if field.label == FieldDescriptorProto.LABEL_REPEATED else ""
    kind = _TYPES.get(field.type, f"type {field.type}")
    if field.type == FieldDescriptorProto.TYPE_MESSAGE:
        kind = field.type_name.removeprefix(".").removeprefix(_PACKAGE)
    return f"{field.number} {repeated}{kind} {field.name}"


def _short(descriptor: Descriptor) -> str:
    return descriptor.full_name.removeprefix(_PACKAGE)
