"""Our proto and our codec against what Triton's own client sends and knows (golden/make.py makes the files)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf import descriptor_pb2, json_format

from aclserve_server.kserve import inference_pb2, model_config_pb2
from aclserve_server.rpc.v2.datatypes import DATATYPES, SERVED
from aclserve_server.rpc.v2.wire_in import V2Item, scan_model_infer_request
from aclserve_server.rpc.v2.wire_templates import REQUESTS

GOLDEN = Path(__file__).parent / "golden"
REQUEST_FILES = sorted(GOLDEN.glob("*.bin"))
FIELDS: dict[str, dict[str, str]] = json.loads((GOLDEN / "fields.json").read_text(encoding="utf-8"))
READ: dict[str, Any] = json.loads((GOLDEN / "requests.json").read_text(encoding="utf-8"))

NOT_HERE = {"optimization", "sequence_batching", "ensemble_scheduling", "model_operations", "batch_input"} | {
    "batch_output",
    "model_repository_agents",
    "model_metrics",
}
"""Fields of ModelConfig that model_config.proto leaves out."""

PROPERTIES = "inference.ModelMetadataResponse.PropertiesEntry"
"""Of the standard; Triton has no such field."""

FLOATS = np.array([-1.5, 0, 1e30], np.float32).tobytes()


def item(name: str) -> V2Item:
    """A golden request, read by the codec: walked, walked and learned, and by its template, all the same."""
    message = (GOLDEN / f"{name}.bin").read_bytes()
    REQUESTS.clear()
    items = [scan_model_infer_request(message) for _ in range(3)]
    first = items[0]
    for other in items[1:]:
        assert (other.client_id, other.model, other.version) == (first.client_id, first.model, first.version)
        assert [tensor.data for tensor in other.inputs] == [tensor.data for tensor in first.inputs]
        assert (None if other.error is None else str(other.error)) == (first.error and str(first.error))
    return items[-1]


def messages(file: Any) -> list[Any]:
    waiting, found = list(file.message_types_by_name.values()), []
    while waiting:
        found.append(waiting.pop())
        waiting += found[-1].nested_types
    return found


def described(field: Any, proto: descriptor_pb2.FieldDescriptorProto) -> str:
    """A field as fields.json has it."""
    kind = field.message_type or field.enum_type
    oneof = field.containing_oneof
    where = f" of {oneof.name}" if oneof is not None and not oneof.name.startswith("_") else ""
    many = "repeated " if proto.label == proto.LABEL_REPEATED else ""
    return f"{field.number} {many}{kind.full_name if kind else field.type}{where}"


@pytest.mark.parametrize(
    "message",
    [
        message
        for file in (inference_pb2, model_config_pb2)
        for message in messages(file.DESCRIPTOR)
        if message.full_name != PROPERTIES
    ],
    ids=lambda message: message.full_name,
)
def test_every_field_is_the_clients(message: Any) -> None:
    proto = descriptor_pb2.DescriptorProto()
    message.CopyToProto(proto)
    ours = {field.name: described(field, copy) for field, copy in zip(message.fields, proto.field, strict=True)}
    theirs = FIELDS[message.full_name]
    if message.full_name == "inference.ModelMetadataResponse":
        assert ours.pop("properties") == f"6 repeated {PROPERTIES}"
    left_out = set(theirs) - set(ours)
    if message.file is inference_pb2.DESCRIPTOR:
        assert not left_out
    elif message.full_name == "inference.ModelConfig":
        assert left_out == NOT_HERE
    elif message.full_name == "inference.ModelInstanceGroup":
        assert left_out == {"secondary_devices"}
    assert ours == {name: number for name, number in theirs.items() if name not in left_out}


def test_every_message_enum_value_and_rpc_of_inference_is_there() -> None:
    ours = {message.full_name for file in (inference_pb2, model_config_pb2) for message in messages(file.DESCRIPTOR)}
    methods = inference_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods
    assert FIELDS["rpcs"] == {
        method.name: f"{method.input_type.full_name} {method.output_type.full_name}" for method in methods
    }
    for message in messages(inference_pb2.DESCRIPTOR) + messages(model_config_pb2.DESCRIPTOR):
        for enum in message.enum_types:
            assert FIELDS[enum.full_name] == {value.name: str(value.number) for value in enum.values}
    data_type = model_config_pb2.DESCRIPTOR.enum_types_by_name["DataType"]
    assert FIELDS[data_type.full_name] == {value.name: str(value.number) for value in data_type.values}
    wanted = {name for name in FIELDS if name.startswith(("inference.Model", "inference.Infer", "inference.Trace"))}
    absent = {name.split(".")[1] for name in wanted - ours if not name.rpartition(".")[2][0].islower()}
    assert absent <= {
        "ModelOptimizationPolicy",
        "ModelSequenceBatching",
        "ModelEnsembling",
        "ModelOperations",
        "ModelRepositoryAgents",
        "ModelMetrics",
        # enums, and entries of what is left out
        "ModelInput",
        "ModelInstanceGroup",
        "ModelQueuePolicy",
    }


@pytest.mark.parametrize("path", REQUEST_FILES, ids=lambda path: path.stem)
def test_our_stubs_read_what_the_clients_stubs_read(path: Path) -> None:
    read = json_format.MessageToDict(inference_pb2.ModelInferRequest.FromString(path.read_bytes()))
    assert read == READ[path.stem]


@pytest.mark.parametrize("datatype", SERVED)
def test_a_tensor_of_each_datatype(datatype: str) -> None:
    found = item(f"datatype_{datatype.lower()}")
    assert found.error is None
    (tensor,) = found.inputs
    assert (tensor.name, tensor.dtype, tensor.shape) == ("x", DATATYPES[datatype].dtype, (1, 3))
    assert tensor.data is not None
    assert tensor.data.nbytes == 3 * tensor.dtype.itemsize
    if DATATYPES[datatype].contents:
        typed = item(f"typed_{datatype.lower()}")
        assert typed.error is None
        assert typed.inputs[0].data == tensor.data


def test_strings_are_refused() -> None:
    error = item("datatype_bytes").error
    assert error is not None
    assert error.reason == "DATA_TYPE_UNSUPPORTED"
    assert "holds no strings" in str(error)


def test_ids_versions_and_options() -> None:
    assert (item("plain").client_id, item("plain").version, item("plain").timeout_s) == ("", 0, None)
    assert item("with_id").client_id == "frame-000001"
    assert (item("with_version").client_id, item("with_version").version) == ("\u00e9\U0001f600", 3)
    found = item("options")
    assert (found.timeout_s, found.priority, found.client_id, found.error) == (0.25, 3, "7", None)


def test_inputs_outputs_and_regions() -> None:
    two = item("two_inputs")
    assert [(tensor.name, bytes(tensor.data or b"")) for tensor in two.inputs] == [
        ("x", FLOATS),
        ("y", np.array([-(2**63), 0, 2**63 - 1], np.int64).tobytes()),
    ]
    empty = item("no_elements")
    assert (empty.error, empty.inputs[0].shape, empty.inputs[0].data) == (None, (0, 4), memoryview(b""))
    wanted = item("outputs")
    assert ([output.name for output in wanted.outputs], wanted.top_k) == (["a", "b"], {"b": 3})
    placed = item("region_and_raw")
    assert placed.error is None
    first, second = placed.inputs
    assert first.data is None
    assert first.region is not None
    assert (first.region.name, first.region.offset_bytes, first.region.length_bytes) == ("in0", 64, 12)
    assert (second.region, second.data) == (None, memoryview(FLOATS))
    places = [output.region for output in placed.outputs]
    assert [place and (place.name, place.offset_bytes, place.length_bytes) for place in places] == [
        ("out0", 0, 40),
        ("out0", 40, 40),
    ]


@pytest.mark.parametrize(
    ("name", "reason", "word"),
    [
        ("sequence", "SEQUENCES_UNSUPPORTED", "sequence_id"),
        ("sequence_text", "SEQUENCES_UNSUPPORTED", "sequence_"),
        ("parameters", "PARAMETER_UNKNOWN", "mode"),
    ],
)
def test_what_has_no_meaning_here_is_refused(name: str, reason: str, word: str) -> None:
    found = item(name)
    assert found.error is not None
    assert (found.error.reason, found.model) == (reason, "m")
    assert word in str(found.error) or "level" in str(found.error) or "exact" in str(found.error)
