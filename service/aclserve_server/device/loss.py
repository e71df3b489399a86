"""The loss of the device: the one fact that no later call can mend, kept where every room below the RPCs sees it.

A device is lost when any call answers with a code of the category device-fatal, or when a call or task does not end.
AscendCL promises nothing for such a context: the process answers what it has, and another one takes its place.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from aclserve.errors import Unavailable
from aclserve_server.acl.errors import AclError
from aclserve_server.device.faults import LOST_RETRY_S, classify, is_device_fatal

_log = logging.getLogger(__name__)


class Loss:
    """Whether the device is lost, and why. It is lost once and for all; any thread may tell or ask.

    `error` is the answer to everything that wants the device from then on. `hung` tells that a call into AscendCL may
    never return, so that not even a teardown can be tried.
    """

    def __init__(self) -> None:
        self.error: Unavailable | None = None
        self.hung = False
        self._listener: Callable[[], object] | None = None
        self._lock = threading.Lock()  # guards that one tells it, and that the listener is told once

    def listen(self, listener: Callable[[], object]) -> None:
        """Has `listener` called once, in whichever thread tells of the loss; at once where it has happened."""
        with self._lock:
            self._listener = listener
            lost = self.error is not None
        if lost:
            listener()

    def note(self, error: AclError) -> None:
        """A call has failed: the device is lost if its code says so."""
        if is_device_fatal(error) and self.error is None:
            told = classify(error)
            assert isinstance(told, Unavailable)
            _log.error("the device is lost: %s", error)
            self._tell(told, hung=False)

    def hang(self, what: str, bound_s: float) -> None:
        """`what` has not ended within `bound_s` seconds."""
        _log.error("the device is lost: %s has not ended within %g s", what, bound_s)
        error = Unavailable(
            f"the device has not answered for {bound_s:g} s; the server is being replaced, try again",
            reason="DEVICE_LOST",
            metadata={"device_timeout_s": f"{bound_s:g}"},
            retry_delay=LOST_RETRY_S,
        )
        self._tell(error, hung=True)

    def _tell(self, error: Unavailable, *, hung: bool) -> None:
        with self._lock:
            self.hung = self.hung or hung
            if self.error is not None:
                return
            self.error = error
            listener = self._listener
        if listener is not None:
            listener()
