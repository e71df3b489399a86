"""The rules of a stream, without network, threads or event loop.

States: opening (the configuration is sent, `ready` not yet there), open, finished (the caller sends no more), going
away (the server takes no more), ended (the server's last word is in). `StreamState` is told what the caller wants
(`add`, `cancel`, `finish`) and what the server said (`receive`, `end`, `fail`), and tells what to send
(`next_message`) and what to hand out (`take`). Whoever drives it calls it from one thread at a time.

Invariants, each with a test:
- Items that wait here or are on their way are never more than the window that `ready` stated.
- Items leave in the order they were added; those that wait together leave together, up to `pack_items` and `pack_bytes`
  a message; one that is larger alone than `pack_bytes` travels alone.
- Every item that was added gets exactly one result, unless the stream breaks: then its error is raised instead. Items
  that a server going away did not look at get the error SERVER_GOING_AWAY when the stream ends, in the order of adding.
- Results that nobody takes are bounded. A caller who only sends is told so (RESULTS_NOT_READ); where another task or
  thread takes results, the sender waits for it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from aclserve.errors import (
    AclserveError,
    AlreadyExists,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    ResourceExhausted,
    Unavailable,
)
from aclserve.v1 import model_pb2 as pb
from aclserve_client import convert, data
from aclserve_client.options import Options

_ITEM_OVERHEAD_BYTES = 16
"""Room for an item's tag and length, and for the message around it."""


class StreamState:
    """One stream's state. `reading_elsewhere` means that another task or thread than the sender takes the results."""

    def __init__(self, config: pb.StreamConfig, options: Options) -> None:
        self.ready: pb.StreamReady | None = None
        self.summary: data.StreamSummary | None = None
        self.going_away = False
        self.last_accepted_id = ""
        self.ended = False
        self.finished = False
        self.pack_items = options.pack_items
        self._config: pb.StreamConfig | None = config
        self._pack_bytes = options.pack_bytes
        self._max_message_bytes = options.max_message_bytes
        self._max_unread = options.max_unread_results
        self._outgoing: deque[tuple[pb.InferItem, int] | pb.CancelItems] = deque()  # items with a bound of their size
        self._pending: dict[str, None] = {}
        self._unread: deque[data.Result] = deque()
        self._next_position = 0
        self._error: AclserveError | None = None

    # What the caller wants.

    @property
    def window(self) -> int:
        """Items that may be pending at a time; 0 before `ready`."""
        return 0 if self.ready is None else max(1, self.ready.max_pending_items)

    @property
    def pending(self) -> int:
        """Items added and not answered."""
        return len(self._pending)

    @property
    def free(self) -> int:
        """Items that may be added now."""
        return 0 if self.unread_full else max(0, self.window - self.pending)

    def has_room(self, count: int) -> bool:
        """True when `count` items may be added at once and no result waits to be taken first."""
        return not self._unread and not self.ended and not self.going_away and self.free >= count

    @property
    def unread(self) -> int:
        return len(self._unread)

    @property
    def unread_full(self) -> bool:
        """So many results wait to be taken that nothing more should be read or sent."""
        return self.unread >= max(self._max_unread, 2 * self.window)

    def check_sendable(self) -> None:
        """Raises what keeps an item from being sent at all, now and later."""
        if self._error is not None:
            raise self._error
        if self.finished:
            raise FailedPrecondition("the stream is finished; open another one", reason="STREAM_FINISHED")
        if self.going_away:
            raise self._unlooked_at()
        if self.ended:
            raise FailedPrecondition("the stream has ended; open another one", reason="STREAM_ENDED")

    def admits(self, *, reading_elsewhere: bool) -> bool:
        """True when an item may be added now, False when that needs waiting. Raises where waiting would not help."""
        self.check_sendable()
        if self.unread_full and not reading_elsewhere:
            raise ResourceExhausted(
                f"{self.unread} results have not been read; read results() while sending, or use map()",
                reason="RESULTS_NOT_READ",
            )
        return self.free > 0

    def add(self, item: data.Item) -> str:
        """Takes one item, for which `free` must have room, and returns its id: the given one, or its position.

        Raises `AlreadyExists` for an id that is pending and `ResourceExhausted`, reason MESSAGE_TOO_LARGE, for an item
        that the server would not take; the stream goes on.
        """
        size = convert.size_bound(item)
        message = pb.InferItem(**convert.item_fields(item))
        if not message.id:
            message.id = str(self._next_position)
        if message.id in self._pending:
            raise AlreadyExists(f"item {message.id!r} is pending on this stream", reason="DUPLICATE_ITEM_ID")
        if size > self._message_limit:
            self._check_size(message)
        self._next_position += 1
        self._pending[message.id] = None
        self._outgoing.append((message, size))
        return message.id

    @property
    def _message_limit(self) -> int:
        stated = self.ready.max_message_bytes if self.ready is not None else 0
        return min(self._max_message_bytes, stated or self._max_message_bytes)

    def _check_size(self, message: pb.InferItem) -> None:
        limit, size = self._message_limit, message.ByteSize() + _ITEM_OVERHEAD_BYTES
        if size > limit:
            raise ResourceExhausted(
                f"item {message.id!r} takes {size} bytes; one message may have {limit}", reason="MESSAGE_TOO_LARGE"
            )

    def cancel(self, ids: Iterable[str]) -> None:
        """Takes items back; each is still answered. Ids that are not pending are left out."""
        self.check_sendable()
        known = [item_id for item_id in ids if item_id in self._pending]
        if known:
            self._outgoing.append(pb.CancelItems(ids=known))

    def finish(self) -> None:
        """The caller sends no more."""
        self.finished = True

    # What to send.

    @property
    def sending_is_over(self) -> bool:
        """True when no message will follow those that `next_message` has given."""
        return self.ended or self.going_away or (self.finished and not self._outgoing)

    def next_message(self) -> pb.StreamInferRequest | None:
        """The next message to send, or None while there is none."""
        if self._config is not None:
            config, self._config = self._config, None
            return pb.StreamInferRequest(config=config)
        if not self._outgoing or self.going_away or self.ended:
            return None
        head = self._outgoing[0]
        if isinstance(head, pb.CancelItems):
            self._outgoing.popleft()
            return pb.StreamInferRequest(cancel=head)
        return pb.StreamInferRequest(items=pb.ItemList(items=self._pack()))

    def _pack(self) -> list[pb.InferItem]:
        """The items at the head that fit into one message; at least one."""
        items: list[pb.InferItem] = []
        room = min(self._pack_bytes, self._message_limit)
        while self._outgoing and len(items) < self.pack_items:
            head = self._outgoing[0]
            if isinstance(head, pb.CancelItems):
                break
            item, size = head
            room -= size
            if items and room < 0:
                break
            items.append(item)
            self._outgoing.popleft()
        return items

    # What the server said.

    def receive(self, response: pb.StreamInferResponse) -> None:
        """One message of the server."""
        match response.WhichOneof("response"):
            case "ready":
                self.ready = response.ready
            case "results":
                for message in response.results.results:
                    self._pending.pop(message.id, None)
                    self._unread.append(_result(message))
            case "going_away":
                self.going_away = True
                self.last_accepted_id = response.going_away.last_accepted_id
                self._outgoing.clear()
            case "summary":
                self.summary = convert.summary_from_wire(response.summary)

    def end(self) -> None:
        """The server ended the stream with OK. What it left unanswered is answered here."""
        if self.ended:
            return
        self.ended = True
        for item_id in self._pending:
            self._unread.append(data.Result(id=item_id, error=self._unanswered(item_id)))
        self._pending.clear()
        self._outgoing.clear()

    def fail(self, error: AclserveError) -> None:
        """The stream broke, or was given up."""
        if self.ended:
            return
        self.ended = True
        self._error = error
        self._pending.clear()
        self._outgoing.clear()

    def _unanswered(self, item_id: str) -> AclserveError:
        if self.going_away:
            return self._unlooked_at()
        return Internal(f"the server ended the stream without answering item {item_id!r}", reason="ITEM_NOT_ANSWERED")

    def _unlooked_at(self) -> AclserveError:
        return Unavailable(
            "the server is shutting down and takes no further item; send it elsewhere", reason="SERVER_GOING_AWAY"
        )

    # What to hand out.

    def take(self) -> data.Result | None:
        """The next result; None while there is none, and for good when `drained`. Raises a broken stream's error."""
        if self._unread:
            return self._unread.popleft()
        if self._error is not None:
            raise self._error
        return None

    @property
    def drained(self) -> bool:
        """True when `take` will give no result any more."""
        return self.ended and not self._unread


def _result(message: pb.InferResult) -> data.Result:
    """A result; one that this version cannot read is an error of its item, not of the stream."""
    try:
        return convert.result_from_wire(message)
    except AclserveError as error:
        return data.Result(id=message.id, error=error)


def as_item(item: data.Inputs | data.Item) -> data.Item:
    """An item, given as such or as its inputs alone."""
    return item if isinstance(item, data.Item) else data.Item(item)


def group_size(pack: int, window: int) -> int:
    """How many items `map` sends at a time: a message's worth, but so that two fit into the window."""
    if pack < 1:
        raise InvalidArgument(f"pack must be 1 or more, got {pack}", reason="OPTIONS_INVALID")
    return min(pack, max(1, window // 2))
