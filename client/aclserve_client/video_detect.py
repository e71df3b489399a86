"""Pictures into inputs and outputs into detections, in numpy; only resizing needs Pillow."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aclserve.errors import FailedPrecondition
from aclserve_client.video_config import VideoConfig
from aclserve_client.video_frames import missing_extra

Box = tuple[float, float, float, float]
"""Left, top, right and bottom as parts of the picture's width and height, 0 to 1."""


@dataclass(frozen=True)
class Detection:
    """Something found in a frame: `box` is None for what is said of the picture as a whole."""

    label: str
    score: float
    box: Box | None = None


def prepare(image: NDArray[np.uint8], config: VideoConfig) -> NDArray[Any]:
    """The input for a picture (uint8 RGB, [height, width, 3]): resized, in the model's layout, order and type."""
    pixels = resize(image, config)
    if config.colour == "BGR":
        pixels = pixels[:, :, ::-1]
    elif config.colour == "GREY":
        weights = np.array([0.299, 0.587, 0.114], np.float32)
        pixels = np.rint(pixels.astype(np.float32) @ weights)[:, :, None]
    values = pixels.astype(np.float32)
    values -= np.asarray(config.mean, np.float32)
    values *= np.asarray(config.scale, np.float32)
    if config.layout == "NCHW":
        values = values.transpose(2, 0, 1)
    dtype = np.dtype(config.dtype)
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        values = np.clip(np.rint(values), limits.min, limits.max)
    return np.ascontiguousarray(values, dtype).reshape(config.shape)


def resize(image: NDArray[np.uint8], config: VideoConfig) -> NDArray[Any]:
    """The part of a picture that the model sees, at the size of its input."""
    height, width = image.shape[:2]
    region = config.region(width, height)
    if (width, height) == (config.width, config.height):
        return image
    try:
        from PIL import Image
    except ImportError:
        raise missing_extra("pillow") from None
    size = config.width, config.height
    picture = Image.fromarray(image)
    if config.resize == "area":
        resized = picture.resize(size, Image.Resampling.BOX, box=region)
    else:
        sampling = Image.Resampling.BILINEAR if config.resize == "linear" else Image.Resampling.NEAREST
        resized = picture.transform(size, Image.Transform.EXTENT, region, sampling)
    return np.asarray(resized)


def detect(outputs: Mapping[str, NDArray[Any]], config: VideoConfig, width: int, height: int) -> tuple[Detection, ...]:
    """What the outputs say of a picture of that size, the best first. `FailedPrecondition` if they do not fit."""
    decode = _DECODERS.get(config.decoder)
    if decode is None:
        return ()
    try:
        found = decode(outputs, config)
    except (KeyError, ValueError, IndexError) as error:
        shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in outputs.items())
        raise FailedPrecondition(
            f"the outputs {shapes} are not those of the decoder {config.decoder}", reason="VIDEO_OUTPUTS_INVALID"
        ) from error
    if config.fit == "stretch":
        return tuple(found)
    left, top, right, bottom = config.region(width, height)
    return tuple(
        Detection(
            item.label,
            item.score,
            item.box
            and (
                (left + item.box[0] * (right - left)) / width,
                (top + item.box[1] * (bottom - top)) / height,
                (left + item.box[2] * (right - left)) / width,
                (top + item.box[3] * (bottom - top)) / height,
            ),
        )
        for item in found
    )


def ultraface(outputs: Mapping[str, NDArray[Any]], config: VideoConfig) -> list[Detection]:
    """Scores [1, n, classes], where class 0 is the background, and boxes [1, n, 4] (corners, 0 to 1)."""
    boxes = outputs[config.boxes].astype(np.float32).reshape(-1, 4)
    scores = outputs[config.scores].astype(np.float32).reshape(len(boxes), -1)[:, 1:]
    found = []
    for label in range(scores.shape[1]):
        likely = np.flatnonzero(scores[:, label] >= config.threshold)
        corners, chances = np.clip(boxes[likely], 0, 1), scores[likely, label]
        for at in non_maximum_suppression(corners, chances, config.iou)[: config.top]:
            x1, y1, x2, y2 = (float(value) for value in corners[at])
            found.append(Detection(_label(config, label), float(chances[at]), (x1, y1, x2, y2)))
    found.sort(key=lambda item: -item.score)
    return found[: config.top]


def classes(outputs: Mapping[str, NDArray[Any]], config: VideoConfig) -> list[Detection]:
    """One score for each class, in one output of any shape."""
    scores = outputs[config.scores].astype(np.float64).reshape(-1)
    if config.softmax:
        scores = np.exp(scores - scores.max())
        scores /= scores.sum()
    best = np.argsort(-scores, kind="stable")[: config.top]
    return [Detection(_label(config, int(at)), float(scores[at])) for at in best if scores[at] >= config.threshold]


_DECODERS: Mapping[str, Callable[[Mapping[str, NDArray[Any]], VideoConfig], list[Detection]]] = {
    "ultraface": ultraface,
    "classes": classes,
}


def _label(config: VideoConfig, number: int) -> str:
    return config.labels[number] if number < len(config.labels) else str(number)


def non_maximum_suppression(boxes: NDArray[Any], scores: NDArray[Any], iou: float) -> list[int]:
    """Which boxes ([n, 4], corners) stay, the best first: those that overlap no better one by more than `iou`.

    The overlap is the intersection's part of the union.
    """
    x1, y1, x2, y2 = (np.asarray(boxes, np.float64).reshape(-1, 4)[:, side] for side in range(4))
    areas = (x2 - x1).clip(0) * (y2 - y1).clip(0)
    order = np.argsort(-np.asarray(scores), kind="stable")
    kept: list[int] = []
    while len(order):
        best, rest = order[0], order[1:]
        kept.append(int(best))
        wide = np.minimum(x2[best], x2[rest]) - np.maximum(x1[best], x1[rest])
        high = np.minimum(y2[best], y2[rest]) - np.maximum(y1[best], y1[rest])
        common = wide.clip(0) * high.clip(0)
        union = areas[best] + areas[rest] - common
        order = rest[common <= iou * union]
    return kept
