"""Batching through the whole service: rows share executions, failures stay where they are, nothing is allocated."""

from __future__ import annotations

import threading
import tracemalloc
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import aclserve_server.engine.lane as engine_lane
import aclserve_server.rpc.model as rpc_model
from aclserve.errors import Internal
from aclserve_client import Client
from aclserve_server.emulator import EmulatorConfig, Latency
from serving import Serving, elementwise, put_model, rows, serving

RUN_MODES = ["device", "host"]
ALLOCATIONS = ("aclrtMalloc", "aclrtMallocHost", "aclmdlCreateDataset", "aclCreateDataBuffer", "aclrtCreateEvent")


@pytest.fixture(params=RUN_MODES)
def service(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Serving]:
    put_model(tmp_path, "relu", elementwise("Relu"))
    put_model(tmp_path, "mixing", elementwise("Softmax", axis=0))
    put_model(tmp_path, "frame", elementwise("Relu", ("rows", 1080, 1440)), "dynamic_batching {}\nmax_batch_size: 2\n")
    put_model(tmp_path, "fixed", elementwise("Relu", (4, 3)), "max_batch_size: 4\n")
    with serving(tmp_path, emulator=EmulatorConfig(run_mode=request.param)) as up:
        yield up


@pytest.fixture
def client(service: Serving) -> Iterator[Client]:
    with Client(service.address) as connected:
        yield connected


def wait_until(service: Serving, condition: Any) -> None:
    """Polls a condition on the server's loop; bounded."""
    for _ in range(2000):
        if condition():
            return
        threading.Event().wait(0.005)
    raise AssertionError("the condition did not come true")


def waiting_rows(service: Serving, model: str) -> int:
    return service.server.engine.queue_rows(model)


def test_64_items_over_8_streams_take_at_most_3_executions(service: Serving, client: Client) -> None:
    service.emulator.hold()
    before = service.emulator.counters.executions
    with ExitStack() as stack:
        streams = [stack.enter_context(client.stream("relu")) for _ in range(8)]
        for index, stream in enumerate(streams):
            for item in range(8):
                stream.send({"x": rows(index * 8 + item, 1)}, id=str(item))
        wait_until(service, lambda: received(service) == 64)
        service.emulator.release()
        for index, stream in enumerate(streams):
            stream.finish()
            answers = {result.id: result for result in stream.results()}
            assert len(answers) == 8
            for item in range(8):
                np.testing.assert_array_equal(answers[str(item)].outputs["y"], rows(index * 8 + item, 1))
    assert service.emulator.counters.executions - before <= 3


def received(service: Serving) -> int:
    return sum(session.received for session in list(service.server.models.sessions))


def test_two_slots_with_different_gears_give_each_item_its_own_dims(service: Serving, client: Client) -> None:
    service.emulator.hold()
    with client.stream("relu") as stream:
        stream.send({"x": rows(0, 1)}, id="one")
        wait_until(service, lambda: received(service) == 1 and waiting_rows(service, "relu") == 0)
        stream.send({"x": rows(1, 32)}, id="many")
        stream.send({"x": rows(40, 5)}, id="few")
        wait_until(service, lambda: received(service) == 3 and waiting_rows(service, "relu") == 5)
        service.emulator.release()
        stream.finish()
        found = {result.id: result.raise_for_error() for result in stream.results()}
    for name, first, count, gear in (("one", 0, 1, 1), ("many", 1, 32, 32), ("few", 40, 5, 5)):
        np.testing.assert_array_equal(found[name].outputs["y"], rows(first, count))
        timing = found[name].timing
        assert timing is not None
        assert (timing.batch_rows, timing.gear_rows) == (count, gear)


def test_a_task_that_fails_later_releases_no_byte_and_hurts_no_neighbour(service: Serving, client: Client) -> None:
    service.emulator.hold()
    with client.stream("relu") as stream:
        for index, name in enumerate(("first", "failing", "last")):
            if name == "failing":
                service.emulator.faults.fail_task("aclmdlExecuteAsync", 507899, task=2)
            stream.send({"x": rows(index * 32, 32)}, id=name)
            wait_until(service, lambda index=index: received(service) == index + 1)
        service.emulator.release()
        stream.finish()
        found = {result.id: result for result in stream.results()}
    failed = [name for name, result in found.items() if result.error is not None]
    assert len(failed) == 1
    error = found[failed[0]].error
    assert isinstance(error, Internal)
    assert error.metadata["acl_code"] == "507899"
    assert not found[failed[0]].outputs
    for index, name in enumerate(("first", "failing", "last")):
        if name not in failed:
            np.testing.assert_array_equal(found[name].outputs["y"], rows(index * 32, 32))
    np.testing.assert_array_equal(client.infer("relu", {"x": rows(0, 3)}).outputs["y"], rows(0, 3))


def test_a_model_that_mixes_rows_answers_as_if_alone(service: Serving, client: Client) -> None:
    described = client.describe("mixing")
    assert described.batching == "none"
    assert "changes with the rows beside it" in described.batching_reason
    inputs = [np.random.default_rng(seed).random((count, 4), np.float32) for seed, count in enumerate((1, 2, 4, 1, 8))]
    with client.stream("mixing") as stream:
        stream.send_many([{"x": given} for given in inputs])
        stream.finish()
        found = {result.id: result.raise_for_error().outputs["y"] for result in stream.results()}
    for index, given in enumerate(inputs):
        exponent = np.exp(given - given.max(axis=0))
        np.testing.assert_allclose(found[str(index)], exponent / exponent.sum(axis=0), rtol=1e-5)


def test_a_static_model_with_max_batch_size_packs_rows_into_its_one_shape(service: Serving, client: Client) -> None:
    described = client.describe("fixed")
    assert (described.batching, described.max_rows) == ("rows", 4)
    answer = client.infer("fixed", {"x": rows(0, 3, 3)})
    np.testing.assert_array_equal(answer.outputs["y"], rows(0, 3, 3))
    assert answer.timing is not None
    assert answer.timing.gear_rows == 4


def test_zero_rows_need_no_device(service: Serving, client: Client) -> None:
    before = service.emulator.counters.executions
    answer = client.infer("relu", {"x": np.empty((0, 4), np.float32)})
    assert answer.outputs["y"].shape == (0, 4)
    assert service.emulator.counters.executions == before


def test_ten_thousand_items_allocate_nothing(service: Serving, client: Client) -> None:
    items = [{"x": rows(index % 7, 1 + index % 3)} for index in range(200)]

    def run(count: int) -> None:
        with client.stream("relu") as stream:
            answered = sum(
                result.error is None for result in stream.map((items[k % 200] for k in range(count)), pack=16)
            )
        assert answered == count

    run(200)
    calls = service.emulator.counters.calls
    before = {name: calls[name] for name in ALLOCATIONS}
    run(10_000)
    assert {name: calls[name] for name in ALLOCATIONS} == before


def test_a_large_item_is_copied_once_and_allocates_nothing_large(
    service: Serving, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    frame = np.random.default_rng(3).random((1, 1080, 1440), np.float32)
    assert frame.nbytes > 6_000_000
    np.testing.assert_array_equal(client.infer("frame", {"x": frame}).outputs["y"], frame)
    runner = service.server.engine.find("frame", 0).runner
    assert runner is not None
    copies = sum(slot.copies for slot in runner.slots)
    peaks: list[int] = []
    scan, pack = rpc_model.scan_infer_request, engine_lane.pack

    def from_receipt(message: bytes) -> Any:
        tracemalloc.start(1)
        return scan(message)

    def to_the_row(batch: Any) -> None:
        pack(batch)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()

    monkeypatch.setattr(rpc_model, "scan_infer_request", from_receipt)
    monkeypatch.setattr(engine_lane, "pack", to_the_row)
    client.infer("frame", {"x": frame})
    assert sum(slot.copies for slot in runner.slots) == copies + 1
    assert len(peaks) == 1
    assert peaks[0] < 1_000_000


def test_the_time_of_each_part_is_told_apart(tmp_path: Path) -> None:
    """Host and device memory apart, each copy 20 ms, each execution 50 ms: what a part takes stands under its name."""
    put_model(tmp_path, "relu", elementwise("Relu"))
    slow = Latency(task_us={"aclrtMemcpyAsync": 20_000, "aclmdlExecuteAsync": 50_000})
    with serving(tmp_path, emulator=EmulatorConfig(run_mode="host", latency=slow)) as up, Client(up.address) as client:
        timing = client.infer("relu", {"x": rows(0, 1)}).timing
    assert timing is not None
    assert timing.copy_in_ns >= 20_000_000
    assert timing.execute_ns >= 50_000_000
    assert timing.copy_out_ns >= 20_000_000
    assert timing.total_ns >= 90_000_000
