"""Loading, sizing and unloading models."""

from __future__ import annotations

import ctypes
import os
from typing import Any

from aclserve_server.acl import types
from aclserve_server.acl.types import aclmdlConfigAttr
from aclserve_server.emulator import status
from aclserve_server.emulator.calls import Calls, need, refuse
from aclserve_server.emulator.execution import check_context
from aclserve_server.emulator.faults import Failure
from aclserve_server.emulator.objects import LoadConfig
from aclserve_server.emulator.program import Program

_POINTERS = (
    aclmdlConfigAttr.ACL_MDL_MEM_ADDR_PTR,
    aclmdlConfigAttr.ACL_MDL_WEIGHT_ADDR_PTR,
    aclmdlConfigAttr.ACL_MDL_WORKSPACE_ADDR_PTR,
    aclmdlConfigAttr.ACL_MDL_INPUTQ_ADDR_PTR,
    aclmdlConfigAttr.ACL_MDL_OUTPUTQ_ADDR_PTR,
)
_PATHS = (aclmdlConfigAttr.ACL_MDL_PATH_PTR, aclmdlConfigAttr.ACL_MDL_WEIGHT_PATH_PTR)
_NUMBERS = (
    aclmdlConfigAttr.ACL_MDL_LOAD_TYPE_SIZET,
    aclmdlConfigAttr.ACL_MDL_MEM_SIZET,
    aclmdlConfigAttr.ACL_MDL_WEIGHT_SIZET,
    aclmdlConfigAttr.ACL_MDL_WORKSPACE_SIZET,
    aclmdlConfigAttr.ACL_MDL_INPUTQ_NUM_SIZET,
    aclmdlConfigAttr.ACL_MDL_OUTPUTQ_NUM_SIZET,
    aclmdlConfigAttr.ACL_MDL_WORKSPACE_MEM_OPTIMIZE,
    aclmdlConfigAttr.ACL_MDL_MEM_MALLOC_POLICY_SIZET,
)
_SMALL_NUMBERS = (aclmdlConfigAttr.ACL_MDL_PRIORITY_INT32, aclmdlConfigAttr.ACL_MDL_WITHOUT_GRAPH_INT32)


class LoadCalls(Calls):
    """acl/acl_mdl.h: aclmdlQuerySize to aclmdlUnload, aclmdlLoadWithConfig, model attributes."""

    def aclmdlLoadFromFile(self, path: bytes | None, model_id: Any) -> None:
        need(model_id, "modelId")
        model_id[0] = self._load(self.program_of_file(path))

    def aclmdlLoadFromMem(self, model: int | None, size: int, model_id: Any) -> None:
        need(model_id, "modelId")
        model_id[0] = self._load(self._loaded_content(model, size))

    def aclmdlLoadFromFileWithMem(
        self, path: bytes | None, model_id: Any, work: int | None, work_size: int, weight: int | None, weight_size: int
    ) -> None:
        need(model_id, "modelId")
        model_id[0] = self._load(self.program_of_file(path), (work, work_size), (weight, weight_size))

    def aclmdlLoadFromMemWithMem(
        self,
        model: int | None,
        size: int,
        model_id: Any,
        work: int | None,
        work_size: int,
        weight: int | None,
        weight_size: int,
    ) -> None:
        need(model_id, "modelId")
        model_id[0] = self._load(self._loaded_content(model, size), (work, work_size), (weight, weight_size))

    def aclmdlLoadFromFileWithQ(
        self, path: bytes | None, model_id: Any, inputs: Any, input_count: int, outputs: Any, output_count: int
    ) -> None:
        raise Failure(status.API_NOT_SUPPORT, "models with queues are not supported by the emulated device")

    def aclmdlLoadFromMemWithQ(
        self,
        model: int | None,
        size: int,
        model_id: Any,
        inputs: Any,
        input_count: int,
        outputs: Any,
        output_count: int,
    ) -> None:
        raise Failure(status.API_NOT_SUPPORT, "models with queues are not supported by the emulated device")

    def aclmdlUnload(self, model_id: int) -> None:
        model = self.machine.model(model_id)
        check_context(model, self.runtime.current())
        self.machine.models.unload(model)

    def aclmdlQuerySize(self, path: bytes | None, work: Any, weight: Any) -> None:
        need(work, "workSize")
        need(weight, "weightSize")
        program = self.program_of_file(path)
        work[0], weight[0] = program.work_bytes, program.weight_bytes

    def aclmdlQuerySizeFromMem(self, model: int | None, size: int, work: Any, weight: Any) -> None:
        need(work, "workSize")
        need(weight, "weightSize")
        program = self.program_of_content(model, size)
        work[0], weight[0] = program.work_bytes, program.weight_bytes

    # ---- load with options

    def aclmdlCreateConfigHandle(self) -> int:
        return self.machine.handles.add(LoadConfig())

    def aclmdlDestroyConfigHandle(self, handle: int | None) -> None:
        self._config(handle)
        self.machine.handles.remove(handle or 0)

    def aclmdlSetConfigOpt(self, handle: int | None, attribute: int, value: int | None, size: int) -> None:
        config = self._config(handle)
        need(value, "attrValue")
        config.options[attribute] = _read_option(attribute, value or 0, size)

    def aclmdlSetExternalWeightAddress(
        self, handle: int | None, name: bytes | None, pointer: int | None, size: int
    ) -> None:
        self._config(handle)
        need(name, "weightFileName")
        raise Failure(
            status.API_NOT_SUPPORT, "external weights in device memory are not supported by the emulated device"
        )

    def aclmdlLoadWithConfig(self, handle: int | None, model_id: Any) -> None:
        options = self._config(handle).options
        need(model_id, "modelId")
        kind = options.get(aclmdlConfigAttr.ACL_MDL_LOAD_TYPE_SIZET)
        from_file = (types.ACL_MDL_LOAD_FROM_FILE, types.ACL_MDL_LOAD_FROM_FILE_WITH_MEM)
        from_memory = (types.ACL_MDL_LOAD_FROM_MEM, types.ACL_MDL_LOAD_FROM_MEM_WITH_MEM)
        if kind in from_file:
            path = _required(options, aclmdlConfigAttr.ACL_MDL_PATH_PTR)
            program = self.program_of_file(path if isinstance(path, bytes) else None)
        elif kind in from_memory:
            address = _required(options, aclmdlConfigAttr.ACL_MDL_MEM_ADDR_PTR)
            size = _required(options, aclmdlConfigAttr.ACL_MDL_MEM_SIZET)
            folder = options.get(aclmdlConfigAttr.ACL_MDL_WEIGHT_PATH_PTR)
            folder_text = os.fsdecode(folder) if isinstance(folder, bytes) else ""
            program = self._loaded_content(_number(address), _number(size), folder_text)
        elif kind in (types.ACL_MDL_LOAD_FROM_FILE_WITH_Q, types.ACL_MDL_LOAD_FROM_MEM_WITH_Q):
            raise Failure(status.API_NOT_SUPPORT, "models with queues are not supported by the emulated device")
        else:
            raise refuse(f"load type {kind!r} is missing or not known")
        work: tuple[int | None, int] = (None, 0)
        weight: tuple[int | None, int] = (None, 0)
        if kind in (types.ACL_MDL_LOAD_FROM_FILE_WITH_MEM, types.ACL_MDL_LOAD_FROM_MEM_WITH_MEM):
            work = _memory_option(
                options, aclmdlConfigAttr.ACL_MDL_WORKSPACE_ADDR_PTR, aclmdlConfigAttr.ACL_MDL_WORKSPACE_SIZET
            )
            weight = _memory_option(
                options, aclmdlConfigAttr.ACL_MDL_WEIGHT_ADDR_PTR, aclmdlConfigAttr.ACL_MDL_WEIGHT_SIZET
            )
        model_id[0] = self._load(program, work, weight)

    def aclmdlSetAttribute(self, model_id: int, attribute: int, value: Any) -> None:
        model = self.machine.model(model_id)
        need(value, "attrValue")
        if attribute != 0:
            raise refuse(f"model attribute {attribute} is not known")
        model.priority = value.contents.mdlPriority

    def aclmdlGetAttribute(self, model_id: int, attribute: int, value: Any) -> None:
        model = self.machine.model(model_id)
        need(value, "attrValue")
        if attribute != 0:
            raise refuse(f"model attribute {attribute} is not known")
        value.contents.mdlPriority = model.priority

    # ---- reading

    def program_of_file(self, path: bytes | None) -> Program:
        """The program of a model file."""
        need(path is not None, "the model path")
        self.machine.need_init()
        return self.machine.models.store.from_file(os.fsdecode(path or b""))

    def program_of_content(self, model: int | None, size: int, folder: str = "") -> Program:
        """The program of a model in memory of either side."""
        need(model, "model")
        if size == 0:
            raise refuse("the model size is 0")
        self.machine.need_init()
        address = model or 0
        block = self.memory.block_at(address)
        if block is None and (self.memory.in_device_range(address) or self.memory.in_host_range(address)):
            raise Failure(status.GE_MODEL_ADDR_INVALID, f"model memory at {address:#x} is not live")
        if block is not None:
            offset = address - block.address
            if offset + size > block.size_bytes:
                raise Failure(
                    status.GE_MODEL_ADDR_INVALID, f"{size} bytes of model overrun an allocation of {block.size_bytes}"
                )
            address = block.pointer + offset
        return self.machine.models.store.from_content(ctypes.string_at(address, size), folder)

    def _loaded_content(self, model: int | None, size: int, folder: str = "") -> Program:
        if model is not None:
            on_device = self.memory.in_device_range(model)
            if on_device != self.config.unified:
                wanted = "device" if self.config.unified else "host"
                text = f"in this run mode the model must lie in {wanted} memory, {model:#x} does not"
                raise Failure(status.GE_MODEL_ADDR_INVALID, text)
        return self.program_of_content(model, size, folder)

    def _load(
        self, program: Program, work: tuple[int | None, int] = (None, 0), weight: tuple[int | None, int] = (None, 0)
    ) -> int:
        return self.machine.models.load(program, work, weight)

    def _config(self, handle: int | None) -> LoadConfig:
        config = self.machine.handles.get(handle, LoadConfig)
        if config is None:
            raise refuse("not a live aclmdlConfigHandle")
        return config


def _read_option(attribute: int, value: int, size: int) -> int | bytes | None:
    if attribute in _PATHS:
        pointer = _sized(ctypes.c_void_p, value, size)
        return ctypes.string_at(pointer.value) if pointer.value else None
    if attribute in _POINTERS:
        return int(_sized(ctypes.c_void_p, value, size).value or 0) or None
    if attribute in _NUMBERS:
        return int(_sized(ctypes.c_size_t, value, size).value)
    if attribute in _SMALL_NUMBERS:
        return int(_sized(ctypes.c_int32, value, size).value)
    raise refuse(f"option {attribute} is not known or not supported by the emulated device")


def _sized(kind: Any, value: int, size: int) -> Any:
    if size != ctypes.sizeof(kind):
        raise refuse(f"valueSize is {size}, expected {ctypes.sizeof(kind)}")
    return kind.from_address(value)


def _required(options: dict[int, int | bytes | None], attribute: aclmdlConfigAttr) -> int | bytes:
    value = options.get(attribute)
    if value is None:
        raise refuse(f"option {attribute.name} is missing")
    return value


def _memory_option(
    options: dict[int, int | bytes | None], address: aclmdlConfigAttr, size: aclmdlConfigAttr
) -> tuple[int | None, int]:
    found = options.get(address)
    if not isinstance(found, int):
        return None, 0
    return found, _number(_required(options, size))


def _number(value: int | bytes) -> int:
    return value if isinstance(value, int) else 0
