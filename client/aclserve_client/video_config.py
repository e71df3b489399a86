"""What a model wants of a picture, and what its outputs mean: read from its description.

The facts stand in the model's `config.pbtxt`, under `parameters`, by these keys; each may be left out where the model
itself or the default tells.

    video.input       the input that takes the picture (the only one)
    video.width       of the input, in pixels (the input's shape)
    video.height      of the input, in pixels (the input's shape)
    video.layout      NCHW or NHWC (the input's shape)
    video.colour      RGB, BGR or GREY (RGB; GREY for one channel)
    video.mean        subtracted from each channel, 0 to 255: one number, or one for each in the model's order (0)
    video.scale       multiplied then, the same way; fractions such as 1/255 are taken (1)
    video.dtype       of the input, such as float32 (the input's); must be the input's
    video.fit         stretch: the whole picture, whatever its shape; crop: its centre, of the input's shape (stretch)
    video.resize      linear: sampled; area: averaged; nearest (linear)
    video.decoder     ultraface, classes or none: see `video_detect` (none)
    video.labels      names of the classes, separated by commas, or by line ends where names have commas
    video.threshold   the least score of a detection, 0 to 1 (0.7; classes: 0)
    video.iou         boxes that overlap a better one by more than this are left out (0.5)
    video.top         the most detections of a frame (100; classes: 5)
    video.scores      ultraface: the output with the scores (scores)
    video.boxes       ultraface: the output with the boxes (boxes)
    video.output      classes: the output with the scores (the only one)
    video.softmax     classes: true where the output is not yet probabilities (false)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, TypeVar

import numpy as np

from aclserve.errors import InvalidArgument
from aclserve_client.data import ModelDescription, TensorSpec

T = TypeVar("T")

PREFIX = "video."
_PICTURE_KEYS = {"input", "width", "height", "layout", "colour", "mean", "scale", "dtype", "fit", "resize"}
_OUTPUT_KEYS = {"decoder", "labels", "threshold", "iou", "top", "scores", "boxes", "output", "softmax"}
KEYS = frozenset(_PICTURE_KEYS | _OUTPUT_KEYS)
CHANNELS = {"RGB": 3, "BGR": 3, "GREY": 1}
DECODERS = ("none", "ultraface", "classes")


@dataclass(frozen=True)
class VideoConfig:
    """How pictures become inputs and outputs become detections; the fields are the keys above.

    `mean` and `scale` have one number or one for each channel. `batched` says that the input's axis 0 counts rows.
    `scores` is video.output too.
    """

    input: str
    width: int
    height: int
    layout: str = "NCHW"
    colour: str = "RGB"
    mean: tuple[float, ...] = (0.0,)
    scale: tuple[float, ...] = (1.0,)
    dtype: str = "float32"
    batched: bool = True
    fit: str = "stretch"
    resize: str = "linear"
    decoder: str = "none"
    labels: tuple[str, ...] = ()
    threshold: float = 0.7
    iou: float = 0.5
    top: int = 100
    scores: str = "scores"
    boxes: str = "boxes"
    softmax: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one input."""
        channels = CHANNELS[self.colour]
        plane = self.height, self.width
        image = (channels, *plane) if self.layout == "NCHW" else (*plane, channels)
        return (1, *image) if self.batched else image

    @property
    def outputs(self) -> tuple[str, ...]:
        """The outputs that the decoder reads."""
        return {"ultraface": (self.scores, self.boxes), "classes": (self.scores,)}.get(self.decoder, ())

    def region(self, width: int, height: int) -> tuple[float, float, float, float]:
        """The part of a picture of that size that the model sees: left, top, right and bottom, in pixels."""
        if self.fit == "stretch":
            return 0.0, 0.0, float(width), float(height)
        scale = min(width / self.width, height / self.height)
        wide, high = scale * self.width, scale * self.height
        left, top = (width - wide) / 2, (height - high) / 2
        return left, top, left + wide, top + high


def video_config(model: ModelDescription) -> VideoConfig:
    """The configuration of a model. Raises `InvalidArgument`, reason VIDEO_CONFIG_INVALID, where it does not fit."""
    return _Reader(model).config()


class _Reader:
    def __init__(self, model: ModelDescription) -> None:
        self._model = model
        self._facts: Mapping[str, str] = {
            key.removeprefix(PREFIX): value.strip() for key, value in model.parameters.items() if key.startswith(PREFIX)
        }

    def config(self) -> VideoConfig:
        if unknown := sorted(self._facts.keys() - KEYS):
            raise self._wrong(f"{PREFIX}{unknown[0]}", f"is not known; known are {', '.join(sorted(KEYS))}")
        spec = self._input()
        layout = self._layout(spec)
        channels, height, width = self._plane(spec, layout)
        colour = self._choice("colour", "GREY" if channels == 1 else "RGB", tuple(CHANNELS))
        decoder = self._choice("decoder", "none", DECODERS)
        classes = decoder == "classes"
        config = VideoConfig(
            input=spec.name,
            width=self._size("width", width),
            height=self._size("height", height),
            layout=layout,
            colour=colour,
            mean=self._numbers("mean", 0.0, CHANNELS[colour]),
            scale=self._numbers("scale", 1.0, CHANNELS[colour]),
            dtype=self._dtype(spec),
            batched=len(spec.shape) == 4,
            fit=self._choice("fit", "stretch", ("stretch", "crop")),
            resize=self._choice("resize", "linear", ("linear", "area", "nearest")),
            decoder=decoder,
            labels=self._labels(("face",) if decoder == "ultraface" else ()),
            threshold=self._read("threshold", 0.0 if classes else 0.7, _share),
            iou=self._read("iou", 0.5, _share),
            top=self._size("top", 5 if classes else 100),
            scores=self._output("output" if classes else "scores", decoder),
            boxes=self._output("boxes", decoder),
            softmax=self._choice("softmax", "false", ("true", "false")) == "true",
        )
        fixed = [(want, got) for want, got in zip(spec.shape, config.shape, strict=True) if want >= 0]
        if any(want != got for want, got in fixed):
            raise self._wrong(f"input {spec.name}", f"has the shape {spec.shape}, but the facts say {config.shape}")
        return config

    def _wrong(self, what: str, problem: str) -> InvalidArgument:
        return InvalidArgument(f"model {self._model.name}: {what} {problem}", reason="VIDEO_CONFIG_INVALID")

    def _read(self, key: str, default: T, read: Callable[[str], T]) -> T:
        text = self._facts.get(key)
        if text is None:
            return default
        try:
            return read(text)
        except (ValueError, ZeroDivisionError):
            raise self._wrong(f"{PREFIX}{key}", f"is {text!r}, which cannot be") from None

    def _choice(self, key: str, default: str, choices: tuple[str, ...]) -> str:
        value = self._facts.get(key, default)
        if value not in choices:
            raise self._wrong(f"{PREFIX}{key}", f"is {value!r}; expected {', '.join(choices)}")
        return value

    def _numbers(self, key: str, default: float, channels: int) -> tuple[float, ...]:
        values = self._read(key, [default], lambda text: [float(Fraction(part.strip())) for part in text.split(",")])
        if len(values) not in (1, channels):
            raise self._wrong(f"{PREFIX}{key}", f"has {len(values)} numbers; expected 1 or {channels}")
        return tuple(values)

    def _size(self, key: str, default: int) -> int:
        value = self._read(key, default, int)
        if value < 1:
            said = "must be stated; the input's shape does not tell it" if default < 1 else f"is {value}"
            raise self._wrong(f"{PREFIX}{key}", said)
        return value

    def _input(self) -> TensorSpec:
        name = self._facts.get("input", "")
        found = [spec for spec in self._model.inputs if not name or spec.name == name]
        if len(found) != 1:
            names = ", ".join(spec.name for spec in self._model.inputs)
            raise self._wrong(f"{PREFIX}input", f"must name one of its inputs: {names}")
        spec = found[0]
        if len(spec.shape) not in (3, 4) or len(self._model.inputs) != 1:
            shapes = ", ".join(f"{item.name} {list(item.shape)}" for item in self._model.inputs)
            raise self._wrong("its inputs", f"are {shapes}; expected one picture, of 3 or 4 dimensions")
        return spec

    def _layout(self, spec: TensorSpec) -> str:
        image = spec.shape[-3:]
        likely = "NCHW" if image[0] in (1, 3) else "NHWC" if image[2] in (1, 3) else ""
        if not likely and "layout" not in self._facts:
            raise self._wrong(f"{PREFIX}layout", "must be stated: NCHW or NHWC")
        return self._choice("layout", likely, ("NCHW", "NHWC"))

    def _plane(self, spec: TensorSpec, layout: str) -> tuple[int, int, int]:
        """Channels, height and width as the input's shape says, -1 where it does not."""
        a, b, c = spec.shape[-3:]
        return (a, b, c) if layout == "NCHW" else (c, a, b)

    def _dtype(self, spec: TensorSpec) -> str:
        dtype = self._facts.get("dtype", spec.dtype)
        if dtype != spec.dtype:
            raise self._wrong(f"{PREFIX}dtype", f"is {dtype}, but input {spec.name} takes {spec.dtype}")
        try:
            is_number = np.dtype(dtype).kind in "fiu"
        except TypeError:  # numpy does not know bfloat16
            is_number = False
        if not is_number:
            raise self._wrong(f"input {spec.name}", f"takes {dtype}, which pictures are not made into here")
        return dtype

    def _labels(self, default: tuple[str, ...]) -> tuple[str, ...]:
        text = self._facts.get("labels")
        if not text:
            return default
        return tuple(label.strip() for label in text.split("\n" if "\n" in text else ","))

    def _output(self, key: str, decoder: str) -> str:
        """The name of the output that the decoder wants; it must be there."""
        if decoder == "none" or (decoder == "classes" and key == "boxes"):
            return key
        names = [spec.name for spec in self._model.outputs]
        default = names[0] if key == "output" and len(names) == 1 else key
        name = self._facts.get(key, default)
        if name not in names:
            raise self._wrong(f"{PREFIX}{key}", f"is {name!r}; its outputs are {', '.join(names)}")
        return name


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise ValueError(text)
    return value


def parameters_text(facts: Mapping[str, Any]) -> str:
    """The lines of a `config.pbtxt` that state these facts, given without `video.`."""
    lines = []
    for key, value in facts.items():
        text = str(value).replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
        lines.append(f'parameters {{ key: "{PREFIX}{key}" value {{ string_value: "{text}" }} }}\n')
    return "".join(lines)
