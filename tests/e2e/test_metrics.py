"""What a server counts, writes and traces of the items that it is sent, whatever becomes of them."""

from __future__ import annotations

import json
import logging
import queue
import threading
import time
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client.parser import text_string_to_metric_families

from aclserve.v1 import model_pb2
from aclserve_server.engine.statistics import ModelStatistics
from aclserve_server.kserve import inference_pb2
from aclserve_server.rpc.tracing import Tracing
from e2e.raw import TIMEOUT_S, Raw, item, on_loop, queued, refused, tensor, wait_until
from e2e.test_streams import occupy, x
from serving import Serving, elementwise, put_model, rows, serving

Config = model_pb2.StreamConfig
Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Serving]:
    root = tmp_path / "models"
    put_model(root, "one", elementwise())
    put_model(root, "free", elementwise("Identity", ("rows", "any")), version=3)
    with serving(root, triton_metrics=True, max_stream_items=16) as up:
        yield up


@pytest.fixture
def raw(service: Serving) -> Iterator[Raw]:
    with Raw(service.address) as connected:
        yield connected


def scrape(service: Serving) -> Samples:
    with urllib.request.urlopen(f"http://127.0.0.1:{service.metrics_port}/metrics", timeout=TIMEOUT_S) as answer:
        text = answer.read().decode()
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def items_by_code(samples: Samples, model: str) -> dict[str, float]:
    found = {}
    for (name, labels), value in samples.items():
        if name == "aclserve_items_total" and ("model", model) in labels:
            found[dict(labels)["code"]] = value
    return found


def statistics(service: Serving, model: str, version: int = 1) -> ModelStatistics:
    return on_loop(service, lambda: service.server.engine.find(model, version).statistics)


ONE = (("model", "one"), ("version", "1"))


def test_every_item_is_counted_once_whatever_becomes_of_it(service: Serving, raw: Raw) -> None:
    stream = raw.stream(Config(model="one", policy=model_pb2.FRAME_POLICY_DROP_OLDEST, max_pending_items=4))
    occupy(service, stream)
    stream.items(*(item(str(number), x(number)) for number in range(5)), item("3", x(9)))  # 3 is in flight
    assert {result.id for result in stream.results(3) if result.HasField("dropped")} == {"0", "1"}
    stream.cancel_items("3")
    stream.results(1)
    other = raw.stream(Config(model="one"))
    other.items(item("bad", tensor("x", rows(0, 1)[:, :3])), item("nobody's", x(), model="none"))
    other.finish()
    service.emulator.faults.fail_task("aclmdlExecuteAsync", 507899)
    service.emulator.release()
    stream.finish()
    assert stream.totals() == (7, 1, 4)
    raw.infer(model_pb2.InferRequest(model="one", inputs=[x(0, 2)]))
    raw.infer(model_pb2.InferRequest(model="one", inputs=[x(0, 0)]))
    refused(lambda: raw.infer(model_pb2.InferRequest(model="one")))
    refused(lambda: raw.infer_bytes(b"\x0a\xff"))
    shown = scrape(service)
    assert items_by_code(shown, "one") == {
        "OK": 3,
        "DROPPED": 2,
        "ALREADY_EXISTS": 1,
        "INVALID_ARGUMENT": 2,
        "CANCELLED": 1,
        "INTERNAL": 2,
    }
    assert items_by_code(shown, "") == {"NOT_FOUND": 1, "INVALID_ARGUMENT": 1}
    assert shown["aclserve_dropped_items_total", (ONE[0], ("reason", "OLDEST"), ONE[1])] == 2
    assert [shown[f"aclserve_{name}_seconds_count", ONE] for name in ("wait", "total", "age")] == [4, 4, 4]
    assert [shown[f"aclserve_{name}_count", ONE] for name in ("execute_seconds", "batch_rows")] == [3, 3]
    told = statistics(service, "one")
    assert (told.success.count, told.fail.count, told.queue.count) == (3, 5, 3)
    assert (told.inference_count, told.execution_count) == (3, 3)
    assert sum(size.count for _, size in told.sizes()) == 2
    assert told.success.ns > told.compute_infer.ns > 0
    nv = {name: value for (name, labels), value in shown.items() if name.startswith("nv_inference") and labels == ONE}
    assert (nv["nv_inference_request_success"], nv["nv_inference_request_failure"]) == (3, 5)
    assert (nv["nv_inference_count"], nv["nv_inference_exec_count"]) == (3, 3)


def test_items_of_models_without_known_shapes_count_as_well(service: Serving, raw: Raw) -> None:
    for _ in range(2):
        raw.infer(model_pb2.InferRequest(model="free", inputs=[x()]))
    shown = scrape(service)
    labels = (("model", "free"), ("version", "3"))
    assert items_by_code(shown, "free") == {"OK": 2}
    assert [shown[f"aclserve_{name}_seconds_count", labels] for name in ("wait", "copy_in", "execute", "total")] == [
        2
    ] * 4
    told = statistics(service, "free", 3)
    assert (told.success.count, told.execution_count, told.inference_count) == (2, 2, 2)


def test_statistics_begin_anew_when_a_model_is_loaded_anew(service: Serving, raw: Raw) -> None:
    raw.infer(model_pb2.InferRequest(model="one", inputs=[x()]))
    assert statistics(service, "one").success.count == 1
    raw.call("models", "UnloadModel", model_pb2.UnloadModelRequest(model="one"))
    shown = scrape(service)
    assert ("aclserve_queue_rows", ONE) not in shown
    assert items_by_code(shown, "one") == {"OK": 1}, "counters of Prometheus never go back"
    source = model_pb2.ModelSource(repository=model_pb2.RepositoryModel(model="one"))
    raw.call("models", "LoadModel", model_pb2.LoadModelRequest(source=source))
    assert statistics(service, "one").success.count == 0
    raw.infer(model_pb2.InferRequest(model="one", inputs=[x()]))
    assert items_by_code(scrape(service), "one") == {"OK": 2}
    assert statistics(service, "one").success.count == 1


def test_expired_items_and_those_of_clients_that_went_away(service: Serving, raw: Raw) -> None:
    stream = raw.stream(Config(model="one", max_age=Duration(nanos=60_000_000)))
    other = raw.stream(Config(model="one"))
    occupy(service, stream)
    stream.items(item("old", x(1)))
    other.items(item("late", x(1), timeout=Duration(nanos=60_000_000)), item("waits", x(2)))
    (old,) = stream.results(1)
    assert old.dropped.reason == model_pb2.DROP_REASON_TOO_OLD
    assert other.results(1)[0].id == "late"
    other.kill()
    wait_until(lambda: queued(service, "one") == 0, "the stream's item is gone")
    service.emulator.release()
    stream.finish()
    shown = scrape(service)
    assert items_by_code(shown, "one") == {"OK": 1, "DROPPED": 1, "DEADLINE_EXCEEDED": 1, "CANCELLED": 1}
    assert shown["aclserve_dropped_items_total", (ONE[0], ("reason", "TOO_OLD"), ONE[1])] == 1


def test_the_age_counts_from_the_capture(service: Serving, raw: Raw) -> None:
    captured = Timestamp()
    captured.FromNanoseconds(time.time_ns() - 3_000_000_000)
    raw.infer(model_pb2.InferRequest(model="one", inputs=[x()], capture_time=captured))
    shown = scrape(service)
    assert shown["aclserve_age_seconds_sum", ONE] >= 3
    assert shown["aclserve_total_seconds_sum", ONE] < shown["aclserve_age_seconds_sum", ONE]


def test_the_device_and_what_is_held_of_it(service: Serving, raw: Raw) -> None:
    wait_until(lambda: service.server.metrics.device is not None, "the device was sampled")
    lease = raw.lease()
    before = scrape(service)
    raw.buffer(lease, 4096)
    stream = raw.stream(Config(model="one"))
    shown = scrape(service)
    total = {labels: value for (name, labels), value in shown.items() if name == "aclserve_device_memory_total_bytes"}
    assert total
    assert all(value > 0 for value in total.values())
    gpu = (("gpu_uuid", "npu-0"),)
    assert 0 < shown["nv_gpu_memory_used_bytes", gpu] < shown["nv_gpu_memory_total_bytes", gpu]
    assert not [name for name, _ in shown if "power" in name]
    for name, labels, more in (
        ("aclserve_leases", (), 0),
        ("aclserve_buffers", (), 1),
        ("aclserve_buffer_bytes", (("kind", "device"),), 4096),
        ("aclserve_streams", (), 1),
        ("aclserve_handles", (("kind", "buffer"),), 1),
        ("aclserve_handles", (("kind", "model"),), 0),
        ("aclserve_handle_bytes", (("kind", "device"),), 4096),
    ):
        assert shown[name, labels] - before[name, labels] == more, (name, labels)
    assert shown["aclserve_handles", (("kind", "model"),)] == 2
    stream.finish()
    raw.release(lease)


def test_the_end_of_a_stream_is_one_line_with_totals(
    service: Serving, raw: Raw, caplog: pytest.LogCaptureFixture
) -> None:
    def told() -> list[dict[str, Any]]:
        found = [record for record in caplog.records if record.name == "aclserve_server.rpc.stream_log"]
        return [dict(record.fields, text=record.getMessage()) for record in found]  # type: ignore[attr-defined]

    with caplog.at_level(logging.INFO):
        stream = raw.stream(Config(model="one", policy=model_pb2.FRAME_POLICY_LATEST_ONLY))
        occupy(service, stream)
        stream.items(*(item(str(number), x(number)) for number in range(3)))
        stream.results(2)
        service.emulator.release()
        stream.results(2)
        stream.items(item("bad", tensor("x", rows(0, 1)[:, :3])))
        stream.finish()
        wait_until(lambda: len(told()) == 1, "the line of the first stream")
        unconfigured = raw.stream()
        unconfigured.items(item("a", x()))
        unconfigured.end()
        killed = raw.stream(Config(model="one"))
        killed.kill()
        wait_until(lambda: len(told()) == 3, "the lines of the others")
    first, second, third = told()
    text, duration = first.pop("text"), first.pop("duration_s")
    assert first == {
        "event": "stream_end",
        "protocol": "aclserve.v1",
        "stream": first["stream"],
        "principal": None,
        "model": "one",
        "code": "OK",
        "received_items": 5,
        "succeeded_items": 2,
        "failed_items": 1,
        "dropped_items": 2,
        "drops": {"SUPERSEDED": 2},
        "input_bytes": 4 * 16 + 12,
    }
    assert duration > 0
    assert "to one ended, OK" in text
    assert "5 received, 2 succeeded, 1 failed, 2 dropped (2 SUPERSEDED), 76 input bytes" in text
    assert (second["code"], second["model"]) == ("FAILED_PRECONDITION", "")
    assert third["code"] == "CANCELLED"
    assert len({first["stream"], second["stream"], third["stream"]}) == 3
    assert json.dumps([first, second, third])


TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = ("traceparent", f"00-{TRACE}-{PARENT}-01")


def traced(service: Serving) -> InMemorySpanExporter:
    """Where the spans of both protocols go from now on."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    service.server.models.tracing = service.server.inference.tracing = Tracing(provider)
    return exporter


# The KServe v2 protocol: the same engine, so the same counters.

V2 = "/inference.GRPCInferenceService/"


def v2_request(model: str, request_id: str, width: int = 4) -> inference_pb2.ModelInferRequest:
    request = inference_pb2.ModelInferRequest(model_name=model, id=request_id)
    request.inputs.add(name="x", datatype="FP32", shape=[1, width])
    request.raw_input_contents.append(rows(0, 1).tobytes()[: 4 * width])
    return request


def v2_stream(raw: Raw, *requests: inference_pb2.ModelInferRequest, **options: Any) -> list[str]:
    """The error messages of the answers, "" for outputs."""
    method = raw.channel.stream_stream(
        V2 + "ModelStreamInfer",
        inference_pb2.ModelInferRequest.SerializeToString,
        inference_pb2.ModelStreamInferResponse.FromString,
    )
    return [answer.error_message for answer in method(iter(requests), timeout=TIMEOUT_S, **options)]


def test_items_of_the_v2_protocol_are_counted_logged_and_traced(
    service: Serving, raw: Raw, caplog: pytest.LogCaptureFixture
) -> None:
    exporter = traced(service)
    unary = raw.channel.unary_unary(
        V2 + "ModelInfer",
        inference_pb2.ModelInferRequest.SerializeToString,
        inference_pb2.ModelInferResponse.FromString,
    )
    unary(v2_request("one", "a"), timeout=TIMEOUT_S, metadata=(TRACEPARENT,))
    for model in ("one", "none"):
        with pytest.raises(grpc.RpcError):
            unary(v2_request(model, "b", width=3), timeout=TIMEOUT_S)
    spans = exporter.get_finished_spans()
    assert [(span.attributes or {}).get("error.type") for span in spans] == [None, "INVALID_ARGUMENT", "NOT_FOUND"]
    assert spans[0].parent is not None
    assert f"{spans[0].parent.span_id:016x}" == PARENT
    exporter.clear()
    with caplog.at_level(logging.INFO):
        errors = v2_stream(raw, v2_request("one", "c"), v2_request("one", "d", width=3))
        assert [bool(error) for error in errors] == [False, True]
        wait_until(lambda: "stream 1 of inference ended, OK" in caplog.text, "the stream's line")
    methods = [(span.attributes or {})["rpc.method"] for span in exporter.get_finished_spans()]
    assert methods == ["ModelStreamInfer"] * 2
    shown = scrape(service)
    assert items_by_code(shown, "one") == {"OK": 2, "INVALID_ARGUMENT": 2}
    assert items_by_code(shown, "") == {"NOT_FOUND": 1}
    assert statistics(service, "one").success.count == 2


# Tracing.


def test_every_item_has_its_span_below_the_caller_s(service: Serving, raw: Raw) -> None:
    exporter = traced(service)
    request = model_pb2.InferRequest(model="one", inputs=[x()])
    raw.models.Infer(request, timeout=TIMEOUT_S, metadata=(TRACEPARENT,))
    with pytest.raises(grpc.RpcError):
        raw.models.Infer(model_pb2.InferRequest(model="none"), timeout=TIMEOUT_S, metadata=(TRACEPARENT,))
    unary, failed = exporter.get_finished_spans()
    exporter.clear()
    for span in (unary, failed):
        assert span.parent is not None
        assert (f"{span.context.trace_id:032x}", f"{span.parent.span_id:016x}") == (TRACE, PARENT)
        assert (span.attributes or {})["rpc.method"] == "Infer"
    assert [event.name for event in unary.events] == ["wait", "copy_in", "execute", "copy_out"]
    assert (failed.attributes or {})["error.type"] == "NOT_FOUND"

    stream = raw.stream(Config(model="one", policy=model_pb2.FRAME_POLICY_DROP_NEWEST, max_pending_items=2))
    occupy(service, stream)
    stream.items(item("a", x()), item("b", x()), item("a", x()))
    stream.results(2)
    service.emulator.release()
    stream.finish()
    told = [dict(span.attributes or {}) for span in exporter.get_finished_spans()]
    spans = {str(attributes["aclserve.item"]): attributes for attributes in told}
    assert spans.keys() == {"first", "a", "b"}
    assert len(told) == 4
    assert spans["b"]["aclserve.dropped"] == "NEWEST"
    assert {attributes["aclserve.model"] for attributes in spans.values()} == {"one"}
    assert {attributes["rpc.method"] for attributes in spans.values()} == {"StreamInfer"}
    assert len({attributes["aclserve.stream"] for attributes in spans.values()}) == 1


def test_calls_that_infer_nothing_have_no_span(service: Serving, raw: Raw) -> None:
    exporter = traced(service)
    for method, request in (
        ("/grpc.health.v1.Health/Check", b""),
        (V2 + "ServerLive", b""),
        (V2 + "ServerReady", b""),
        (V2 + "ModelReady", inference_pb2.ModelReadyRequest(name="one").SerializeToString()),
        (V2 + "ModelStatistics", b""),
        ("/aclserve.v1.ModelService/ListModels", b""),
        ("/aclserve.v1.DeviceService/GetServerInfo", b""),
    ):
        raw.channel.unary_unary(method)(request, timeout=TIMEOUT_S, metadata=(TRACEPARENT,))
    assert exporter.get_finished_spans() == ()
    raw.infer(model_pb2.InferRequest(model="one", inputs=[x()]))
    assert len(exporter.get_finished_spans()) == 1


class Collector(BaseHTTPRequestHandler):
    """An OTLP endpoint."""

    received: queue.SimpleQueue[tuple[str, bytes]]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.received.put((self.path, body))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""


def test_the_option_sends_spans_to_the_endpoint_of_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Here(Collector):
        received = queue.SimpleQueue()

    collector = HTTPServer(("127.0.0.1", 0), Here)
    thread = threading.Thread(target=collector.serve_forever, args=(0.05,))
    thread.start()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{collector.server_address[1]}")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "none")
    try:
        put_model(tmp_path / "models", "one", elementwise())
        with serving(tmp_path / "models", tracing=True) as up, Raw(up.address) as raw:
            raw.infer(model_pb2.InferRequest(model="one", inputs=[x()]))
        path, body = Here.received.get(timeout=TIMEOUT_S)
    finally:
        collector.shutdown()
        thread.join()
        collector.server_close()
    assert path == "/v1/traces"
    (resource,) = ExportTraceServiceRequest.FromString(body).resource_spans
    names = {entry.key: entry.value.string_value for entry in resource.resource.attributes}
    assert names["service.name"] == "aclserve"
    assert names["service.version"]
    (scope,) = resource.scope_spans
    assert [span.name for span in scope.spans] == ["item"]
