"""Models of every way of use: what a newcomer may meet."""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import TensorProto, helper

from serving import elementwise, put_model

F16, F32, BF16, I64, BOOL = (
    TensorProto.FLOAT16,
    TensorProto.FLOAT,
    TensorProto.BFLOAT16,
    TensorProto.INT64,
    TensorProto.BOOL,
)


def _model(
    nodes: list[onnx.NodeProto],
    inputs: dict[str, tuple[int, list[int | str]]],
    outputs: dict[str, tuple[int, list[int | str]]],
    metadata: dict[str, str] | None = None,
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "model",
        [helper.make_tensor_value_info(name, dtype, shape) for name, (dtype, shape) in inputs.items()],
        [helper.make_tensor_value_info(name, dtype, shape) for name, (dtype, shape) in outputs.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(model, metadata or {})
    onnx.checker.check_model(model)
    return model


def put_models(root: Path) -> list[str]:
    """Fills a repository; returns the names."""
    node = helper.make_node
    models = {
        "static": elementwise("Relu", (2, 3)),
        "rows": elementwise("Relu", ("rows", 4)),
        "halves": elementwise("Relu", ("rows", 4), F16),
        "brains": elementwise("Identity", ("rows", 4), BF16),
        "flags": elementwise("Not", ("rows", 4), BOOL),
        "image": elementwise("Relu", (1, 3, "h", "w"), metadata={"ascend.dynamic_image_size": "8,8;16,12"}),
        "two-inputs": _model(
            [node("Add", ["left", "right"], ["sum"])],
            {"left": (F32, ["rows", 4]), "right": (F32, ["rows", 4])},
            {"sum": (F32, ["rows", 4])},
        ),
        "scalar": _model(
            [node("Add", ["values", "step"], ["sum"])],
            {"values": (I64, [3]), "step": (I64, [])},
            {"sum": (I64, [3])},
        ),
        "free": _model(
            [node("NonZero", ["it's {{x}}"], ["places"])],
            {"it's {{x}}": (F32, ["n", "m"])},
            {"places": (I64, [2, "found"])},
        ),
    }
    for name, model in models.items():
        put_model(root, name, model)
    return list(models)


NAMES = ("static", "rows", "halves", "brains", "flags", "image", "two-inputs", "scalar", "free")
