"""What a model's configuration asks for, seen by clients: repositories made for Triton, warm-up, labels, queues."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
import onnx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from onnx import TensorProto, helper

from aclserve.errors import AclserveError, DeadlineExceeded, FailedPrecondition, InvalidArgument, ResourceExhausted
from aclserve_client import Client, Item
from aclserve_server.emulator import EmulatorConfig
from aclserve_server.engine.engine import State
from aclserve_server.rpc.health import model_service
from e2e.changing import answer, put, states, wait_until
from serving import put_model, serving

TRITON = """
name: "{name}"
platform: "onnxruntime_onnx"
backend: "onnxruntime"
max_batch_size: 8
default_model_filename: "model.onnx"
input [ {{ name: "x" data_type: TYPE_FP32 format: FORMAT_NONE dims: [ 4 ] }} ]
output [ {{ name: "y" data_type: TYPE_FP32 dims: [ 4 ] label_filename: "labels.txt" }} ]
instance_group [ {{ count: 2 kind: KIND_GPU gpus: [ 0 ] }} ]
version_policy: {{ latest {{ num_versions: 2 }} }}
dynamic_batching {{
  preferred_batch_size: [ 4, 8 ]
  max_queue_delay_microseconds: 100
  preserve_ordering: true
  priority_levels: 2
  default_queue_policy {{ timeout_action: REJECT max_queue_size: 64 }}
}}
optimization {{ execution_accelerators {{ gpu_execution_accelerator : [ {{ name : "tensorrt" }} ] }} }}
parameters {{ key: "video.mean" value: {{ string_value: "127" }} }}
model_warmup [ {{
  name: "zeros" batch_size: 2
  inputs {{ key: "x" value {{ data_type: TYPE_FP32 dims: 4 zero_data: true }} }}
}} ]
response_cache {{ enable: false }}
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "models"


def test_a_repository_made_for_triton_is_served_as_it_is(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    for version in (1, 2, 3):
        put(root, "t", version, version=version, config=TRITON.format(name="t"))
    (root / "t" / "labels.txt").write_text("zero\r\none\n\ntwo\n")
    with serving(root) as up, Client(up.address) as client:
        described = client.describe("t")
        assert (described.batching, described.max_rows, described.slots) == ("rows", 8, 4)
        assert described.parameters == {"video.mean": "127"}
        record = up.server.engine.find("t", 0)
        assert record.labels("y") == ("zero", "one", "", "two")
        assert record.labels("x") == ()
        assert (record.platform, record.batches_rows, record.version) == ("onnxruntime_onnx", True, 3)
        assert (answer(client, "t"), answer(client, "t", version=2)) == (3, 2)
        assert states(up.server.engine)["t", 1] == (State.UNLOADED, "")
        for told in ("optimization: the model runs as it was compiled", "instance_group.kind: ", "priority_levels: "):
            assert told in caplog.text


def test_a_strict_server_refuses_what_it_would_read_over(root: Path) -> None:
    put(root, "t", 1, config=TRITON.format(name="t"))
    put(root, "plain", 1, config="max_batch_size: 8")
    with serving(root, strict_config=True) as up:
        found = states(up.server.engine)
    assert found["t", 1][0] is State.UNAVAILABLE
    assert "--strict-config is on: input.format: the shape tells the layout; " in found["t", 1][1]


@pytest.mark.parametrize("rows", [5, 17, 48])
def test_as_many_rows_as_the_configuration_says(root: Path, rows: int) -> None:
    put(root, "m", 1, config=f"max_batch_size: {rows}")
    with serving(root) as up, Client(up.address) as client:
        assert client.describe("m").max_rows == rows
        given = np.arange(rows * 4, dtype=np.float32).reshape(rows, 4)
        assert np.array_equal(client.infer("m", {"x": given}).outputs["y"], given + 1)


def test_a_contradiction_is_told_and_harms_no_other_model(root: Path) -> None:
    put(root, "wrong", 1, config='max_batch_size: 4 output { name: "y" dims: [ 5 ] }')
    put(root, "right", 1)
    with serving(root) as up, Client(up.address) as client:
        with pytest.raises(FailedPrecondition) as refused:
            client.load("wrong")
        assert refused.value.reason == "MODEL_CONFIG_INVALID"
        assert "dims [5] beside the batch axis; the model has the shape [any, 4]" in refused.value.message
        assert answer(client, "right") == 1


@pytest.mark.parametrize("run_mode", ["device", "host"])
def test_clients_see_the_dims_and_the_model_its_own_shape(root: Path, run_mode: str) -> None:
    config = """max_batch_size: 8
        input { name: "x" dims: [ 2, 2 ] reshape { shape: [ 4 ] } }
        output { name: "y" dims: [ 1, 4, 1 ] reshape { shape: [ 4 ] } }"""
    put(root, "m", 1, config=config)
    with serving(root, emulator=EmulatorConfig(run_mode=run_mode)) as up, Client(up.address) as client:
        described = client.describe("m")
        assert (described.inputs[0].shape, described.outputs[0].shape) == ((-1, 2, 2), (-1, 1, 4, 1))
        given = np.arange(12, dtype=np.float32).reshape(3, 2, 2)
        got = client.infer("m", {"x": given}).outputs["y"]
        assert np.array_equal(got, (given + 1).reshape(3, 1, 4, 1))
        with pytest.raises(InvalidArgument, match="takes"):
            client.infer("m", {"x": given.reshape(3, 4)})
        assert '"2"' in described.sample_json.replace(" ", "")


def summed() -> onnx.ModelProto:
    """Two axes of any size, so that shapes are known only when it runs."""
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "free",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["a", "b"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["a", "b"])],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_a_model_of_unknown_shapes_with_instances_and_a_warm_up(root: Path) -> None:
    config = """max_batch_size: 4 input { name: "x" dims: -1 } instance_group { count: 2 }
        model_warmup { batch_size: 3 inputs { key: "x" value { data_type: TYPE_FP32 dims: 5 random_data: true } } }"""
    put_model(root, "m", summed(), config)
    with serving(root) as up, Client(up.address) as client:
        assert up.emulator.counters.executions == 1
        given = np.ones((2, 3), np.float32)
        assert np.array_equal(client.infer("m", {"x": given}).outputs["y"], given)


@pytest.mark.parametrize("run_mode", ["device", "host"])
def test_a_model_of_unknown_shapes_is_reshaped_as_well(root: Path, run_mode: str) -> None:
    config = """max_batch_size: 4
        input { name: "x" dims: [ 2, 3 ] reshape { shape: [ 6 ] } }
        output { name: "y" dims: [ 3, 1, 2 ] reshape { shape: [ 6 ] } }"""
    put_model(root, "m", summed(), config)
    put_model(root, "wrong", summed(), 'max_batch_size: 4 output { name: "y" dims: [ 2, 2 ] reshape { shape: [ 4 ] } }')
    with serving(root, emulator=EmulatorConfig(run_mode=run_mode)) as up, Client(up.address) as client:
        described = client.describe("m")
        assert (described.inputs[0].shape, described.outputs[0].shape) == ((-1, 2, 3), (-1, 3, 1, 2))
        given = np.arange(12, dtype=np.float32).reshape(2, 2, 3)
        assert np.array_equal(client.infer("m", {"x": given}).outputs["y"], given.reshape(2, 3, 1, 2))
        with pytest.raises(InvalidArgument, match="takes"):
            client.infer("m", {"x": given.reshape(2, 6)})
        fits = np.ones((3, 4), np.float32)
        assert client.infer("wrong", {"x": fits}).outputs["y"].shape == (3, 2, 2)
        with pytest.raises(FailedPrecondition, match=r"shape \[1, 6\].* reshapes to \[1, 2, 2\]"):
            client.infer("wrong", {"x": np.ones((1, 6), np.float32)})
        assert client.infer("wrong", {"x": fits}).outputs["y"].shape == (3, 2, 2)


# Warm-up.

SAMPLE = """model_warmup [ {{ name: "w" batch_size: {rows} count: {count}
    inputs {{ key: "x" value {{ data_type: {type} dims: {dims} {data} }} }} }} ] {more}"""


def warmed(
    root: Path,
    *,
    rows: int = 1,
    count: int = 1,
    type: str = "TYPE_FP32",
    dims: str = "4",
    data: str = "zero_data: true",
    more: str = "",
) -> None:
    config = SAMPLE.format(rows=rows, count=count, type=type, dims=dims, data=data, more=more)
    put(root, "m", 1, config=f"max_batch_size: 1 {config}" if rows == 1 else f"max_batch_size: {rows} {config}")


@pytest.mark.parametrize(("instances", "runs"), [(1, 3), (2, 12)])
def test_samples_run_before_the_model_is_ready_and_nobody_counts_them(root: Path, instances: int, runs: int) -> None:
    warmed(root, count=3, data="random_data: true", more=f"instance_group {{ count: {instances} }}")
    with serving(root) as up, Client(up.address) as client:
        assert up.emulator.counters.calls["aclmdlExecuteAsync"] == runs
        record = up.server.engine.find("m", 0)
        assert record.statistics.success.count == 0
        assert answer(client) == 1
        assert record.statistics.success.count == 1


def test_a_model_is_not_ready_while_it_is_warmed_up(root: Path) -> None:
    warmed(root)
    with serving(root) as up, Client(up.address) as client:
        client.unload("m")
        with ThreadPoolExecutor(1) as pool:
            up.emulator.hold()
            try:
                submitted = up.emulator.counters.calls["aclmdlExecuteAsync"]
                loading = pool.submit(client.load, "m")
                wait_until(lambda: up.emulator.counters.calls["aclmdlExecuteAsync"] == submitted + 1)
                assert states(up.server.engine)["m", 1][0] is State.LOADING
                assert health(up.address, "m") == "NOT_SERVING"
                with pytest.raises(FailedPrecondition, match="is loading"):
                    answer(client)
                assert not loading.done()
            finally:
                up.emulator.release()
            loading.result(60)
        assert health(up.address, "m") == "SERVING"
        assert answer(client) == 1


def health(address: str, model: str) -> str:
    """What a client of the health service sees of a model."""
    with grpc.insecure_channel(address) as channel:
        check = health_pb2_grpc.HealthStub(channel).Check
        answer = check(health_pb2.HealthCheckRequest(service=model_service(model)), timeout=30)
    return str(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))


@pytest.mark.parametrize("size", [16, 48])
def test_a_sample_from_a_file(root: Path, size: int) -> None:
    """One row, which is repeated, or all of them."""
    warmed(root, rows=3, data='input_data_file: "sample"')
    (root / "m" / "warmup").mkdir()
    (root / "m" / "warmup" / "sample").write_bytes(np.arange(size // 4, dtype=np.float32).tobytes())
    with serving(root) as up:
        assert states(up.server.engine)["m", 1] == (State.READY, "")
        assert up.emulator.counters.calls["aclmdlExecuteAsync"] == 1


@pytest.mark.parametrize(
    ("sample", "words"),
    [
        ({"dims": "5"}, "has shape [1, 5], the model takes [rows, 4]"),
        ({"type": "TYPE_INT8"}, "has type int8, the model takes float32"),
        ({"dims": "[ 1, 4 ]", "rows": 2}, "has no batch axis that dims [1, 4] omit"),
        ({"data": 'input_data_file: "none"'}, "there is no file 'none' in the model's folder warmup"),
        ({"data": 'input_data_file: "short"'}, "'short' has 3 bytes; dims [4] of float32 need 16, for one row"),
        ({"data": 'input_data_file: "out"'}, "there is no file 'out' in the model's folder warmup"),
    ],
)
def test_a_sample_that_fails_fails_the_load(root: Path, sample: dict[str, object], words: str) -> None:
    warmed(root, **sample)  # type: ignore[arg-type]
    (root / "m" / "warmup").mkdir()
    (root / "m" / "warmup" / "short").write_bytes(b"abc")
    (root / "m" / "warmup" / "out").symlink_to("/etc/hostname")
    with serving(root) as up, Client(up.address) as client:
        with pytest.raises(FailedPrecondition) as refused:
            client.load("m")
        assert refused.value.reason == "MODEL_WARMUP_FAILED"
        assert "the warm-up sample 'w' failed: " in refused.value.message
        assert words in refused.value.message
        assert not {kind: count for kind, count in up.emulator.ledger().items() if kind == "models" and count}


# Labels.


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "there is no file 'labels.txt'"), (b"\xff\xfe", "not UTF-8"), (b"x" * ((16 << 20) + 1), "is longer than")],
)
def test_labels_that_cannot_be_read(root: Path, content: bytes | None, words: str) -> None:
    put(root, "m", 1, config='output { name: "y" label_filename: "labels.txt" }')
    if content is not None:
        (root / "m" / "labels.txt").write_bytes(content)
    with serving(root) as up:
        state, reason = states(up.server.engine)["m", 1]
    assert state is State.UNAVAILABLE
    assert words in reason
    assert str(root) not in reason


# Queues.


def policy(text: str) -> str:
    return f"max_batch_size: 1 dynamic_batching {{ default_queue_policy {{ {text} }} }}"


def test_no_more_items_wait_than_the_configuration_allows(root: Path) -> None:
    put(root, "m", 1, config=policy("max_queue_size: 2"))
    with serving(root, slots=1) as up, Client(up.address) as client, ThreadPoolExecutor(4) as pool:
        up.emulator.hold()
        try:
            running = pool.submit(answer, client)
            wait_until(lambda: up.emulator.counters.calls["aclmdlExecuteAsync"] == 1)
            waiting = [pool.submit(answer, client) for _ in range(2)]
            wait_until(lambda: up.server.engine.queue_rows("m") == 2)
            with pytest.raises(ResourceExhausted) as refused:
                answer(client)
            assert refused.value.reason == "QUEUE_FULL"
            assert "2 items wait, and its configuration allows no more" in refused.value.message
        finally:
            up.emulator.release()
        assert [future.result(60) for future in (running, *waiting)] == [1, 1, 1]
        with client.stream("m", timeout=60) as stream:
            results = list(stream.map({"x": np.zeros((1, 4), np.float32)} for _ in range(40)))
        assert [result.error for result in results] == [None] * 40, "a stream that waits for room is never refused"


@pytest.mark.parametrize(
    ("text", "own_s", "expires"),
    [
        ("default_timeout_microseconds: 1000", None, True),
        ("default_timeout_microseconds: 1000", 300.0, True),
        ("default_timeout_microseconds: 1000 allow_timeout_override: true", 300.0, True),
        ("default_timeout_microseconds: 300000000 allow_timeout_override: true", 0.001, True),
        ("default_timeout_microseconds: 300000000", 0.001, False),
        ("max_queue_size: 9", 0.001, True),
    ],
)
def test_how_long_items_wait(root: Path, text: str, own_s: float | None, expires: bool) -> None:
    put(root, "m", 1, config=policy(text))
    with serving(root, slots=1) as up, Client(up.address) as client, ThreadPoolExecutor(2) as pool:
        up.emulator.hold()
        try:
            running = pool.submit(answer, client)
            wait_until(lambda: up.emulator.counters.calls["aclmdlExecuteAsync"] == 1)
            waiting = pool.submit(stream_one, client, own_s)
            if expires:
                with pytest.raises(DeadlineExceeded) as refused:
                    waiting.result(60)
                assert refused.value.reason == "ITEM_EXPIRED"
            else:
                wait_until(lambda: up.server.engine.queue_rows("m") == 1)
                threading.Event().wait(0.05)
                assert not waiting.done()
        finally:
            up.emulator.release()
        if not expires:
            assert waiting.result(60) == 1
        assert running.exception(60) is None or isinstance(running.exception(), AclserveError)


def stream_one(client: Client, timeout_s: float | None) -> float:
    """One item of a stream with a time of its own to wait."""
    with client.stream("m", timeout=60) as stream:
        (result,) = stream.map([Item({"x": np.zeros((1, 4), np.float32)}, max_wait=timeout_s)])
    return float(result.raise_for_error().outputs["y"][0, 0])
