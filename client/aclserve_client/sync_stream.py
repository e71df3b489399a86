"""The synchronous stream: `StreamState` driven by the calling threads.

grpc's own thread takes the messages to send from `_requests`. Nobody reads in the background: whoever waits (for
`ready`, for room in the window, for a result) reads the next response itself, or waits for the thread that is reading
already. So one thread that sends and reads by turns cannot block itself, and threads that send and read side by side
share the work.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from itertools import islice
from types import TracebackType
from typing import Any, Self

import grpc

from aclserve.errors import AclserveError, Cancelled, DeadlineExceeded, FailedPrecondition, Unavailable
from aclserve.v1 import model_pb2 as pb
from aclserve_client import data
from aclserve_client.calls import Caller
from aclserve_client.lease import Lease
from aclserve_client.options import Deadline, SharedMemory
from aclserve_client.rpcs import STREAM_INFER
from aclserve_client.sharing import Share
from aclserve_client.stream_data import Priority
from aclserve_client.stream_facts import StreamFacts
from aclserve_client.stream_items import as_item, group_size
from aclserve_client.streams import StreamState

_RECHECK_S = 1.0
"""How often a sender that waits for another thread's reading looks whether that thread is still alive."""


class Stream(StreamFacts):
    """A stream of items to the server and of results back; use it in `with`. Thread-safe.

    At the end of the block a stream that has not ended is cancelled: call `finish` and read `results` to their end to
    have every item answered, or use `map`. For a live source send and read in two threads: `map` reads its source up to
    a window ahead of the results.
    """

    def __init__(
        self, caller: Caller, state: StreamState, lease_id: str, timeout: float | None, sharing: SharedMemory = False
    ) -> None:
        self._caller = caller
        self._lease_id = lease_id
        self._sharing = sharing
        self._share_lease: Lease | None = None
        self._timeout = timeout
        self._deadline = Deadline(timeout)
        self._state = state
        self._changed = threading.Condition(threading.Lock())  # guards all that follows, and _state
        self._receiving = False
        self._reader: threading.Thread | None = None
        self._call: Any = None
        self._calls = 0
        self._endpoint = caller.endpoint(lease_id)
        self._watchdog: threading.Timer | None = None

    def __enter__(self) -> Self:
        self._caller.check_open()
        self._deadline = Deadline(self._timeout)
        try:
            with self._changed:
                self._open()
                while self._state.ready is None and not self._state.ended:
                    self._advance()
                if self._state.ready is None:
                    self._state.check_sendable()
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def _close(self) -> None:
        with self._changed:
            self._state.fail(Cancelled("the stream was closed", reason="STREAM_CLOSED"))
            self._changed.notify_all()
            if self._watchdog is not None:
                self._watchdog.cancel()
            if self._call is not None:
                self._call.cancel()
            lease, self._share_lease = self._share_lease, None
        if lease is not None:
            lease._end(release=True)

    def _open(self) -> None:
        """Holding `_changed`: begins a call, which must become ready within `Options.timeout`."""
        lease_id = self._lease_id
        if self._sharing:
            try:
                lease_id = self._open_share()
            except AclserveError as error:
                self._state.lose(error, self._deadline.remaining())
                return
            if self._state.ended:
                return
        self._endpoint = self._caller.endpoint(lease_id)
        self._calls += 1
        self._call = self._endpoint.callables[STREAM_INFER.path](
            self._requests(self._calls),
            timeout=self._deadline.remaining(),
            metadata=self._caller.metadata(lease_id),
        )
        limit = self._caller.options.timeout
        if limit is not None:
            self._watchdog = threading.Timer(limit, self._give_up_opening, (self._calls, limit))
            self._watchdog.daemon = True
            self._watchdog.start()

    def _open_share(self) -> str:
        """Opens the shared memory of the next call and returns its lease; "" where there is none.

        Holds `_changed`, but not while it waits.
        """
        former, self._share_lease = self._share_lease, None
        self._changed.release()
        try:
            if former is not None:
                former._end(release=False)
            lease, share = self._new_share()
        finally:
            self._changed.acquire()
        if self._state.ended:  # closed meanwhile
            if lease is not None and share is not None:
                share.close()
                lease._end(release=True)
            return ""
        self._state.attach(share)
        self._share_lease = lease
        return "" if lease is None else lease.id

    def _new_share(self) -> tuple[Lease, Share] | tuple[None, None]:
        sharing, address = self._caller.sharing, self._caller.endpoint().address
        if not sharing.wanted(self._sharing, address):
            return None, None
        lease = Lease(self._caller, None, self._opening_timeout())
        try:
            lease.__enter__()
            try:
                steps = sharing.register_for_stream(lease.id, *self._state.model)
                return lease, self._caller.run(steps, self._opening_timeout(), lease.id)
            except BaseException:
                lease._end(release=True)
                raise
        except AclserveError as error:
            sharing.refused(error, self._sharing, address)
            return None, None

    def _opening_timeout(self) -> float | None:
        limits = [limit for limit in (self._caller.options.timeout, self._deadline.remaining()) if limit is not None]
        return min(limits, default=None)

    def _give_up_opening(self, number: int, limit: float) -> None:
        with self._changed:
            if number != self._calls or not self._state.connecting:
                return
            message = f"{self._endpoint.address} did not accept the stream within {limit:g} s"
            self._state.lose(DeadlineExceeded(message, reason="STREAM_NOT_READY"), self._deadline.remaining())
            self._call.cancel()

    def send(
        self,
        inputs: data.Inputs,
        *,
        id: str = "",
        model: str = "",
        version: int = 0,
        outputs: data.OutputChoice = None,
        max_wait: float | None = None,
        capture_time_ns: int | None = None,
        priority: Priority | str = Priority.UNSPECIFIED,
    ) -> str:
        """Sends one item, after waiting for room in the window, and returns its id (its position where none is given).

        `max_wait` bounds, in seconds, the wait for the execution to begin. Results that arrive meanwhile are kept for
        `results`, at most `Options.max_unread_results` or twice the window where nobody else reads them.
        """
        item = data.Item(inputs, id, model, version, outputs, max_wait, capture_time_ns, priority)
        return self.send_many([item])[0]

    def send_many(self, items: Iterable[data.Inputs | data.Item]) -> list[str]:
        """Sends items together, as many in one message as there is room for; returns their ids."""
        waiting = [as_item(item) for item in items]
        ids: list[str] = []
        with self._changed:
            try:
                for item in waiting:
                    while not self._state.admits(item, reading_elsewhere=self._reading_elsewhere()):
                        self._changed.notify_all()
                        if self._state.unread_full:
                            self._changed.wait(_RECHECK_S)
                        else:
                            self._advance()
                    ids.append(self._state.add(item))
            finally:
                self._changed.notify_all()
        return ids

    def cancel(self, ids: Iterable[str]) -> None:
        """Takes back items that are not executing yet. Each is still answered, with the error ITEM_CANCELLED."""
        with self._changed:
            self._state.cancel(ids)
            self._changed.notify_all()

    def finish(self) -> None:
        """Sends no more. What was sent is still answered; `results` end after it, and then `summary` is there."""
        with self._changed:
            self._state.finish()
            self._changed.notify_all()

    def results(self) -> Iterator[data.Result]:
        """The results as they come, until the stream ends. A broken stream raises its error."""
        return _Results(self)

    def map(self, items: Iterable[data.Inputs | data.Item], *, pack: int = 8) -> Iterator[data.Result]:
        """Sends all items, `pack` in one message, and yields one result for each, in the stream's order; then finishes.

        Not more than a window of items is taken ahead of the results.
        """
        source, exhausted = iter(items), False
        size = self._state.pack_items = group_size(pack, self.window)
        while True:
            while not exhausted and self._has_room(size):
                group = list(islice(source, size))
                if not self._send_group(group):
                    break
                if exhausted := len(group) < size:
                    self.finish()
            result = self._next_result()
            if result is None:
                break
            yield result
        if not exhausted:
            with self._changed:
                self._state.check_sendable()

    def _send_group(self, group: list[data.Inputs | data.Item]) -> bool:
        """Sends a group of `map`; False when the server takes no more."""
        try:
            self.send_many(group)
        except Unavailable:
            if not self.going_away:
                raise
            return False
        return True

    def _has_room(self, size: int) -> bool:
        with self._changed:
            return self._state.has_room(size)

    def _next_result(self) -> data.Result | None:
        """The next result, None at the end."""
        with self._changed:
            self._reader = threading.current_thread()
            while (result := self._state.take()) is None and not self._state.drained:
                self._advance()
            self._changed.notify_all()
            return result

    def _reading_elsewhere(self) -> bool:
        reader = self._reader
        return reader is not None and reader is not threading.current_thread() and reader.is_alive()

    def _advance(self) -> None:
        """Holding `_changed`: takes one step towards the next result, or waits for the thread that is at it."""
        if self._call is None and not self._state.lost:
            raise FailedPrecondition("the stream is not open; use it in `with`", reason="STREAM_NOT_OPEN")
        if self._receiving:
            self._changed.wait()
            return
        self._receiving = True
        try:
            if self._state.lost:
                self._reopen()
            else:
                self._receive()
        finally:
            self._receiving = False
            self._changed.notify_all()

    def _receive(self) -> None:
        """Receives one response. Holds `_changed`, but not while it waits."""
        response: pb.StreamInferResponse | None = None
        failure: AclserveError | None = None
        self._changed.release()
        try:
            response = next(self._call, None)
        except grpc.RpcError as error:
            failure = self._endpoint.translate(error, self._timeout)
            failure.__cause__ = error
        finally:
            self._changed.acquire()
        if failure is not None:
            self._state.lose(failure, self._deadline.remaining())
        elif response is None:
            self._state.end(self._deadline.remaining())
        else:
            self._state.receive(response)
        if self._watchdog is not None and (response is None or not self._state.connecting):
            self._watchdog.cancel()
        if self._state.lost:
            self._caller.leave(self._endpoint)

    def _reopen(self) -> None:
        """Opens a lost stream again, after its wait. Holds `_changed`, but not while it waits."""
        self._changed.wait_for(lambda: self._state.ended, self._state.resume_after)
        if self._state.ended:
            return
        try:
            self._caller.check_open()
            self._state.reopen()
            self._open()
        except AclserveError as error:
            self._state.fail(error)

    def _requests(self, number: int) -> Iterator[pb.StreamInferRequest]:
        """What to send on a call; runs on grpc's thread."""
        while (message := self._next_message(number)) is not None:
            yield message

    def _next_message(self, number: int) -> pb.StreamInferRequest | None:
        with self._changed:
            while number == self._calls:
                message = self._state.next_message()
                if message is not None or self._state.sending_is_over:
                    return message
                self._changed.wait()
        return None


class _Results(Iterator[data.Result]):
    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    def __next__(self) -> data.Result:
        result = self._stream._next_result()
        if result is None:
            raise StopIteration
        return result
