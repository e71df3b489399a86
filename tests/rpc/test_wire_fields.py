"""The codec's knowledge against the descriptors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from google.protobuf import descriptor_pool, duration_pb2, timestamp_pb2
from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto, FileDescriptorProto

from aclserve.v1 import model_pb2, tensor_pb2
from aclserve_server.rpc.wire_fields import HOT_MESSAGES, KNOWN_FIELDS, check_descriptors

FILES = (duration_pb2, timestamp_pb2, tensor_pb2, model_pb2)


def changed(message: str, change: Callable[[DescriptorProto], object]) -> list[Any]:
    """The hot messages of a pool of their own, with one message changed."""
    pool = descriptor_pool.DescriptorPool()
    for module in FILES:
        file = FileDescriptorProto()
        module.DESCRIPTOR.CopyToProto(file)
        for candidate in file.message_type:
            if candidate.name == message:
                change(candidate)
        pool.Add(file)
    return [pool.FindMessageTypeByName(hot.full_name) for hot in HOT_MESSAGES]


def reached() -> set[str]:
    """Every message that follows from the hot ones."""
    waiting, seen = list(HOT_MESSAGES), set()
    while waiting:
        message = waiting.pop()
        if message.full_name not in seen:
            seen.add(message.full_name)
            waiting.extend(field.message_type for field in message.fields if field.message_type)
    return {name.removeprefix("aclserve.v1.") for name in seen}


def test_the_codec_knows_every_field_of_every_message_it_meets_and_nothing_else() -> None:
    check_descriptors()
    assert reached() == set(KNOWN_FIELDS)


def test_an_unchanged_copy_of_the_descriptors_passes() -> None:
    check_descriptors(changed("", lambda message: None))


FIELD = FieldDescriptorProto
CHANGES: dict[str, Callable[[DescriptorProto], object]] = {
    "added": lambda message: message.field.add(name="new", number=99, type=FIELD.TYPE_BOOL, label=FIELD.LABEL_OPTIONAL),
    "renumbered": lambda message: setattr(message.field[0], "number", 98),
    "removed": lambda message: message.field.__delitem__(0),
    "renamed": lambda message: setattr(message.field[0], "name", "other"),
    "retyped": lambda message: (
        message.field[0].ClearField("type_name"),
        setattr(message.field[0], "type", FIELD.TYPE_DOUBLE),
    ),
}
PLAIN = sorted(name for name in KNOWN_FIELDS if "." not in name)


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("message", PLAIN)
def test_a_changed_field_is_noticed(message: str, change: str) -> None:
    hot = changed(message, CHANGES[change])
    with pytest.raises(RuntimeError, match=f" of {message} "):
        check_descriptors(hot)


def test_a_field_that_leaves_its_oneof_is_noticed() -> None:
    def leave(message: DescriptorProto) -> None:
        message.field[3].ClearField("oneof_index")

    with pytest.raises(RuntimeError, match="oneofs of Tensor"):
        check_descriptors(changed("Tensor", leave))


def test_a_field_that_gets_presence_is_noticed() -> None:
    def track(message: DescriptorProto) -> None:
        message.field[0].proto3_optional = True
        message.field[0].oneof_index = len(message.oneof_decl)
        message.oneof_decl.add(name="_id")

    with pytest.raises(RuntimeError, match="oneofs of InferItem"):
        check_descriptors(changed("InferItem", track))
