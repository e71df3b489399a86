"""Shapes of a model of free shapes where a configuration's `reshape` shows clients other ones: the same bytes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from aclserve.errors import FailedPrecondition
from aclserve_server.device.description import ModelDescription
from aclserve_server.engine.model_config import ModelConfig

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Reshapes:
    """By a tensor's position, what follows its `batch` leading axes: `own` of the inputs, `shown` of the outputs."""

    batch: int = 0
    own: Mapping[int, Shape] = field(default_factory=dict)
    shown: Mapping[int, Shape] = field(default_factory=dict)

    def input_shape(self, index: int, given: Shape) -> Shape:
        """The model's own shape of an input that a client gave."""
        return (*given[: self.batch], *self.own[index]) if index in self.own else given

    def output_shape(self, index: int, made: Shape) -> Shape:
        """The shape that clients see of an output. Raises `FailedPrecondition` where the run made another size."""
        if index not in self.shown:
            return made
        seen = (*made[: self.batch], *self.shown[index])
        if math.prod(seen) != math.prod(made):
            raise FailedPrecondition(
                f"the run made an output of shape {list(made)}, which the model's configuration reshapes to "
                f"{list(seen)}; correct the reshape in its config.pbtxt, or leave it out",
                reason="MODEL_CONFIG_INVALID",
            )
        return seen


def reshapes_of(description: ModelDescription, config: ModelConfig) -> Reshapes:
    """What a configuration, checked before, says of a model whose own description is given."""
    own = {one.name: one.reshape for one in config.inputs if one.reshape is not None}
    shown = {one.name: one.dims or () for one in config.outputs if one.reshape is not None}
    return Reshapes(
        1 if config.max_batch_size else 0,
        {index: own[info.name] for index, info in enumerate(description.inputs) if info.name in own},
        {index: shown[info.name] for index, info in enumerate(description.outputs) if info.name in shown},
    )
