"""What belongs to another principal is not there: tried with every id in every request, found in the descriptors.

Each call is made twice, with ids of the caller's own and with one of them exchanged for another principal's: the first
finds what it names, the second must not, and must say so as for an id that never was.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import Descriptor
from google.protobuf.json_format import ParseDict
from google.protobuf.message import Message

from aclserve.v1 import memory_pb2, model_pb2
from aclserve_server.access.directory import entry, make_token
from aclserve_server.access.principal import GROUPS
from aclserve_server.server import DESCRIPTORS
from e2e.raw import Raw, Refusal, item_refusal, refusal_of
from serving import elementwise, put_model, serving

TOKENS = {name: make_token() for name in ("own", "foreign")}
KINDS = ("buffer_id", "upload_id", "region_id")

SIZE = 64
BUFFER_BYTES = 1 << 20
TENSOR = {"name": "x", "dataType": "DATA_TYPE_FLOAT32", "shape": [1, 4]}

REQUESTS: dict[str, tuple[str, list[dict[str, Any]]]] = {
    "FreeBuffer": ("memory", [{"bufferId": "$buffer"}]),
    "SetMemory": ("memory", [{"bufferId": "$buffer", "value": 1}]),
    "CopyMemory": (
        "memory",
        [{"sourceBufferId": "$buffer", "destinationBufferId": "$second", "lengthBytes": "4"}],
    ),
    "WriteBuffer": ("memory", [{"header": {"bufferId": "$buffer", "lengthBytes": "1"}}, {"data": "AA=="}]),
    "ReadBuffer": ("memory", [{"bufferId": "$buffer"}]),
    "UnregisterRegion": ("memory", [{"regionId": "$region"}]),
    "QueryModelSize": ("models", [{"source": {"uploadId": "$upload"}}]),
    "LoadModel": (
        "models",
        [
            {
                "name": "new",
                "memoryOwner": "MEMORY_OWNER_CALLER",
                "source": {"uploadId": "$upload"},
                "workBufferId": "$buffer",
                "weightBufferId": "$second",
            }
        ],
    ),
    "Infer": (
        "models",
        [
            {
                "model": "same",
                "inputs": [{**TENSOR, "$kind": {"$key": "$input", "lengthBytes": "16"}}],
                "outputs": [{"name": "y", "$kind": {"$key": "$input", "lengthBytes": "16"}}],
            }
        ],
    ),
}
REQUESTS["StreamInfer"] = ("models", [{"config": {"model": "same"}}, {"items": {"items": REQUESTS["Infer"][1]}}])
"""Requests that name things, as JSON: by name of the service's stub, the messages of one call."""


@dataclass(frozen=True)
class Place:
    """Where an RPC names something: the fields on the way to its id."""

    service: str
    method: str
    path: tuple[str, ...]

    @property
    def kind(self) -> str:
        return next(kind for kind in KINDS if self.path[-1].endswith(kind))


def places() -> Iterator[Place]:
    for service in DESCRIPTORS:
        for method in service.methods:
            for path in ids_in(method.input_type, ()):
                yield Place(service.name, method.name, path)


def ids_in(message: Descriptor, above: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    for field in message.fields:
        if field.message_type is not None and not field.message_type.GetOptions().map_entry:
            if len(above) < 8:
                yield from ids_in(field.message_type, (*above, field.name))
        elif field.name.endswith(KINDS):
            yield (*above, field.name)


ALL = list(places())


@dataclass(frozen=True)
class Held:
    """What one principal holds."""

    lease: str
    things: dict[str, str]


class Caller(Raw):
    """A client with a token."""

    def __init__(self, address: str, token: str) -> None:
        super().__init__(address)
        self.token = token

    def shown(self, lease: str) -> tuple[tuple[str, str], ...]:
        return (("authorization", f"Bearer {self.token}"), ("aclserve-lease", lease))

    def send(self, service: str, method: str, messages: list[Message], lease: str) -> Refusal | None:
        """One call; what it was refused with, itself or its first item."""
        stub: Any = getattr(getattr(self, service), method)
        streams = method in ("WriteBuffer", "StreamInfer", "UploadModel")
        try:
            answer = stub(iter(messages) if streams else messages[0], metadata=self.shown(lease), timeout=30)
            if method in ("ReadBuffer", "StreamInfer"):
                for response in answer:
                    for result in (getattr(response, "results", None) and response.results.results) or ():
                        if result.HasField("error"):
                            return item_refusal(result.error)
        except grpc.RpcError as error:
            return refusal_of(error)
        return None


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    root = tmp_path_factory.mktemp("models")
    put_model(root, "same", elementwise())
    file = tmp_path_factory.mktemp("access") / "principals.toml"
    file.write_text("\n".join(entry(name, token, GROUPS) for name, token in TOKENS.items()))
    with serving(
        root, principals=str(file), system_shared_memory=True, model_control_mode="explicit", load_model=("same",)
    ) as up:
        yield up.address


@pytest.fixture(scope="module")
def objects() -> Iterator[dict[str, str]]:
    """A shared-memory object of each principal."""
    found = {name: f"/aclserve-ownership-{name}-{os.getpid()}" for name in TOKENS}
    for key in found.values():
        Path(f"/dev/shm{key}").write_bytes(bytes(SIZE))
    yield found
    for key in found.values():
        Path(f"/dev/shm{key}").unlink()


def hold(caller: Caller, key: str) -> Held:
    """A lease with two buffers, an upload and a region."""
    made = caller.memory.CreateLease(memory_pb2.CreateLeaseRequest(), metadata=caller.shown(""), timeout=30).lease.id
    shown = caller.shown(made)
    things = {}
    for name in ("buffer", "second"):
        request = memory_pb2.AllocateBufferRequest(space="MEMORY_SPACE_DEVICE", size_bytes=BUFFER_BYTES)
        things[name] = caller.memory.AllocateBuffer(request, metadata=shown, timeout=30).buffer.id
    content = elementwise().SerializeToString()
    parts = [
        model_pb2.UploadModelRequest(header={"size_bytes": len(content)}),
        model_pb2.UploadModelRequest(data=content),
    ]
    things["upload"] = caller.models.UploadModel(iter(parts), metadata=shown, timeout=30).upload_id
    region = memory_pb2.RegisterRegionRequest(key=key, size_bytes=SIZE)
    things["region"] = caller.memory.RegisterRegion(region, metadata=shown, timeout=30).region.id
    return Held(made, things)


def messages_of(place: Place, held: Held) -> list[Message]:
    """The call's messages with all ids the caller's own."""
    assert place.method in REQUESTS, f"{place.method} names a {place.kind}: add a request of it to REQUESTS"
    inner = "region" if place.kind == "region_id" else "buffer"
    named = {**held.things, "kind": inner, "key": f"{inner}Id", "input": held.things[inner]}
    (service,) = [one for one in DESCRIPTORS if one.name == place.service and place.method in one.methods_by_name]
    kind = service.methods_by_name[place.method].input_type._concrete_class
    return [ParseDict(filled(message, named), kind()) for message in REQUESTS[place.method][1]]


def filled(value: Any, named: dict[str, str]) -> Any:
    if isinstance(value, dict):
        return {filled(key, named): filled(inner, named) for key, inner in value.items()}
    if isinstance(value, list):
        return [filled(inner, named) for inner in value]
    return named[value[1:]] if isinstance(value, str) and value.startswith("$") else value


def exchange(messages: list[Message], path: tuple[str, ...], value: str) -> None:
    """Puts another id where a path leads, in the one message that has it."""
    found = 0
    for message in messages:
        at: Any = message
        for name in path[:-1]:
            field = at.DESCRIPTOR.fields_by_name[name]
            if field.is_repeated if hasattr(field, "is_repeated") else field.label == field.LABEL_REPEATED:
                listed = getattr(at, name)
                at = listed[0] if listed else None
            else:
                at = getattr(at, name) if at.HasField(name) else None
            if at is None:
                break
        if at is not None and getattr(at, path[-1]):
            setattr(at, path[-1], value)
            found += 1
    assert found == 1, f"REQUESTS says nothing at {'.'.join(path)}"


@pytest.mark.parametrize("place", ALL, ids=lambda place: f"{place.method}-{'.'.join(place.path)}")
def test_another_principal_s_things_are_not_there(address: str, objects: dict[str, str], place: Place) -> None:
    service = REQUESTS.get(place.method, ("", []))[0]
    with Caller(address, TOKENS["own"]) as own, Caller(address, TOKENS["foreign"]) as foreign:
        mine, theirs = hold(own, objects["own"]), hold(foreign, objects["foreign"])
        other = theirs.things[place.kind.removesuffix("_id")]
        try:
            answers = []
            for value in (other, f"{other[:-4]}none"):
                messages = messages_of(place, mine)
                exchange(messages, place.path, value)
                refusal = own.send(service, place.method, messages, mine.lease)
                assert refusal is not None, "it found what is another's"
                answers.append((refusal.code, refusal.reason, refusal.message.replace(value, "")))
            assert answers[0] == answers[1]
            assert answers[0][0] is grpc.StatusCode.NOT_FOUND
            refusal = own.send(service, place.method, messages_of(place, mine), mine.lease)
            assert refusal is None or refusal.code is not grpc.StatusCode.NOT_FOUND, refusal
        finally:
            for caller, held in ((own, mine), (foreign, theirs)):
                request = memory_pb2.ReleaseLeaseRequest()
                caller.memory.ReleaseLease(request, metadata=caller.shown(held.lease), timeout=30)


def test_the_descriptors_have_places() -> None:
    assert {place.method for place in ALL} == set(REQUESTS)
    assert len(ALL) >= 18
