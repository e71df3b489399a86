"""The assembler against the generated classes: it writes, byte for byte, what they write for the same values."""

from __future__ import annotations

import os
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aclserve import errors
from aclserve.tensors import DTYPES
from aclserve.v1 import model_pb2 as pb
from aclserve_server.engine.items import BufferSlice, Dropped, DropReason, OutputTensor, RegionSlice, Result, Timing
from aclserve_server.rpc import wire_out
from aclserve_server.rpc.wire_out import assemble_infer_response, assemble_results
from rpc import wire_messages as wire

often = settings(
    max_examples=int(os.environ.get("ACLSERVE_TEST_EXAMPLES", "150")),
    deadline=None,
    derandomize="ACLSERVE_TEST_EXAMPLES" not in os.environ,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
NUMBERS64 = st.one_of(st.integers(0, 1 << 15), st.integers(0, 1 << 30), st.integers(0, (1 << 64) - 1))
NUMBERS32 = st.one_of(st.integers(0, 300), st.integers(0, (1 << 32) - 1))
TIMING_FIELDS = [field.name for field in pb.Timing.DESCRIPTOR.fields]


@st.composite
def output_tensors(draw: st.DrawFn) -> OutputTensor:
    dtype = DTYPES[draw(st.integers(1, 13))]
    shape = tuple(draw(st.lists(st.sampled_from([0, 1, 2, 3, 130]), max_size=3)))
    name = draw(st.sampled_from(["", "output", "é", "n" * 200]))
    kind = draw(st.integers(0, 4))
    if kind == 4:
        return OutputTensor(
            name, dtype, shape, region=RegionSlice(draw(st.text(max_size=3)), draw(NUMBERS64), draw(NUMBERS64))
        )
    if kind == 0:
        return OutputTensor(
            name, dtype, shape, buffer=BufferSlice(draw(st.text(max_size=3)), draw(NUMBERS64), draw(NUMBERS64))
        )
    data = bytes(int(np.prod(shape)) * dtype.itemsize)
    if kind == 1 and data:  # a view with items of more than a byte, and dimensions
        return OutputTensor(name, dtype, shape, memoryview(np.frombuffer(data, np.uint8).reshape(1, -1)))
    return OutputTensor(name, dtype, shape, memoryview(data) if kind == 2 else data)


@st.composite
def failures(draw: st.DrawFn) -> errors.AclserveError:
    kind = draw(st.sampled_from([errors.ResourceExhausted, errors.InvalidArgument, errors.Internal]))
    return kind(
        draw(st.text(max_size=20)),
        reason=draw(st.sampled_from(["QUEUE_FULL", "R"])),
        metadata=draw(st.dictionaries(st.text(max_size=4), st.text(max_size=4), max_size=3)),
        retry_delay=draw(st.one_of(st.none(), st.sampled_from([0.0, 0.05, 1.0, 2.75, 86_400.0]))),
    )


@st.composite
def results(draw: st.DrawFn) -> Result:
    result = Result(draw(st.sampled_from(["", "a", "frame-0001", "ü" * 64])))
    kind = draw(st.integers(0, 6))
    if kind == 0:
        result.error = draw(failures())
    elif kind == 6:
        result.dropped = Dropped(draw(st.sampled_from(DropReason)), draw(NUMBERS64))
    elif kind < 5:
        result.outputs = draw(st.lists(output_tensors(), max_size=3))
    if draw(st.booleans()):
        values = [draw(NUMBERS64 if name.endswith("_ns") else NUMBERS32) for name in TIMING_FIELDS]
        result.timing = Timing(**dict(zip(TIMING_FIELDS, values, strict=True)))
    if draw(st.booleans()):
        result.capture_time = draw(st.sampled_from([b"\x08\x05", b"\x08\x80\x93\xea\xd5\x06\x10\x07"]))
    return result


def expected(result: Result) -> pb.InferResult:
    """The result by the generated classes."""
    made = pb.InferResult(id=result.item_id)
    if result.error is not None:
        error = result.error
        made.error.code = error.code
        made.error.reason = error.reason
        made.error.message = error.message
        for key, value in error.metadata.items():
            made.error.metadata[key] = value
        if error.retry_delay is not None:
            made.error.retry_delay.FromNanoseconds(round(error.retry_delay * 1e9))
    elif result.dropped is not None:
        made.dropped.reason = result.dropped.reason
        made.dropped.age_ns = result.dropped.age_ns
    elif result.outputs is not None:
        made.outputs.SetInParent()
        for output in result.outputs:
            tensor = made.outputs.tensors.add(
                name=output.name, data_type=wire.DATA_TYPES[output.dtype], shape=output.shape
            )
            if output.data is not None:
                tensor.data = bytes(output.data)
            elif output.region is not None:
                tensor.region.region_id = output.region.name
                tensor.region.offset_bytes = output.region.offset_bytes
                tensor.region.length_bytes = output.region.length_bytes
            elif output.buffer is not None:
                tensor.buffer.buffer_id = output.buffer.buffer_id
                tensor.buffer.offset_bytes = output.buffer.offset_bytes
                tensor.buffer.length_bytes = output.buffer.length_bytes
    if result.timing is not None:
        made.timing.SetInParent()
        for name in TIMING_FIELDS:
            setattr(made.timing, name, getattr(result.timing, name))
    if result.capture_time:
        made.capture_time.MergeFromString(result.capture_time)
    return made


def has_many_metadata(result: Result) -> bool:
    """A map with several entries is written in no certain order."""
    return result.error is not None and len(result.error.metadata) > 1


@given(st.lists(results(), min_size=1, max_size=4))
@often
def test_results_are_written_as_the_generated_classes_write_them(items: list[Result]) -> None:
    reference = pb.StreamInferResponse(results=pb.ResultList(results=[expected(item) for item in items]))
    for _ in range(2):
        (message,) = assemble_results(items)
        assert pb.StreamInferResponse.FromString(message) == reference
        if not any(map(has_many_metadata, items)):
            assert message == reference.SerializeToString()


@given(results())
@often
def test_a_response_is_written_as_the_generated_classes_write_it(result: Result) -> None:
    if result.error is not None:
        with pytest.raises(type(result.error)) as raised:
            assemble_infer_response(result)
        assert raised.value is result.error
        return
    message = assemble_infer_response(result)
    reference = expected(result).SerializeToString()
    assert message == reference
    assert pb.InferResponse.FromString(message).SerializeToString() == reference


@given(st.lists(results(), max_size=12), st.integers(1, 3000))
@often
def test_messages_stay_below_the_limit_and_lose_nothing(items: list[Result], limit: int) -> None:
    messages = assemble_results(items, limit)
    parsed = [pb.StreamInferResponse.FromString(message) for message in messages]
    assert [result for one in parsed for result in one.results.results] == [expected(item) for item in items]
    assert all(len(one.results.results) == 1 for one, raw in zip(parsed, messages, strict=True) if len(raw) > limit)
    for first, second in pairwise(parsed):
        together = first.ByteSize() + pb.ResultList(results=second.results.results[:1]).ByteSize() + 6
        assert together > limit  # no message is split that need not be


def test_messages_stay_below_every_limit() -> None:
    items = [Result(f"{number:04}", outputs=[OutputTensor("y", DTYPES[2], (9,), bytes(9))]) for number in range(9)]
    for limit in range(1, 600):
        messages = assemble_results(items, limit)
        single = len(assemble_results(items[:1])[0])
        assert all(len(message) <= max(limit, single) for message in messages)


def test_data_that_does_not_fit_its_shape_is_still_written_right() -> None:
    for nbytes in (4, 5, 300, 4):
        result = Result("a", outputs=[OutputTensor("y", DTYPES[2], (4,), bytes(nbytes))])
        assert assemble_infer_response(result) == expected(result).SerializeToString()


def test_no_results_are_no_message() -> None:
    assert assemble_results([], 10) == []


def test_a_golden_message() -> None:
    result = Result(
        "7",
        b"\x08\x05",
        [OutputTensor("y", np.dtype(np.float32), (1, 2), memoryview(b"\0\0\x80?\0\0\0@"))],
        timing=Timing(300, 1, 2, 3, 20_000, 4, 4, 1),
    )
    golden = (
        "1235" "0a33" "0a0137" "1215" "0a13" "0a0179" "100c" "1a020102" "2208" "0000803f00000040"
        "2213" "08ac02" "1001" "1802" "2003" "28a09c01" "3004" "3804" "4001" "2a020805"
    )  # fmt: skip
    (message,) = assemble_results([result])
    assert message == pb.StreamInferResponse(results=pb.ResultList(results=[expected(result)])).SerializeToString()
    assert message.hex() == golden


def test_text_that_utf8_cannot_hold_does_not_stop_an_answer() -> None:
    error = errors.Internal("lone \udc80", reason="R", metadata={"path": "\udcff"}, retry_delay=-1.0)
    (message,) = assemble_results([Result("a", error=error)])
    parsed = pb.StreamInferResponse.FromString(message).results.results[0].error
    assert (parsed.message, parsed.metadata["path"]) == ("lone ?", "?")
    assert parsed.HasField("retry_delay")
    assert parsed.retry_delay.ToNanoseconds() == 0


def test_an_items_error_is_as_long_as_a_calls_at_most() -> None:
    error = errors.Internal("m" * 5000, reason="R", metadata={f"k{n}": "v" * 5000 for n in range(50)})
    (message,) = assemble_results([Result("a", error=error)])
    assert len(message) < 4096
    assert pb.StreamInferResponse.FromString(message).results.results[0].error.reason == "R"


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire_out, "_MAX_REMEMBERED", 16)
    monkeypatch.setattr(wire_out, "_MAX_BATCHES", 16)
    for number in range(100):
        output = OutputTensor("y", np.dtype(np.uint8), (number,), bytes(number))
        result = Result("a", outputs=[output], timing=Timing(1, number, 2, 3, 4, number, 5, 6, 7))
        (message,) = assemble_results([result])
        assert message == pb.StreamInferResponse(results=pb.ResultList(results=[expected(result)])).SerializeToString()
        assert max(len(wire_out._heads), len(wire_out._device_times), len(wire_out._places)) <= 16
