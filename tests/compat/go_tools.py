"""The command line tools of others that are built with Go: grpcurl and ghz, installed into .tools/bin."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
from pathlib import Path
from typing import NoReturn

import pytest

from tests.load import ghz

GRPCURL_MODULE = "github.com/fullstorydev/grpcurl"
GRPCURL_VERSION = "v1.9.3"
GRPCURL = ghz.BIN / "grpcurl"

_INSTALL_S = 900
_RUN_S = 60


@functools.cache
def ghz_or_skip() -> Path:
    """ghz, installed if need be; skips without Go, and without a network outside CI."""
    if not ghz.installed():
        _go_or_skip()
    try:
        return ghz.install()
    except ghz.GhzError as error:
        unavailable(str(error))


@functools.cache
def grpcurl_or_skip() -> Path:
    """grpcurl, in the same way."""
    go = shutil.which("go")
    if GRPCURL.is_file() and (go is None or _is_current(go)):
        return GRPCURL
    go = _go_or_skip()
    command = [go, "install", f"{GRPCURL_MODULE}/cmd/grpcurl@{GRPCURL_VERSION}"]
    environ = {**os.environ, "GOBIN": str(ghz.BIN)}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False, timeout=_INSTALL_S)
    if done.returncode:
        unavailable(f"{' '.join(command)} failed:\n{done.stderr.strip()}")
    return GRPCURL


def shell(command: str, *, code: int = 0) -> str:
    """Runs a command as a shell does, with grpcurl and ghz on the PATH; returns what it printed."""
    environ = {**os.environ, "PATH": f"{ghz.BIN}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        ["/bin/sh", "-c", command], env=environ, capture_output=True, text=True, check=False, timeout=_RUN_S
    )
    assert done.returncode == code, f"{command}\nended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
    return done.stdout if code == 0 else done.stderr


def _is_current(go: str) -> bool:
    told = subprocess.run([go, "version", "-m", str(GRPCURL)], capture_output=True, text=True, check=False).stdout
    return any(line.split()[:3] == ["mod", GRPCURL_MODULE, GRPCURL_VERSION] for line in told.splitlines())


def _go_or_skip() -> str:
    go = shutil.which("go")
    if go is None:
        pytest.skip("needs Go (https://go.dev/dl), to build grpcurl and ghz")
    return go


def unavailable(why: str) -> NoReturn:
    """Fails in CI, where everything can be installed; skips elsewhere."""
    if os.environ.get("CI") == "true":
        pytest.fail(why)
    pytest.skip(f"cannot be installed: {why}")
