"""Pages of lists: page sizes and opaque tokens, alike for every List rpc.

A token is the key of the last element that was sent, so a page starts after it, whatever came or went in between.
"""

from __future__ import annotations

import base64
import binascii
import json
from bisect import bisect_right
from collections.abc import Sequence
from typing import TypeVar
from zlib import crc32

from aclserve.errors import InvalidArgument

DEFAULT_PAGE_SIZE = 100
MAX_PAGE_SIZE = 1000

K = TypeVar("K", str, int)


def page(keys: Sequence[K], page_size: int, page_token: str) -> tuple[list[K], str]:
    """The keys of one page out of the sorted keys of a list, and the token of the next page, "" on the last.

    A page size of 0 means 100, one over 1000 means 1000. Raises InvalidArgument, reason PAGE_TOKEN_INVALID, for a token
    that no list of such keys has given.
    """
    size = min(page_size or DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE)
    start = 0
    if page_token:
        last = _decode(page_token)
        if last is None or (keys and type(last) is not type(keys[0])):
            raise InvalidArgument(
                "page_token is not one that this list has given; start again without one", reason="PAGE_TOKEN_INVALID"
            )
        start = bisect_right(keys, last)  # of the same type, as was seen just now
    shown = list(keys[start : start + size])
    more = start + size < len(keys)
    return shown, _encode(shown[-1]) if more else ""


def _encode(key: str | int) -> str:
    payload = json.dumps(key).encode()
    return base64.urlsafe_b64encode(_check(payload) + payload).decode().rstrip("=")


def _decode(token: str) -> str | int | None:
    """The key in a token; None for anything that `_encode` has not made."""
    try:
        raw = base64.b64decode(token.encode() + b"=" * (-len(token) % 4), altchars=b"-_", validate=True)
        check, payload = raw[:4], raw[4:]
        key = json.loads(payload) if check == _check(payload) else None
    except (binascii.Error, ValueError):
        return None
    return key if isinstance(key, str | int) else None


def _check(payload: bytes) -> bytes:
    """Tells damaged tokens. No secret: a key gives nothing away that its owner does not know."""
    return crc32(payload).to_bytes(4, "big")
