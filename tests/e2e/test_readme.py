"""The commands and the program of README.md, run as they stand there; only ports are replaced by free ones."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

BIN = Path(sys.executable).parent


def blocks(root: Path, mark: str, language: str) -> list[str]:
    text = (root / "README.md").read_text(encoding="utf-8")
    return re.findall(rf"<!-- run: {mark} -->\n```{language}\n(.*?)```", text, re.DOTALL)


def words(line: str, address: str = "") -> list[str]:
    program, *arguments = shlex.split(line)
    return [str(BIN / Path(program).name), *(argument.replace("127.0.0.1:8001", address) for argument in arguments)]


@pytest.fixture(scope="module")
def address(root: Path) -> Iterator[str]:
    (block,) = blocks(root, "server", "sh")
    install, serve = block.splitlines()
    assert install == "make install"
    environ = {**os.environ, "ACLSERVE_PORT": "0", "ACLSERVE_METRICS_PORT": "0"}
    with subprocess.Popen(words(serve), cwd=root, env=environ, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            ready = re.fullmatch(r"ready grpc=(\S+) metrics=\S+ device=0 acl=emulator\n", process.stdout.readline())
            assert ready
            yield ready[1]
        finally:
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 0


def test_client_commands(root: Path, address: str) -> None:
    (block,) = blocks(root, "client", "sh")
    environ = {**os.environ, "ACLSERVE_ADDRESS": address}
    for line in block.splitlines():
        done = subprocess.run(words(line, address), cwd=root, env=environ, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stdout


def test_client_program(root: Path, address: str) -> None:
    (block,) = blocks(root, "client", "python")
    program = block.replace("127.0.0.1:8001", address)
    assert len(program.splitlines()) == 9
    command = [sys.executable, "-W", "error", "-c", program]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 501
