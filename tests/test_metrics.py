"""The metrics port and the service's own metrics."""

from __future__ import annotations

import asyncio
import http.client
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from typing import cast

import pytest
from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.metrics_core import HistogramMetricFamily
from prometheus_client.parser import text_string_to_metric_families

from aclserve_server.acl.types import aclrtMemAttr
from aclserve_server.engine.devices import AttributeUse, DeviceDirectory, DeviceSnapshot
from aclserve_server.engine.items import DropReason
from aclserve_server.engine.memory import MemoryUse
from aclserve_server.engine.outcomes import BatchReport
from aclserve_server.engine.regions import RegionUse
from aclserve_server.engine.statistics import Execution, ModelStatistics
from aclserve_server.metrics import MetricsServer, ServerMetrics, sources
from aclserve_server.metrics import http as module
from aclserve_server.metrics.histogram import Histogram
from aclserve_server.metrics.model import ModelMetrics
from aclserve_server.metrics.service import MAX_GONE, Handles, Served
from aclserve_server.metrics.triton import TritonNames
from aclserve_server.rpc.wire_times import capture_bytes, unix_ns


class Readiness:
    def __init__(self) -> None:
        self.ready = False
        self.broken = False

    def __call__(self) -> bool:
        if self.broken:
            raise RuntimeError("cannot tell")
        return self.ready


@pytest.fixture
def readiness() -> Readiness:
    return Readiness()


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def port(registry: CollectorRegistry, readiness: Readiness) -> Iterator[int]:
    before = threading.active_count()
    with MetricsServer("127.0.0.1", 0, registry, readiness) as server:
        yield server.start()
    assert threading.active_count() == before


def fetch(
    port: int, path: str, method: str = "GET", headers: Mapping[str, str] | None = None
) -> tuple[int, bytes, http.client.HTTPMessage]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.request(method, path, headers=dict(headers or {}))
        response = connection.getresponse()
        return response.status, response.read(), response.headers
    finally:
        connection.close()


def samples(port: int) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    status, body, _ = fetch(port, "/metrics")
    assert status == 200
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(body.decode())
        for sample in family.samples
    }


def test_closing_does_not_wait_for_the_listening_thread_to_look_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aclserve_server.metrics.http._POLL_S", 3600.0)
    server = MetricsServer("127.0.0.1", 0, CollectorRegistry(), lambda: True)
    assert fetch(server.start(), "/healthz")[0] == 200
    closing = threading.Thread(target=server.close, daemon=True)
    closing.start()
    closing.join(60)
    assert not closing.is_alive()


def test_healthz_is_always_fine_and_readyz_asks(port: int, readiness: Readiness) -> None:
    assert fetch(port, "/healthz")[0] == 200
    assert fetch(port, "/readyz")[:2] == (503, b"not ready\n")
    readiness.ready = True
    assert fetch(port, "/readyz")[:2] == (200, b"ready\n")
    readiness.broken = True
    assert fetch(port, "/readyz")[0] == 503
    assert fetch(port, "/healthz?verbose=1")[0] == 200


def test_other_paths_and_methods_are_refused(port: int) -> None:
    for path in ("/", "/metrics/", "/favicon.ico", "/healthz/..", "/../etc/passwd"):
        assert fetch(port, path)[0] == 404, path
    for method in ("POST", "PUT", "DELETE", "OPTIONS"):
        status, _, headers = fetch(port, "/healthz", method)
        assert (status, headers["Allow"]) == (405, "GET, HEAD")
    assert fetch(port, "/" + "x" * 70_000)[0] == 414


def test_head_answers_without_a_body(port: int, readiness: Readiness) -> None:
    readiness.ready = True
    for path in ("/healthz", "/readyz", "/metrics"):
        status, body, headers = fetch(port, path, "HEAD")
        assert (status, body) == (200, b"")
        assert int(headers["Content-Length"]) > 0


def test_process_metrics_are_there_beside_the_registered_ones(port: int, registry: CollectorRegistry) -> None:
    ServerMetrics(registry, unix_ns).watch_streams(lambda: 3)
    shown = samples(port)
    assert shown["process_resident_memory_bytes", ()] > 0
    assert shown["aclserve_streams", ()] == 3
    status, body, headers = fetch(port, "/metrics", headers={"Accept-Encoding": "gzip"})
    assert (status, headers["Content-Encoding"], body[:2]) == (200, "gzip", b"\x1f\x8b")


def test_a_registry_with_process_metrics_is_taken_as_it_is(registry: CollectorRegistry) -> None:
    ProcessCollector(registry=registry)
    with MetricsServer("127.0.0.1", 0, registry, lambda: True) as server:
        assert samples(server.start())["process_resident_memory_bytes", ()] > 0


def test_too_many_connections_are_refused_and_close_ends_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_CONNECTIONS", 2)
    server = MetricsServer("127.0.0.1", 0, CollectorRegistry(), lambda: True)
    port = server.start()
    idle = [socket.create_connection(("127.0.0.1", port), timeout=20) for _ in range(2)]
    refused = socket.create_connection(("127.0.0.1", port), timeout=20)
    assert refused.recv(100).startswith(b"HTTP/1.0 503")
    server.close()
    assert [connection.recv(100) for connection in idle] == [b"", b""]
    for connection in (*idle, refused):
        connection.close()


def test_start_and_close_once_and_a_taken_port_is_an_error(port: int, registry: CollectorRegistry) -> None:
    other = MetricsServer("127.0.0.1", port, registry, lambda: True)
    with pytest.raises(OSError):
        other.start()
    other.close()
    server = MetricsServer("127.0.0.1", 0, registry, lambda: True)
    server.close()
    server.start()
    with pytest.raises(RuntimeError):
        server.start()
    server.close()
    server.close()


DIGITS = (("model", "digits"), ("version", "2"))
MS = 1_000_000


def batch(received: list[int], *, code: str = "OK", captures: list[bytes] | None = None) -> BatchReport:
    """Closed at 100 ms of the clock, 1 ms to copy in, 2 to execute, 3 to copy out, answered at 110 ms."""
    return BatchReport(5, 3, code, received, captures or (), 100 * MS, 1 * MS, 2 * MS, 3 * MS, 110 * MS)


def test_a_batch_is_counted_with_each_of_its_items(port: int, registry: CollectorRegistry) -> None:
    digits = ServerMetrics(registry, unix_ns).model("digits", 2)
    digits.batch(batch([99 * MS, 98 * MS]))
    digits.batch(batch([100 * MS], code="INTERNAL"))
    shown = samples(port)
    assert shown["aclserve_items_total", (("code", "OK"), *DIGITS)] == 2
    assert shown["aclserve_items_total", (("code", "INTERNAL"), *DIGITS)] == 1
    assert [shown[f"aclserve_{name}_total", DIGITS] for name in ("batches", "rows", "padding_rows")] == [2, 10, 6]
    sums = {
        name: (shown[f"aclserve_{name}_count", DIGITS], shown[f"aclserve_{name}_sum", DIGITS])
        for name in ("batch_rows", *(f"{stage}_seconds" for stage in ("wait", "copy_in", "execute", "copy_out")))
    }
    assert sums == {
        "batch_rows": (2, 10),
        "wait_seconds": (3, pytest.approx(0.003)),
        "copy_in_seconds": (2, pytest.approx(0.002)),
        "execute_seconds": (2, pytest.approx(0.004)),
        "copy_out_seconds": (2, pytest.approx(0.006)),
    }
    assert shown["aclserve_total_seconds_sum", DIGITS] == pytest.approx(0.011 + 0.012 + 0.010)
    assert shown["aclserve_age_seconds_sum", DIGITS] == pytest.approx(0.002 + 0.003 + 0.001)
    assert shown["aclserve_batch_rows_bucket", (("le", "4.0"), *DIGITS)] == 0
    assert shown["aclserve_batch_rows_bucket", (("le", "8.0"), *DIGITS)] == 2


def test_the_age_counts_from_the_capture_where_there_is_one() -> None:
    metrics = ModelMetrics(unix_ns)
    clock = time.perf_counter_ns()
    unix = time.time_ns()
    taken = (unix - 3_000 * MS) // 10**9
    report = BatchReport(
        1,
        0,
        "OK",
        [clock - 7 * MS] * 4,
        [capture_bytes((taken, 0)), b"", capture_bytes((taken + 1000, 0)), capture_bytes((1, 0))],
        clock,
        0,
        0,
        0,
        clock,
    )
    metrics.batch(report)
    family = HistogramMetricFamily("age", "", labels=())
    metrics.age.show(family, ())
    found = {sample.name: sample.value for sample in family.samples if sample.name != "age_bucket"}
    assert found["age_count"] == 3, "an item of 1970 has no age"
    assert found["age_sum"] == pytest.approx(3.5, abs=1.5), "one of 3 to 4 s, one of 7 ms, one of a clock ahead: 0"


def test_a_histogram_s_bounds_are_inclusive_and_moments_ahead_count_as_now() -> None:
    histogram = Histogram([10, 100], 10.0)
    for value in (0, 10, 11, 100, 101):
        histogram.observe(value)
    histogram.observe_since([50, 60, 200], 60)
    family = HistogramMetricFamily("h", "", labels=("model",))
    histogram.show(family, ["m"])
    found = {(sample.name, sample.labels.get("le")): sample.value for sample in family.samples}
    assert found == {
        ("h_bucket", "1.0"): 5,
        ("h_bucket", "10.0"): 7,
        ("h_bucket", "+Inf"): 8,
        ("h_count", None): 8,
        ("h_sum", None): pytest.approx((222 + 10) / 10),
    }


def test_items_without_an_execution_count_by_outcome(port: int, registry: CollectorRegistry) -> None:
    metrics = ServerMetrics(registry, unix_ns)
    digits = metrics.model("digits", 2)
    digits.answered("CANCELLED")
    digits.dropped(DropReason.SUPERSEDED)
    digits.dropped(DropReason.TOO_OLD)
    metrics.model("", 0).answered("NOT_FOUND")
    shown = samples(port)
    assert shown["aclserve_items_total", (("code", "CANCELLED"), *DIGITS)] == 1
    assert shown["aclserve_items_total", (("code", "DROPPED"), *DIGITS)] == 2
    assert shown["aclserve_dropped_items_total", (*DIGITS[:1], ("reason", "TOO_OLD"), *DIGITS[1:])] == 1
    assert shown["aclserve_items_total", (("code", "NOT_FOUND"), ("model", ""), ("version", ""))] == 1
    assert ("aclserve_batches_total", (("model", ""), ("version", ""))) not in shown


def test_gauges_are_read_when_scraped(port: int, registry: CollectorRegistry) -> None:
    metrics = ServerMetrics(registry, unix_ns)
    waiting = {"rows": 0}
    metrics.serve([Served("digits", 2, lambda: waiting["rows"], ModelStatistics())])
    metrics.watch_memory(lambda: MemoryUse(1, 2, 3, 4096, 512))
    metrics.watch_handles(lambda: Handles({"stream": 4}, {"device": 100}))
    metrics.watch_regions(lambda: RegionUse(5, 6, 0, 70, 80))
    metrics.count_leaked("digits", 7)
    waiting["rows"] = 9
    shown = samples(port)
    assert shown["aclserve_queue_rows", DIGITS] == 9
    assert [shown[f"aclserve_{name}", ()] for name in ("leases", "buffers", "uploads")] == [1, 2, 3]
    assert shown["aclserve_buffer_bytes", (("kind", "device"),)] == 4096
    assert shown["aclserve_handles", (("kind", "stream"),)] == 4
    assert shown["aclserve_handle_bytes", (("kind", "device"),)] == 100
    assert shown["aclserve_regions", ()] == 5
    assert shown["aclserve_region_bytes_total", (("direction", "written"),)] == 80
    assert shown["aclserve_leaked_bytes_total", (("model", "digits"),)] == 7
    metrics.serve([])
    assert ("aclserve_queue_rows", DIGITS) not in samples(port)


def snapshot(utilization: int | None, *memory: AttributeUse) -> DeviceSnapshot:
    return DeviceSnapshot(3, "Ascend910B", "host", False, list(memory), utilization)


HBM = AttributeUse(aclrtMemAttr.ACL_HBM_MEM, 10, 100)


def test_of_a_device_only_what_is_known_is_shown(port: int, registry: CollectorRegistry) -> None:
    metrics = ServerMetrics(registry, unix_ns)
    TritonNames(registry, metrics)
    gpu = (("gpu_uuid", "npu-3"),)
    assert not [name for name, _ in samples(port) if "device" in name or name.startswith("nv_gpu")]
    metrics.sample_device(snapshot(None, HBM))
    shown = samples(port)
    assert shown["aclserve_device_memory_free_bytes", (("kind", "hbm_mem"),)] == 10
    assert (shown["nv_gpu_memory_used_bytes", gpu], shown["nv_gpu_memory_total_bytes", gpu]) == (90, 100)
    assert not [name for name, _ in shown if "utilization" in name or "power" in name]
    metrics.sample_device(snapshot(50))
    shown = samples(port)
    assert shown["aclserve_device_utilization_ratio", ()] == shown["nv_gpu_utilization", gpu] == 0.5
    assert ("nv_gpu_memory_used_bytes", gpu) not in shown


def test_a_device_that_cannot_tell_is_not_shown_and_told_once(
    registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    metrics = ServerMetrics(registry, unix_ns)
    answers = iter(
        [snapshot(1, HBM), RuntimeError("busy"), RuntimeError("busy"), snapshot(2, HBM), RuntimeError("over")]
    )
    shown: list[int | None] = []

    class Directory:
        async def list_devices(self) -> list[DeviceSnapshot]:
            shown.append(None if metrics.device is None else metrics.device.utilization_percent)
            answer = next(answers, None)
            if answer is None:
                raise asyncio.CancelledError
            if isinstance(answer, RuntimeError):
                raise answer
            return [answer]

    monkeypatch.setattr(sources, "SAMPLE_INTERVAL_S", 0)
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(sources.sample_device(metrics, cast(DeviceDirectory, Directory())))
    assert shown == [None, 1, None, None, 2, None]
    assert [record.getMessage() for record in caplog.records] == [
        "the device does not tell its memory: busy",
        "the device does not tell its memory: over",
    ]


def test_triton_s_names_show_a_model_s_statistics(port: int, registry: CollectorRegistry) -> None:
    metrics = ServerMetrics(registry, unix_ns)
    TritonNames(registry, metrics)
    statistics = ModelStatistics()
    statistics.add_success(Execution(2, 6, 3000, 4000, 5000, 6000, 40_000), 1)
    statistics.add_failure(1, 9000, executed=False, now_ms=2)
    metrics.serve([Served("digits", 2, lambda: 4, statistics)])
    shown = samples(port)
    assert {name.removeprefix("nv_inference_"): value for (name, labels), value in shown.items() if "nv_" in name} == {
        "request_success": 2,
        "request_failure": 1,
        "count": 6,
        "exec_count": 1,
        "request_duration_us": 40,
        "queue_duration_us": 3,
        "compute_input_duration_us": 8,
        "compute_infer_duration_us": 10,
        "compute_output_duration_us": 12,
        "pending_request_count": 4,
    }


def test_triton_s_names_have_no_exponents(port: int, registry: CollectorRegistry) -> None:
    """perf_analyzer reads 8.589934592e+09 as 8."""
    metrics = ServerMetrics(registry, unix_ns)
    TritonNames(registry, metrics)
    metrics.sample_device(snapshot(None, AttributeUse(aclrtMemAttr.ACL_HBM_MEM, 1, 8 << 30)))
    statistics = ModelStatistics()
    statistics.add_success(Execution(1, 1, 0, 0, 0, 0, 3_000_000_001_000), 1)
    metrics.serve([Served("a b", 1, lambda: 0, statistics)])
    _, body, _ = fetch(port, "/metrics")
    lines = body.decode().splitlines()
    assert 'nv_gpu_memory_total_bytes{gpu_uuid="npu-3"} 8589934592.0' in lines
    assert 'nv_inference_request_duration_us{model="a b",version="1"} 3000000001.0' in lines
    assert 'aclserve_device_memory_total_bytes{kind="hbm_mem"} 8.589934592e+09' in lines


def test_a_broken_gauge_leaves_the_others(port: int, registry: CollectorRegistry) -> None:
    def broken() -> MemoryUse:
        raise RuntimeError("no leases here")

    metrics = ServerMetrics(registry, unix_ns)
    metrics.watch_memory(broken)
    metrics.watch_streams(lambda: 1)
    shown = samples(port)
    assert shown["aclserve_streams", ()] == 1
    assert ("aclserve_leases", ()) not in shown


def test_models_that_come_and_go_do_not_fill_the_page(registry: CollectorRegistry) -> None:
    metrics = ServerMetrics(registry, unix_ns)
    kept = metrics.model("kept", 1)
    metrics.serve([Served("kept", 1, lambda: 0, ModelStatistics())])
    nobody = metrics.model("", 0)
    for number in range(2 * MAX_GONE):
        metrics.model(f"upload-{number}", 1).answered("OK")
    assert metrics.model("kept", 1) is kept
    assert metrics.model("", 0) is nobody
    (items,) = (family for family in metrics.collect() if family.name == "aclserve_items")
    assert {sample.labels["model"] for sample in items.samples} == {
        f"upload-{number}" for number in range(MAX_GONE, 2 * MAX_GONE)
    }


def test_what_is_described_is_what_is_collected(registry: CollectorRegistry) -> None:
    metrics = ServerMetrics(registry, unix_ns)
    metrics.watch_streams(lambda: 0)
    metrics.watch_memory(lambda: MemoryUse(0, 0, 0, 0, 0))
    metrics.watch_handles(lambda: Handles({}, {}))
    metrics.watch_regions(lambda: RegionUse(0, 0, 0, 0, 0))
    metrics.sample_device(snapshot(1, HBM))
    assert {family.name for family in metrics.collect()} == {family.name for family in metrics.describe()}
