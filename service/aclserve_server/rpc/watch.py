"""WatchStreams: what the open streams and the models did between two looks."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from time import perf_counter

from aclserve.errors import InvalidArgument
from aclserve.v1 import model_pb2 as pb
from aclserve_server.engine.engine import Engine, Record
from aclserve_server.engine.statistics import Totals
from aclserve_server.rpc.stream import StreamSession

DEFAULT_INTERVAL_S = 1.0
MIN_INTERVAL_S = 0.1


def interval_of(request: pb.WatchStreamsRequest) -> float:
    """The time between two reports in seconds; `InvalidArgument`, reason INTERVAL_TOO_SHORT, below 100 ms."""
    if not request.HasField("interval"):
        return DEFAULT_INTERVAL_S
    seconds = request.interval.seconds + request.interval.nanos * 1e-9
    if seconds < MIN_INTERVAL_S:
        raise InvalidArgument(
            f"an interval of {seconds:g} s was asked for; the shortest is {MIN_INTERVAL_S:g} s",
            reason="INTERVAL_TOO_SHORT",
        )
    return seconds


@dataclass(frozen=True, slots=True)
class Look:
    """Everything at one moment, with the totals from which rates follow. Time in seconds."""

    at: float
    streams: dict[int, pb.StreamStatus]
    models: dict[tuple[str, int], pb.ModelStatus]
    totals: dict[tuple[str, int], Totals]

    def since(self, before: Look) -> pb.WatchStreamsResponse:
        """This look with the rates since an earlier one."""
        passed = max(self.at - before.at, 1e-9)
        for number, stream in self.streams.items():
            was = before.streams.get(number, pb.StreamStatus())
            stream.received_per_second = (stream.received_items - was.received_items) / passed
            stream.answered_per_second = (_answered(stream) - _answered(was)) / passed
        for key, model in self.models.items():
            now, then = self.totals[key], before.totals.get(key, Totals())
            executions, rows = now.executions - then.executions, now.rows - then.rows
            room = now.gear_rows - then.gear_rows
            model.executions_per_second = executions / passed
            model.rows_per_second = rows / passed
            model.mean_batch_rows = rows / executions if executions else 0.0
            model.fill = rows / room if room else 0.0
        return pb.WatchStreamsResponse(streams=self.streams.values(), models=self.models.values())


class Watch:
    """Looks at the streams and models of a server."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def look(self, sessions: Iterable[StreamSession]) -> Look:
        """The state at this moment."""
        now = perf_counter()
        ready = [record for record in self._engine.records() if record.runner is not None]
        return Look(
            now,
            {session.number: _stream(session, now) for session in sorted(sessions, key=lambda one: one.number)},
            {(record.name, record.version): _model(record) for record in ready},
            {(record.name, record.version): record.runner.totals.copy() for record in ready if record.runner},
        )


def _stream(session: StreamSession, now: float) -> pb.StreamStatus:
    settings, frames = session.settings, session.frames
    oldest = frames.oldest()
    latencies = sorted(session.latencies_ns)
    status = pb.StreamStatus(
        number=session.number,
        pending_items=frames.pending_items,
        pending_bytes=frames.pending_bytes,
        max_pending_items=frames.max_items,
        oldest_age_ns=0 if oldest is None else max(int((now - oldest.received) * 1e9), 0),
        received_items=session.received,
        succeeded_items=session.succeeded,
        failed_items=session.failed,
        dropped_items=session.drops.total(),
        drops={reason.name: count for reason, count in session.drops.items()},
        p50_ns=_percentile(latencies, 0.50),
        p99_ns=_percentile(latencies, 0.99),
    )
    if settings is not None:
        status.model = settings.model
        status.policy = settings.policy  # type: ignore[assignment]
        status.priority = settings.priority  # type: ignore[assignment]
    return status


def _model(record: Record) -> pb.ModelStatus:
    runner = record.runner
    assert runner is not None
    return pb.ModelStatus(name=record.name, version=record.version, queue_rows=runner.queue_rows)


def _answered(stream: pb.StreamStatus) -> int:
    return stream.succeeded_items + stream.failed_items + stream.dropped_items


def _percentile(ordered: list[int], part: float) -> int:
    return ordered[min(int(len(ordered) * part), len(ordered) - 1)] if ordered else 0
