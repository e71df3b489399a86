"""gRPC's switch is set before gRPC is there to look at it, and an operator's word stands."""

from __future__ import annotations

import subprocess
import sys

import pytest

from aclserve_server.polling import DIRECT, VARIABLE, poll_directly

PROGRAM = """
import os, sys
import aclserve_server.__main__ as command
assert not any(name.partition(".")[0] == "grpc" for name in sys.modules), "gRPC was imported before the switch was set"
sys.argv = ["aclserve", "--version"]
try:
    command.main()
finally:
    assert "grpc" in sys.modules
    print(os.environ["GRPC_EXPERIMENTS"])
"""


@pytest.mark.parametrize(("own", "expected"), [(None, DIRECT), ("", ""), ("tcp_rcv_lowat", "tcp_rcv_lowat")])
def test_an_operator_s_word_stands(own: str | None, expected: str) -> None:
    environ = {} if own is None else {VARIABLE: own}
    poll_directly(environ)
    assert environ == {VARIABLE: expected}


def test_the_command_sets_it_before_grpc_is_imported() -> None:
    environ = {"PATH": "/usr/bin:/bin", "PYTHONPATH": ":".join(path for path in sys.path if path)}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60, check=False, env=environ
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == DIRECT


def test_this_release_of_grpc_knows_the_switch() -> None:
    """Else it would say so in the log of every server."""
    program = "import grpc\nserver = grpc.server(None)\nserver.add_insecure_port('127.0.0.1:0')\nserver.stop(None)"
    environ = {"PATH": "/usr/bin:/bin", VARIABLE: DIRECT}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False, env=environ
    )
    assert (done.returncode, "Unknown experiment" in done.stderr) == (0, False), done.stderr
