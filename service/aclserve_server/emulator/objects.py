"""Host-side objects of the model functions: descriptions, options of a load and of an execution, image pre-
processing.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, field

from aclserve_server.emulator.models import LoadedModel
from aclserve_server.emulator.program import Program


@dataclass(eq=False, slots=True)
class ModelDesc:
    """A model's description. `program` is None until it is filled; `model` is None when it was read without loading."""

    program: Program | None = None
    model: LoadedModel | None = None
    model_id: int = 0
    texts: dict[str, ctypes.Array[ctypes.c_char]] = field(default_factory=dict)

    def text(self, value: str) -> int:
        """The address of a C string that lives as long as this description."""
        buffer = self.texts.get(value)
        if buffer is None:
            buffer = self.texts[value] = ctypes.create_string_buffer(value.encode())
        return ctypes.addressof(buffer)


@dataclass(eq=False, slots=True)
class LoadConfig:
    """Options of aclmdlLoadWithConfig by attribute number."""

    options: dict[int, int | bytes | None] = field(default_factory=dict)


@dataclass(eq=False, slots=True)
class ExecConfig:
    """Options of aclmdlExecuteV2 by attribute number."""

    options: dict[int, int] = field(default_factory=dict)


@dataclass(eq=False, slots=True)
class AippSet:
    """Parameters of dynamic image pre-processing for a batch."""

    batch_size: int
    values: dict[str, tuple[float, ...]] = field(default_factory=dict)
