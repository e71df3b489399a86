"""POSIX shared-memory objects for tests, as a client has them: made, mapped, and removed at the end."""

from __future__ import annotations

import mmap
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FOLDER = Path("/dev/shm")


class SharedObject:
    """An object that this process has mapped. `key` is its name with the slash."""

    def __init__(self, content: bytes, *, mode: int = 0o600) -> None:
        self.key = f"/aclserve-test-{uuid.uuid4().hex}"
        self.path = FOLDER / self.key[1:]
        self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL, mode)
        os.ftruncate(self._descriptor, len(content))
        self.bytes = mmap.mmap(self._descriptor, len(content))
        self.bytes[:] = content

    def truncate(self, size: int) -> None:
        """Gives it another length; what is cut off must not be touched any more."""
        os.ftruncate(self._descriptor, size)

    @property
    def size(self) -> int:
        return os.fstat(self._descriptor).st_size

    def read(self, offset: int, size: int) -> bytes:
        """What is in it now, without the mapping."""
        return os.pread(self._descriptor, size, offset)

    def close(self) -> None:
        self.bytes.close()
        os.close(self._descriptor)
        self.path.unlink(missing_ok=True)


@contextmanager
def shared_object(content: bytes) -> Iterator[SharedObject]:
    made = SharedObject(content)
    try:
        yield made
    finally:
        made.close()


def open_descriptors() -> set[str]:
    """What this process has open in the folder of shared-memory objects, by descriptor and target."""
    found = set()
    for link in Path("/proc/self/fd").iterdir():
        try:
            target = os.readlink(link)
        except OSError:
            continue
        if target.startswith(f"{FOLDER}/aclserve-test-"):
            found.add(f"{link.name} {target}")
    return found
