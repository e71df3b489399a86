"""Reads what an ONNX file says about itself: inputs, outputs, operator sets, metadata, sizes. It runs nothing.

External data files are not opened; their sizes are taken from the model.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError

from aclserve_server.inspect.problem import InspectError

_DEPTH = 64
"""How deep graphs in graphs (the bodies of If and Loop) are followed."""


@dataclass(frozen=True, slots=True)
class OnnxTensor:
    """One input or output.

    `dtype` is NumPy's name ("float32", "bfloat16"), or "string"; for other kinds the type as text, such as
    "sequence(tensor(int64))". An axis of `shape` is a size, a symbol's name, or None where nothing is said; `shape` is
    None where the number of axes is unknown too.
    """

    name: str
    dtype: str
    shape: tuple[int | str | None, ...] | None


@dataclass(frozen=True, slots=True)
class OnnxFile:
    """One ONNX model. `opsets` maps a domain ("ai.onnx" for the default one) to its version.

    Constants are initializers and the tensors of Constant nodes, those of graphs within the graph included;
    `external_bytes` counts those that lie in other files. `operators` counts nodes by operator, most frequent first.
    """

    graph_name: str
    ir_version: int
    producer: str
    producer_version: str
    domain: str
    model_version: int
    opsets: dict[str, int]
    inputs: tuple[OnnxTensor, ...]
    outputs: tuple[OnnxTensor, ...]
    node_count: int
    operators: dict[str, int]
    constant_count: int
    constant_bytes: int
    external_bytes: int
    metadata: dict[str, str]


def read_onnx(path: Path) -> OnnxFile:
    """Reads an ONNX file; raises InspectError for anything else, OSError where it cannot be read."""
    try:
        model: Any = onnx.load(str(path), format="protobuf", load_external_data=False)
    except DecodeError as error:
        raise InspectError("not an ONNX file, or a damaged one: its bytes are no ONNX message") from error
    if not model.HasField("graph") or not (model.opset_import or model.graph.node or model.graph.output):
        raise InspectError("not an ONNX file, or a damaged one: it holds no graph")
    graph = model.graph
    graphs = list(_graphs(graph, 0))
    constants = [tensor for part in graphs for tensor in _constants(part)]
    nodes = [node for part in graphs for node in part.node]
    named = {tensor.name for tensor in graph.initializer} | {sparse.values.name for sparse in graph.sparse_initializer}
    operators = Counter(f"{_text(node.domain)}.{_text(node.op_type)}".removeprefix(".") for node in nodes)
    return OnnxFile(
        graph_name=_text(graph.name),
        ir_version=model.ir_version,
        producer=_text(model.producer_name),
        producer_version=_text(model.producer_version),
        domain=_text(model.domain),
        model_version=model.model_version,
        opsets={_text(entry.domain) or "ai.onnx": entry.version for entry in model.opset_import},
        inputs=tuple(_tensor(value) for value in graph.input if value.name not in named),
        outputs=tuple(_tensor(value) for value in graph.output),
        node_count=len(nodes),
        operators=dict(operators.most_common()),
        constant_count=len(constants),
        constant_bytes=sum(map(_size_bytes, constants)),
        external_bytes=sum(_size_bytes(tensor) for tensor in constants if _is_external(tensor)),
        metadata={_text(entry.key): _text(entry.value) for entry in model.metadata_props},
    )


def _text(value: str | bytes) -> str:
    """A text of the file; protobuf gives bytes where it is not UTF-8, because ONNX is written in proto2."""
    return value if isinstance(value, str) else value.decode("utf-8", "replace")


def _graphs(graph: Any, depth: int) -> Iterator[Any]:
    """The graph and the graphs in its nodes' attributes."""
    if depth > _DEPTH:
        raise InspectError(f"the ONNX file has graphs within graphs more than {_DEPTH} deep")
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _graphs(attribute.g, depth + 1)
            for inner in attribute.graphs:
                yield from _graphs(inner, depth + 1)


def _constants(graph: Any) -> Iterator[Any]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield sparse.values
        yield sparse.indices
    for node in graph.node:
        if node.op_type == "Constant" and not node.domain:
            yield from (attribute.t for attribute in node.attribute if attribute.HasField("t"))


def _tensor(value: Any) -> OnnxTensor:
    if value.type.WhichOneof("value") != "tensor_type":
        return OnnxTensor(_text(value.name), _type_text(value.type, 0), None)
    tensor = value.type.tensor_type
    shape = tuple(map(_axis, tensor.shape.dim)) if tensor.HasField("shape") else None
    return OnnxTensor(_text(value.name), _dtype_name(tensor.elem_type), shape)


def _axis(axis: Any) -> int | str | None:
    kind = axis.WhichOneof("value")
    if kind == "dim_value":
        return int(axis.dim_value)
    return _text(axis.dim_param) or None


def _type_text(kind: Any, depth: int) -> str:
    which = kind.WhichOneof("value")
    if which is None or depth > _DEPTH:
        return "unknown"
    if which == "tensor_type":
        return f"tensor({_dtype_name(kind.tensor_type.elem_type)})"
    if which == "sparse_tensor_type":
        return f"sparse_tensor({_dtype_name(kind.sparse_tensor_type.elem_type)})"
    if which == "map_type":
        return f"map({_dtype_name(kind.map_type.key_type)}, {_type_text(kind.map_type.value_type, depth + 1)})"
    inner = kind.sequence_type if which == "sequence_type" else kind.optional_type
    return f"{which.removesuffix('_type')}({_type_text(inner.elem_type, depth + 1)})"


def _dtype_name(number: int) -> str:
    try:
        name = str(onnx.TensorProto.DataType.Name(number)).lower()
    except ValueError:
        return f"type {number}"
    return {"float": "float32", "double": "float64"}.get(name, name)


def _is_external(tensor: Any) -> bool:
    return bool(tensor.data_location == onnx.TensorProto.EXTERNAL)


def _size_bytes(tensor: Any) -> int:
    """The bytes of a constant's values; strings count their own lengths."""
    if tensor.data_type == onnx.TensorProto.STRING:
        return sum(map(len, tensor.string_data))
    elements: int = max(0, math.prod(tensor.dims))
    return (elements * _BITS.get(tensor.data_type, 0) + 7) // 8


_BITS_BY_NAME = {
    **dict.fromkeys(("UINT2", "INT2"), 2),
    **dict.fromkeys(("UINT4", "INT4", "FLOAT4E2M1"), 4),
    **dict.fromkeys(("FLOAT6E2M3", "FLOAT6E3M2"), 6),
    **dict.fromkeys(("BOOL", "UINT8", "INT8", "FLOAT8E8M0"), 8),
    **dict.fromkeys(("FLOAT8E4M3FN", "FLOAT8E4M3FNUZ", "FLOAT8E5M2", "FLOAT8E5M2FNUZ"), 8),
    **dict.fromkeys(("UINT16", "INT16", "FLOAT16", "BFLOAT16"), 16),
    **dict.fromkeys(("UINT32", "INT32", "FLOAT"), 32),
    **dict.fromkeys(("UINT64", "INT64", "DOUBLE", "COMPLEX64"), 64),
    "COMPLEX128": 128,
}
_BITS = {number: _BITS_BY_NAME[name] for name, number in onnx.TensorProto.DataType.items() if name in _BITS_BY_NAME}
"""Bits of an element by ONNX type, for the types that the installed onnx knows; below a byte they are packed."""
