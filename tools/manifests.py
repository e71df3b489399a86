"""Builds the manifests of deploy/ with kustomize, and holds them against the schemas of Kubernetes and KServe.

    python -m tools.manifests        # `make manifests`; prints what is wrong

Of Kubernetes, strictly: a field that the schema does not have is a fault.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

from tools.compat import ROOT, CompatError, install
from tools.deploy import kustomize, validator

KUBERNETES = ROOT / "deploy" / "kubernetes"
KSERVE = ROOT / "deploy" / "kserve"
OVERLAYS = ("emulated", "ascend", "ascend-310", "ascend-310p", "ascend-npu")
RUNTIMES = ("runtime", "ascend")
RELEASES = ("1.33", "1.37")
"""The oldest Kubernetes that the manifests are for, and the newest that the schemas are there for."""

_STEP_S = 120.0


def build(folder: Path) -> str:
    """What kustomize makes of a folder. Raises `CompatError`."""
    done = _run([str(kustomize()), "build", str(folder)])
    if done.returncode:
        raise CompatError(f"{folder.relative_to(ROOT)}: {done.stderr.strip()}")
    return done.stdout


def together(texts: Iterable[str]) -> str:
    """All objects of several texts: one look at them is quicker than several."""
    return "\n---\n".join(texts)


def objects(text: str) -> list[dict[str, Any]]:
    """The objects of a built text."""
    return list(yaml.safe_load_all(text))


def kubernetes_faults(text: str, releases: Sequence[str] = RELEASES) -> list[str]:
    """What the schemas of Kubernetes have against objects. Raises `CompatError` where they cannot be had."""
    faults = []
    for release in releases:
        with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
            file.write(text)
            file.flush()
            done = _run([str(validator()), "--strict", "--kubernetes-version", release, file.name])
            if done.returncode or "INFO" not in done.stdout + done.stderr:
                faults.append(f"{release}: {(done.stdout + done.stderr).replace(file.name, '').strip()}")
    return faults


def kserve_faults(text: str) -> list[str]:
    """What the models of the kserve package have against objects. Raises `CompatError` where they cannot be had."""
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        file.write(text)
        file.flush()
        done = _run([str(install("kserve")), str(ROOT / "tools" / "kserve_objects.py"), file.name])
    if done.returncode not in (0, 1) or (done.returncode and not done.stdout):
        raise CompatError(f"tools/kserve_objects.py ended with {done.returncode}: {done.stderr.strip()}")
    return done.stdout.replace(f"{file.name}: ", "").splitlines()


def _run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # noqa: S603 (our own commands)
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_STEP_S
    )


def main() -> int:
    """Looks at all of them; 0 when nothing is wrong."""
    faults = []
    try:
        faults += kubernetes_faults(together(build(KUBERNETES / "overlays" / overlay) for overlay in OVERLAYS))
        service = (KSERVE / "inferenceservice.yaml").read_text(encoding="utf-8")
        faults += kserve_faults(together([*(build(KSERVE / runtime) for runtime in RUNTIMES), service]))
    except CompatError as error:
        faults.append(str(error))
    for fault in faults:
        print(f"manifests: {fault}", file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
