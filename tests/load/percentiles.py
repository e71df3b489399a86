"""Percentiles over items, from the timings that come with the answers. ghz measures whole calls.

    python -m tests.load.percentiles out/load/bidi_steady.items.jsonl

reads the answers that `make load` has kept, one JSON object a line, and prints a table.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

TIMES = ("wait", "copy_in", "execute", "copy_out", "total")
COUNTS = ("batch_rows", "queue_rows")
RANKS = (50.0, 90.0, 95.0, 99.0)

Timing = Mapping[str, float]
"""The fields of a Timing by name: times in nanoseconds, as `wait_ns`, and counts."""

Row = dict[str, float]
"""The percentiles of one figure by name: p50, p90, p95, p99, max; and mean."""


def percentile(ordered: Sequence[float], rank: float) -> float:
    """The smallest of the ordered values that at least `rank` percent of them do not exceed (nearest rank)."""
    if not ordered or not 0 < rank <= 100:
        raise ValueError(f"needs values, and a rank above 0 and up to 100; got {len(ordered)} values, rank {rank}")
    return ordered[max(0, math.ceil(rank * len(ordered) / 100) - 1)]


def spread(values: Iterable[float]) -> Row:
    """The percentiles, the maximum and the mean of one or more values."""
    ordered = sorted(values)
    row = {f"p{rank:g}": percentile(ordered, rank) for rank in RANKS}
    return {**row, "max": ordered[-1], "mean": math.fsum(ordered) / len(ordered)}


def of_timings(timings: Sequence[Timing]) -> dict[str, Row]:
    """The percentiles of all figures by name: `wait_ms` and so on, `batch_rows`, `queue_rows`; none without timings."""
    if not timings:
        return {}
    rows = {f"{name}_ms": spread(timing[f"{name}_ns"] / 1e6 for timing in timings) for name in TIMES}
    return {**rows, **{name: spread(timing[name] for timing in timings) for name in COUNTS}}


def of_lines(lines: Iterable[str]) -> dict[str, Row]:
    """The percentiles over kept answers; those without a timing never ran and do not count."""
    answers = (json.loads(line) for line in lines)
    return of_timings([answer["timing"] for answer in answers if answer["timing"] is not None])


def table(rows: Mapping[str, Row]) -> str:
    """The percentiles as text, a line for each figure."""
    if not rows:
        return "  no item was executed\n"
    columns = list(next(iter(rows.values())))
    head = f"  {'per item':<12}" + "".join(f"{column:>10}" for column in columns)
    lines = [f"  {name:<12}" + "".join(f"{row[column]:>10.2f}" for column in columns) for name, row in rows.items()]
    return "\n".join([head, *lines]) + "\n"


def main() -> int:
    if len(sys.argv) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    with Path(sys.argv[1]).open(encoding="utf-8") as lines:
        print(table(of_lines(lines)), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
