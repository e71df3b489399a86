"""The ports of workers. On Linux the supervisor holds each one as long as it lives, without listening.

A worker that listens there (SO_REUSEPORT) finds its port free whenever it starts, and no stranger gets it in between.
The port that all share is one on which several workers listen: the system gives each new connection to one of them, by
a hash of both ends' addresses. Elsewhere ports are chosen once, and none is shared.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Sequence
from contextlib import ExitStack


class Ports:
    """`shared` is 0 where the platform shares none; `own` has each device's. `close` lets them go."""

    def __init__(self, host: str, shared: int, first: int, devices: Sequence[int]) -> None:
        """Ports 0 are chosen; `first` is device 0's. Raises OSError with words for the operator for one in use."""
        self._host = host
        self._held = ExitStack()
        self.shares = sys.platform == "linux"
        try:
            self.shared = self._hold("--port", shared) if self.shares else 0
            self.own = {device: self._hold("--worker-port", first and first + device) for device in devices}
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Idempotent."""
        self._held.close()

    def _hold(self, flag: str, port: int) -> int:
        try:
            if port:
                self._bind(port, shared=False).close()  # nobody listens there, not even one who would share
            held = self._bind(port, shared=self.shares)
            port = int(held.getsockname()[1])
        except OSError as error:
            raise OSError(
                f"{flag}: cannot listen on {self._host}:{port} ({error.strerror or error}); is it in use? 0 picks a "
                "free one"
            ) from error
        if self.shares:
            self._held.callback(held.close)
        else:
            held.close()
        return port

    def _bind(self, port: int, *, shared: bool) -> socket.socket:
        family, kind, protocol, _, address = socket.getaddrinfo(
            self._host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, kind, protocol)
        try:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if shared:
                bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            bound.bind(address)
        except BaseException:
            bound.close()
            raise
        return bound
