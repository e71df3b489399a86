"""The published test cases: real models and single-operator models with inputs and expected outputs.

They lie in the folder of shared data; its manifest names them. Arrays are read when they are asked for.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data"

Array = NDArray[Any]
Arrays = dict[str, Array]


@dataclass(frozen=True)
class Case:
    """One run of one model. `model` is its name in the repository made of `model_files`."""

    model: str
    name: str
    files_in: tuple[tuple[str, Path], ...]
    files_out: tuple[tuple[str, Path], ...]
    rtol: float
    atol: float

    def __str__(self) -> str:
        return f"{self.model}-{self.name}"

    @property
    def inputs(self) -> Arrays:
        return {name: read_tensor(path) for name, path in self.files_in}

    @cached_property
    def outputs(self) -> Arrays:
        return {name: read_tensor(path) for name, path in self.files_out}

    def check(self, got: Mapping[str, Array]) -> None:
        """Fails unless the outputs are the expected ones: names, types, shapes and values."""
        assert list(got) == list(self.outputs), f"{self}: outputs {list(got)}"
        for name, want in self.outputs.items():
            assert_close(got[name], want, self.rtol, self.atol, f"{self}: output {name!r}")


@dataclass(frozen=True)
class StreamCase:
    """Steps in order, where outputs of one step are inputs of the next (`carry`: output -> input)."""

    model: str
    steps: int
    step_inputs: Arrays
    constant_inputs: Arrays
    initial_state: Arrays
    carry: Mapping[str, str]
    step_outputs: Arrays
    final_state: Arrays
    rtol: float
    atol: float


@dataclass(frozen=True)
class StringCase:
    """A model with string tensors: the names of those among its inputs and outputs."""

    model: str
    strings: tuple[str, ...]

    def __str__(self) -> str:
        return self.model


def plain_cases() -> list[Case]:
    """All cases of one run with tensors that can be served, of models and of single operators."""
    manifest = _manifest()
    cases = [
        _model_case(model["name"], case)
        for model in manifest["models"]
        for case in model["cases"]
        if case["kind"] == "plain"
    ]
    return cases + [_node_case(node) for node in manifest["node_cases"] if not _strings(node)]


def string_cases() -> list[StringCase]:
    """All cases with a string tensor."""
    return [
        StringCase(node_model(node["name"]), _strings(node)) for node in _manifest()["node_cases"] if _strings(node)
    ]


def stream_case(model: str) -> StreamCase:
    """The case of a model that carries state from step to step."""
    (case,) = [
        case
        for entry in _manifest()["models"]
        if entry["name"] == model
        for case in entry["cases"]
        if case["kind"] == "stream"
    ]

    def read(key: str) -> Arrays:
        return {entry["name"]: read_tensor(DATA / "models" / model / entry["file"]) for entry in case[key]}

    return StreamCase(
        model,
        case["steps"],
        read("step_inputs"),
        read("constant_inputs"),
        read("initial_state"),
        case["carry"],
        read("step_outputs"),
        read("final_state"),
        case["rtol"],
        case["atol"],
    )


def plain_case(model: str, name: str) -> Case:
    """One case by name."""
    (case,) = [case for case in plain_cases() if (case.model, case.name) == (model, name)]
    return case


def model_files() -> dict[str, Path]:
    """Every model's file by its name in the repository, those with string tensors among them."""
    manifest = _manifest()
    files = {model["name"]: DATA / "models" / model["name"] / "model.onnx" for model in manifest["models"]}
    for node in manifest["node_cases"]:
        files[node_model(node["name"])] = DATA / "node" / node["name"] / "model.onnx"
    return files


def copy_model(root: Path, model: str, name: str = "", config: str = "") -> None:
    """Puts a model into a repository, under its own name or another, with a configuration if one is given."""
    folder = root / (name or model) / "1"
    folder.mkdir(parents=True)
    shutil.copyfile(model_files()[model], folder / "model.onnx")
    if config:
        (folder.parent / "config.pbtxt").write_text(config)


def node_model(name: str) -> str:
    """The name in the repository of a single-operator model."""
    return f"node_{name}"


def read_tensor(path: Path) -> Array:
    """An array of a ``.npy`` file, or of a ``.pb`` file (a TensorProto)."""
    if path.suffix == ".npy":
        array: Array = np.load(path, allow_pickle=False)
        return array
    tensor = onnx.TensorProto.FromString(path.read_bytes())
    if tensor.data_type == onnx.TensorProto.BFLOAT16:  # onnx gives float32 or bfloat16, depending on its version
        return np.frombuffer(tensor.raw_data, ml_dtypes.bfloat16).reshape(tuple(tensor.dims))
    return numpy_helper.to_array(tensor)


def assert_close(got: Array, want: Array, rtol: float, atol: float, what: str) -> None:
    """Equal type, shape and values; floats within the tolerances, NaN equal to NaN."""
    assert got.dtype == want.dtype, f"{what} has type {got.dtype}, expected {want.dtype}"
    assert got.shape == want.shape, f"{what} has shape {got.shape}, expected {want.shape}"
    if want.dtype.kind in "biu":
        assert np.array_equal(got, want), f"{what} differs"
        return
    left, right = got.astype(np.float64), want.astype(np.float64)
    close = np.isclose(left, right, rtol=rtol, atol=atol, equal_nan=True)
    worst = float(np.max(np.abs(left - right), where=~close, initial=0.0))
    assert close.all(), f"{what}: {int((~close).sum())} of {close.size} values differ, the worst by {worst}"


def _manifest() -> Any:
    """The manifest, empty where the shared data are not beside the checkout."""
    file = DATA / "manifest.json"
    return json.loads(file.read_text()) if file.is_file() else {"models": [], "node_cases": []}


def _model_case(model: str, case: Any) -> Case:
    folder = DATA / "models" / model
    return Case(
        model,
        case["name"],
        tuple((entry["name"], folder / entry["file"]) for entry in case["inputs"]),
        tuple((entry["name"], folder / entry["file"]) for entry in case["outputs"]),
        case["rtol"],
        case["atol"],
    )


def _node_case(node: Any) -> Case:
    folder = DATA / "node" / node["name"] / "test_data_set_0"
    return Case(
        node_model(node["name"]),
        "test_data_set_0",
        _numbered(folder, "input", node["inputs"]),
        _numbered(folder, "output", node["outputs"]),
        node["rtol"],
        node["atol"],
    )


def _numbered(folder: Path, kind: str, entries: Sequence[Any]) -> tuple[tuple[str, Path], ...]:
    return tuple((entry["name"], folder / f"{kind}_{index}.pb") for index, entry in enumerate(entries))


def _strings(node: Any) -> tuple[str, ...]:
    return tuple(entry["name"] for entry in (*node["inputs"], *node["outputs"]) if entry["type"] == "STRING")
