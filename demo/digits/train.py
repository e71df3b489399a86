"""Trains the classifier of handwritten digits and writes it as ONNX, with the images it has not seen.

The images are scikit-learn's copy of the test part of "Optical Recognition of Handwritten Digits" by E. Alpaydin and
C. Kaynak (UCI Machine Learning Repository, CC BY 4.0): 1797 scans of 8 x 8 pixels, values 0 to 16. A fixed part of 500
is held out and lies beside this file. The network has one hidden layer. All of its history is fixed: split, first
weights and order of the images come from a frozen random stream, and the arithmetic is float64, so that another run
gives the same predictions.

The model takes the pixels as they are and scales them itself. Axis 0 is symbolic everywhere, so rows can be batched.

    image          float32  [rows, 8, 8]   0 to 16
    probabilities  float32  [rows, 10]
    label          int64    [rows]         the most probable digit
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from sklearn.datasets import load_digits

HERE = Path(__file__).resolve().parent
MODEL = HERE.parents[1] / "models" / "digits" / "1" / "model.onnx"
IMAGES = HERE / "heldout_images.npy"
LABELS = HERE / "heldout_labels.npy"

HELD_OUT = 500
HIDDEN = 64
EPOCHS = 40
BATCH = 32
STEP = 2e-3
LARGEST_PIXEL = 16.0

Floats = NDArray[np.float64]


class Digits(NamedTuple):
    """Images [n, 8, 8] of uint8 with values 0 to 16, and their digits [n] of int64."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]


class Weights(NamedTuple):
    """Two layers: [64, hidden], [hidden], [hidden, 10], [10]."""

    first: Floats
    first_bias: Floats
    second: Floats
    second_bias: Floats


def split() -> tuple[Digits, Digits]:
    """The images to learn from and the held-out ones; always the same."""
    data = load_digits()
    order = np.random.RandomState(0).permutation(len(data.images))
    images, labels = data.images.astype(np.uint8)[order], data.target.astype(np.int64)[order]
    return Digits(images[HELD_OUT:], labels[HELD_OUT:]), Digits(images[:HELD_OUT], labels[:HELD_OUT])


def gradients(weights: Weights, rows: Floats, labels: NDArray[np.int64]) -> Weights:
    """The gradient of the mean cross-entropy over some rows [n, 64] of scaled pixels."""
    hidden = np.maximum(rows @ weights.first + weights.first_bias, 0.0)
    scores = hidden @ weights.second + weights.second_bias
    chances = np.exp(scores - scores.max(axis=1, keepdims=True))
    chances /= chances.sum(axis=1, keepdims=True)
    chances[np.arange(len(labels)), labels] -= 1.0
    error = chances / len(labels)
    back = (error @ weights.second.T) * (hidden > 0.0)
    return Weights(rows.T @ back, back.sum(axis=0), hidden.T @ error, error.sum(axis=0))


def train(digits: Digits) -> Weights:
    """Learns with Adam."""
    random = np.random.RandomState(1)
    rows = digits.images.reshape(-1, 64) / LARGEST_PIXEL
    weights = Weights(
        random.standard_normal((64, HIDDEN)) * np.sqrt(2 / 64),
        np.zeros(HIDDEN),
        random.standard_normal((HIDDEN, 10)) * np.sqrt(1 / HIDDEN),
        np.zeros(10),
    )
    means = [np.zeros_like(array) for array in weights]
    squares = [np.zeros_like(array) for array in weights]
    count = 0
    for _ in range(EPOCHS):
        order = random.permutation(len(rows))
        for begin in range(0, len(rows), BATCH):
            chosen = order[begin : begin + BATCH]
            count += 1
            steps = zip(weights, means, squares, gradients(weights, rows[chosen], digits.labels[chosen]), strict=True)
            for array, mean, square, gradient in steps:
                mean += 0.1 * (gradient - mean)
                square += 0.001 * (gradient**2 - square)
                array -= STEP * (mean / (1 - 0.9**count)) / (np.sqrt(square / (1 - 0.999**count)) + 1e-8)
    return weights


def to_onnx(weights: Weights) -> onnx.ModelProto:
    """The network as an ONNX model; the scaling of the pixels is part of it."""
    constants = {
        "scale": np.float32(1 / LARGEST_PIXEL),
        **{k: v.astype(np.float32) for k, v in weights._asdict().items()},
    }
    nodes = [
        helper.make_node("Mul", ["image", "scale"], ["scaled"]),
        helper.make_node("Flatten", ["scaled"], ["pixels"], axis=1),
        helper.make_node("Gemm", ["pixels", "first", "first_bias"], ["hidden"]),
        helper.make_node("Relu", ["hidden"], ["active"]),
        helper.make_node("Gemm", ["active", "second", "second_bias"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["probabilities"], axis=1),
        helper.make_node("ArgMax", ["probabilities"], ["label"], axis=1, keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "digits",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["rows", 8, 8])],
        [
            helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["rows", 10]),
            helper.make_tensor_value_info("label", TensorProto.INT64, ["rows"]),
        ],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, producer_name="aclserve demo", opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    onnx.checker.check_model(model, full_check=True)
    return model


def predict(weights: Weights, images: NDArray[np.uint8]) -> NDArray[np.int64]:
    """The digits that the network sees in images [n, 8, 8]."""
    hidden = np.maximum((images.reshape(-1, 64) / LARGEST_PIXEL) @ weights.first + weights.first_bias, 0.0)
    return np.asarray((hidden @ weights.second + weights.second_bias).argmax(axis=1), np.int64)


def main() -> None:
    learn, held_out = split()
    weights = train(learn)
    accuracy = float((predict(weights, held_out.images) == held_out.labels).mean())
    print(f"{len(learn.labels)} images learnt, {accuracy:.1%} of {len(held_out.labels)} held-out ones recognised")
    MODEL.parent.mkdir(parents=True, exist_ok=True)
    MODEL.write_bytes(to_onnx(weights).SerializeToString(deterministic=True))
    np.save(IMAGES, held_out.images)
    np.save(LABELS, held_out.labels.astype(np.uint8))


if __name__ == "__main__":
    main()
