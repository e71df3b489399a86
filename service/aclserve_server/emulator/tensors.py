"""Tensor descriptions, data buffers and datasets: the host-side objects that say what a model works on."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, field

from aclserve_server.acl.types import aclDataType, aclFormat

ITEM_BYTES: dict[int, int] = {
    aclDataType.ACL_FLOAT: 4,
    aclDataType.ACL_FLOAT16: 2,
    aclDataType.ACL_INT8: 1,
    aclDataType.ACL_INT32: 4,
    aclDataType.ACL_UINT8: 1,
    aclDataType.ACL_INT16: 2,
    aclDataType.ACL_UINT16: 2,
    aclDataType.ACL_UINT32: 4,
    aclDataType.ACL_INT64: 8,
    aclDataType.ACL_UINT64: 8,
    aclDataType.ACL_DOUBLE: 8,
    aclDataType.ACL_BOOL: 1,
    aclDataType.ACL_COMPLEX64: 8,
    aclDataType.ACL_COMPLEX128: 16,
    aclDataType.ACL_COMPLEX32: 4,
    aclDataType.ACL_BF16: 2,
}


def volume(shape: tuple[int, ...]) -> int:
    """The number of elements of a shape without unknown dims."""
    count = 1
    for size in shape:
        count *= size
    return count


@dataclass(eq=False, slots=True)
class TensorDesc:
    """Data type, format and dims of one tensor. An `owned` one belongs to a dataset; its handle cannot destroy it."""

    data_type: int
    dims: tuple[int, ...]
    format: int = int(aclFormat.ACL_FORMAT_ND)
    name: bytes = b""
    ranges: tuple[tuple[int, int], ...] = ()
    owned: bool = False
    name_buffer: ctypes.Array[ctypes.c_char] | None = None

    def size_bytes(self) -> int:
        """Bytes of the tensor, 0 while a dim is unknown."""
        return 0 if any(size < 0 for size in self.dims) else volume(self.dims) * ITEM_BYTES.get(self.data_type, 0)


@dataclass(eq=False, slots=True)
class DataBuffer:
    """An address and a size. It never owns the memory."""

    address: int | None
    size_bytes: int
    handle: int = 0


@dataclass(eq=False, slots=True)
class Dataset:
    """The buffers of one execution in model order, and the real shapes of the dynamic ones by index."""

    buffers: list[DataBuffer] = field(default_factory=list)
    descs: dict[int, TensorDesc] = field(default_factory=dict)
    desc_handles: dict[int, int] = field(default_factory=dict)
    gear: tuple[int, ...] | None = None
    handle: int = 0
