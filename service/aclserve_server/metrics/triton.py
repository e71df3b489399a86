"""The same numbers under Triton's names, for dashboards and tools that know those (perf_analyzer reads the `nv_gpu_*`).

Only what is known is shown: AscendCL tells no power. The counters are the loaded models' statistics, so they begin anew
when a model is loaded anew, as Triton's do.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import GaugeMetricFamily, Metric, UnknownMetricFamily
from prometheus_client.registry import Collector

from aclserve_server.acl.types import aclrtMemAttr
from aclserve_server.engine.statistics import ModelStatistics
from aclserve_server.metrics.service import MODEL, ServerMetrics

_SUMS: dict[str, tuple[str, Callable[[ModelStatistics], float]]] = {
    "request_success": ("Requests that succeeded.", lambda of: of.success.count),
    "request_failure": ("Requests that failed.", lambda of: of.fail.count),
    "count": ("Rows that succeeded.", lambda of: of.inference_count),
    "exec_count": ("Executions on the device.", lambda of: of.execution_count),
    "request_duration_us": ("Of requests, from receipt to answer.", lambda of: of.success.ns // 1000),
    "queue_duration_us": ("Of requests, waiting.", lambda of: of.queue.ns // 1000),
    "compute_input_duration_us": ("Of requests, copying in.", lambda of: of.compute_input.ns // 1000),
    "compute_infer_duration_us": ("Of requests, executing.", lambda of: of.compute_infer.ns // 1000),
    "compute_output_duration_us": ("Of requests, copying out.", lambda of: of.compute_output.ns // 1000),
}

_EXPONENT = re.compile(rb"^(nv_.* )([0-9.]+e\+[0-9]+)$", re.MULTILINE)


def plain_numbers(page: bytes) -> bytes:
    """A page of metrics whose lines of these names have no exponents, which perf_analyzer reads over: 8.5e+09 as 8."""
    return _EXPONENT.sub(lambda found: found[1] + b"%.1f" % float(found[2]), page)


class TritonNames(Collector):
    """Shows what `metrics` knows a second time. The counters have no `_total`, because Triton's have none."""

    def __init__(self, registry: CollectorRegistry, metrics: ServerMetrics) -> None:
        self._metrics = metrics
        registry.register(self)

    def describe(self) -> list[Metric]:
        """The families without samples, so that registering reads nothing."""
        return [UnknownMetricFamily(f"nv_inference_{name}", text, labels=MODEL) for name, (text, _) in _SUMS.items()]

    def collect(self) -> Iterator[Metric]:
        """Everything now, on an HTTP thread."""
        served = self._metrics.served
        for name, (text, read) in _SUMS.items():
            family = UnknownMetricFamily(f"nv_inference_{name}", text, labels=MODEL)
            for model in served:
                family.add_metric([model.name, str(model.version)], read(model.statistics))
            yield family
        pending = GaugeMetricFamily("nv_inference_pending_request_count", "Rows waiting for a slot.", labels=MODEL)
        for model in served:
            pending.add_metric([model.name, str(model.version)], model.queue_rows())
        yield pending
        yield from self._device()

    def _device(self) -> Iterator[Metric]:
        device = self._metrics.device
        if device is None:
            return
        labels = [f"npu-{device.id}"]

        def gauge(name: str, text: str, value: float) -> Metric:
            family = GaugeMetricFamily(f"nv_gpu_{name}", text, labels=("gpu_uuid",))
            family.add_metric(labels, value)
            return family

        if device.utilization_percent is not None:
            yield gauge("utilization", "How busy the AI cores are, from 0 to 1.", device.utilization_percent / 100)
        memory = {use.attribute: use for use in device.memory}
        use = memory.get(aclrtMemAttr.ACL_HBM_MEM) or memory.get(aclrtMemAttr.ACL_DDR_MEM)
        if use is not None:
            yield gauge("memory_used_bytes", "Device memory in use.", use.total_bytes - use.free_bytes)
            yield gauge("memory_total_bytes", "Device memory.", use.total_bytes)
