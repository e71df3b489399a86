"""What must hold after a scenario. Nothing here looks at a clock, except `missed_thresholds`."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from google.rpc import code_pb2

from aclserve.v1 import model_pb2 as pb
from tests.load.percentiles import COUNTS, TIMES, Row, of_timings
from tests.load.recorder import Call
from tests.load.scenario import Scenario


@dataclass
class Run:
    """What came of one run of a scenario: ghz's report, the calls as the proxy saw them, the server's own count.

    `calls` is empty for a run without the proxy. `executed` counts items executed without an error, where the server's
    metrics could be asked.
    """

    scenario: Scenario
    report: dict[str, Any]
    calls: list[Call]
    executed: int | None

    @property
    def codes(self) -> Counter[str]:
        """How the calls ended, as ghz counts it."""
        told = self.report["statusCodeDistribution"]
        return Counter({status_name(name): count for name, count in told.items()})

    @property
    def results(self) -> list[pb.InferResult]:
        return [result for call in self.calls for result in call.results]

    @property
    def outcomes(self) -> Counter[str]:
        """What became of the items; of a unary call that failed, its status."""
        found = Counter(outcome(result) for result in self.results)
        if not self.scenario.streams:
            found.update(call.code for call in self.calls if call.code != "OK")
        return found

    @property
    def after_half_close(self) -> int:
        return sum(call.after_half_close for call in self.calls)

    @property
    def percentiles(self) -> dict[str, Row]:
        """Over the items executed, from the timings in the answers."""
        return of_timings([timing(result) for result in self.results if result.HasField("timing")])

    @property
    def items_per_second(self) -> float:
        """Items executed without an error in a second of ghz's run, as far as the server told."""
        return (self.executed or 0) / (float(self.report["total"]) / 1e9)


def status_name(name: str) -> str:
    """A status as gRPC names it, `RESOURCE_EXHAUSTED`, from Go's name, `ResourceExhausted`."""
    if name == "OK":
        return name
    return "CANCELLED" if name == "Canceled" else re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).upper()


def outcome(result: pb.InferResult) -> str:
    """The name of what became of an item: OK, DROPPED, or the status in its error."""
    kind = result.WhichOneof("outcome")
    if kind == "error":
        return str(code_pb2.Code.Name(result.error.code))
    return {"outputs": "OK", "dropped": "DROPPED"}.get(kind or "", "NOTHING")


def timing(result: pb.InferResult) -> dict[str, float]:
    """The timing of a result by field names."""
    return {name: getattr(result.timing, name) for name in (*(f"{name}_ns" for name in TIMES), *COUNTS)}


def problems(run: Run) -> list[str]:
    """What is wrong: an unexpected status or error, an item without an answer or with two, a miscount. In words."""
    return [*_calls(run), *(_items(run) if run.calls else ())]


def _calls(run: Run) -> Iterator[str]:
    scenario, report = run.scenario, run.report
    if report.get("endReason") != "normal":
        yield f"ghz stopped early: {report.get('endReason')}"
    if report["count"] != scenario.calls:
        yield f"{scenario.calls} calls, ghz counts {report['count']}"
    for code in sorted(run.codes.keys() - scenario.codes):
        yield f"{run.codes[code]} calls ended with {code}: {list(report['errorDistribution'])}"
    if run.executed is not None and not scenario.streams and run.executed != run.codes["OK"]:
        yield f"the server counts {run.executed} items executed, ghz {run.codes['OK']} calls that went well"


def _items(run: Run) -> Iterator[str]:
    scenario, outcomes = run.scenario, run.outcomes
    told = Counter(call.code for call in run.calls)
    if told != run.codes:  # ghz takes a stream for OK when the server has ended it before ghz sends the next message
        yield f"the proxy saw {dict(told)}, ghz counts {dict(run.codes)}"
    expected = scenario.calls * scenario.items
    if outcomes.total() != expected:
        yield f"{expected} items were sent, {outcomes.total()} were answered"
    for name in sorted(outcomes.keys() - scenario.outcomes):
        text = next((result.error.message for result in run.results if outcome(result) == name), "")
        yield f"{outcomes[name]} items came to {name}: {text}"
    if any(outcome(result) == "OK" and not result.HasField("timing") for result in run.results):
        yield "items were executed without a timing"
    if run.executed is not None and run.executed != outcomes["OK"]:
        yield f"the server counts {run.executed} items executed, the client got {outcomes['OK']}"
    if scenario.streams:
        wrong = [problem for call in run.calls if call.code == "OK" for problem in _stream(call, scenario.items)]
        yield from (f"{count} streams: {problem}" for problem, count in Counter(wrong).items())


def _stream(call: Call, items: int) -> Iterator[str]:
    """What is wrong with a stream that ended with OK."""
    if not call.half_closed:
        yield "ended before its half-close"
    if not call.in_order or not call.ready or call.summary is None:
        yield "its messages are not: ready, results, summary"
        return
    ids = {result.id for result in call.results}
    if ids != {str(position) for position in range(items)} or len(call.results) != items:
        yield f"{items} items, {len(call.results)} results with {len(ids)} ids; empty ids get positions"
    summary, counts = call.summary, Counter(outcome(result) for result in call.results)
    told = (summary.received_items, summary.succeeded_items, summary.dropped_items, summary.failed_items)
    failed = len(call.results) - counts["OK"] - counts["DROPPED"]
    if told != (items, counts["OK"], counts["DROPPED"], failed):
        yield f"the summary does not fit the results: {' '.join(str(summary).split())}"


def missed_thresholds(run: Run) -> list[str]:
    """The thresholds of the scenario's file that a run through the proxy did not reach, in words."""
    percentiles = run.percentiles
    measured = {
        "min_items_per_second": run.items_per_second,
        "max_p99_total_ms": percentiles.get("total_ms", {}).get("p99", 0.0),
        "min_refused_items": float(run.outcomes.total() - run.outcomes["OK"]),
        "min_items_after_half_close": float(run.after_half_close),
        "min_mean_batch_rows": percentiles.get("batch_rows", {}).get("mean", 0.0),
    }
    missed = []
    for name, bound in run.scenario.thresholds.items():
        value = measured[name]
        if value < bound if name.startswith("min_") else value > bound:
            missed.append(f"{name} is {bound:g}, measured {value:.4g}")
    return missed
