"""Writes all services of the server into one descriptor set, with imports and comments, for grpcurl and ghz.

Runs in the environment that holds grpcio-tools, as `stubs.py`.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "out" / "aclserve.protoset"
FILES = {
    "protos": "aclserve/v1/*.proto",
    "service": "aclserve_server/kserve/inference.proto",
}
"""What to take from which folder of imports."""


def command(out: Path) -> list[str]:
    """What writes the set into `out`."""
    roots = [f"--proto_path={ROOT / root}" for root in FILES]
    found = [path.relative_to(ROOT / root) for root, names in FILES.items() for path in (ROOT / root).glob(names)]
    options = ["--include_imports", "--include_source_info", f"--descriptor_set_out={out}"]
    return [sys.executable, "-m", "grpc_tools.protoc", *roots, *options, *sorted(map(str, found))]


def main() -> int:
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else OUT
    out.parent.mkdir(parents=True, exist_ok=True)
    status = subprocess.run(command(out), check=False).returncode  # noqa: S603 (our own files)
    if status == 0:
        print(out)
    return status


if __name__ == "__main__":
    sys.exit(main())
