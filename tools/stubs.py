"""Makes the Python stubs of every .proto file, in place; with --check it only tells which ones differ.

Runs in the environment that holds grpcio-tools (`make proto`), so that stubs do not depend on what else is installed.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
IMPORT_ROOTS = ("protos", "service")
"""Folders that .proto files name each other from; each also holds the stubs of its own files."""
SERVICE = re.compile(r"^service \w+", re.MULTILINE)
SUFFIXES = ("_pb2.py", "_pb2.pyi", "_pb2_grpc.py")


def generate(import_root: Path, target: Path) -> None:
    """Writes the stubs of all .proto files below `import_root` to the same places below `target`.

    Only files with a service get a _pb2_grpc.py.
    """
    protos = sorted(path.relative_to(import_root) for path in import_root.rglob("*.proto"))
    with_service = [path for path in protos if SERVICE.search((import_root / path).read_text(encoding="utf-8"))]
    run(import_root, [f"--python_out={target}", f"--pyi_out={target}"], protos)
    run(import_root, [f"--grpc_python_out={target}"], with_service)


def run(import_root: Path, options: list[str], protos: list[Path]) -> None:
    """Runs the compiler on some files."""
    if protos:
        command = [
            sys.executable,
            "-m",
            "grpc_tools.protoc",
            f"--proto_path={import_root}",
            *options,
            *map(str, protos),
        ]
        subprocess.run(command, check=True)  # noqa: S603 (our own files)


def stubs(folder: Path) -> dict[str, bytes]:
    """The stubs below a folder, by relative path."""
    paths = (path for path in folder.rglob("*_pb2*") if path.name.endswith(SUFFIXES))
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def compare(import_root: Path) -> tuple[dict[str, bytes], dict[str, bytes]]:
    """The stubs as they should be and as they are."""
    with tempfile.TemporaryDirectory() as temporary:
        generate(import_root, Path(temporary))
        return stubs(Path(temporary)), stubs(import_root)


def differences(import_root: Path) -> Iterator[str]:
    """What is wrong with the stubs below an import root, one line for each file."""
    wanted, present = compare(import_root)
    for name in sorted(wanted.keys() | present.keys()):
        path = f"{import_root.name}/{name}"
        if name not in present:
            yield f"{path} is missing"
        elif name not in wanted:
            yield f"{path} has nothing to be made from"
        elif wanted[name] != present[name]:
            yield f"{path} does not fit its .proto file"


def renew(import_root: Path) -> None:
    """Writes the stubs below an import root anew and deletes those that nothing makes any more."""
    wanted, present = compare(import_root)
    for name, content in wanted.items():
        (import_root / name).write_bytes(content)
    for name in present.keys() - wanted.keys():
        (import_root / name).unlink()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; fail when a stub differs")
    check = parser.parse_args().check
    if not check:
        for name in IMPORT_ROOTS:
            renew(ROOT / name)
        return 0
    problems = [line for name in IMPORT_ROOTS for line in differences(ROOT / name)]
    for line in problems:
        print(line, file=sys.stderr)
    if problems:
        print("run: make proto", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
