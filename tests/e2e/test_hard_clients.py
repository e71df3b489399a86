"""Clients that are slow, idle, rude or dead: the server stays small and prompt, and tells them clearly."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from grpc_health.v1 import health_pb2

from aclserve.v1 import model_pb2
from aclserve_server.emulator import EmulatorConfig
from aclserve_server.rpc import stream as rpc_stream
from aclserve_server.rpc.stream_settings import PACKED_BYTES
from e2e.raw import STREAM_INFER, Raw, RawStream, answer, item, leaves_nothing, on_loop, tensor, wait_until
from serving import Serving, elementwise, put_model, rows, serving

Config = model_pb2.StreamConfig
DROP_NEWEST, LATEST_ONLY = model_pb2.FRAME_POLICY_DROP_NEWEST, model_pb2.FRAME_POLICY_LATEST_ONLY
COMPLETION, SUBMISSION = model_pb2.RESULT_ORDER_COMPLETION, model_pb2.RESULT_ORDER_SUBMISSION
WINDOW = 16
WIDE = 100_000
IDLE = 1000

_DIES = """
import sys, time
import grpc
from aclserve.v1 import model_pb2 as pb, tensor_pb2
def requests():
    yield pb.StreamInferRequest(config=pb.StreamConfig(model="one", policy=int(sys.argv[2])))
    for number in range(1 << 30):
        x = tensor_pb2.Tensor(name="x", data_type=12, shape=[1, 4], data=bytes(16))
        yield pb.StreamInferRequest(items=pb.ItemList(items=[pb.InferItem(inputs=[x])] * 10))
        if number == 10:
            print("sending", flush=True)
channel = grpc.insecure_channel(sys.argv[1])
call = channel.stream_stream(
    "/aclserve.v1.ModelService/StreamInfer", pb.StreamInferRequest.SerializeToString, pb.StreamInferResponse.FromString
)(requests())
time.sleep(600)
"""


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    root = tmp_path_factory.mktemp("models")
    put_model(root, "one", elementwise())
    put_model(root, "wide", elementwise(shape=("rows", WIDE)))
    with serving(root, emulator=EmulatorConfig(memory_bytes=256 << 20), max_stream_items=WINDOW) as up:
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


def only(service: Serving) -> Any:
    """The only session there is."""
    (session,) = service.server.models.sessions
    return session


def x(first: int = 0) -> Any:
    return tensor("x", rows(first, 1))


def occupy(service: Serving, stream: RawStream) -> None:
    service.emulator.hold()
    before = service.emulator.counters.calls["aclmdlExecuteAsync"]
    stream.items(item("first", x()))
    wait_until(lambda: service.emulator.counters.calls["aclmdlExecuteAsync"] == before + 1, "it is on the device")


def stands_still(service: Serving, raw: Raw) -> int:
    """How many items the server has received when it reads no further, though it is at leisure to."""
    before = -1
    while before != only(service).received:
        before = only(service).received
        for _ in range(100):
            raw.states()
    return before


# Clients that do not read.


@pytest.mark.parametrize("order", [COMPLETION, SUBMISSION])
def test_a_live_client_that_does_not_read(service: Serving, raw: Raw, order: Any) -> None:
    """100,000 frames come while the device is busy with the first: notices are owed, and the server stops reading."""
    frames, pack = 100_000, 100
    stream = raw.stream(Config(model="one", policy=LATEST_ONLY, order=order))
    occupy(service, stream)
    session = only(service)
    number = 0
    for _ in range(frames // pack):
        names = [f"{number + index:0>100}" for index in range(pack)]
        stream.items(*(item(name, x()) for name in names))
        number += pack
    wait_until(lambda: session.received > 2000, "many are received")
    received = stands_still(service, raw)
    assert received < frames * 3 // 4  # notices lie in buffers of the transport too, some megabytes of them
    owed = on_loop(service, lambda: (session._unwritten, len(session._turns), len(session._entries)))
    assert owed[0] + owed[1] <= rpc_stream._UNREAD + WINDOW + 1
    assert session.frames.pending_items == 2
    service.emulator.release()
    results = stream.finish()
    assert len(results) == frames + 1
    outcomes = Counter(result.WhichOneof("outcome") for result in results)
    assert set(outcomes) == {"outputs", "dropped"}
    if order == SUBMISSION:
        assert [result.id for result in results] == ["first", *(f"{index:0>100}" for index in range(frames))]
    summary = stream.summary
    assert summary is not None
    assert (summary.received_items, summary.failed_items) == (frames + 1, 0)
    assert (summary.succeeded_items, summary.dropped_items) == (outcomes["outputs"], outcomes["dropped"])


def test_a_slow_reader_gets_everything(service: Serving, raw: Raw) -> None:
    """A file stream, read one message at a time after the server has come to rest."""
    stream = raw.stream(Config(model="one", order=SUBMISSION))
    for number in range(200):
        stream.items(item(str(number), x(number)))
    stream.close()
    found: list[model_pb2.InferResult] = []
    while len(found) < 200:
        raw.states()
        found += stream.results(1)
    assert [result.outputs.tensors[0].data for result in found] == [rows(number, 1).tobytes() for number in range(200)]
    assert stream.rest() == []


# Clients that do not behave.


@pytest.mark.parametrize("policy", [model_pb2.FRAME_POLICY_WAIT, LATEST_ONLY])
def test_a_client_that_is_killed(service: Serving, raw: Raw, policy: int) -> None:
    service.emulator.hold()
    with subprocess.Popen(
        [sys.executable, "-c", _DIES, service.address, str(policy)],
        stdout=subprocess.PIPE,
        env={"PYTHONPATH": "protos", "PATH": ""},
        cwd=Path(__file__).parents[2],
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"sending\n"
        wait_until(lambda: only(service).received >= WINDOW, "its items are received")
        process.send_signal(signal.SIGKILL)
    wait_until(lambda: not service.server.models.sessions, "its stream has ended")
    wait_until(lambda: service.server.engine.queue_rows("one") == 0, "its items are gone, though the device is held")
    service.emulator.release()
    assert raw.infer(model_pb2.InferRequest(model="one", inputs=[x(3)])).outputs.tensors[0].data == rows(3, 1).tobytes()


def test_garbage_after_items(service: Serving, raw: Raw) -> None:
    """Ends the stream with a clear status; what waited is gone at once, what executes is discarded."""
    stream = raw.stream(Config(model="one"))
    neighbour = raw.stream(Config(model="one"))
    occupy(service, stream)
    stream.items(item("waits", x(1)))
    neighbour.items(item("7", x(7)))
    wait_until(lambda: service.server.engine.queue_rows("one") == 2, "both wait")
    stream.send(b"\xff\xff\xff\xff garbage")
    refusal = stream.end()
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "MALFORMED_MESSAGE")
    wait_until(lambda: service.server.engine.queue_rows("one") == 1, "its item is gone")
    service.emulator.release()
    (result,) = neighbour.finish()
    assert result.outputs.tensors[0].data == rows(7, 1).tobytes()


def test_a_second_configuration_after_items(service: Serving, raw: Raw) -> None:
    stream = raw.stream(Config(model="one", policy=DROP_NEWEST))
    occupy(service, stream)
    stream.send(model_pb2.StreamInferRequest(config=Config(model="one")))
    refusal = stream.end()
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "STREAM_ALREADY_CONFIGURED")


def test_half_close_at_once_in_every_policy(service: Serving, raw: Raw) -> None:
    for policy in range(1, 5):
        stream = raw.stream()
        stream.send(model_pb2.StreamInferRequest(config=Config(model="one", policy=policy)))  # type: ignore[arg-type]
        stream.items(item("only", x(policy)))
        stream.close()
        assert stream.read().WhichOneof("response") == "ready"
        (result,) = stream.rest()
        assert result.outputs.tensors[0].data == rows(policy, 1).tobytes()


def test_a_client_that_never_half_closes_is_served_and_let_go(service: Serving, raw: Raw) -> None:
    with Raw(service.address) as client:
        stream = client.stream(Config(model="one"))
        for number in range(50):
            stream.items(item(str(number), x(number)))
            assert stream.results(1)[0].id == str(number)
        assert only(service).received == 50
    wait_until(lambda: not service.server.models.sessions, "the stream ended with its connection")
    stream.kill()


# Idle streams.


@asynccontextmanager
async def idle_streams(channel: grpc.aio.Channel, count: int) -> AsyncIterator[list[Any]]:
    config = model_pb2.StreamInferRequest(config=Config(model="one", preset=model_pb2.STREAM_PRESET_LIVE))
    open_stream = channel.stream_stream(STREAM_INFER, response_deserializer=model_pb2.StreamInferResponse.FromString)
    calls = [open_stream() for _ in range(count)]
    for call in calls:
        await call.write(config.SerializeToString())
    for call in calls:
        assert (await call.read()).WhichOneof("response") == "ready"
    try:
        yield calls
    finally:
        for call in calls:
            await call.done_writing()
        for call in calls:
            last = None
            while (message := await call.read()) is not grpc.aio.EOF:
                last = message
            assert last is not None
            assert last.WhichOneof("response") == "summary"


async def health_checks(channel: grpc.aio.Channel, count: int) -> None:
    check = channel.unary_unary(
        "/grpc.health.v1.Health/Check",
        health_pb2.HealthCheckRequest.SerializeToString,
        health_pb2.HealthCheckResponse.FromString,
    )
    for _ in range(count):
        answer = await check(health_pb2.HealthCheckRequest(), timeout=30)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING


class Wakeups:
    """Counts what the server's loop is woken for: callbacks that are scheduled, and timers that are armed."""

    def __init__(self, service: Serving) -> None:
        self._loop: Any = service.loop
        self.callbacks = self.timers = 0

    def __enter__(self) -> Wakeups:
        loop = self._loop
        soon, safe, at = loop.call_soon, loop.call_soon_threadsafe, loop.call_at

        def count(call: Any, kind: str) -> Any:
            def counted(*arguments: Any, **options: Any) -> Any:
                setattr(self, kind, getattr(self, kind) + 1)
                return call(*arguments, **options)

            return counted

        loop.call_soon, loop.call_soon_threadsafe = count(soon, "callbacks"), count(safe, "callbacks")
        loop.call_at = count(at, "timers")
        return self

    def __exit__(self, *exception: object) -> None:
        for name in ("call_soon", "call_soon_threadsafe", "call_at"):
            delattr(self._loop, name)


def test_a_thousand_idle_streams_cost_a_health_check_nothing(service: Serving) -> None:
    checks = 50

    async def run() -> tuple[Wakeups, Wakeups]:
        async with grpc.aio.insecure_channel(service.address) as channel:
            await health_checks(channel, 5)
            with Wakeups(service) as alone:
                await health_checks(channel, checks)
            async with idle_streams(channel, IDLE):
                assert len(service.server.models.sessions) == IDLE
                await health_checks(channel, 5)
                with Wakeups(service) as among:
                    await health_checks(channel, checks)
            return alone, among

    alone, among = asyncio.run(run())
    assert alone.callbacks >= checks
    assert among.callbacks <= alone.callbacks * 1.5 + 50
    assert among.timers <= alone.timers + 10
    for record in service.server.engine.records():
        assert record.runner is not None
        assert record.runner._timer is None


def test_a_thousand_idle_streams_are_watched(service: Serving, raw: Raw) -> None:
    async def run() -> None:
        async with grpc.aio.insecure_channel(service.address) as channel, idle_streams(channel, IDLE):
            await asyncio.to_thread(watch)

    def watch() -> None:
        request = model_pb2.WatchStreamsRequest(interval=Duration(nanos=100_000_000))
        call = raw.models.WatchStreams(request, timeout=30)
        busy = raw.stream()
        busy.send(model_pb2.StreamInferRequest(config=Config(model="one", order=SUBMISSION)))
        assert busy.read().ready.max_pending_items == 8
        busy.items(*(item(str(number), x(number)) for number in range(8)))
        assert len(busy.results(8)) == 8
        report = next(call)
        while sum(stream.received_items for stream in report.streams) < 8:
            report = next(call)
        assert len(report.streams) == IDLE + 1
        numbers = [stream.number for stream in report.streams]
        assert numbers == sorted(set(numbers))
        *others, last = report.streams
        assert all((stream.received_items, stream.pending_items) == (0, 0) for stream in others)
        assert {stream.policy for stream in others} == {LATEST_ONLY}
        assert {stream.max_pending_items for stream in others} == {8}
        assert (last.model, last.received_items, last.succeeded_items) == ("one", 8, 8)
        assert 0 < last.p50_ns <= last.p99_ns
        assert {model.name: model.queue_rows for model in report.models} == {"one": 0, "wide": 0}
        call.cancel()
        assert busy.finish() == []

    asyncio.run(run())


def test_watching_tells_what_happens(service: Serving, raw: Raw) -> None:
    stream = raw.stream(Config(model="one", policy=LATEST_ONLY, max_pending_items=4, priority=model_pb2.PRIORITY_HIGH))
    call = raw.models.WatchStreams(model_pb2.WatchStreamsRequest(interval=Duration(nanos=100_000_000)), timeout=30)
    occupy(service, stream)
    stream.items(*(item(str(number), x(number)) for number in range(5)))
    stream.results(4)
    (status,) = next(report for report in call if report.streams[0].dropped_items == 4).streams
    assert (status.policy, status.priority, status.max_pending_items) == (LATEST_ONLY, model_pb2.PRIORITY_HIGH, 4)
    assert (status.received_items, status.succeeded_items, status.failed_items) == (6, 0, 0)
    assert (status.pending_items, status.pending_bytes) == (2, 32)
    assert dict(status.drops) == {"SUPERSEDED": 4}
    assert status.oldest_age_ns > 0
    queue_rows = next(call).models[0].queue_rows
    assert queue_rows == 1
    service.emulator.release()
    stream.results(2)
    report = next(report for report in call if report.streams[0].succeeded_items == 2)
    assert report.streams[0].pending_items == 0
    assert stream.finish() == []
    assert not next(report for report in call if not report.streams).streams
    call.cancel()


def test_watching_ends_with_the_server_and_holds_up_no_stop(tmp_path: Path) -> None:
    put_model(tmp_path, "one", elementwise())
    with serving(tmp_path) as up, Raw(up.address) as raw:
        call = raw.models.WatchStreams(model_pb2.WatchStreamsRequest(interval=Duration(seconds=3600)), timeout=600)
        stream = raw.stream(Config(model="one"))
        begun = time.monotonic()
        stopped = asyncio.run_coroutine_threadsafe(up.server.stop(), up.loop)
        assert stream.rest() == []
        stopped.result(60)
        assert time.monotonic() - begun < up.server.config.drain_timeout_s / 2
        with pytest.raises(grpc.RpcError):
            next(call)


@pytest.mark.parametrize("interval", [Duration(nanos=99_000_000), Duration(), Duration(seconds=-1)])
def test_watching_too_often(raw: Raw, interval: Duration) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        next(raw.models.WatchStreams(model_pb2.WatchStreamsRequest(interval=interval), timeout=30))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT  # type: ignore[attr-defined]


# Clients that take little.


@pytest.mark.parametrize("order", [COMPLETION, SUBMISSION])
def test_results_that_are_ready_together_fit_a_client_of_no_kit(service: Serving, raw: Raw, order: Any) -> None:
    """Its library refuses messages of more than 4 MiB, and would end the stream for results of which each is small."""
    assert WIDE * 4 * (WINDOW - 1) > PACKED_BYTES > WIDE * 4
    stream = raw.stream(Config(model="wide", order=order))
    service.emulator.hold()
    stream.items(*(item(str(at), tensor("x", rows(at, 1, WIDE))) for at in range(WINDOW)))
    wait_until(lambda: only(service).received == WINDOW, "all have come")
    service.emulator.release()
    results = stream.finish()
    assert sorted(int(result.id) for result in results) == list(range(WINDOW))
    for result in results:
        assert answer(result) == rows(int(result.id), 1, WIDE).tobytes()
