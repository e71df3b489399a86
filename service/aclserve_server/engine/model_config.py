"""What a model's own configuration asks for.

Made by `rpc.model_config` from a `config.pbtxt`; a model without one has the defaults.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

import numpy as np

ExecutionMode = Literal["async", "sync"]
WarmupSource = Literal["zero", "random", "file"]


class ConfigProblem(ValueError):
    """A configuration that cannot be used. Its text says the line and what was expected, without the file's place.

    `line` counts from 1; None where the problem is the file as a whole.
    """

    def __init__(self, line: int | None, problem: str) -> None:
        super().__init__(f"line {line}: {problem}" if line is not None else problem)
        self.line = line
        self.problem = problem


@dataclass(frozen=True, slots=True)
class TensorConfig:
    """A tensor as the configuration states it; what it leaves out is None.

    `dims` has no batch axis where `max_batch_size` is above 0; -1 is any size. `reshape` is the model's own shape, of
    as many elements, where clients see `dims`. `label_filename` names the file of an output's classes, or is "".
    """

    name: str
    dtype: np.dtype[Any] | None = None
    dims: tuple[int, ...] | None = None
    reshape: tuple[int, ...] | None = None
    label_filename: str = ""


@dataclass(frozen=True, slots=True)
class VersionPolicy:
    """Which versions are served: those of `specific`, or all with `latest` None, or the `latest` highest."""

    latest: int | None = 1
    specific: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class QueuePolicy:
    """What may wait. 0 is no bound of the model's own.

    `max_items` counts items. `timeout_s` bounds the wait of an item; its own shorter time holds with `allow_override`,
    or where `timeout_s` is 0.
    """

    max_items: int = 0
    timeout_s: float = 0.0
    allow_override: bool = False


@dataclass(frozen=True, slots=True)
class WarmupInput:
    """One input of a sample: `dims` without the batch axis. `file` lies in the folder `warmup`, for source "file"."""

    name: str
    dtype: np.dtype[Any]
    dims: tuple[int, ...]
    source: WarmupSource
    file: str = ""


@dataclass(frozen=True, slots=True)
class Warmup:
    """An item that is run `count` times before the model is ready, with `rows` rows that are all alike."""

    name: str
    rows: int
    count: int
    inputs: tuple[WarmupInput, ...]


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """One model's configuration. None means not stated: derived from the model, or the server's option holds.

    `max_batch_size` counts rows; 0 turns batching off. `dynamic_batching` says whether the file has that block, even an
    empty one. `preferred_batch_sizes` are rows, ascending. `max_queue_delay_us` is in microseconds.
    At most one of the three kinds of gears is not empty: `dynamic_batch_size` (rows), `dynamic_image_size` (height,
    width), `dynamic_dims` (one value per symbolic axis, all of one length), in the order of the file.
    `file` names the model's file within a version's folder; "" takes the one that is there.
    `unknown` names the fields that were read over because they have no meaning here, as paths without indices, and
    `notes` says of each what happens instead.
    """

    name: str
    backend: str = ""
    max_batch_size: int | None = None
    inputs: tuple[TensorConfig, ...] = ()
    outputs: tuple[TensorConfig, ...] = ()
    dynamic_batching: bool = False
    preferred_batch_sizes: tuple[int, ...] = ()
    max_queue_delay_us: int | None = None
    instance_count: int = 1
    execution_mode: ExecutionMode = "async"
    dynamic_batch_size: tuple[int, ...] = ()
    dynamic_image_size: tuple[tuple[int, int], ...] = ()
    dynamic_dims: tuple[tuple[int, ...], ...] = ()
    parameters: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    file: str = ""
    version_policy: VersionPolicy = field(default_factory=VersionPolicy)
    queue_policy: QueuePolicy = field(default_factory=QueuePolicy)
    warmups: tuple[Warmup, ...] = ()
    unknown: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def has_gears(self) -> bool:
        """Whether the file states gears of any kind."""
        return bool(self.dynamic_batch_size or self.dynamic_image_size or self.dynamic_dims)
