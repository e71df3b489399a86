"""The file of a unix domain socket: taken over from a dead server, never from a live one, and removed at the end.

gRPC binds and listens; it would silently take the place of whoever listens there already.
"""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

MAX_PATH_BYTES = 107
"""What the system's address of a unix domain socket holds."""

_PROBE_S = 2.0


def claim(path: str) -> Path:
    """The path to bind, absolute and free: a socket that nobody listens on is removed.

    Raises OSError with words for the operator: a server listens there, or something else is there.
    """
    place = Path(path).absolute()
    if len(os.fsencode(place)) > MAX_PATH_BYTES:
        raise OSError(
            f"--unix-socket: {place} has {len(os.fsencode(place))} bytes, expected at most {MAX_PATH_BYTES}: "
            "choose a shorter path"
        )
    if not place.parent.is_dir():
        raise OSError(f"--unix-socket: there is no folder {place.parent}; make it first")
    try:
        mode = place.lstat().st_mode
    except FileNotFoundError:
        return place
    if not stat.S_ISSOCK(mode):
        raise OSError(f"--unix-socket: {place} is there already and is no socket; choose another path")
    if _is_live(place):
        raise OSError(f"--unix-socket: a server listens on {place} already; stop it or choose another path")
    place.unlink()
    return place


@contextmanager
def owner_only() -> Iterator[None]:
    """While this lasts, what the process makes is for its own user only (mode 0600)."""
    before = os.umask(0o177)
    try:
        yield
    finally:
        os.umask(before)


class SocketFile:
    """A socket's file that was just bound; `remove` removes it, unless another server has put its own there."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._identity = _identity(path)

    def remove(self) -> None:
        """Idempotent."""
        with suppress(FileNotFoundError):
            if _identity(self.path) == self._identity:
                self.path.unlink()


def _identity(path: Path) -> tuple[int, ...]:
    """Which file it is: a number may be given again at once, but not together with the time."""
    found = path.lstat()
    return found.st_dev, found.st_ino, found.st_mtime_ns


def _is_live(path: Path) -> bool:
    """Whether somebody listens. Who cannot be asked counts as live."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(_PROBE_S)
        try:
            probe.connect(os.fspath(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError:
            return True
    return True
