"""ghz: where it is, how it is installed, how it is run."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
MODULE = "github.com/bojand/ghz"
VERSION = "v0.120.0"
BIN = ROOT / ".tools" / "bin"
GHZ = BIN / "ghz"

_INSTALL_S = 900
_RUN_S = 120


class GhzError(Exception):
    """ghz cannot be installed or run; the message says what to do."""


def installed() -> bool:
    """Whether ghz is there, in the wanted version as far as Go is there to tell."""
    if not GHZ.is_file():
        return False
    go = shutil.which("go")
    if go is None:
        return True
    told = subprocess.run([go, "version", "-m", str(GHZ)], capture_output=True, text=True, check=False).stdout
    return any(line.split()[:3] == ["mod", MODULE, VERSION] for line in told.splitlines())


def install() -> Path:
    """Makes sure that ghz is in .tools/bin and returns its path. It takes a minute or two the first time."""
    if installed():
        return GHZ
    go = shutil.which("go")
    if go is None:
        raise GhzError(
            "ghz is built with Go, and there is no `go` on the PATH: install it (https://go.dev/dl), "
            f"or put ghz {VERSION} at {GHZ}"
        )
    print(f"installing ghz {VERSION} into {BIN.relative_to(ROOT)}", flush=True)
    command = [go, "install", f"{MODULE}/cmd/ghz@{VERSION}"]
    environ = {**os.environ, "GOBIN": str(BIN)}
    try:
        done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False, timeout=_INSTALL_S)
    except subprocess.TimeoutExpired:
        raise GhzError(f"{' '.join(command)} took more than {_INSTALL_S} s") from None
    if done.returncode:
        raise GhzError(f"{' '.join(command)} failed:\n{done.stderr.strip()}")
    return GHZ


def run(config: dict[str, Any], file: Path) -> str:
    """Runs ghz with a configuration, kept in `file`; returns what it printed. Raises GhzError where ghz fails."""
    file.write_text(json.dumps(config), encoding="utf-8")
    command = [str(GHZ), f"--config={file}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_RUN_S)
    except subprocess.TimeoutExpired:
        raise GhzError(f"ghz was not through after {_RUN_S} s") from None
    if done.returncode:
        raise GhzError(f"ghz ended with {done.returncode}: {(done.stderr or done.stdout).strip()}")
    return done.stdout
