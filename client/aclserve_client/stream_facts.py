"""What both kinds of streams tell of themselves."""

from __future__ import annotations

from aclserve.v1 import model_pb2 as pb
from aclserve_client import convert, data
from aclserve_client.errors import seconds_of
from aclserve_client.stream_data import FramePolicy, Priority, StreamSummary
from aclserve_client.streams import StreamState


class StreamFacts:
    """The facts of a stream: what the server said that holds, and how far it is. Unspecified before it is open."""

    _state: StreamState

    @property
    def window(self) -> int:
        """Items that may be sent and not answered at a time, as the server stated last."""
        return self._state.window.items

    @property
    def window_bytes(self) -> int:
        """Bytes of inline inputs that may be sent and not answered at a time; 0 for no limit."""
        return self._state.window.size_bytes

    @property
    def _ready(self) -> pb.StreamReady:
        return self._state.ready or pb.StreamReady()

    @property
    def policy(self) -> FramePolicy:
        """The frame policy."""
        return convert.enum_from_wire(FramePolicy, self._ready.policy)

    @property
    def order(self) -> data.ResultOrder:
        """The order in which results come."""
        return convert.enum_from_wire(data.ResultOrder, self._ready.order)

    @property
    def priority(self) -> Priority:
        """The priority of items that name none."""
        return convert.enum_from_wire(Priority, self._ready.priority)

    @property
    def max_age(self) -> float | None:
        """Seconds after which an item that still waits is dropped; None for no limit."""
        return seconds_of(self._ready.max_age) if self._ready.HasField("max_age") else None

    @property
    def going_away(self) -> bool:
        """True when the server shuts down: it answers what it has accepted and takes no more.

        A stream with `resume=True` goes on taking items, for the server that it is opened on next.
        """
        return self._state.going_away

    @property
    def last_accepted_id(self) -> str:
        """When going away: the last item that the server accepted."""
        return self._state.last_accepted_id

    @property
    def resumptions(self) -> int:
        """How often the stream was opened again."""
        return self._state.resumptions

    @property
    def summary(self) -> StreamSummary | None:
        """The totals, there when `results` have ended: the server's, or with `resume=True` those of the results."""
        return self._state.summary
