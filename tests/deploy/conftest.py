"""Tools that the tests of deploy/ need. Those that are missing are installed; `make deploy-tools` does it before."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tools.compat import CompatError
from tools.deploy import NotHereError, envoy


def tool(install: Callable[[], Path]) -> Path:
    """A tool, installed if need be; skips where it cannot be had, but not in CI."""
    try:
        return install()
    except CompatError as error:
        if os.environ.get("CI") == "true" and not isinstance(error, NotHereError):
            pytest.fail(str(error))
        pytest.skip(str(error).splitlines()[-1])


@pytest.fixture(scope="session")
def envoy_binary() -> Path:
    """A real Envoy."""
    return tool(envoy)
