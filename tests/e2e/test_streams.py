"""The stream protocol, message by message: what the contract of `StreamInfer` says, against a real server."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from grpc_health.v1 import health_pb2
from onnx import TensorProto

from aclserve.v1 import memory_pb2, model_pb2
from aclserve.v1.tensor_pb2 import (
    DATA_TYPE_BOOL,
    DATA_TYPE_FLOAT16,
    DATA_TYPE_FLOAT32,
    DATA_TYPE_FLOAT64,
    DATA_TYPE_INT8,
    DATA_TYPE_UINT64,
    FILL_PATTERN_RANDOM,
    FILL_PATTERN_ZEROS,
    BufferSlice,
    Fill,
    Tensor,
)
from aclserve_server.emulator import EmulatorConfig
from aclserve_server.engine.engine import State
from e2e.raw import (
    HUGE,
    Raw,
    RawStream,
    answer,
    array_of,
    item,
    item_refusal,
    leaves_nothing,
    queued,
    reason,
    refused,
    tensor,
    wait_until,
)
from serving import Serving, elementwise, put_model, rows, serving

COMPLETION, SUBMISSION = model_pb2.RESULT_ORDER_COMPLETION, model_pb2.RESULT_ORDER_SUBMISSION
Config = model_pb2.StreamConfig
EMULATED = EmulatorConfig(memory_bytes=256 << 20)
ON_A_CARD = EmulatorConfig(memory_bytes=256 << 20, run_mode="host")
TYPES: dict[str, tuple[int, Any]] = {
    "bool": (TensorProto.BOOL, DATA_TYPE_BOOL),
    "float16": (TensorProto.FLOAT16, DATA_TYPE_FLOAT16),
    "float32": (TensorProto.FLOAT, DATA_TYPE_FLOAT32),
    "float64": (TensorProto.DOUBLE, DATA_TYPE_FLOAT64),
    "int8": (TensorProto.INT8, DATA_TYPE_INT8),
    "uint64": (TensorProto.UINT64, DATA_TYPE_UINT64),
}


FRESH = ("fresh-0", "fresh-1", "fresh-2")
"""Models for one test each, of which the server has not learned yet how long they take."""


@pytest.fixture(scope="module", params=[EMULATED, ON_A_CARD], ids=["device", "host"])
def service(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    root = tmp_path_factory.mktemp("models")
    for name in ("one", "two", *FRESH):
        put_model(root, name, elementwise())
    put_model(root, "wide", elementwise("Identity", ("rows", 1 << 16), TensorProto.DOUBLE))
    put_model(root, "alone", elementwise("Relu"), "max_batch_size: 0\n")
    for name, (onnx_type, _) in TYPES.items():
        put_model(root, name, elementwise("Identity", ("rows", 50), onnx_type))
    with serving(root, emulator=request.param, max_stream_items=16, max_queue_rows=40) as up:
        assert all(record.state is State.READY for record in up.server.engine.records())
        yield up


@pytest.fixture(scope="module")
def raw(service: Serving) -> Iterator[Raw]:
    with Raw(service.address) as connected:
        yield connected


@pytest.fixture(autouse=True)
def unchanged(service: Serving, raw: Raw, caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Every test leaves no stream, no waiting row, no handle, and no unforeseen error in the log."""
    with leaves_nothing(service, raw, caplog):
        yield


def executions(service: Serving) -> int:
    return service.emulator.counters.executions


def submitted(service: Serving) -> int:
    """Asynchronous executions submitted to the device, run or not."""
    return service.emulator.counters.calls["aclmdlExecuteAsync"]


def received(service: Serving) -> int:
    """Items received on the only stream there is."""
    (session,) = service.server.models.sessions
    return session.received


def x(first: int = 0, count: int = 1) -> Tensor:
    return tensor("x", rows(first, count))


def bad(item_id: str = "bad") -> model_pb2.InferItem:
    return item(item_id, tensor("x", rows(0, 1)[:, :3]))


def occupy(service: Serving, stream: RawStream, model: str = "one") -> None:
    """Holds the device with one item, `first`, of a model on it, so that whatever comes next waits."""
    service.emulator.hold()
    before = submitted(service)
    stream.items(item("first", x(), model=model))
    wait_until(lambda: submitted(service) == before + 1, "the first item is on the device")


# Configuration.


def test_ready_states_what_holds(raw: Raw) -> None:
    for order, told in ((0, COMPLETION), (COMPLETION, COMPLETION), (SUBMISSION, SUBMISSION)):
        for window, stated in ((0, 16), (1, 1), (16, 16), (17, 16), ((1 << 32) - 1, 16)):
            stream = raw.stream()
            stream.send(model_pb2.StreamInferRequest(config=Config(order=order, max_pending_items=window)))  # type: ignore[arg-type]
            ready = stream.read().ready
            assert (ready.order, ready.max_pending_items, ready.max_message_bytes) == (told, stated, 64 << 20)
            assert stream.finish() == []
            assert stream.totals() == (0, 0, 0)


def test_an_order_that_does_not_exist(raw: Raw) -> None:
    stream = raw.stream()
    stream.send(model_pb2.StreamInferRequest(config=Config(order=7)))  # type: ignore[arg-type]
    refusal = stream.end()
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "STREAM_CONFIG_INVALID")
    assert "order 7" in refusal.message


@pytest.mark.parametrize("first", ["items", "cancel"])
def test_the_configuration_comes_first(raw: Raw, first: str) -> None:
    stream = raw.stream()
    if first == "items":
        stream.items(item("a", x(), model="one"))
    else:
        stream.cancel_items("a")
    refusal = stream.end()
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "STREAM_NOT_CONFIGURED")


def test_the_configuration_comes_once(service: Serving, raw: Raw) -> None:
    stream = raw.stream(Config(model="one"))
    occupy(service, stream)
    stream.send(model_pb2.StreamInferRequest(config=Config(model="one")))
    refusal = stream.end()
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "STREAM_ALREADY_CONFIGURED")


def test_half_close_at_once(raw: Raw) -> None:
    stream = raw.stream()
    assert stream.finish() == []
    assert stream.totals() == (0, 0, 0)


def test_half_close_after_the_configuration(raw: Raw) -> None:
    stream = raw.stream(Config(model="one"))
    assert stream.finish() == []
    assert stream.totals() == (0, 0, 0)


def test_an_empty_list_of_items(raw: Raw) -> None:
    stream = raw.stream(Config(model="one"))
    stream.items()
    stream.items(item("a", x(5)))
    (only,) = stream.finish()
    assert (only.id, answer(only)) == ("a", rows(5, 1).tobytes())


def test_items_name_models_of_their_own(raw: Raw) -> None:
    stream = raw.stream(Config(model="one", order=SUBMISSION))
    stream.items(item("a", x(1)), item("b", x(2), model="two"))
    stream.items(item("c", x(3), model="nope"), item("d", x(), version=7))
    a, b, c, d = stream.finish()
    assert (answer(a), answer(b)) == (rows(1, 1).tobytes(), rows(2, 1).tobytes())
    assert (reason(c), reason(d)) == ("MODEL_NOT_FOUND", "MODEL_NOT_FOUND")
    assert stream.totals() == (4, 2, 2)


def test_a_version_in_the_configuration(raw: Raw) -> None:
    stream = raw.stream(Config(model="one", version=7, order=SUBMISSION))
    stream.items(item("a", x()), item("b", x(), version=1), item("c", x(), model="two"))
    a, b, c = stream.finish()
    assert reason(a) == "MODEL_NOT_FOUND"
    assert answer(b)
    assert answer(c)


def test_the_capture_time_comes_back(raw: Raw) -> None:
    times = [Timestamp(), Timestamp(seconds=1, nanos=999_999_999), Timestamp(seconds=-(1 << 40), nanos=7)]
    stream = raw.stream(Config(model="one", order=SUBMISSION))
    stream.items(*(item(str(index), x(), capture_time=value) for index, value in enumerate(times)))
    stream.items(item("bad", capture_time=times[1]), item("none", x()))
    results = stream.finish()
    assert [result.capture_time for result in results[:4]] == [*times, times[1]]
    assert [result.HasField("capture_time") for result in results] == [True] * 4 + [False]
    assert reason(results[3]) == "INPUT_MISSING"


# Ids.


def test_an_empty_id_becomes_the_position(raw: Raw) -> None:
    stream = raw.stream(Config(model="one", order=SUBMISSION))
    stream.items(item("", x(0)), item("name", x(1)), item("", x(2)))
    stream.items(item("", x(3)), bad(""))
    results = stream.finish()
    assert [result.id for result in results] == ["0", "name", "2", "3", "4"]
    assert [answer(result) for result in results[:4]] == [rows(index, 1).tobytes() for index in range(4)]


@pytest.mark.parametrize("order", [COMPLETION, SUBMISSION])
def test_an_id_in_flight_is_refused_and_the_item_in_flight_is_not_disturbed(
    service: Serving, raw: Raw, order: Any
) -> None:
    stream = raw.stream(Config(model="one", order=order))
    occupy(service, stream)
    stream.items(item("a", x(1)), item("first", x(9)), item("a", x(9)), item("b", x(2)))
    wait_until(lambda: received(service) == 5, "all items are received")
    service.emulator.release()
    results = stream.finish()
    told = {result.id: answer(result) for result in results if result.WhichOneof("outcome") == "outputs"}
    assert told == {"first": rows(0, 1).tobytes(), "a": rows(1, 1).tobytes(), "b": rows(2, 1).tobytes()}
    refused_ids = [result.id for result in results if result.WhichOneof("outcome") == "error"]
    assert refused_ids == ["first", "a"]
    assert {reason(result) for result in results if result.WhichOneof("outcome") == "error"} == {"DUPLICATE_ITEM_ID"}
    if order == SUBMISSION:
        assert [result.id for result in results] == ["first", "a", "first", "a", "b"]
        kinds = [result.WhichOneof("outcome") for result in results]
        assert kinds == ["outputs", "outputs", "error", "error", "outputs"]
    assert stream.totals() == (5, 3, 2)


def test_an_id_is_free_again_when_it_is_answered(raw: Raw) -> None:
    stream = raw.stream(Config(model="one"))
    for first in range(3):
        stream.items(item("a", x(first)))
        (result,) = stream.results(1)
        assert (result.id, answer(result)) == ("a", rows(first, 1).tobytes())
    stream.items(item("a", x(7)), item("a", x(8)))
    results = stream.finish()
    assert sorted(result.WhichOneof("outcome") or "" for result in results) == ["error", "outputs"]


# Taking items back.


def test_cancel_takes_back_what_waits_and_leaves_what_executes(service: Serving, raw: Raw) -> None:
    stream = raw.stream(Config(model="one"))
    occupy(service, stream)
    before = executions(service)
    stream.items(*(item(name, x(at)) for at, name in enumerate(("a", "b", "c"), 1)))
    wait_until(lambda: queued(service, "one") == 3, "three items wait")
    stream.cancel_items("first", "b", "unknown", "", "b")
    (cancelled,) = stream.results(1)  # while the device is held
    assert (cancelled.id, reason(cancelled)) == ("b", "ITEM_CANCELLED")
    assert item_refusal(cancelled.error).code is grpc.StatusCode.CANCELLED
    assert not cancelled.HasField("timing")
    assert queued(service, "one") == 2
    service.emulator.release()
    results = {result.id: answer(result) for result in stream.finish()}
    assert results == {"first": rows(0, 1).tobytes(), "a": rows(1, 1).tobytes(), "c": rows(3, 1).tobytes()}
    assert stream.totals() == (4, 3, 1)
    assert executions(service) == before + 2


def test_cancel_in_submission_order_is_answered_in_its_place(service: Serving, raw: Raw) -> None:
    stream = raw.stream(Config(model="one", order=SUBMISSION))
    occupy(service, stream)
    stream.items(*(item(name, x()) for name in "abc"))
    stream.cancel_items("c", "a")
    wait_until(lambda: queued(service, "one") == 1, "two of three items are taken back")
    service.emulator.release()
    results = stream.finish()
    assert [result.id for result in results] == ["first", "a", "b", "c"]
    assert [result.WhichOneof("outcome") for result in results] == ["outputs", "error", "outputs", "error"]


def test_cancel_of_everything_that_waits(service: Serving, raw: Raw) -> None:
    stream = raw.stream(Config(model="one"))
    occupy(service, stream)
    before = executions(service)
    names = [str(index) for index in range(10)]
    stream.items(*(item(name, x()) for name in names))
    wait_until(lambda: queued(service, "one") == 10, "ten items wait")
    stream.cancel_items(*names)
    assert {reason(result) for result in stream.results(10)} == {"ITEM_CANCELLED"}
    assert queued(service, "one") == 0
    service.emulator.release()
    assert [result.id for result in stream.finish()] == ["first"]
    assert stream.totals() == (11, 1, 10)
    assert executions(service) == before + 1


def test_cancel_takes_back_an_item_that_waits_for_a_buffer_of_another(service: Serving, raw: Raw) -> None:
    """The second item reads what the first, on the device, is to write."""
    lease = raw.lease()
    buffer_id = raw.buffer(lease, 16)
    part = BufferSlice(buffer_id=buffer_id)
    stream = raw.stream(Config(model="one"), lease)
    service.emulator.hold()
    before = submitted(service)
    stream.items(item("writer", x(1), outputs=[model_pb2.OutputRequest(name="y", buffer=part)]))
    wait_until(lambda: submitted(service) == before + 1, "the writer is on the device")
    reader = Tensor(name="x", data_type=DATA_TYPE_FLOAT32, shape=[1, 4], buffer=part)
    stream.items(item("reader", reader, model="two"))
    wait_until(lambda: received(service) == 2, "the reader is received")
    stream.cancel_items("reader")
    (cancelled,) = stream.results(1)
    assert (cancelled.id, reason(cancelled)) == ("reader", "ITEM_CANCELLED")
    service.emulator.release()
    (written,) = stream.finish()
    assert written.outputs.tensors[0].buffer.buffer_id == buffer_id
    assert raw.read(lease, buffer_id) == rows(1, 1).tobytes()
    raw.release(lease)


# The end of a stream.


def test_half_close_with_items_in_flight(service: Serving, raw: Raw) -> None:
    stream = raw.stream(Config(model="one"))
    occupy(service, stream)
    stream.items(*(item(str(index), x(index)) for index in range(8)))
    stream.close()
    wait_until(lambda: queued(service, "one") == 8, "eight items wait")
    service.emulator.release()
    results = {result.id: answer(result) for result in stream.rest()}
    assert results == {"first": rows(0, 1).tobytes(), **{str(at): rows(at, 1).tobytes() for at in range(8)}}
    assert stream.totals() == (9, 9, 0)


@pytest.mark.parametrize("order", [COMPLETION, SUBMISSION])
def test_a_killed_client_leaves_nothing_and_hurts_nobody(service: Serving, raw: Raw, order: Any) -> None:
    neighbour = raw.stream(Config(model="one"))
    stream = raw.stream(Config(model="one", order=order))
    occupy(service, stream)
    stream.items(*(item(str(index), x(index)) for index in range(5)))
    neighbour.items(item("mine", x(77)))
    wait_until(lambda: queued(service, "one") == 6, "six items wait")
    stream.kill()
    wait_until(lambda: queued(service, "one") == 1, "only the neighbour's item waits")
    before = executions(service)
    service.emulator.release()
    (mine,) = neighbour.finish()
    assert answer(mine) == rows(77, 1).tobytes()
    assert executions(service) == before + 2  # the item on the device, and the neighbour's


def test_a_closed_channel_leaves_nothing(service: Serving, raw: Raw) -> None:
    with Raw(service.address) as dying:
        stream = dying.stream(Config(model="one"))
        occupy(service, stream)
        stream.items(*(item(str(index), x(index)) for index in range(5)))
        wait_until(lambda: queued(service, "one") == 5, "five items wait")
    wait_until(lambda: queued(service, "one") == 0, "none waits")
    wait_until(lambda: not service.server.models.sessions, "the stream is gone")
    stream.kill()


def test_a_killed_client_lets_go_of_its_buffers_when_the_device_has(service: Serving, raw: Raw) -> None:
    lease = raw.lease()
    used, waiting = raw.buffer(lease, 64), raw.buffer(lease, 64)
    stream = raw.stream(Config(model="one"), lease)
    service.emulator.hold()
    before = submitted(service)

    def reading(item_id: str, buffer_id: str) -> model_pb2.InferItem:
        part = BufferSlice(buffer_id=buffer_id)
        return item(item_id, Tensor(name="x", data_type=DATA_TYPE_FLOAT32, shape=[1, 4], buffer=part))

    stream.items(reading("a", used))
    wait_until(lambda: submitted(service) == before + 1, "the first item is on the device")
    stream.items(reading("b", waiting))
    wait_until(lambda: queued(service, "one") == 1, "the second item waits")
    stream.kill()
    wait_until(lambda: queued(service, "one") == 0, "the second item is gone")
    listed = raw.call("memory", "ListBuffers", memory_pb2.ListBuffersRequest(), lease).buffers
    assert {buffer.id: buffer.pins for buffer in listed} == {used: 1, waiting: 0}
    raw.release(lease)
    wait_until(lambda: service.server.memory.use().buffers == 1, "the buffer in use is kept")
    service.emulator.release()
    wait_until(lambda: service.server.memory.use().buffers == 0, "the buffer is freed")


def test_a_cancelled_call_leaves_nothing(service: Serving, raw: Raw) -> None:
    stream = raw.stream(Config(model="one"))
    occupy(service, stream)
    before = executions(service)
    call = raw.models.Infer.future(model_pb2.InferRequest(model="one", inputs=[x(3)]), timeout=30)
    wait_until(lambda: queued(service, "one") == 1, "the call's item waits")
    call.cancel()
    wait_until(lambda: queued(service, "one") == 0, "it is gone")
    service.emulator.release()
    assert len(stream.finish()) == 1
    assert executions(service) == before + 1


# The window.


@pytest.mark.parametrize("order", [COMPLETION, SUBMISSION])
def test_the_server_reads_no_further_than_the_window(service: Serving, raw: Raw, order: Any) -> None:
    """For a client that ignores the window."""
    stream = raw.stream(Config(model="one", order=order, max_pending_items=4))
    occupy(service, stream)
    for index in range(40):
        stream.items(item(str(index), x(index)))
    wait_until(lambda: queued(service, "one") == 3, "the window is full")
    for _ in range(50):  # the server is at leisure to read on, if it would
        raw.states()
        assert (queued(service, "one"), received(service)) == (3, 4)
    service.emulator.release()
    results = {result.id: answer(result) for result in stream.finish()}
    assert results == {"first": rows(0, 1).tobytes(), **{str(at): rows(at, 1).tobytes() for at in range(40)}}
    assert stream.totals() == (41, 41, 0)


def test_a_client_that_does_not_read_is_not_buffered_for(service: Serving, raw: Raw) -> None:
    """Items whose answers lie unsent count as pending: what a stream holds is bounded by its window."""
    zeros = Tensor(name="x", data_type=DATA_TYPE_FLOAT64, shape=[1, 1 << 16], fill=Fill(pattern=FILL_PATTERN_ZEROS))
    stream = raw.stream(Config(model="wide", max_pending_items=8))
    for index in range(200):
        stream.items(item(str(index), zeros))
    before = -1
    while before != received(service):  # until it stands still for a while
        before = received(service)
        for _ in range(100):
            raw.states()
    assert before < 40  # of 512 KB each; what lies in buffers of the transport is not pending
    assert len(stream.finish()) == 200
    assert stream.totals() == (200, 200, 0)


def test_items_of_one_message_beyond_the_window_are_answered(service: Serving, raw: Raw) -> None:
    stream = raw.stream(Config(model="one", max_pending_items=2, order=SUBMISSION))
    stream.items(*(item(str(index), x(index)) for index in range(12)))
    results = stream.finish()
    assert [answer(result) for result in results] == [rows(index, 1).tobytes() for index in range(12)]


# Order.


def test_completion_order_lets_the_faster_model_pass(service: Serving, raw: Raw) -> None:
    stream = raw.stream(Config(order=COMPLETION))
    occupy(service, stream)
    stream.items(item("empty", x(0, 0), model="two"))
    (early,) = stream.results(1)
    assert early.id == "empty"
    service.emulator.release()
    assert [result.id for result in stream.finish()] == ["first"]


def test_submission_order_over_several_models(service: Serving, raw: Raw) -> None:
    stream = raw.stream(Config(order=SUBMISSION))
    occupy(service, stream)
    names = ["one", "two", "alone"]
    items = [item(str(index), x(index, index % 3), model=names[index % 3]) for index in range(9)]
    items[4] = bad("4")
    stream.items(*items)
    wait_until(lambda: received(service) == 10, "all items are received")
    service.emulator.release()
    results = stream.finish()
    assert [result.id for result in results] == ["first", *map(str, range(9))]
    for index, result in enumerate(results[1:]):
        if index == 4:
            assert reason(result) == "MODEL_NOT_FOUND"  # it names no model, and neither does the stream
        else:
            assert answer(result) == rows(index, index % 3).tobytes()
    assert stream.totals() == (10, 9, 1)


def test_submission_order_holds_answers_back_until_their_turn(service: Serving, raw: Raw) -> None:
    stream = raw.stream(Config(order=SUBMISSION))
    occupy(service, stream)
    stream.items(item("empty", x(0, 0), model="two"), bad())
    stream.cancel_items("none")
    wait_until(lambda: received(service) == 3, "all items are received")
    service.emulator.release()
    assert [result.id for result in stream.finish()] == ["first", "empty", "bad"]


# Bad items.


def test_bad_items_do_not_end_the_stream(raw: Raw) -> None:
    stream = raw.stream(Config(model="one", order=SUBMISSION))
    stream.items(*(bad(str(index)) if index % 2 else item(str(index), x(index)) for index in range(10)))
    stream.items(item("long" * 40, x()), item("last", x(9)))
    results = stream.finish()
    assert [reason(result) for result in results[1:10:2]] == ["SHAPE_MISMATCH"] * 5
    assert [answer(result) for result in results[0:10:2]] == [rows(index, 1).tobytes() for index in range(0, 10, 2)]
    assert reason(results[10]) == "ITEM_ID_TOO_LONG"
    assert answer(results[11]) == rows(9, 1).tobytes()
    assert stream.totals() == (12, 6, 6)


def test_a_failure_on_the_device_is_its_items_alone(service: Serving, raw: Raw) -> None:
    stream = raw.stream(Config(model="one", order=SUBMISSION))
    occupy(service, stream)
    service.emulator.faults.fail_task("aclmdlExecuteAsync", 507899)
    stream.items(item("a", x(1)), item("b", x(2)))
    wait_until(lambda: queued(service, "one") == 2, "two items wait")
    service.emulator.release()
    first, a, b = stream.results(3)
    assert answer(first) == rows(0, 1).tobytes()
    for result in (a, b):
        refusal = item_refusal(result.error).check_clean()
        assert refusal.metadata["acl_code"] == "507899"
        assert refusal.metadata["acl_call"]
    stream.items(item("c", x(3)))
    (c,) = stream.finish()
    assert answer(c) == rows(3, 1).tobytes()
    assert stream.totals() == (4, 2, 2)


def test_a_refused_submission_is_its_items_alone(service: Serving, raw: Raw) -> None:
    stream = raw.stream(Config(model="one"))
    service.emulator.faults.fail_call("aclmdlExecuteAsync", 507899)
    stream.items(item("a", x(1)))
    (a,) = stream.results(1)
    assert item_refusal(a.error).check_clean().metadata["acl_code"] == "507899"
    stream.items(item("b", x(2)))
    (b,) = stream.finish()
    assert answer(b) == rows(2, 1).tobytes()


# Time and overload.


def test_timeouts_expire_while_the_device_is_held(service: Serving, raw: Raw) -> None:
    """The timer does it: nothing else happens to this model meanwhile."""
    stream = raw.stream(Config(model="fresh-0"))
    occupy(service, stream, "fresh-0")
    short, long = Duration(nanos=60_000_000), Duration(seconds=600)
    stream.items(item("short", x(1), timeout=short), item("none", x(2)), item("long", x(3), timeout=long))
    (late,) = stream.results(1)
    refusal = item_refusal(late.error).check_clean()
    assert (late.id, refusal.reason, refusal.code) == ("short", "ITEM_EXPIRED", grpc.StatusCode.DEADLINE_EXCEEDED)
    assert not late.HasField("timing")
    assert queued(service, "fresh-0") == 2
    service.emulator.release()
    results = {result.id: answer(result) for result in stream.finish()}
    assert results == {"first": rows(0, 1).tobytes(), "none": rows(2, 1).tobytes(), "long": rows(3, 1).tobytes()}
    assert stream.totals() == (4, 3, 1)


def test_a_deadline_of_a_call_ends_its_wait(service: Serving, raw: Raw) -> None:
    stream = raw.stream(Config(model="fresh-1"))
    occupy(service, stream, "fresh-1")
    request = model_pb2.InferRequest(model="fresh-1", inputs=[x()])
    with pytest.raises(grpc.RpcError) as caught:
        raw.models.Infer(request, timeout=0.1)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED  # type: ignore[attr-defined]
    wait_until(lambda: queued(service, "fresh-1") == 0, "its item is gone")
    request.timeout.CopyFrom(Duration(nanos=60_000_000))
    refusal = refused(lambda: raw.infer(request))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.DEADLINE_EXCEEDED, "ITEM_EXPIRED")
    service.emulator.release()
    assert len(stream.finish()) == 1


def test_a_timeout_bounds_the_wait_and_not_the_execution(service: Serving, raw: Raw) -> None:
    stream = raw.stream(Config(model="fresh-2"))
    service.emulator.hold()
    before = submitted(service)
    stream.items(item("a", x(1), timeout=Duration(nanos=200_000_000)))
    wait_until(lambda: submitted(service) == before + 1, "the item is on the device")
    started = time.monotonic()
    wait_until(lambda: time.monotonic() > started + 0.25, "its time is over")
    service.emulator.release()
    (a,) = stream.finish()
    assert answer(a) == rows(1, 1).tobytes()


def test_a_full_queue_refuses_at_once_and_says_when_to_retry(service: Serving, raw: Raw) -> None:
    stream = raw.stream(Config(model="one", policy=model_pb2.FRAME_POLICY_DROP_NEWEST))
    occupy(service, stream)
    stream.items(item("a", x(0, 30)), item("b", x(1, 10)))
    wait_until(lambda: queued(service, "one") == 10, "a full batch waits in the second slot")
    stream.items(item("c", x(2, 20)), item("d", x(3, 11)), item("e", x(4, 10)), item("f", x(5, 1)))
    for result, name in zip(stream.results(2), ("d", "f"), strict=True):  # while the device is held
        refusal = item_refusal(result.error).check_clean()
        assert (result.id, refusal.code, refusal.reason) == (name, grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL")
        assert refusal.retry_s is not None
        assert 0 < refusal.retry_s < 60
        assert "40" in refusal.message
        assert refusal.metadata["max_queue_rows"] == "40"
    alone = refused(lambda: raw.infer(model_pb2.InferRequest(model="one", inputs=[x()])))
    assert (alone.code, alone.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL")
    assert alone.retry_s is not None
    other = raw.infer(model_pb2.InferRequest(model="two", inputs=[x(4, 0)]))  # another model's queue is its own
    assert list(other.outputs.tensors[0].shape) == [0, 4]
    service.emulator.release()
    sizes = {result.id: len(answer(result)) for result in stream.finish()}
    assert sizes == {"first": 16, "a": 480, "b": 160, "c": 320, "e": 160}
    assert stream.totals() == (7, 5, 2)


# What needs no device, and what the server makes.


def test_zero_rows_are_answered_without_an_execution(service: Serving, raw: Raw) -> None:
    before = executions(service)
    stream = raw.stream(Config(model="one", order=SUBMISSION))
    service.emulator.hold()
    stream.items(item("a", x(0, 0)), item("b", x(0, 0), outputs=[model_pb2.OutputRequest(name="y")]))
    for result in stream.results(2):
        (output,) = result.outputs.tensors
        assert (list(output.shape), output.data, output.data_type) == ([0, 4], b"", DATA_TYPE_FLOAT32)
        assert output.WhichOneof("source") == "data"
    stream.items(item("c", x(0, 0), model="alone"))
    assert len(stream.finish()) == 1
    assert executions(service) == before


def test_fills(raw: Raw) -> None:
    def filled(data_type: Any, pattern: Any, seed: int = 0) -> Tensor:
        return Tensor(name="x", data_type=data_type, shape=[5, 50], fill=Fill(pattern=pattern, seed=seed))

    for name, (_, data_type) in TYPES.items():
        seeds = [7, 7, 8, 0, HUGE, HUGE]
        stream = raw.stream(Config(model=name, order=SUBMISSION))
        stream.items(item("zeros", filled(data_type, FILL_PATTERN_ZEROS, 5)))
        stream.items(*(item("", filled(data_type, FILL_PATTERN_RANDOM, seed)) for seed in seeds))
        zeros, *made = stream.finish()
        assert answer(zeros) == bytes(len(answer(zeros)))
        contents = [answer(result) for result in made]
        assert contents[0] == contents[1]
        assert contents[4] == contents[5]
        assert len(set(contents)) == 4
        values = array_of(made[0].outputs.tensors[0], np.dtype(name))
        assert values.shape == (5, 50)
        low, high = (0, 1) if name == "bool" else (0, 99) if values.dtype.kind in "iu" else (0.0, math.nextafter(1, 0))
        assert low <= values.min() < values.max() <= high
        assert 0.25 * high < np.asarray(values, np.float64).mean() < 0.75 * (high + (values.dtype.kind == "b") * 0.1)


def test_timing_tells_of_the_batch(service: Serving, raw: Raw) -> None:
    stream = raw.stream(Config(model="one", order=SUBMISSION))
    occupy(service, stream)
    stream.items(item("a", x(0, 2)), item("b", x(2, 3)))
    wait_until(lambda: queued(service, "one") == 5, "two items wait")
    service.emulator.release()
    first, a, b = (result.timing for result in stream.finish())
    assert (first.batch_rows, first.gear_rows, first.position, first.queue_rows) == (1, 1, 0, 0)
    assert (a.batch_rows, a.gear_rows, a.position, a.queue_rows) == (5, 5, 0, 0)
    assert (b.batch_rows, b.gear_rows, b.position, b.queue_rows) == (5, 5, 2, 2)
    for timing in (first, a, b):
        assert timing.execute_ns > 0
        assert timing.total_ns >= timing.wait_ns + timing.copy_in_ns + timing.execute_ns + timing.copy_out_ns


# Clients' buffers beside inline rows.


@pytest.mark.parametrize("run_mode", ["device", "host"])
def test_rows_from_and_to_buffers_beside_inline_rows(tmp_path: Path, run_mode: str) -> None:
    """At offsets of any alignment, in one batch, with the upload of the batch held back until the last moment."""
    put_model(tmp_path, "one", elementwise())
    with serving(tmp_path, emulator=EmulatorConfig(run_mode=run_mode)) as up, Raw(up.address) as raw:
        lease = raw.lease()
        source, target = raw.buffer(lease, 256), raw.buffer(lease, 256)
        host = raw.buffer(lease, 256, memory_pb2.MEMORY_SPACE_HOST)
        content = np.arange(1000, 1064, dtype=np.float32)
        for buffer_id in (source, host):
            raw.write(lease, buffer_id, content.tobytes())
        raw.write(lease, target, bytes(256))

        def reading(item_id: str, buffer_id: str, offset: int, count: int) -> model_pb2.InferItem:
            part = BufferSlice(buffer_id=buffer_id, offset_bytes=offset)
            return item(item_id, Tensor(name="x", data_type=DATA_TYPE_FLOAT32, shape=[count, 4], buffer=part))

        stream = raw.stream(Config(model="one", order=SUBMISSION), lease)
        items = [item("0", x(0)), reading("1", source, 4, 1), item("2", x(2)), reading("3", host, 64, 2)]
        items += [item("4", x(4)), reading("5", source, 0, 3), reading("6", host, 12, 1), reading("7", source, 128, 4)]
        to = BufferSlice(buffer_id=target, offset_bytes=20, length_bytes=32)
        items.append(item("8", x(8, 2), outputs=[model_pb2.OutputRequest(name="y", buffer=to)]))
        up.emulator.hold()
        before = submitted(up)
        stream.items(*items)
        waits = "aclrtSynchronizeEvent"  # where rows must be copied at once, the upload before them is waited for
        wait_until(lambda: submitted(up) > before or up.emulator.counters.calls[waits], "the batch is on its way")
        up.emulator.release()
        results = stream.finish()
        assert results[0].timing.batch_rows == 16
        for index in (0, 2, 4):
            assert answer(results[index]) == rows(index, 1).tobytes(), index
        for index, first, count in ((1, 1, 4), (3, 16, 8), (5, 0, 12), (6, 3, 4), (7, 32, 16)):
            assert answer(results[index]) == content[first : first + count].tobytes(), index
        written = results[8].outputs.tensors[0]
        assert (written.buffer.buffer_id, written.buffer.offset_bytes, written.data) == (target, 20, b"")
        assert raw.read(lease, target) == bytes(20) + rows(8, 2).tobytes() + bytes(204)


# Drain.


@pytest.fixture
def other(tmp_path: Path) -> Iterator[tuple[Serving, Raw]]:
    """A server of the test's own, to stop."""
    put_model(tmp_path, "one", elementwise())
    with serving(tmp_path, emulator=EMULATED, max_stream_items=8) as up, Raw(up.address) as raw:
        yield up, raw
        up.emulator.release()


def begin_stop(up: Serving) -> Any:
    """Starts the server's stop; the future of its end."""
    return asyncio.run_coroutine_threadsafe(up.server.stop(), up.loop)


def test_a_server_that_stops_answers_what_it_has_accepted(other: tuple[Serving, Raw]) -> None:
    up, raw = other
    stream = raw.stream(Config(model="one"))
    idle = raw.stream(Config(model="one"))
    silent = raw.stream()
    occupy(up, stream)
    stream.items(*(item(str(index), x(index)) for index in range(3)))
    wait_until(lambda: queued(up, "one") == 3, "three items wait")
    call = raw.models.Infer.future(model_pb2.InferRequest(model="one", inputs=[x(9)]), timeout=30)
    wait_until(lambda: queued(up, "one") == 4, "the call's item waits")
    stopped = begin_stop(up)
    notice = stream.read()
    assert notice.going_away.last_accepted_id == "2"
    stream.items(item("too-late", x()))
    assert idle.rest() == []
    assert idle.going_away is not None
    assert idle.going_away.last_accepted_id == ""
    assert idle.totals() == (0, 0, 0)
    assert silent.rest() == []
    assert not stopped.done()
    up.emulator.release()
    results = {result.id: answer(result) for result in stream.rest()}
    assert results == {"first": rows(0, 1).tobytes(), **{str(at): rows(at, 1).tobytes() for at in range(3)}}
    assert stream.totals() == (4, 4, 0)
    assert call.result().outputs.tensors[0].data == rows(9, 1).tobytes()
    stopped.result(30)


def test_a_server_that_stops_takes_no_new_calls_and_says_so(other: tuple[Serving, Raw]) -> None:
    up, raw = other
    stream = raw.stream(Config(model="one"))
    occupy(up, stream)
    stopped = begin_stop(up)
    assert stream.read().WhichOneof("response") == "going_away"
    with Raw(up.address) as newcomer, pytest.raises(grpc.RpcError) as caught:
        newcomer.states()
    # CANCELLED is gRPC's own answer to a call that comes in at just the moment at which it stops listening
    assert caught.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)  # type: ignore[attr-defined]
    up.emulator.release()
    assert len(stream.rest()) == 1
    stopped.result(30)


def test_a_full_window_is_drained(other: tuple[Serving, Raw]) -> None:
    """The reader waits for room, not for a message, when the server is stopped."""
    up, raw = other
    stream = raw.stream(Config(model="one", max_pending_items=2, order=SUBMISSION))
    occupy(up, stream)
    for index in range(20):
        stream.items(item(str(index), x(index)))
    wait_until(lambda: queued(up, "one") == 1, "the window is full")
    stopped = begin_stop(up)
    assert stream.read().going_away.last_accepted_id == "0"
    up.emulator.release()
    assert [result.id for result in stream.rest()] == ["first", "0"]
    assert stream.totals() == (2, 2, 0)
    stopped.result(30)


def test_streams_that_only_wait_hold_up_no_stop(other: tuple[Serving, Raw]) -> None:
    """A lease's keep-alive, a health watch and a stalled upload: none has accepted items to answer."""
    up, raw = other
    lease = raw.lease()
    metadata = (("aclserve-lease", lease),)

    over = threading.Event()

    def renewals() -> Iterator[memory_pb2.KeepLeaseAliveRequest]:
        yield memory_pb2.KeepLeaseAliveRequest()
        over.wait(60)

    def parts() -> Iterator[model_pb2.UploadModelRequest]:
        yield model_pb2.UploadModelRequest(header=model_pb2.UploadModelHeader(size_bytes=8))
        over.wait(60)

    watch = raw.channel.unary_stream(
        "/grpc.health.v1.Health/Watch",
        health_pb2.HealthCheckRequest.SerializeToString,
        health_pb2.HealthCheckResponse.FromString,
    )(health_pb2.HealthCheckRequest())
    assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
    keep = raw.memory.KeepLeaseAlive(renewals(), metadata=metadata)
    assert next(keep).lease.id == lease
    upload = raw.models.UploadModel.future(parts(), metadata=metadata)
    wait_until(lambda: up.server.memory.use().uploads == 1, "the upload has begun")
    begun = time.monotonic()
    stopped = begin_stop(up)
    assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
    stopped.result(60)
    assert time.monotonic() - begun < up.server.config.drain_timeout_s / 2  # not the whole time given to the drain
    with pytest.raises(grpc.RpcError):
        upload.result(30)
    over.set()


def test_items_still_in_flight_when_the_time_to_drain_is_over(tmp_path: Path) -> None:
    put_model(tmp_path, "one", elementwise())
    with serving(tmp_path, emulator=EMULATED, drain_timeout_s=0.2) as up, Raw(up.address) as raw:
        stream = raw.stream(Config(model="one"))
        occupy(up, stream)
        stream.items(item("a", x()))
        wait_until(lambda: queued(up, "one") == 1, "an item waits")
        stopped = begin_stop(up)
        assert stream.read().going_away.last_accepted_id == "a"
        with pytest.raises(grpc.RpcError) as caught:
            stream.read()
        assert caught.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)  # type: ignore[attr-defined]
        up.emulator.release()
        stopped.result(30)
