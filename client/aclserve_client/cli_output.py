"""What `aclctl` prints: one JSON document, or tables and progress bars by rich, which is imported only for these."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, is_dataclass
from typing import Any

import numpy as np

from aclserve.errors import AclserveError


class UsageError(Exception):
    """The command line, or a file it names, is wrong. Ends with exit code 2."""


@dataclass(frozen=True)
class Table:
    """A table of text; a row has as many cells as there are columns."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[object]]


@dataclass(frozen=True)
class Report:
    """What a command found out: for programs, and for people. Without `ok` the exit code is 1."""

    document: dict[str, Any]
    tables: list[Table] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    ok: bool = True


class Output:
    """Prints reports on standard output and progress on standard error."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        if not as_json:
            _require_rich()

    def report(self, report: Report) -> None:
        if self._as_json:
            print(json.dumps(report.document, default=_plain))
            return
        from rich.console import Console
        from rich.table import Table as RichTable
        from rich.text import Text

        console = Console(width=None if sys.stdout.isatty() else 160, highlight=False, markup=False)
        for table in report.tables:
            shown = RichTable(title=table.title or None, title_justify="left", show_header=any(table.columns))
            for column in table.columns:
                shown.add_column(column, overflow="fold")
            for row in table.rows:
                shown.add_row(*(Text(str(cell)) for cell in row))
            console.print(shown)
        for note in report.notes:
            console.print(note, soft_wrap=True)

    @contextmanager
    def progress(self, description: str, total: int | None) -> Iterator[Callable[[], None]]:
        """A progress bar; the function it gives advances it by one. `total` is None where it is not known."""
        if self._as_json:
            yield lambda: None
            return
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        columns = TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
        with Progress(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task(description, total=total)
            yield lambda: bar.advance(task)


def _require_rich() -> None:
    try:
        import rich  # noqa: F401
    except ImportError:
        raise UsageError(
            "tables and progress bars need the package rich: pip install 'aclserve[cli]' (or use --json)"
        ) from None


def error_lines(error: AclserveError) -> str:
    """An error in two lines: what is wrong, and how a program knows it."""
    facts = [error.code_name, f"reason {error.reason}"]
    if error.retry_delay is not None:
        facts.append(f"try again after {error.retry_delay:g} s")
    facts += [f"{key}={value}" for key, value in sorted(error.metadata.items())]
    return f"aclctl: {' '.join(error.message.split())}\n  {', '.join(facts)}"


def size_text(size_bytes: int) -> str:
    """A size for people: 1.5 GiB."""
    size, units = float(size_bytes), iter(["B", "KiB", "MiB", "GiB", "TiB"])
    unit = next(units)
    while size >= 1024 and unit != "TiB":
        size, unit = size / 1024, next(units)
    return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"


def shape_text(shape: Sequence[int]) -> str:
    """A shape for people: [?, 3] where the first dimension varies."""
    return "[" + ", ".join("?" if dim < 0 else str(dim) for dim in shape) + "]"


def _plain(value: object) -> Any:
    """What json does not know by itself."""
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} has no JSON form")
