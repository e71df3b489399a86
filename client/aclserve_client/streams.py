"""The rules of a stream, without network, threads or event loop.

States: opening (the configuration is sent, `ready` not yet there), open, finished (the caller sends no more), going
away (the server takes no more), lost (to be opened again; only with `resumption`), ended (the last word is in).
`StreamState` is told what the caller wants (`add`, `cancel`, `finish`) and what the server said (`receive`, `end`,
`lose`), and tells what to send (`next_message`) and what to hand out (`take`). Whoever drives it calls it from one
thread at a time, opens the stream again when `resume_after` says so, and calls `reopen` before that. `remaining` is
what is left of the stream's own time, in seconds, None for no limit.

Invariants, each with a test:
- Items that wait here or are on their way are never more than the window, in items and in bytes, when another one is
  added; and items on their way never more than the window when another one leaves, also after the window shrank. One
  item is always admitted, however large.
- Items leave in the order they were added; those that wait together leave together, up to `pack_items` and `pack_bytes`
  a message; one that is larger alone than `pack_bytes` travels alone.
- Every item that was added gets exactly one result, unless the stream breaks: then its error is raised instead. Items
  that a server going away did not look at get the error SERVER_GOING_AWAY when the stream ends, in the order of adding.
- With `resumption`, items that were not answered when the stream was lost leave again, in the order of adding, on the
  stream that is opened next, but for those that were taken back: they are answered here. An item may so run twice on
  servers; it still gets one result.
- Results that nobody takes are bounded. A caller who only sends is told so (RESULTS_NOT_READ); where another task or
  thread takes results, the sender waits for it.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass

from aclserve.errors import (
    AclserveError,
    AlreadyExists,
    Cancelled,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    ResourceExhausted,
    Unavailable,
)
from aclserve.v1 import model_pb2 as pb
from aclserve_client import convert, data
from aclserve_client.options import Options
from aclserve_client.resume import Resumption, check_resumable, is_resumable
from aclserve_client.stream_data import StreamSummary
from aclserve_client.window import Load, Window

_ITEM_OVERHEAD_BYTES = 16
"""Room for an item's tag and length, and for the message around it."""


@dataclass(slots=True, eq=False)
class _Entry:
    """An item that is not answered. `message` is there as long as it may leave, and not above `size_bytes`."""

    id: str
    message: pb.InferItem | None
    size_bytes: int
    inline_bytes: int
    on_its_way: bool = False
    taken_back: bool = False


class StreamState:
    """One stream's state. `reading_elsewhere` means that another task or thread than the sender takes the results."""

    def __init__(self, config: pb.StreamConfig, options: Options, resumption: Resumption | None = None) -> None:
        self.ready: pb.StreamReady | None = None
        self.summary: StreamSummary | None = None
        self.going_away = False
        self.last_accepted_id = ""
        self.ended = False
        self.finished = False
        self.pack_items = options.pack_items
        self.window = Window()
        self.resume_after: float | None = None
        self.resumptions = 0
        self._config = config
        self._resumption = resumption
        self.connecting = True
        self._configured = False
        self._pack_bytes = options.pack_bytes
        self._max_message_bytes = options.max_message_bytes
        self._max_unread = options.max_unread_results
        self._outgoing: deque[_Entry | pb.CancelItems] = deque()
        self._pending: dict[str, _Entry] = {}
        self._added = Load()
        self._away = Load()
        self._unread: deque[data.Result] = deque()
        self._outcomes: Counter[str] = Counter()
        self._next_position = 0
        self._error: AclserveError | None = None

    # What the caller wants.

    @property
    def pending(self) -> int:
        """Items added and not answered."""
        return len(self._pending)

    @property
    def free(self) -> int:
        """Items that may be added now, as far as their number is concerned."""
        return 0 if self.unread_full else max(0, self.window.limit - self.pending)

    def has_room(self, count: int) -> bool:
        """True when about `count` items may be added at once and no result waits to be taken first."""
        if self._unread or self.ended or (self.going_away and self._resumption is None):
            return False
        return self.free >= min(count, max(1, self.window.limit // 2))

    @property
    def unread(self) -> int:
        return len(self._unread)

    @property
    def unread_full(self) -> bool:
        """So many results wait to be taken that nothing more should be read or sent."""
        return self.unread >= max(self._max_unread, 2 * self.window.items)

    def check_sendable(self) -> None:
        """Raises what keeps an item from being sent at all, now and later."""
        if self._error is not None:
            raise self._error
        if self.finished:
            raise FailedPrecondition("the stream is finished; open another one", reason="STREAM_FINISHED")
        if self.going_away and (self.ended or self._resumption is None):
            raise self._unlooked_at()
        if self.ended:
            raise FailedPrecondition("the stream has ended; open another one", reason="STREAM_ENDED")

    def admits(self, item: data.Item, *, reading_elsewhere: bool) -> bool:
        """True when an item may be added now, False when that needs waiting. Raises where waiting would not help."""
        self.check_sendable()
        if self.unread_full:
            if not reading_elsewhere:
                raise ResourceExhausted(
                    f"{self.unread} results have not been read; read results() while sending, or use map()",
                    reason="RESULTS_NOT_READ",
                )
            return False
        return self.window.fits(self._added, convert.inline_bytes(item))

    def add(self, item: data.Item) -> str:
        """Takes one item, which `admits` must have admitted, and returns its id: the given one, or its position.

        Raises `AlreadyExists` for an id that is pending, `ResourceExhausted`, reason MESSAGE_TOO_LARGE, for an item
        that the server would not take, and `InvalidArgument`, reason NOT_RESUMABLE, for one in buffers on a stream that
        is to be resumed; the stream goes on.
        """
        if self._resumption is not None:
            check_resumable(item)
        size = convert.size_bound(item)
        message = pb.InferItem(**convert.item_fields(item))
        if not message.id:
            message.id = str(self._next_position)
        if message.id in self._pending:
            raise AlreadyExists(f"item {message.id!r} is pending on this stream", reason="DUPLICATE_ITEM_ID")
        if size > self._message_limit:
            self._check_size(message)
        self._next_position += 1
        entry = self._pending[message.id] = _Entry(message.id, message, size, convert.inline_bytes(item))
        self._added.add(entry.inline_bytes)
        self._outgoing.append(entry)
        return entry.id

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
        for item_id in known:
            self._pending[item_id].taken_back = True
        if known:
            self._outgoing.append(pb.CancelItems(ids=known))

    def finish(self) -> None:
        """The caller sends no more."""
        self.finished = True

    # What to send.

    @property
    def lost(self) -> bool:
        """True while there is no stream to a server and another one is to be opened."""
        return self.resume_after is not None

    @property
    def sending_is_over(self) -> bool:
        """True when no message will follow on this call those that `next_message` has given."""
        return self.ended or self.lost or self.going_away or (self.finished and not self._outgoing)

    def next_message(self) -> pb.StreamInferRequest | None:
        """The next message to send, or None while there is none."""
        if self.ended or self.lost or self.going_away:
            return None
        if not self._configured:
            self._configured = True
            return pb.StreamInferRequest(config=self._config)
        if not self._outgoing or self.connecting:
            return None
        head = self._outgoing[0]
        if isinstance(head, pb.CancelItems):
            self._outgoing.popleft()
            return pb.StreamInferRequest(cancel=head)
        items = self._pack()
        return pb.StreamInferRequest(items=pb.ItemList(items=items)) if items else None

    def _pack(self) -> list[pb.InferItem]:
        """The items at the head that fit into the window and into one message."""
        items: list[pb.InferItem] = []
        room = min(self._pack_bytes, self._message_limit)
        while self._outgoing and len(items) < self.pack_items:
            entry = self._outgoing[0]
            if isinstance(entry, pb.CancelItems):
                break
            room -= entry.size_bytes
            if (items and room < 0) or not self.window.fits(self._away, entry.inline_bytes):
                break
            self._outgoing.popleft()
            assert entry.message is not None
            items.append(entry.message)
            entry.on_its_way = True
            self._away.add(entry.inline_bytes)
            if self._resumption is None:
                entry.message = None
        return items

    # What the server said.

    def receive(self, response: pb.StreamInferResponse) -> None:
        """One message of the server."""
        match response.WhichOneof("response"):
            case "ready":
                self._open(response.ready)
            case "results":
                for message in response.results.results:
                    self._answer(_result(message))
                if self._resumption is not None:
                    self._resumption.progress()
            case "window":
                self.window.set(response.window.max_pending_items, response.window.max_pending_bytes)
            case "going_away":
                self.going_away = True
                self.last_accepted_id = response.going_away.last_accepted_id
            case "summary" if self._resumption is None:
                self.summary = convert.summary_from_wire(response.summary)

    def _open(self, ready: pb.StreamReady) -> None:
        if self.ready is not None:
            self.resumptions += 1
        self.ready = ready
        self.connecting = False
        self.window.drops = ready.policy > pb.FRAME_POLICY_WAIT
        self.window.set(ready.max_pending_items, ready.max_pending_bytes)
        if self._resumption is not None:
            self._resumption.opened()
            if not self._pending:
                self._resumption.progress()

    def _answer(self, result: data.Result) -> None:
        """Hands out the one result of an item; an answer to an item that is not pending is none."""
        entry = self._pending.pop(result.id, None)
        if entry is None:
            return
        self._added.remove(entry.inline_bytes)
        if entry.on_its_way:
            self._away.remove(entry.inline_bytes)
        self._unread.append(result)
        if self._resumption is not None:
            self._outcomes[result.dropped.reason if result.dropped else "failed" if result.error else "succeeded"] += 1

    def end(self, remaining: float | None = None) -> None:
        """The server ended the stream with OK. What it left unanswered is answered here, or by the next server."""
        if self.ended or self.lost:
            return
        if self._resumption is not None and self.going_away:
            self._lose(self._unlooked_at(), self._resumption, remaining)
            return
        for item_id in list(self._pending):
            self._answer(data.Result(id=item_id, error=self._unanswered(item_id)))
        self._conclude()

    def lose(self, error: AclserveError, remaining: float | None = None) -> None:
        """The stream broke. It is to be opened again where that was asked for and may help; otherwise it fails."""
        if self.ended or self.lost:
            return
        if self._resumption is not None and is_resumable(error):
            self._lose(error, self._resumption, remaining)
        else:
            self.fail(error)

    def _lose(self, error: AclserveError, resumption: Resumption, remaining: float | None) -> None:
        self.connecting, self._configured = True, False
        self._away.clear()
        self._outgoing.clear()
        for entry in list(self._pending.values()):
            entry.on_its_way = False
            if entry.taken_back:
                taken_back = Cancelled("the item was taken back", reason="ITEM_CANCELLED")
                self._answer(data.Result(id=entry.id, error=taken_back))
            else:
                self._outgoing.append(entry)
        if self.finished and not self._pending:
            self._conclude()
            return
        self.resume_after = resumption.delay_after(error, remaining)
        if self.resume_after is None:
            error.add_note(f"the stream was lost {resumption.failures} times in a row and is given up")
            self.fail(error)

    def reopen(self) -> None:
        """A lost stream is opened again now."""
        self.resume_after = None
        self.going_away = False

    def fail(self, error: AclserveError) -> None:
        """The stream broke for good, or was given up."""
        if self.ended:
            return
        self._error = error
        self._pending.clear()
        self._conclude()

    def _conclude(self) -> None:
        self.ended = True
        self.resume_after = None
        self._outgoing.clear()
        if self._resumption is not None and self._error is None:
            self.summary = self._counted()

    def _counted(self) -> StreamSummary:
        """The totals of all servers, as far as their answers arrived."""
        drops = {reason: count for reason, count in self._outcomes.items() if reason not in ("failed", "succeeded")}
        succeeded, failed = self._outcomes["succeeded"], self._outcomes["failed"]
        return StreamSummary(self._outcomes.total(), succeeded, failed, sum(drops.values()), drops)

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
