"""A shared-memory object of this process, and who has which part of it. No network here.

A sealed object never had a place in the file system; a plain one has a name only until the server has opened it. Its
memory is gone with the last process that maps it, however that one ends. `multiprocessing.shared_memory` is not used:
its resource tracker unlinks objects of other processes.
"""

from __future__ import annotations

import bisect
import errno
import fcntl
import mmap
import os
import secrets
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aclserve.errors import FailedPrecondition

FOLDER = Path("/dev/shm")  # noqa: S108 - where shm_open of Linux keeps its objects
ALIGNMENT = 64
PROBE_BYTES = 32
_STEP_BYTES = 1 << 20


@dataclass(frozen=True)
class RegionRef:
    """A tensor's bytes in a region; `data_type` is the wire's number. `length_bytes` 0 means as long as the tensor."""

    region_id: str
    offset_bytes: int
    length_bytes: int = 0
    shape: tuple[int, ...] = ()
    data_type: int = 0


def aligned(size_bytes: int) -> int:
    """The size, rounded up so that the next part is aligned."""
    return -(-size_bytes // ALIGNMENT) * ALIGNMENT


class Arena:
    """The free parts of `size_bytes` bytes. A part is taken at the lowest offset where it fits."""

    def __init__(self, size_bytes: int) -> None:
        self._free = [(0, size_bytes // ALIGNMENT * ALIGNMENT)]  # offset and size, by offset, never touching
        self._taken: dict[int, int] = {}

    @property
    def parts(self) -> int:
        """Parts that are taken."""
        return len(self._taken)

    @property
    def largest_bytes(self) -> int:
        """The largest part that can be had."""
        return max((size for _, size in self._free), default=0)

    def take(self, size_bytes: int) -> int | None:
        """The offset of a part of 1 byte or more; None while there is no room."""
        size = aligned(size_bytes)
        for index, (offset, room) in enumerate(self._free):
            if room >= size:
                self._free[index : index + 1] = [(offset + size, room - size)] if room > size else []
                self._taken[offset] = size
                return offset
        return None

    def give_back(self, offset: int) -> None:
        """Frees the part at that offset, and joins it with its free neighbours."""
        end = offset + self._taken.pop(offset)
        index = bisect.bisect(self._free, (offset, 0))
        last = index
        if index < len(self._free) and self._free[index][0] == end:
            end, last = end + self._free[index][1], index + 1
        if index and sum(self._free[index - 1]) == offset:
            index -= 1
            offset = self._free[index][0]
        self._free[index:last] = [(offset, end - offset)]


class SharedObject:
    """A shared-memory object made by this process, and mapped. Readable for this user only. `key` is what the server
    opens it by.

    A `sealed` one (memfd_create) can never become shorter, so the server may use it where it lies; it has no place in
    the file system, and the server finds it through this process. Other ones are POSIX shared memory.
    Its memory is reserved step by step as it is needed: on a full /dev/shm, writing unreserved memory would kill the
    process. Raises `FailedPrecondition`, reason SHARED_MEMORY_UNAVAILABLE, where there can be none.
    """

    def __init__(self, size_bytes: int, *, sealed: bool = False) -> None:
        name = f"aclserve-{secrets.token_hex(16)}"
        self.key = f"/{name}"
        self.size_bytes = size_bytes
        self._path: Path | None = None
        self._reserved = 0
        self._file = -1
        try:
            if not FOLDER.is_dir():  # another kind of system, which may lack what follows
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
            if sealed:
                self._file = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
                self.key = f"memfd:{os.getpid()}:{self._file}:{name}"
            else:
                self._path = FOLDER / name
                flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
                self._file = os.open(self._path, flags, 0o600)
            os.ftruncate(self._file, size_bytes)
            if sealed:
                os.fchmod(self._file, 0o600)
                fcntl.fcntl(self._file, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL)
            os.posix_fallocate(self._file, 0, min(size_bytes, mmap.PAGESIZE))
            self._map = mmap.mmap(self._file, size_bytes)
        except OSError as error:
            self.unlink()
            self._close_file()
            raise FailedPrecondition(
                f"no shared memory of {size_bytes} bytes can be made here: {error.strerror}; give {FOLDER} more room "
                "(for a container: --shm-size), lower Options.shared_memory_bytes, or set shared_memory to False",
                reason="SHARED_MEMORY_UNAVAILABLE",
            ) from error

    def probe(self) -> bytes:
        """Writes random bytes at the beginning, and returns them."""
        probe = secrets.token_bytes(min(PROBE_BYTES, self.size_bytes))
        self._map[: len(probe)] = probe
        return probe

    def reserve(self, end: int) -> bool:
        """Makes sure that there is memory behind all bytes before `end`; False where there is none left."""
        if end <= self._reserved:
            return True
        end = min(self.size_bytes, -(-end // _STEP_BYTES) * _STEP_BYTES)
        try:
            os.posix_fallocate(self._file, self._reserved, end - self._reserved)
        except OSError:
            return False
        self._reserved = end
        return True

    def view(self, offset: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        """An array over the object's bytes. It keeps the mapping; do not hold on to it."""
        return np.ndarray(shape, dtype, self._map, offset)

    def unlink(self) -> None:
        """Takes the object's name away, if it has one; once is enough."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)

    def close(self) -> None:
        """Gives the memory up, and the name if there still is one. Mapped until the last view is gone."""
        self.unlink()
        self._close_file()
        with suppress(BufferError):  # a view is in use in another thread; the mapping goes with it
            self._map.close()

    def _close_file(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


class Part:
    """A part of a shared object that one item has, until its answer."""

    def __init__(self, holder: SharedParts, offset: int, size_bytes: int) -> None:
        self.offset = offset
        self.size_bytes = size_bytes
        self._holder: SharedParts | None = holder

    def release(self, *, settled: bool = True) -> None:
        """Gives the part up; once is enough. Not `settled`: the server may still use it, so nobody gets it any more."""
        holder, self._holder = self._holder, None
        if holder is not None:
            holder.release(self.offset, settled=settled)


class SharedParts:
    """A shared object handed out in parts. Thread-safe. After `retire` it closes with its last part."""

    def __init__(self, memory: SharedObject) -> None:
        self.memory = memory
        self._lock = threading.Lock()  # guards all that follows
        self._arena = Arena(memory.size_bytes)
        self.retired = False  # nothing is handed out any more
        self._lost = 0

    @property
    def parts(self) -> int:
        """Parts that items have."""
        return self._arena.parts - self._lost

    def has_room(self, size_bytes: int) -> bool:
        """True when a part of that size could be taken now."""
        with self._lock:
            return not self.retired and self._arena.largest_bytes >= aligned(size_bytes)

    def will_have_room(self, size_bytes: int) -> bool:
        """True when it could be taken when others are given back, but not now."""
        with self._lock:
            capacity = self.memory.size_bytes // ALIGNMENT * ALIGNMENT
            return not self.retired and bool(self.parts) and self._arena.largest_bytes < aligned(size_bytes) <= capacity

    def take(self, size_bytes: int) -> Part | None:
        """A part; None when there is no room."""
        with self._lock:
            offset = None if self.retired else self._arena.take(size_bytes)
            if offset is None:
                return None
            if not self.memory.reserve(offset + size_bytes):
                self._arena.give_back(offset)
                return None
            return Part(self, offset, size_bytes)

    def release(self, offset: int, *, settled: bool) -> None:
        """Takes a part back."""
        with self._lock:
            if settled:
                self._arena.give_back(offset)
            else:
                self._lost += 1
                self.retired = True
            self._close_if_idle()

    def retire(self) -> None:
        """Nothing is handed out any more."""
        with self._lock:
            self.retired = True
            self._close_if_idle()

    def _close_if_idle(self) -> None:
        if self.retired and not self.parts:
            self.memory.close()
