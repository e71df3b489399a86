"""Server reflection over a real server, with the real descriptors of aclserve.v1."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pb2
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_reflection.v1alpha import reflection_pb2

from aclserve.v1 import device_pb2, memory_pb2, model_pb2
from aclserve_server.rpc.health import SERVICE_NAME as HEALTH
from aclserve_server.rpc.reflection import V1_SERVICE, V1ALPHA_SERVICE, add_reflection

SERVICES = [
    str(service.full_name)
    for file in (device_pb2.DESCRIPTOR, memory_pb2.DESCRIPTOR, model_pb2.DESCRIPTOR)
    for service in file.services_by_name.values()
]
Request = reflection_pb2.ServerReflectionRequest


def ask(service: str, *requests: Any) -> list[Any]:
    """The answers to `requests`, sent over one stream of the reflection service of that name."""

    async def main() -> list[Any]:
        server = grpc.aio.server()
        add_reflection(server, [*SERVICES, HEALTH])
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        try:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                call = channel.stream_stream(
                    f"/{service}/ServerReflectionInfo",
                    request_serializer=Request.SerializeToString,
                    response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
                )(iter(requests))
                return [answer async for answer in call]
        finally:
            await server.stop(None)

    return asyncio.run(asyncio.wait_for(main(), 30))


def symbol(name: str) -> Any:
    return Request(file_containing_symbol=name)


def files(answer: Any) -> dict[str, descriptor_pb2.FileDescriptorProto]:
    assert answer.WhichOneof("message_response") == "file_descriptor_response", answer
    parsed = [
        descriptor_pb2.FileDescriptorProto.FromString(data)
        for data in answer.file_descriptor_response.file_descriptor_proto
    ]
    return {file.name: file for file in parsed}


both = pytest.mark.parametrize("service", [V1_SERVICE, V1ALPHA_SERVICE])


@both
def test_lists_all_services_and_itself(service: str) -> None:
    (answer,) = ask(service, Request(list_services=""))
    names = [entry.name for entry in answer.list_services_response.service]
    assert names == sorted({*SERVICES, HEALTH, V1_SERVICE, V1ALPHA_SERVICE})


@both
def test_every_listed_service_can_be_described_and_called_from_the_answer_alone(service: str) -> None:
    names = [*SERVICES, HEALTH, V1_SERVICE, V1ALPHA_SERVICE]
    for name, answer in zip(names, ask(service, *map(symbol, names)), strict=True):
        pool = DescriptorPool()
        waiting = files(answer)
        while waiting:
            ready = [file for file in waiting.values() if not set(file.dependency) & set(waiting)]
            assert ready, f"{name}: imports are missing or circular"
            for file in ready:
                pool.Add(waiting.pop(file.name))
        described = pool.FindServiceByName(name)
        for method in described.methods:
            assert method.input_type.full_name
            assert method.output_type.full_name


@both
def test_every_method_symbol_resolves(service: str) -> None:
    expected = {
        str(method.full_name): file.name
        for file in (device_pb2.DESCRIPTOR, memory_pb2.DESCRIPTOR, model_pb2.DESCRIPTOR)
        for described in file.services_by_name.values()
        for method in described.methods
    }
    assert len(expected) > 10
    for name, answer in zip(expected, ask(service, *map(symbol, expected)), strict=True):
        assert expected[name] in files(answer), name


def test_symbols_inside_messages_and_enums_resolve() -> None:
    enum = next(iter(model_pb2.DESCRIPTOR.enum_types_by_name.values()))
    value = enum.values[0].name
    names = [
        "aclserve.v1.StreamInferRequest",
        "aclserve.v1.StreamInferRequest.items",
        str(enum.full_name),
        f"aclserve.v1.{value}",
        f"{enum.full_name}.{value}",
        ".aclserve.v1.ModelService",
        ".aclserve.v1.ModelService.Infer",
    ]
    for name, answer in zip(names, ask(V1_SERVICE, *map(symbol, names)), strict=True):
        assert "aclserve/v1/model.proto" in files(answer), name
    (listed,) = ask(V1_SERVICE, symbol(f"{HEALTH}.List"))
    assert "grpc_health/v1/health.proto" in files(listed)


def test_an_answer_holds_the_imports() -> None:
    answers = ask(
        V1_SERVICE,
        symbol("aclserve.v1.ModelService.StreamInfer"),
        Request(file_by_filename="aclserve/v1/model.proto"),
        Request(file_by_filename="grpc/reflection/v1/reflection.proto"),
    )
    for answer in answers:
        held = files(answer)
        for file in held.values():
            assert set(file.dependency) <= set(held)
    assert "aclserve/v1/tensor.proto" in files(answers[0])
    assert files(answers[2])["grpc/reflection/v1/reflection.proto"].package == "grpc.reflection.v1"


@both
def test_unknown_things_are_answered_with_errors_and_the_stream_goes_on(service: str) -> None:
    extension = reflection_pb2.ExtensionRequest(containing_type="aclserve.v1.NoSuch", extension_number=7)
    no_extension = reflection_pb2.ExtensionRequest(containing_type="aclserve.v1.StreamInferRequest", extension_number=7)
    unknown = [
        symbol(""),
        symbol("."),
        symbol("nowhere.Service"),
        symbol("aclserve.v1"),
        symbol("aclserve.v1.ModelService.NoSuchMethod"),
        symbol("aclserve.v1.ModelService.Infer.deeper"),
        symbol("aclserve.v1.ModelState.NO_SUCH_VALUE"),
        symbol("aclserve.v1.StreamInferRequest.no_such_field"),
        symbol("x" * 10_000),
        Request(file_by_filename="no/such.proto"),
        Request(file_containing_extension=extension),
        Request(file_containing_extension=no_extension),
        Request(all_extension_numbers_of_type="aclserve.v1.NoSuch"),
    ]
    *answers, empty, last = ask(service, *unknown, Request(), symbol("aclserve.v1.ModelService"))
    for request, answer in zip(unknown, answers, strict=True):
        assert answer.WhichOneof("message_response") == "error_response", request
        assert answer.error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]
        assert answer.original_request == request
    assert empty.error_response.error_code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    assert "aclserve/v1/model.proto" in files(last)


def test_a_message_without_extensions_has_none() -> None:
    (answer,) = ask(V1_SERVICE, Request(all_extension_numbers_of_type="aclserve.v1.StreamInferRequest"))
    assert answer.all_extension_numbers_response.base_type_name == "aclserve.v1.StreamInferRequest"
    assert list(answer.all_extension_numbers_response.extension_number) == []
