"""All that the metrics port shows, as one Prometheus collector. It reads when it is scraped, on an HTTP thread."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from aclserve_server.engine.devices import DeviceSnapshot
from aclserve_server.engine.memory import MemoryUse
from aclserve_server.engine.regions import RegionUse
from aclserve_server.engine.statistics import ModelStatistics
from aclserve_server.metrics.model import ModelMetrics, ReadCapture

logger = logging.getLogger(__name__)

MAX_GONE = 256
"""Model versions that are shown though they are not served any more, the last ones: clients choose upload's names."""

MODEL = ("model", "version")

_COUNTERS: dict[str, tuple[str, tuple[str, ...]]] = {
    "items": ("Items answered, by status code: OK, an error, or DROPPED. No model: none is known for them.", ("code",)),
    "dropped_items": ("Items given up by their stream's frame policy.", ("reason",)),
    "batches": ("Executions on the device.", ()),
    "rows": ("Rows executed, without padding.", ()),
    "padding_rows": ("Rows executed only to fill a gear.", ()),
}
_HISTOGRAMS = {
    "batch_rows": "Rows per execution, without padding.",
    "wait_seconds": "Of an item: from receipt to the closing of its batch.",
    "copy_in_seconds": "Of a batch: packing its rows and copying them to the device.",
    "execute_seconds": "Of a batch: execution on the device.",
    "copy_out_seconds": "Of a batch: copying its outputs back.",
    "total_seconds": "Of an item: from receipt to its answer.",
    "age_seconds": "Of an item when its execution begins: since its capture time, or since receipt without one.",
}
_GAUGES: dict[str, tuple[str, tuple[str, ...]]] = {
    "queue_rows": ("Rows waiting for a slot.", MODEL),
    "streams": ("Inference streams open.", ()),
    "device_memory_free_bytes": ("Free device memory, by attribute; sampled.", ("kind",)),
    "device_memory_total_bytes": ("Device memory, by attribute; sampled.", ("kind",)),
    "device_utilization_ratio": ("How busy the AI cores are, from 0 to 1; sampled.", ()),
    "handles": ("AscendCL resources that the server holds, by kind.", ("kind",)),
    "handle_bytes": ("Memory that the server has from AscendCL, by where it lies.", ("kind",)),
    "leases": ("Memory leases alive.", ()),
    "buffers": ("Buffers that clients hold.", ()),
    "uploads": ("Model uploads that clients hold.", ()),
    "regions": ("Shared-memory regions that clients have registered.", ()),
    "buffer_bytes": ("Bytes of the buffers and uploads that clients hold, by where they lie.", ("kind",)),
}


@dataclass(frozen=True, slots=True, eq=False)
class Served:
    """A model version that serves. `queue_rows` may be asked on any thread."""

    name: str
    version: int
    queue_rows: Callable[[], int]
    statistics: ModelStatistics


@dataclass(frozen=True, slots=True)
class Handles:
    """AscendCL resources held now: how many by kind, and bytes of memory by where it lies."""

    count: Mapping[str, int]
    size_bytes: Mapping[str, int]


class ServerMetrics(Collector):
    """The service's own metrics, registered in `registry`.

    Callbacks are read when scraped, on HTTP threads: none may block or call the device. Models are those that the
    engine knows: what a client sent is never a label.
    """

    def __init__(self, registry: CollectorRegistry, read_capture: ReadCapture) -> None:
        self._read_capture = read_capture
        self._models: dict[tuple[str, int], ModelMetrics] = {}
        self._leaks: Counter[str] = Counter()
        self._streams: Callable[[], int] | None = None
        self._memory: Callable[[], MemoryUse] | None = None
        self._regions: Callable[[], RegionUse] | None = None
        self._handles: Callable[[], Handles] | None = None
        self.served: Sequence[Served] = ()
        self.device: DeviceSnapshot | None = None
        registry.register(self)

    def model(self, name: str, version: int) -> ModelMetrics:
        """Where a model version's items are counted; "" and 0: items that no model is known for. On the event loop."""
        key = (name, version)
        metrics = self._models.get(key)
        if metrics is None:
            self._forget()
            metrics = self._models[key] = ModelMetrics(self._read_capture)
        return metrics

    def serve(self, served: Iterable[Served]) -> None:
        """Tells which model versions serve now. Others keep their counters, which never go back."""
        self.served = tuple(served)

    def sample_device(self, device: DeviceSnapshot | None) -> None:
        """Shows a device's memory and use until the next sample; None shows nothing."""
        self.device = device

    def count_leaked(self, model: str, size_bytes: int) -> None:
        """Counts device memory that an unload did not give back."""
        self._leaks[model] += size_bytes

    def watch_streams(self, streams: Callable[[], int]) -> None:
        """Shows the inference streams open now."""
        self._streams = streams

    def watch_memory(self, memory: Callable[[], MemoryUse]) -> None:
        """Shows what clients hold."""
        self._memory = memory

    def watch_regions(self, regions: Callable[[], RegionUse]) -> None:
        """Shows the shared memory that clients have registered, and what went through it."""
        self._regions = regions

    def watch_handles(self, handles: Callable[[], Handles]) -> None:
        """Shows what the server holds of AscendCL."""
        self._handles = handles

    def describe(self) -> list[Metric]:
        """The families without samples, so that registering reads nothing."""
        return [*_counters().values(), *_histograms().values(), _leaked(), _moved(), *map(_gauge, _GAUGES)]

    def collect(self) -> Iterator[Metric]:
        """Everything now. What cannot be read is left out and logged; the others are shown."""
        for reader in (self._models_now, self._queues_now, self._streams_now, self._device_now, self._held_now):
            try:
                families = list(reader())
            except Exception:
                logger.exception("a metrics callback failed")
                continue
            yield from families

    def _models_now(self) -> list[Metric]:
        counters, histograms, leaked = _counters(), _histograms(), _leaked()
        for (name, version), metrics in list(self._models.items()):
            labels = [name, str(version) if name else ""]
            for code, count in list(metrics.codes.items()):
                counters["items"].add_metric([*labels, code], count)
            for reason, count in list(metrics.drops.items()):
                counters["dropped_items"].add_metric([*labels, reason], count)
            if not name:
                continue
            counters["batches"].add_metric(labels, metrics.executions)
            counters["rows"].add_metric(labels, metrics.rows)
            counters["padding_rows"].add_metric(labels, metrics.padding_rows)
            for key, family in histograms.items():
                metrics.histograms[key].show(family, labels)
        for name, size_bytes in list(self._leaks.items()):
            leaked.add_metric([name], size_bytes)
        return [*counters.values(), *histograms.values(), leaked]

    def _queues_now(self) -> Iterator[Metric]:
        family = _gauge("queue_rows")
        for model in self.served:
            family.add_metric([model.name, str(model.version)], model.queue_rows())
        yield family

    def _streams_now(self) -> Iterator[Metric]:
        if self._streams is not None:
            yield _gauge("streams", {(): self._streams()})

    def _device_now(self) -> Iterator[Metric]:
        device = self.device
        if device is None:
            return
        kinds = {(use.attribute.name.removeprefix("ACL_").lower(),): use for use in device.memory}
        yield _gauge("device_memory_free_bytes", {kind: use.free_bytes for kind, use in kinds.items()})
        yield _gauge("device_memory_total_bytes", {kind: use.total_bytes for kind, use in kinds.items()})
        if device.utilization_percent is not None:
            yield _gauge("device_utilization_ratio", {(): device.utilization_percent / 100})

    def _held_now(self) -> Iterator[Metric]:
        if self._handles is not None:
            held = self._handles()
            yield _gauge("handles", {(kind,): count for kind, count in held.count.items()})
            yield _gauge("handle_bytes", {(kind,): size for kind, size in held.size_bytes.items()})
        if self._memory is not None:
            use = self._memory()
            yield _gauge("leases", {(): use.leases})
            yield _gauge("buffers", {(): use.buffers})
            yield _gauge("uploads", {(): use.uploads})
            yield _gauge("buffer_bytes", {("device",): use.device_bytes, ("host",): use.host_bytes})
        if self._regions is not None:
            regions = self._regions()
            moved = _moved()
            moved.add_metric(["read"], regions.read_bytes)
            moved.add_metric(["written"], regions.written_bytes)
            yield _gauge("regions", {(): regions.regions})
            yield moved

    def _forget(self) -> None:
        """Drops the counters of the versions that went first, where too many have come and gone."""
        kept = {(model.name, model.version) for model in self.served} | {("", 0)}
        gone = [key for key in self._models if key not in kept]
        for key in gone[: max(len(gone) - MAX_GONE + 1, 0)]:
            del self._models[key]
            self._leaks.pop(key[0], None)


def _counters() -> dict[str, CounterMetricFamily]:
    return {
        name: CounterMetricFamily(f"aclserve_{name}", text, labels=(*MODEL, *more))
        for name, (text, more) in _COUNTERS.items()
    }


def _histograms() -> dict[str, HistogramMetricFamily]:
    return {name: HistogramMetricFamily(f"aclserve_{name}", text, labels=MODEL) for name, text in _HISTOGRAMS.items()}


def _leaked() -> CounterMetricFamily:
    return CounterMetricFamily(
        "aclserve_leaked_bytes", "Device memory that the unloading of a model did not give back.", labels=("model",)
    )


def _moved() -> CounterMetricFamily:
    return CounterMetricFamily(
        "aclserve_region_bytes", "Bytes of tensors read from and written to regions.", labels=("direction",)
    )


def _gauge(name: str, samples: Mapping[tuple[str, ...], float] | None = None) -> GaugeMetricFamily:
    text, labels = _GAUGES[name]
    family = GaugeMetricFamily(f"aclserve_{name}", text, labels=labels)
    for values, value in (samples or {}).items():
        family.add_metric(values, value)
    return family
