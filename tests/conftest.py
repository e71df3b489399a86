"""Fixtures for all rooms."""

from __future__ import annotations

import os
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
