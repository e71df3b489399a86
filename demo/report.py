"""What the demonstration found, as text and as a picture."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from aclserve_client import Result

matplotlib.use("Agg")

STAGES = ("wait", "copy in", "execute", "copy out", "total")
"""The server's times of one item, in the order of `Answers.stages_ms`."""
EXAMPLES = 20


@dataclass
class Answers:
    """All answers of a run, one entry for each item in every list.

    `images` are positions in the held-out set; `stages_ms` has the five times of STAGES; `latencies_ms` is measured by
    the client, from handing the item over until its answer; `batch_rows` counts the rows of the item's execution.
    """

    images: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    chances: list[float] = field(default_factory=list)
    latencies_ms: list[float] = field(default_factory=list)
    stages_ms: list[list[float]] = field(default_factory=list)
    batch_rows: list[int] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def add(self, image: int, result: Result, latency_s: float) -> None:
        """Notes the answer to one item, which was one image."""
        if result.error is not None or result.timing is None:
            self.errors.append(str(result.error))
            return
        timing = result.timing
        label = int(result.outputs["label"][0])
        self.images.append(image)
        self.labels.append(label)
        self.chances.append(float(result.outputs["probabilities"][0, label]))
        self.latencies_ms.append(latency_s * 1e3)
        times_ns = (timing.wait_ns, timing.copy_in_ns, timing.execute_ns, timing.copy_out_ns, timing.total_ns)
        self.stages_ms.append([time_ns / 1e6 for time_ns in times_ns])
        self.batch_rows.append(timing.batch_rows)

    def accuracy(self, truth: NDArray[Any]) -> float:
        """The part of all answers that names the right digit; `truth` is the held-out set's."""
        return float((np.array(self.labels) == truth[self.images]).mean()) if self.labels else 0.0

    def executions(self) -> dict[int, int]:
        """How many executions had how many rows, by rows. Every item of an execution reports all of its rows."""
        rows, items = np.unique(np.array(self.batch_rows, int), return_counts=True)
        return {int(row): round(int(item) / int(row)) for row, item in zip(rows, items, strict=True) if row}


def write_text(console: Console, answers: Answers, truth: NDArray[Any], elapsed_s: float) -> None:
    """Prints accuracy, throughput, batch sizes and where the time went."""
    count = len(answers.labels)
    console.print(f"\naccuracy    {answers.accuracy(truth):.1%} of {count} answers")
    console.print(f"throughput  {count / elapsed_s:.0f} items/s ({count} items in {elapsed_s:.2f} s)\n")

    executions = answers.executions()
    batches = Table("rows", "executions", "", title="batch sizes", title_justify="left")
    most = max(executions.values(), default=1)
    for rows, number in executions.items():
        batches.add_row(str(rows), str(number), "#" * max(1, round(30 * number / most)))
    console.print(batches)

    times = Table("", "median", "95 %", "99 %", title="time of an item, in ms", title_justify="left")
    columns = [*zip(STAGES, np.array(answers.stages_ms).T, strict=True), ("client", np.array(answers.latencies_ms))]
    for name, values in columns:
        times.add_row(name, *(f"{value:.3f}" for value in np.percentile(values, (50, 95, 99))))
    console.print(times)


def draw(path: Path, answers: Answers, images: NDArray[Any], truth: NDArray[Any]) -> None:
    """Writes a picture: held-out images with what was read in them, wrong ones first, and the distribution of times."""
    figure = Figure(figsize=(12, 8), layout="constrained")
    above, below = figure.subfigures(2, 1, squeeze=False)[:, 0]
    first = {image: position for position, image in reversed(list(enumerate(answers.images)))}
    wrong = [image for image in sorted(first) if answers.labels[first[image]] != truth[image]]
    right = [image for image in sorted(first) if answers.labels[first[image]] == truth[image]]
    shown = [*wrong[: EXAMPLES // 4], *right][:EXAMPLES]
    above.suptitle(f"{len(truth)} held-out digits, {answers.accuracy(truth):.1%} right; wrong ones first, in red")
    for axes, image in zip(above.subplots(2, EXAMPLES // 2).flat, shown, strict=False):
        label, chance = answers.labels[first[image]], answers.chances[first[image]]
        axes.imshow(images[image], cmap="gray_r", vmin=0, vmax=16)
        right_one = label == truth[image]
        title = f"{label} ({chance:.0%})" if right_one else f"{label} ({chance:.0%}), is {truth[image]}"
        axes.set_title(title, color="black" if right_one else "red", fontsize=10)
    for axes in above.axes:
        axes.set_axis_off()

    times, batches = below.subplots(1, 2)
    for name, values in (
        ("at the client", answers.latencies_ms),
        ("in the server", [s[-1] for s in answers.stages_ms]),
    ):
        times.hist(values, bins=60, histtype="step", label=f"{name}, median {np.median(values):.1f} ms")
    times.set(xlabel="time of an item (ms)", ylabel="items", title="latency")
    times.legend()
    executions = answers.executions()
    batches.bar(list(executions), list(executions.values()))
    batches.set(xlabel="rows", ylabel="executions", title="batch sizes")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
