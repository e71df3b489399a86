"""Duration and Timestamp in the hot messages: seconds and nanoseconds, and their bytes."""

from __future__ import annotations

import re

from aclserve_server.rpc.varint import encode_varint, read_varint, to_int32, to_int64

Time = tuple[int, int]
"""Seconds and nanoseconds, as on the wire."""

NO_TIME: Time = (0, 0)

EPOCH = b"\x08\x00"
"""A Timestamp of zero with something in it: empty bytes would look like no Timestamp."""

is_plain = re.compile(rb"(?:\x08[\x80-\xff]{0,9}[\x00-\x7f])?(?:\x10[\x80-\xff]{0,9}[\x00-\x7f])?").fullmatch
"""Whether bytes are a time written plainly, as every encoder does: each field at most once, in order, nothing else."""

_MAX_TIMEOUTS = 1024
_timeouts: dict[bytes, float] = {}


def plain_seconds(raw: bytes) -> float | None:
    """A Duration in seconds, or None where it is not written plainly. Few clients use many, so they are remembered."""
    seconds = _timeouts.get(raw)
    if seconds is None and is_plain(raw):
        seconds = seconds_of(_plain(raw))
        if len(_timeouts) >= _MAX_TIMEOUTS:
            _timeouts.clear()
        _timeouts[raw] = seconds
    return seconds


def seconds_of(time: Time) -> float:
    """A Duration in seconds."""
    return time[0] + time[1] * 1e-9


def capture_bytes(time: Time) -> bytes:
    """A Timestamp as the contents of its field; never empty."""
    seconds, nanos = time
    encoded = b"\x08" + encode_varint(seconds & 0xFFFFFFFFFFFFFFFF) if seconds else b""
    if nanos:
        encoded += b"\x10" + encode_varint(nanos & 0xFFFFFFFFFFFFFFFF)
    return encoded or EPOCH


def unix_ns(raw: bytes) -> int:
    """A Timestamp written plainly, in nanoseconds of Unix time."""
    seconds, nanos = _plain(raw)
    return seconds * 10**9 + nanos


def _plain(raw: bytes) -> Time:
    whole = nanos = pos = 0
    if raw[:1] == b"\x08":
        whole, pos = read_varint(raw, 1)
    if pos < len(raw):
        nanos, pos = read_varint(raw, pos + 1)
    return to_int64(whole), to_int32(nanos)
