"""The elements of protobuf's wire format, over the bytes of one message.

A reader takes the message and a position and returns the value and the position behind it. It knows the end of the
message, not that of the enclosing field: the caller compares afterwards. Limits are those of protobuf's own C parser:
five bytes for a tag or a length, ten for a value (bits past the 64th are dropped), a depth of 100. What breaks them
raises `InvalidArgument`, reason MALFORMED_MESSAGE; a read at the message's end raises IndexError, which the scanner
turns into the same.
"""

from __future__ import annotations

import re

from aclserve.errors import InvalidArgument

VARINT, FIXED64, DELIMITED, GROUP, END_GROUP, FIXED32 = range(6)

MAX_DEPTH = 100
MAX_FIELDS = 65_536

_MASK = (1 << 64) - 1
_ten_continued = re.compile(rb"[\x80-\xff]{10}").search


def malformed(what: str) -> InvalidArgument:
    """The error of a message that is not protobuf."""
    return InvalidArgument(f"the message cannot be read: {what}", reason="MALFORMED_MESSAGE")


def too_complex() -> InvalidArgument:
    """The error of a message with more fields than any client has a use for."""
    return InvalidArgument(
        f"the message has more than {MAX_FIELDS} fields; send fewer items in one message", reason="MESSAGE_TOO_COMPLEX"
    )


def read_varint(message: bytes, pos: int) -> tuple[int, int]:
    """An unsigned 64-bit value."""
    byte = message[pos]
    if byte < 0x80:
        return byte, pos + 1
    value = byte & 0x7F
    shift = 7
    while shift < 70:
        pos += 1
        byte = message[pos]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & _MASK, pos + 1
        shift += 7
    raise malformed("a number is longer than ten bytes")


def read_length(message: bytes, pos: int) -> tuple[int, int]:
    """The length of a delimited field; at most five bytes."""
    byte = message[pos]
    if byte < 0x80:
        return byte, pos + 1
    value = byte & 0x7F
    shift = 7
    while shift < 35:
        pos += 1
        byte = message[pos]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, pos + 1
        shift += 7
    raise malformed("a tag or a length is longer than five bytes")


def read_tag(message: bytes, pos: int) -> tuple[int, int]:
    """A tag: field number and wire type, together below 2**32."""
    tag, pos = read_length(message, pos)
    if tag >> 32 or not tag >> 3:
        raise malformed("a field has an impossible number")
    return tag, pos


def to_int64(value: int) -> int:
    """The two's complement reading of an unsigned 64-bit value."""
    return value - (1 << 64) if value >> 63 else value


def to_int32(value: int) -> int:
    """The lower half of a value, two's complement: what an int32 or an enum keeps of it."""
    value &= 0xFFFFFFFF
    return value - (1 << 32) if value >> 31 else value


def check_packed(message: bytes, pos: int, end: int) -> None:
    """Raises for packed values, at least one, of which any would not read; for those too many to be read one by one."""
    if message[end - 1] >= 0x80 or _ten_continued(message, pos, end) is not None:
        raise malformed("a packed number is cut off or longer than ten bytes")


def skip_field(message: bytes, pos: int, tag: int) -> int:
    """The position behind an unknown field, not a group, whose tag was just read."""
    wire = tag & 7
    if wire == VARINT:
        return read_varint(message, pos)[1]
    if wire == DELIMITED:
        length, pos = read_length(message, pos)
        return pos + length
    if wire == FIXED32:
        return pos + 4
    if wire == FIXED64:
        return pos + 8
    raise malformed("a field has an impossible wire type")


def skip_group(message: bytes, pos: int, tag: int, depth: int, budget: int) -> tuple[int, int]:
    """The position behind an unknown group whose tag was just read, and what is left of `budget`, a number of fields.

    `depth` is how deep groups may nest here. Within groups even field number 0 passes, as in protobuf's C parser.
    """
    open_groups = [tag >> 3]
    while budget > 0:
        if len(open_groups) > depth:
            raise malformed(f"fields nest more than {MAX_DEPTH} deep")
        budget -= 1
        tag, pos = read_length(message, pos)
        wire = tag & 7
        if tag >> 32:
            raise malformed("a field has an impossible number")
        if wire == GROUP:
            open_groups.append(tag >> 3)
        elif wire == END_GROUP:
            if open_groups.pop() != tag >> 3:
                raise malformed("a group ends that did not begin")
            if not open_groups:
                return pos, budget
        else:
            pos = skip_field(message, pos, tag)
    raise too_complex()


def encode_varint(value: int) -> bytes:
    """The shortest encoding of a value of 0 or more."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
