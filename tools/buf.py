"""Checks the contract (aclserve.v1) with buf, by the rules of buf.yaml.

    python tools/buf.py             # lint; and nothing that breaks clients of the last release
    python tools/buf.py --release   # keeps the contract as that of a release

The released contract lies in protos/released.binpb, so that the comparison needs no history. Installs buf into .tools
the first time, from PyPI; where it cannot be had, it says so and succeeds.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TOOLS = ROOT / ".tools"
VERSION = "1.75.0"
PACKAGE = f"buf-bin=={VERSION}"
RELEASED = "protos/released.binpb"

CHECKS = {
    "lint": ["lint"],
    "breaking": ["breaking", "--against", RELEASED],
}
RELEASE = ["build", "--exclude-source-info", "--output", RELEASED]


def find(tools: Path = TOOLS) -> str | None:
    """The path of buf, in the wanted version; installed now if need be. None where it cannot be had."""
    folder = f"{tools / 'bin'}"
    for found in filter(None, (shutil.which("buf", path=folder), shutil.which("buf"))):
        told = subprocess.run([found, "--version"], capture_output=True, text=True, check=False)  # noqa: S603
        if told.stdout.strip() == VERSION:
            return found
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    install += ["--only-binary=:all:", "--upgrade", "--target", str(tools), PACKAGE]
    subprocess.run(install, check=False)  # noqa: S603
    return shutil.which("buf", path=folder)


def main(root: Path = ROOT) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--release", action="store_true", help="write the contract as released")
    release = parser.parse_args().release
    buf = find()
    if buf is None:
        print(f"buf left out: {PACKAGE} cannot be installed here", file=sys.stderr)
        return 1 if release else 0
    for name, command in {"build": RELEASE}.items() if release else CHECKS.items():
        if subprocess.run([buf, *command], cwd=root, check=False).returncode:  # noqa: S603
            print(f"buf {name} found faults, see above", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
