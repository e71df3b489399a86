"""Answers of the v2 codec: the bytes that the generated classes would write."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aclserve.errors import InvalidArgument
from aclserve_server.engine.items import BufferSlice, OutputTensor, RegionSlice, Result
from aclserve_server.kserve import inference_pb2 as pb
from aclserve_server.rpc.v2.datatypes import BY_DTYPE, BYTES, DATATYPES, data_type_of, datatype_of
from aclserve_server.rpc.v2.wire_out import (
    BytesTensor,
    assemble_infer_response,
    assemble_stream_error,
    assemble_stream_response,
)

FLOAT32 = np.dtype(np.float32)


def generated(model: str, version: int, client_id: str, result: Result) -> pb.ModelInferResponse:
    made = pb.ModelInferResponse(model_name=model, model_version=str(version) if version else "", id=client_id)
    for output in result.outputs or ():
        one = made.outputs.add(name=output.name, datatype=datatype_of(output.dtype), shape=output.shape)
        place = output.region or output.buffer
        if place is not None:
            name = place.name if isinstance(place, RegionSlice) else place.buffer_id
            one.parameters["shared_memory_region"].string_param = name
            one.parameters["shared_memory_byte_size"].int64_param = place.length_bytes
            if place.offset_bytes:
                one.parameters["shared_memory_offset"].int64_param = place.offset_bytes
        made.raw_output_contents.append(bytes(output.data or b""))
    return made


def tensors() -> st.SearchStrategy[OutputTensor]:
    names = st.text(max_size=6)
    dtypes = st.sampled_from([row.dtype for row in DATATYPES.values()])
    shapes = st.lists(st.integers(0, 300), max_size=3).map(tuple)
    places = st.builds(RegionSlice, st.text(max_size=4), st.integers(0, 1 << 40), st.integers(0, 1 << 40))
    inline = st.builds(lambda *parts: OutputTensor(*parts), names, dtypes, shapes, st.binary(max_size=300))
    return st.one_of(
        inline,
        inline,
        st.builds(
            lambda name, dtype, shape, at: OutputTensor(name, dtype, shape, region=at), names, dtypes, shapes, places
        ),
    )


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(st.text(max_size=9), st.integers(0, 1 << 62), st.text(max_size=200), st.lists(tensors(), max_size=4))
def test_equals_the_generated_classes(model: str, version: int, client_id: str, outputs: list[OutputTensor]) -> None:
    result = Result("", outputs=outputs)
    expected = generated(model, version, client_id, result)
    for _ in range(2):
        message = assemble_infer_response(model, version, client_id, result)
        assert pb.ModelInferResponse.FromString(message) == expected
        if not any(output.region for output in outputs):
            assert message == expected.SerializeToString()
        streamed = pb.ModelStreamInferResponse.FromString(assemble_stream_response(model, version, client_id, result))
        final = pb.ModelInferResponse()
        final.CopyFrom(expected)
        final.parameters["triton_final_response"].bool_param = True
        assert streamed == pb.ModelStreamInferResponse(infer_response=final)


def test_one_raw_entry_for_each_output_even_without_data() -> None:
    outputs = [
        OutputTensor("a", FLOAT32, (0, 4), b""),
        OutputTensor("b", FLOAT32, (1,), region=RegionSlice("r", 8, 4)),
        OutputTensor("c", FLOAT32, (1,), memoryview(b"1234")),
        OutputTensor("d", FLOAT32, (1,), buffer=BufferSlice("buffer", 0, 4)),
    ]
    read = pb.ModelInferResponse.FromString(assemble_infer_response("m", 1, "", Result("", outputs=outputs)))
    assert list(read.raw_output_contents) == [b"", b"", b"1234", b""]
    assert [output.name for output in read.outputs] == ["a", "b", "c", "d"]
    assert read.outputs[1].parameters["shared_memory_region"].string_param == "r"
    assert read.outputs[1].parameters["shared_memory_offset"].int64_param == 8
    assert read.outputs[3].parameters["shared_memory_byte_size"].int64_param == 4
    assert "shared_memory_offset" not in read.outputs[3].parameters


def test_a_head_does_not_outlive_its_size() -> None:
    for size in (4, 8, 4):
        output = OutputTensor("y", FLOAT32, (-1,), bytes(size))
        read = pb.ModelInferResponse.FromString(assemble_infer_response("m", 1, "", Result("", outputs=[output])))
        assert read.raw_output_contents[0] == bytes(size)
        assert list(read.outputs[0].shape) == [-1]


def test_data_of_several_dimensions_is_counted_in_bytes() -> None:
    data = memoryview(np.arange(6, dtype=np.float32).reshape(2, 3)).toreadonly()
    read = pb.ModelInferResponse.FromString(
        assemble_infer_response("m", 1, "", Result("", outputs=[OutputTensor("y", FLOAT32, (2, 3), data)]))
    )
    assert read.raw_output_contents[0] == data.tobytes()


def test_bytes_tensors() -> None:
    output = BytesTensor("y", (1, 1), b"\x03\x00\x00\x001:0")
    assert output.dtype is BYTES
    read = pb.ModelInferResponse.FromString(assemble_infer_response("m", 1, "", Result("", outputs=[output])))
    assert (read.outputs[0].datatype, read.raw_output_contents[0]) == ("BYTES", b"\x03\x00\x00\x001:0")


def test_an_error_is_raised() -> None:
    result = Result("", error=InvalidArgument("no", reason="NO"))
    for assemble in (assemble_infer_response, assemble_stream_response):
        with pytest.raises(InvalidArgument, match="no"):
            assemble("m", 1, "7", result)


@pytest.mark.parametrize("text", ["wrong", "\u00e9" * 300, "\ud800", ""])
@pytest.mark.parametrize("client_id", ["", "7", "i" * 200])
def test_errors_of_a_stream(text: str, client_id: str) -> None:
    early = pb.ModelStreamInferResponse.FromString(assemble_stream_error(text, client_id))
    assert early.error_message == (text or "the request failed").replace("\ud800", "?")
    assert early.infer_response == pb.ModelInferResponse(id=client_id)
    assert early.HasField("infer_response")
    assert pb.ModelStreamInferResponse.FromString(assemble_stream_error(text, client_id, "m")) == early
    late = pb.ModelStreamInferResponse.FromString(assemble_stream_error(text, client_id, "m", 3))
    expected = pb.ModelInferResponse(id=client_id, model_name="m", model_version="3")
    expected.parameters["triton_final_response"].bool_param = True
    assert (late.error_message, late.infer_response) == (early.error_message, expected)


def test_the_table_of_datatypes() -> None:
    assert len(BY_DTYPE) == len(DATATYPES) == 14
    assert (datatype_of(FLOAT32), data_type_of(FLOAT32)) == ("FP32", 11)
    assert datatype_of(np.dtype(ml_dtypes.bfloat16)) == "BF16"
    contents = pb.InferTensorContents.DESCRIPTOR.fields_by_name
    for row in DATATYPES.values():
        assert row.contents_number == (contents[row.contents].number if row.contents else 0)
    with pytest.raises(KeyError):
        datatype_of(np.dtype(np.complex64))
