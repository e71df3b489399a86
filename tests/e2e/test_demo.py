"""The demonstration as a user runs it: answers right, picture drawn, its server stopped with status 0."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def test_demo(root: Path, tmp_path: Path) -> None:
    picture = tmp_path / "pictures" / "demo.png"
    command = [sys.executable, "-m", "demo.run", "--rounds", "2", "--out", str(picture)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    for fact in (
        "ready grpc=127.0.0.1:",
        "acl=emulator",
        "of 1000 answers",
        "throughput",
        "batch sizes",
        "stopped, status 0",
    ):
        assert fact in done.stdout, fact
    assert picture.read_bytes().startswith(b"\x89PNG\r\n")
    assert done.stderr == ""


def test_a_server_that_is_not_there_is_told(root: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "demo.run", "--target", "127.0.0.1:1", "--out", str(tmp_path / "demo.png")]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "127.0.0.1:1" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
