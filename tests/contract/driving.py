"""Driving a bound AscendCL library in tests: short names for what every test does, over the checked C table alone."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import byref, c_size_t, c_uint32, c_void_p
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aclserve_server.acl import types as acl
from aclserve_server.acl.library import Library

HOST_TO_DEVICE, DEVICE_TO_HOST, DEVICE_TO_DEVICE = 1, 2, 3


class Driver:
    """A library with device 0 set in the test's thread."""

    def __init__(self, library: Library) -> None:
        self.library = library
        mode = c_uint32()
        library.aclrtGetRunMode(byref(mode))
        self.unified = mode.value == 0

    def malloc(self, size: int, policy: int = 0) -> int:
        pointer = acl.DevicePtr()
        self.library.aclrtMalloc(byref(pointer), size, policy)
        assert pointer.value is not None
        return pointer.value

    def malloc_host(self, size: int) -> int:
        pointer = c_void_p()
        self.library.aclrtMallocHost(byref(pointer), size)
        assert pointer.value is not None
        return pointer.value

    def stream(self) -> acl.Stream:
        stream = acl.Stream()
        self.library.aclrtCreateStream(byref(stream))
        return stream

    def event(self) -> acl.Event:
        event = acl.Event()
        self.library.aclrtCreateEvent(byref(event))
        return event

    def context(self) -> acl.Context:
        context = acl.Context()
        self.library.aclrtGetCurrentContext(byref(context))
        return context

    def host_bytes(self, address: int, size: int) -> bytes:
        return ctypes.string_at(address, size)

    def upload(self, address: int, data: bytes) -> None:
        if data:
            self.library.aclrtMemcpy(address, len(data), data, len(data), HOST_TO_DEVICE)

    def download(self, address: int, size: int) -> bytes:
        target = ctypes.create_string_buffer(max(size, 1))
        if size:
            self.library.aclrtMemcpy(target, size, address, size, DEVICE_TO_HOST)
        return target.raw[:size]

    def load(self, model: bytes) -> int:
        """Load from memory of the kind the run mode asks for."""
        model_id = c_uint32()
        if not self.unified:
            self.library.aclmdlLoadFromMem(model, len(model), byref(model_id))
            return model_id.value
        address = self.malloc(len(model))
        try:
            self.upload(address, model)
            self.library.aclmdlLoadFromMem(address, len(model), byref(model_id))
        finally:
            self.library.aclrtFree(address)
        return model_id.value


class Slot:
    """A loaded model with one input and one output dataset, each buffer of its largest size in device memory."""

    def __init__(self, driver: Driver, model_id: int) -> None:
        library = driver.library
        self.driver, self.library, self.model_id = driver, library, model_id
        self.desc = library.aclmdlCreateDesc()
        library.aclmdlGetDesc(self.desc, model_id)
        self.input_sizes = [
            library.aclmdlGetInputSizeByIndex(self.desc, i) for i in range(library.aclmdlGetNumInputs(self.desc))
        ]
        self.output_sizes = [
            library.aclmdlGetOutputSizeByIndex(self.desc, i) for i in range(library.aclmdlGetNumOutputs(self.desc))
        ]
        self.dynamic = any(-1 in self.dims(i) for i in range(len(self.input_sizes))) and not self.has_gears
        self.inputs, self.input_places = self._dataset(self.input_sizes)
        self.outputs, self.output_places = self._dataset(self.output_sizes)

    @property
    def has_gears(self) -> bool:
        index = c_size_t()
        name = acl.ACL_DYNAMIC_TENSOR_NAME.encode()
        return self.library.raw("aclmdlGetInputIndexByName")(self.desc, name, byref(index)) == 0

    @property
    def gear_index(self) -> int:
        return len(self.input_sizes) - 1

    def dims(self, index: int, output: bool = False) -> tuple[int, ...]:
        dims = acl.aclmdlIODims()
        read = self.library.aclmdlGetOutputDims if output else self.library.aclmdlGetInputDims
        read(self.desc, index, byref(dims))
        return tuple(dims.dims[: dims.dimCount])

    def current_dims(self, index: int) -> tuple[int, ...]:
        dims = acl.aclmdlIODims()
        self.library.aclmdlGetCurOutputDims(self.desc, index, byref(dims))
        return tuple(dims.dims[: dims.dimCount])

    def set_batch(self, batch: int) -> None:
        self.library.aclmdlSetDynamicBatchSize(self.model_id, self.inputs, self.gear_index, batch)

    def feed(self, index: int, array: NDArray[Any]) -> None:
        self.driver.upload(self.input_places[index], np.ascontiguousarray(array).tobytes())

    def read(self, index: int, dtype: Any, shape: Sequence[int]) -> NDArray[Any]:
        count = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        raw = self.driver.download(self.output_places[index], count)
        return np.frombuffer(raw, dtype).reshape(tuple(shape))

    def execute(self) -> None:
        self.library.aclmdlExecute(self.model_id, self.inputs, self.outputs)

    def submit(self, stream: acl.Stream) -> None:
        self.library.aclmdlExecuteAsync(self.model_id, self.inputs, self.outputs, stream)

    def set_input_shape(self, index: int, data_type: int, shape: Sequence[int]) -> None:
        dims = (ctypes.c_int64 * max(len(shape), 1))(*shape)
        desc = self.library.aclCreateTensorDesc(data_type, len(shape), dims, 2)
        self.library.aclmdlSetDatasetTensorDesc(self.inputs, desc, index)
        self.library.aclDestroyTensorDesc(desc)

    def close(self, unload: bool = True) -> None:
        for dataset in (self.inputs, self.outputs):
            for index in range(self.library.aclmdlGetDatasetNumBuffers(dataset)):
                buffer = self.library.aclmdlGetDatasetBuffer(dataset, index)
                address = self.library.aclGetDataBufferAddr(buffer)
                self.library.aclDestroyDataBuffer(buffer)
                if address:
                    self.library.aclrtFree(address)
            self.library.aclmdlDestroyDataset(dataset)
        self.library.aclmdlDestroyDesc(self.desc)
        if unload:
            self.library.aclmdlUnload(self.model_id)

    def _dataset(self, sizes: Sequence[int]) -> tuple[acl.Dataset, list[int]]:
        dataset = self.library.aclmdlCreateDataset()
        places = []
        for size in sizes:
            address = self.driver.malloc(max(size, 64))
            places.append(address)
            self.library.aclmdlAddDatasetBuffer(dataset, self.library.aclCreateDataBuffer(address, max(size, 64)))
        return dataset, places
