"""Real models loaded in every way: with a configuration, synchronous, uploaded, in the caller's memory."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from aclserve_client import (
    BufferInfo,
    Client,
    ExecutionMode,
    FailedPrecondition,
    InvalidArgument,
    Lease,
    ModelState,
    NotFound,
    Options,
    Result,
)
from aclserve_server.emulator import EmulatorConfig
from e2e.cases import Case, copy_model, model_files, plain_case, plain_cases
from serving import Serving, serving

pytestmark = pytest.mark.needs_shared

MNIST = plain_case("mnist", "digit")
MAGIKA = plain_case("magika_v3_3", "files16")
SUMS = plain_case("dynamic_axes_sum", "batch17")
LOADED = ("mnist", "magika_v3_3", "dynamic_axes_sum", "data_dependent_shape", "ultraface_rfb_320", "node_clip_example")
"""One model of each kind: static, rows, rows of 40 bytes, unknown shapes, large static, scalars."""

CASES = [case for case in plain_cases() if case.model in LOADED]


@pytest.fixture(scope="module", params=["device", "host"])
def served(request: pytest.FixtureRequest, shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """A server with one model of each kind, and a static one whose rows are counted."""
    root = tmp_path_factory.mktemp("models")
    for name in LOADED:
        copy_model(root, name)
    copy_model(root, "mnist", "mnist_rows", "max_batch_size: 1\n")
    with serving(root, emulator=EmulatorConfig(run_mode=request.param)) as up:
        yield up


@pytest.fixture
def service(served: Serving) -> Serving:
    """The server with the repository's models loaded as they are found there, before each test."""
    with Client(served.address) as client:
        for model in client.models():
            if model.state is ModelState.READY and client.describe(model.name).execution_mode != usual_mode(model.name):
                client.unload(model.name)
                client.load(model.name)
            elif model.state is not ModelState.READY:
                client.load(model.name)
    return served


def usual_mode(model: str) -> ExecutionMode:
    unknown_shapes = model == "data_dependent_shape"
    return ExecutionMode.SYNCHRONOUS if unknown_shapes else ExecutionMode.ASYNCHRONOUS


@pytest.fixture
def client(service: Serving) -> Iterator[Client]:
    with Client(service.address, Options(chunk_bytes=10_000)) as connected:
        yield connected


def check_both_ways(client: Client, case: Case, model: str) -> list[Result]:
    """Runs a case under another name, unary and streamed; the answers."""
    results = [client.infer(model, case.inputs)]
    with client.stream(model, timeout=60) as stream:
        results += stream.map([case.inputs] * 4)
    assert len(results) == 5
    for result in results:
        case.check(result.raise_for_error().outputs)
    return results


# Configuration.


def test_a_static_model_whose_leading_dimension_is_its_batch_size_counts_rows(client: Client) -> None:
    described = client.describe("mnist_rows")
    assert (described.batching, described.max_rows) == ("rows", 1)
    assert (client.describe("mnist").batching, client.describe("mnist").max_rows) == ("none", 1)
    for result in check_both_ways(client, MNIST, "mnist_rows"):
        assert result.timing is not None
        assert (result.timing.batch_rows, result.timing.gear_rows, result.timing.position) == (1, 1, 0)
    two = {name: np.concatenate([value, value]) for name, value in MNIST.inputs.items()}
    with pytest.raises(InvalidArgument) as refused:
        client.infer("mnist_rows", two)
    assert refused.value.reason == "TOO_MANY_ROWS"


# Batching.


def test_items_of_several_clients_share_executions(service: Serving, client: Client) -> None:
    """While one item holds the device, sixteen of four clients come to wait; they are one execution of sixteen rows."""
    (name, files), expected = next(iter(MAGIKA.inputs.items())), MAGIKA.outputs["target_label"]
    rows = len(files)
    assert rows == 16
    counters = service.emulator.counters
    executions = counters.executions
    submitted = counters.calls["aclmdlExecuteAsync"]
    service.emulator.hold()

    def one_client(number: int) -> dict[int, Result]:
        mine = range(number, rows, 4)
        with Client(service.address) as own, own.stream(MAGIKA.model, timeout=60) as stream:
            for row in mine:
                stream.send({name: files[row : row + 1]}, id=str(row))
            stream.finish()
            return {int(result.id): result.raise_for_error() for result in stream.results()}

    with ThreadPoolExecutor(5) as pool:
        plug = pool.submit(client.infer, MAGIKA.model, {name: files[:1]})
        wait_until(lambda: counters.calls["aclmdlExecuteAsync"] == submitted + 1)
        answers = [pool.submit(one_client, number) for number in range(4)]
        wait_until(lambda: service.server.engine.queue_rows(MAGIKA.model) == rows)
        service.emulator.release()
        found = {row: result for answer in answers for row, result in answer.result().items()}
        plug.result()
    assert counters.executions - executions == 2
    timings = [result.timing for result in found.values() if result.timing is not None]
    assert [timing.batch_rows for timing in timings] == [rows] * rows
    assert sorted(timing.position for timing in timings) == list(range(rows))
    got = np.concatenate([found[row].outputs["target_label"] for row in range(rows)])
    MAGIKA.check({"target_label": got})
    assert np.array_equal(got.argmax(axis=1), expected.argmax(axis=1))


def wait_until(condition: Callable[[], bool]) -> None:
    """Polls; bounded."""
    for _ in range(4000):
        if condition():
            return
        threading.Event().wait(0.005)
    raise AssertionError("the condition did not come true")


@pytest.mark.parametrize("mode", [ExecutionMode.ASYNCHRONOUS, ExecutionMode.SYNCHRONOUS])
def test_rows_in_buffers_beside_rows_in_messages(client: Client, mode: ExecutionMode) -> None:
    """Rows of 40 bytes lie at odd offsets of the client's buffers and of the batch."""
    client.upload_and_load("sums", model_files()[SUMS.model], execution_mode=mode)
    (name, rows), (output, sums) = next(iter(SUMS.inputs.items())), next(iter(SUMS.outputs.items()))
    count = len(rows)
    with client.lease() as lease:
        given = lease.allocate(rows.nbytes + 8)
        taken = lease.allocate(sums.nbytes + 4, "host")
        lease.write(given, rows, offset_bytes=8)
        with client.stream("sums", lease=lease, timeout=60) as stream:
            for row in range(count):
                value = given.ref((1, 10), "float32", offset_bytes=8 + 40 * row) if row % 3 else rows[row : row + 1]
                stream.send({name: value}, outputs={output: taken.ref(offset_bytes=4 + 4 * row)})
            stream.finish()
            for result in stream.results():
                assert list(result.raise_for_error().buffers) == [output]
        got = lease.read_array(taken, sums.shape, str(sums.dtype), offset_bytes=4)
    SUMS.check({output: got})
    client.unload("sums")


# Ways to load.


@pytest.mark.parametrize("model", LOADED)
def test_a_synchronous_model_gives_the_same_answers(service: Serving, client: Client, model: str) -> None:
    client.unload(model)
    described = client.load(model, execution_mode="synchronous")
    assert described.execution_mode is ExecutionMode.SYNCHRONOUS
    before = service.emulator.counters.calls["aclmdlExecuteAsync"]
    for case in CASES:
        if case.model == model:
            check_both_ways(client, case, model)
    assert service.emulator.counters.calls["aclmdlExecuteAsync"] == before


def test_synchronous_and_asynchronous_models_of_one_server_do_not_disturb_each_other(
    service: Serving, client: Client
) -> None:
    described = client.upload_and_load("mine", model_files()[MAGIKA.model], execution_mode="synchronous")
    assert described.execution_mode is ExecutionMode.SYNCHRONOUS
    with ThreadPoolExecutor(2) as pool:
        runs = [pool.submit(check_both_ways, client, MAGIKA, model) for model in (MAGIKA.model, "mine") for _ in "12"]
        for run in runs:
            run.result()
    client.unload("mine")


@pytest.mark.parametrize("mode", list(ExecutionMode))
@pytest.mark.parametrize("case", [MNIST, MAGIKA, plain_case("data_dependent_shape", "ramp")], ids=str)
def test_uploaded_bytes_serve_until_they_are_unloaded(
    service: Serving, client: Client, case: Case, mode: ExecutionMode
) -> None:
    before = service.emulator.ledger()
    content = model_files()[case.model].read_bytes()
    described = client.upload_and_load("mine", content, execution_mode=mode)
    expected = client.describe(case.model)
    assert (described.inputs, described.outputs) == (expected.inputs, expected.outputs)
    assert (described.gears, described.batching) == (expected.gears, expected.batching)
    check_both_ways(client, case, "mine")
    client.unload("mine")
    with pytest.raises(NotFound) as gone:
        client.infer("mine", case.inputs)
    assert gone.value.reason == "MODEL_NOT_FOUND"
    assert "mine" not in {model.name for model in client.models()}
    assert service.emulator.ledger() == before


def test_unloaded_models_can_be_loaded_again(service: Serving, client: Client) -> None:
    before = service.emulator.ledger()
    for _ in range(3):
        client.unload("mnist")
        with pytest.raises(FailedPrecondition) as refused:
            client.infer("mnist", MNIST.inputs)
        assert refused.value.reason == "MODEL_NOT_READY"
        client.load("mnist")
        check_both_ways(client, MNIST, "mnist")
    assert service.emulator.ledger() == before


# The caller's memory.


def free_bytes(client: Client) -> int:
    """Free memory of the device."""
    return next(usage.free_bytes for usage in client.memory() if usage.total_bytes)


@pytest.mark.parametrize("uploaded", [False, True], ids=["repository", "upload"])
@pytest.mark.parametrize("case", [MNIST, MAGIKA], ids=str)
def test_a_model_in_the_callers_memory(service: Serving, client: Client, case: Case, uploaded: bool) -> None:
    """The load takes as much less as work and weights have; the buffers stay while the model needs them."""
    client.unload(case.model)
    empty = free_bytes(client)
    name = "mine" if uploaded else case.model
    with client.lease() as lease:
        upload = lease.upload(model_files()[case.model]) if uploaded else None
        own = client.load(name, upload=upload, lease=lease)
        assert own.memory_owner == "ascendcl"
        taken_by_ascendcl = empty - free_bytes(client)
        client.unload(name)
        assert free_bytes(client) == empty
        size = client.query_model_size("" if uploaded else name, upload=upload, lease=lease)
        assert (size.work_bytes, size.weight_bytes) == (own.work_bytes, own.weight_bytes)
        work, weight = lease.allocate(size.work_bytes), lease.allocate(size.weight_bytes)
        allocated = free_bytes(client)
        described = client.load(name, upload=upload, work_buffer=work, weight_buffer=weight, lease=lease)
        assert described.memory_owner == "caller"
        assert allocated - free_bytes(client) == taken_by_ascendcl - size.work_bytes - size.weight_bytes
        check_both_ways(client, case, name)
        check_pinned_until_unloaded(client, case, name, lease, [work, weight])
        assert free_bytes(client) == empty
    assert free_bytes(client) == empty


def check_pinned_until_unloaded(client: Client, case: Case, name: str, lease: Lease, buffers: list[BufferInfo]) -> None:
    assert [held.pins for held in lease.buffers()] == [1, 1]
    loaded = free_bytes(client)
    for buffer in buffers:
        lease.free(buffer)
    assert lease.buffers() == []
    with pytest.raises(NotFound):
        lease.read(buffers[0])
    assert free_bytes(client) == loaded
    assert lease.renew().device_bytes == sum(buffer.size_bytes for buffer in buffers)
    check_both_ways(client, case, name)
    client.unload(name)
    wait_until(lambda: lease.renew().device_bytes == 0)


def test_memory_of_a_lease_that_ends_stays_until_the_model_is_unloaded(service: Serving, client: Client) -> None:
    client.unload("mnist")
    empty = free_bytes(client)
    size = client.query_model_size("mnist")
    with client.lease() as lease:
        work, weight = lease.allocate(size.work_bytes), lease.allocate(size.weight_bytes)
        client.load("mnist", work_buffer=work, weight_buffer=weight, lease=lease)
        loaded = free_bytes(client)
    assert free_bytes(client) == loaded
    check_both_ways(client, MNIST, "mnist")
    client.unload("mnist")
    wait_until(lambda: free_bytes(client) == empty)


def test_memory_that_does_not_fit_is_refused_and_let_go(service: Serving, client: Client) -> None:
    client.unload("mnist")
    size = client.query_model_size("mnist")
    with client.lease() as lease:
        small, host = lease.allocate(size.work_bytes - 1), lease.allocate(size.work_bytes, "host")
        work, weight = lease.allocate(size.work_bytes), lease.allocate(size.weight_bytes)
        for wrong, reason in ((small, "BUFFER_TOO_SMALL"), (host, "BUFFER_NOT_ON_DEVICE")):
            with pytest.raises((FailedPrecondition, InvalidArgument)) as refused:
                client.load("mnist", work_buffer=wrong, weight_buffer=weight, lease=lease)
            assert refused.value.reason == reason
        assert [held.pins for held in lease.buffers()] == [0] * 4
        client.load("mnist", work_buffer=work, weight_buffer=weight, lease=lease)
        check_both_ways(client, MNIST, "mnist")
        client.unload("mnist")
        assert [held.pins for held in lease.buffers()] == [0] * 4
