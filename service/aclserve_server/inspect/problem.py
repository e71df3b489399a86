"""The error of the readers, and how counts are written."""

from __future__ import annotations


class InspectError(ValueError):
    """A file that is not what it should be: says what was found and what was expected, never the file's path."""


def counted(count: int, noun: str) -> str:
    """ "1 byte", "2 bytes"."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
