"""Small ONNX models for the contract."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

Dims = Sequence[int | str]
FLOAT = TensorProto.FLOAT


def model(nodes: Sequence[Any], inputs: Sequence[Any], outputs: Sequence[Any], constants: Sequence[Any] = ()) -> bytes:
    graph = helper.make_graph(nodes, "contract", inputs, outputs, initializer=list(constants))
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return bytes(made.SerializeToString())


def tensor(name: str, dims: Dims | None, kind: int = FLOAT) -> Any:
    return helper.make_tensor_value_info(name, kind, dims)


def doubled(dims: Dims, kind: int = FLOAT) -> bytes:
    """y = x + x"""
    return model([helper.make_node("Add", ["x", "x"], ["y"])], [tensor("x", dims, kind)], [tensor("y", dims, kind)])


def weighted() -> bytes:
    """y = x @ w with 3 x 3 weights of ones"""
    weights = numpy_helper.from_array(np.ones((3, 3), np.float32), "w")
    return model(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], [tensor("x", [2, 3])], [tensor("y", [2, 3])], [weights]
    )


def image() -> bytes:
    """y = x + x over an image of dynamic height and width, m = its mean"""
    nodes = [helper.make_node("Add", ["x", "x"], ["y"]), helper.make_node("GlobalAveragePool", ["x"], ["m"])]
    outputs = [tensor("y", [1, 2, "H", "W"]), tensor("m", [1, 2, 1, 1])]
    return model(nodes, [tensor("x", [1, 2, "H", "W"])], outputs)


def product() -> bytes:
    """c = a @ b, both of dynamic dims"""
    node = helper.make_node("MatMul", ["a", "b"], ["c"])
    return model([node], [tensor("a", ["M", "K"]), tensor("b", ["K", 4])], [tensor("c", ["M", 4])])


def positions() -> bytes:
    """y = the indices of the elements of x that are not zero"""
    node = helper.make_node("NonZero", ["x"], ["y"])
    return model([node], [tensor("x", [6])], [tensor("y", [1, "count"], TensorProto.INT64)])
