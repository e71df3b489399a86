"""Percentiles over items: the nearest rank, and what is taken from kept answers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.load.percentiles import COUNTS, RANKS, TIMES, of_lines, of_timings, percentile, spread, table

VALUES = st.lists(st.floats(0, 1e12), min_size=1, max_size=200)
ANY_RANK = st.floats(0, 100, exclude_min=True)


def timing(value: float, **others: float) -> dict[str, float]:
    return {**{f"{name}_ns": value for name in TIMES}, **dict.fromkeys(COUNTS, 1.0), **others}


@pytest.mark.parametrize(
    ("rank", "expected"), [(1, 15), (5, 15), (20, 15), (20.1, 20), (30, 20), (40, 20), (50, 35), (99, 50), (100, 50)]
)
def test_the_nearest_rank(rank: float, expected: float) -> None:
    assert percentile([15, 20, 35, 40, 50], rank) == expected


@given(VALUES, ANY_RANK)
def test_a_percentile_is_a_value_that_just_enough_values_do_not_exceed(values: list[float], rank: float) -> None:
    ordered = sorted(values)
    found = percentile(ordered, rank)
    assert found in ordered
    assert sum(value <= found for value in ordered) * 100 >= rank * len(ordered) * (1 - 1e-12)
    assert sum(value < found for value in ordered) * 100 < rank * len(ordered)


@given(VALUES)
def test_percentiles_grow_with_the_rank_up_to_the_maximum(values: list[float]) -> None:
    row = spread(values)
    found = [row[f"p{rank:g}"] for rank in RANKS]
    assert found == sorted(found)
    assert found[-1] <= row["max"] == max(values)
    assert min(values) * (1 - 1e-9) <= row["mean"] <= max(values) * (1 + 1e-9)


@pytest.mark.parametrize(("values", "rank"), [([], 50.0), ([1.0], 0.0), ([1.0], 100.5), ([1.0], -1.0)])
def test_what_has_no_percentile_is_refused(values: list[float], rank: float) -> None:
    with pytest.raises(ValueError, match="rank"):
        percentile(values, rank)


def test_times_are_in_milliseconds_and_counts_as_they_are() -> None:
    rows = of_timings([timing(2_000_000, batch_rows=8), timing(4_000_000, batch_rows=16)])
    assert list(rows) == ["wait_ms", "copy_in_ms", "execute_ms", "copy_out_ms", "total_ms", "batch_rows", "queue_rows"]
    assert rows["total_ms"] == {"p50": 2.0, "p90": 4.0, "p95": 4.0, "p99": 4.0, "max": 4.0, "mean": 3.0}
    assert rows["batch_rows"]["mean"] == 12.0


def answers() -> list[dict[str, Any]]:
    return [
        {"call": 0, "id": "0", "outcome": "OK", "timing": timing(1_000_000)},
        {"call": 0, "id": "1", "outcome": "DROPPED", "timing": None},
        {"call": 1, "id": "0", "outcome": "OK", "timing": timing(3_000_000)},
    ]


def test_answers_without_a_timing_do_not_count() -> None:
    rows = of_lines(json.dumps(answer) for answer in answers())
    assert rows["total_ms"]["mean"] == 2.0
    assert of_lines([json.dumps(answers()[1])]) == {}
    assert table({}) == "  no item was executed\n"


def test_the_script_prints_a_line_for_each_figure(root: Path, tmp_path: Path) -> None:
    file = tmp_path / "answers.jsonl"
    file.write_text("".join(json.dumps(answer) + "\n" for answer in answers()))
    command = [sys.executable, "-m", "tests.load.percentiles", str(file)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True, timeout=60)
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["per", *of_timings([timing(1.0)])]
    assert done.stdout == table(of_lines(file.read_text().splitlines()))
