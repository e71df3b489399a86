"""Items of one message that are alike go through the engine together; nothing of that shows but in what it costs."""

from __future__ import annotations

import urllib.request
from collections.abc import Iterator

import pytest
from google.protobuf.duration_pb2 import Duration

from aclserve.v1 import model_pb2
from aclserve_server.emulator import EmulatorConfig
from e2e.raw import Raw, RawStream, answer, item, leaves_nothing, queued, reason, tensor, wait_until
from serving import Serving, elementwise, put_model, rows, serving

Config = model_pb2.StreamConfig


@pytest.fixture(scope="module", params=["device", "host"])
def service(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    root = tmp_path_factory.mktemp("models")
    put_model(root, "relu", elementwise("Relu"))
    with serving(root, emulator=EmulatorConfig(run_mode=request.param)) as up:
        yield up


@pytest.fixture(scope="module")
def raw(service: Serving) -> Iterator[Raw]:
    with Raw(service.address) as connected:
        yield connected


@pytest.fixture(autouse=True)
def unchanged(service: Serving, raw: Raw, caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    with leaves_nothing(service, raw, caplog):
        yield


def many(first: int, count: int) -> list[model_pb2.InferItem]:
    return [item(str(number), tensor("x", rows(number, 1))) for number in range(first, first + count)]


def occupied(service: Serving, raw: Raw, config: Config | None = None) -> RawStream:
    """A stream whose item "first" keeps the device, so that whatever comes next waits."""
    stream = raw.stream(config or Config(model="relu"))
    service.emulator.hold()
    before = service.emulator.counters.calls["aclmdlExecuteAsync"]
    stream.items(item("first", tensor("x", rows(0, 1))))
    wait_until(lambda: service.emulator.counters.calls["aclmdlExecuteAsync"] == before + 1, "the device has an item")
    return stream


def counted(service: Serving, code: str) -> float:
    text = urllib.request.urlopen(f"http://127.0.0.1:{service.metrics_port}/metrics", timeout=10).read().decode()
    lines = [line for line in text.splitlines() if line.startswith("aclserve_items_total") and f'code="{code}"' in line]
    return sum(float(line.split()[-1]) for line in lines)


def test_each_item_has_its_own_answer_and_place(service: Serving, raw: Raw) -> None:
    stream = occupied(service, raw)
    before = counted(service, "OK")
    stream.items(*many(1, 20))
    wait_until(lambda: queued(service, "relu") == 20, "twenty rows wait")
    service.emulator.release()
    results = {result.id: result for result in stream.finish()}
    assert {name: answer(result) for name, result in results.items() if name != "first"} == {
        str(number): rows(number, 1).tobytes() for number in range(1, 21)
    }
    places = [results[str(number)].timing for number in range(1, 21)]
    assert sorted(place.position for place in places) == list(range(20))
    assert {place.batch_rows for place in places} == {20}
    assert counted(service, "OK") == before + 21


def test_a_batch_is_filled_with_a_part_of_a_message(service: Serving, raw: Raw) -> None:
    """Messages of 5, batches of 32: the last message is parted where the batch is full."""
    stream = occupied(service, raw)
    before = service.emulator.counters.executions
    for first in range(1, 65, 5):
        stream.items(*many(first, min(5, 65 - first)))
    wait_until(lambda: queued(service, "relu") == 32, "a full batch is packed, as many wait")
    service.emulator.release()
    results = {result.id: answer(result) for result in stream.finish()}
    assert results == {"first": rows(0, 1).tobytes()} | {str(n): rows(n, 1).tobytes() for n in range(1, 65)}
    assert service.emulator.counters.executions - before == 3


def test_one_of_them_can_be_taken_back(service: Serving, raw: Raw) -> None:
    stream = occupied(service, raw)
    before = counted(service, "CANCELLED")
    stream.items(*many(1, 6))
    wait_until(lambda: queued(service, "relu") == 6, "six rows wait")
    stream.cancel_items("1", "4", "4", "unknown")
    assert {(result.id, reason(result)) for result in stream.results(2)} == {
        ("1", "ITEM_CANCELLED"),
        ("4", "ITEM_CANCELLED"),
    }
    assert queued(service, "relu") == 4
    service.emulator.release()
    results = {result.id: answer(result) for result in stream.finish()}
    assert results == {"first": rows(0, 1).tobytes()} | {str(n): rows(n, 1).tobytes() for n in (2, 3, 5, 6)}
    assert counted(service, "CANCELLED") == before + 2


def test_all_of_them_expire(service: Serving, raw: Raw) -> None:
    stream = occupied(service, raw)
    before = counted(service, "DEADLINE_EXCEEDED")
    late = many(1, 6)
    for one in late:
        one.timeout.CopyFrom(Duration(nanos=50_000_000))
    stream.items(*late)
    found = stream.results(6)
    assert {result.id for result in found} == {str(number) for number in range(1, 7)}
    assert {reason(result) for result in found} <= {"ITEM_EXPIRED", "DEADLINE_UNREACHABLE"}
    service.emulator.release()
    assert [result.id for result in stream.finish()] == ["first"]
    assert counted(service, "DEADLINE_EXCEEDED") == before + 6


def test_a_bad_one_among_them_hurts_nobody(service: Serving, raw: Raw) -> None:
    stream = raw.stream(Config(model="relu", order=model_pb2.RESULT_ORDER_SUBMISSION))
    bad = item("bad", tensor("x", rows(0, 1)[:, :3]))
    stream.items(*many(0, 3), bad, *many(3, 3))
    results = stream.finish()
    assert [result.id for result in results] == ["0", "1", "2", "bad", "3", "4", "5"]
    assert [result.WhichOneof("outcome") for result in results] == ["outputs"] * 3 + ["error"] + ["outputs"] * 3
    assert reason(results[3]) == "SHAPE_MISMATCH"
