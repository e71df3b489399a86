"""ModelInfer: one request, its answer or its error, its deadline, its cancellation, and where its tensors may be."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from aclserve.v1 import memory_pb2, memory_pb2_grpc
from aclserve_server.emulator import EmulatorConfig
from aclserve_server.kserve import inference_pb2 as pb
from e2e.raw import wait_until
from rpc.memory_server import details_of, info_of
from rpc.v2.v2_server import V2, outputs_of, request_of, v2
from rpc.v2.v2_stream import V2Stream, held, leaves_nothing, sessions, told, waiting
from serving import elementwise, put_model, rows
from shared_object import shared_object

INVALID = grpc.StatusCode.INVALID_ARGUMENT
ABSENT = grpc.StatusCode.NOT_FOUND
UNAVAILABLE = grpc.StatusCode.UNAVAILABLE
LATE = ("ITEM_EXPIRED", "DEADLINE_UNREACHABLE")
METHOD = "/inference.GRPCInferenceService/ModelInfer"


def two_outputs() -> onnx.ModelProto:
    """total = a + b, difference = a - b."""
    values = {
        name: helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", 4])
        for name in ("a", "b", "total", "difference")
    }
    nodes = [helper.make_node("Add", ["a", "b"], ["total"]), helper.make_node("Sub", ["a", "b"], ["difference"])]
    graph = helper.make_graph(nodes, "two", [values["a"], values["b"]], [values["total"], values["difference"]])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.fixture(scope="module", params=["device", "host"])
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[V2]:
    root = tmp_path_factory.mktemp("models")
    put_model(root, "plain", elementwise(), "version_policy { all {} }\n")
    put_model(root, "plain", elementwise("Neg"), version=3)
    put_model(root, "two", two_outputs())
    put_model(root, "fresh", elementwise())
    put_model(root, "two-rows", elementwise())
    put_model(root, "empty", elementwise("Identity", (2, 0)))
    config = EmulatorConfig(memory_bytes=256 << 20, run_mode=request.param)
    with v2(root, emulator=config, system_shared_memory=True, max_queue_rows=40) as up:
        yield up


@pytest.fixture(autouse=True)
def unchanged(served: V2) -> Iterator[None]:
    with leaves_nothing(served):
        yield


@pytest.fixture
def lease(served: V2) -> Iterator[str]:
    stub = memory_pb2_grpc.MemoryServiceStub(served.channel)
    lease_id = stub.CreateLease(memory_pb2.CreateLeaseRequest(), timeout=60).lease.id
    yield lease_id
    stub.ReleaseLease(memory_pb2.ReleaseLeaseRequest(), timeout=60, metadata=(("aclserve-lease", lease_id),))


def pair(count: int = 2) -> Any:
    """A request for the model of two outputs: rows from 5, and rows from 0."""
    request = pb.ModelInferRequest(model_name="two", id="pair")
    for name, first in (("a", 5), ("b", 0)):
        request.inputs.add(name=name, datatype="FP32", shape=[count, 4])
        request.raw_input_contents.append(rows(first, count).tobytes())
    return request


def test_the_answer_says_what_ran(served: V2) -> None:
    answer = served.call("ModelInfer", pair())
    assert (answer.model_name, answer.model_version, answer.id) == ("two", "1", "pair")
    assert [(one.name, one.datatype, list(one.shape)) for one in answer.outputs] == [
        ("total", "FP32", [2, 4]),
        ("difference", "FP32", [2, 4]),
    ]
    total, difference = (np.frombuffer(raw, np.float32).reshape(2, 4) for raw in answer.raw_output_contents)
    assert np.array_equal(total, rows(5, 2) + rows(0, 2))
    assert np.array_equal(difference, rows(5, 2) - rows(0, 2))
    assert not any(one.HasField("contents") for one in answer.outputs)
    assert not answer.parameters


@pytest.mark.parametrize("names", [("difference",), ("total",), ("difference", "total"), ("total", "difference")])
def test_outputs_that_are_asked_for_come_in_that_order(served: V2, names: tuple[str, ...]) -> None:
    request = pair()
    for name in names:
        request.outputs.add(name=name)
    answer = served.call("ModelInfer", request)
    assert tuple(one.name for one in answer.outputs) == names
    expected = {"total": rows(5, 2) + rows(0, 2), "difference": rows(5, 2) - rows(0, 2)}
    assert list(answer.raw_output_contents) == [expected[name].tobytes() for name in names]


@pytest.mark.parametrize(("version", "ran", "sign"), [("", "3", -1), ("3", "3", -1), ("1", "1", 1), ("0001", "1", 1)])
def test_versions(served: V2, version: str, ran: str, sign: int) -> None:
    answer = served.infer("plain", 2, version)
    assert answer.model_version == ran
    assert np.array_equal(outputs_of(answer), sign * rows(0, 2))


@pytest.mark.parametrize(
    ("model", "version", "code", "reason"),
    [
        ("plain", "2", ABSENT, "MODEL_NOT_FOUND"),
        ("plain", "x", INVALID, "VERSION_INVALID"),
        ("plain", "-1", INVALID, "VERSION_INVALID"),
        ("plain", "0", INVALID, "VERSION_INVALID"),
        ("plain", "1.0", INVALID, "VERSION_INVALID"),
        ("absent", "", ABSENT, "MODEL_NOT_FOUND"),
        ("absent", "1", ABSENT, "MODEL_NOT_FOUND"),
    ],
)
def test_models_that_are_not_there(served: V2, model: str, version: str, code: grpc.StatusCode, reason: str) -> None:
    text = served.refused("ModelInfer", request_of(model, 1, version), code, reason)
    assert repr(version if reason == "VERSION_INVALID" else model) in text


@pytest.mark.parametrize("message", [b"\x0a\xff", b"\xff" * 20, b"\x2a\x05abc"])
def test_a_message_that_is_none(served: V2, message: bytes) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        served.channel.unary_unary(METHOD)(message, timeout=60)
    error: Any = caught.value
    assert error.code() is INVALID
    assert info_of(details_of(error)).reason == "MALFORMED_MESSAGE"


def test_no_rows_and_no_elements(served: V2) -> None:
    assert outputs_of(served.infer("plain", 0)).shape == (0, 4)
    request = pb.ModelInferRequest(model_name="empty")
    request.inputs.add(name="x", datatype="FP32", shape=[2, 0])
    answer = served.call("ModelInfer", request)
    assert list(answer.outputs[0].shape) == [2, 0]
    assert list(answer.raw_output_contents) == [b""]


def test_a_full_queue_is_unavailable(served: V2) -> None:
    with held(served):
        calls = [served.stub.ModelInfer.future(request_of("fresh", 20), timeout=60) for _ in range(6)]
        refused = []
        wait_until(lambda: waiting(served, "fresh") >= 20, "rows wait")
        wait_until(lambda: sessions(served) + sum(call.done() for call in calls) == 6, "all have come")
    for call in calls:
        error: Any = call.exception()
        if error is None:
            assert outputs_of(call.result()).shape == (20, 4)
        else:
            refused.append((error.code(), info_of(details_of(error)).reason))
    assert refused
    assert set(refused) == {(UNAVAILABLE, "QUEUE_FULL")}


def test_a_cancelled_call_frees_its_row(served: V2) -> None:
    before = served.up.emulator.counters.executions
    with held(served):
        first = served.stub.ModelInfer.future(request_of("plain"), timeout=60)
        wait_until(lambda: served.up.emulator.counters.calls["aclmdlExecuteAsync"] and sessions(served) == 1, "it runs")
        calls = [served.stub.ModelInfer.future(request_of("two-of-none"), timeout=60)]
        calls += [served.stub.ModelInfer.future(pair(), timeout=60) for _ in range(5)]
        wait_until(lambda: waiting(served, "two") >= 3, "rows wait")
        for call in calls:
            call.cancel()
        wait_until(lambda: waiting(served, "two") == 0, "none waits any more")
        wait_until(lambda: sessions(served) == 1, "the calls have ended")
    assert outputs_of(first.result()).shape == (1, 4)
    assert served.up.emulator.counters.executions - before <= 3


def test_a_deadline_of_a_call(served: V2) -> None:
    with held(served):
        with pytest.raises(grpc.RpcError) as caught:
            served.stub.ModelInfer(pair(), timeout=0.3)
        assert caught.value.code() in (grpc.StatusCode.DEADLINE_EXCEEDED, UNAVAILABLE)  # type: ignore[attr-defined]
        wait_until(lambda: not sessions(served), "the call has ended")
        assert waiting(served, "two") == 0


def test_the_sooner_of_both_deadlines_is_the_item_s(served: V2, monkeypatch: pytest.MonkeyPatch) -> None:
    """That of the call, and that of the parameter, for calls and for streams."""
    runner: Any = served.up.server.engine.find("plain", 0).runner
    submit, given = runner.submit, []

    def noted(item: Any, sink: Any) -> Any:
        given.append(item.timeout_s)
        return submit(item, sink)

    monkeypatch.setattr(runner, "submit", noted)
    asked = [request_of("plain", timeout_us=microseconds) for microseconds in (0, 20_000_000, 90_000_000)]
    for one in asked:
        served.stub.ModelInfer(one, timeout=40)
    stream = V2Stream(served, timeout=40)
    stream.send(*asked)
    assert not any(answer.error_message for answer in stream.finish())
    served.stub.ModelInfer(asked[0])
    assert given.pop() is None
    for call_s, twenty_s, ninety_s in (given[:3], given[3:]):
        assert twenty_s == 20
        assert 20 < call_s < 41  # the wire rounds it up
        assert 20 < ninety_s < 41


def test_the_timeout_parameter_bounds_the_wait(served: V2) -> None:
    """Its microseconds are of the queue; the answer is UNAVAILABLE, as Triton's is."""
    with held(served):
        running = [served.stub.ModelInfer.future(request_of("fresh"), timeout=60) for _ in range(3)]
        wait_until(lambda: sessions(served) == 3, "the device is busy")
        with pytest.raises(grpc.RpcError) as caught:
            served.stub.ModelInfer(request_of("fresh", timeout_us=1000), timeout=60)
        error: Any = caught.value
        assert error.code() is UNAVAILABLE
        assert info_of(details_of(error)).reason in LATE
    assert all(outputs_of(call.result()).shape == (1, 4) for call in running)


def test_a_server_that_stops_answers_its_calls(tmp_path: Path) -> None:
    put_model(tmp_path, "plain", elementwise())
    with v2(tmp_path, emulator=EmulatorConfig(memory_bytes=64 << 20)) as other:
        with held(other):
            calls = [other.stub.ModelInfer.future(request_of("plain"), timeout=60) for _ in range(5)]
            wait_until(lambda: sessions(other) == 5, "all have come")
            stopped = asyncio.run_coroutine_threadsafe(other.up.server.stop(), other.up.loop)
            wait_until(lambda: other.up.server.calls.going_away, "the server stops")
        assert all(np.array_equal(outputs_of(call.result()), rows(0, 1)) for call in calls)
        stopped.result(30)


# Tensors in shared memory and in buffers.


def place(tensor: Any, name: str, size: int, offset: int = 0) -> None:
    tensor.parameters["shared_memory_region"].string_param = name
    tensor.parameters["shared_memory_byte_size"].int64_param = size
    if offset:
        tensor.parameters["shared_memory_offset"].int64_param = offset


def buffer(served: V2, lease: str, content: bytes) -> str:
    """A buffer of the memory service."""
    memory, metadata = memory_pb2_grpc.MemoryServiceStub(served.channel), (("aclserve-lease", lease),)
    request = memory_pb2.AllocateBufferRequest(space=memory_pb2.MEMORY_SPACE_DEVICE, size_bytes=len(content))
    made = str(memory.AllocateBuffer(request, metadata=metadata, timeout=60).buffer.id)
    header = memory_pb2.WriteBufferHeader(buffer_id=made, length_bytes=len(content))
    parts = [memory_pb2.WriteBufferRequest(header=header), memory_pb2.WriteBufferRequest(data=content)]
    memory.WriteBuffer(iter(parts), metadata=metadata, timeout=60)
    return made


def content_of(served: V2, lease: str, buffer_id: str, size: int) -> bytes:
    memory, metadata = memory_pb2_grpc.MemoryServiceStub(served.channel), (("aclserve-lease", lease),)
    request = memory_pb2.ReadBufferRequest(buffer_id=buffer_id, length_bytes=size)
    return b"".join(part.data for part in memory.ReadBuffer(request, metadata=metadata, timeout=60))


@contextlib.contextmanager
def region(served: V2, name: str, content: bytes, lease: str = "") -> Iterator[Any]:
    """A registered region over a new object."""
    with shared_object(content) as made:
        request = pb.SystemSharedMemoryRegisterRequest(name=name, key=made.key, byte_size=len(content))
        served.call("SystemSharedMemoryRegister", request, lease)
        try:
            yield made
        finally:
            served.call("SystemSharedMemoryUnregister", pb.SystemSharedMemoryUnregisterRequest(name=name), lease)


def test_raw_entries_are_for_the_inputs_that_are_not_in_a_region(served: V2) -> None:
    """Also with one output in a region and one inline: its raw entry is empty, and the other keeps its place."""
    first, second = rows(5, 2), rows(0, 2)
    with region(served, "shm", bytes(64) + first.tobytes() + bytes(64)) as made:
        request = pair()
        del request.raw_input_contents[0]
        place(request.inputs[0], "shm", 32, 64)
        place(request.outputs.add(name="total"), "shm", 64)
        request.outputs.add(name="difference")
        answer = served.call("ModelInfer", request)
        assert list(answer.raw_output_contents) == [b"", (first - second).tobytes()]
        echoed = answer.outputs[0].parameters
        assert (echoed["shared_memory_region"].string_param, echoed["shared_memory_byte_size"].int64_param) == (
            "shm",
            64,
        )
        assert made.read(0, 64) == (first + second).tobytes() + bytes(32)
        request.raw_input_contents.append(b"more")
        served.refused("ModelInfer", request, INVALID, "RAW_CONTENTS_LEFT_OVER")
        del request.raw_input_contents[:]
        served.refused("ModelInfer", request, INVALID, "INPUT_DATA_MISSING")


def test_buffers_of_a_lease_are_named_as_regions(served: V2, lease: str) -> None:
    """A region of the same lease and a buffer in one request, unary and streamed; both need the lease."""
    first, second = rows(5, 2), rows(0, 2)
    source, target = buffer(served, lease, first.tobytes()), buffer(served, lease, bytes(32))
    with region(served, "shm", second.tobytes(), lease):
        request = pair()
        del request.raw_input_contents[:]
        place(request.inputs[0], source, 32)
        place(request.inputs[1], "shm", 32)
        place(request.outputs.add(name="difference"), target, 32)
        request.outputs.add(name="total")
        answer = served.call("ModelInfer", request, lease)
        assert list(answer.raw_output_contents) == [b"", (first + second).tobytes()]
        assert answer.outputs[0].parameters["shared_memory_region"].string_param == target
        assert content_of(served, lease, target, 32) == (first - second).tobytes()

        stream = V2Stream(served, lease=lease)
        place(request.inputs[0], target, 32)
        stream.send(request, request)  # each reads what the one before it wrote
        answers = [answer.infer_response for answer in stream.finish()]
        assert [list(one.raw_output_contents) for one in answers] == [
            [b"", first.tobytes()],
            [b"", (first - second).tobytes()],
        ]
        assert content_of(served, lease, target, 32) == (first - 3 * second).tobytes()

        served.refused("ModelInfer", request, ABSENT, "REGION_NOT_FOUND")
        stream = V2Stream(served)
        stream.send(request)
        (error,) = stream.finish()
        assert error.error_message.startswith("[request id: pair] ")


def test_a_region_goes_before_a_buffer_of_the_same_name(served: V2, lease: str) -> None:
    name = buffer(served, lease, rows(8, 1).tobytes())
    request = request_of("plain", version="1")
    del request.raw_input_contents[:]
    place(request.inputs[0], name, 16)
    assert np.array_equal(outputs_of(served.call("ModelInfer", request, lease)), rows(8, 1))
    with region(served, name, rows(3, 1).tobytes(), lease):
        assert np.array_equal(outputs_of(served.call("ModelInfer", request, lease)), rows(3, 1))


def test_a_range_outside_a_buffer(served: V2, lease: str) -> None:
    source = buffer(served, lease, rows(0, 1).tobytes())
    request = request_of("plain")
    del request.raw_input_contents[:]
    for offset in (4, 16, 2**62):
        place(request.inputs[0], source, 16, offset)
        served.refused("ModelInfer", request, INVALID, "RANGE_OUTSIDE_BUFFER", lease)
    small = request_of("plain")
    place(small.outputs.add(name="y"), source, 8)
    text = served.refused("ModelInfer", small, grpc.StatusCode.INTERNAL, "BUFFER_TOO_SMALL", lease)
    assert "16" in text
    assert "8" in text


def test_streamed_requests_through_regions(served: V2) -> None:
    """Each has a place of its own: nothing orders the reads and writes of a region."""
    values = rows(0, 20)
    with region(served, "in", values.tobytes()), region(served, "out", bytes(values.nbytes)) as made:
        stream = V2Stream(served)
        for index in range(20):
            request = pb.ModelInferRequest(model_name="plain", id=str(index))
            place(request.inputs.add(name="x", datatype="FP32", shape=[1, 4]), "in", 16, 16 * index)
            place(request.outputs.add(name="y"), "out", 16, 16 * (19 - index))
            stream.send(request)
        answers = stream.finish()
        assert [answer.infer_response.id for answer in answers] == [str(index) for index in range(20)]
        assert not any(answer.error_message for answer in answers)
        assert [list(answer.infer_response.raw_output_contents) for answer in answers] == [[b""]] * 20
        written = np.frombuffer(made.read(0, values.nbytes), np.float32).reshape(values.shape)
        assert np.array_equal(written, -values[::-1])


def test_streams_and_calls_beside_each_other(served: V2) -> None:
    streams = [V2Stream(served) for _ in range(4)]
    for count in range(1, 20):
        for stream in streams:
            stream.send(request_of("plain", count))
    for count in range(1, 8):
        assert np.array_equal(outputs_of(served.infer("two-rows", count)), rows(0, count))
    for stream in streams:
        for count, answer in enumerate(stream.finish(), 1):
            assert np.array_equal(told(answer)[1], -rows(0, count))
