"""Typed contents: a tensor's elements as numbers of the wire, turned into the bytes that devices take."""

from __future__ import annotations

import numpy as np

from aclserve_server.kserve import inference_pb2
from aclserve_server.rpc.v2.datatypes import DATATYPES, Datatype
from aclserve_server.rpc.v2.wire_parameters import ParameterWalk, shown
from aclserve_server.rpc.varint import DELIMITED, FIXED32, FIXED64, VARINT, malformed, read_varint
from aclserve_server.rpc.wire_out import varint

Span = tuple[int, int]
Contents = dict[int, list[Span]]
"""Field number -> where its elements are in the message, one stretch after another; empty ones are left out."""

_FP32, _FP64, _BYTES = 6, 7, 8
_CHUNK_BYTES = 1 << 18

_FIELDS = {row.contents_number: row.contents for row in DATATYPES.values()}


class ContentsWalk(ParameterWalk):
    """Reads typed contents. What is wrong with them is left in `error`."""

    __slots__ = ()

    def contents(self, pos: int, end: int, found: Contents, depth: int) -> None:
        """One InferTensorContents, behind what `found` has of earlier ones of the same field."""
        message = self.message
        while pos < end:
            tag, pos = self.tag(pos)
            number, wire = tag >> 3, tag & 7
            start = pos
            if number > _BYTES:
                pos = self.skip(pos, end, tag, depth)
            elif wire == DELIMITED:
                start, pos = self.span(pos, end)
                if number in (_FP32, _FP64):
                    if (pos - start) & (3 if number == _FP32 else 7):
                        raise malformed("packed numbers end within one")
                elif number < _FP32 and start < pos:
                    check_numbers(self.view[start:pos])
                if start < pos or number == _BYTES:
                    found.setdefault(number, []).append((start, pos))
            elif wire == VARINT and number < _FP32:
                pos = read_varint(message, pos)[1]
                found.setdefault(number, []).append((start, pos))
            elif (wire == FIXED32 and number == _FP32) or (wire == FIXED64 and number == _FP64):
                pos += 4 if wire == FIXED32 else 8
                found.setdefault(number, []).append((start, pos))
            else:
                pos = self.skip(pos, end, tag, depth)
        self.finish(pos, end)

    def typed(self, name: str, row: Datatype, found: Contents) -> memoryview:
        """The tensor's bytes: a view of the message where its elements lie there as they are needed."""
        for number in found:
            if number != row.contents_number:
                expected = f"{row.name} goes into {row.contents}" if row.contents else f"{row.name} is sent raw only"
                self.refuse(
                    f"input {shown(name)} of datatype {row.name} has elements in {_FIELDS[number]}; {expected}",
                    "CONTENTS_MISMATCH",
                )
                return self.view[0:0]
        spans = found.get(row.contents_number, ())
        if len(spans) == 1:
            ((start, stop),) = spans
            raw = self.view[start:stop]
        else:
            raw = memoryview(b"".join(self.message[start:stop] for start, stop in spans))
        return raw if row.contents_number >= _FP32 or not raw.nbytes else numbers(raw, row)


def check_numbers(raw: memoryview) -> None:
    """As `check_packed`, for packed integers that may be many: raises for those of which any would not read."""
    source = np.frombuffer(raw, np.uint8)
    if source[-1] >= 0x80:
        raise malformed("a packed number is cut off")
    for start in range(0, source.size, _CHUNK_BYTES):
        two = source[start : start + _CHUNK_BYTES + 9] >= 0x80
        two = two[1:] & two[:-1]
        four = two[2:] & two[:-2]
        eight = four[4:] & four[:-4]
        if (eight[:-2] & two[8:]).any():
            raise malformed("a packed number is longer than ten bytes")


def numbers(raw: memoryview, row: Datatype) -> memoryview:
    """The bytes of packed integers, at least one, as the datatype has them: the low bits of each, as many as it has.

    `raw` has passed `check_numbers`. protobuf reads it, chunk by chunk: little memory is taken beside the result.
    """
    source = np.frombuffer(raw, np.uint8)
    kept = row.dtype if row.dtype.kind == "b" else np.dtype(f"u{row.dtype.itemsize}")
    if int(source.max()) < 0x80:
        return source.astype(kept).data.cast("B").toreadonly()
    made = np.empty(int(np.count_nonzero(source < 0x80)), kept)
    tag = bytes((row.contents_number << 3 | DELIMITED,))
    pos = count = 0
    while pos < raw.nbytes:
        stop = min(pos + _CHUNK_BYTES, raw.nbytes)
        while source[stop - 1] >= 0x80:
            stop -= 1
        chunk = inference_pb2.InferTensorContents.FromString(b"".join((tag, varint(stop - pos), raw[pos:stop])))
        values = np.array(getattr(chunk, row.contents))
        made[count : count + values.size] = values.astype(kept)
        count += values.size
        pos = stop
    return made.data.cast("B").toreadonly()
