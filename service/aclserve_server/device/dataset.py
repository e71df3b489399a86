"""Datasets: the ordered list of buffers that a model reads or writes."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from ctypes import byref, c_int64, c_void_p
from typing import Any

import numpy as np

from aclserve.errors import InvalidArgument
from aclserve_server.acl import types
from aclserve_server.acl.library import Library
from aclserve_server.device.dtypes import acl_data_type
from aclserve_server.device.owned import Owned


class Dataset(Owned):
    """The wrappers around addresses and sizes; the memory itself belongs to others and outlives the execution.

    Needs no context. `checked_for` is the mark of the model that last found its sizes right; any change clears it.
    """

    def __init__(
        self, library: Library, handle: types.Dataset, buffers: list[types.DataBuffer], sizes: list[int]
    ) -> None:
        super().__init__("dataset")
        self.library = library
        self.checked_for: object | None = None
        self._handle = handle
        self._buffers = buffers
        self._sizes = sizes
        self._shapes: dict[int, tuple[int, ...]] = {}
        self._short: set[int] = set()

    @classmethod
    def create(cls, library: Library, buffers: Iterable[tuple[int, int]]) -> Dataset:
        """A dataset over (address, size in bytes) pairs in the model's order; (0, 0) where AscendCL is to allocate."""
        made: list[types.DataBuffer] = []
        sizes: list[int] = []
        with ExitStack() as stack:
            handle = library.aclmdlCreateDataset()
            stack.callback(library.aclmdlDestroyDataset, handle)
            for address, size_bytes in buffers:
                buffer = library.aclCreateDataBuffer(c_void_p(address or None), size_bytes)
                stack.callback(library.aclDestroyDataBuffer, buffer)
                library.aclmdlAddDatasetBuffer(handle, buffer)
                made.append(buffer)
                sizes.append(size_bytes)
            dataset = cls(library, handle, made, sizes)
            stack.pop_all()
            return dataset

    @property
    def handle(self) -> types.Dataset:
        """AscendCL's handle, borrowed."""
        self._require_open()
        return self._handle

    @property
    def sizes_bytes(self) -> tuple[int, ...]:
        """The size of every buffer, as it was last set here."""
        return tuple(self._sizes)

    @property
    def given_shapes(self) -> dict[int, tuple[int, ...]]:
        """The shapes set with `set_shape`, by index."""
        return self._shapes

    @property
    def short(self) -> frozenset[int]:
        """The entries that hold the next execution's gear and perhaps not the largest one."""
        return frozenset(self._short)

    def update(self, index: int, address: int, size_bytes: int, *, short: bool = False) -> None:
        """Point one entry somewhere else; not while an execution uses the dataset.

        `short`: there is room for the gear of the next execution only, which the caller has made sure of.
        """
        self.library.aclUpdateDataBuffer(self._buffer(index), c_void_p(address or None), size_bytes)
        self._sizes[index] = size_bytes
        (self._short.add if short else self._short.discard)(index)
        self.checked_for = None

    def set_shape(self, index: int, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
        """Give an input of unknown shape its real shape for the next execution."""
        self._buffer(index)
        dims = (c_int64 * max(len(shape), 1))(*shape)
        description = self.library.aclCreateTensorDesc(
            acl_data_type(dtype), len(shape), dims, types.aclFormat.ACL_FORMAT_ND
        )
        try:
            self.library.aclmdlSetDatasetTensorDesc(self._handle, description, index)
        finally:
            self.library.aclDestroyTensorDesc(description)
        self._shapes[index] = shape
        self.checked_for = None

    def shape(self, index: int) -> tuple[int, ...]:
        """The real shape of an output of unknown shape, after the execution."""
        self._buffer(index)
        description = self.library.aclmdlGetDatasetTensorDesc(self._handle, index)  # owned by the dataset
        if not description:
            raise InvalidArgument(
                f"entry {index} of the dataset has no shape; only an execution or set_shape gives one",
                reason="DATASET_SHAPE_UNKNOWN",
            )
        dims = []
        for axis in range(self.library.aclGetTensorDescNumDims(description)):
            dim = c_int64()
            self.library.aclGetTensorDescDimV2(description, axis, byref(dim))
            dims.append(dim.value)
        return tuple(dims)

    def take(self, index: int) -> tuple[int, int]:
        """(address, size in bytes) of an output that AscendCL allocated; the entry is (0, 0) afterwards.

        The caller owns the memory from here on (`Device.adopt`). (0, 0) if nothing was allocated. Where the call fails
        the memory is freed.
        """
        buffer = self._buffer(index)
        address = self.library.aclGetDataBufferAddr(buffer) or 0
        size_bytes = self.library.aclGetDataBufferSizeV2(buffer)
        if address:
            try:
                self.update(index, 0, 0)
            except BaseException:
                self.library.aclrtFree(types.DevicePtr(address))
                raise
        return address, size_bytes if address else 0

    def _buffer(self, index: int) -> types.DataBuffer:
        self._require_open()
        if not 0 <= index < len(self._buffers):
            raise InvalidArgument(
                f"the dataset has {len(self._buffers)} buffers, none with index {index}", reason="DATASET_INDEX_INVALID"
            )
        return self._buffers[index]

    def _release(self) -> None:
        with ExitStack() as stack:
            stack.callback(self.library.aclmdlDestroyDataset, self._handle)
            for buffer in self._buffers:
                stack.callback(self.library.aclDestroyDataBuffer, buffer)
