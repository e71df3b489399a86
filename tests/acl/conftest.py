"""Fixtures of the acl room: the facts, the probe library, and the library opened on it."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from aclserve_server.acl.library import Library, open_library

HERE = Path(__file__).parent


def _load(name: str) -> ModuleType:
    """A helper beside this file, under a name of its own: `acl` may be an installed module on a machine with CANN."""
    known = f"aclserve_tests_acl_{name}"
    if known not in sys.modules:
        spec = importlib.util.spec_from_file_location(known, HERE / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[known] = module
        spec.loader.exec_module(module)
    return sys.modules[known]


@pytest.fixture(scope="session")
def facts() -> Any:
    return json.loads((HERE / "facts.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def make_facts() -> ModuleType:
    return _load("make_facts")


@pytest.fixture(scope="session")
def probes() -> ModuleType:
    """The module that builds probe libraries."""
    return _load("probe")


@pytest.fixture(scope="session")
def compiled(probes: ModuleType, facts: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The probe's object file: compiled once, linked per library."""
    return probes.compile_object(facts, tmp_path_factory.mktemp("probe"))


@pytest.fixture(scope="session")
def probe_folder(probes: ModuleType, facts: Any, compiled: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a libascendcl.so that exports every function."""
    folder = tmp_path_factory.mktemp("whole")
    probes.link(compiled, folder / "libascendcl.so", [row["name"] for row in facts["functions"]])
    return folder


@pytest.fixture(scope="session")
def library(probe_folder: Path) -> Library:
    """The driver's library, opened on the probe the way any library is opened."""
    return open_library(str(probe_folder), {})


@pytest.fixture(scope="session")
def recorder() -> ModuleType:
    """The module that reads what a probe library recorded."""
    return _load("recorder")


@pytest.fixture
def probe(recorder: ModuleType, library: Library) -> Iterator[Any]:
    """The same shared object seen from the other side."""
    probe = recorder.Probe(Path(library.path))
    probe.reset()
    yield probe
    probe.reset()
