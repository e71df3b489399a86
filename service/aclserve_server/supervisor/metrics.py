"""One page of metrics for all workers: theirs with the label `device`, and the supervisor's own."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from aclserve_server.metrics.http import add_process

logger = logging.getLogger(__name__)

DEVICE = "device"
"""The label that a worker's samples get."""


@dataclass(frozen=True, slots=True)
class WorkerFacts:
    """What the supervisor knows of a worker when a page is asked for. `exits`: by exit code, or minus the signal."""

    serving: bool = False
    given_up: bool = False
    restarts: int = 0
    exits: Mapping[int, int] = field(default_factory=dict)


class Aggregate(Collector):
    """Collects when it is scraped, on an HTTP thread. Both callbacks are called there."""

    def __init__(self, pages: Callable[[], Mapping[int, str]], facts: Callable[[], Mapping[int, WorkerFacts]]) -> None:
        """`pages`: the text of each worker that answers; `facts` of all workers."""
        self._pages, self._facts = pages, facts
        self._process = CollectorRegistry()
        add_process(self._process)

    def describe(self) -> list[Metric]:
        """The supervisor's own families, so that registering asks no worker."""
        return own({})

    def collect(self) -> Iterator[Metric]:
        """Everything now. Samples without the label are the supervisor's."""
        facts = self._facts()
        pages = self._pages()
        missing = [device for device, fact in facts.items() if fact.serving and device not in pages]
        if missing:
            logger.warning("no metrics of the workers of devices %s", ", ".join(map(str, missing)))
        yield from own(facts)
        yield from merge(pages, self._process.collect())


def merge(pages: Mapping[int, str], more: Iterable[Metric] = ()) -> list[Metric]:
    """The families of all pages, each once, every sample with its page's device; those of `more` have none."""
    families: dict[str, Metric] = {family.name: family for family in more}
    for device, page in pages.items():
        for family in text_string_to_metric_families(page):
            merged = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
            for sample in family.samples:
                merged.samples.append(sample._replace(labels={**sample.labels, DEVICE: str(device)}))
    return list(families.values())


def own(facts: Mapping[int, WorkerFacts]) -> list[Metric]:
    """What the supervisor tells of its workers."""
    up = GaugeMetricFamily("aclserve_worker_up", "Whether the device's worker serves.", labels=[DEVICE])
    given_up = GaugeMetricFamily(
        "aclserve_worker_given_up", "Whether the device's worker is not restarted any more.", labels=[DEVICE]
    )
    restarts = CounterMetricFamily("aclserve_worker_restarts", "Starts of the worker but the first.", labels=[DEVICE])
    exits = CounterMetricFamily(
        "aclserve_worker_exits",
        "Ends of the worker's process, by exit code or minus the signal.",
        labels=[DEVICE, "code"],
    )
    for device, fact in facts.items():
        up.add_metric([str(device)], fact.serving)
        given_up.add_metric([str(device)], fact.given_up)
        restarts.add_metric([str(device)], fact.restarts)
        for code, count in sorted(fact.exits.items()):
            exits.add_metric([str(device), str(code)], count)
    return [up, given_up, restarts, exits]
