"""Small ONNX models, made where they are used."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from onnx import TensorProto, helper, numpy_helper

Dims = Sequence[int | str]
FLOAT = TensorProto.FLOAT


def graph(
    nodes: Sequence[object],
    inputs: Sequence[object],
    outputs: Sequence[object],
    initializers: Sequence[object] = (),
) -> bytes:
    made = helper.make_graph(nodes, "test", inputs, outputs, initializer=list(initializers))
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return bytes(model.SerializeToString())


def value(name: str, dims: Dims | None, elem_type: int = FLOAT) -> object:
    return helper.make_tensor_value_info(name, elem_type, dims)


def doubled(dims: Dims) -> bytes:
    """y = x + x"""
    return graph([helper.make_node("Add", ["x", "x"], ["y"])], [value("x", dims)], [value("y", dims)])


def rows(batch: int | str = "N") -> bytes:
    """y = x + x and total = the sum of each row of three"""
    axes = numpy_helper.from_array(np.array([1], np.int64), "axes")
    nodes = [
        helper.make_node("Add", ["x", "x"], ["y"]),
        helper.make_node("ReduceSum", ["x", "axes"], ["total"], keepdims=0),
    ]
    return graph(nodes, [value("x", [batch, 3])], [value("y", [batch, 3]), value("total", [batch])], [axes])


def linear() -> bytes:
    """y = x @ w, with w of 3x3 ones"""
    weights = numpy_helper.from_array(np.ones((3, 3), np.float32), "w")
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    return graph([node], [value("x", [2, 3])], [value("y", [2, 3])], [weights])


def pooled() -> bytes:
    """y = the mean over height and width, z = x + x"""
    nodes = [
        helper.make_node("GlobalAveragePool", ["x"], ["y"]),
        helper.make_node("Add", ["x", "x"], ["z"]),
    ]
    return graph(
        nodes,
        [value("x", [1, 2, "H", "W"])],
        [value("y", [1, 2, 1, 1]), value("z", [1, 2, "H", "W"])],
    )


def product() -> bytes:
    """c = a @ b"""
    node = helper.make_node("MatMul", ["a", "b"], ["c"])
    return graph([node], [value("a", ["M", "K"]), value("b", ["K", 4])], [value("c", ["M", 4])])


def nonzero() -> bytes:
    """indices of the elements of x that are not 0: known only after the run"""
    node = helper.make_node("NonZero", ["x"], ["y"])
    return graph([node], [value("x", [6])], [value("y", [1, "count"], TensorProto.INT64)])


def identity(elem_type: int, dims: Dims | None) -> bytes:
    node = helper.make_node("Identity", ["x"], ["y"])
    return graph([node], [value("x", dims, elem_type)], [value("y", dims, elem_type)])
