"""What the engine knows about each version of a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from aclserve_server.engine.loading import Prepared
from aclserve_server.engine.memory import Pin, UploadPin
from aclserve_server.engine.model_config import ModelConfig
from aclserve_server.engine.repository import Stamp
from aclserve_server.engine.runner import Runner
from aclserve_server.engine.statistics import ModelStatistics

ControlMode = Literal["none", "poll", "explicit"]
"""Who decides which models are loaded: the start alone, the repository as it changes, or clients."""

Origin = Literal["repository", "upload", "given"]
"""Where a version comes from: the disk, a client's upload, or files that came with the call that loads it."""

PLATFORMS = {"onnx": "onnxruntime_onnx", "om": "ascend_om"}
"""Kind of model file -> what the KServe v2 protocol calls it."""


class State(Enum):
    """Where a model stands."""

    UNLOADED = "unloaded"
    LOADING = "loading"
    READY = "ready"
    UNLOADING = "unloading"
    UNAVAILABLE = "unavailable"


@dataclass(slots=True, eq=False)
class Record:
    """One version of a model. `file` is None for one that came as bytes, which is gone when it is unloaded.

    `reason` tells why it is unavailable or unloaded, or, of one that is ready, why its last reload failed. `wanted`
    tells that somebody asked for it and nobody unloaded it since. `stamp` is what its files were when it was loaded.
    `kept` holds a client's upload that the device still reads.
    """

    name: str
    version: int
    config: ModelConfig
    file: Path | None
    state: State = State.UNLOADED
    reason: str = ""
    synchronous: bool = False
    prepared: Prepared | None = None
    runner: Runner | None = None
    pins: list[Pin] = field(default_factory=list)
    kept: UploadPin | None = None
    origin: Origin = "repository"
    wanted: bool = False
    kind: str = ""
    stamp: Stamp = ()
    label_sets: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def statistics(self) -> ModelStatistics:
        """What it has done since it was loaded; all zero while it is not."""
        return ModelStatistics() if self.runner is None else self.runner.account.statistics

    @property
    def platform(self) -> str:
        """What runs it, in the words of the KServe v2 protocol; "" before it was ever loaded."""
        return PLATFORMS.get(self.kind, "")

    @property
    def batches_rows(self) -> bool:
        """Whether axis 0 of its tensors counts rows of several items."""
        return self.prepared is not None and self.prepared.batched

    def labels(self, output: str) -> Sequence[str]:
        """The names of an output's classes, in order; none where its configuration names no file of them."""
        return self.label_sets.get(output, ())


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """How to load. `synchronous` None leaves it to the configuration; pins are the caller's work and weight memory.

    `config` is used instead of config.pbtxt. `files` ("1/model.onnx" -> bytes) are used instead of the versions on
    disk, and need `config`.
    """

    synchronous: bool | None = None
    work: Pin | None = None
    weight: Pin | None = None
    config: ModelConfig | None = None
    files: Mapping[str, bytes] = field(default_factory=lambda: MappingProxyType({}))
