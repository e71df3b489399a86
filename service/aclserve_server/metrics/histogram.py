"""A histogram that one thread adds to and any thread reads.

`prometheus_client.Histogram` takes locks and walks the bounds: 0.65 us for each value. This one searches them: 0.11 us,
cheap enough for every item of every batch. It becomes the library's own metric family when it is read.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence

from prometheus_client.metrics_core import HistogramMetricFamily


class Histogram:
    """Counts whole numbers by upper bounds (ascending, inclusive). Shown divided by `unit`: 1e9 for nanoseconds."""

    __slots__ = ("_bounds", "_counts", "_names", "_sum", "_unit")

    def __init__(self, bounds: Sequence[int], unit: float = 1.0) -> None:
        self._bounds = tuple(bounds)
        self._names = [str(bound / unit) for bound in bounds] + ["+Inf"]
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0
        self._unit = unit

    def observe(self, value: int) -> None:
        """Adds a value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def observe_since(self, moments: Iterable[int], now: int) -> None:
        """Adds what has passed since each moment; one that lies ahead counts as now."""
        counts, bounds = self._counts, self._bounds
        for moment in moments:
            value = now - moment if moment < now else 0
            counts[bisect_left(bounds, value)] += 1
            self._sum += value

    def show(self, family: HistogramMetricFamily, labels: Sequence[str]) -> None:
        """Adds the histogram to a family."""
        total, sum_value = 0, self._sum
        buckets = []
        for name, count in zip(self._names, self._counts[:], strict=True):
            total += count
            buckets.append((name, float(total)))
        family.add_metric(labels, buckets, sum_value / self._unit)
