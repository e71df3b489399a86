"""Makes the Go stubs of protos/ in client/go, in place; with --check it only tells which ones differ.

Runs in the environment that holds grpcio-tools, as `stubs.py`. The Go generators are those that client/go/go.mod names
as tools. Only what a client needs: the package aclserve.v1, in one Go package.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PROTOS = ROOT / "protos"
KIT = ROOT / "client" / "go"
MODULE = "aclserve"
PACKAGE = "aclservev1"
GENERATORS = ("protoc-gen-go", "protoc-gen-go-grpc")


def generator(name: str) -> str:
    """The path of one of the kit's tools, built by Go where it is not yet."""
    command = ["go", "-C", str(KIT), "tool", "-n", name]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()  # noqa: S603


def generate(target: Path) -> dict[str, bytes]:
    """The stubs of all .proto files by file name, made below `target`."""
    protos = sorted(path.relative_to(PROTOS).as_posix() for path in PROTOS.rglob("aclserve/v1/*.proto"))
    options = [f"module={MODULE}", *(f"M{name}={MODULE}/{PACKAGE}" for name in protos)]
    command = [sys.executable, "-m", "grpc_tools.protoc", f"--proto_path={PROTOS}"]
    for name in GENERATORS:
        kind = name.removeprefix("protoc-gen-")
        command += [f"--plugin={generator(name)}", f"--{kind}_out={target}"]
        command += [f"--{kind}_opt={option}" for option in options]
    subprocess.run([*command, *protos], check=True)  # noqa: S603 (our own files)
    return stubs(target / PACKAGE)


def stubs(folder: Path) -> dict[str, bytes]:
    """The stubs in a folder, by file name."""
    return {path.name: path.read_bytes() for path in folder.glob("*.pb.go")}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; fail when a stub differs")
    check = parser.parse_args().check
    if shutil.which("go") is None:
        print("left out: there is no `go` on the PATH, which makes the stubs of client/go")
        return 0
    folder = KIT / PACKAGE
    with tempfile.TemporaryDirectory() as temporary:
        wanted, present = generate(Path(temporary)), stubs(folder)
    differing = sorted(name for name in wanted.keys() | present.keys() if wanted.get(name) != present.get(name))
    if check:
        for name in differing:
            print(f"client/go/{PACKAGE}/{name} does not fit the .proto files; run: make proto", file=sys.stderr)
        return 1 if differing else 0
    folder.mkdir(exist_ok=True)
    for name in differing:
        if name in wanted:
            (folder / name).write_bytes(wanted[name])
        else:
            (folder / name).unlink()
    return 0


if __name__ == "__main__":
    sys.exit(main())
