"""Fixtures for all rooms."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of AscendCL facts and real test data beside the checkout; skips where it is absent, but not in CI."""
    folder = ROOT.parent / "shared"
    if not (folder / "acl" / "abi.json").is_file():
        if os.environ.get("CI") == "true":
            pytest.fail("the shared facts and data must be present beside the checkout in CI")
        pytest.skip("needs the shared facts and data beside the checkout")
    return folder


@pytest.fixture(autouse=True)
def _logging_stays() -> Iterator[None]:
    """Takes back what a test, such as one that runs a command within this process, made of the process's logging."""
    root = logging.getLogger()
    level, before = root.level, list(root.handlers)
    yield
    root.setLevel(level)
    for handler in list(root.handlers):
        if handler not in before and type(handler).__module__ == "aclserve_server.logs":
            root.removeHandler(handler)
