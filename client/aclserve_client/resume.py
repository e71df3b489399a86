"""Whether, when and how often a stream that lost its server is opened again. No network here."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping

from aclserve.errors import AclserveError, InvalidArgument, Unavailable
from aclserve_client import data
from aclserve_client.options import Deadline, Options

MAX_BACKOFF_S = 5.0

_BREAKS = frozenset({"CANCELLED", "UNKNOWN", "INTERNAL", "STREAM_NOT_READY"})
"""Reasons of errors that gRPC reports for a connection torn down under a call, with no reason of the service in them,
and the client's own for a server that does not answer a stream's configuration."""


def is_resumable(error: AclserveError) -> bool:
    """True where the server was lost, and where it says itself that another attempt may succeed."""
    return isinstance(error, Unavailable) or error.retry_delay is not None or error.reason in _BREAKS


def check_resumable(item: data.Item) -> None:
    """Raises `InvalidArgument`, reason NOT_RESUMABLE, for an item whose data is on one server only."""
    outputs = item.outputs.values() if isinstance(item.outputs, Mapping) else ()
    if any(isinstance(value, data.BufferRef) for value in (*item.inputs.values(), *outputs)):
        raise InvalidArgument(
            "a stream with resume=True takes no buffers as inputs or outputs: they are on one server only",
            reason="NOT_RESUMABLE",
        )


class Resumption:
    """Counts the attempts since the last sign of progress. `clock` is in seconds, `jitter` gives numbers in [0, 1)."""

    def __init__(
        self,
        options: Options,
        clock: Callable[[], float] = time.monotonic,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._attempts = options.resume_attempts
        self._first_backoff = options.retry_backoff
        self._opening_timeout, self._timeout = options.timeout, options.resume_timeout
        self._clock = clock
        self._jitter = jitter
        self._failures = 0
        self._deadline = Deadline(self._opening_timeout, clock)

    @property
    def failures(self) -> int:
        """Losses since the last progress."""
        return self._failures

    def progress(self) -> None:
        """The stream works: the count, the back-off and the time begin anew with the next loss."""
        self._failures = 0

    def opened(self) -> None:
        """The stream became ready; from now on it is `resume_timeout` that bounds an interruption."""
        self._opening_timeout = self._timeout

    def delay_after(self, error: AclserveError, remaining: float | None = None) -> float | None:
        """Seconds to wait before the next attempt; None when there shall be none, or no time is left for one.

        The server's own wish counts; the hand-over of a server that goes away needs no wait; otherwise each wait is up
        to twice the one before, and by chance shorter, so that many clients do not come at the same time.
        """
        self._failures += 1
        if self._failures == 1:
            self._deadline = Deadline(self._opening_timeout, self._clock)
        if error.retry_delay is not None:
            delay = error.retry_delay
        elif self._failures == 1 and error.reason == "SERVER_GOING_AWAY":
            delay = 0.0
        else:
            backoff = min(self._first_backoff * 2 ** min(self._failures - 1, 16), MAX_BACKOFF_S)
            delay = backoff * (0.5 + self._jitter() / 2)
        limits = [limit for limit in (remaining, self._deadline.remaining()) if limit is not None]
        return None if self._failures > self._attempts or any(delay >= limit for limit in limits) else delay
