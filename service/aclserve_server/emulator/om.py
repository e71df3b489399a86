"""Recognising an offline model (.om) by its header, to refuse it with a message that helps."""

from __future__ import annotations

import struct

_HEADER_BYTES = 256
_VERSION_2 = 0x20000000


def describe_om(content: bytes | memoryview) -> str | None:
    """Why an OM cannot run here, naming the model and its platform; None when the content is not an OM."""
    if len(content) < 4 or bytes(content[:4]) != b"IMOD":
        return None
    if len(content) < _HEADER_BYTES:
        return f"an OM file cut short: {len(content)} bytes, its header alone has {_HEADER_BYTES}"
    header_bytes, version = struct.unpack_from("<II", content, 4)
    if header_bytes != _HEADER_BYTES:
        return None
    name = _text(content, 84, 32)
    platform = _text(content, 160 if version >= _VERSION_2 else 156, 20)
    (short_length,) = struct.unpack_from("<I", content, 76)
    (long_length,) = struct.unpack_from("<Q", content, 184)
    length = (long_length if version >= _VERSION_2 else 0) or short_length
    what = f"OM model {name!r}" if name else "an OM model without a name"
    where = f" for platform {platform!r}" if platform else ""
    if length != len(content) - _HEADER_BYTES:
        found = len(content) - _HEADER_BYTES
        return f"{what}{where} is damaged: its header says {length} bytes of payload, the file has {found}"
    return (
        f"{what}{where} holds machine code for an Ascend NPU, which the emulated device cannot run: "
        "serve it on the NPU, or give the emulated device the ONNX file it was made from"
    )


def _text(content: bytes | memoryview, offset: int, length: int) -> str:
    raw = bytes(content[offset : offset + length])
    return raw.split(b"\0", 1)[0].decode("utf-8", "replace")
