"""The report thread: where AscendCL's callbacks arrive.

AscendCL does not call from a thread of its own. A stream is subscribed for one thread, work and a callback are
submitted, and that thread, looping in aclrtProcessReport, runs the callback once the work before it is past. Inside a
callback no AscendCL call is allowed, so ours only notes its token, in C: the callback function is the `append` of a
deque. Python's callbacks run on the same thread after aclrtProcessReport has returned, in the order their tokens
came, and may call AscendCL. A callback carries no status: it says that the work is past, not that it succeeded.

Invariants: a callback runs at most once, and exactly once unless its stream is unsubscribed after the bounded wait
for it; `launch` either raises, and the callback never runs, or returns, and it will. No subscription, no polling.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack

from aclserve.errors import FailedPrecondition
from aclserve_server.acl.codes import lookup
from aclserve_server.acl.errors import AclError
from aclserve_server.acl.types import aclrtCallback, aclrtCallbackBlockType
from aclserve_server.device.device import Device
from aclserve_server.device.owned import Owned
from aclserve_server.device.streams import Stream

_log = logging.getLogger(__name__)

_TIMED_OUT = frozenset({507012, 100036})
_NOT_SUBSCRIBED = frozenset({107012, 100035})
_BETWEEN_SUBSCRIPTIONS_S = 0.001
_AFTER_ERROR_S = 0.1
_NO_BLOCK = aclrtCallbackBlockType.ACL_CALLBACK_NO_BLOCK

Callback = Callable[[], None]


class ReportThread(Owned):
    """Runs callbacks behind the work of any number of streams of one device.

    `poll_ms` is how long one wait in AscendCL lasts: the longest that `close` waits for it, and perhaps a subscription
    that follows the end of all others; and how often an idle device wakes the processor. `drain_s` bounds the wait of
    `unsubscribe` for callbacks under way.
    """

    def __init__(self, device: Device, poll_ms: int = 500, drain_s: float = 5.0) -> None:
        super().__init__("report thread")
        self.device = device
        self._poll_ms = poll_ms
        self._drain_s = drain_s
        self._fired: deque[int] = deque()
        self._function = aclrtCallback(self._fired.append)
        self._launch = device.library.aclrtLaunchCallback
        self._tokens = itertools.count(1)
        self._pending: dict[int, tuple[Callback, Stream]] = {}
        self._streams: list[Stream] = []
        self._lock = threading.Lock()  # guards _streams together with _subscribed
        self._subscribed = threading.Event()  # also set to end the thread
        self._ran = threading.Event()  # set after callbacks ran; unsubscribe waits for it
        self._stopping = threading.Event()
        self._started = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="aclserve-report", daemon=True)
        device.children.add("report", self)

    def start(self) -> None:
        """Start the thread and wait until it has the device's context."""
        self._require_open()
        self._thread.start()
        self._started.wait()
        if self._failure is not None:
            raise self._failure

    def under_way(self) -> list[tuple[int, int]]:
        """For the watchdog: the callbacks that have not returned, and how patient to be with each. Any thread."""
        return [(token, 1) for token in self._pending.copy()]

    def subscribe(self, stream: Stream) -> None:
        """Have the stream's callbacks run here. Once per stream, from another thread than this one."""
        thread_id = self._thread.ident
        self._require_open()
        if thread_id is None:
            raise FailedPrecondition("the report thread was not started", reason="REPORT_THREAD_NOT_STARTED")
        self.device.library.aclrtSubscribeReport(thread_id, stream.handle)
        with self._lock:
            self._streams.append(stream)
            self._subscribed.set()

    def launch(self, stream: Stream, callback: Callback) -> None:
        """Have `callback` run on the report thread once all work submitted to the stream so far is past.

        Later work of the stream does not wait for it. The stream must be subscribed here.
        """
        token = next(self._tokens)
        self._pending[token] = (callback, stream)
        try:
            self._launch(self._function, token, _NO_BLOCK, stream.handle)
        except BaseException:
            del self._pending[token]
            raise

    def unsubscribe(self, stream: Stream) -> None:
        """Wait (bounded) for the stream's callbacks under way, then end its subscription; a second time is nothing.

        Callbacks that do not come in time, as after the loss of the device, are dropped with a warning.
        """
        with self._lock:
            if stream not in self._streams:
                return
        self._drain(stream)
        with self._lock:
            self._streams.remove(stream)
            if not self._streams and not self._stopping.is_set():
                self._subscribed.clear()
        if not stream.closed:
            self.device.library.aclrtUnSubscribeReport(self._thread.ident, stream.handle)

    def _drain(self, stream: Stream) -> None:
        if threading.current_thread() is not self._thread:
            deadline = time.monotonic() + self._drain_s
            while self._pending_of(stream) and (rest := deadline - time.monotonic()) > 0:
                self._ran.clear()
                if self._pending_of(stream):
                    self._ran.wait(rest)
        lost = self._pending_of(stream)
        for token in lost:
            self._pending.pop(token, None)
        if lost:
            _log.warning("%d callbacks of a stream did not come before it was unsubscribed", len(lost))

    def _pending_of(self, stream: Stream) -> list[int]:
        return [token for token, (_, owner) in self._pending.copy().items() if owner is stream]

    def _release(self) -> None:
        self.device.children.discard("report", self)
        with ExitStack() as stack:
            stack.callback(self._stop)
            for stream in list(self._streams):
                stack.callback(self.unsubscribe, stream)

    def _stop(self) -> None:
        self._stopping.set()
        self._subscribed.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        try:
            self.device.bind_thread()
        except BaseException as error:
            self._failure = error
            return
        finally:
            self._started.set()
        process = self.device.library.raw("aclrtProcessReport")
        while True:
            self._subscribed.wait()
            if self._stopping.is_set():
                return
            code = process(self._poll_ms)
            if self._fired:
                self._run_callbacks()
            elif code and code not in _TIMED_OUT:
                self._pause(code)

    def _run_callbacks(self) -> None:
        fired, pending = self._fired, self._pending
        while fired:
            token = fired.popleft()
            entry = pending.get(token)
            if entry is None:  # dropped by unsubscribe
                continue
            try:
                entry[0]()
            except Exception:
                _log.exception("a callback behind device work failed")
            del entry
            pending.pop(token, None)  # only now: unsubscribe waits for callbacks that are still running
        self._ran.set()

    def _pause(self, code: int) -> None:
        """After an unexpected answer, wait rather than spin; between subscriptions, "not subscribed" is expected."""
        if code in _NOT_SUBSCRIBED:
            self._stopping.wait(_BETWEEN_SUBSCRIPTIONS_S)
        else:
            _log.error("aclrtProcessReport answered %d (%s)", code, lookup(code).name)
            self.device.loss.note(AclError("aclrtProcessReport", code))
            self._stopping.wait(_AFTER_ERROR_S)
