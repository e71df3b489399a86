"""The inputs that `aclctl` sends: .npy files, or tensors made by the server, fitted to a model, and how they travel."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aclserve_client.cli_output import UsageError, shape_text
from aclserve_client.data import Batching, Input, Inputs, ModelDescription, Random, TensorSpec, Typed, Zeros
from aclserve_client.options import SharedMemory

_SHARED_MEMORY: Mapping[str, SharedMemory] = {"off": False, "auto": "auto", "on": True}


def add_shared_memory(parser: ArgumentParser) -> None:
    """The option of the commands that send tensors."""
    parser.add_argument(
        "--shared-memory",
        choices=tuple(_SHARED_MEMORY),
        default="off",
        help="send large tensors through memory shared with a server on this host; auto: where that is possible (off)",
    )


def shared_memory_mode(arguments: Namespace) -> SharedMemory:
    """What `Options.shared_memory` takes; off for commands without the option."""
    return _SHARED_MEMORY[getattr(arguments, "shared_memory", "off")]


@dataclass(frozen=True)
class Made:
    """Inputs made by the server: all of the model's. `shapes` names those that vary in more than their rows."""

    random: bool
    seed: int = 0
    rows: int = 1
    shapes: Mapping[str, tuple[int, ...]] | None = None

    def inputs(self, model: ModelDescription) -> dict[str, Input]:
        """One item's inputs."""
        unknown = (self.shapes or {}).keys() - {spec.name for spec in model.inputs}
        if unknown:
            raise UsageError(f"--shape names {', '.join(sorted(unknown))}, which {model.name} does not take")
        return {spec.name: self._input(spec, model) for spec in model.inputs}

    def _input(self, spec: TensorSpec, model: ModelDescription) -> Input:
        shape = (self.shapes or {}).get(spec.name, spec.shape)
        if shape and shape[0] < 0 and model.batching is Batching.ROWS:
            shape = (self.rows, *shape[1:])
        if any(dim < 0 for dim in shape):
            raise UsageError(f"input {spec.name} has shape {shape_text(shape)}; say --shape {spec.name}=1,2,3")
        return Random(shape, spec.dtype, self.seed) if self.random else Zeros(shape, spec.dtype)


def load_inputs(arguments: Sequence[str], model: ModelDescription) -> dict[str, NDArray[Any]]:
    """The arrays of `name=file.npy` arguments; the name may be left out where the model has one input."""
    arrays: dict[str, NDArray[Any]] = {}
    for argument in arguments:
        name, separator, path = argument.rpartition("=")
        if not separator:
            if len(model.inputs) != 1:
                names = ", ".join(spec.name for spec in model.inputs)
                raise UsageError(f"--input {argument}: say name=file.npy; {model.name} takes {names}")
            name = model.inputs[0].name
        if name in arrays:
            raise UsageError(f"--input {name} is given twice")
        arrays[name] = load_array(Path(path))
    return arrays


def load_array(path: Path) -> NDArray[Any]:
    """The array of a .npy file."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UsageError(f"cannot read {path} as a .npy file: {error}") from None
    if not isinstance(array, np.ndarray):
        raise UsageError(f"{path} holds several arrays; save each as a .npy file of its own")
    return array


def as_inputs(arrays: Mapping[str, NDArray[Any]], model: ModelDescription) -> Inputs:
    """The arrays as inputs. uint16 holds the bits where the model takes bfloat16, which .npy files do not know."""
    dtypes = {spec.name: spec.dtype for spec in model.inputs}
    return {
        name: Typed(array, "bfloat16") if dtypes.get(name) == "bfloat16" and array.dtype == np.uint16 else array
        for name, array in arrays.items()
    }


class Stacks:
    """Items cut from stacks along axis 0: `rows` rows each for a model that batches, otherwise one entry each."""

    def __init__(self, arrays: Mapping[str, NDArray[Any]], model: ModelDescription, rows: int) -> None:
        lengths = {name: len(array) if array.ndim else 0 for name, array in arrays.items()}
        if not lengths or min(lengths.values()) == 0:
            raise UsageError("every --input of a stream must be a stack with at least one item along axis 0")
        if len(set(lengths.values())) > 1:
            stated = ", ".join(f"{name} has {length}" for name, length in lengths.items())
            raise UsageError(f"the stacks differ in length: {stated}")
        self._arrays, self._model = arrays, model
        self._batched = model.batching is Batching.ROWS
        self._length = next(iter(lengths.values()))
        self._rows = rows if self._batched else 1

    def __len__(self) -> int:
        return -(-self._length // self._rows)

    def __iter__(self) -> Iterator[Inputs]:
        for at in range(0, self._length, self._rows):
            cut: slice | int = slice(at, at + self._rows) if self._batched else at
            yield as_inputs({name: np.asarray(array[cut]) for name, array in self._arrays.items()}, self._model)
