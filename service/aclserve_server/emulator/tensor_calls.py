"""Data buffers, tensor descriptions and datasets."""

from __future__ import annotations

import ctypes
from typing import Any

from aclserve_server.acl.types import ACL_MAX_DIM_CNT
from aclserve_server.emulator.calls import Calls, need, refuse
from aclserve_server.emulator.tensors import DataBuffer, Dataset, TensorDesc, volume

_UNKNOWN = -1


class TensorCalls(Calls):
    """acl/acl_base.h: aclCreateDataBuffer, aclCreateTensorDesc; acl/acl_mdl.h: aclmdlCreateDataset."""

    # ---- data buffers

    def aclCreateDataBuffer(self, address: int | None, size: int) -> int:
        buffer = DataBuffer(address, size)
        buffer.handle = self.machine.handles.add(buffer)
        return buffer.handle

    def aclDestroyDataBuffer(self, handle: int | None) -> None:
        buffer = self.machine.buffer(handle)
        self.machine.handles.remove(buffer.handle)
        buffer.handle = 0

    def aclUpdateDataBuffer(self, handle: int | None, address: int | None, size: int) -> None:
        buffer = self.machine.buffer(handle)
        buffer.address, buffer.size_bytes = address, size

    def aclGetDataBufferAddr(self, handle: int | None) -> int | None:
        buffer = self.machine.handles.get(handle, DataBuffer)
        return buffer.address if buffer is not None else None

    def aclGetDataBufferSize(self, handle: int | None) -> int:
        return self.aclGetDataBufferSizeV2(handle) & 0xFFFFFFFF

    def aclGetDataBufferSizeV2(self, handle: int | None) -> int:
        buffer = self.machine.handles.get(handle, DataBuffer)
        return buffer.size_bytes if buffer is not None else 0

    # ---- datasets

    def aclmdlCreateDataset(self) -> int:
        dataset = Dataset()
        dataset.handle = self.machine.handles.add(dataset)
        return dataset.handle

    def aclmdlDestroyDataset(self, handle: int | None) -> None:
        dataset = self.machine.dataset(handle)
        for desc_handle in dataset.desc_handles.values():
            self.machine.handles.remove(desc_handle)
        self.machine.handles.remove(dataset.handle)

    def aclmdlAddDatasetBuffer(self, handle: int | None, buffer: int | None) -> None:
        self.machine.dataset(handle).buffers.append(self.machine.buffer(buffer))

    def aclmdlGetDatasetNumBuffers(self, handle: int | None) -> int:
        dataset = self.machine.handles.get(handle, Dataset)
        return len(dataset.buffers) if dataset is not None else 0

    def aclmdlGetDatasetBuffer(self, handle: int | None, index: int) -> int | None:
        dataset = self.machine.handles.get(handle, Dataset)
        if dataset is None or index >= len(dataset.buffers):
            return None
        return dataset.buffers[index].handle or None

    def aclmdlSetDatasetTensorDesc(self, handle: int | None, desc: int | None, index: int) -> None:
        dataset = self.machine.dataset(handle)
        if index >= len(dataset.buffers):
            raise refuse(f"index {index} is outside the dataset's {len(dataset.buffers)} buffers")
        if desc is None:
            dataset.descs.pop(index, None)
            stale = dataset.desc_handles.pop(index, None)
            if stale is not None:
                self.machine.handles.remove(stale)
            return
        given = self.machine.tensor_desc(desc)
        own = dataset.descs.get(index)
        if own is None:
            dataset.descs[index] = TensorDesc(given.data_type, given.dims, given.format, owned=True)
        else:
            own.data_type, own.dims, own.format = given.data_type, given.dims, given.format

    def aclmdlGetDatasetTensorDesc(self, handle: int | None, index: int) -> int | None:
        dataset = self.machine.handles.get(handle, Dataset)
        desc = dataset.descs.get(index) if dataset is not None else None
        if dataset is None or desc is None:
            return None
        found = dataset.desc_handles.get(index)
        if found is None:
            found = dataset.desc_handles[index] = self.machine.handles.add(desc)
        return found

    # ---- tensor descriptions

    def aclCreateTensorDesc(self, data_type: int, count: int, dims: Any, layout: int) -> int | None:
        shape = _read_dims(count, dims)
        return self.machine.handles.add(TensorDesc(data_type, shape, layout)) if shape is not None else None

    def aclDestroyTensorDesc(self, handle: int | None) -> None:
        desc = self.machine.handles.get(handle, TensorDesc)
        if desc is not None and not desc.owned and handle is not None:
            self.machine.handles.remove(handle)

    def aclSetTensorShape(self, handle: int | None, count: int, dims: Any) -> None:
        shape = _read_dims(count, dims)
        if shape is None:
            raise refuse(f"{count} dims, or a NULL list of dims")
        self.machine.tensor_desc(handle).dims = shape

    def aclSetTensorShapeRange(self, handle: int | None, count: int, ranges: Any) -> None:
        desc = self.machine.tensor_desc(handle)
        if count and not ranges:
            raise refuse("dimsRange is NULL")
        desc.ranges = tuple((ranges[index][0], ranges[index][1]) for index in range(count))

    def aclSetTensorFormat(self, handle: int | None, layout: int) -> None:
        self.machine.tensor_desc(handle).format = layout

    def aclSetTensorDescName(self, handle: int | None, name: bytes | None) -> None:
        desc = self.machine.handles.get(handle, TensorDesc)
        if desc is not None:
            desc.name, desc.name_buffer = name or b"", None

    def aclGetTensorDescName(self, handle: int | None) -> int | None:
        desc = self.machine.handles.get(handle, TensorDesc)
        if desc is None:
            return None
        if desc.name_buffer is None:
            desc.name_buffer = ctypes.create_string_buffer(desc.name)
        return ctypes.addressof(desc.name_buffer)

    def aclGetTensorDescType(self, handle: int | None) -> int:
        desc = self.machine.handles.get(handle, TensorDesc)
        return desc.data_type if desc is not None else _UNKNOWN

    def aclGetTensorDescFormat(self, handle: int | None) -> int:
        desc = self.machine.handles.get(handle, TensorDesc)
        return desc.format if desc is not None else _UNKNOWN

    def aclGetTensorDescSize(self, handle: int | None) -> int:
        desc = self.machine.handles.get(handle, TensorDesc)
        return desc.size_bytes() if desc is not None else 0

    def aclGetTensorDescElementCount(self, handle: int | None) -> int:
        desc = self.machine.handles.get(handle, TensorDesc)
        return volume(desc.dims) if desc is not None and min(desc.dims, default=0) >= 0 else 0

    def aclGetTensorDescNumDims(self, handle: int | None) -> int:
        desc = self.machine.handles.get(handle, TensorDesc)
        return len(desc.dims) if desc is not None else 0

    def aclGetTensorDescDim(self, handle: int | None, index: int) -> int:
        desc = self.machine.handles.get(handle, TensorDesc)
        return desc.dims[index] if desc is not None and index < len(desc.dims) else _UNKNOWN

    def aclGetTensorDescDimV2(self, handle: int | None, index: int, size: Any) -> None:
        desc = self.machine.tensor_desc(handle)
        need(size, "dimSize")
        if index >= len(desc.dims):
            raise refuse(f"index {index} is outside the {len(desc.dims)} dims")
        size[0] = desc.dims[index]

    def aclGetTensorDescDimRange(self, handle: int | None, index: int, count: int, limits: Any) -> None:
        desc = self.machine.tensor_desc(handle)
        need(limits, "dimRange")
        if index >= len(desc.ranges) or count < 2:
            raise refuse(
                f"index {index} is outside the {len(desc.ranges)} ranges, or room for {count} numbers is too small"
            )
        limits[0], limits[1] = desc.ranges[index]

    def aclGetTensorDescByIndex(self, handle: int | None, index: int) -> int | None:
        found = self.machine.handles.get(handle, TensorDesc)
        return handle if found is not None and index == 0 else None

    def aclGetTensorDescAddress(self, handle: int | None) -> int | None:
        return None


def _read_dims(count: int, dims: Any) -> tuple[int, ...] | None:
    if not 0 <= count <= ACL_MAX_DIM_CNT or (count and not dims):
        return None
    return tuple(dims[index] for index in range(count))
