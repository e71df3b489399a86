"""Every target of the fuzzer for a moment, from the same seeds every time; and that the fuzzer finds what there is."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fuzz import targets
from tests.fuzz.run import NAMES, ROOT, run

RUNS = int(os.environ.get("ACLSERVE_TEST_FUZZ_RUNS", "1500"))


def test_every_target_can_be_named() -> None:
    assert set(NAMES) == set(targets.TARGETS)


@pytest.mark.parametrize("name", NAMES)
def test_what_clients_send_passes(name: str) -> None:
    seeds = targets.seeds(name)
    assert len(seeds) >= 3
    for seed in seeds:
        targets.TARGETS[name](seed)


@pytest.mark.parametrize("name", NAMES)
def test_a_moment_of_each_target(name: str, tmp_path: Path) -> None:
    pytest.importorskip("atheris", reason="atheris has no build for this platform")
    found = run(name, tmp_path, ["-seed=1", f"-atheris_runs={RUNS}"], None)
    assert not found, found[-4000:]
    assert len(list((tmp_path / name).iterdir())) > len(targets.seeds(name)), "no input reached anything new"


PLANTED = """
from tests.fuzz.run import fuzz

def target(data):
    if data[:1] == b"{":
        raise ValueError("found")

fuzz(target, ["-seed=1", "-atheris_runs=20000", "-artifact_prefix=" + __import__("sys").argv[1] + "/"])
"""


def test_what_is_wrong_is_found_and_kept(tmp_path: Path) -> None:
    pytest.importorskip("atheris", reason="atheris has no build for this platform")
    ended = subprocess.run(
        [sys.executable, "-c", PLANTED, str(tmp_path)],
        cwd=ROOT,
        timeout=60,
        check=False,
        capture_output=True,
        text=True,
    )
    assert ended.returncode != 0
    (kept,) = tmp_path.glob("crash-*")
    assert kept.read_bytes()[:1] == b"{"
