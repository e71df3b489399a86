"""Keeps one server process running, as a supervisor does, and kills it now and then."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import psutil

from aclserve_server.cli import EXIT_DEVICE_LOST

ROOT = Path(__file__).resolve().parents[2]
START_S = 60.0
STOP_S = 60.0


@dataclass
class Tally:
    """How its processes ended, and how long it took until the next one served."""

    exits: dict[str, int] = field(default_factory=dict)
    recoveries_s: list[float] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


class Keeper:
    """Starts a process, and another when it ends. Its port stays the same, so that clients find the next one."""

    def __init__(self, settings: dict[str, Any], repository: Path, log: Path, *options: str) -> None:
        self.port = _free_port()
        self.tally = Tally()
        self._settings = settings
        self._log = log
        self._options = [
            "--model-repository",
            str(repository),
            "--port",
            str(self.port),
            "--metrics-port",
            "0",
            *options,
        ]
        self._stopping = threading.Event()
        self._serves = threading.Event()
        self._process: subprocess.Popen[str] | None = None
        self._thread = threading.Thread(target=self._run, name="keeper")

    def __enter__(self) -> Self:
        self._thread.start()
        if not self._serves.wait(START_S):
            self.__exit__()
            raise RuntimeError(f"the server does not come up; see {self._log}")
        return self

    def __exit__(self, *exception: object) -> None:
        """Ends the last process in order."""
        self._stopping.set()
        self.send(signal.SIGTERM)
        self._thread.join(STOP_S + START_S)

    def send(self, number: int) -> None:
        """Sends a signal to the process that serves; nothing where none does."""
        process = self._process
        if process is not None and process.poll() is None:
            process.send_signal(number)

    @property
    def resident_bytes(self) -> int:
        """Memory of the process that serves."""
        assert self._process is not None
        return int(psutil.Process(self._process.pid).memory_info().rss)

    def wait(self, seconds: float) -> bool:
        """Waits until a process serves."""
        return self._serves.wait(seconds)

    def _run(self) -> None:
        number = 0
        down_since = 0.0
        while not self._stopping.is_set():
            number += 1
            with self._log.open("a") as log, self._start(number, log) as process:
                self._process = process
                assert process.stdout is not None
                line = process.stdout.readline()
                if line.startswith("ready "):
                    if down_since:
                        self.tally.recoveries_s.append(time.monotonic() - down_since)
                    self._serves.set()
                elif not self._stopping.is_set():
                    self._stopping.wait(0.2)
                rest = process.stdout.read()
                code = process.wait(STOP_S)
                self._serves.clear()
                down_since = time.monotonic()
                self._judge(code, rest)
        self._process = None

    def _start(self, number: int, log: Any) -> subprocess.Popen[str]:
        settings = {**self._settings, "seed": number}
        paths = os.pathsep.join(str(ROOT / name) for name in ("protos", "service", "client", "tests"))
        return subprocess.Popen(
            [sys.executable, "-m", "tests.chaos.worker", json.dumps(settings), "serve", "--acl-library", "emulator"]
            + self._options,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env={**os.environ, "PYTHONPATH": paths},
        )

    def _judge(self, code: int, rest: str) -> None:
        names = {0: "stopped", EXIT_DEVICE_LOST: "device lost", -signal.SIGKILL: "killed"}
        name = names.get(code, f"exit code {code}")
        self.tally.exits[name] = self.tally.exits.get(name, 0) + 1
        if code not in names:
            self.tally.problems.append(f"a server ended with {code}")
        last = rest.strip().splitlines()[-1:]
        if last:
            told = json.loads(last[0])
            if told["left"] or told["errors"]:
                self.tally.problems.append(f"a server that ended with {code} left {told}")
        elif code == 0:
            self.tally.problems.append("a server that stopped did not tell what it left")


class Killer:
    """Does something to the server now and then, until it is told to end."""

    def __init__(self, keeper: Keeper, seed: int, pause_s: float) -> None:
        self._keeper = keeper
        self._dice = random.Random(seed)
        self._pause_s = pause_s

    def run(self, over: threading.Event) -> None:
        while not over.wait(self._pause_s * self._dice.uniform(0.5, 1.5)):
            if self._keeper.wait(0.0):
                self._keeper.send(self._dice.choice((signal.SIGKILL, signal.SIGUSR1)))


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])
