"""The one table of the KServe v2 protocol's data types."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from aclserve_server.kserve import model_config_pb2


class Datatype(NamedTuple):
    """A type as inference messages name it, as NumPy does, as a model's configuration does (`DataType`), and the field
    of `InferTensorContents` for its elements, by name and number ("" and 0: there is none, data is raw only)."""

    name: str
    dtype: np.dtype[Any]
    data_type: int
    contents: str
    contents_number: int


BYTES = np.dtype(np.object_)
"""NumPy's type for BYTES, which a classified output has. The device holds no strings, so that no model has it."""

_TABLE = (
    Datatype("BOOL", np.dtype(np.bool_), model_config_pb2.TYPE_BOOL, "bool_contents", 1),
    Datatype("UINT8", np.dtype(np.uint8), model_config_pb2.TYPE_UINT8, "uint_contents", 4),
    Datatype("UINT16", np.dtype(np.uint16), model_config_pb2.TYPE_UINT16, "uint_contents", 4),
    Datatype("UINT32", np.dtype(np.uint32), model_config_pb2.TYPE_UINT32, "uint_contents", 4),
    Datatype("UINT64", np.dtype(np.uint64), model_config_pb2.TYPE_UINT64, "uint64_contents", 5),
    Datatype("INT8", np.dtype(np.int8), model_config_pb2.TYPE_INT8, "int_contents", 2),
    Datatype("INT16", np.dtype(np.int16), model_config_pb2.TYPE_INT16, "int_contents", 2),
    Datatype("INT32", np.dtype(np.int32), model_config_pb2.TYPE_INT32, "int_contents", 2),
    Datatype("INT64", np.dtype(np.int64), model_config_pb2.TYPE_INT64, "int64_contents", 3),
    Datatype("FP16", np.dtype(np.float16), model_config_pb2.TYPE_FP16, "", 0),
    Datatype("FP32", np.dtype(np.float32), model_config_pb2.TYPE_FP32, "fp32_contents", 6),
    Datatype("FP64", np.dtype(np.float64), model_config_pb2.TYPE_FP64, "fp64_contents", 7),
    Datatype("BF16", np.dtype(ml_dtypes.bfloat16), model_config_pb2.TYPE_BF16, "", 0),
    Datatype("BYTES", BYTES, model_config_pb2.TYPE_STRING, "bytes_contents", 8),
)

DATATYPES: Mapping[str, Datatype] = {row.name: row for row in _TABLE}
"""By the protocol's name; with BYTES, which is not served."""

BY_DTYPE: Mapping[np.dtype[Any], Datatype] = {row.dtype: row for row in _TABLE}
"""By NumPy's type."""

SERVED = tuple(row.name for row in _TABLE if row.dtype is not BYTES)
"""The names of the types that tensors here can have."""


def datatype_of(dtype: np.dtype[Any]) -> str:
    """The protocol's name of a type; raises KeyError for one that no tensor here has."""
    return BY_DTYPE[dtype].name


def data_type_of(dtype: np.dtype[Any]) -> int:
    """The type's number in a model's configuration; raises KeyError for one that no tensor here has."""
    return BY_DTYPE[dtype].data_type
