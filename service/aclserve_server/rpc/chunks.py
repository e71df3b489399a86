"""Client streams of bytes: a header first, then data. Alike for WriteBuffer and UploadModel."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from aclserve.errors import InvalidArgument


async def read_header(requests: AsyncIterator[Any]) -> Any:
    """The header of the first message. Raises InvalidArgument, reason HEADER_MISSING."""
    first = await anext(requests, None)
    if first is None or first.WhichOneof("part") != "header":
        got = "data" if first is not None and first.WhichOneof("part") else "nothing"
        raise InvalidArgument(
            f"the stream began with {got}; its first message must hold the header", reason="HEADER_MISSING"
        )
    return first.header


def data_of(request: Any) -> bytes:
    """The bytes of a message after the first. Raises InvalidArgument, reason HEADER_REPEATED."""
    if request.WhichOneof("part") == "header":
        raise InvalidArgument("the header was sent twice; after the first message send data", reason="HEADER_REPEATED")
    data: bytes = request.data
    return data
