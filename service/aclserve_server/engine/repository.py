"""The model repository: ``<root>/<model>/<version>/model.onnx|model.om``, and ``config.pbtxt`` beside the versions.

Only finds and judges files; nothing is loaded here. A model that cannot be used is an entry with a problem, so that
it is listed with its reason and keeps no other model from being served.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from aclserve_server.engine.model_config import ModelConfig

FILES = ("model.om", "model.onnx")


@dataclass(frozen=True, slots=True)
class Entry:
    """One version of a model on disk. `problem` is empty where it can be tried, and `file` is set then."""

    name: str
    version: int
    file: Path | None
    config: ModelConfig
    problem: str = ""


ReadConfig = Callable[[Path, str], ModelConfig]
"""Reads a configuration file for the model of a name; raises `ValueError` with what is wrong."""


def scan(root: Path, read_config: ReadConfig) -> list[Entry]:
    """All versions of all models, by name and version. Raises `ValueError` where the root is no folder."""
    if not root.is_dir():
        raise ValueError(
            "the model repository is not a folder; give the folder that holds <model>/<version>/model.onnx"
        )
    real = root.resolve()
    entries: list[Entry] = []
    for folder in sorted(root.iterdir()):
        if folder.is_dir() and not folder.name.startswith("."):
            entries.extend(_model(folder, real, read_config))
    return entries


def _model(folder: Path, root: Path, read_config: ReadConfig) -> list[Entry]:
    name = folder.name
    config, problem = ModelConfig(name=name), ""
    file = folder / "config.pbtxt"
    if file.is_file() and not file.resolve().is_relative_to(root):
        problem = "its config.pbtxt is a link that leads out of the repository"
    elif file.is_file():
        try:
            config = read_config(file, name)
        except ValueError as error:
            problem = f"its config.pbtxt cannot be used: {error}"
    versions = sorted(
        int(child.name)
        for child in folder.iterdir()
        if child.is_dir() and child.name.isdecimal() and int(child.name) > 0
    )
    if not versions:
        return [Entry(name, 0, None, config, problem or "it has no version: put the file into <model>/1/")]
    return [_version(folder / str(version), version, root, config, problem) for version in versions]


def _version(folder: Path, version: int, root: Path, config: ModelConfig, problem: str) -> Entry:
    found = [folder / file for file in FILES if (folder / file).exists()]
    if problem:
        return Entry(config.name, version, None, config, problem)
    if not found:
        return Entry(config.name, version, None, config, f"version {version} holds neither {' nor '.join(FILES)}")
    if not found[0].resolve().is_relative_to(root):
        return Entry(
            config.name, version, None, config, f"version {version} is a link that leads out of the repository"
        )
    return Entry(config.name, version, found[0], config)
