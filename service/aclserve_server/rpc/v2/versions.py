"""Versions of models as this protocol writes them: decimal text, empty where the server is to choose."""

from __future__ import annotations

import re

from aclserve.errors import InvalidArgument

_VERSION = re.compile(r"0{0,9}[1-9][0-9]{0,17}", re.ASCII)


def version_from_text(text: str) -> int:
    """The version, 0 for "". Raises InvalidArgument, VERSION_INVALID."""
    if not text:
        return 0
    if not _VERSION.fullmatch(text):
        raise InvalidArgument(
            f"got model version {text[:100]!r}, expected a whole number from 1, or nothing for the version that the "
            "server chooses",
            reason="VERSION_INVALID",
        )
    return int(text)


def version_to_text(version: int) -> str:
    """The version, "" for 0."""
    return str(version) if version else ""
