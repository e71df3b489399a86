"""What models and the server are, as ServerMetadata, ModelMetadata and ModelConfig tell it."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from onnx import TensorProto

from aclserve_server.kserve import inference_pb2 as pb
from aclserve_server.kserve import model_config_pb2
from rpc.v2.v2_server import V2, outputs_of, v2
from serving import elementwise, put_model

TYPES = {
    "BOOL": TensorProto.BOOL,
    "UINT8": TensorProto.UINT8,
    "INT32": TensorProto.INT32,
    "INT64": TensorProto.INT64,
    "FP16": TensorProto.FLOAT16,
    "FP64": TensorProto.DOUBLE,
    "BF16": TensorProto.BFLOAT16,
}

FULL = """
version_policy { all {} }
max_batch_size: 8
input { name: "x" data_type: TYPE_FP32 dims: 4 }
output { name: "y" data_type: TYPE_FP32 dims: 4 label_filename: "labels.txt" }
instance_group { count: 2 kind: KIND_CPU }
dynamic_batching {
  preferred_batch_size: [ 4, 8 ]
  max_queue_delay_microseconds: 300
  default_queue_policy { max_queue_size: 100 default_timeout_microseconds: 2000000 allow_timeout_override: true }
}
parameters { key: "layout" value { string_value: "NCHW" } }
model_warmup { name: "zeros" batch_size: 2 inputs { key: "x" value { data_type: TYPE_FP32 dims: 4 zero_data: true } } }
"""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[V2]:
    root = tmp_path_factory.mktemp("models")
    put_model(root, "plain", elementwise())
    put_model(root, "single", elementwise(), "max_batch_size: 0\n")
    put_model(root, "static", elementwise(shape=(3, 4)))
    put_model(root, "three", elementwise(shape=(3, 4)), "max_batch_size: 3\n")
    put_model(root, "full", elementwise(), FULL, version=1)
    put_model(root, "full", elementwise("Neg"), version=12)
    (root / "full" / "labels.txt").write_text("zero\none\ntwo\nthree\n")
    for name, kind in TYPES.items():
        put_model(root, name.lower(), elementwise(shape=(2,), dtype=kind))
    with v2(root) as up:
        yield up


def metadata(served: V2, name: str, version: str = "") -> Any:
    return served.call("ModelMetadata", pb.ModelMetadataRequest(name=name, version=version))


def config(served: V2, name: str, version: str = "") -> Any:
    return served.call("ModelConfig", pb.ModelConfigRequest(name=name, version=version)).config


def test_the_server(served: V2) -> None:
    told = served.call("ServerMetadata", pb.ServerMetadataRequest())
    assert told.name == "aclserve"
    assert told.version == version("aclserve")
    assert "statistics" in told.extensions
    assert not {"sequence", "cuda_shared_memory", "system_shared_memory", "parameters"} & set(told.extensions)


def test_shared_memory_is_told_where_it_is_on(tmp_path: Path) -> None:
    with v2(tmp_path, system_shared_memory=True) as up:
        told = up.call("ServerMetadata", pb.ServerMetadataRequest())
    assert "system_shared_memory" in told.extensions


@pytest.mark.parametrize(
    ("name", "shape", "max_batch_size", "dims"),
    [
        ("plain", [-1, 4], None, [4]),
        ("single", [-1, 4], 0, [-1, 4]),
        ("static", [3, 4], 0, [3, 4]),
        ("three", [-1, 4], 3, [4]),
        ("full", [-1, 4], 8, [4]),
    ],
)
def test_shapes_with_and_without_a_batch_axis(
    served: V2, name: str, shape: list[int], max_batch_size: int | None, dims: list[int]
) -> None:
    told, configured = metadata(served, name), config(served, name)
    assert [(one.name, one.datatype, list(one.shape)) for one in told.inputs] == [("x", "FP32", shape)]
    assert [(one.name, one.datatype, list(one.shape)) for one in told.outputs] == [("y", "FP32", shape)]
    if max_batch_size is None:
        assert configured.max_batch_size > 0
    else:
        assert configured.max_batch_size == max_batch_size
    assert configured.HasField("dynamic_batching") is (configured.max_batch_size > 0)
    for ours, theirs in ((configured.input, told.inputs), (configured.output, told.outputs)):
        assert [one.name for one in ours] == [one.name for one in theirs]
        assert [list(one.dims) for one in ours] == [dims]
        assert [one.data_type for one in ours] == [model_config_pb2.TYPE_FP32]


@pytest.mark.parametrize("name", TYPES)
def test_datatypes(served: V2, name: str) -> None:
    told, configured = metadata(served, name.lower()), config(served, name.lower())
    assert [one.datatype for one in (*told.inputs, *told.outputs)] == [name, name]
    assert [one.data_type for one in configured.input] == [model_config_pb2.DataType.Value(f"TYPE_{name}")]


def test_versions_and_what_runs_them(served: V2) -> None:
    assert list(metadata(served, "full").versions) == ["1", "12"]
    assert list(metadata(served, "full", "1").versions) == ["1"]
    assert metadata(served, "full").platform == "onnxruntime_onnx"
    assert dict(metadata(served, "full").properties) == {"layout": "NCHW"}
    assert dict(metadata(served, "plain").properties) == {}
    latest, first = served.infer("full"), served.infer("full", version="1")
    assert (latest.model_version, first.model_version) == ("12", "1")
    assert (outputs_of(latest) == -outputs_of(first)).all()


def test_a_configuration_with_everything(served: V2) -> None:
    told = config(served, "full", "1")
    assert (told.name, told.platform, told.default_model_filename) == ("full", "onnxruntime_onnx", "model.onnx")
    assert told.version_policy.WhichOneof("policy_choice") == "all"
    assert [one.count for one in told.instance_group] == [2]
    assert told.output[0].label_filename == "labels.txt"
    batching = told.dynamic_batching
    assert list(batching.preferred_batch_size) == [4, 8]
    assert batching.max_queue_delay_microseconds == 300
    policy = batching.default_queue_policy
    assert (policy.max_queue_size, policy.default_timeout_microseconds) == (100, 2_000_000)
    assert policy.allow_timeout_override
    assert {key: value.string_value for key, value in told.parameters.items()} == {"layout": "NCHW"}
    (warmup,) = told.model_warmup
    assert (warmup.name, warmup.batch_size, warmup.count) == ("zeros", 2, 1)
    assert warmup.inputs["x"].zero_data
    assert not told.model_transaction_policy.decoupled
    assert told.HasField("model_transaction_policy")


def test_a_configuration_of_a_model_without_one(served: V2) -> None:
    told = config(served, "static")
    assert (told.name, told.platform, told.max_batch_size) == ("static", "onnxruntime_onnx", 0)
    assert told.HasField("max_batch_size")
    assert told.version_policy.latest.num_versions == 1
    assert not told.parameters
    assert not told.model_warmup
