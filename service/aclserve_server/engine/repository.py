"""The model repository: ``<root>/<model>/<version>/model.onnx|model.om``, and ``config.pbtxt`` beside the versions.

Only finds and judges files; nothing is loaded here. A model that cannot be used is an entry with a problem, so that
it is listed with its reason and keeps no other model from being served.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from aclserve.errors import InvalidArgument
from aclserve_server.engine.model_config import ModelConfig, VersionPolicy

FILES = ("model.om", "model.onnx")
CONFIG = "config.pbtxt"
WARMUP_FOLDER = "warmup"

MAX_STAMPED = 1000
"""Files of one folder that are looked at for changes."""

_VERSION = re.compile(r"[1-9][0-9]{0,17}")

Stamp = tuple[tuple[str, int, int, int], ...]
"""What tells that files have changed: of each its name, time of change in nanoseconds, size in bytes, number."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One version of a model on disk. `problem` is empty where it can be tried, and `file` is set then.

    `chosen` tells that the model's version policy serves it. Version 0 stands for a model that has none.
    """

    name: str
    version: int
    file: Path | None
    config: ModelConfig
    problem: str = ""
    chosen: bool = True
    stamp: Stamp = ()


ReadConfig = Callable[[Path, str], ModelConfig]
"""Reads a configuration file for the model of a name; raises `ValueError` with what is wrong."""


@dataclass(frozen=True, slots=True)
class Repository:
    """The folder, and how its configurations are read. `strict` makes a field without a meaning a model's problem.

    Its methods read the disk: they belong to a thread that may block.
    """

    root: Path
    read_config: ReadConfig
    strict: bool = False

    def scan(self, only: str | None = None, config: ModelConfig | None = None) -> list[Entry]:
        """All versions of all models, or of one, by name and version; `config` is used instead of that model's own.

        Raises `ValueError` where the root is no folder.
        """
        if not self.root.is_dir():
            raise ValueError(
                "the model repository is not a folder; give the folder that holds <model>/<version>/model.onnx"
            )
        real = self.root.resolve()
        entries: list[Entry] = []
        for folder in sorted(self.root.iterdir()):
            if folder.name.startswith(".") or only not in (None, folder.name) or not folder.is_dir():
                continue
            try:
                entries += self._model(folder, real, config)
            except OSError as error:
                entries.append(Entry(folder.name, 0, None, ModelConfig(folder.name), _unreadable(error)))
        return entries

    def beside(self, model: str, name: str, folder: str = "") -> Path:
        """A file of a model beside its versions. Raises `ValueError` where it leads out of the model's folder."""
        home = (self.root / model).resolve()
        path = (home / folder / name).resolve()
        if not path.is_relative_to(home) or not path.is_file():
            raise ValueError(f"there is no file {name!r} in the model's folder{f' {folder}' if folder else ''}")
        return path

    def _model(self, folder: Path, root: Path, config: ModelConfig | None) -> list[Entry]:
        name = folder.name
        problem = ""
        if config is None:
            config, problem = self._config(folder, root)
        if self.strict and config.unknown and not problem:
            problem = (
                f"its configuration has fields without a meaning here, and --strict-config is on: {_notes(config)}"
            )
        numbers = [int(child.name) for child in folder.iterdir() if _VERSION.fullmatch(child.name) and child.is_dir()]
        chosen = choose(numbers, config.version_policy)
        about = _stamp([folder / CONFIG, *_beside(folder, config)])
        entries = [
            replace(_version(folder / str(number), root, config, problem, about), chosen=number in chosen)
            for number in sorted(numbers)
        ]
        for number in chosen.difference(numbers):
            missing = problem or f"its version_policy names version {number}, which is not there"
            entries.append(Entry(name, number, None, config, missing, True, about))
        if not entries:
            none = problem or "it has no version: put the file into <model>/1/"
            return [Entry(name, 0, None, config, none, True, about)]
        return sorted(entries, key=lambda entry: entry.version)

    def _config(self, folder: Path, root: Path) -> tuple[ModelConfig, str]:
        file = folder / CONFIG
        if not file.is_file():
            return ModelConfig(folder.name), ""
        if not file.resolve().is_relative_to(root):
            return ModelConfig(folder.name), "its config.pbtxt is a link that leads out of the repository"
        try:
            return self.read_config(file, folder.name), ""
        except ValueError as error:
            return ModelConfig(folder.name), f"its config.pbtxt cannot be used: {error}"


def choose(versions: Iterable[int], policy: VersionPolicy) -> set[int]:
    """The versions that a policy serves, of those there are; for "specific" those that it names."""
    if policy.specific:
        return set(policy.specific)
    ordered = sorted(versions, reverse=True)
    return set(ordered if policy.latest is None else ordered[: policy.latest])


def given_files(name: str, config: ModelConfig, files: Mapping[str, bytes]) -> dict[int, bytes]:
    """The versions of a model that come as bytes, "1/model.onnx" and the like, as far as its policy serves them.

    Raises `InvalidArgument`, reason MODEL_FILE_INVALID, for any other file.
    """
    allowed = (config.file,) if config.file else FILES
    found: dict[int, bytes] = {}
    for path, content in files.items():
        version, _, file = path.partition("/")
        if not _VERSION.fullmatch(version) or file not in allowed or int(version) in found:
            raise InvalidArgument(
                f"{path[:200]!r} is not a file that can be given for model {name[:200]!r}; expected "
                f"<version>/{' or <version>/'.join(allowed)}, one for a version",
                reason="MODEL_FILE_INVALID",
            )
        found[int(version)] = content
    chosen = choose(found, config.version_policy)
    if not chosen <= found.keys():
        missing = ", ".join(map(str, sorted(chosen - found.keys())[:10]))
        raise InvalidArgument(
            f"the version_policy of model {name[:200]!r} names version {missing}, which is not among the files given",
            reason="MODEL_FILE_INVALID",
        )
    return {version: found[version] for version in sorted(chosen)}


def _version(folder: Path, root: Path, config: ModelConfig, problem: str, about: Stamp) -> Entry:
    version = int(folder.name)
    names = (config.file,) if config.file else FILES
    found = [folder / name for name in names if (folder / name).exists()]
    stamp = (*about, *_stamp(folder.iterdir()))
    if problem:
        return Entry(config.name, version, None, config, problem, True, stamp)
    if not found:
        wanted = f"no {names[0]}" if len(names) == 1 else f"neither {' nor '.join(names)}"
        return Entry(config.name, version, None, config, f"version {version} holds {wanted}", True, stamp)
    if not found[0].resolve().is_relative_to(root):
        outside = f"version {version} is a link that leads out of the repository"
        return Entry(config.name, version, None, config, outside, True, stamp)
    return Entry(config.name, version, found[0], config, "", True, stamp)


def _beside(folder: Path, config: ModelConfig) -> list[Path]:
    """The files beside the versions that the configuration names."""
    labels = [folder / tensor.label_filename for tensor in config.outputs if tensor.label_filename]
    samples = [
        folder / WARMUP_FOLDER / given.file for sample in config.warmups for given in sample.inputs if given.file
    ]
    return [*labels, *samples]


def _stamp(files: Iterable[Path]) -> Stamp:
    marks = []
    for file in sorted(files)[:MAX_STAMPED]:
        try:
            status = file.stat()
        except OSError:
            continue
        marks.append((file.name, status.st_mtime_ns, status.st_size, status.st_ino))
    return tuple(marks)


def _notes(config: ModelConfig) -> str:
    return "; ".join(config.notes or config.unknown)


def _unreadable(error: OSError) -> str:
    return f"its folder cannot be read: {error.strerror}"
