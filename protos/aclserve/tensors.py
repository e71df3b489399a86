"""Numpy arrays and `aclserve.v1.Tensor`, and the one table of data types of the native API.

bfloat16 has no numpy type of its own: arrays are ``ml_dtypes.bfloat16`` where the package ml_dtypes is installed, and
otherwise ``uint16`` holding the bits (pass ``data_type=DATA_TYPE_BFLOAT16`` to send such an array).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from aclserve.errors import InvalidArgument
from aclserve.v1 import tensor_pb2 as pb

try:
    import ml_dtypes

    _BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
except ImportError:  # optional: the bits are still there
    _BFLOAT16 = np.dtype(np.uint16)

DTYPES: Mapping[int, np.dtype[Any]] = {
    pb.DATA_TYPE_BOOL: np.dtype(np.bool_),
    pb.DATA_TYPE_UINT8: np.dtype(np.uint8),
    pb.DATA_TYPE_UINT16: np.dtype(np.uint16),
    pb.DATA_TYPE_UINT32: np.dtype(np.uint32),
    pb.DATA_TYPE_UINT64: np.dtype(np.uint64),
    pb.DATA_TYPE_INT8: np.dtype(np.int8),
    pb.DATA_TYPE_INT16: np.dtype(np.int16),
    pb.DATA_TYPE_INT32: np.dtype(np.int32),
    pb.DATA_TYPE_INT64: np.dtype(np.int64),
    pb.DATA_TYPE_FLOAT16: np.dtype(np.float16),
    pb.DATA_TYPE_BFLOAT16: _BFLOAT16,
    pb.DATA_TYPE_FLOAT32: np.dtype(np.float32),
    pb.DATA_TYPE_FLOAT64: np.dtype(np.float64),
}
"""Data type of the wire -> numpy type."""

_DATA_TYPES: Mapping[np.dtype[Any], int] = {dtype: data_type for data_type, dtype in reversed(list(DTYPES.items()))}


def data_type_of(dtype: np.dtype[Any]) -> pb.DataType:
    """The wire's data type of a numpy type (`InvalidArgument`, reason DATA_TYPE_UNSUPPORTED, if there is none)."""
    data_type = _DATA_TYPES.get(dtype.newbyteorder("=") if dtype.byteorder == ">" else dtype)
    if data_type is None:
        known = ", ".join(sorted(str(known) for known in _DATA_TYPES))
        raise InvalidArgument(
            f"arrays of type {dtype} cannot be sent; use one of {known}", reason="DATA_TYPE_UNSUPPORTED"
        )
    return cast(pb.DataType, data_type)


def tensor_from_array(name: str, array: NDArray[Any], data_type: int | None = None) -> pb.Tensor:
    """An inline tensor with a copy of the array's elements in row-major, little-endian order.

    `data_type` overrides the one that follows from the array's type, for bfloat16 bits held in uint16.
    """
    wire_type = cast(pb.DataType, data_type) if data_type is not None else data_type_of(array.dtype)
    little = array if array.dtype.byteorder != ">" else array.astype(array.dtype.newbyteorder("<"))
    return pb.Tensor(name=name, data_type=wire_type, shape=array.shape, data=little.tobytes())


def array_from_tensor(tensor: pb.Tensor) -> NDArray[Any]:
    """The inline tensor as a read-only array over the message's bytes (no copy).

    Raises `InvalidArgument` for a tensor without inline bytes, of an unknown type, or whose bytes do not fit its shape.
    """
    dtype = DTYPES.get(tensor.data_type)
    if dtype is None:
        raise InvalidArgument(
            f"tensor {tensor.name!r} has data type {tensor.data_type}, which this version does not know",
            reason="DATA_TYPE_UNSUPPORTED",
        )
    if tensor.WhichOneof("source") not in ("data", None):
        raise InvalidArgument(
            f"tensor {tensor.name!r} has its bytes in a buffer; read the buffer instead", reason="TENSOR_NOT_INLINE"
        )
    shape = tuple(tensor.shape)
    expected = dtype.itemsize * int(np.prod(shape, dtype=np.int64))
    content = tensor.data  # reading the field copies it
    if len(content) != expected:
        raise InvalidArgument(
            f"tensor {tensor.name!r} has {len(content)} bytes; shape {list(shape)} of {dtype} needs {expected}",
            reason="TENSOR_SIZE_MISMATCH",
        )
    return np.frombuffer(content, dtype).reshape(shape)
