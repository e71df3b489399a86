"""grpcurl against both services, by reflection alone: no .proto file, no descriptor set."""

from __future__ import annotations

import base64
import json
import shlex
from collections.abc import Iterator
from typing import Any, TypeVar

import numpy as np
import pytest
from google.protobuf import json_format
from google.protobuf.message import Message

from aclserve.v1 import model_pb2
from aclserve_server.kserve import inference_pb2 as v2
from compat.go_tools import grpcurl_or_skip, shell
from serving import Serving, elementwise, put_model, serving

V2 = "inference.GRPCInferenceService"
ACLSERVE = "aclserve.v1.ModelService"
ROWS = np.array([[1, -2, 3, -4]], np.float32)
RAW = base64.b64encode(ROWS.tobytes()).decode()
RELU = np.maximum(ROWS, 0).tobytes()
ITEM = {"inputs": [{"name": "x", "dataType": "DATA_TYPE_FLOAT32", "shape": [1, 4], "data": RAW}]}
V2_REQUEST = {
    "model_name": "relu",
    "inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4]}],
    "raw_input_contents": [RAW],
}

M = TypeVar("M", bound=Message)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    grpcurl_or_skip()
    root = tmp_path_factory.mktemp("models")
    put_model(root, "relu", elementwise("Relu"))
    with serving(root) as up:
        yield up


def grpcurl(service: Serving, verb: str, *messages: dict[str, Any], code: int = 0) -> str:
    """What it printed; a wrong ending is a failure, and so is more than ten seconds."""
    data = f"-d {shlex.quote(' '.join(json.dumps(message) for message in messages))} " if messages else ""
    return shell(f"grpcurl -plaintext -max-time 10 {data}{service.address} {verb}", code=code)


def answers(text: str, kind: type[M]) -> list[M]:
    """The messages of a call, which grpcurl prints as JSON texts one after the other."""
    decoder, found = json.JSONDecoder(), []
    while text := text.strip():
        message, end = decoder.raw_decode(text)
        found.append(json_format.ParseDict(message, kind()))
        text = text[end:]
    return found


def test_all_services_and_their_methods_are_listed(service: Serving) -> None:
    services = grpcurl(service, "list").split()
    assert {
        "aclserve.v1.DeviceService",
        "aclserve.v1.MemoryService",
        ACLSERVE,
        V2,
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
        "grpc.reflection.v1alpha.ServerReflection",
    } == set(services)
    for name in services:
        assert all(method.startswith(f"{name}.") for method in grpcurl(service, f"list {name}").split())
    assert f"{ACLSERVE}.StreamInfer" in grpcurl(service, f"list {ACLSERVE}").split()
    assert {f"{V2}.ModelInfer", f"{V2}.ModelStreamInfer"} <= set(grpcurl(service, f"list {V2}").split())


def test_every_method_and_its_messages_can_be_described(service: Serving) -> None:
    for name in (ACLSERVE, V2, "aclserve.v1.MemoryService", "aclserve.v1.DeviceService"):
        described = grpcurl(service, f"describe {name}")
        for method in grpcurl(service, f"list {name}").split():
            assert f"rpc {method.rpartition('.')[2]} (" in described
    assert "is a method" in grpcurl(service, f"describe {ACLSERVE}.StreamInfer")
    assert "stream .inference.ModelStreamInferResponse" in grpcurl(service, f"describe {V2}.ModelStreamInfer")
    assert "ModelUsage usage = 16;" in grpcurl(service, "describe aclserve.v1.ModelDescription")
    assert "raw_input_contents = 7;" in grpcurl(service, "describe inference.ModelInferRequest")
    assert "DATA_TYPE_FLOAT32 = 12;" in grpcurl(service, "describe aclserve.v1.DataType")


def test_one_call_of_each_service(service: Serving) -> None:
    text = grpcurl(service, f"{ACLSERVE}/Infer", {"model": "relu", **ITEM})
    (native,) = answers(text, model_pb2.InferResponse)
    assert native.outputs.tensors[0].data == RELU
    (raw,) = answers(grpcurl(service, f"{V2}/ModelInfer", V2_REQUEST), v2.ModelInferResponse)
    assert list(raw.raw_output_contents) == [RELU]
    typed = {"name": "x", "datatype": "FP32", "shape": [1, 4], "contents": {"fp32_contents": ROWS.ravel().tolist()}}
    text = grpcurl(service, f"{V2}/ModelInfer", {"model_name": "relu", "inputs": [typed]})
    (answer,) = answers(text, v2.ModelInferResponse)
    assert [(output.name, output.datatype, list(output.shape)) for output in answer.outputs] == [("y", "FP32", [1, 4])]
    assert list(answer.raw_output_contents) == [RELU]


def test_what_the_v2_service_tells(service: Serving) -> None:
    (ready,) = answers(grpcurl(service, f"{V2}/ServerReady"), v2.ServerReadyResponse)
    assert ready.ready
    (metadata,) = answers(grpcurl(service, f"{V2}/ModelMetadata", {"name": "relu"}), v2.ModelMetadataResponse)
    assert [(spec.name, spec.datatype, list(spec.shape)) for spec in metadata.inputs] == [("x", "FP32", [-1, 4])]
    assert "SERVING" in grpcurl(service, "grpc.health.v1.Health/Check", {"service": V2})


def test_a_stream_of_the_native_service(service: Serving) -> None:
    items = {"items": {"items": [{"id": name, **ITEM} for name in "abc"]}}
    config = {"config": {"model": "relu", "order": "RESULT_ORDER_SUBMISSION"}}
    text = grpcurl(service, f"{ACLSERVE}/StreamInfer", config, items)
    messages = answers(text, model_pb2.StreamInferResponse)
    results = [result for message in messages for result in message.results.results]
    assert [(result.id, result.outputs.tensors[0].data) for result in results] == [(name, RELU) for name in "abc"]
    assert messages[0].HasField("ready")
    assert messages[-1].summary.succeeded_items == 3


def test_a_stream_of_the_v2_service(service: Serving) -> None:
    requests = [{"id": name, **V2_REQUEST} for name in "abc"]
    found = answers(grpcurl(service, f"{V2}/ModelStreamInfer", *requests), v2.ModelStreamInferResponse)
    told = [(message.infer_response.id, list(message.infer_response.raw_output_contents)) for message in found]
    assert sorted(told) == [(name, [RELU]) for name in "abc"]


def test_what_is_wrong_is_told_with_its_fix(service: Serving) -> None:
    """grpcurl ends with 64 + the status code, and shows message and details."""
    tensor = {"name": "x", "dataType": "DATA_TYPE_FLOAT32", "shape": [4], "data": RAW}
    told = grpcurl(service, f"{ACLSERVE}/Infer", {"model": "relu", "inputs": [tensor]}, code=67)
    assert "has shape [4], the model takes [rows, 4]; add a leading batch axis: send [1, 4]" in told
    assert '"reason": "SHAPE_MISMATCH"' in told
    doubles = {**V2_REQUEST, "inputs": [{"name": "x", "datatype": "FP64", "shape": [1, 2]}]}
    told = grpcurl(service, f"{V2}/ModelInfer", doubles, code=67)
    assert "convert it to float32, in numpy with array.astype(np.float32)" in told
    assert "NotFound" in grpcurl(service, f"{V2}/ModelInfer", {"model_name": "nothing"}, code=69)
