"""The metrics port and the service's own metrics."""

from __future__ import annotations

import http.client
import socket
import threading
from collections.abc import Iterator, Mapping

import pytest
from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.parser import text_string_to_metric_families

from aclserve_server import metrics as module
from aclserve_server.metrics import MetricsServer, ServerMetrics


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
    ServerMetrics(registry).watch_streams(lambda: 3)
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


def test_a_batch_is_counted_once(port: int, registry: CollectorRegistry) -> None:
    metrics = ServerMetrics(registry)
    metrics.observe_batch("digits", 3, wait_s=0.001, execute_s=0.002, total_s=0.004, items=2, padding_rows=1)
    metrics.observe_batch("digits", 4, wait_s=0.0, execute_s=0.002, total_s=0.003, items=4, code="INTERNAL")
    metrics.count_items("digits", "RESOURCE_EXHAUSTED", 5)
    metrics.count_items("digits", "OK")
    shown = samples(port)
    model = ("model", "digits")
    assert shown["aclserve_items_total", (("code", "OK"), model)] == 3
    assert shown["aclserve_items_total", (("code", "INTERNAL"), model)] == 4
    assert shown["aclserve_items_total", (("code", "RESOURCE_EXHAUSTED"), model)] == 5
    assert shown["aclserve_batches_total", (model,)] == 2
    assert shown["aclserve_rows_total", (model,)] == 7
    assert shown["aclserve_padding_rows_total", (model,)] == 1
    assert shown["aclserve_batch_rows_count", (model,)] == 2
    assert shown["aclserve_batch_rows_bucket", (("le", "2.0"), model)] == 0
    assert shown["aclserve_batch_rows_bucket", (("le", "4.0"), model)] == 2
    assert shown["aclserve_wait_seconds_sum", (model,)] == pytest.approx(0.001)
    assert shown["aclserve_execute_seconds_sum", (model,)] == pytest.approx(0.004)
    assert shown["aclserve_total_seconds_sum", (model,)] == pytest.approx(0.007)


def test_gauges_are_read_when_scraped(port: int, registry: CollectorRegistry) -> None:
    metrics = ServerMetrics(registry)
    waiting = {"rows": 0}
    metrics.watch_queue("digits", lambda: waiting["rows"])
    metrics.watch_device_memory(lambda: {"ddr": (10, 100), "hbm": (0, 0)})
    metrics.watch_leases(lambda: (1, 2, 4096))
    waiting["rows"] = 9
    shown = samples(port)
    assert shown["aclserve_queue_rows", (("model", "digits"),)] == 9
    assert shown["aclserve_device_memory_free_bytes", (("kind", "ddr"),)] == 10
    assert shown["aclserve_device_memory_total_bytes", (("kind", "ddr"),)] == 100
    assert [shown[f"aclserve_{name}", ()] for name in ("leases", "buffers", "buffer_bytes")] == [1, 2, 4096]
    metrics.forget_model("digits")
    assert ("aclserve_queue_rows", (("model", "digits"),)) not in samples(port)


def test_a_broken_gauge_leaves_the_others(port: int, registry: CollectorRegistry) -> None:
    def broken() -> tuple[int, int, int]:
        raise RuntimeError("no leases here")

    metrics = ServerMetrics(registry)
    metrics.watch_leases(broken)
    metrics.watch_streams(lambda: 1)
    shown = samples(port)
    assert shown["aclserve_streams", ()] == 1
    assert ("aclserve_leases", ()) not in shown
