"""Configurations as they lie beside ONNX models in repositories made for Triton: each is served without a change."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aclserve_server.kserve import inference_pb2 as pb
from aclserve_server.rpc.v2.datatypes import DATATYPES, datatype_of
from e2e.cases import assert_close, copy_model, plain_case
from rpc.v2.v2_server import V2, v2

CONFIGS = {
    # A classifier of a fixed shape that has its batch axis in `reshape`.
    "light_squeezenet": """
        name: "light_squeezenet"
        platform: "onnxruntime_onnx"
        max_batch_size : 0
        input [
          { name: "data_0" data_type: TYPE_FP32 format: FORMAT_NCHW dims: [ 3, 224, 224 ]
            reshape { shape: [ 1, 3, 224, 224 ] } }
        ]
        output [
          { name: "softmaxout_1" data_type: TYPE_FP32 dims: [ 1000 ] reshape { shape: [ 1, 1000, 1, 1 ] }
            label_filename: "labels.txt" }
        ]
    """,
    # Full shapes, an accelerator, graph optimisation.
    "ultraface_rfb_320": """
        platform: "onnxruntime_onnx"
        max_batch_size: 0
        input [ { name: "input", data_type: TYPE_FP32, dims: [ 1, 3, 240, 320 ] } ]
        output [
          { name: "scores", data_type: TYPE_FP32, dims: [ 1, 4420, 2 ] },
          { name: "boxes", data_type: TYPE_FP32, dims: [ 1, 4420, 4 ] }
        ]
        instance_group [ { kind: KIND_CPU count: 1 } ]
        optimization {
          graph : { level : 1 }
          execution_accelerators {
            gpu_execution_accelerator : [ {
              name : "tensorrt"
              parameters { key: "precision_mode" value: "FP16" }
              parameters { key: "max_workspace_size_bytes" value: "1073741824" }
            } ]
          }
        }
        parameters { key: "intra_op_thread_count" value: { string_value: "2" } }
    """,
    # One row at a time, the batch axis not stated.
    "mnist": """
        name: "mnist"
        backend: "onnxruntime"
        max_batch_size: 1
        input [ { name: "Input3" data_type: TYPE_FP32 dims: [ 1, 28, 28 ] } ]
        output [ { name: "Plus214_Output_0" data_type: TYPE_FP32 dims: [ 10 ] } ]
        version_policy: { all { }}
    """,
    # Rows, batched while they come.
    "magika_v3_3": """
        backend: "onnxruntime"
        max_batch_size: 16
        input { name: "bytes" data_type: TYPE_INT32 dims: 2048 }
        output { name: "target_label" data_type: TYPE_FP32 dims: 214 }
        instance_group { count: 2 kind: KIND_GPU gpus: 0 }
        dynamic_batching { preferred_batch_size: 8 preferred_batch_size: 16 max_queue_delay_microseconds: 500 }
        model_warmup {
          name: "first" batch_size: 16
          inputs { key: "bytes" value: { data_type: TYPE_INT32 dims: [ 2048 ] random_data: true } }
        }
    """,
    # A scalar for each row, which Triton writes as one element.
    "dynamic_axes_sum": """
        max_batch_size: 32
        input [ { name: "input_vectors" data_type: TYPE_FP32 dims: [ 10 ] } ]
        output [ { name: "output_scalars" data_type: TYPE_FP32 dims: [ 1 ] reshape: { shape: [ ] } } ]
        dynamic_batching { }
    """,
    # Free axes, and a scalar input as one element.
    "silero_vad": """
        name: "silero_vad"
        platform: "onnxruntime_onnx"
        input [
          { name: "input" data_type: TYPE_FP32 dims: [ -1, -1 ] },
          { name: "state" data_type: TYPE_FP32 dims: [ 2, -1, 128 ] },
          { name: "sr" data_type: TYPE_INT64 dims: [ 1 ] reshape: { shape: [ ] } }
        ]
        output [
          { name: "output" data_type: TYPE_FP32 dims: [ -1, 1 ] },
          { name: "stateN" data_type: TYPE_FP32 dims: [ -1, -1, -1 ] }
        ]
    """,
    # Nothing but which backend.
    "squeezenet_fp16": 'backend: "onnxruntime"\n',
    "float16_to_bfloat16": "",
}

CASES = {
    "light_squeezenet": ("published", {"data_0": (3, 224, 224)}, {"softmaxout_1": (1000,)}),
    "ultraface_rfb_320": ("astronaut", {}, {}),
    "mnist": ("digit", {}, {}),
    "magika_v3_3": ("files16", {}, {}),
    "dynamic_axes_sum": ("batch17", {}, {"output_scalars": (17, 1)}),
    "silero_vad": ("batch4", {"sr": (1,)}, {}),
    "squeezenet_fp16": ("kitten", {}, {}),
    "float16_to_bfloat16": ("values", {}, {}),
}
"""Model -> its case, and the shapes that clients see where they are not the model's own."""


@pytest.fixture(scope="module")
def served(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[V2]:
    root = tmp_path_factory.mktemp("models")
    for model, config in CONFIGS.items():
        copy_model(root, model, config=config)
    (root / "light_squeezenet" / "labels.txt").write_text("".join(f"class {at}\n" for at in range(1000)))
    with v2(root) as up:
        yield up


def infer(served: V2, model: str, inputs: dict[str, Any], classes: int = 0) -> Any:
    request = pb.ModelInferRequest(model_name=model)
    for name, array in inputs.items():
        request.inputs.add(name=name, datatype=datatype_of(array.dtype), shape=array.shape)
        request.raw_input_contents.append(array.tobytes())
    if classes:
        request.outputs.add(name="softmaxout_1").parameters["classification"].int64_param = classes
    return served.call("ModelInfer", request)


def test_all_are_ready(served: V2) -> None:
    assert {(name, state) for (name, _), (state, _) in served.index().items()} == {(name, "READY") for name in CONFIGS}


@pytest.mark.parametrize("model", CONFIGS)
def test_the_model_s_case(served: V2, model: str) -> None:
    """Metadata, configuration and answers have the shapes of config.pbtxt."""
    name, given, made = CASES[model]
    case = plain_case(model, name)
    inputs = {key: array.reshape(given.get(key, array.shape)) for key, array in case.inputs.items()}
    answer = infer(served, model, inputs)
    metadata = served.call("ModelMetadata", pb.ModelMetadataRequest(name=model))
    assert metadata.platform == "onnxruntime_onnx"
    for told, array in zip(metadata.inputs, inputs.values(), strict=True):
        assert len(told.shape) == array.ndim
        assert all(axis in (-1, size) for axis, size in zip(told.shape, array.shape, strict=True)), told
    for output, raw in zip(answer.outputs, answer.raw_output_contents, strict=True):
        want = case.outputs[output.name]
        want = want.reshape(made.get(output.name, want.shape))
        got = np.frombuffer(raw, DATATYPES[output.datatype].dtype).reshape(output.shape)
        assert_close(got, want, case.rtol, case.atol, f"{model}: {output.name}")


def test_labels_of_a_model_whose_batch_axis_is_in_its_reshape(served: V2) -> None:
    case = plain_case("light_squeezenet", "published")
    answer = infer(served, "light_squeezenet", {"data_0": case.inputs["data_0"].reshape(3, 224, 224)}, classes=2)
    assert (answer.outputs[0].datatype, list(answer.outputs[0].shape)) == ("BYTES", [2])
    assert b":class " in answer.raw_output_contents[0]
