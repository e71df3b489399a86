"""OpenTelemetry spans: one for each item, with an event at the end of each stage.

A call's `traceparent` (W3C Trace Context) is the parent of its items' spans; without one each item begins a trace.
Spans are made when an item is answered, from the times that are taken anyway, so an item costs nothing before and, with
tracing off, nothing at all. Sampler, endpoint and limits are OpenTelemetry's own: the OTEL_* environment variables.
Health, reflection and management calls have no spans. Which items have one can be changed at run time: `Sampling`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter, time_ns
from typing import TYPE_CHECKING, Any

import grpc.aio

from aclserve.errors import FailedPrecondition
from aclserve_server.engine.items import Result

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Tracer

Tell = Callable[[Result], None]
"""Takes an item's answer for its trace."""

_KEYS = ("traceparent", "tracestate")
_STAGES = ("wait", "copy_in", "execute", "copy_out")
_UNSET = "unknown_service"


@dataclass(slots=True)
class Sampling:
    """Which items have a span: one of `rate`, until `count` have one (-1: no limit). On the event loop alone.

    The sampler of OpenTelemetry's environment is asked for those that are left.
    """

    on: bool = True
    rate: int = 1
    count: int = -1
    _seen: int = 0

    def set(self, *, on: bool, rate: int, count: int) -> None:
        """Changes all of it, and counts items anew."""
        self.on, self.rate, self.count, self._seen = on, rate, count, 0

    def take(self) -> bool:
        """Whether the next item has a span."""
        if not self.on or self.count == 0:
            return False
        self._seen += 1
        if self._seen % self.rate:
            return False
        if self.count > 0:
            self.count -= 1
        return True


class Tracing:
    """Makes spans and hands them to `provider`, which it shuts down at `close`."""

    def __init__(self, provider: TracerProvider) -> None:
        self.sampling = Sampling()
        self._provider = provider
        self._tracer = provider.get_tracer("aclserve")

    @classmethod
    def open(cls, service_version: str) -> Tracing:
        """Sends by OTLP over HTTP, in batches, on a thread of OpenTelemetry's. FailedPrecondition without the extra."""
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ImportError as error:
            raise FailedPrecondition(
                "--tracing needs OpenTelemetry, which is not installed: pip install 'aclserve[otel]'",
                reason="TRACING_NOT_INSTALLED",
            ) from error
        resource = Resource.create({"service.version": service_version})
        if str(resource.attributes.get("service.name", _UNSET)).startswith(_UNSET):
            resource = resource.merge(Resource({"service.name": "aclserve"}))
        provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        return cls(provider)

    def call(self, context: grpc.aio.ServicerContext[Any, Any], method: str, stream: int = 0) -> CallTrace:
        """The trace of a call's items; `method` with its service, `stream` the stream's number."""
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        carrier = {
            key: value for key, value in context.invocation_metadata() or () if key in _KEYS and isinstance(value, str)
        }
        return CallTrace(self._tracer, self.sampling, TraceContextTextMapPropagator().extract(carrier), method, stream)

    def single(self, context: grpc.aio.ServicerContext[Any, Any], method: str, model: str) -> Tell:
        """The trace of a unary call's one item, which is received now."""
        trace, received = self.call(context, method), perf_counter()
        return lambda result: trace.item(result, model, received)

    async def close(self) -> None:
        """Sends what waits, for as long as OpenTelemetry's own limit, and ends."""
        await asyncio.to_thread(self._provider.shutdown)


class CallTrace:
    """The spans of one call's items."""

    def __init__(self, tracer: Tracer, sampling: Sampling, parent: Context, method: str, stream: int) -> None:
        self._tracer = tracer
        self._sampling = sampling
        self._parent = parent
        service, _, name = method.rpartition("/")
        self._attributes: dict[str, str | int] = {"rpc.system": "grpc", "rpc.service": service, "rpc.method": name}
        if stream:
            self._attributes["aclserve.stream"] = stream

    def item(self, result: Result, model: str, received: float) -> None:
        """Makes the span of an item that is answered now; `received` in seconds of `perf_counter`."""
        if not self._sampling.take():
            return
        from opentelemetry.trace import SpanKind, StatusCode

        end = time_ns()
        start = end - max(int((perf_counter() - received) * 1e9), 0)
        span = self._tracer.start_span(
            "item",
            self._parent,
            SpanKind.SERVER,
            {**self._attributes, "aclserve.model": model, "aclserve.item": result.item_id},
            start_time=start,
        )
        if not span.is_recording():
            return
        timing = result.timing
        if timing is not None:
            at = start
            for stage in _STAGES:
                spent = getattr(timing, f"{stage}_ns")
                at += spent
                span.add_event(stage, {"duration_ns": spent}, min(at, end))
            span.set_attribute("aclserve.batch_rows", timing.batch_rows)
            span.set_attribute("aclserve.queue_rows", timing.queue_rows)
        if result.dropped is not None:
            span.set_attribute("aclserve.dropped", result.dropped.reason.name)
        if result.error is not None:
            span.set_attribute("error.type", result.error.code_name)
            span.set_status(StatusCode.ERROR, result.error.message)
        span.end(end)
