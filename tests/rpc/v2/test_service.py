"""The service as a whole: every call is there, errors have the codes that its clients know, reflection shows it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pb2
from grpc_reflection.v1alpha import reflection_pb2

from aclserve import errors
from aclserve.v1 import model_pb2, model_pb2_grpc, tensor_pb2
from aclserve_server.kserve import inference_pb2 as pb
from aclserve_server.rpc import health
from aclserve_server.rpc.reflection import V1_SERVICE
from aclserve_server.rpc.v2.service import SERVICE
from aclserve_server.rpc.v2.status import code_of
from aclserve_server.rpc.v2.versions import version_from_text, version_to_text
from rpc.memory_server import details_of, info_of
from rpc.v2.v2_server import V2, request_of, v2
from serving import elementwise, put_model, rows

METHODS = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods
HOT = ("ModelInfer", "ModelStreamInfer")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[V2]:
    root = tmp_path_factory.mktemp("models")
    put_model(root, "plain", elementwise())
    put_model(root, "broken", elementwise(), "max_batch_size: -3\n")
    with v2(root) as up:
        yield up


def test_every_method_of_the_protocol_is_served(served: V2) -> None:
    assert len(METHODS) == 20
    for method in METHODS:
        if method.name in HOT:
            continue
        with pytest.raises(grpc.RpcError) as caught:
            served.channel.unary_unary(f"/{SERVICE}/{method.name}")(b"\xff\xff", timeout=60)
        error: Any = caught.value
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT, method.name
        assert info_of(details_of(error)).reason == "MALFORMED_MESSAGE"


def test_it_is_known_to_health_and_described_by_reflection(served: V2) -> None:
    assert SERVICE == "inference.GRPCInferenceService"
    check = served.channel.unary_unary(
        "/grpc.health.v1.Health/Check", health.CheckRequest.SerializeToString, health.CheckResponse.FromString
    )
    assert check(health.CheckRequest(service=SERVICE), timeout=60).status == health.CheckResponse.SERVING
    ask = served.channel.stream_stream(
        f"/{V1_SERVICE}/ServerReflectionInfo",
        reflection_pb2.ServerReflectionRequest.SerializeToString,
        reflection_pb2.ServerReflectionResponse.FromString,
    )
    symbols = [SERVICE, *(f"{SERVICE}.{method.name}" for method in METHODS), "inference.ModelConfig"]
    requests = [reflection_pb2.ServerReflectionRequest(file_containing_symbol=symbol) for symbol in symbols]
    listing = reflection_pb2.ServerReflectionRequest(list_services="")
    first, *answers = ask(iter([listing, *requests]), timeout=60)
    assert SERVICE in [one.name for one in first.list_services_response.service]
    assert len(answers) == len(symbols)
    for symbol, answer in zip(symbols, answers, strict=True):
        parts = answer.file_descriptor_response.file_descriptor_proto
        files = {file.name: file for file in map(descriptor_pb2.FileDescriptorProto.FromString, parts)}
        assert any(file.package == "inference" for file in files.values()), symbol
        for file in files.values():
            assert set(file.dependency) <= set(files)


def test_codes_are_those_of_the_protocol_on_this_service_alone(served: V2) -> None:
    text = served.refused(
        "ModelMetadata", pb.ModelMetadataRequest(name="broken"), grpc.StatusCode.UNAVAILABLE, "MODEL_NOT_READY"
    )
    assert "max_batch_size" in text
    native = model_pb2_grpc.ModelServiceStub(served.channel)
    with pytest.raises(grpc.RpcError) as caught:
        native.GetModel(model_pb2.GetModelRequest(model="broken"), timeout=60)
    error: Any = caught.value
    assert error.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert info_of(details_of(error)).reason == "MODEL_NOT_READY"


def test_the_code_that_ends_a_stream(served: V2) -> None:
    answers = served.stub.ModelStreamInfer(
        iter([pb.ModelInferRequest(model_name="broken", id="a")]),
        metadata=(("triton_grpc_error", "true"),),
        timeout=60,
    )
    with pytest.raises(grpc.RpcError) as caught:
        list(answers)
    error: Any = caught.value
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert info_of(details_of(error)).reason == "MODEL_NOT_READY"


def test_a_full_queue_is_told_with_another_code_than_on_the_native_api(tmp_path: Path) -> None:
    put_model(tmp_path, "plain", elementwise(shape=(1, 4)), "max_batch_size: 1\n")
    with v2(tmp_path, max_queue_rows=1) as served:
        native = model_pb2_grpc.ModelServiceStub(served.channel)
        tensor = tensor_pb2.Tensor(
            name="x", data_type=tensor_pb2.DATA_TYPE_FLOAT32, shape=[1, 4], data=rows(0, 1).tobytes()
        )
        served.up.emulator.hold()
        try:
            calls = [served.stub.ModelInfer.future(request_of("plain"), timeout=60) for _ in range(20)]
            for _ in range(6000):
                if sum(call.done() for call in calls) >= 10:
                    break
                threading.Event().wait(0.01)
            with pytest.raises(grpc.RpcError) as caught:
                native.Infer(model_pb2.InferRequest(model="plain", inputs=[tensor]), timeout=60)
        finally:
            served.up.emulator.release()
        told: Any = caught.value
        assert told.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert info_of(details_of(told)).reason == "QUEUE_FULL"
        refused = [call for call in calls if call.exception() is not None]
        assert 10 <= len(refused) < len(calls)
        for call in refused:
            assert call.code() is grpc.StatusCode.UNAVAILABLE
            assert info_of(details_of(call)).reason == "QUEUE_FULL"


@pytest.mark.parametrize("method", ["ModelReady", "ModelMetadata", "ModelConfig", "ModelStatistics"])
@pytest.mark.parametrize(
    ("name", "version", "code", "reason"),
    [
        ("absent", "", grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND"),
        ("plain", "7", grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND"),
        ("plain", "x", grpc.StatusCode.INVALID_ARGUMENT, "VERSION_INVALID"),
        ("plain", "-1", grpc.StatusCode.INVALID_ARGUMENT, "VERSION_INVALID"),
        ("plain", "0", grpc.StatusCode.INVALID_ARGUMENT, "VERSION_INVALID"),
        ("plain", "1.0", grpc.StatusCode.INVALID_ARGUMENT, "VERSION_INVALID"),
        ("plain", "9" * 40, grpc.StatusCode.INVALID_ARGUMENT, "VERSION_INVALID"),
    ],
)
def test_models_and_versions_that_are_not_there(
    served: V2, method: str, name: str, version: str, code: grpc.StatusCode, reason: str
) -> None:
    request = getattr(pb, f"{method}Request")(name=name, version=version)
    text = served.refused(method, request, code, reason)
    if name == "absent":
        assert "plain" in text


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.ResourceExhausted("full", reason="QUEUE_FULL"), 14),
        (errors.DeadlineExceeded("late", reason="ITEM_EXPIRED"), 14),
        (errors.FailedPrecondition("loading", reason="MODEL_NOT_READY"), 14),
        (errors.FailedPrecondition("in use", reason="REGION_IN_USE"), 14),
        (errors.FailedPrecondition("small", reason="REGION_TOO_SMALL"), 13),
        (errors.FailedPrecondition("off", reason="SHARED_MEMORY_OFF"), 12),
        (errors.FailedPrecondition("gears", reason="MODEL_CONFIG_INVALID"), 3),
        (errors.OutOfRange("past", reason="RANGE_OUTSIDE_REGION"), 3),
        (errors.InvalidArgument("shape", reason="SHAPE_MISMATCH"), 3),
        (errors.NotFound("what", reason="MODEL_NOT_FOUND"), 5),
        (errors.AlreadyExists("twice", reason="REGION_EXISTS"), 6),
        (errors.Cancelled("back", reason="CANCELLED"), 1),
        (errors.Internal("bug", reason="INTERNAL_ERROR"), 13),
        (errors.Unavailable("going", reason="SERVER_GOING_AWAY"), 14),
        (errors.Unimplemented("cuda", reason="CUDA_UNSUPPORTED"), 12),
    ],
    ids=lambda value: value.reason if isinstance(value, errors.AclserveError) else "",
)
def test_the_code_of_an_error(error: errors.AclserveError, code: int) -> None:
    assert code_of(error) == code


def test_no_code_is_one_that_these_clients_do_not_know() -> None:
    unknown = {errors.ResourceExhausted.code, errors.DeadlineExceeded.code, errors.FailedPrecondition.code}
    unknown.add(errors.OutOfRange.code)
    assert not unknown & {code_of(kind("x", reason="ANY")) for kind in errors.AclserveError.__subclasses__()}


def test_versions_as_text() -> None:
    assert [version_from_text(text) for text in ("", "1", "007", "12")] == [0, 1, 7, 12]
    assert [version_to_text(version) for version in (0, 3)] == ["", "3"]
    for wrong in (" 1", "1 ", "+1", "0", "00", "one", "\u0661"):
        with pytest.raises(errors.InvalidArgument) as caught:
            version_from_text(wrong)
        assert repr(wrong) in caught.value.message
