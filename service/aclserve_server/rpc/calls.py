"""The inference calls that are open, of all services: when the server drains, none of them is cut off."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from aclserve.errors import Unavailable


class Departing(Protocol):
    """An open stream that can be told to end."""

    def go_away(self) -> None:
        """Takes no further item, answers those it has, and ends."""


class OpenCalls:
    """Counts unary calls and holds streams. Belongs to the event loop."""

    def __init__(self) -> None:
        self._streams: set[Departing] = set()
        self._calls = 0
        self.going_away = False
        self._refusal = going_away
        self._answered = asyncio.Event()

    def __len__(self) -> int:
        """Calls and streams that are open."""
        return self._calls + len(self._streams)

    @property
    def streams(self) -> int:
        """Streams that are open; any thread may ask."""
        return len(self._streams)

    @contextmanager
    def call(self) -> Iterator[None]:
        """A unary call. Raises Unavailable, SERVER_GOING_AWAY, when no more are taken."""
        self.check_staying()
        self._calls += 1
        try:
            yield
        finally:
            self._calls -= 1
            self._check_answered()

    @contextmanager
    def stream(self, stream: Departing) -> Iterator[None]:
        """An open stream. Raises as `call` does."""
        self.check_staying()
        self._streams.add(stream)
        try:
            yield
        finally:
            self._streams.discard(stream)
            self._check_answered()

    def check_staying(self) -> None:
        """Raises Unavailable, SERVER_GOING_AWAY, when the server drains."""
        if self.going_away:
            raise self._refusal()

    def lose(self, error: Unavailable) -> None:
        """The device is lost: no more calls are taken, and `error` tells why. Streams end by `go_away`."""
        self._refusal = lambda: error
        self.going_away = True

    def go_away(self) -> None:
        """Takes no more calls, and tells every open stream."""
        self.going_away = True
        for stream in list(self._streams):
            stream.go_away()
        self._check_answered()

    async def answered(self) -> None:
        """Returns when all that was accepted before `go_away` is answered."""
        await self._answered.wait()

    def _check_answered(self) -> None:
        if self.going_away and not len(self):
            self._answered.set()


def going_away() -> Unavailable:
    """The answer to what comes while the server drains."""
    return Unavailable(
        "the server is shutting down and takes no more items; send them elsewhere",
        reason="SERVER_GOING_AWAY",
    )
