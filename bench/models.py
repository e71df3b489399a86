"""The models of the benchmarks: a small CNN and a ResNet-50, both with random weights, identities, and a
model that answers with the first 64 bytes of a frame.

All take `INPUT` [rows, ...] and give `OUTPUT` [rows, ...], axis 0 symbolic.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

IMAGE = {"cnn_small": (3, 64, 64), "resnet50": (3, 224, 224)}
_CLASSES = {"cnn_small": 10, "resnet50": 1000}


class Graph:
    """Grows a graph node by node; every method returns the name of what it made."""

    def __init__(self, seed: int) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self._random = np.random.default_rng(seed)

    def weight(self, shape: Sequence[int], scale: float) -> str:
        return self._keep(self._random.normal(0.0, scale, shape).astype(np.float32))

    def node(self, kind: str, inputs: Sequence[str], output: str = "", **attributes: Any) -> str:
        name = output or f"{kind}{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], **attributes))
        return name

    def conv(self, x: str, channels: tuple[int, int], kernel: int, stride: int = 1, *, relu: bool = True) -> str:
        """A convolution with a bias (a folded batch normalisation), and mostly a ReLU behind it."""
        before, after = channels
        weight = self.weight((after, before, kernel, kernel), (2.0 / (before * kernel * kernel)) ** 0.5)
        bias = self.weight((after,), 0.01)
        pad = kernel // 2
        y = self.node("Conv", [x, weight, bias], strides=[stride] * 2, pads=[pad] * 4, kernel_shape=[kernel] * 2)
        return self.node("Relu", [y]) if relu else y

    def classify(self, x: str, channels: int, classes: int) -> None:
        pooled = self.node("Flatten", [self.node("GlobalAveragePool", [x])])
        self.node("Gemm", [pooled, self.weight((channels, classes), 0.02), self.weight((classes,), 0.0)], "OUTPUT")

    def save(self, path: Path, dtype: int, inner: Sequence[int], outer: Sequence[int]) -> None:
        graph = helper.make_graph(
            self.nodes,
            path.parent.parent.name,
            [helper.make_tensor_value_info("INPUT", dtype, ["rows", *inner])],
            [helper.make_tensor_value_info("OUTPUT", dtype, ["rows", *outer])],
            self.weights,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        onnx.checker.check_model(model)
        path.parent.mkdir(parents=True, exist_ok=True)
        onnx.save(model, str(path))

    def _keep(self, array: NDArray[np.float32]) -> str:
        name = f"weight{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(array, name))
        return name


def build(root: Path) -> Path:
    """Writes a model repository with all models, where they are not there yet; the repository."""
    for name, make in (("cnn_small", _cnn_small), ("resnet50", _resnet50)):
        path = root / name / "1" / "model.onnx"
        if not path.is_file():
            graph = Graph(seed=11)
            channels = make(graph)
            graph.classify(graph.nodes[-1].output[0], channels, _CLASSES[name])
            graph.save(path, TensorProto.FLOAT, IMAGE[name], [_CLASSES[name]])
    for name, shape, kind in (
        ("identity", [16], TensorProto.FLOAT),
        ("identity_image", [224, 224, 3], TensorProto.UINT8),
        ("identity_frame", [1080, 1920, 3], TensorProto.UINT8),
    ):
        path = root / name / "1" / "model.onnx"
        if not path.is_file():
            graph = Graph(seed=0)
            graph.node("Identity", ["INPUT"], "OUTPUT")
            graph.save(path, kind, shape, shape)

    path = root / "glance_frame" / "1" / "model.onnx"
    if not path.is_file():
        graph = Graph(seed=0)
        flat = graph.node("Flatten", ["INPUT"])
        first = helper.make_tensor("first", TensorProto.INT64, [1], [0])
        last = helper.make_tensor("last", TensorProto.INT64, [1], [64])
        axis = helper.make_tensor("axis", TensorProto.INT64, [1], [1])
        graph.weights += [first, last, axis]
        graph.node("Slice", [flat, "first", "last", "axis"], "OUTPUT")
        graph.save(path, TensorProto.UINT8, [1080, 1920, 3], [64])
    return root


def _cnn_small(graph: Graph) -> int:
    x = graph.conv("INPUT", (3, 24), 3, 2)
    x = graph.conv(x, (24, 48), 3, 2)
    x = graph.conv(x, (48, 96), 3, 2)
    graph.conv(x, (96, 96), 3)
    return 96


def _resnet50(graph: Graph) -> int:
    x = graph.conv("INPUT", (3, 64), 7, 2)
    x = graph.node("MaxPool", [x], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    channels = 64
    for stage, (width, blocks) in enumerate(((64, 3), (128, 4), (256, 6), (512, 3))):
        for block in range(blocks):
            stride = 2 if block == 0 and stage else 1
            shortcut = x if block else graph.conv(x, (channels, 4 * width), 1, stride, relu=False)
            y = graph.conv(x, (channels, width), 1, stride)
            y = graph.conv(y, (width, width), 3)
            y = graph.conv(y, (width, 4 * width), 1, relu=False)
            x = graph.node("Relu", [graph.node("Add", [y, shortcut])])
            channels = 4 * width
    return channels
