"""One span for each item: its parent, stages, outcome; into OpenTelemetry's own in-memory exporter."""

from __future__ import annotations

import builtins
from time import perf_counter
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import SpanKind, StatusCode

from aclserve.errors import FailedPrecondition, ResourceExhausted
from aclserve_server.engine.items import Dropped, DropReason, Result, Timing
from aclserve_server.rpc.tracing import Tracing

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
METHOD = "aclserve.v1.ModelService/StreamInfer"


class Call:
    """What tracing asks of a call's context."""

    def __init__(self, *metadata: tuple[str, str | bytes]) -> None:
        self.metadata = metadata

    def invocation_metadata(self) -> Any:
        return self.metadata


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def tracing(exporter: InMemorySpanExporter) -> Tracing:
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return Tracing(provider)


def only(exporter: InMemorySpanExporter) -> ReadableSpan:
    (span,) = exporter.get_finished_spans()
    return span


def context(tracing: Tracing, *metadata: tuple[str, str | bytes]) -> Any:
    call: Any = Call(*metadata)
    return tracing.call(call, METHOD, 7)


def test_an_item_s_stages_are_events_in_order(tracing: Tracing, exporter: InMemorySpanExporter) -> None:
    timing = Timing(4_000_000, 1_000_000, 3_000_000, 500_000, 9_000_000, 8, 8, 2, 5)
    context(tracing).item(Result("a", timing=timing), "digits", perf_counter() - 0.01)
    span = only(exporter)
    assert (span.name, span.kind, span.parent, span.status.status_code) == (
        "item",
        SpanKind.SERVER,
        None,
        StatusCode.UNSET,
    )
    assert span.start_time is not None
    assert span.end_time is not None
    assert 10_000_000 <= span.end_time - span.start_time < 60_000_000_000
    assert [(event.name, event.timestamp - span.start_time) for event in span.events] == [
        ("wait", 4_000_000),
        ("copy_in", 5_000_000),
        ("execute", 8_000_000),
        ("copy_out", 8_500_000),
    ]
    assert dict(span.attributes or {}) == {
        "rpc.system": "grpc",
        "rpc.service": "aclserve.v1.ModelService",
        "rpc.method": "StreamInfer",
        "aclserve.stream": 7,
        "aclserve.model": "digits",
        "aclserve.item": "a",
        "aclserve.batch_rows": 8,
        "aclserve.queue_rows": 5,
    }


def test_traceparent_is_the_parent_of_all_items(tracing: Tracing, exporter: InMemorySpanExporter) -> None:
    trace = context(tracing, ("traceparent", f"00-{TRACE}-{PARENT}-01"), ("tracestate", "x=y"), ("other-bin", b"\x01"))
    for item_id in "ab":
        trace.item(Result(item_id), "digits", perf_counter())
    for span in exporter.get_finished_spans():
        assert span.parent is not None
        assert (f"{span.context.trace_id:032x}", f"{span.parent.span_id:016x}") == (TRACE, PARENT)
        assert span.context.trace_state.get("x") == "y"
    assert len({span.context.span_id for span in exporter.get_finished_spans()}) == 2


@pytest.mark.parametrize("value", ["", "nonsense", "00-" + "0" * 32 + "-" + "0" * 16 + "-01"])
def test_a_broken_traceparent_is_as_none(tracing: Tracing, exporter: InMemorySpanExporter, value: str) -> None:
    context(tracing, ("traceparent", value)).item(Result("a"), "digits", perf_counter())
    assert only(exporter).parent is None


def test_what_the_caller_does_not_sample_is_not_made(exporter: InMemorySpanExporter) -> None:
    provider = TracerProvider(sampler=ParentBased(TraceIdRatioBased(1.0)), shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracing = Tracing(provider)
    context(tracing, ("traceparent", f"00-{TRACE}-{PARENT}-00")).item(Result("a"), "digits", perf_counter())
    assert exporter.get_finished_spans() == ()
    context(tracing, ("traceparent", f"00-{TRACE}-{PARENT}-01")).item(Result("a"), "digits", perf_counter())
    assert len(exporter.get_finished_spans()) == 1


def test_failed_and_dropped_items(tracing: Tracing, exporter: InMemorySpanExporter) -> None:
    trace = context(tracing)
    trace.item(Result("a", error=ResourceExhausted("the queue is full", reason="QUEUE_FULL")), "digits", perf_counter())
    trace.item(Result("b", dropped=Dropped(DropReason.SUPERSEDED, 5)), "digits", perf_counter())
    failed, dropped = exporter.get_finished_spans()
    assert (failed.status.status_code, failed.status.description) == (StatusCode.ERROR, "the queue is full")
    assert (failed.attributes or {})["error.type"] == "RESOURCE_EXHAUSTED"
    assert dropped.status.status_code is StatusCode.UNSET
    assert (dropped.attributes or {})["aclserve.dropped"] == "SUPERSEDED"
    assert not failed.events
    assert not dropped.events


def test_one_of_so_many_items_has_a_span_until_there_are_enough(
    tracing: Tracing, exporter: InMemorySpanExporter
) -> None:
    call = context(tracing)

    def made(items: int) -> list[str]:
        exporter.clear()
        for at in range(items):
            call.item(Result(str(at)), "digits", perf_counter())
        return [str((span.attributes or {})["aclserve.item"]) for span in exporter.get_finished_spans()]

    assert made(2) == ["0", "1"]
    tracing.sampling.set(on=True, rate=3, count=2)
    assert made(12) == ["2", "5"]
    assert tracing.sampling.count == 0
    tracing.sampling.set(on=False, rate=1, count=-1)
    assert made(3) == []
    tracing.sampling.set(on=True, rate=2, count=-1)
    assert made(5) == ["1", "3"]


def test_without_the_extra_it_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *arguments: Any, **more: Any) -> Any:
        if name.startswith("opentelemetry"):
            raise ImportError(name)
        return real(name, *arguments, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(FailedPrecondition, match=r"pip install 'aclserve\[otel\]'"):
        Tracing.open("1.0")
