"""The demonstration's model: what it takes and gives, how good it is, and that training it again changes nothing."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest


@pytest.fixture(scope="module")
def script(root: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("digits_train", root / "demo/digits/train.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(model: bytes, images: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    probabilities, labels = session.run(["probabilities", "label"], {"image": images.astype(np.float32)})
    return probabilities, labels


def test_committed_images_are_the_held_out_part(script: ModuleType) -> None:
    learn, held_out = script.split()
    assert len(learn.labels) + len(held_out.labels) == 1797
    np.testing.assert_array_equal(np.load(script.IMAGES), held_out.images)
    np.testing.assert_array_equal(np.load(script.LABELS), held_out.labels)
    assert (held_out.images.min(), held_out.images.max()) == (0, 16)


def test_another_training_gives_the_same_predictions(script: ModuleType) -> None:
    learn, held_out = script.split()
    weights = script.train(learn)
    probabilities, labels = run(script.MODEL.read_bytes(), held_out.images)
    again, labels_again = run(script.to_onnx(weights).SerializeToString(), held_out.images)
    np.testing.assert_array_equal(labels_again, labels)
    np.testing.assert_array_equal(script.predict(weights, held_out.images), labels)
    np.testing.assert_allclose(again, probabilities, atol=1e-3)


def test_accuracy_on_unseen_images(script: ModuleType) -> None:
    images, truth = np.load(script.IMAGES), np.load(script.LABELS)
    probabilities, labels = run(script.MODEL.read_bytes(), images)
    assert (labels == truth).mean() > 0.95
    np.testing.assert_array_equal(probabilities.argmax(axis=1), labels)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1.0, atol=1e-5)


def test_axis_0_counts_rows_everywhere(script: ModuleType) -> None:
    graph = onnx.load(script.MODEL).graph
    shapes = {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in [*graph.input, *graph.output]
    }
    assert shapes == {"image": ["rows", 8, 8], "probabilities": ["rows", 10], "label": ["rows"]}
