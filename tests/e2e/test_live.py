"""Streams at full depth over the wire: policies, windows, deadlines, priorities, gears, chains, instances."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import onnx
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from onnx import TensorProto, helper, numpy_helper

from aclserve.v1 import device_pb2, model_pb2
from aclserve.v1.tensor_pb2 import DATA_TYPE_FLOAT32, BufferSlice, Tensor
from aclserve_server.emulator import EmulatorConfig
from aclserve_server.emulator.config import Latency
from e2e.raw import (
    Raw,
    RawStream,
    array_of,
    item,
    item_refusal,
    leaves_nothing,
    on_loop,
    queued,
    refused,
    tensor,
    wait_until,
)
from serving import Serving, elementwise, put_model, rows, serving

Config = model_pb2.StreamConfig
Results = list[model_pb2.InferResult]
WAIT = model_pb2.FRAME_POLICY_WAIT
DROP_OLDEST = model_pb2.FRAME_POLICY_DROP_OLDEST
DROP_NEWEST = model_pb2.FRAME_POLICY_DROP_NEWEST
LATEST_ONLY = model_pb2.FRAME_POLICY_LATEST_ONLY
COMPLETION, SUBMISSION = model_pb2.RESULT_ORDER_COMPLETION, model_pb2.RESULT_ORDER_SUBMISSION
LOW, NORMAL, HIGH = model_pb2.PRIORITY_LOW, model_pb2.PRIORITY_NORMAL, model_pb2.PRIORITY_HIGH
LIVE, FILE = model_pb2.STREAM_PRESET_LIVE, model_pb2.STREAM_PRESET_FILE
OLDEST, NEWEST = model_pb2.DROP_REASON_OLDEST, model_pb2.DROP_REASON_NEWEST
SUPERSEDED, TOO_OLD = model_pb2.DROP_REASON_SUPERSEDED, model_pb2.DROP_REASON_TOO_OLD

MAX_ITEMS, MAX_BYTES, QUEUE_ROWS = 16, 1 << 20, 64
GEARS = 'parameters { key: "dynamic_image_size" value { string_value: "4,6;8,8" } }\n'
INSTANCES = "instance_group [{ count: %d }]\n"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    root = tmp_path_factory.mktemp("models")
    for name in ("one", "two", *(f"fresh-{number}" for number in range(8))):
        put_model(root, name, elementwise())
    put_model(root, "relu", elementwise("Relu"))
    put_model(root, "alone", elementwise(), "max_batch_size: 0\n")
    put_model(root, "image", elementwise("Relu", (1, 2, "h", "w")), GEARS)
    put_model(root, "twice", elementwise("Neg"), INSTANCES % 2)
    emulated = EmulatorConfig(memory_bytes=512 << 20, run_mode="host")
    limits = {"max_stream_items": MAX_ITEMS, "max_stream_bytes": MAX_BYTES, "max_queue_rows": QUEUE_ROWS}
    with serving(root, emulator=emulated, **limits) as up:
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


def submitted(service: Serving) -> int:
    return service.emulator.counters.calls["aclmdlExecuteAsync"]


def received(service: Serving) -> int:
    return sum(session.received for session in list(service.server.models.sessions))


def x(first: int = 0, count: int = 1) -> Tensor:
    return tensor("x", rows(first, count))


def numbered(first: int, last: int, **fields: Any) -> list[model_pb2.InferItem]:
    return [item(str(number), x(number), **fields) for number in range(first, last)]


def occupy(service: Serving, stream: RawStream, model: str = "one") -> None:
    """Holds the device with one item, `first`, on it, so that whatever comes next waits."""
    service.emulator.hold()
    before = submitted(service)
    stream.items(item("first", x(), model=model))
    wait_until(lambda: submitted(service) == before + 1, "the first item is on the device")


def check_answers(results: Results) -> None:
    """Each result is the identity of its item, whose id is the number of its row."""
    for result in results:
        assert result.WhichOneof("outcome") == "outputs", result
        first = 0 if result.id == "first" else int(result.id)
        assert result.outputs.tensors[0].data == rows(first, 1).tobytes()


def check_dropped(results: Results, reason: int) -> None:
    for result in results:
        assert result.WhichOneof("outcome") == "dropped", result
        assert result.dropped.reason == reason
        assert not result.HasField("timing")


def reasons(results: Results) -> set[str]:
    return {item_refusal(result.error).check_clean().reason for result in results}


def ids(results: Results) -> list[str]:
    return [result.id for result in results]


def totals(stream: RawStream) -> tuple[int, int, int, int]:
    """Received, succeeded, failed, dropped of the summary, which must add up."""
    summary = stream.summary
    assert summary is not None
    assert summary.received_items == summary.succeeded_items + summary.failed_items + summary.dropped_items
    assert sum(summary.drops.values()) == summary.dropped_items
    return summary.received_items, summary.succeeded_items, summary.failed_items, summary.dropped_items


# Frame policies.


@pytest.mark.parametrize(
    ("policy", "reason", "victims", "kept"),
    [
        (DROP_OLDEST, OLDEST, range(7), range(7, 10)),
        (DROP_NEWEST, NEWEST, range(3, 10), range(3)),
        (LATEST_ONLY, SUPERSEDED, range(9), range(9, 10)),
    ],
)
@pytest.mark.parametrize("together", [True, False], ids=["in one message", "one by one"])
def test_who_is_given_up(
    service: Serving, raw: Raw, policy: Any, reason: int, victims: range, kept: range, together: bool
) -> None:
    """While the device is busy; the notices come at once."""
    stream = raw.stream(Config(model="one", policy=policy, max_pending_items=4))
    occupy(service, stream)
    begun = time.perf_counter_ns()
    items = numbered(0, 10, capture_time=Timestamp(seconds=7))
    for message in [items] if together else [[one] for one in items]:
        stream.items(*message)
    notices = stream.results(len(victims))
    passed = time.perf_counter_ns() - begun
    check_dropped(notices, reason)
    assert ids(notices) == [str(victim) for victim in victims]
    assert all(notice.capture_time.seconds == 7 for notice in notices)
    assert all(notice.dropped.age_ns <= passed for notice in notices)
    assert (reason == NEWEST) == all(notice.dropped.age_ns == 0 for notice in notices)
    assert queued(service, "one") == len(kept)
    service.emulator.release()
    answered = stream.finish()
    check_answers(answered)
    assert sorted(ids(answered)) == sorted(["first", *map(str, kept)])
    assert totals(stream) == (11, 1 + len(kept), 0, len(victims))
    assert dict(stream.summary.drops) == {model_pb2.DropReason.Name(reason)[12:]: len(victims)}  # type: ignore[arg-type, union-attr]


def test_bytes_are_a_limit_too(service: Serving, raw: Raw) -> None:
    stream = raw.stream(Config(model="one", policy=DROP_OLDEST, max_pending_bytes=100))
    occupy(service, stream)
    stream.items(*numbered(0, 6), item("6", x(6, 3)))  # of 16 bytes each, and 48
    notices = stream.results(4)
    check_dropped(notices, OLDEST)
    assert ids(notices) == ["0", "1", "2", "3"]
    stream.items(item("7", x(7, 6)))  # 96 bytes do not fit beside the 16 that execute: nobody is given up in vain
    (notice,) = stream.results(1)
    check_dropped([notice], NEWEST)
    service.emulator.release()
    assert sorted(ids(stream.finish())) == ["4", "5", "6", "first"]
    assert totals(stream) == (9, 4, 0, 5)


@pytest.mark.parametrize("policy", [WAIT, DROP_OLDEST])
def test_an_item_that_grew_too_old_is_dropped_while_the_device_is_busy(service: Serving, raw: Raw, policy: Any) -> None:
    """By a timer: nothing else happens. What executes is not waiting."""
    stream = raw.stream(Config(model="one", policy=policy, max_age=Duration(nanos=50_000_000)))
    occupy(service, stream)
    stream.items(*numbered(0, 3))
    notices = stream.results(3)
    check_dropped(notices, TOO_OLD)
    assert all(notice.dropped.age_ns >= 50_000_000 for notice in notices)
    assert queued(service, "one") == 0
    service.emulator.release()
    assert ids(stream.finish()) == ["first"]
    assert totals(stream) == (4, 1, 0, 3)


def test_the_tighter_of_timeout_and_age_decides(service: Serving, raw: Raw) -> None:
    stream = raw.stream(Config(model="fresh-0", policy=DROP_OLDEST, max_age=Duration(nanos=60_000_000)))
    occupy(service, stream, "fresh-0")
    stream.items(item("a", x(), timeout=Duration(nanos=30_000_000)), item("b", x(), timeout=Duration(seconds=60)))
    late, dropped = stream.results(2)
    assert (late.id, dropped.id) == ("a", "b")
    assert reasons([late]) == {"ITEM_EXPIRED"}
    check_dropped([dropped], TOO_OLD)
    service.emulator.release()
    assert ids(stream.finish()) == ["first"]
    assert totals(stream) == (3, 1, 1, 1)


def test_order_of_submission_holds_with_drops_in_it(service: Serving, raw: Raw) -> None:
    stream = raw.stream(Config(model="one", policy=LATEST_ONLY, order=SUBMISSION))
    occupy(service, stream)
    stream.items(*numbered(0, 5), item("nope", x(), model="nope"), *numbered(6, 8))
    wait_until(lambda: received(service) == 9, "all are received")
    service.emulator.release()
    results = stream.finish()
    assert ids(results) == ["first", "0", "1", "2", "3", "4", "nope", "6", "7"]
    check_dropped(results[1:6] + results[7:8], SUPERSEDED)
    assert reasons(results[6:7]) == {"MODEL_NOT_FOUND"}
    check_answers([results[0], results[8]])
    assert totals(stream) == (9, 2, 1, 6)


def test_an_id_is_free_again_when_its_item_was_dropped(service: Serving, raw: Raw) -> None:
    stream = raw.stream(Config(model="one", policy=LATEST_ONLY))
    occupy(service, stream)
    stream.items(*(item(name, x()) for name in ("again", "other", "again", "other", "again")))
    notices = stream.results(4)
    check_dropped(notices, SUPERSEDED)
    assert ids(notices) == ["again", "other", "again", "other"]
    service.emulator.release()
    assert sorted(ids(stream.finish())) == ["again", "first"]
    assert totals(stream) == (6, 2, 0, 4)


# Settings.


@pytest.mark.parametrize(
    ("config", "policy", "order", "age", "priority", "items", "size"),
    [
        (Config(), WAIT, COMPLETION, None, NORMAL, MAX_ITEMS, MAX_BYTES),
        (Config(preset=LIVE), LATEST_ONLY, COMPLETION, 1, NORMAL, MAX_ITEMS, MAX_BYTES),
        (Config(preset=FILE), WAIT, SUBMISSION, None, NORMAL, MAX_ITEMS, MAX_BYTES),
        (
            Config(preset=LIVE, policy=DROP_OLDEST, order=SUBMISSION, max_age=Duration(seconds=3), priority=HIGH),
            *(DROP_OLDEST, SUBMISSION, 3, HIGH, MAX_ITEMS, MAX_BYTES),
        ),
        (
            Config(preset=FILE, order=COMPLETION, max_pending_items=3, max_pending_bytes=70_000, priority=LOW),
            *(WAIT, COMPLETION, None, LOW, 3, 70_000),
        ),
        (
            Config(policy=DROP_NEWEST, max_pending_items=1 << 31, max_pending_bytes=1 << 63),
            *(DROP_NEWEST, COMPLETION, None, NORMAL, MAX_ITEMS, MAX_BYTES),
        ),
    ],
)
def test_ready_tells_what_holds(
    raw: Raw, config: Config, policy: Any, order: Any, age: int | None, priority: Any, items: int, size: int
) -> None:
    stream = raw.stream()
    stream.send(model_pb2.StreamInferRequest(config=config))
    expected = model_pb2.StreamReady(
        policy=policy, order=order, priority=priority, max_pending_items=items, max_pending_bytes=size
    )
    expected.max_message_bytes = 64 << 20
    if age is not None:
        expected.max_age.seconds = age
    assert stream.read().ready == expected
    stream.finish()


@pytest.mark.parametrize(
    "config",
    [
        Config(policy=5),  # type: ignore[arg-type]
        Config(preset=3),  # type: ignore[arg-type]
        Config(order=-1),  # type: ignore[arg-type]
        Config(priority=4),  # type: ignore[arg-type]
        Config(priority=-1),  # type: ignore[arg-type]
        Config(max_age=Duration()),
        Config(max_age=Duration(seconds=-1)),
    ],
)
def test_settings_that_do_not_exist(raw: Raw, config: Config) -> None:
    stream = raw.stream()
    stream.send(model_pb2.StreamInferRequest(config=config))
    refusal = stream.end()
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "STREAM_CONFIG_INVALID")


# The window.


def test_the_window_follows_the_number_of_streams(service: Serving, raw: Raw) -> None:
    """64 rows may wait: 16 items for each of 4 streams, 8 for each of 8."""
    streams = [raw.stream(Config(model="one")) for _ in range(4)]
    small = raw.stream(Config(model="one", max_pending_items=3))
    notices = [stream.read().window for stream in streams]
    expected = model_pb2.StreamWindow(max_pending_items=8, max_pending_bytes=MAX_BYTES)
    assert notices == [expected] * 4
    late = raw.stream()
    late.send(model_pb2.StreamInferRequest(config=Config(model="one")))
    assert late.read().ready.max_pending_items == 8
    for stream in (late, small):
        assert stream.finish() == []  # a window that did not change is not told
    for stream in streams:
        assert stream.read().window.max_pending_items == MAX_ITEMS
        assert stream.finish() == []


def test_a_window_that_changes_often_is_told_once_to_a_client_that_does_not_read(service: Serving, raw: Raw) -> None:
    stream = raw.stream(Config(model="one"))
    (session,) = service.server.models.sessions

    def change() -> None:
        for window in (8, 4, 2, 4, 8, 1) * 50:
            session.share(window)

    on_loop(service, change)
    assert stream.read().window.max_pending_items == 1
    on_loop(service, lambda: session.share(MAX_ITEMS))
    assert stream.read().window.max_pending_items == MAX_ITEMS
    assert stream.finish() == []


def test_an_item_is_taken_back_though_the_window_is_full(service: Serving, raw: Raw) -> None:
    stream = raw.stream(Config(model="one", max_pending_items=3))
    occupy(service, stream)
    stream.items(*numbered(0, 2))
    stream.cancel_items("0")
    (result,) = stream.results(1)
    assert (result.id, reasons([result])) == ("0", {"ITEM_CANCELLED"})
    service.emulator.release()
    assert ids(stream.finish()) == ["first", "1"]


def test_waiting_streams_lose_nothing_though_their_rows_exceed_the_queue(service: Serving, raw: Raw) -> None:
    """8 streams of 8 items of 20 rows, where 64 rows may wait. One that cannot wait still finds room."""
    streams = [raw.stream(Config(model="one")) for _ in range(8)]
    occupy(service, streams[0])
    for stream in streams:
        for number in range(8):
            stream.items(item(str(number), x(number, 20)))
    wait_until(lambda: received(service) == 10, "each stream has one that waits outside the queue")
    live = raw.models.Infer.future(model_pb2.InferRequest(model="one", inputs=[x(5)]), timeout=30)
    wait_until(lambda: queued(service, "one") > 20, "it waits in the queue")
    service.emulator.release()
    assert live.result().outputs.tensors[0].data == rows(5, 1).tobytes()
    for stream in streams:
        stream.close()
        found: Results = []
        for response in stream.call:
            if response.WhichOneof("response") == "results":
                found += response.results.results
        assert {result.WhichOneof("outcome") for result in found} == {"outputs"}
        assert set(ids(found)) >= {str(number) for number in range(8)}


def test_items_that_wait_outside_the_queue_can_be_taken_back_and_expire(service: Serving, raw: Raw) -> None:
    streams = [raw.stream(Config(model="fresh-1")) for _ in range(3)]
    occupy(service, streams[0], "fresh-1")
    streams[0].items(item("0", x(0, 30)))
    wait_until(lambda: queued(service, "fresh-1") == 30, "it waits in the queue")
    streams[1].items(item("1", x(1, 31), timeout=Duration(nanos=50_000_000)))
    streams[2].items(item("2", x(2, 32)))
    wait_until(lambda: received(service) == 4, "they wait outside")
    assert queued(service, "fresh-1") == 30
    assert reasons(streams[1].results(1)) == {"ITEM_EXPIRED"}
    streams[2].cancel_items("2")
    assert reasons(streams[2].results(1)) == {"ITEM_CANCELLED"}
    service.emulator.release()
    assert [len(stream.finish()) for stream in streams] == [2, 0, 0]


def test_an_item_that_expires_makes_room_for_one_outside(service: Serving, raw: Raw) -> None:
    streams = [raw.stream(Config(model="fresh-5")) for _ in range(2)]
    occupy(service, streams[0], "fresh-5")
    streams[0].items(item("0", x(0, 30), timeout=Duration(nanos=300_000_000)))
    wait_until(lambda: queued(service, "fresh-5") == 30, "it waits in the queue")
    streams[1].items(item("1", x(1, 31)))
    wait_until(lambda: queued(service, "fresh-5") == 31, "the other has its place, while the device is held")
    assert reasons(streams[0].results(1)) == {"ITEM_EXPIRED"}
    service.emulator.release()
    assert [len(stream.finish()) for stream in streams] == [1, 1]


# Priorities and deadlines.


def test_a_higher_priority_overtakes(service: Serving, raw: Raw) -> None:
    """By stream and by item. One item an execution; the second slot holds one that was copied already."""
    stream = raw.stream(Config(model="alone", priority=LOW))
    occupy(service, stream, "alone")
    stream.items(*numbered(0, 4))
    wait_until(lambda: queued(service, "alone") == 3, "one is copied")
    stream.items(*numbered(4, 6, priority=HIGH), *numbered(6, 7, priority=NORMAL))
    wait_until(lambda: received(service) == 8, "all are received")
    service.emulator.release()
    results = stream.finish()
    check_answers(results)
    assert ids(results) == ["first", "0", "4", "5", "6", "1", "2", "3"]


def test_an_item_that_would_come_too_late_is_refused_on_arrival(tmp_path: Path) -> None:
    """The device takes 20 ms for an item, and the server has learned that."""
    put_model(tmp_path, "alone", elementwise(), "max_batch_size: 0\n")
    latency = Latency(task_us={"aclmdlExecuteAsync": 20_000.0})
    with serving(tmp_path, emulator=EmulatorConfig(latency=latency)) as up, Raw(up.address) as raw:
        stream = raw.stream(Config(model="alone"))
        hasty = Duration(nanos=50_000_000)
        stream.items(item("unknown", x(), timeout=hasty))
        check = stream.results(1)
        assert check[0].WhichOneof("outcome") == "outputs"
        occupy(up, stream, "alone")
        stream.items(*numbered(0, 12))
        wait_until(lambda: queued(up, "alone") == 11, "eleven items wait")
        stream.items(item("hasty", x(), timeout=hasty), item("patient", x(99), timeout=Duration(seconds=60)))
        (result,) = stream.results(1)
        refusal = item_refusal(result.error).check_clean()
        assert (result.id, refusal.reason) == ("hasty", "DEADLINE_UNREACHABLE")
        assert refusal.code is grpc.StatusCode.DEADLINE_EXCEEDED
        assert float(refusal.metadata["predicted_wait_ms"]) >= 200
        assert refusal.metadata["allowed_ms"] == "50"
        assert refusal.retry_s is not None
        request = model_pb2.InferRequest(model="alone", inputs=[x()], timeout=Duration(nanos=5_000_000))
        other = raw.models.Infer.future(request, timeout=30)  # of another stream: it would be next, so it may try
        with pytest.raises(grpc.RpcError):
            other.result()
        live = raw.stream(Config(model="alone", policy=LATEST_ONLY, max_age=hasty))
        live.items(item("live", x()))  # dropping is not failing: an item with an age limit is not refused
        check_dropped(live.results(1), TOO_OLD)
        live.finish()
        up.emulator.release()
        results = stream.finish()
        assert {result.WhichOneof("outcome") for result in results} == {"outputs"}
        assert totals(stream) == (16, 15, 1, 0)


# Several models, and gears.


def test_gears_of_height_and_width(service: Serving, raw: Raw) -> None:
    def image(number: int, height: int, width: int) -> np.ndarray[Any, Any]:
        values = np.arange(2 * height * width, dtype=np.float32) - height * width + number
        return values.reshape(1, 2, height, width)

    shapes = [(4, 6), (8, 8), (8, 8), (4, 6), (5, 6), (8, 8)]
    stream = raw.stream(Config(model="image", order=SUBMISSION))
    occupy(service, stream, "one")
    images = [image(number, *shape) for number, shape in enumerate(shapes)]
    stream.items(*(item(str(number), tensor("x", pixels)) for number, pixels in enumerate(images)))
    wait_until(lambda: received(service) == 7, "all are received")
    service.emulator.release()
    _, *results = stream.finish()
    for number, result in enumerate(results):
        if number == 4:
            refusal = item_refusal(result.error).check_clean()
            assert refusal.reason == "SHAPE_MISMATCH"
            assert refusal.metadata["expected"] == "[1, 2, 4, 6], [1, 2, 8, 8]"
            assert "[1, 2, 4, 6], [1, 2, 8, 8]" in refusal.message
            assert refusal.metadata["got"] == "[1, 2, 5, 6]"
        else:
            np.testing.assert_array_equal(array_of(result.outputs.tensors[0]), np.maximum(images[number], 0))
    assert totals(stream) == (7, 6, 1, 0)


# Chains on the device.


@pytest.fixture
def lease(raw: Raw) -> Iterator[str]:
    lease = raw.lease()
    yield lease
    raw.release(lease)


def to_buffer(buffer_id: str) -> list[model_pb2.OutputRequest]:
    return [model_pb2.OutputRequest(name="y", buffer=BufferSlice(buffer_id=buffer_id))]


def from_buffer(buffer_id: str, count: int = 1) -> Tensor:
    part = BufferSlice(buffer_id=buffer_id)
    return Tensor(name="x", data_type=DATA_TYPE_FLOAT32, shape=[count, 4], buffer=part)


@pytest.mark.parametrize("together", [True, False], ids=["in one message", "one by one"])
def test_two_models_run_back_to_back_without_a_copy_to_the_host(
    service: Serving, raw: Raw, lease: str, together: bool
) -> None:
    between = raw.buffer(lease, 80)
    stream = raw.stream(Config(order=SUBMISSION), lease)
    values = np.arange(-10, 10, dtype=np.float32).reshape(5, 4)
    first = item("a", tensor("x", values), model="twice", outputs=to_buffer(between))
    second = item("b", from_buffer(between, 5), model="relu")
    copied = dict(service.emulator.counters.copied_bytes)
    service.emulator.hold()
    for message in [(first, second)] if together else [(first,), (second,)]:
        stream.items(*message)
    wait_until(lambda: received(service) == 2, "both are sent before any runs")
    service.emulator.release()
    written, answer = stream.finish()
    assert written.outputs.tensors[0].buffer.buffer_id == between
    np.testing.assert_array_equal(array_of(answer.outputs.tensors[0]), np.maximum(-values, 0))
    now = service.emulator.counters.copied_bytes
    change = {kind: now[kind] - copied[kind] for kind in now}
    assert (change["host_to_device"], change["device_to_host"]) == (80, 80)


def test_a_long_chain_in_two_buffers(service: Serving, raw: Raw, lease: str) -> None:
    """Each item reads what the one before it wrote, and writes over what that one read."""
    buffers = [raw.buffer(lease, 16), raw.buffer(lease, 16)]
    stream = raw.stream(Config(order=SUBMISSION), lease)
    items = [item("0", x(3), model="twice", outputs=to_buffer(buffers[0]))]
    for number in range(1, 12):
        source, target = buffers[(number + 1) % 2], buffers[number % 2]
        items.append(item(str(number), from_buffer(source), model="twice", outputs=to_buffer(target)))
    items.append(item("last", from_buffer(buffers[1]), model="one"))
    stream.items(*items)
    results = stream.finish()
    assert [result.WhichOneof("outcome") for result in results] == ["outputs"] * 13
    np.testing.assert_array_equal(array_of(results[-1].outputs.tensors[0]), rows(3, 1))


def test_a_reader_fails_with_its_writer(service: Serving, raw: Raw, lease: str) -> None:
    between, other = raw.buffer(lease, 16), raw.buffer(lease, 16)
    stream = raw.stream(Config(order=SUBMISSION), lease)
    service.emulator.faults.fail_task("aclmdlExecuteAsync", 507899)
    stream.items(
        item("a", x(1), model="twice", outputs=to_buffer(between)),
        item("b", from_buffer(between), model="relu", outputs=to_buffer(other)),
        item("c", from_buffer(other), model="relu"),
        item("d", x(4), model="one"),
    )
    a, b, c, d = stream.finish()
    assert item_refusal(a.error).metadata["acl_code"] == "507899"
    assert reasons([b, c]) == {"INPUT_NOT_WRITTEN"}
    assert item_refusal(b.error).code is grpc.StatusCode.FAILED_PRECONDITION
    check_answers([model_pb2.InferResult(id="4", outputs=d.outputs)])
    assert totals(stream) == (4, 1, 3, 0)


def test_a_reader_whose_writer_is_taken_back_fails_and_nobody_overtakes(service: Serving, raw: Raw, lease: str) -> None:
    """`writes` is on the device. The item behind it is taken back; those behind that must wait for `writes` still."""
    between = raw.buffer(lease, 16)
    stream = raw.stream(Config(order=SUBMISSION), lease)
    service.emulator.hold()
    before = submitted(service)
    stream.items(item("writes", x(1), model="one", outputs=to_buffer(between)))
    wait_until(lambda: submitted(service) == before + 1, "it is on the device")
    stream.items(
        item("taken back", x(2), model="two", outputs=to_buffer(between)),
        item("reads", from_buffer(between), model="two"),
        item("writes again", x(3), model="relu", outputs=to_buffer(between)),
    )
    stream.cancel_items("taken back")
    wait_until(lambda: sum(session.failed for session in service.server.models.sessions) == 1, "it is taken back")
    assert submitted(service) == before + 1
    service.emulator.release()
    _, taken_back, reads, again = stream.finish()
    assert reasons([taken_back]) == {"ITEM_CANCELLED"}
    assert reasons([reads]) == {"INPUT_NOT_WRITTEN"}
    assert again.WhichOneof("outcome") == "outputs"
    assert raw.read(lease, between) == rows(3, 1).tobytes()


def test_an_item_expires_while_it_waits_for_its_input(service: Serving, raw: Raw, lease: str) -> None:
    between = raw.buffer(lease, 16)
    stream = raw.stream(Config(model="fresh-2"), lease)
    service.emulator.hold()
    stream.items(
        item("a", x(1), outputs=to_buffer(between)),
        item("b", from_buffer(between), timeout=Duration(nanos=50_000_000), model="fresh-3"),
    )
    (late,) = stream.results(1)
    assert (late.id, reasons([late])) == ("b", {"ITEM_EXPIRED"})
    service.emulator.release()
    assert ids(stream.finish()) == ["a"]


# Instances.


def test_two_instances_execute_at_the_same_time(service: Serving, raw: Raw) -> None:
    service.emulator.hold()
    before = submitted(service)
    stream = raw.stream(Config(model="twice"))
    for number in range(2):
        stream.items(*numbered(number, number + 1))
        wait_until(lambda number=number: submitted(service) == before + number + 1, "it is on the device")
    stream.items(*numbered(2, 12))
    wait_until(lambda: queued(service, "twice") == 10, "the others wait for company")
    service.emulator.release()
    results = stream.finish()
    assert len(results) == 12
    for result in results:
        np.testing.assert_array_equal(array_of(result.outputs.tensors[0]), -rows(int(result.id), 1))


def test_a_free_instance_makes_no_item_wait(tmp_path: Path) -> None:
    """It is known that an execution takes 300 ms, and one instance is busy: the other one is not."""
    put_model(tmp_path, "twice", elementwise(), INSTANCES % 2)
    latency = Latency(task_us={"aclmdlExecuteAsync": 300_000.0})
    with serving(tmp_path, emulator=EmulatorConfig(latency=latency)) as up, Raw(up.address) as raw:
        stream = raw.stream(Config(model="twice"))
        stream.items(*numbered(0, 1))
        stream.results(1)
        occupy(up, stream, "twice")
        stream.items(*numbered(1, 2, timeout=Duration(nanos=100_000_000)))
        wait_until(lambda: received(up) == 3, "it is received")
        up.emulator.release()
        check_answers(stream.finish())


def weighty() -> onnx.ModelProto:
    """y = x @ w, with 4 MB of weights."""
    weights = numpy_helper.from_array(np.eye(1024, dtype=np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "weighty",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", 1024])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", 1024])],
        [weights],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("run_mode", ["device", "host"])
def test_instances_share_their_weights(tmp_path: Path, run_mode: str) -> None:
    for count in (1, 2, 4):
        put_model(tmp_path, f"{count}", weighty(), "max_batch_size: 4\n" + INSTANCES % count)
    with serving(tmp_path, emulator=EmulatorConfig(run_mode=run_mode)) as up, Raw(up.address) as raw:
        free = memory_meter(raw)

        def taken(name: str) -> int:
            raw.models.UnloadModel(model_pb2.UnloadModelRequest(model=name), timeout=30)
            without = free()
            source = model_pb2.ModelSource(repository=model_pb2.RepositoryModel(model=name))
            raw.models.LoadModel(model_pb2.LoadModelRequest(source=source), timeout=30)
            return without - free()

        weights = 4 << 20
        one, two, four = (taken(name) for name in ("1", "2", "4"))
        assert weights <= one < 2 * weights
        assert two - one < weights  # a shared copy is rounded up to whole pages
        assert four - two < weights // 2
        source = model_pb2.ModelSource(repository=model_pb2.RepositoryModel(model="4"))
        size = raw.models.QueryModelSize(model_pb2.QueryModelSizeRequest(source=source), timeout=30)
        assert size.weight_bytes >= weights
        values = np.random.default_rng(1).random((3, 1024), np.float32)
        stream = raw.stream(Config(model="4"))
        for number in range(40):
            stream.items(item(str(number), tensor("x", values + number)))
        for result in stream.finish():
            np.testing.assert_allclose(array_of(result.outputs.tensors[0]), values + int(result.id), rtol=1e-6)


def memory_meter(raw: Raw) -> Callable[[], int]:
    def free() -> int:
        answer = raw.devices.ListDevices(device_pb2.ListDevicesRequest(), timeout=30)
        return min(memory.free_bytes for device in answer.devices for memory in device.memory)

    return free


def test_a_call_to_a_model_that_is_busy_names_no_stream(service: Serving, raw: Raw) -> None:
    """A unary call is a stream of its own: it is next beside a stream with a full window."""
    stream = raw.stream(Config(model="alone"))
    occupy(service, stream, "alone")
    stream.items(*numbered(0, 10))
    wait_until(lambda: queued(service, "alone") == 9, "nine wait, one is copied")
    call = raw.models.Infer.future(model_pb2.InferRequest(model="alone", inputs=[x(7)]), timeout=30)
    wait_until(lambda: queued(service, "alone") == 10, "the call's item waits")
    service.emulator.release()
    timing = call.result().timing
    assert timing.queue_rows == 9
    assert len(stream.finish()) == 11
    refusal = refused(lambda: raw.infer(model_pb2.InferRequest(model="alone", inputs=[x()], priority=9)))  # type: ignore[arg-type]
    assert refusal.reason == "PRIORITY_UNKNOWN"


def test_the_deadline_of_a_call_reaches_its_items(service: Serving, raw: Raw) -> None:
    """They are refused, or expire, as those with a timeout of their own."""
    stream = raw.stream(Config(model="fresh-4"))  # of a call with a deadline of 30 s
    occupy(service, stream, "fresh-4")
    stream.items(item("waits", x()), item("sooner", x(), timeout=Duration(seconds=5)))
    wait_until(lambda: queued(service, "fresh-4") == 2, "they wait")
    (session,) = service.server.models.sessions

    def allowed() -> list[float]:
        tickets = [session._entries[name].ticket for name in ("waits", "sooner")]
        return [ticket.deadline - ticket.received for ticket in tickets]

    waits, sooner = on_loop(service, allowed)
    assert 20 < waits < 31
    assert sooner == pytest.approx(5)
    service.emulator.release()
    assert len(stream.finish()) == 3


def test_items_that_wait_outside_the_queue_are_answered_when_the_server_stops(tmp_path: Path) -> None:
    put_model(tmp_path, "one", elementwise())
    with serving(tmp_path, max_queue_rows=32) as up, Raw(up.address) as raw:
        stream = raw.stream(Config(model="one", order=SUBMISSION))
        occupy(up, stream)
        stream.items(item("inside", x(1, 30)))
        stream.items(item("outside", x(2, 31)))
        wait_until(lambda: received(up) == 3, "all are received")
        assert queued(up, "one") == 30
        stopped = asyncio.run_coroutine_threadsafe(up.server.stop(), up.loop)
        assert stream.read().going_away.last_accepted_id == "outside"
        up.emulator.release()
        results = stream.rest()
        assert ids(results) == ["first", "inside", "outside"]
        assert {result.WhichOneof("outcome") for result in results} == {"outputs"}
        stopped.result(30)
