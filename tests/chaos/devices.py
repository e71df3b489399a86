"""Three devices under a supervisor: workers are killed, hung, broken, and restarted in turn, under streaming load."""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import numpy as np

from e2e.test_resume import Load
from serving import elementwise, put_model, rows
from supervisor.site import Site, site, wait_for

BLOWS = {"kill": signal.SIGKILL, "hang": signal.SIGSTOP, "break": signal.SIGUSR1}
"""What is done to one worker."""

PAUSE_S = 7.0
"""How long the supervisor itself is stopped: longer than it lets a worker be silent."""


def blow(up: Site, dice: random.Random) -> str:
    """Does one thing, while two workers at least serve; what it was."""
    wait_for(lambda: sum(up.health(*(f"device:{device}" for device in up.own)).values()) >= 2, "two serve")
    name = dice.choice([*BLOWS, *BLOWS, "roll", "pause"])
    if name == "roll":
        up.process.send_signal(signal.SIGHUP)
    elif name == "pause":
        up.process.send_signal(signal.SIGSTOP)
        time.sleep(PAUSE_S)
        up.process.send_signal(signal.SIGCONT)
    else:
        with suppress(ProcessLookupError):  # it ends by itself
            os.kill(dice.choice(sorted(up.pids().items()))[1], BLOWS[name])
    return name


def storm(folder: Path, seconds: float, seed: int) -> tuple[Counter[str], Counter[str], Counter[str]]:
    """What was done, how workers ended, and how items were answered."""
    put_model(folder / "models", "one", elementwise(), "dynamic_batching {}\n")
    dice = random.Random(seed)
    done: Counter[str] = Counter()
    options = ("--devices=0-2", "--device-timeout-s=1", "--restart-backoff-s=0.05", "--restart-limit=1000")
    with site(folder, folder / "models", *options) as up:
        load = Load(list(up.own.values()))
        with load.running(2, 2, order="submission"):
            load.wait_for_progress(4, "all streams have results")
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                done[blow(up, dice)] += 1
                time.sleep(dice.uniform(0.1, 2.0))
            wait_for(lambda: up.serves("devices"), "all serve again")
            load.wait_for_progress(4, "all streams have results at the end")
        ends: Counter[str] = Counter()
        for (name, labels), value in up.metrics().items():
            if name == "aclserve_worker_exits_total":
                ends[dict(labels)["code"]] += int(value)
        assert up.end() == 0
        text = up.log.read_text()
        assert "Traceback" not in text, text
    return done, ends, check(load)


def check(load: Load) -> Counter[str]:
    """Each item has one answer, in order: its own outputs, or that its device was lost while it was there."""
    answers: Counter[str] = Counter()
    for found in load.results:
        assert [int(result.id) for result in found] == list(range(len(found)))
        for result in found:
            if result.error is None:
                assert np.array_equal(result.outputs["y"], rows(int(result.id), 1)), "a wrong answer"
            else:
                assert result.error.reason == "DEVICE_LOST", result.error
                assert result.error.retry_delay, "a loss without a retry delay"
            answers["OK" if result.error is None else result.error.reason] += 1
    return answers
