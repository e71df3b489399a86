"""What a session did, over time: gathered in bounded memory, and drawn by matplotlib (extra `aclserve[video]`)."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from aclserve_client.video import SourceTotals, VideoResult
from aclserve_client.video_frames import missing_extra

MAX_SPANS = 300
DRAWN_SPANS = 75
FIRST_SPAN_S = 0.1
KEPT_LATENCIES = 8192

OUTCOMES = {"succeeded": "#3cb44b", "failed": "#e6194b", "dropped": "#f58231", "skipped": "#999999"}


@dataclass(slots=True)
class Span:
    """What happened in one span of time; latencies (seconds) of the frames that were run."""

    succeeded: int = 0
    failed: int = 0
    dropped: int = 0
    latency_sum_s: float = 0.0
    latency_max_s: float = 0.0

    def add(self, other: Span) -> None:
        self.succeeded += other.succeeded
        self.failed += other.failed
        self.dropped += other.dropped
        self.latency_sum_s += other.latency_sum_s
        self.latency_max_s = max(self.latency_max_s, other.latency_max_s)


@dataclass
class Timeline:
    """The results of one source in spans of equal length, which grow so that there are never more than MAX_SPANS.

    `latencies_s` holds the last ones; `last_s` is when the last result came. `add` takes the result and the seconds
    since the session began.
    """

    span_s: float = FIRST_SPAN_S
    spans: list[Span] = field(default_factory=list)
    latencies_s: deque[float] = field(default_factory=lambda: deque(maxlen=KEPT_LATENCIES))
    last_s: float = 0.0

    def add(self, result: VideoResult, at_s: float) -> None:
        while at_s >= self.span_s * MAX_SPANS:
            self._merge()
        position = int(at_s / self.span_s)
        while len(self.spans) <= position:
            self.spans.append(Span())
        span = self.spans[position]
        if result.dropped is not None:
            span.dropped += 1
        elif result.error is not None:
            span.failed += 1
        else:
            span.add(Span(succeeded=1, latency_sum_s=result.latency_s, latency_max_s=result.latency_s))
            self.latencies_s.append(result.latency_s)

        self.last_s = at_s

    def _merge(self) -> None:
        for left, right in zip(self.spans[::2], self.spans[1::2], strict=False):
            left.add(right)
        self.spans = self.spans[::2]
        self.span_s *= 2

    def coarse(self, seconds: float) -> Timeline:
        """The same in spans of which DRAWN_SPANS cover `seconds`."""
        timeline = Timeline(self.span_s, [replace(span) for span in self.spans], last_s=self.last_s)
        while timeline.span_s * DRAWN_SPANS < seconds:
            timeline._merge()
        return timeline

    @property
    def frames_per_second(self) -> float:
        """Frames that were run, over the time until the last result."""
        return sum(span.succeeded for span in self.spans) / max(self.last_s, 1e-9)

    def latency_ms(self) -> dict[str, float]:
        """Quantiles of the last latencies; empty without any."""
        if not self.latencies_s:
            return {}
        values = np.quantile(np.asarray(self.latencies_s), [0.5, 0.9, 0.99, 1]) * 1e3
        return dict(zip(("p50", "p90", "p99", "max"), (round(float(value), 3) for value in values), strict=True))


def draw_summary(
    path: str | os.PathLike[str],
    title: str,
    totals: Sequence[SourceTotals],
    timelines: Sequence[Timeline],
    seconds: float,
) -> None:
    """Writes a picture: throughput and latency over time, and what became of the frames of each source."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise missing_extra("matplotlib") from None
    figure = Figure(figsize=(11, 8), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    grid = figure.add_gridspec(3, 1, height_ratios=(3, 3, 1 + 0.5 * len(totals)))
    rate, latency, outcome = (figure.add_subplot(grid[row]) for row in range(3))
    for number, (total, timeline) in enumerate(zip(totals, timelines, strict=True)):
        name, colour = short_name(total.name), f"C{number}"
        _draw_rate(rate, timeline.coarse(seconds), name, colour)
        _draw_latency(latency, timeline.coarse(seconds), name, colour)
    rate.set_ylabel("frames per second")
    rate.set_title("throughput (dotted: dropped by the server)", loc="left", fontsize="medium")
    latency.set_ylabel("milliseconds")
    latency.set_xlabel("seconds since the start")
    latency.set_title("latency from capture to result: mean, and up to the greatest", loc="left", fontsize="medium")
    for axes in (rate, latency):
        axes.set_xlim(0, max(seconds, FIRST_SPAN_S))
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(loc="upper right", fontsize="small")
    _draw_outcomes(outcome, totals, timelines)
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=100)


def short_name(name: str) -> str:
    """The last part of a source's name."""
    return name.rstrip("/").rsplit("/", 1)[-1] or name


def _draw_rate(axes: Any, timeline: Timeline, name: str, colour: str) -> None:
    """The last span may be a part of one."""
    starts = np.arange(len(timeline.spans)) * timeline.span_s
    widths = np.clip(timeline.last_s - starts, timeline.span_s / 4, timeline.span_s)
    edges = np.append(starts, len(timeline.spans) * timeline.span_s)
    axes.stairs([span.succeeded for span in timeline.spans] / widths, edges, label=name, color=colour)
    if any(span.dropped for span in timeline.spans):
        axes.stairs([span.dropped for span in timeline.spans] / widths, edges, color=colour, linestyle=":")


def _draw_latency(axes: Any, timeline: Timeline, name: str, colour: str) -> None:
    known = [(position, span) for position, span in enumerate(timeline.spans) if span.succeeded]
    if not known:
        return
    middles = [(position + 0.5) * timeline.span_s for position, _ in known]
    means = [span.latency_sum_s / span.succeeded * 1e3 for _, span in known]
    tops = [span.latency_max_s * 1e3 for _, span in known]
    axes.plot(middles, means, label=name, color=colour, marker=".")
    axes.fill_between(middles, means, tops, color=colour, alpha=0.2, linewidth=0)


def _draw_outcomes(axes: Any, totals: Sequence[SourceTotals], timelines: Sequence[Timeline]) -> None:
    names = [f"{number + 1}: {short_name(total.name)}" for number, total in enumerate(totals)]
    left = np.zeros(len(totals))
    for outcome, colour in OUTCOMES.items():
        counts = np.array([getattr(total, outcome) for total in totals], float)
        if counts.any():
            axes.barh(names, counts, left=left, color=colour, label=outcome)
        left += counts
    for row, total in enumerate(totals):
        reasons = "".join(f", {count} {reason}" for reason, count in sorted(total.drops.items()))
        speed = timelines[row].frames_per_second
        text = f" {total.succeeded} of {total.sent + total.skipped} frames, {speed:.1f}/s{reasons}"
        axes.text(0, row, text, va="center", fontsize="small")
    axes.invert_yaxis()
    axes.set_xlabel("frames")
    if left.any():
        axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=len(OUTCOMES), fontsize="small")
