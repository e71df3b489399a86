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

import logging
from collections import Counter, deque
from collections.abc import Iterable

from aclserve.errors import (
    AclserveError,
    AlreadyExists,
    Cancelled,
    FailedPrecondition,
    ResourceExhausted,
)
from aclserve.v1 import model_pb2 as pb
from aclserve_client import convert, convert_streams, data
from aclserve_client.options import Options
from aclserve_client.resume import Resumption, check_resumable, is_resumable
from aclserve_client.sharing import Share, lost_region
from aclserve_client.stream_data import StreamSummary
from aclserve_client.stream_items import Entry, check_size, counted, make_entry, result_of, unanswered, unlooked_at
from aclserve_client.window import Load, Window

logger = logging.getLogger(__name__)


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
        self._outgoing: deque[Entry | pb.CancelItems] = deque()
        self._pending: dict[str, Entry] = {}
        self._added = Load()
        self._away = Load()
        self._unread: deque[data.Result] = deque()
        self._outcomes: Counter[str] = Counter()
        self._next_position = 0
        self._error: AclserveError | None = None
        self._share: Share | None = None

    # What the caller wants.

    @property
    def model(self) -> tuple[str, int]:
        """The stream's model and version."""
        return self._config.model, self._config.version

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
            raise unlooked_at()
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
        if self._share is None:
            return self.window.fits(self._added, convert.inline_bytes(item))
        if convert.size_bound(item) > self._message_limit and self._share.will_have_room(item):
            return False
        return self.window.fits(self._added, self._share.inline_bytes(item))

    def add(self, item: data.Item) -> str:
        """Takes one item, which `admits` must have admitted, and returns its id: the given one, or its position.

        Raises `AlreadyExists` for an id that is pending, `ResourceExhausted`, reason MESSAGE_TOO_LARGE, for an item
        that the server would not take, and `InvalidArgument`, reason NOT_RESUMABLE, for one in buffers on a stream that
        is to be resumed; the stream goes on.
        """
        if self._resumption is not None:
            check_resumable(item)
        item_id = item.id or str(self._next_position)
        if item_id in self._pending:
            raise AlreadyExists(f"item {item_id!r} is pending on this stream", reason="DUPLICATE_ITEM_ID")
        entry = make_entry(item, item_id, self._share)
        check_size(entry, self._message_limit)
        self._next_position += 1
        self._pending[item_id] = entry
        self._added.add(entry.inline_bytes)
        self._outgoing.append(entry)
        return item_id

    def attach(self, share: Share | None) -> None:
        """The region of the call that is opened next, which the state closes. Items in another one are moved."""
        former, self._share = self._share, share
        waiting, self._outgoing = self._outgoing, deque()
        for entry in waiting:
            moved = self._moved(entry, share) if isinstance(entry, Entry) and entry.placed is not None else entry
            if moved is not None:
                self._outgoing.append(moved)
        if former is not None:
            former.close()

    def _moved(self, entry: Entry, share: Share | None) -> Entry | None:
        """The item in another region, or all in its message; None where that is too large, which answers it."""
        assert entry.placed is not None
        anew = make_entry(entry.placed.inline(), entry.id, share)
        anew.taken_back = entry.taken_back
        entry.placed.release()
        self._added.remove(entry.inline_bytes)
        self._added.add(anew.inline_bytes)
        self._pending[entry.id] = anew
        try:
            check_size(anew, self._message_limit)
        except AclserveError as error:
            self._answer(data.Result(id=anew.id, error=error))
            return None
        return anew

    @property
    def _message_limit(self) -> int:
        stated = self.ready.max_message_bytes if self.ready is not None else 0
        return min(self._max_message_bytes, stated or self._max_message_bytes)

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
        """True when no message will follow on this call those that `next_message` has given.

        Items in shared memory are waited for: the server may have lost sight of it, and then they are sent again.
        """
        if self.ended or self.lost or self.going_away:
            return True
        return self.finished and not self._outgoing and (self._share is None or not self._share.items)

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
                    entry = self._pending.get(message.id)
                    result = result_of(message, entry)
                    if not self._sent_again(result, entry):
                        self._answer(result)
                if self._resumption is not None:
                    self._resumption.progress()
            case "window":
                self.window.set(response.window.max_pending_items, response.window.max_pending_bytes)
            case "going_away":
                self.going_away = True
                self.last_accepted_id = response.going_away.last_accepted_id
            case "summary" if self._resumption is None:
                self.summary = convert_streams.summary_from_wire(response.summary)

    def _sent_again(self, result: data.Result, entry: Entry | None) -> bool:
        """Whether an item whose shared memory the server has lost sight of leaves once more, in a message."""
        if entry is None or entry.placed is None or result.error is None or not lost_region(result.error):
            return False
        if self.going_away and self._resumption is None:
            return False
        placed, reason = entry.placed, result.error.reason
        placed.share.model = None
        if reason != "REGION_TOO_SMALL" and not placed.share.retired:
            logger.warning("the server lost the shared memory (%s); tensors travel in messages", reason)
            placed.share.retire()
        if entry.on_its_way:
            self._away.remove(entry.inline_bytes)
        if (anew := self._moved(entry, None)) is not None:
            self._outgoing.appendleft(anew)
        return True

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
        entry.release()
        self._unread.append(result)
        if self._resumption is not None:
            self._outcomes[result.dropped.reason if result.dropped else "failed" if result.error else "succeeded"] += 1

    def end(self, remaining: float | None = None) -> None:
        """The server ended the stream with OK. What it left unanswered is answered here, or by the next server."""
        if self.ended or self.lost:
            return
        if self._resumption is not None and self.going_away:
            self._lose(unlooked_at(), self._resumption, remaining)
            return
        for item_id in list(self._pending):
            self._answer(data.Result(id=item_id, error=unlooked_at() if self.going_away else unanswered(item_id)))
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
        if self._share is not None:
            self._share.retire()  # the server lost may still be at it
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
        self.attach(None)
        if self._resumption is not None and self._error is None:
            self.summary = counted(self._outcomes)

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
