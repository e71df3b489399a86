"""Short runs of the load scenarios with ghz itself, by reflection alone. Nothing looks at a clock."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.load import ghz, percentiles, scenario
from tests.load.checks import problems
from tests.load.run import recorded, reported
from tests.load.server import Place, started


@pytest.fixture(scope="module")
def tool() -> Path:
    """ghz, installed if need be; skips without Go, and without a network outside CI."""
    if not ghz.installed() and shutil.which("go") is None:
        pytest.skip("needs ghz, which is installed with Go, and there is no `go` on the PATH")
    try:
        return ghz.install()
    except ghz.GhzError as error:
        if os.environ.get("CI") == "true":
            pytest.fail(str(error))
        pytest.skip(f"needs ghz: {error}")


@pytest.mark.slow
@pytest.mark.usefixtures("tool")
@pytest.mark.parametrize("name", scenario.names())
def test_every_item_is_answered_and_nothing_unexpected_happens(name: str, tmp_path: Path) -> None:
    work = scenario.load(name, short=True)
    with started(work.server) as place:
        seen = recorded(work, place, tmp_path)
        straight = reported(work, place, tmp_path / "straight.json")
    assert problems(seen) == []
    assert problems(straight) == []
    assert seen.executed == seen.outcomes["OK"] > 0
    assert seen.outcomes.total() == work.calls * work.items
    kept = percentiles.of_lines((tmp_path / f"{name}.items.jsonl").read_text().splitlines())
    assert kept == seen.percentiles
    if name == "bidi_burst":
        assert seen.after_half_close > 0


@pytest.mark.usefixtures("tool")
def test_a_server_that_cannot_be_reached_is_a_failure(tmp_path: Path) -> None:
    work = scenario.load("unary", short=True)
    with pytest.raises(ghz.GhzError, match="ghz ended with 1"):
        reported(work, Place("127.0.0.1:1"), tmp_path / "report.json")


def test_without_go_it_says_what_is_missing(root: Path, tmp_path: Path) -> None:
    """In a copy of the folder, where ghz is not installed."""
    shutil.copytree(root / "tests" / "load", tmp_path / "tests" / "load", ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "tests.load.run", "unary"]
    environ = {**os.environ, "PATH": str(tmp_path)}
    done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "ghz is built with Go, and there is no `go` on the PATH" in done.stderr
    assert "Traceback" not in done.stderr
