"""A model's statistics: Triton's meanings, sums that only grow."""

from __future__ import annotations

from aclserve_server.engine.outcomes import BatchReport
from aclserve_server.engine.statistics import Execution, ModelStatistics, Spent


def spent(statistics: ModelStatistics) -> dict[str, tuple[int, int]]:
    return {
        name: (value.count, value.ns)
        for name in ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output")
        if isinstance(value := getattr(statistics, name), Spent)
    }


def test_each_item_of_a_batch_counts_the_whole_batch_s_compute_time() -> None:
    statistics = ModelStatistics()
    statistics.add_success(Execution(3, 7, 30, 1, 20, 5, 300), 1_700_000_000_000)
    statistics.add_success(Execution(1, 7, 10, 2, 21, 6, 100), 1_700_000_000_001)
    assert spent(statistics) == {
        "success": (4, 400),
        "fail": (0, 0),
        "queue": (4, 40),
        "compute_input": (4, 5),
        "compute_infer": (4, 81),
        "compute_output": (4, 21),
    }
    assert (statistics.inference_count, statistics.execution_count) == (14, 2)
    assert statistics.last_inference_ms == 1_700_000_000_001
    ((rows, size),) = statistics.sizes()
    assert (rows, size.count, size.compute_input_ns, size.compute_infer_ns, size.compute_output_ns) == (7, 2, 3, 41, 11)


def test_failures_count_apart_and_only_executed_ones_as_executions() -> None:
    statistics = ModelStatistics()
    statistics.add_failure(2, 50, executed=True, now_ms=5)
    statistics.add_failure(1, 7, executed=False, now_ms=6)
    assert spent(statistics) == {
        "success": (0, 0),
        "fail": (3, 57),
        "queue": (0, 0),
        "compute_input": (0, 0),
        "compute_infer": (0, 0),
        "compute_output": (0, 0),
    }
    assert (statistics.inference_count, statistics.execution_count, statistics.sizes()) == (0, 1, [])


def test_an_item_without_rows_advances_every_count_and_no_execution() -> None:
    statistics = ModelStatistics()
    statistics.add_success_without_rows(9, 1)
    counts = {name: count for name, (count, _) in spent(statistics).items()}
    assert counts == {
        "success": 1,
        "fail": 0,
        "queue": 1,
        "compute_input": 1,
        "compute_infer": 1,
        "compute_output": 1,
    }
    assert (statistics.inference_count, statistics.execution_count) == (0, 0)


def test_sizes_are_in_order() -> None:
    statistics = ModelStatistics()
    for rows in (8, 1, 4):
        statistics.add_success(Execution(1, rows, 0, 0, 0, 0, 0), 1)
    assert [rows for rows, _ in statistics.sizes()] == [1, 4, 8]


def test_a_report_s_sums_are_of_its_items() -> None:
    report = BatchReport(4, 0, "OK", [10, 20], (), 100, 1, 2, 3, 150)
    assert report.execution == Execution(2, 4, 170, 1, 2, 3, 270)
