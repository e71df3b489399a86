"""Runs `buf lint` on the protos by the rules of buf.yaml.

Installs buf into .tools the first time; where it cannot be had, it says so and succeeds.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TOOLS = ROOT / ".tools"
PACKAGE = "buf-bin==1.75.0"


def find() -> str | None:
    """The path of buf: the one on PATH, or the one in .tools, installed now if need be. None where it cannot be had."""
    path = f"{TOOLS / 'bin'}"
    found = shutil.which("buf", path=path) or shutil.which("buf")
    if found:
        return found
    install = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--no-deps",
        "--only-binary=:all:",
    ]
    subprocess.run([*install, "--target", str(TOOLS), PACKAGE], check=False)  # noqa: S603
    return shutil.which("buf", path=path)


def main() -> int:
    buf = find()
    if buf is None:
        print(f"buf lint left out: {PACKAGE} cannot be installed here", file=sys.stderr)
        return 0
    return subprocess.run([buf, "lint"], cwd=ROOT, check=False).returncode  # noqa: S603


if __name__ == "__main__":
    sys.exit(main())
