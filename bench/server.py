"""The server under measurement: a process of its own, on the emulated device, stopped by its pid."""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("grpcio", "protobuf", "numpy", "onnxruntime", "uvloop")


@dataclass(frozen=True)
class Serving:
    """A server that is ready."""

    pid: int
    address: str


@contextmanager
def serving(repository: Path, *options: str) -> Iterator[Serving]:
    """Starts `aclserve serve`, and stops it as an operator would; a bad end is an error."""
    command = [str(Path(sys.executable).parent / "aclserve"), "serve", "--acl-library", "emulator"]
    command += ["--model-repository", str(repository), "--port", "0", "--metrics-port", "0", "--log-level", "warning"]
    with subprocess.Popen([*command, *options], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            if not line.startswith("ready "):
                raise RuntimeError("the server did not start")
            yield Serving(process.pid, line.split()[1].removeprefix("grpc="))
        finally:
            process.send_signal(signal.SIGTERM)
            code = process.wait(60)
    if code:
        raise RuntimeError(f"the server ended with {code}")


def machine() -> str:
    """The machine, the versions and the commit, in one line."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.strip()
    cpu = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.machine(),
    )
    packages = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    return f"{cpu}, {os.cpu_count()} cores; Python {platform.python_version()}, {packages}; commit {commit or 'none'}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; all columns but the first are right-aligned."""
    lines = ["| " + " | ".join(head) + " |", "|---|" + "--:|" * (len(head) - 1)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])
