"""ONNX files as device programs: reading, refusing, describing, and the ONNX Runtime session behind a model."""

from __future__ import annotations

import hashlib
import os
import threading
import weakref
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import onnx
import onnxruntime
from google.protobuf.message import DecodeError

from aclserve_server.acl.types import aclDataType
from aclserve_server.emulator import status
from aclserve_server.emulator.config import EmulatorConfig
from aclserve_server.emulator.faults import Failure
from aclserve_server.emulator.gears import GearError, GearSet, Shape, TensorInfo, compile_gears
from aclserve_server.emulator.om import describe_om
from aclserve_server.emulator.tensors import ITEM_BYTES, volume

_DATA_TYPES: dict[int, int] = {
    onnx.TensorProto.FLOAT: aclDataType.ACL_FLOAT,
    onnx.TensorProto.UINT8: aclDataType.ACL_UINT8,
    onnx.TensorProto.INT8: aclDataType.ACL_INT8,
    onnx.TensorProto.UINT16: aclDataType.ACL_UINT16,
    onnx.TensorProto.INT16: aclDataType.ACL_INT16,
    onnx.TensorProto.INT32: aclDataType.ACL_INT32,
    onnx.TensorProto.INT64: aclDataType.ACL_INT64,
    onnx.TensorProto.BOOL: aclDataType.ACL_BOOL,
    onnx.TensorProto.FLOAT16: aclDataType.ACL_FLOAT16,
    onnx.TensorProto.DOUBLE: aclDataType.ACL_DOUBLE,
    onnx.TensorProto.UINT32: aclDataType.ACL_UINT32,
    onnx.TensorProto.UINT64: aclDataType.ACL_UINT64,
    onnx.TensorProto.BFLOAT16: aclDataType.ACL_BF16,
}
_FOLDER_ENTRY = "session.model_external_initializers_file_folder_path"


@dataclass(frozen=True, eq=False)
class Program:
    """A model file made ready to run. Shared by all loads of the same content; ONNX Runtime runs it from any thread."""

    name: str
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    gears: GearSet | None
    unknown_shape: bool
    weight_bytes: int
    work_bytes: int
    session: Any

    def sizes(self, output: bool) -> tuple[int, ...]:
        """Bytes of each input or output: exact, of the largest gear, or 0 where only a run tells."""
        tensors = self.outputs if output else self.inputs
        if self.gears is None:
            return tuple(volume(t.shape) * t.item_bytes if t.static else 0 for t in tensors)
        shapes = [gear.output_shapes if output else gear.input_shapes for gear in self.gears.gears]
        return tuple(
            max(volume(row[index]) for row in shapes) * tensor.item_bytes for index, tensor in enumerate(tensors)
        )


class ProgramStore:
    """Programs by content, kept as long as somebody uses them, and the latest one: a query is followed by a load."""

    def __init__(self, config: EmulatorConfig) -> None:
        self._config = config
        self._lock = threading.Lock()  # guards the two fields below, and makes one program at a time
        self._known: weakref.WeakValueDictionary[str, Program] = weakref.WeakValueDictionary()
        self._latest: Program | None = None

    def from_file(self, path: str) -> Program:
        """The program of a file; 145002 when it cannot be read."""
        try:
            with open(path, "rb") as file:
                content = file.read()
        except OSError as error:
            reason = os.strerror(error.errno) if error.errno else str(error)
            raise Failure(status.GE_MODEL_PATH_INVALID, f"model file {path!r} cannot be read: {reason}") from None
        return self.from_content(content, os.path.dirname(os.path.abspath(path)))

    def from_content(self, content: bytes, folder: str = "") -> Program:
        """The program of a model file's bytes; `folder` is where external weights lie."""
        digest = hashlib.sha256(content).hexdigest()
        with self._lock:
            model = None
            key = digest
            program = self._known.get(key)
            if program is None:
                model = _parse(content)
                if _external_files(model):
                    key = f"{digest} {folder}"
                    program = self._known.get(key)
            if program is None and model is not None:
                program = _compile(model, content, folder, self._config)
                self._known[key] = program
            if program is None:
                raise AssertionError("a program is known or made")
            self._latest = program
            return program

    def loaded(self) -> None:
        """The latest program has its user now."""
        self._latest = None


def _parse(content: bytes) -> onnx.ModelProto:
    reason = describe_om(content)
    if reason is not None:
        raise Failure(status.GE_LOAD_MODEL, reason)
    try:
        model = onnx.ModelProto.FromString(content)
    except DecodeError:
        raise Failure(status.GE_LOAD_MODEL, "not an ONNX model: the content cannot be decoded") from None
    if not model.HasField("graph") or not model.graph.output:
        raise Failure(status.GE_LOAD_MODEL, "not an ONNX model: it has no graph with outputs")
    return model


def _compile(model: onnx.ModelProto, content: bytes, folder: str, config: EmulatorConfig) -> Program:
    constants = {tensor.name for tensor in model.graph.initializer}
    constants |= {tensor.values.name for tensor in model.graph.sparse_initializer}
    for kind, values in (("input", model.graph.input), ("output", model.graph.output)):
        for value in values:
            if value.name not in constants:
                _check_type(kind, value)
    try:
        session = _session(content, folder if _external_files(model) else "", config)
    except Exception as error:
        raise Failure(status.GE_LOAD_MODEL, f"the model cannot be loaded: {error}") from None
    inputs = _describe((v for v in model.graph.input if v.name not in constants), session.get_inputs())
    outputs = _describe(model.graph.output, session.get_outputs())

    def trial(shapes: Sequence[Shape]) -> tuple[Shape, ...]:
        return _output_shapes(session, inputs, outputs, shapes)

    metadata = {entry.key: entry.value for entry in model.metadata_props}
    try:
        gears = compile_gears(inputs, outputs, metadata, config.slot_budget_bytes, trial)
    except GearError as error:
        raise Failure(status.GE_LOAD_MODEL, f"the gears of the model do not fit it: {error}") from None
    except Exception as error:
        raise Failure(status.GE_LOAD_MODEL, f"the model fails at one of its gears: {error}") from None
    unknown = gears is None and not all(tensor.static for tensor in (*inputs, *outputs))
    return Program(
        name=model.graph.name,
        inputs=inputs,
        outputs=outputs,
        gears=gears,
        unknown_shape=unknown,
        weight_bytes=sum(_tensor_bytes(tensor) for tensor in model.graph.initializer),
        work_bytes=_work_bytes(inputs, outputs, gears),
        session=session,
    )


def _session(content: bytes, folder: str, config: EmulatorConfig) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = config.intra_op_threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if folder:
        options.add_session_config_entry(_FOLDER_ENTRY, folder)
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def _check_type(kind: str, value: onnx.ValueInfoProto) -> None:
    what = value.type.WhichOneof("value")
    if what != "tensor_type":
        shown = (what or "unknown").removesuffix("_type")
        raise Failure(
            status.GE_DATATYPE_INVALID, f"{kind} {value.name!r} is a {shown}: only plain tensors can be served"
        )
    element = value.type.tensor_type.elem_type
    if element not in _DATA_TYPES:
        shown = onnx.TensorProto.DataType.Name(element).lower() if element else "unknown"
        raise Failure(
            status.GE_DATATYPE_INVALID,
            f"{kind} {value.name!r} has data type {shown}: only bool, integers, float16, bfloat16, float and double "
            "can be served",
        )


def _describe(values: Iterable[onnx.ValueInfoProto], found: Sequence[Any]) -> tuple[TensorInfo, ...]:
    by_name = {item.name: item for item in found}
    tensors = []
    for value in values:
        tensor = value.type.tensor_type
        shape = by_name[value.name].shape
        data_type = int(_DATA_TYPES[tensor.elem_type])
        dims = tuple(size if isinstance(size, int) and size >= 0 else None for size in shape)
        symbols = tuple(size if isinstance(size, str) else "" for size in shape)
        unknown_rank = not shape and not tensor.HasField("shape")
        item_bytes = ITEM_BYTES[data_type]
        tensors.append(TensorInfo(value.name, tensor.elem_type, data_type, item_bytes, dims, symbols, unknown_rank))
    return tuple(tensors)


def _output_shapes(
    session: Any, inputs: Sequence[TensorInfo], outputs: Sequence[TensorInfo], shapes: Sequence[Shape]
) -> tuple[Shape, ...]:
    binding = session.io_binding()
    zeros = [np.zeros(max(volume(s) * t.item_bytes, 1), np.uint8) for s, t in zip(shapes, inputs, strict=True)]
    for tensor, shape, memory in zip(inputs, shapes, zeros, strict=True):
        binding.bind_input(tensor.name, "cpu", 0, tensor.element_type, shape, memory.ctypes.data)
    for tensor in outputs:
        binding.bind_output(tensor.name, "cpu")
    session.run_with_iobinding(binding)
    return tuple(tuple(value.shape()) for value in binding._iobinding.get_outputs())


def _external_files(model: onnx.ModelProto) -> list[str]:
    names = []
    for tensor in model.graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            location = next((entry.value for entry in tensor.external_data if entry.key == "location"), "")
            path = PurePosixPath(location)
            if not location or path.is_absolute() or ".." in path.parts:
                raise Failure(status.GE_LOAD_MODEL, f"weights of {tensor.name!r} lie outside the model's folder")
            names.append(location)
    return names


def _tensor_bytes(tensor: onnx.TensorProto) -> int:
    if tensor.raw_data:
        return len(tensor.raw_data)
    data_type = _DATA_TYPES.get(tensor.data_type)
    return volume(tuple(tensor.dims)) * (ITEM_BYTES[data_type] if data_type is not None else 1)


def _work_bytes(inputs: Sequence[TensorInfo], outputs: Sequence[TensorInfo], gears: GearSet | None) -> int:
    tensors = [*inputs, *outputs]
    if gears is None:
        return sum(volume(tensor.shape) * tensor.item_bytes for tensor in tensors if tensor.static)
    return max(
        sum(volume(shape) * t.item_bytes for shape, t in zip(g.input_shapes + g.output_shapes, tensors, strict=True))
        for g in gears.gears
    )
