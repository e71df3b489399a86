"""A stream's configuration, with presets and the server's limits worked in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

from google.protobuf.duration_pb2 import Duration

from aclserve.errors import InvalidArgument
from aclserve.v1 import model_pb2 as pb
from aclserve_server.access.principal import CURRENT
from aclserve_server.engine.frames import Policy
from aclserve_server.engine.items import DropReason

POLICIES: Mapping[int, Policy] = {
    pb.FRAME_POLICY_WAIT: Policy.WAIT,
    pb.FRAME_POLICY_DROP_OLDEST: Policy.DROP_OLDEST,
    pb.FRAME_POLICY_DROP_NEWEST: Policy.DROP_NEWEST,
    pb.FRAME_POLICY_LATEST_ONLY: Policy.LATEST_ONLY,
}
_PRESETS: Mapping[int, tuple[int, int, float | None]] = {
    pb.STREAM_PRESET_UNSPECIFIED: (pb.FRAME_POLICY_WAIT, pb.RESULT_ORDER_COMPLETION, None),
    pb.STREAM_PRESET_FILE: (pb.FRAME_POLICY_WAIT, pb.RESULT_ORDER_SUBMISSION, None),
    pb.STREAM_PRESET_LIVE: (pb.FRAME_POLICY_LATEST_ONLY, pb.RESULT_ORDER_COMPLETION, 1.0),
}
_ORDERS = (pb.RESULT_ORDER_UNSPECIFIED, pb.RESULT_ORDER_COMPLETION, pb.RESULT_ORDER_SUBMISSION)


PACKED_BYTES = 4 << 20
"""What gRPC's libraries for Go, Java, C++ and Python take in one message unless they are told otherwise."""


@dataclass(frozen=True, slots=True)
class StreamLimits:
    """The server's limits for one stream."""

    max_items: int
    max_bytes: int
    max_message_bytes: int

    @property
    def packed_bytes(self) -> int:
        """How long a message with several results may become; one alone is as long as it is."""
        return min(self.max_message_bytes, PACKED_BYTES)

    def of_caller(self) -> StreamLimits:
        """The same, with no more items than the caller may have in flight: a stream that obeys is not refused any."""
        principal = CURRENT.get()
        most = None if principal is None else principal.quotas.max_items
        return self if most is None else replace(self, max_items=max(min(self.max_items, most), 1))


@dataclass(frozen=True, slots=True)
class StreamSettings:
    """How one stream behaves. Wire enums where the wire has one; `max_age_s` in seconds, None for no limit."""

    model: str
    version: int
    policy: int
    order: int
    priority: int
    max_items: int
    max_bytes: int
    max_age_s: float | None

    @property
    def in_order(self) -> bool:
        """Whether results leave in the order of submission."""
        return self.order == pb.RESULT_ORDER_SUBMISSION

    def ready(self, max_items: int, max_message_bytes: int) -> pb.StreamReady:
        """The acknowledgement; `max_items` is the window at this moment."""
        ready = pb.StreamReady(
            order=self.order,  # type: ignore[arg-type]
            max_pending_items=max_items,
            max_message_bytes=max_message_bytes,
            policy=self.policy,  # type: ignore[arg-type]
            max_pending_bytes=self.max_bytes,
            priority=self.priority,  # type: ignore[arg-type]
        )
        if self.max_age_s is not None:
            ready.max_age.FromNanoseconds(round(self.max_age_s * 1e9))
        return ready


def settings_from_proto(config: pb.StreamConfig, max_items: int, max_bytes: int) -> StreamSettings:
    """The settings a configuration asks for, within the server's limits; `InvalidArgument` for unknown enum values."""
    _known("preset", config.preset, _PRESETS)
    policy, order, age = _PRESETS[config.preset]
    _known("policy", config.policy, (pb.FRAME_POLICY_UNSPECIFIED, *POLICIES))
    _known("order", config.order, _ORDERS)
    _known("priority", config.priority, range(pb.PRIORITY_HIGH + 1))
    if config.HasField("max_age"):
        age = _seconds(config.max_age)
    return StreamSettings(
        config.model,
        config.version,
        config.policy or policy,
        config.order or order,
        config.priority or pb.PRIORITY_NORMAL,
        min(config.max_pending_items or max_items, max_items),
        min(config.max_pending_bytes or max_bytes, max_bytes),
        age,
    )


def _known(name: str, value: int, known: object) -> None:
    if value not in known:  # type: ignore[operator]
        raise InvalidArgument(
            f"{name} {value} of the stream's configuration is unknown to this server", reason="STREAM_CONFIG_INVALID"
        )


def _seconds(duration: Duration) -> float:
    seconds = duration.seconds + duration.nanos * 1e-9
    if seconds <= 0:
        raise InvalidArgument(
            f"max_age is {seconds:g} s; give a time above 0, or leave it out", reason="STREAM_CONFIG_INVALID"
        )
    return seconds


def summary_to_proto(received: int, succeeded: int, failed: int, drops: Counter[DropReason]) -> pb.StreamSummary:
    """What became of a stream's items."""
    return pb.StreamSummary(
        received_items=received,
        succeeded_items=succeeded,
        failed_items=failed,
        dropped_items=drops.total(),
        drops={reason.name: count for reason, count in drops.items()},
    )
