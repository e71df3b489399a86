"""What a loaded model takes and gives, as plain data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

GearKind = Literal["static", "batch", "height_width", "dims"]


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor that clients see.

    `shape` has -1 where the size is chosen per gear or per run. `size_bytes` is the room it needs in the device's
    layout for the largest gear; 0 where that is not known before the run. `channel_block` is C0 of an NC1HWC0 output
    (`format` and `shape` are then the NCHW that clients see, `formats` converts), 0 for plain layouts.
    """

    name: str
    dtype: np.dtype[Any]
    format: str
    shape: tuple[int, ...]
    size_bytes: int
    channel_block: int = 0


@dataclass(frozen=True, slots=True)
class Gear:
    """One fixed set of shapes a model was compiled for.

    `values` is what is given to AscendCL: nothing for "static", (batch,), (height, width), or the dims of all inputs
    concatenated. The shapes are those of the client-visible inputs and outputs, in order.
    """

    kind: GearKind
    values: tuple[int, ...]
    input_shapes: tuple[tuple[int, ...], ...]
    output_shapes: tuple[tuple[int, ...], ...]


class HiddenInput(NamedTuple):
    """An input that AscendCL fills: its position in the dataset, its size."""

    position: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class ModelDescription:
    """A model's inputs and outputs as clients see them, and what a dataset for it needs besides.

    `gears` holds one "static" gear for a static model, and is empty with `unknown_shape`, where shapes are known only
    at or after the run. `gear_input` and `aipp_inputs` are inputs of the dataset that are not among `inputs`.
    `work_bytes` and `weight_bytes` are 0 where AscendCL cannot tell (models of unknown shape).
    """

    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    gears: tuple[Gear, ...]
    gear_input: HiddenInput | None
    unknown_shape: bool
    work_bytes: int
    weight_bytes: int
    aipp_inputs: tuple[HiddenInput, ...] = ()

    @property
    def hidden_inputs(self) -> tuple[HiddenInput, ...]:
        """All inputs of the dataset that clients do not see, in the order of the dataset."""
        gear = () if self.gear_input is None else (self.gear_input,)
        return tuple(sorted((*self.aipp_inputs, *gear)))

    @property
    def input_count(self) -> int:
        """How many buffers an input dataset has."""
        return len(self.inputs) + len(self.hidden_inputs)

    @property
    def input_indices(self) -> tuple[int, ...]:
        """Where in an input dataset each of `inputs` is."""
        hidden = {entry.position for entry in self.hidden_inputs}
        return tuple(index for index in range(self.input_count) if index not in hidden)
