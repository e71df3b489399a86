"""Shared-memory objects of clients, by the names that clients give them.

Two kinds of names: `/NAME` is what shm_open takes; `memfd:PID:FD:NAME` is a file without a place (memfd_create) that
process PID holds as FD. Of the latter, those that are sealed against shrinking may be mapped: no client can take away
what the server touches. An object that has a place can be shortened by its client at any time, which kills whoever
touches the rest of a mapping (SIGBUS), so those are only read and written by calls.

A `memfd` is told by its name, of 128 random bits at least: whoever knows it was told by the one who made it.
"""

from __future__ import annotations

import fcntl
import logging
import mmap
import os
import re
import stat
from dataclasses import dataclass

from aclserve.errors import AclserveError, FailedPrecondition, InvalidArgument, NotFound, OutOfRange

log = logging.getLogger(__name__)

MAX_KEY_BYTES = 255

_FOLDER = "/dev/shm"  # noqa: S108 (where shm_open keeps objects)
_FLAGS = os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK
_RESERVED = "triton_python_backend_shm_region_"
_MEMFD = re.compile(r"memfd:([1-9][0-9]{0,9}):([0-9]{1,9}):([A-Za-z0-9_-]*[0-9a-f]{32})")


@dataclass(slots=True)
class SharedObject:
    """An open object. `sealed`: it never becomes shorter. The descriptor is the owner's to close."""

    descriptor: int
    size_bytes: int
    sealed: bool


def open_object(key: str) -> SharedObject:
    """Opens an object by its name.

    Raises InvalidArgument (REGION_KEY_INVALID) and NotFound (REGION_NOT_VISIBLE). Why one cannot be opened is not
    told: a client learns nothing of what others have.
    """
    if key.startswith("memfd:"):
        return _open_memfd(key)
    return _open(f"{_FOLDER}/{_plain_key(key)}", key, os.O_NOFOLLOW)


def check_object(shared: SharedObject, key: str, offset_bytes: int, size_bytes: int, probe: bytes) -> None:
    """The range must lie inside the object, and begin with the probe.

    Raises OutOfRange (RANGE_OUTSIDE_REGION) and FailedPrecondition (REGION_DIFFERS).
    """
    if offset_bytes + size_bytes > shared.size_bytes:
        raise OutOfRange(
            f"{size_bytes} bytes from offset {offset_bytes} were asked for; the object has {shared.size_bytes} bytes",
            reason="RANGE_OUTSIDE_REGION",
            metadata={
                "offset_bytes": offset_bytes,
                "length_bytes": size_bytes,
                "object_bytes": shared.size_bytes,
            },
        )
    if probe and os.pread(shared.descriptor, len(probe), offset_bytes) != probe:
        raise FailedPrecondition(
            f"the object {key!r} that the server sees does not begin with the probe: it is another one than "
            "yours; do client and server see the same shared memory?",
            reason="REGION_DIFFERS",
        )


def _plain_key(key: str) -> str:
    """The object's name without its slash."""
    plain = key.removeprefix("/")
    if plain in ("", ".", "..") or "/" in plain or "\0" in plain or len(os.fsencode(plain)) > MAX_KEY_BYTES:
        raise InvalidArgument(
            f"{key[:MAX_KEY_BYTES]!r} is no shared-memory object's name; expected what shm_open takes: a '/' and a "
            f"name of at most {MAX_KEY_BYTES} bytes without a '/'",
            reason="REGION_KEY_INVALID",
        )
    if plain.startswith(_RESERVED):
        raise InvalidArgument(
            f"objects whose name begins with {_RESERVED!r} are a server's own; choose another name",
            reason="REGION_KEY_INVALID",
        )
    return plain


def _open_memfd(key: str) -> SharedObject:
    match = _MEMFD.fullmatch(key)
    if match is None or len(match[3]) > MAX_KEY_BYTES:
        raise InvalidArgument(
            f"{key[:MAX_KEY_BYTES]!r} names no memfd; expected 'memfd:PID:FD:NAME', with the name given to "
            "memfd_create, which ends in 32 random hexadecimal digits",
            reason="REGION_KEY_INVALID",
        )
    process, number, name = match.groups()
    path, target = f"/proc/{process}/fd/{number}", f"/memfd:{name} (deleted)"
    if _link(path) != target:  # opening something else might do something
        raise _invisible(key)
    shared = _open(path, key, 0)
    if _link(f"/proc/self/fd/{shared.descriptor}") != target:
        os.close(shared.descriptor)
        raise _invisible(key)
    return shared


def _open(path: str, key: str, flags: int) -> SharedObject:
    try:
        descriptor = os.open(path, _FLAGS | flags)
    except OSError as error:
        log.debug("shared-memory object %r cannot be opened: %s", key, error)
        raise _invisible(key) from None
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise _invisible(key)
    return SharedObject(descriptor, status.st_size, _is_sealed(descriptor))


def _is_sealed(descriptor: int) -> bool:
    """Whether nobody can shorten it, and touching it cannot fail for lack of huge pages."""
    try:
        seals = fcntl.fcntl(descriptor, fcntl.F_GET_SEALS)
    except OSError:  # not that kind of file
        return False
    return bool(seals & fcntl.F_SEAL_SHRINK) and os.fstatvfs(descriptor).f_bsize == mmap.PAGESIZE


def _link(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""


def _invisible(key: str) -> AclserveError:
    return NotFound(
        f"the server sees no shared-memory object {key[: MAX_KEY_BYTES + 1]!r} that it may open; it must run on the "
        "client's host, see the client's shared memory (containers: with --ipc=host or alike), and be allowed to read "
        "and write the object",
        reason="REGION_NOT_VISIBLE",
    )
