"""`aclctl top`: what a server's streams, models and memory do, as tables, as JSON lines, or live in the terminal."""

from __future__ import annotations

import select
import sys
import threading
from argparse import Namespace
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from itertools import islice
from typing import TYPE_CHECKING, Any

from aclserve_client.cli_output import Output, Report, Table, size_text
from aclserve_client.client import Client
from aclserve_client.data import DeviceInfo
from aclserve_client.stream_data import ModelStatus, StreamsReport, StreamStatus

if TYPE_CHECKING:
    from rich.console import RenderableType

_KEY_CHECK_S = 0.2
_FRAME_LINES = 14
"""Lines of the live view besides the rows of its tables."""
_BAR = "▏▎▍▌▋▊▉█"

_MODEL_COLUMNS = ("model", "executions/s", "rows/s", "rows/batch", "fill", "queued rows")
_STREAM_COLUMNS = (
    *("stream", "model", "policy", "priority", "in/s", "out/s", "pending", "age", "p50", "p99"),
    *("answered", "failed", "dropped"),
)


def top(client: Client, arguments: Namespace, output: Output) -> None:
    """Shows report after report: live in a terminal, otherwise one after the other."""
    count = 1 if arguments.once else arguments.count
    reports = islice(client.watch_streams(arguments.interval), count)
    if arguments.json or arguments.once or not sys.stdout.isatty():
        with suppress(KeyboardInterrupt):
            for report in reports:
                output.report(_as_report(report, client.devices()))
                sys.stdout.flush()
    else:
        _show_live(client, reports)


def _as_report(report: StreamsReport, devices: Sequence[DeviceInfo]) -> Report:
    document = {**asdict(report), "devices": [asdict(device) for device in devices]}
    tables = [
        Table("models", _MODEL_COLUMNS, [_model_row(model) for model in report.models]),
        Table("streams", _STREAM_COLUMNS, [_stream_row(stream) for stream in report.streams]),
        Table("memory", ("device", "memory", "used", ""), list(_memory_rows(devices))),
    ]
    return Report(document, tables)


def _model_row(model: ModelStatus) -> tuple[str, ...]:
    return (
        f"{model.name} {model.version}",
        f"{model.executions_per_second:.1f}",
        f"{model.rows_per_second:.1f}",
        f"{model.mean_batch_rows:.1f}",
        f"{_bar(model.fill, 10)} {model.fill:4.0%}" if model.fill else "",
        str(model.queue_rows),
    )


def _stream_row(stream: StreamStatus) -> tuple[str, ...]:
    drops = ", ".join(f"{reason} {count}" for reason, count in stream.drops.items())
    return (
        str(stream.number),
        stream.model,
        stream.policy,
        stream.priority,
        f"{stream.received_per_second:.1f}",
        f"{stream.answered_per_second:.1f}",
        f"{stream.pending_items} of {stream.window_items}",
        _time_text(stream.oldest_age_ns),
        _time_text(stream.p50_ns),
        _time_text(stream.p99_ns),
        str(stream.succeeded_items),
        str(stream.failed_items),
        drops or "0",
    )


def _memory_rows(devices: Iterable[DeviceInfo]) -> Iterator[tuple[str, ...]]:
    for device in devices:
        for memory in device.memory:
            used = memory.total_bytes - memory.free_bytes
            part = used / memory.total_bytes if memory.total_bytes else 0.0
            text = f"{size_text(used)} of {size_text(memory.total_bytes)}"
            yield f"{device.id} {device.soc_name}", memory.kind, text, _bar(part, 20)


def _time_text(time_ns: int) -> str:
    """A time for people: 1.2 ms, 3.4 s."""
    if not time_ns:
        return ""
    return f"{time_ns / 1e6:.1f} ms" if time_ns < 1e9 else f"{time_ns / 1e9:.1f} s"


def _bar(part: float, width: int) -> str:
    """A bar of block characters, `width` wide when `part` is 1."""
    eighths = round(min(max(part, 0.0), 1.0) * width * 8)
    full, rest = divmod(eighths, 8)
    return ("█" * full + (_BAR[rest - 1] if rest else "")).ljust(width)


# Live.


def _show_live(client: Client, reports: Iterable[StreamsReport]) -> None:
    from rich.console import Console
    from rich.live import Live

    console = Console(highlight=False, markup=False)
    with suppress(KeyboardInterrupt), Live(console=console, screen=True, auto_refresh=False) as live, _key_q_ends():
        version = client.server_info().version
        live.update(screen(None, [], version, console.height), refresh=True)
        for report in reports:
            live.update(screen(report, client.devices(), version, console.height), refresh=True)


def screen(report: StreamsReport | None, devices: Sequence[DeviceInfo], version: str, height: int) -> RenderableType:
    """One full screen of `height` lines; streams that do not fit are counted, the busiest are shown."""
    from rich.console import Group
    from rich.text import Text

    head = Text.assemble(("aclserve ", "bold"), version, "   q ends", style="dim")
    if report is None:
        return Group(head, Text("waiting for the first report"))
    models = _table(_MODEL_COLUMNS, [_model_row(model) for model in report.models], left=1)
    memory = _table(("device", "memory", "used", ""), list(_memory_rows(devices)), left=4)
    memory_lines = sum(len(device.memory) for device in devices)
    room = max(3, height - len(report.models) - memory_lines - _FRAME_LINES)
    busiest = sorted(report.streams, key=lambda stream: (-stream.answered_per_second, stream.number))
    streams = _table(_STREAM_COLUMNS, [_stream_row(stream) for stream in busiest[:room]], left=4)
    hidden = len(busiest) - room
    foot = Text(f"and {hidden} more streams" if hidden > 0 else f"{len(busiest)} streams", style="dim")
    return Group(head, models, memory, streams, foot)


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]], left: int) -> Any:
    """A table whose first `left` columns are texts, the others numbers."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table as RichTable
    from rich.text import Text

    table = RichTable(box=SIMPLE_HEAD, pad_edge=False, expand=True, header_style="bold cyan")
    for position, column in enumerate(columns):
        table.add_column(column, justify="left" if position < left else "right", no_wrap=True, overflow="ellipsis")
    for row in rows:
        table.add_row(*map(Text, row))
    return table


@contextmanager
def _key_q_ends() -> Iterator[None]:
    """Makes the key q act as Ctrl-C in the main thread; the terminal is set back at the end."""
    import os
    import signal
    import termios
    import tty

    if not sys.stdin.isatty():
        yield
        return
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    over = threading.Event()
    main = threading.get_ident()

    def watch() -> None:
        while not over.is_set():
            readable, _, _ = select.select([descriptor], [], [], _KEY_CHECK_S)
            if readable and os.read(descriptor, 1) in (b"q", b"Q", b""):
                signal.pthread_kill(main, signal.SIGINT)
                return

    watcher = threading.Thread(target=watch, name="aclctl-keys", daemon=True)
    tty.setcbreak(descriptor)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
