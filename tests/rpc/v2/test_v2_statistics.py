"""ModelStatistics, in the ways that perf_analyzer relies on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from aclserve_server.kserve import inference_pb2 as pb
from rpc.v2.v2_server import V2, v2
from serving import elementwise, put_model

DURATIONS = ("success", "queue", "compute_input", "compute_infer", "compute_output")


@pytest.fixture
def served(tmp_path: Path) -> Iterator[V2]:
    put_model(tmp_path, "plain", elementwise())
    put_model(tmp_path, "two", elementwise(), "version_policy { all {} }\n", version=1)
    put_model(tmp_path, "two", elementwise("Neg"), version=2)
    with v2(tmp_path, model_control_mode="explicit", load_model=("*",)) as up:
        yield up


def only(listed: Any) -> Any:
    (one,) = listed
    return one


def test_a_model_that_has_done_nothing(served: V2) -> None:
    told = only(served.statistics("plain"))
    assert (told.name, told.version) == ("plain", "1")
    assert (told.inference_count, told.execution_count, told.last_inference) == (0, 0, 0)
    for name in (*DURATIONS, "fail", "cache_hit", "cache_miss"):
        assert told.inference_stats.HasField(name)
        assert getattr(told.inference_stats, name).count == 0
    assert not told.batch_stats


def test_requests_rows_and_executions_are_counted_apart(served: V2) -> None:
    before = only(served.statistics("plain"))
    for count in (2, 2, 3):
        served.infer(count=count)
    after = only(served.statistics("plain"))
    assert after.inference_count - before.inference_count == 7
    assert after.execution_count - before.execution_count == 3
    assert after.last_inference > 0
    for name in DURATIONS:
        assert getattr(after.inference_stats, name).count == 3, name
    assert after.inference_stats.success.ns >= after.inference_stats.compute_infer.ns > 0
    assert {one.batch_size: one.compute_infer.count for one in after.batch_stats} == {2: 2, 3: 1}
    for one in after.batch_stats:
        assert one.compute_input.count == one.compute_output.count == one.compute_infer.count
    served.infer()
    later = only(served.statistics("plain"))
    for name in DURATIONS:
        grown, ago = getattr(later.inference_stats, name), getattr(after.inference_stats, name)
        assert grown.count == ago.count + 1
        assert grown.ns >= ago.ns


def test_the_version_that_ran_is_the_one_whose_queue_count_grew(served: V2) -> None:
    served.infer("two", version="1")
    told = {one.version: one.inference_stats.queue.count for one in served.statistics("two")}
    assert told == {"1": 1, "2": 0}
    served.infer("two")
    told = {one.version: one.inference_stats.queue.count for one in served.statistics("two")}
    assert told == {"1": 1, "2": 1}
    assert [one.version for one in served.statistics("two", "2")] == ["2"]


def test_all_models_that_are_ready(served: V2) -> None:
    assert [(one.name, one.version) for one in served.statistics()] == [("plain", "1"), ("two", "1"), ("two", "2")]
    served.unload("two")
    assert [(one.name, one.version) for one in served.statistics()] == [("plain", "1")]
    request = pb.ModelStatisticsRequest(name="two")
    served.refused("ModelStatistics", request, grpc.StatusCode.UNAVAILABLE, "MODEL_NOT_READY")


def test_failures_are_counted_as_such(served: V2) -> None:
    served.up.emulator.faults.fail_task("aclmdlExecuteAsync", 507899)
    with pytest.raises(grpc.RpcError):
        served.infer()
    told = only(served.statistics("plain"))
    assert told.inference_stats.fail.count == 1
    assert told.inference_stats.success.count == 0
    assert told.inference_count == 0


def test_a_model_that_is_loaded_anew_begins_at_zero(served: V2) -> None:
    served.infer()
    served.load("plain")
    assert only(served.statistics("plain")).inference_stats.queue.count == 0
    served.infer()
    assert only(served.statistics("plain")).inference_stats.queue.count == 1


def test_memory_of_the_device(served: V2) -> None:
    told = only(served.statistics("plain"))
    for one in told.memory_usage:
        assert (one.type, one.id) == ("NPU", 0)
        assert one.byte_size > 0
