"""Values of streams: how they behave, why they drop items, and what a server reports about them. As `data`."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum


class FramePolicy(StrEnum):
    """What a stream does with items that come faster than they are executed; unspecified means the preset's, or wait.

    wait: nothing is lost, the sender waits. drop_oldest and drop_newest give up an item when the window is full.
    latest_only: at most one item waits for its execution, the newest.
    """

    UNSPECIFIED = "unspecified"
    WAIT = "wait"
    DROP_OLDEST = "drop_oldest"
    DROP_NEWEST = "drop_newest"
    LATEST_ONLY = "latest_only"


class StreamPreset(StrEnum):
    """Settings of a stream that belong together; what is set beside the preset overrides it.

    file: wait, in order of submission. live: latest_only, in order of completion, no item older than a second.
    """

    UNSPECIFIED = "unspecified"
    FILE = "file"
    LIVE = "live"


class Priority(StrEnum):
    """Who goes first when items wait for one model; unspecified means the stream's, or normal."""

    UNSPECIFIED = "unspecified"
    LOW = "low"
    NORMAL = "normal"
    HIGH = "high"


class DropReason(StrEnum):
    """Why a stream's frame policy gave an item up.

    oldest, newest: the window was full. superseded: a newer item came (latest_only). too_old: it waited longer than
    `max_age`.
    """

    UNSPECIFIED = "unspecified"
    OLDEST = "oldest"
    NEWEST = "newest"
    SUPERSEDED = "superseded"
    TOO_OLD = "too_old"


@dataclass(frozen=True)
class Dropped:
    """Why and when an item was given up by its stream's frame policy, and how long after its receipt. It never ran."""

    reason: DropReason
    age_ns: int


@dataclass(frozen=True)
class StreamSummary:
    """The totals of a stream: received = succeeded + failed + dropped. `drops` counts by `DropReason`."""

    received_items: int
    succeeded_items: int
    failed_items: int
    dropped_items: int = 0
    drops: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class StreamStatus:
    """One open stream of a server, as `watch_streams` reports it.

    `number` counts the server's streams in order of opening. Rates are means since the report before, totals as in
    `StreamSummary`; `p50_ns` and `p99_ns` are the times from receipt to answer of the last answers.
    """

    number: int
    model: str
    policy: FramePolicy
    priority: Priority
    received_per_second: float
    answered_per_second: float
    pending_items: int
    pending_bytes: int
    window_items: int
    oldest_age_ns: int
    received_items: int
    succeeded_items: int
    failed_items: int
    dropped_items: int
    drops: dict[str, int]
    p50_ns: int
    p99_ns: int


@dataclass(frozen=True)
class ModelStatus:
    """One model that is ready. `fill` is the part of the compiled batches that rows filled, 0 to 1."""

    name: str
    version: int
    queue_rows: int
    executions_per_second: float
    rows_per_second: float
    mean_batch_rows: float
    fill: float


@dataclass(frozen=True)
class StreamsReport:
    """A server's streams and models at one moment."""

    streams: tuple[StreamStatus, ...]
    models: tuple[ModelStatus, ...]
