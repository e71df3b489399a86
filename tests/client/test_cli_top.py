"""`aclctl top`: one report, JSON lines, tables, and the live view in a pseudo-terminal; `aclctl stream`'s behaviour."""

from __future__ import annotations

import io
import json
import os
import pty
import select
import signal
import subprocess
import sys

import numpy as np
import pytest
from rich.console import Console

import aclserve_client as ac
from aclserve_client import cli, cli_top


@pytest.fixture
def aclctl(server, capsys, monkeypatch):
    """aclctl(*arguments) -> (exit code, standard output, standard error); the environment names the server."""
    monkeypatch.setenv("ACLSERVE_ADDRESS", server.address)

    def run(*arguments):
        code = cli.main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def test_once(aclctl, server):
    code, out, err = aclctl("top", "--once", "--json")
    assert (code, err) == (0, "")
    document = json.loads(out)
    assert document["streams"][0]["drops"] == {"superseded": 20}
    assert document["models"][0]["fill"] == 0.8125
    assert document["devices"][0]["memory"][0]["free_bytes"] == 3 << 30
    code, out, _ = aclctl("top", "--once")
    assert code == 0
    for text in (
        "echo 1",
        "26.0",
        "81%",
        "latest_only",
        "2 of 8",
        "3.4 s",
        "9.9 ms",
        "superseded 20",
        "5.0 GiB of 8.0",
    ):
        assert text in out, text
    assert server.watch_ended.acquire(timeout=20)  # the call is given up, not left open
    assert server.watch_ended.acquire(timeout=20)


def test_json_lines(aclctl):
    code, out, _ = aclctl("top", "--json", "--count", "3")
    assert code == 0
    assert [json.loads(line)["streams"][0]["received_items"] for line in out.splitlines()] == [30, 60, 90]


def test_tables_where_there_is_no_terminal(aclctl):
    code, out, _ = aclctl("top", "--count", "2", "--interval", "0.1")
    assert code == 0
    assert out.count("memory") == 4  # a title and a column each time


def test_ctrl_c_ends_it_well(aclctl, monkeypatch):
    def interrupt(self, report):
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr("aclserve_client.cli_output.Output.report", interrupt)
    assert aclctl("top", "--json")[0] == 0


def test_the_screen_shows_the_busiest_streams_that_fit():
    def stream(number):
        rates = {"received_per_second": 1.0, "answered_per_second": float(number)}
        counts = dict.fromkeys(
            ("pending_items", "pending_bytes", "window_items", "oldest_age_ns", "received_items", "succeeded_items",
             "failed_items", "dropped_items", "p50_ns", "p99_ns"), 0
        )  # fmt: skip
        status = {"model": "m", "policy": ac.FramePolicy.WAIT, "priority": ac.Priority.LOW, "drops": {}}
        return ac.StreamStatus(number=number, **status, **rates, **counts)

    report = ac.StreamsReport(tuple(map(stream, range(100, 200))), ())
    console = Console(file=io.StringIO(), width=120, height=30)
    console.print(cli_top.screen(report, [], "1.2.3", 30))
    shown = console.file.getvalue()
    assert len(shown.splitlines()) <= 30
    assert "aclserve 1.2.3" in shown
    assert "\n 199 " in shown
    assert "\n 150 " not in shown
    assert "and 84 more streams" in shown


def test_bars():
    assert [cli_top._bar(part, 2) for part in (0, 0.25, 0.5, 0.6, 1, 7, -1)] == [
        "  ", "▌ ", "█ ", "█▎", "██", "██", "  ",
    ]  # fmt: skip


@pytest.mark.parametrize("key", [b"q", b"\x03"], ids=["q", "ctrl-c"])
def test_the_live_view_ends_with_a_key(server, key):
    master, slave = pty.openpty()
    command = [sys.executable, "-m", "aclserve_client.cli", "--address", server.address, "top"]
    environ = {**os.environ, "TERM": "xterm", "COLUMNS": "150", "LINES": "40"}
    with subprocess.Popen(
        command, stdin=slave, stdout=slave, stderr=slave, env=environ, start_new_session=True, preexec_fn=_take_terminal
    ) as process:
        os.close(slave)
        shown = _read_until(master, b"superseded 60")
        os.write(master, key)
        assert b"q ends" in shown
        assert process.wait(20) == 0
    os.close(master)
    assert server.watch_ended.acquire(timeout=20)


def _take_terminal():
    """Makes the pseudo-terminal the process's own, so that its Ctrl-C reaches it."""
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def _read_until(descriptor, text):
    shown = b""
    while text not in shown:
        readable, _, _ = select.select([descriptor], [], [], 20)
        assert readable, shown
        shown += os.read(descriptor, 65536)
    return shown


def test_behaviour_of_a_stream(aclctl, server, tmp_path):
    path = tmp_path / "stack.npy"
    np.save(path, np.arange(30, dtype=np.float32).reshape(10, 3))
    server.drop_ids = {"4"}
    arguments = ("--policy", "drop_oldest", "--order", "submission", "--priority", "high", "--max-age", "0.5")
    code, out, _ = aclctl("stream", "echo", "--input", path, *arguments, "--json")
    document = json.loads(out)
    assert code == 0  # a dropped item is what was asked for
    assert (document["items"], document["succeeded"], document["dropped"]) == (10, 9, 1)
    assert document["drops"] == {"too_old": 1}
    assert (document["policy"], document["order"], document["resumptions"]) == ("drop_oldest", "submission", 0)
    (config,) = server.configs
    assert (config.policy, config.order, config.priority, config.max_age.nanos) == (2, 2, 3, 500_000_000)
    code, out, _ = aclctl("stream", "echo", "--input", path, "--preset", "live")
    assert code == 0
    assert "dropped as too_old" in out
    assert server.configs[1].preset == 2


def test_a_stream_that_resumes(aclctl, server, make_server):
    other = make_server()
    server.accept_items = 5
    addresses = f"{server.address},{other.address}"
    code, out, _ = aclctl("stream", "echo", "--zeros", "--items", 12, "--resume", "--address", addresses, "--json")
    document = json.loads(out)
    assert (code, document["succeeded"], document["resumptions"]) == (0, 12, 1)
    other.accept_items = 1
    server.accept_items = None
    code, out, _ = aclctl(
        "stream", "echo", "--zeros", "--items", 9, "--resume", "--address", f"{other.address},{server.address}"
    )
    assert code == 0
    assert "1 times" in out
