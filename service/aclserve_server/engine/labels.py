"""The names of a classifier's classes, from the files that its configuration names."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from aclserve.errors import FailedPrecondition
from aclserve_server.engine.model_config import ModelConfig
from aclserve_server.engine.repository import Repository

MAX_BYTES = 16 << 20


def read_labels(model: str, config: ModelConfig, repository: Repository) -> Mapping[str, tuple[str, ...]]:
    """Output -> the labels of its classes, one a line of the file. Reads the disk: on a thread that may block.

    Raises `FailedPrecondition`, reason MODEL_LABELS_INVALID.
    """
    found: dict[str, tuple[str, ...]] = {}
    for tensor in config.outputs:
        if not tensor.label_filename:
            continue
        try:
            with repository.beside(model, tensor.label_filename).open("rb") as file:
                content = file.read(MAX_BYTES + 1)
            if len(content) > MAX_BYTES:
                raise ValueError(f"it is longer than {MAX_BYTES} bytes")
            found[tensor.name] = tuple(line.strip() for line in content.decode("utf-8-sig").split("\n"))
        except UnicodeDecodeError as error:
            raise _invalid(tensor.name, tensor.label_filename, "it is not UTF-8 text") from error
        except ValueError as error:
            raise _invalid(tensor.name, tensor.label_filename, str(error)) from error
        except OSError as error:
            raise _invalid(tensor.name, tensor.label_filename, f"it cannot be read: {error.strerror}") from error
        if found[tensor.name] and not found[tensor.name][-1]:
            found[tensor.name] = found[tensor.name][:-1]
    return MappingProxyType(found)


def _invalid(output: str, name: str, why: str) -> FailedPrecondition:
    return FailedPrecondition(
        f"the labels of output {output!r} cannot be read from {name!r}: {why}", reason="MODEL_LABELS_INVALID"
    )
