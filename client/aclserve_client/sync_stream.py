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
from aclserve_client.rpcs import STREAM_INFER
from aclserve_client.streams import StreamState, as_item, group_size

_RECHECK_S = 1.0
"""How often a sender that waits for another thread's reading looks whether that thread is still alive."""


class Stream:
    """A stream of items to the server and of results back; use it in `with`. Thread-safe.

    At the end of the block a stream that has not ended is cancelled: call `finish` and read `results` to their end to
    have every item answered, or use `map`.
    """

    def __init__(self, caller: Caller, state: StreamState, lease_id: str, timeout: float | None) -> None:
        self._caller = caller
        self._lease_id = lease_id
        self._timeout = timeout
        self._state = state
        self._changed = threading.Condition(threading.Lock())  # guards _state, _receiving and _reader
        self._receiving = False
        self._reader: threading.Thread | None = None
        self._call: Any = None

    def __enter__(self) -> Self:
        self._caller.check_open()
        metadata = self._caller.metadata(self._lease_id)
        self._call = self._caller.callables[STREAM_INFER.path](
            self._requests(), timeout=self._timeout, metadata=metadata
        )
        limit = self._caller.options.timeout
        watchdog = None if limit is None else threading.Timer(limit, self._give_up_opening, (limit,))
        try:
            if watchdog is not None:
                watchdog.daemon = True
                watchdog.start()
            with self._changed:
                while self._state.ready is None and not self._state.ended:
                    self._advance()
                if self._state.ready is None:
                    self._state.check_sendable()
        except BaseException:
            self._close()
            raise
        finally:
            if watchdog is not None:
                watchdog.cancel()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def _close(self) -> None:
        with self._changed:
            self._state.fail(Cancelled("the stream was closed", reason="STREAM_CLOSED"))
            self._changed.notify_all()
        self._call.cancel()

    def _give_up_opening(self, limit: float) -> None:
        with self._changed:
            if self._state.ready is not None:
                return
            message = f"{self._caller.address} did not accept the stream within {limit:g} s"
            self._state.fail(DeadlineExceeded(message, reason="STREAM_NOT_READY"))
        self._call.cancel()

    @property
    def window(self) -> int:
        """Items that may be sent and not answered at a time."""
        return self._state.window

    @property
    def going_away(self) -> bool:
        """True when the server shuts down: it answers what it has accepted and takes no more."""
        return self._state.going_away

    @property
    def last_accepted_id(self) -> str:
        """When going away: the last item that the server accepted."""
        return self._state.last_accepted_id

    @property
    def summary(self) -> data.StreamSummary | None:
        """The server's totals; there when `results` have ended."""
        return self._state.summary

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
    ) -> str:
        """Sends one item, after waiting for room in the window, and returns its id (its position where none is given).

        `max_wait` bounds, in seconds, the wait for the execution to begin. Results that arrive meanwhile are kept for
        `results`, at most `Options.max_unread_results` or twice the window where nobody else reads them.
        """
        return self.send_many([data.Item(inputs, id, model, version, outputs, max_wait, capture_time_ns)])[0]

    def send_many(self, items: Iterable[data.Inputs | data.Item]) -> list[str]:
        """Sends items together, as many in one message as there is room for; returns their ids."""
        waiting = [as_item(item) for item in items]
        ids: list[str] = []
        with self._changed:
            while len(ids) < len(waiting):
                while not self._state.admits(reading_elsewhere=self._reading_elsewhere()):
                    if self._state.unread_full:
                        self._changed.wait(_RECHECK_S)
                    else:
                        self._advance()
                try:
                    for item in waiting[len(ids) : len(ids) + self._state.free]:
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
        """Holding `_changed`: receives one response, or waits until the thread that is receiving has one."""
        if self._call is None:
            raise FailedPrecondition("the stream is not open; use it in `with`", reason="STREAM_NOT_OPEN")
        if self._receiving:
            self._changed.wait()
            return
        self._receiving = True
        self._changed.release()
        response: pb.StreamInferResponse | None = None
        failure: AclserveError | None = None
        try:
            response = next(self._call, None)
        except grpc.RpcError as error:
            failure = self._caller.translate(error, self._timeout)
            failure.__cause__ = error
        finally:
            self._changed.acquire()
            self._receiving = False
            self._changed.notify_all()
        if failure is not None:
            self._state.fail(failure)
        elif response is None:
            self._state.end()
        else:
            self._state.receive(response)

    def _requests(self) -> Iterator[pb.StreamInferRequest]:
        """What to send; runs on grpc's thread."""
        while True:
            with self._changed:
                while (message := self._state.next_message()) is None:
                    if self._state.sending_is_over:
                        return
                    self._changed.wait()
            yield message


class _Results(Iterator[data.Result]):
    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    def __next__(self) -> data.Result:
        result = self._stream._next_result()
        if result is None:
            raise StopIteration
        return result
