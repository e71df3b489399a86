"""The one table of AscendCL data types and numpy types."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

from aclserve.errors import Unimplemented
from aclserve_server.acl.types import aclDataType

DTYPES: Mapping[int, np.dtype[Any]] = {
    aclDataType.ACL_FLOAT: np.dtype(np.float32),
    aclDataType.ACL_FLOAT16: np.dtype(np.float16),
    aclDataType.ACL_INT8: np.dtype(np.int8),
    aclDataType.ACL_INT32: np.dtype(np.int32),
    aclDataType.ACL_UINT8: np.dtype(np.uint8),
    aclDataType.ACL_INT16: np.dtype(np.int16),
    aclDataType.ACL_UINT16: np.dtype(np.uint16),
    aclDataType.ACL_UINT32: np.dtype(np.uint32),
    aclDataType.ACL_INT64: np.dtype(np.int64),
    aclDataType.ACL_UINT64: np.dtype(np.uint64),
    aclDataType.ACL_DOUBLE: np.dtype(np.float64),
    aclDataType.ACL_BOOL: np.dtype(np.bool_),
    aclDataType.ACL_BF16: np.dtype(ml_dtypes.bfloat16),
}
"""AscendCL's data type -> numpy type; what is missing here is refused by name."""

_ACL_TYPES: Mapping[np.dtype[Any], aclDataType] = {dtype: aclDataType(value) for value, dtype in DTYPES.items()}


def data_type_name(value: int) -> str:
    """AscendCL's name without its prefix, or the number."""
    try:
        return aclDataType(value).name.removeprefix("ACL_")
    except ValueError:
        return f"data type {value}"


def numpy_dtype(value: int, tensor: str) -> np.dtype[Any]:
    """The numpy type of a tensor's AscendCL type; `Unimplemented`, reason DATA_TYPE_UNSUPPORTED, if there is none."""
    dtype = DTYPES.get(value)
    if dtype is None:
        raise Unimplemented(
            f"tensor {tensor!r} has data type {data_type_name(value)}, which cannot be served",
            reason="DATA_TYPE_UNSUPPORTED",
            metadata={"tensor": tensor, "data_type": data_type_name(value)},
        )
    return dtype


def acl_data_type(dtype: np.dtype[Any]) -> aclDataType:
    """The AscendCL type of a numpy type; `Unimplemented`, reason DATA_TYPE_UNSUPPORTED, if there is none."""
    value = _ACL_TYPES.get(dtype)
    if value is None:
        raise Unimplemented(f"AscendCL has no data type for {dtype}", reason="DATA_TYPE_UNSUPPORTED")
    return value
