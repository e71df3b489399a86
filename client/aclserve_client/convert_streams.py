"""Messages about streams -> values of `stream_data`. As `convert`."""

from __future__ import annotations

from collections.abc import Mapping

from aclserve.v1 import model_pb2
from aclserve_client import convert
from aclserve_client.stream_data import FramePolicy, ModelStatus, Priority, StreamsReport, StreamStatus, StreamSummary


def _drops(drops: Mapping[str, int]) -> dict[str, int]:
    return {reason.lower(): count for reason, count in sorted(drops.items())}


def summary_from_wire(summary: model_pb2.StreamSummary) -> StreamSummary:
    return StreamSummary(
        summary.received_items,
        summary.succeeded_items,
        summary.failed_items,
        summary.dropped_items,
        _drops(summary.drops),
    )


def report_from_wire(report: model_pb2.WatchStreamsResponse) -> StreamsReport:
    return StreamsReport(tuple(map(_stream_status, report.streams)), tuple(map(_model_status, report.models)))


def _stream_status(stream: model_pb2.StreamStatus) -> StreamStatus:
    return StreamStatus(
        number=stream.number,
        model=stream.model,
        policy=convert.enum_from_wire(FramePolicy, stream.policy),
        priority=convert.enum_from_wire(Priority, stream.priority),
        received_per_second=stream.received_per_second,
        answered_per_second=stream.answered_per_second,
        pending_items=stream.pending_items,
        pending_bytes=stream.pending_bytes,
        window_items=stream.max_pending_items,
        oldest_age_ns=stream.oldest_age_ns,
        received_items=stream.received_items,
        succeeded_items=stream.succeeded_items,
        failed_items=stream.failed_items,
        dropped_items=stream.dropped_items,
        drops=_drops(stream.drops),
        p50_ns=stream.p50_ns,
        p99_ns=stream.p99_ns,
    )


def _model_status(model: model_pb2.ModelStatus) -> ModelStatus:
    return ModelStatus(
        name=model.name,
        version=model.version,
        queue_rows=model.queue_rows,
        executions_per_second=model.executions_per_second,
        rows_per_second=model.rows_per_second,
        mean_batch_rows=model.mean_batch_rows,
        fill=model.fill,
    )
