"""A supervisor with its workers, as real processes, and what tests ask of them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import grpc
import psutil
from prometheus_client.parser import text_string_to_metric_families

from aclserve_server.rpc.health import CheckRequest, CheckResponse
from supervisor.worker import device_of

ROOT = Path(__file__).resolve().parents[2]


def wait_for(condition: Callable[[], object], what: str) -> None:
    """Waits for what processes tell over the network; looks now and then only, for the processes' sake."""
    end = time.monotonic() + 90
    while not condition():
        assert time.monotonic() < end, f"never happened: {what}"
        time.sleep(0.05)


@dataclass
class Site:
    """A supervisor that said it is ready: `places` are the words of its line."""

    process: subprocess.Popen[str]
    places: dict[str, str]
    log: Path
    plan: Path

    @property
    def own(self) -> dict[int, str]:
        """Each worker's own address."""
        return {int(word[5:]): place for word, place in self.places.items() if word.startswith("grpc.")}

    def pids(self) -> dict[int, int]:
        """The processes of the workers, by device."""
        found = {}
        for child in psutil.Process(self.process.pid).children():
            with suppress(psutil.Error):  # it is gone meanwhile
                words = child.cmdline()
                if "tests.supervisor.worker" in words:
                    found[device_of(words)] = child.pid
        return found

    def get(self, path: str) -> tuple[int, str]:
        """A page of the supervisor's HTTP."""
        try:
            with urllib.request.urlopen(f"http://{self.places['metrics']}{path}", timeout=20) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def metrics(self) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
        """All samples of the page."""
        families = list(text_string_to_metric_families(self.get("/metrics")[1]))
        assert len({family.name for family in families}) == len(families), "a family stands twice"
        return {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in families
            for sample in family.samples
        }

    def metric(self, name: str, **labels: object) -> float:
        """One sample; 0 where there is none."""
        return self.metrics().get((name, frozenset((key, str(value)) for key, value in labels.items())), 0.0)

    def health(self, *names: str) -> dict[str, bool]:
        """Names of the supervisor's health, and whether they serve."""
        with grpc.insecure_channel(self.places["health"]) as channel:
            check = channel.unary_unary(
                "/grpc.health.v1.Health/Check", CheckRequest.SerializeToString, CheckResponse.FromString
            )
            return {name: check(CheckRequest(service=name), timeout=20).status == 1 for name in names}

    def serves(self, name: str) -> bool:
        """The same of one name."""
        return self.health(name)[name]

    def fails(self, **plan: int) -> None:
        """From now on the workers of these devices (`d0=7`) end with a code when they are started."""
        fresh = self.plan.with_suffix(".new")
        fresh.write_text(json.dumps({name[1:]: code for name, code in plan.items()}))
        fresh.rename(self.plan)

    def end(self, number: int = signal.SIGTERM) -> int:
        """Sends a signal and waits for the end; the exit code."""
        self.process.send_signal(number)
        return self.process.wait(90)


def launch(repository: Path, plan: Path, log: Path, *options: str) -> subprocess.Popen[str]:
    """Starts a supervisor on emulated devices, with free ports."""
    if not plan.exists():
        plan.write_text("{}")
    command = [sys.executable, "-m", "tests.supervisor.run", str(plan), "--acl-library=emulator", "--port=0"]
    command += [f"--model-repository={repository}", "--metrics-port=0", "--emulator-memory-bytes=64MiB", *options]
    paths = os.pathsep.join(str(ROOT / name) for name in ("protos", "service", "client", "tests"))
    with log.open("w") as errors:
        return subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": paths},
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )


@contextmanager
def site(folder: Path, repository: Path, *options: str) -> Iterator[Site]:
    """A supervisor that serves; at the end everything is gone, whatever the test did."""
    plan, log = folder / "plan.json", folder / "log"
    with launch(repository, plan, log, *options) as process:
        pids: list[psutil.Process] = []
        try:
            assert process.stdout is not None
            watchdog = threading.Timer(90, process.kill)
            watchdog.start()
            line = process.stdout.readline()
            watchdog.cancel()
            assert line.startswith("ready "), (line, log.read_text())
            yield Site(process, dict(word.split("=", 1) for word in line.split()[1:]), log, plan)
        finally:
            if process.poll() is None:
                pids = psutil.Process(process.pid).children()
                process.kill()
            process.wait(20)
            for child in pids:
                if child.is_running():
                    child.kill()
