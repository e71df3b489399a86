"""The checks see what is wrong with a run: statuses, answers, totals, thresholds. Without ghz and without a server."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from aclserve.v1 import model_pb2 as pb
from tests.load import scenario
from tests.load.checks import Run, missed_thresholds, outcome, problems, status_name
from tests.load.recorder import INFER, STREAM_INFER, Call
from tests.load.scenario import Scenario


def result(position: int, *, dropped: bool = False, error: int = 0) -> pb.InferResult:
    found = pb.InferResult(id=str(position))
    if error:
        found.error.code = error
        found.error.message = "why"
    elif dropped:
        found.dropped.age_ns = 1
    else:
        found.outputs.SetInParent()
        found.timing.total_ns = 1_000_000
    return found


def good(name: str) -> Run:
    """A run of a scenario, shortened, in which everything went well and nothing was refused."""
    work = scenario.load(name, short=True)
    report = {
        "count": work.calls,
        "total": 1_000_000_000,
        "endReason": "normal",
        "statusCodeDistribution": {"OK": work.calls},
        "errorDistribution": {},
    }
    return Run(work, report, [call(work) for _ in range(work.calls)], work.calls * work.items)


def call(work: Scenario) -> Call:
    made = Call(STREAM_INFER if work.streams else INFER, code="OK", half_closed=True)
    made.results = [result(position) for position in range(work.items)]
    if work.streams:
        made.ready = 1
        made.summary = pb.StreamSummary(received_items=work.items, succeeded_items=work.items)
    return made


@pytest.mark.parametrize("name", scenario.names())
def test_a_good_run_has_no_problems(name: str) -> None:
    assert problems(good(name)) == []


def lose_an_answer(run: Run) -> None:
    run.calls[0].results.pop()


def answer_twice(run: Run) -> None:
    run.calls[0].results[1] = run.calls[0].results[0]


def fail_an_item(run: Run) -> None:
    run.calls[0].results[0] = result(0, error=13)


def drop_an_item(run: Run) -> None:
    run.calls[0].results[0] = result(0, dropped=True)


def miscount(run: Run) -> None:
    assert run.calls[0].summary is not None
    run.calls[0].summary.succeeded_items -= 1


def forget_the_summary(run: Run) -> None:
    run.calls[0].summary = None


def end_before_the_half_close(run: Run) -> None:
    run.calls[0].half_closed = False


def forget_the_timing(run: Run) -> None:
    run.calls[0].results[0].ClearField("timing")


def fail_a_call(run: Run) -> None:
    run.report["statusCodeDistribution"] = {"OK": run.scenario.calls - 1, "DeadlineExceeded": 1}


def stop_early(run: Run) -> None:
    run.report["endReason"] = "timeout"


def make_fewer_calls(run: Run) -> None:
    run.report["count"] -= 1


def execute_more(run: Run) -> None:
    assert run.executed is not None
    run.executed += 1


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lose_an_answer, "were answered"),
        (answer_twice, "results with"),
        (fail_an_item, "INTERNAL: why"),
        (drop_an_item, "DROPPED"),
        (miscount, "summary does not fit"),
        (forget_the_summary, "ready, results, summary"),
        (end_before_the_half_close, "half-close"),
        (forget_the_timing, "without a timing"),
        (fail_a_call, "DEADLINE_EXCEEDED"),
        (stop_early, "stopped early: timeout"),
        (make_fewer_calls, "ghz counts"),
        (execute_more, "the server counts"),
    ],
)
def test_what_is_wrong_is_said(spoil: Callable[[Run], None], says: str) -> None:
    run = good("bidi_steady")
    spoil(run)
    assert any(says in problem for problem in problems(run)), problems(run)


def test_refused_calls_are_expected_under_overload_only() -> None:
    for name, expected in (("overload", []), ("unary", ["1 calls ended with RESOURCE_EXHAUSTED"])):
        run = good(name)
        run.report["statusCodeDistribution"] = {"OK": run.scenario.calls - 1, "ResourceExhausted": 1}
        run.calls[0].code, run.calls[0].results = "RESOURCE_EXHAUSTED", []
        run.executed = run.scenario.calls - 1
        assert run.outcomes == {"OK": run.scenario.calls - 1, "RESOURCE_EXHAUSTED": 1}
        assert [problem.split(": ")[0] for problem in problems(run) if "calls ended" in problem] == expected


@pytest.mark.parametrize(
    ("bounds", "missed"),
    [
        ({"min_items_per_second": 1, "max_p99_total_ms": 1}, 0),
        ({"min_items_per_second": 1e6, "max_p99_total_ms": 0.5}, 2),
        ({"min_refused_items": 1, "min_items_after_half_close": 1, "min_mean_batch_rows": 1}, 3),
    ],
)
def test_thresholds(bounds: dict[str, float], missed: int) -> None:
    run = good("unary")
    run.scenario.thresholds.clear()
    run.scenario.thresholds.update(bounds)
    assert len(missed_thresholds(run)) == missed


@pytest.mark.parametrize("name", scenario.names())
def test_scenarios_are_bounded_and_say_what_they_expect(name: str) -> None:
    work = scenario.load(name)
    assert work.calls * work.items <= 5000
    assert {"OK"} <= work.codes
    assert {"OK"} <= work.outcomes
    assert missed_thresholds(Run(work, {"total": 1, "statusCodeDistribution": {}}, [], 0))
    settings: dict[str, Any] = work.ghz
    assert settings["insecure"]
    assert not {"proto", "protoset", "stream-call-count"} & settings.keys()
    if work.streams:
        kinds = ["config" if "config" in message else "items" for message in settings["data"]]
        assert kinds == ["config"] + ["items"] * (len(kinds) - 1)


def test_every_kind_of_result_has_a_name() -> None:
    made = [result(0), result(0, dropped=True), result(0, error=8), pb.InferResult()]
    assert [outcome(one) for one in made] == ["OK", "DROPPED", "RESOURCE_EXHAUSTED", "NOTHING"]
    assert [status_name(name) for name in ("OK", "Canceled", "DataLoss")] == ["OK", "CANCELLED", "DATA_LOSS"]
