"""What the codec knows of the protocol: every field of its messages, checked against the descriptors.

`wire_in.py`, its parts, and `wire_out.py` have these numbers and types written into them. A field that is added,
renumbered or retyped in the proto makes `check_v2_descriptors` fail, at the start of the server and in the tests.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from google.protobuf.descriptor import Descriptor
from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto

from aclserve_server.kserve import inference_pb2

_PACKAGE = "inference."
_ENTRY = "1 string key, 2 InferParameter value"
_TENSOR = "1 string name, 2 string datatype, 3 repeated int64 shape"

KNOWN_FIELDS: Mapping[str, str] = {
    "ModelInferRequest": (
        "1 string model_name, 2 string model_version, 3 string id, "
        "4 repeated ModelInferRequest.ParametersEntry parameters, "
        "5 repeated ModelInferRequest.InferInputTensor inputs, "
        "6 repeated ModelInferRequest.InferRequestedOutputTensor outputs, 7 repeated bytes raw_input_contents"
    ),
    "ModelInferRequest.ParametersEntry": _ENTRY,
    "ModelInferRequest.InferInputTensor": (
        f"{_TENSOR}, 4 repeated ModelInferRequest.InferInputTensor.ParametersEntry parameters, "
        "5 InferTensorContents contents"
    ),
    "ModelInferRequest.InferInputTensor.ParametersEntry": _ENTRY,
    "ModelInferRequest.InferRequestedOutputTensor": (
        "1 string name, 2 repeated ModelInferRequest.InferRequestedOutputTensor.ParametersEntry parameters"
    ),
    "ModelInferRequest.InferRequestedOutputTensor.ParametersEntry": _ENTRY,
    "InferParameter": (
        "1 bool bool_param, 2 int64 int64_param, 3 string string_param, 4 double double_param, 5 uint64 uint64_param"
    ),
    "InferTensorContents": (
        "1 repeated bool bool_contents, 2 repeated int32 int_contents, 3 repeated int64 int64_contents, "
        "4 repeated uint32 uint_contents, 5 repeated uint64 uint64_contents, 6 repeated float fp32_contents, "
        "7 repeated double fp64_contents, 8 repeated bytes bytes_contents"
    ),
    "ModelStreamInferResponse": "1 string error_message, 2 ModelInferResponse infer_response",
    "ModelInferResponse": (
        "1 string model_name, 2 string model_version, 3 string id, "
        "4 repeated ModelInferResponse.ParametersEntry parameters, "
        "5 repeated ModelInferResponse.InferOutputTensor outputs, 6 repeated bytes raw_output_contents"
    ),
    "ModelInferResponse.ParametersEntry": _ENTRY,
    "ModelInferResponse.InferOutputTensor": (
        f"{_TENSOR}, 4 repeated ModelInferResponse.InferOutputTensor.ParametersEntry parameters, "
        "5 InferTensorContents contents"
    ),
    "ModelInferResponse.InferOutputTensor.ParametersEntry": _ENTRY,
}
"""Message -> its fields, in order of number. Messages of the protocol's package go without its name."""

_ONEOFS: Mapping[str, str] = {"InferParameter": "bool_param int64_param string_param double_param uint64_param"}

HOT_MESSAGES: tuple[Any, ...] = (
    inference_pb2.ModelInferRequest.DESCRIPTOR,
    inference_pb2.ModelStreamInferResponse.DESCRIPTOR,
)
"""The messages the codec reads and writes; those within them follow from these."""


def check_v2_descriptors(messages: Iterable[Any] = HOT_MESSAGES) -> None:
    """Compares what the codec knows with the generated descriptors, from `messages` down.

    Raises RuntimeError, which names what differs.
    """
    waiting = list(messages)
    seen: set[str] = set()
    while waiting:
        descriptor = waiting.pop()
        name = descriptor.full_name.removeprefix(_PACKAGE)
        if name in seen:
            continue
        seen.add(name)
        known, actual = KNOWN_FIELDS.get(name, "nothing"), fields_of(descriptor)
        if known != actual:
            raise RuntimeError(f"the v2 codec knows other fields of {name} than its descriptor: {known} / {actual}")
        oneofs = "; ".join(" ".join(field.name for field in oneof.fields) for oneof in descriptor.oneofs)
        if oneofs != _ONEOFS.get(name, ""):
            raise RuntimeError(f"the v2 codec knows other oneofs of {name} than its descriptor: {oneofs}")
        waiting.extend(field.message_type for field in descriptor.fields if field.message_type is not None)


def fields_of(descriptor: Descriptor) -> str:
    """The fields of a message in the form of `KNOWN_FIELDS`."""
    message = DescriptorProto()
    descriptor.CopyToProto(message)
    return ", ".join(_field(field) for field in sorted(message.field, key=lambda field: field.number))


def _field(field: FieldDescriptorProto) -> str:
    repeated = "repeated " if field.label == FieldDescriptorProto.LABEL_REPEATED else ""
    kind = FieldDescriptorProto.Type.Name(field.type).removeprefix("TYPE_").lower()
    if field.type == FieldDescriptorProto.TYPE_MESSAGE:
        kind = field.type_name.removeprefix(".").removeprefix(_PACKAGE)
    return f"{field.number} {repeated}{kind} {field.name}"
