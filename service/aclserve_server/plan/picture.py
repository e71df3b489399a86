"""Draws what came of a plan, by matplotlib (extra `aclserve[plan]`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from aclserve_server.options import ConfigError
from aclserve_server.plan.report import Document
from aclserve_server.plan.simulation import Outcome
from aclserve_server.plan.sources import BINS

MOST_BARS = 64


def prepare(path: Path) -> None:
    """Makes the picture's folder; ConfigError where it could not be drawn or written, before anything is simulated."""
    kinds = sorted(_canvas().get_supported_filetypes())
    if path.suffix.removeprefix(".").lower() not in kinds:
        raise ConfigError(
            [f"--picture: got {path.name!r}, expected a name that ends in .png, or in .{', .'.join(kinds)}"]
        )
    is_new = not path.exists()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab"):
            pass
        if is_new:
            path.unlink()
    except OSError as error:
        raise ConfigError([f"--picture: got {str(path)!r}, which cannot be written: {error.strerror}"]) from error


def draw(path: Path, outcome: Outcome, title: str) -> None:
    """A run: answers and losses over time, latencies, and how busy devices, event loops and proxies are."""
    figure = _figure(title)
    over_time, latency, busy = figure.subplots(3, 1)
    width = outcome.seconds / BINS
    middles = [outcome.plan.run.warmup_s + (at + 0.5) * width for at in range(BINS)]
    scale = outcome.scale / width
    for number, (name, tally) in enumerate(outcome.tallies.items()):
        over_time.plot(middles, [count * scale for count in tally.timeline], f"C{number}-", label=name)
        if any(tally.lost):
            over_time.plot(middles, [count * scale for count in tally.lost], f"C{number}:", label=f"{name}, lost")
        if ordered := sorted(tally.latencies):
            step = max(len(ordered) // 1000, 1)
            values = [1e3 * value for value in ordered[::step]]
            latency.plot(values, [(at + 1) / len(values) for at in range(len(values))], f"C{number}-", label=name)
    _name(over_time, "seconds", "items per second", "answers")
    _name(latency, "milliseconds", "part of the answers", "latency")
    latency.set_xscale("log")
    shares = {"devices": outcome.devices, "event loops": outcome.loops, "proxy threads": outcome.proxies}
    place = 0
    for number, (name, values) in enumerate(shares.items()):
        if any(values):
            ranked = sorted(values, reverse=True)[:MOST_BARS]
            busy.bar(range(place, place + len(ranked)), ranked, color=f"C{number}", label=name)
            place += len(ranked) + 1
    busy.set_xticks([])
    _name(busy, "the busiest of each kind first", "part of the time", "busy")
    busy.set_ylim(0, 1.05)
    _save(figure, path)


def draw_sweep(path: Path, title: str, key: str, found: Sequence[tuple[object, Document]]) -> None:
    """A sweep: what is answered, the latencies, and how busy things are, by the value of its key."""
    figure = _figure(title)
    answered, latency, busy = figure.subplots(3, 1)
    names = [str(value) for value, _ in found]
    places = range(len(names))
    for number, name in enumerate(found[0][1]["traffic"]):
        runs = [each["traffic"][name] for _, each in found]
        answered.plot(places, [run["offered_per_s"] for run in runs], f"C{number}:", label=f"{name}, offered")
        answered.plot(places, [run["answered_per_s"] for run in runs], f"C{number}.-", label=f"{name}, answered")
        latency.plot(places, [run["p50_ms"] for run in runs], f"C{number}.--", label=f"{name}, p50")
        latency.plot(places, [run["p99_ms"] for run in runs], f"C{number}.-", label=f"{name}, p99")
    for number, (name, kind) in enumerate((("devices", "mean"), ("event_loops", "most"), ("proxy_threads", "most"))):
        shares = [each["busy"][name][kind] for _, each in found]
        if any(shares):
            busy.plot(places, shares, f"C{number}.-", label=f"{name.replace('_', ' ')}, {kind}")
    for axes in (answered, latency, busy):
        axes.set_xticks(places, names)
    latency.set_yscale("log")
    _name(answered, key, "items per second", "answers")
    _name(latency, key, "milliseconds", "latency")
    _name(busy, key, "part of the time", "busy")
    busy.set_ylim(0, 1.05)
    _save(figure, path)


def _canvas() -> Any:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
    except ImportError as error:
        raise ConfigError(["--picture: matplotlib is not installed: pip install 'aclserve[plan]'"]) from error
    return FigureCanvasAgg


def _figure(title: str) -> Any:
    canvas = _canvas()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 10), layout="constrained")
    canvas(figure)
    figure.suptitle(title)
    return figure


def _name(axes: Any, below: str, beside: str, title: str) -> None:
    axes.set_xlabel(below)
    axes.set_ylabel(beside)
    axes.set_title(title, loc="left", fontsize="medium")
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize="small")


def _save(figure: Any, path: Path) -> None:
    figure.savefig(path, dpi=100)
