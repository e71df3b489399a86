"""The device fails for good, or hangs: all are told so at once, nothing stays behind, and the process makes room."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2

from aclserve.v1 import memory_pb2, model_pb2, tensor_pb2
from aclserve_server.cli import EXIT_DEVICE_LOST
from aclserve_server.emulator import EmulatorConfig
from aclserve_server.kserve import inference_pb2
from e2e.raw import Raw, Refusal, array_of, item, item_refusal, on_loop, refused, tensor, wait_until
from serving import Serving, elementwise, put_model, rows, serving

FATAL = 507901
INTERNAL, OVER, BUSY = 507899, 207018, 207014
ROOT = Path(__file__).parents[2]
Config = model_pb2.StreamConfig


@pytest.fixture(params=["device", "host"])
def service(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Serving]:
    put_model(tmp_path, "one", elementwise())
    put_model(tmp_path, "other", elementwise("Relu"))
    put_model(tmp_path, "sync", elementwise(), 'parameters { key: "execution_mode" value { string_value: "sync" } }')
    with serving(tmp_path, emulator=EmulatorConfig(run_mode=request.param, memory_bytes=256 << 20)) as up:
        yield up
        up.emulator.release()


@pytest.fixture
def raw(service: Serving) -> Iterator[Raw]:
    with Raw(service.address) as connected:
        yield connected


def x(first: int = 0) -> tensor_pb2.Tensor:
    return tensor("x", rows(first, 1))


def infer(raw: Raw, model: str = "one", first: int = 1) -> None:
    answer = raw.infer(model_pb2.InferRequest(model=model, inputs=[x(first)]))
    assert array_of(answer.outputs.tensors[0]).tolist() == rows(first, 1).tolist()


def told_of_the_loss(refusal: Refusal) -> bool:
    refusal.check_clean()
    return (refusal.code, refusal.reason, refusal.retry_s) == (grpc.StatusCode.UNAVAILABLE, "DEVICE_LOST", 5.0)


def statuses(raw: Raw) -> dict[str, int]:
    from aclserve_server.rpc.health import ListRequest, ListResponse

    method = raw.channel.unary_unary(
        "/grpc.health.v1.Health/List", ListRequest.SerializeToString, ListResponse.FromString
    )
    return {name: each.status for name, each in method(ListRequest(), timeout=30).statuses.items()}


def lose(service: Serving, raw: Raw, how: str) -> None:
    """Loses the device while another batch is on it."""
    if how == "hang":
        service.server.surrender.loss.hang("a batch", 60.0)
    else:
        lease = raw.lease()
        buffer_id = raw.buffer(lease, 64)
        service.emulator.faults.fail_call("aclrtMemset", FATAL)
        request = memory_pb2.SetMemoryRequest(buffer_id=buffer_id, value=1)
        refusal = refused(lambda: raw.call("memory", "SetMemory", request, lease))
        assert told_of_the_loss(refusal)
        assert refusal.metadata["acl_code"] == str(FATAL)
        assert refusal.metadata["acl_call"] == "aclrtMemset"
    wait_until(service.server.surrender.lost.is_set, "the loss is known")


@pytest.mark.parametrize("how", ["call", "hang"])
def test_everything_accepted_is_answered_and_nothing_new_is_taken(service: Serving, raw: Raw, how: str) -> None:
    """One batch is on the device, others wait: in the lane, the queues, and for a buffer that the first one writes."""
    lease = raw.lease()
    between = raw.buffer(lease, 64)
    stream, second = raw.stream(Config(model="one"), lease), raw.stream(Config(model="other"))
    watch = raw.channel.unary_stream(
        "/grpc.health.v1.Health/Watch",
        health_pb2.HealthCheckRequest.SerializeToString,
        health_pb2.HealthCheckResponse.FromString,
    )(health_pb2.HealthCheckRequest(), timeout=30)
    assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
    service.emulator.hold()
    written = model_pb2.OutputRequest(name="y", buffer=tensor_pb2.BufferSlice(buffer_id=between))
    read = tensor_pb2.Tensor(name="x", data_type=12, shape=[1, 4])
    read.buffer.CopyFrom(tensor_pb2.BufferSlice(buffer_id=between, length_bytes=16))
    stream.items(item("writes", x(), outputs=[written]), item("reads", read), *(item(f"{n}", x(n)) for n in range(99)))
    second.items(*(item(f"{n}", x(n)) for n in range(7)))
    wait_until(lambda: sum(s.received for s in service.server.models.sessions) == 108, "all are received")
    lose(service, raw, how)
    for open_stream, names in ((stream, {"writes", "reads", *map(str, range(99))}), (second, set(map(str, range(7))))):
        results = open_stream.finish()
        assert sorted(result.id for result in results) == sorted(names)
        assert all(told_of_the_loss(item_refusal(result.error)) for result in results)
        assert open_stream.totals() == (len(names), 0, len(names))
    assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
    watch.cancel()
    assert set(statuses(raw).values()) == {health_pb2.HealthCheckResponse.NOT_SERVING}
    for call in (
        lambda: infer(raw),
        lambda: infer(raw, "sync"),
        lambda: raw.stream(Config(model="one")),
        lambda: raw.buffer(lease, 64),
        lambda: raw.read(lease, between),
        lambda: raw.call(
            "models",
            "LoadModel",
            model_pb2.LoadModelRequest(
                source=model_pb2.ModelSource(repository=model_pb2.RepositoryModel(model="one", version=2))
            ),
        ),
    ):
        assert told_of_the_loss(refused(call))
    ready = raw.channel.unary_unary(
        "/inference.GRPCInferenceService/ServerReady", None, inference_pb2.ServerReadyResponse.FromString
    )
    assert told_of_the_loss(refused(lambda: ready(b"", timeout=30)))
    service.emulator.release()


def calls(service: Serving) -> dict[str, int]:
    """How often what was called; the report thread may still be waiting for reports, again and again."""
    return {name: count for name, count in service.emulator.counters.calls.items() if name != "aclrtProcessReport"}


@pytest.mark.parametrize("model", ["one", "sync"])
@pytest.mark.parametrize("where", ["call", "task"])
def test_a_fatal_code_of_a_batch_is_the_end(service: Serving, raw: Raw, model: str, where: str) -> None:
    function = "aclmdlExecute" if model == "sync" else "aclmdlExecuteAsync"
    getattr(service.emulator.faults, f"fail_{where}")(function, 507015)
    refusal = refused(lambda: infer(raw, model))
    assert told_of_the_loss(refusal)
    assert refusal.metadata["acl_code"] == "507015"
    before = calls(service)
    assert told_of_the_loss(refused(lambda: infer(raw)))
    assert calls(service) == before  # nobody calls a lost device


def test_a_task_that_does_not_end_is_found(tmp_path: Path) -> None:
    put_model(tmp_path, "one", elementwise())
    with serving(tmp_path, device_timeout_s=0.5) as up, Raw(up.address) as raw:
        infer(raw)
        up.emulator.hold()
        refusal = refused(lambda: infer(raw))
        assert told_of_the_loss(refusal)
        assert refusal.metadata == {"device_timeout_s": "0.5"}
        assert up.server.surrender.loss.hung
        up.emulator.release()


def test_a_call_that_does_not_return_is_found(tmp_path: Path) -> None:
    put_model(tmp_path, "sync", elementwise(), 'parameters { key: "execution_mode" value { string_value: "sync" } }')
    with serving(tmp_path, device_timeout_s=0.5) as up, Raw(up.address) as raw:
        up.emulator.hold()
        assert told_of_the_loss(refused(lambda: infer(raw, "sync")))
        up.emulator.release()


def test_without_a_bound_nobody_watches(tmp_path: Path) -> None:
    put_model(tmp_path, "one", elementwise())
    with serving(tmp_path, device_timeout_s=0.0) as up, Raw(up.address) as raw:
        names = on_loop(up, lambda: {getattr(task.get_coro(), "__qualname__", "") for task in asyncio.all_tasks()})
        assert "Watchdog.run" not in names
        infer(raw)


# What is no loss.


def test_a_submission_refused_for_the_moment_is_made_again(service: Serving, raw: Raw) -> None:
    for model, function in (("one", "aclmdlExecuteAsync"), ("sync", "aclmdlExecute")):
        service.emulator.faults.fail_call(function, BUSY)
        before = service.emulator.counters.executions
        infer(raw, model)
        assert service.emulator.counters.executions == before + 1


def test_a_submission_refused_twice_is_told(service: Serving, raw: Raw) -> None:
    for model, function in (("one", "aclmdlExecuteAsync"), ("sync", "aclmdlExecute")):
        service.emulator.faults.fail_call(function, BUSY, times=2)
        refusal = refused(lambda model=model: infer(raw, model))
        assert (refusal.code, refusal.reason) == (grpc.StatusCode.UNAVAILABLE, "DEVICE_BUSY")
        assert refusal.retry_s is not None
        assert refusal.metadata["acl_name"] == "ACL_ERROR_RT_QUEUE_FULL"
        infer(raw, model)


@pytest.mark.parametrize(
    ("code", "status", "reason"),
    [
        (INTERNAL, grpc.StatusCode.INTERNAL, "DEVICE_ERROR"),
        (107000, grpc.StatusCode.INTERNAL, "DEVICE_ERROR"),
        (OVER, grpc.StatusCode.RESOURCE_EXHAUSTED, "DEVICE_OUT_OF_MEMORY"),
        (207008, grpc.StatusCode.RESOURCE_EXHAUSTED, "DEVICE_RESOURCE_EXHAUSTED"),
        (207003, grpc.StatusCode.INTERNAL, "DEVICE_ERROR"),
    ],
)
def test_other_codes_are_their_batch_s_alone(
    service: Serving, raw: Raw, code: int, status: grpc.StatusCode, reason: str
) -> None:
    service.emulator.faults.fail_task("aclmdlExecuteAsync", code)
    refusal = refused(lambda: infer(raw))
    assert (refusal.code, refusal.reason) == (status, reason)
    assert {"acl_call", "acl_code", "acl_name"} <= set(refusal.metadata)
    assert (refusal.retry_s is not None) == (status is grpc.StatusCode.RESOURCE_EXHAUSTED)
    infer(raw)
    assert statuses(raw)[""] == health_pb2.HealthCheckResponse.SERVING


# The process.

_FAILS = """
import sys
import aclserve_server.server as server
from aclserve_server.cli import main
from aclserve_server.emulator import EmulatorConfig, PlannedFault
how = sys.argv.pop(1)
faults = {"start": PlannedFault("aclmdlQuerySize", 507901), "device": PlannedFault("aclrtSetDevice", 507033),
          "batch": PlannedFault("aclmdlExecuteAsync", 507015, task=True),
          "hang": PlannedFault("aclrtLaunchCallback", 107000, task=True)}
assert callable(server.emulator_config)
server.emulator_config = lambda config: EmulatorConfig(faults=(faults[how],))
sys.exit(main(sys.argv[1:]))
"""


def start(root: Path, how: str, *arguments: str) -> subprocess.Popen[str]:
    """A server of its own whose emulated device is to fail."""
    command = [sys.executable, "-c", _FAILS, how, "serve", "--acl-library", "emulator", "--model-repository", str(root)]
    return subprocess.Popen(
        [*command, "--port", "0", "--metrics-port", "0", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )


@pytest.mark.parametrize("how", ["batch", "hang"])
def test_a_process_without_its_device_ends_with_a_code_of_its_own(tmp_path: Path, how: str) -> None:
    put_model(tmp_path, "one", elementwise())
    with start(tmp_path, how, "--device-timeout-s", "1") as process:
        try:
            assert process.stdout is not None
            port = process.stdout.readline().split("grpc=127.0.0.1:")[1].split()[0]
            with Raw(f"127.0.0.1:{port}") as raw:
                stream = raw.stream(Config(model="one"))
                stream.items(*(item(str(number), x(number)) for number in range(40)))
                results = stream.results(40)
                assert all(told_of_the_loss(item_refusal(result.error)) for result in results)
                with suppress(grpc.RpcError):  # whether it says goodbye in time is another matter
                    stream.rest()
            assert process.wait(30) == EXIT_DEVICE_LOST
            assert process.stderr is not None
            assert "the device is lost" in process.stderr.read()
        finally:
            process.kill()


@pytest.mark.parametrize("how", ["start", "device"])
def test_a_process_that_finds_no_working_device_ends_likewise(tmp_path: Path, how: str) -> None:
    put_model(tmp_path, "one", elementwise())
    with start(tmp_path, how) as process:
        try:
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert (process.returncode, out) == (EXIT_DEVICE_LOST, "")
    assert ("507033" if how == "device" else "the device failed") in err
