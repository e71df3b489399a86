"""A field that the v2 codec does not know is found at the start."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from google.protobuf import descriptor_pool
from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto, FileDescriptorProto

from aclserve_server.kserve import inference_pb2, model_config_pb2
from aclserve_server.rpc.v2.wire_fields import HOT_MESSAGES, KNOWN_FIELDS, check_v2_descriptors


def changed(name: str, change: Callable[[DescriptorProto], None]) -> list[Any]:
    """The hot messages of the proto with one message changed."""
    pool = descriptor_pool.DescriptorPool()
    config, file = FileDescriptorProto(), FileDescriptorProto()
    model_config_pb2.DESCRIPTOR.CopyToProto(config)
    inference_pb2.DESCRIPTOR.CopyToProto(file)
    for message in file.message_type:
        if message.name == name:
            change(message)
    pool.Add(config)
    pool.Add(file)
    return [pool.FindMessageTypeByName(message.full_name) for message in HOT_MESSAGES]


def test_the_codec_knows_all_there_is() -> None:
    check_v2_descriptors()
    check_v2_descriptors(changed("", lambda message: None))


def test_nothing_is_known_that_is_not_there() -> None:
    names = {f"inference.{name}" for name in KNOWN_FIELDS}
    for name in names:
        assert inference_pb2.DESCRIPTOR.pool.FindMessageTypeByName(name)


def renumber(message: DescriptorProto) -> None:
    message.field[0].number = 77


def retype(message: DescriptorProto) -> None:
    message.field[0].type = FieldDescriptorProto.TYPE_UINT32


def add(message: DescriptorProto) -> None:
    message.field.add(name="new", number=99, type=FieldDescriptorProto.TYPE_BOOL, label=1)


def unbind(message: DescriptorProto) -> None:
    message.field[0].ClearField("oneof_index")


@pytest.mark.parametrize("change", [renumber, retype, add])
@pytest.mark.parametrize("name", ["ModelInferRequest", "InferTensorContents", "ModelInferResponse", "InferParameter"])
def test_a_change_is_found(name: str, change: Callable[[DescriptorProto], None]) -> None:
    with pytest.raises(RuntimeError, match=f"fields of {name}"):
        check_v2_descriptors(changed(name, change))


def test_a_changed_oneof_is_found() -> None:
    with pytest.raises(RuntimeError, match="oneofs of InferParameter"):
        check_v2_descriptors(changed("InferParameter", unbind))
