"""Getting a model into AscendCL: where its bytes must be, what memory it needs, and which of the load calls fits."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ctypes import byref, c_size_t, c_uint32, c_void_p
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from aclserve.errors import InvalidArgument
from aclserve_server.acl.codes import Category
from aclserve_server.acl.errors import AclError
from aclserve_server.device.buffers import Buffer

if TYPE_CHECKING:
    from aclserve_server.device.device import Device

ModelSource = Path | bytes | memoryview
"""A model file by its path, or the bytes of one."""

Judge = Callable[[int, int], None]
"""Whoever may object to a load by raising: gets the bytes of work memory and of weights that it needs."""


def no_objection(work: int, weight: int) -> None:
    """The judge that lets every model be loaded."""


@dataclass(frozen=True, slots=True)
class ModelMemory:
    """Device buffers of the caller that a model is to live in; None leaves that part to AscendCL.

    They stay the caller's and cannot be closed before the model. Weights may be shared by loads of the same model, work
    memory only by models that never run at the same time.
    """

    work: Buffer | None = None
    weight: Buffer | None = None

    def buffers(self) -> list[Buffer]:
        """Those that are given."""
        return [buffer for buffer in (self.work, self.weight) if buffer is not None]


@dataclass(frozen=True, slots=True)
class Image:
    """A model where AscendCL finds it: a path, or an address with a size."""

    path: bytes
    address: c_void_p
    size_bytes: int


@contextmanager
def placed(device: Device, source: ModelSource) -> Iterator[Image]:
    """The model in the memory a load wants, for as long as it may be needed (until unload).

    Bytes stay in host memory in run mode "host", where they are, and are copied into device memory in run mode
    "device".
    """
    if isinstance(source, Path):
        yield Image(os.fsencode(source), c_void_p(), 0)
    elif not source:
        raise InvalidArgument("the model has no bytes", reason="MODEL_INVALID")
    elif device.run_mode == "host":
        content = np.frombuffer(source, np.uint8)  # keeps the bytes alive
        yield Image(b"", c_void_p(content.ctypes.data), content.nbytes)
    else:
        with device.allocate(len(source)) as buffer:
            buffer.view()[:] = source
            yield Image(b"", c_void_p(buffer.address), len(source))


def query_size(device: Device, image: Image) -> tuple[int, int]:
    """(work, weight) bytes; `AclError` where AscendCL cannot tell, as for models of unknown shape."""
    work, weight = c_size_t(), c_size_t()
    if image.path:
        device.library.aclmdlQuerySize(image.path, byref(work), byref(weight))
    else:
        device.library.aclmdlQuerySizeFromMem(image.address, image.size_bytes, byref(work), byref(weight))
    return work.value, weight.value


def query_size_or_unknown(device: Device, image: Image) -> tuple[int, int]:
    """As `query_size`, and (0, 0) where AscendCL cannot tell: the load itself says what is wrong, if anything is."""
    try:
        return query_size(device, image)
    except AclError as error:
        if error.category is Category.DEVICE_FATAL:
            raise
        return 0, 0


def check_memory(memory: ModelMemory, sizes: tuple[int, int]) -> None:
    """`InvalidArgument`, reason MODEL_MEMORY_INVALID, unless the given buffers are device memory and large enough."""
    for kind, buffer, needed in (("work", memory.work, sizes[0]), ("weight", memory.weight, sizes[1])):
        if buffer is None:
            continue
        if buffer.space != "device":
            raise InvalidArgument(
                f"the {kind} memory of a model must be device memory; the buffer given is host memory",
                reason="MODEL_MEMORY_INVALID",
            )
        if buffer.size_bytes < needed:
            raise InvalidArgument(
                f"the {kind} memory of this model takes {needed} bytes; the buffer given has {buffer.size_bytes}",
                reason="MODEL_MEMORY_INVALID",
                metadata={"needed_bytes": needed, "given_bytes": buffer.size_bytes},
            )


def load_image(device: Device, image: Image, memory: ModelMemory) -> int:
    """Load and return the model id, with AscendCL's memory or the caller's."""
    library = device.library
    model_id = c_uint32()
    own = memory.buffers()
    areas = (*_area(memory.work), *_area(memory.weight))
    if image.path and own:
        library.aclmdlLoadFromFileWithMem(image.path, byref(model_id), *areas)
    elif image.path:
        library.aclmdlLoadFromFile(image.path, byref(model_id))
    elif own:
        library.aclmdlLoadFromMemWithMem(image.address, image.size_bytes, byref(model_id), *areas)
    else:
        library.aclmdlLoadFromMem(image.address, image.size_bytes, byref(model_id))
    return model_id.value


def _area(buffer: Buffer | None) -> tuple[c_void_p, int]:
    return (c_void_p(), 0) if buffer is None else (c_void_p(buffer.address), buffer.size_bytes)
