"""Models that tell themselves apart, for tests in which they come, change and go."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from aclserve_client import Client
from aclserve_server.engine.engine import Engine, State

CODE = 507899
"""An internal error of the device."""


def adding(value: float, width: int = 4) -> onnx.ModelProto:
    """y = x + value, which tells the versions apart."""
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "c"], ["y"])],
        "adding",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", width])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", width])],
        [helper.make_tensor("c", TensorProto.FLOAT, [1], [value])],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def put(root: Path, name: str, value: float, version: int = 1, config: str | None = None) -> None:
    """Adds a version that adds a value, or changes it, in one step as a careful operator does."""
    folder = root / name / str(version)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.new").write_bytes(adding(value).SerializeToString())
    (folder / "model.new").rename(folder / "model.onnx")
    if config is not None:
        (root / name / "config.pbtxt").write_text(config)


def answer(client: Client, model: str = "m", version: int = 0) -> float:
    """What a model adds."""
    got = client.infer(model, {"x": np.zeros((1, 4), np.float32)}, version=version).outputs["y"]
    assert len(set(got.ravel())) == 1
    return float(got[0, 0])


def states(engine: Engine) -> dict[tuple[str, int], tuple[State, str]]:
    return {(record.name, record.version): (record.state, record.reason) for record in engine.records()}


def wait_until(condition: Callable[[], bool]) -> None:
    for _ in range(4000):
        if condition():
            return
        threading.Event().wait(0.005)
    raise AssertionError("the condition did not come true")
