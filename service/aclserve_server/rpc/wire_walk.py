"""Walks a message field by field: what all messages share, and the small ones."""

from __future__ import annotations

from aclserve.errors import AclserveError, InvalidArgument
from aclserve_server.rpc.varint import (
    GROUP,
    MAX_FIELDS,
    malformed,
    read_length,
    read_tag,
    read_varint,
    skip_field,
    skip_group,
    to_int32,
    to_int64,
    too_complex,
)
from aclserve_server.rpc.wire_times import NO_TIME, Time

MAX_TEXT_BYTES = 4096
INVALID_UTF8 = "INVALID_UTF8"

_SHOWN_BYTES = 128

Place = tuple[str, int, int]
"""A range of a buffer or a region: its id, offset and length in bytes."""

NOWHERE: Place = ("", 0, 0)


class Walk:
    """One pass over a message.

    `budget` is the number of fields that may still come, `error` what is wrong with the current item. Methods take the
    stretch of the message they read and, where submessages or groups may follow, how deep these may nest.
    """

    __slots__ = ("budget", "error", "message", "view")

    def __init__(self, message: bytes, view: memoryview) -> None:
        self.message = message
        self.view = view
        self.budget = MAX_FIELDS
        self.error: AclserveError | None = None

    def place(self, pos: int, end: int, merged: Place, depth: int, what: str) -> Place:
        """A BufferSlice or a RegionSlice, which are laid out alike, on top of an earlier one of the same field.

        `what` names its id in messages.
        """
        message = self.message
        name, offset, length = merged
        while pos < end:
            tag, pos = self.tag(pos)
            if tag == 0x0A:
                pos, stop = self.span(pos, end)
                name = self.text(pos, stop, what)
                pos = stop
            elif tag == 0x10:
                offset, pos = read_varint(message, pos)
            elif tag == 0x18:
                length, pos = read_varint(message, pos)
            else:
                pos = self.skip(pos, end, tag, depth)
        self.finish(pos, end)
        return name, offset, length

    def time(self, pos: int, end: int, merged: Time | None, depth: int) -> Time:
        """A Duration or a Timestamp on top of an earlier one of the same field."""
        time = merged or NO_TIME
        while pos < end:
            tag, pos = self.tag(pos)
            if tag == 0x08 or tag == 0x10:
                value, pos = read_varint(self.message, pos)
                time = (to_int64(value), time[1]) if tag == 0x08 else (time[0], to_int32(value))
            else:
                pos = self.skip(pos, end, tag, depth)
        self.finish(pos, end)
        return time

    def text(self, pos: int, end: int, what: str, limit: int = MAX_TEXT_BYTES, reason: str = "TEXT_TOO_LONG") -> str:
        """A string field. What is too long or not UTF-8 is refused, and returned as far as it is fit to be shown."""
        raw = self.message[pos:end]
        try:
            text = raw.decode()
        except UnicodeDecodeError:
            self.refuse(f"the {what} is not UTF-8", INVALID_UTF8)
            return raw[:_SHOWN_BYTES].decode("utf-8", "replace")
        if end - pos > limit:
            self.refuse(f"the {what} has {end - pos} bytes; the most is {limit}", reason)
            return raw[:_SHOWN_BYTES].decode("utf-8", "ignore")
        return text

    def span(self, pos: int, end: int) -> tuple[int, int]:
        """Where the contents of a delimited field begin and end."""
        length, pos = read_length(self.message, pos)
        stop = pos + length
        if stop > end:
            raise malformed("a field is longer than the message it is in")
        return pos, stop

    def skip(self, pos: int, end: int, tag: int, depth: int) -> int:
        """Past a field that is not known."""
        if tag & 7 == GROUP:
            pos, self.budget = skip_group(self.message, pos, tag, depth, self.budget)
        else:
            pos = skip_field(self.message, pos, tag)
        if pos > end:
            raise malformed("a field is longer than the message it is in")
        return pos

    def tag(self, pos: int) -> tuple[int, int]:
        """The tag of the next field, which is counted."""
        self.budget -= 1
        if self.budget < 0:
            raise too_complex()
        tag = self.message[pos]
        return (tag, pos + 1) if 7 < tag < 0x80 else read_tag(self.message, pos)

    def finish(self, pos: int, end: int) -> None:
        """Ends a message: it must end with its last field."""
        if pos != end:
            raise malformed("a field is longer than the message it is in")

    def refuse(self, message: str, reason: str) -> None:
        """Notes what is wrong with the item; the first thing counts, but what protobuf refuses before all."""
        if self.error is None or reason == INVALID_UTF8:
            self.error = InvalidArgument(message, reason=reason)
