"""Conversions, checksums and options: pure code."""

from __future__ import annotations

import google_crc32c
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import aclserve_client as ac
from aclserve.v1 import model_pb2, tensor_pb2
from aclserve_client import checksum, convert
from aclserve_client.options import DEFAULT, Deadline
from aclserve_client.verbs import Source


@pytest.mark.parametrize("cls", convert.ENUMS, ids=lambda cls: cls.__name__)
def test_enums_are_those_of_the_wire(cls):
    wire = convert.ENUMS[cls]
    assert len(cls) == len(wire.values())
    for number in wire.values():
        assert convert.enum_to_wire(cls, convert.enum_from_wire(cls, number)) == number
    assert convert.enum_from_wire(cls, 12345) == "unspecified"


@pytest.mark.parametrize("number", [number for number in tensor_pb2.DataType.values() if number])
def test_dtype_names(number):
    assert convert.data_type_from_name(convert.dtype_name(number)) == number


def test_dtypes_of_other_kinds():
    assert convert.data_type_from_name(np.float32) == tensor_pb2.DATA_TYPE_FLOAT32
    assert convert.data_type_from_name("<i8") == tensor_pb2.DATA_TYPE_INT64
    assert convert.dtype_name(77) == "unknown(77)"
    for wrong in ("float8", "complex64", "unspecified", object()):
        with pytest.raises(ac.InvalidArgument):
            convert.data_type_from_name(wrong)


def test_inputs_become_tensors():
    array = convert.tensor_to_wire("a", np.arange(4, dtype=">i2").reshape(2, 2).T)
    assert (array.data, list(array.shape)) == (b"\0\0\2\0\1\0\3\0", [2, 2])
    assert convert.tensor_to_wire("a", np.float32(1)).shape == []
    typed = convert.tensor_to_wire("a", ac.Typed(np.ones(2, np.uint16), "bfloat16"))
    assert typed.data_type == tensor_pb2.DATA_TYPE_BFLOAT16
    ref = convert.tensor_to_wire("a", ac.BufferRef("b", (2, 3), "int64", 8, 48))
    assert (ref.buffer.buffer_id, ref.buffer.offset_bytes, ref.buffer.length_bytes) == ("b", 8, 48)
    fill = convert.tensor_to_wire("a", ac.Random((1, 2), "uint8", seed=9)).fill
    assert (fill.pattern, fill.seed) == (tensor_pb2.FILL_PATTERN_RANDOM, 9)
    with pytest.raises(TypeError, match="input 'a' is a list"):
        convert.tensor_to_wire("a", [1, 2])


def test_outputs_may_be_names_or_places():
    assert convert.outputs_to_wire(None) == []
    assert [output.name for output in convert.outputs_to_wire(["a", "b"])] == ["a", "b"]
    inline, placed = convert.outputs_to_wire({"a": None, "b": ac.BufferRef("id", offset_bytes=4)})
    assert not inline.HasField("buffer")
    assert (placed.buffer.buffer_id, placed.buffer.offset_bytes) == ("id", 4)
    with pytest.raises(TypeError):
        convert.outputs_to_wire("a")


@pytest.mark.parametrize(
    "item",
    [
        ac.Item({}),
        ac.Item({"é" * 100: np.zeros((1,) * 32)}, id="ü" * 64, model="m" * 100, outputs=["y" * 99], max_wait=1e6),
        ac.Item({"x": ac.Random((1 << 40,) * 32, seed=1 << 63)}, version=1 << 40, capture_time_ns=1 << 62),
        ac.Item({"x": ac.BufferRef("b" * 43, (1 << 40,) * 32, "int8", 1 << 50, 1 << 50)}),
        ac.Item(
            {"x": np.float32(1), "z": ac.Typed(np.ones(9, np.uint16), "bfloat16")},
            outputs={"y": ac.BufferRef("b" * 43)},
        ),
    ],
)
def test_the_size_of_an_item_is_bounded_without_making_it(item):
    size = model_pb2.InferItem(**convert.item_fields(item)).ByteSize()
    assert size + 16 <= convert.size_bound(item) <= size + 2500


@given(st.floats(0, 1e6))
def test_durations(seconds):
    assert convert.seconds_of(convert.duration_to_wire(seconds)) == pytest.approx(seconds, abs=1e-9)


def test_checksum_vectors():
    assert checksum.crc32c(b"123456789") == checksum.crc32c_numpy(b"123456789") == 0xE3069283
    assert checksum.crc32c_numpy(bytes(32)) == 0x8A9136AA  # RFC 3720, B.4
    assert checksum.crc32c_numpy(b"\xff" * 32) == 0x62A8AB43


@settings(max_examples=60)
@given(st.randoms(use_true_random=False), st.integers(0, 5000), st.integers(0, 0xFFFFFFFF))
def test_the_numpy_checksum_is_that_of_the_library(random, size, start):
    content = random.randbytes(size)
    assert checksum.crc32c_numpy(content, start) == google_crc32c.extend(start, content)


def test_the_numpy_checksum_of_several_blocks():
    content = np.random.default_rng(1).bytes((1 << 21) + 70_001)
    assert checksum.crc32c_numpy(memoryview(content)) == google_crc32c.value(content)


def test_a_source_is_cut_into_chunks():
    source = Source(np.arange(5, dtype=np.uint16), 4)
    assert list(source.chunks()) == [b"\0\0\1\0", b"\2\0\3\0", b"\4\0"]
    assert (source.size_bytes, source.checksum()) == (10, google_crc32c.value(b"".join(source.chunks())))
    assert list(Source(np.float32(1.0).reshape(()), 100).chunks()) == [np.float32(1).tobytes()]
    assert list(Source(np.zeros((0, 3)), 100).chunks()) == []


def test_options_are_checked_together():
    with pytest.raises(ac.InvalidArgument) as caught:
        ac.Options(timeout=0, pack_items=0, retry_backoff=-1)
    assert [part in caught.value.message for part in ("timeout", "pack_items", "retry_backoff")] == [True] * 3
    assert ac.Options().seconds(DEFAULT) == 30
    assert ac.Options().seconds(None) is None
    assert dict(ac.Options().channel_arguments())["grpc.max_receive_message_length"] >= 64 << 20
    assert repr(DEFAULT) == "DEFAULT"


def test_a_deadline_counts_down_to_zero():
    now = [10.0]
    deadline = Deadline(2.0, lambda: now[0])
    now[0] = 11.5
    assert deadline.remaining() == 0.5
    now[0] = 20
    assert deadline.remaining() == 0
    assert Deadline(None).remaining() is None
