"""Tensor formats: which layouts clients see, and how NC1HWC0 becomes NCHW.

NC1HWC0 is the AI Core's private layout: channels in blocks of C0, the last block padded. Axis 0 stays outermost, so
the rows of a batch stay contiguous. A description may give the dims as N,C1,H,W,C0 (then all C1*C0 channels are
shown, because how many of them are padding is not known) or as N,C,H,W (then C0 follows from the size and the padding
is cut).
"""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aclserve.errors import Unimplemented
from aclserve_server.acl.types import aclFormat

_PLAIN = frozenset(
    {
        aclFormat.ACL_FORMAT_NCHW,
        aclFormat.ACL_FORMAT_NHWC,
        aclFormat.ACL_FORMAT_ND,
        aclFormat.ACL_FORMAT_HWCN,
        aclFormat.ACL_FORMAT_NDHWC,
        aclFormat.ACL_FORMAT_NCDHW,
        aclFormat.ACL_FORMAT_NC,
        aclFormat.ACL_FORMAT_NCL,
    }
)


def format_name(value: int) -> str:
    """AscendCL's name without its prefix, or the number."""
    try:
        name = aclFormat(value).name
    except ValueError:
        return f"format {value}"
    return name.removeprefix("ACL_").removeprefix("FORMAT_")


def plain_format(value: int, tensor: str) -> str:
    """The name of a row-major format; `Unimplemented`, reason FORMAT_UNSUPPORTED, for a private one.

    A tensor that declares no format counts as ND.
    """
    if value == aclFormat.ACL_FORMAT_UNDEFINED:
        return "ND"
    if value in _PLAIN:
        return format_name(value)
    raise _unsupported(value, tensor)


def output_format(value: int, tensor: str) -> str:
    """The format an output is shown in: as `plain_format`, and NCHW for NC1HWC0."""
    return "NCHW" if value == aclFormat.ACL_FORMAT_NC1HWC0 else plain_format(value, tensor)


def channel_block(dims: tuple[int, ...], size_bytes: int, itemsize: int, tensor: str) -> int:
    """C0 of an NC1HWC0 tensor with these dims and this largest size in bytes.

    Where the dims do not hold it, it is the cube unit's: 32 for one-byte types, 16 for wider ones or, by the size, 8.
    """
    if len(dims) == 5 and dims[4] > 0:
        return dims[4]
    if len(dims) == 4 and all(dim > 0 for dim in dims):
        for block in (32, 16) if itemsize == 1 else (16, 8):
            if prod(storage_shape(dims, block)) * itemsize == size_bytes:
                return block
    raise Unimplemented(
        f"output {tensor!r} has format NC1HWC0 with dims {list(dims)} and {size_bytes} bytes, "
        "whose channel block is unknown",
        reason="FORMAT_UNSUPPORTED",
        metadata={"tensor": tensor, "format": "NC1HWC0"},
    )


def visible_shape(dims: tuple[int, ...], block: int) -> tuple[int, ...]:
    """The shape clients see: NCHW where `block` (C0) is set and the dims are N,C1,H,W,C0; otherwise the dims."""
    if block and len(dims) == 5:
        return (dims[0], dims[1] * block, dims[2], dims[3])
    return dims


def storage_shape(shape: tuple[int, ...], block: int) -> tuple[int, ...]:
    """How an output of visible `shape` lies in memory: N,C1,H,W,C0 where `block` (C0) is set; otherwise the shape."""
    if not block:
        return shape
    batch, channels, height, width = shape
    return (batch, -(-channels // block), height, width, block)


def nchw_from_nc1hwc0(data: memoryview, dtype: np.dtype[Any], shape: tuple[int, ...], block: int) -> NDArray[Any]:
    """A new NCHW array of `shape` from the leading bytes of an NC1HWC0 output with channel block `block`."""
    stored = storage_shape(shape, block)
    array = np.frombuffer(data, dtype, count=prod(stored)).reshape(stored)
    batch, channels, height, width = shape
    return np.ascontiguousarray(array.transpose(0, 1, 4, 2, 3).reshape(batch, -1, height, width)[:, :channels])


def _unsupported(value: int, tensor: str) -> Unimplemented:
    return Unimplemented(
        f"tensor {tensor!r} has the private format {format_name(value)}, which cannot be served; "
        "convert the model with plain inputs and outputs",
        reason="FORMAT_UNSUPPORTED",
        metadata={"tensor": tensor, "format": format_name(value)},
    )
