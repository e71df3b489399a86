"""The machine as the checks see it: a root of the file system, an environment, a user. Everything can be another's.

Reads only, and little at a time. What must be asked of the system itself comes as a function.
"""

from __future__ import annotations

import os
import platform
import pwd
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

MAX_READ_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Space:
    """A file system's size and what is free of it for this user."""

    total_bytes: int
    free_bytes: int


def measure(path: Path) -> Space:
    """The space of the file system that a path is on. OSError where there is none."""
    facts = os.statvfs(path)
    return Space(facts.f_blocks * facts.f_frsize, facts.f_bavail * facts.f_frsize)


@dataclass(frozen=True)
class Host:
    """A machine. Paths that the checks name are below `root`; those of the environment are as they stand there.

    `access` is `os.access` (by the effective user), `space` is `measure`; `user` is for the text of a fix.
    """

    environ: Mapping[str, str]
    root: Path = Path("/")
    user: str = ""
    machine: str = platform.machine()
    access: Callable[[Path, int], bool] = os.access
    space: Callable[[Path], Space] = measure

    def at(self, path: str | Path) -> Path:
        """Where an absolute path of the machine is; any other path as it stands."""
        place = Path(path)
        if not place.is_absolute() or place.is_relative_to(self.root):
            return place
        return self.root / place.relative_to("/")

    def named(self, place: Path) -> str:
        """The path that the machine itself has for a place."""
        return f"/{place.relative_to(self.root)}" if place.is_relative_to(self.root) else str(place)

    def text(self, path: str | Path) -> str | None:
        """The beginning of a file as text, or None where it cannot be read."""
        try:
            with self.at(path).open("rb") as file:
                return file.read(MAX_READ_BYTES).decode("utf-8", "replace")
        except OSError:
            return None

    def names(self, folder: str | Path) -> list[str]:
        """What a folder holds, in order; nothing where it cannot be read."""
        try:
            return sorted(os.listdir(self.at(folder)))
        except OSError:
            return []

    def exists(self, path: str | Path) -> bool:
        try:
            return self.at(path).exists()
        except OSError:
            return False

    @property
    def in_container(self) -> bool:
        """Whether this is a container, as far as its usual marks tell."""
        return self.exists("/.dockerenv") or self.exists("/run/.containerenv") or "KUBERNETES_PORT" in self.environ


def this_host(environ: Mapping[str, str]) -> Host:
    """The machine that this process runs on, as its user sees it."""

    def access(path: Path, mode: int) -> bool:
        return os.access(path, mode, effective_ids=os.access in os.supports_effective_ids)

    try:
        user = pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:  # a container's user without a name
        user = str(os.geteuid())
    return Host(environ, user=user, access=access)


def fields(text: str | None) -> Iterator[tuple[str, str]]:
    """The `key=value` lines of an info file, as the driver and CANN write them."""
    for line in (text or "").splitlines():
        key, mark, value = line.partition("=")
        if mark:
            yield key.strip(), value.strip().strip('"')


def field(text: str | None, *keys: str) -> str:
    """The value of the first of the keys that is there, whatever its case; "" without any."""
    found = {key.lower(): value for key, value in fields(text)}
    return next((found[key.lower()] for key in keys if found.get(key.lower())), "")
