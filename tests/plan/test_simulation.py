"""The planner's own promises: numbers that follow from queueing, the same ones each time, and bounded time."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from aclserve_server.plan import files, report
from aclserve_server.plan.balance import place
from aclserve_server.plan.settings import Plan
from aclserve_server.plan.simulation import simulate

Section = Mapping[str, Any]


def plan(traffic: Section, model: Section = {}, **more: Any) -> Plan:  # noqa: B006
    """One model that takes 10 ms for 1 to 8 rows, and one traffic."""
    document = {
        "duration_s": 2.0,
        "models": {"m": {"call_us": 10_000, "max_rows": 8, **model}},
        "traffic": {"t": {"model": "m", **traffic}},
        **more,
    }
    return files.build(document, Path())


def run(traffic: Section, model: Section = {}, **more: Any) -> dict[str, Any]:  # noqa: B006
    found = report.document(simulate(plan(traffic, model, **more)))
    return {**found, **found["traffic"]["t"], "model": found["models"]["m"]}


def test_a_saturated_device_does_full_batches() -> None:
    found = run({"arrivals": "closed", "in_flight": 64})
    assert found["answered_per_s"] == pytest.approx(800, rel=0.01)
    assert found["model"]["fill"] == 1.0
    assert found["busy"]["devices"]["mean"] == pytest.approx(1.0)


def test_a_queue_of_single_items_waits_as_theory_says() -> None:
    """M/D/1 at half load: the mean wait is half a service time, so the mean latency 1.5 of them."""
    outcome = simulate(plan({"rate": 50, "unary": True}, {"max_rows": 1}, duration_s=100.0))
    latencies = outcome.tallies["t"].latencies
    assert sum(latencies) / len(latencies) == pytest.approx(0.015, rel=0.1)
    assert outcome.devices[0] == pytest.approx(0.5, rel=0.1)


def test_an_idle_device_waits_for_company_only_where_that_pays() -> None:
    """By what it has learned: at 10 rows a second another one takes too long to come, at 150 it is worth it."""
    patient = {"max_queue_delay_us": 20_000.0}
    assert run({"arrivals": "constant", "rate": 10})["p99_ms"] == pytest.approx(10.0)
    assert run({"arrivals": "constant", "rate": 10}, patient)["p99_ms"] == pytest.approx(10.0)
    traffic, model = {"rate": 150, "streams": 4}, {"gears": [1, 2], "costs_us": {"1": 10_000.0, "2": 10_500.0}}
    together, at_once = run(traffic, model | patient)["model"], run(traffic, model)["model"]
    assert together["rows_per_batch"] > 1.1 * at_once["rows_per_batch"]


@pytest.mark.parametrize(
    ("traffic", "reason"),
    [
        ({"policy": "drop_oldest", "window": 4}, "OLDEST"),
        ({"policy": "drop_newest", "window": 4}, "NEWEST"),
        ({"policy": "latest_only"}, "SUPERSEDED"),
        ({"policy": "drop_oldest", "max_age_ms": 15.0}, "TOO_OLD"),
        ({"unary": True, "streams": 1}, "QUEUE_FULL"),
        ({"unary": True, "streams": 1, "timeout_ms": 12.0}, "DEADLINE_UNREACHABLE"),
    ],
)
def test_what_is_too_much_is_lost_for_its_reason(traffic: Section, reason: str) -> None:
    """Three times as much as the device can do: it does what it can, and the rest has the reason of its policy."""
    found = run({"rate": 2400, "streams": 20, **traffic}, server={"max_queue_rows": 32 if "unary" in traffic else 256})
    lost = found["dropped_per_s"] | found["refused_per_s"]
    assert found["answered_per_s"] == pytest.approx(800, rel=0.1)
    assert lost[reason] > 0.5 * sum(lost.values())
    assert found["answered_per_s"] + sum(lost.values()) == pytest.approx(found["offered_per_s"], rel=0.05)


def test_waiting_streams_lose_nothing() -> None:
    found = run({"rate": 2400, "streams": 20}, server={"max_queue_rows": 32})
    assert not found["dropped_per_s"]
    assert not found["refused_per_s"]
    assert found["p99_ms"] > 500  # their clients wait


def test_high_priority_goes_first() -> None:
    both = files.build(
        {
            "duration_s": 3.0,
            "models": {"m": {"call_us": 10_000, "max_rows": 8}},
            "traffic": {
                "bulk": {"model": "m", "rate": 1000, "streams": 8, "priority": "low"},
                "alarm": {"model": "m", "rate": 100, "streams": 2, "priority": "high"},
            },
        },
        Path(),
    )
    found = report.document(simulate(both))["traffic"]
    assert found["alarm"]["p99_ms"] < 35
    assert found["bulk"]["p99_ms"] > 200


def test_the_same_seed_gives_the_same_numbers_and_another_one_others() -> None:
    traffic = {"rate": 300, "streams": 4}
    first, again = run(traffic, {"spread": 0.1}), run(traffic, {"spread": 0.1})
    assert first == again
    assert run(traffic, {"spread": 0.1}, seed=2)["p99_ms"] != first["p99_ms"]


def test_an_event_loop_bounds_a_process() -> None:
    """200 us a message, so 400 an item: no more than 2500 items/s, however fast the device is."""
    found = run(
        {"arrivals": "closed", "in_flight": 32, "streams": 8},
        {"call_us": 100},
        loop={"message_us": 200},
        duration_s=0.5,
    )
    assert found["busy"]["event_loops"]["most"] == pytest.approx(1.0, abs=0.01)
    packed = run(
        {"arrivals": "closed", "in_flight": 32, "streams": 8, "message_items": 8},
        {"call_us": 100},
        loop={"message_us": 200},
        duration_s=0.5,
    )
    assert packed["answered_per_s"] > 1.3 * found["answered_per_s"]


def test_a_proxy_bounds_what_comes_through() -> None:
    found = run(
        {"arrivals": "closed", "in_flight": 32, "streams": 8},
        {"call_us": 100},
        proxy={"count": 1, "threads": 2, "message_us": 500},
        duration_s=0.5,
    )
    assert found["busy"]["proxy_threads"]["count"] == 2
    assert found["busy"]["proxy_threads"]["most"] == pytest.approx(1.0, abs=0.01)


def test_two_choices_balance_better_than_lots() -> None:
    fleet = {"hosts": 10, "devices_per_host": 8}
    traffic = {"rate": 1, "streams": 800}
    most = {
        name: place(plan(traffic, fleet={**fleet, "balancing": name})).most
        for name in ("round_robin", "least_request", "random")
    }
    assert most["round_robin"] == 10
    assert 10 <= most["least_request"] <= 13 < most["random"]


def test_unary_calls_find_the_device_with_fewer_open() -> None:
    fleet = {"devices_per_host": 4}
    least, chance = (
        run({"rate": 300, "unary": True}, {"max_rows": 1}, fleet={**fleet, "balancing": balancing})
        for balancing in ("least_request", "random")
    )
    assert least["p99_ms"] < 0.7 * chance["p99_ms"]


def test_a_sample_stands_for_the_fleet() -> None:
    traffic = {"arrivals": "periodic", "fps": 10, "streams": 20, "per_device": True, "policy": "latest_only"}
    fleet = {"hosts": 20, "devices_per_host": 2}
    whole = run(traffic, fleet=fleet, duration_s=1.0)
    part = run(traffic, fleet={**fleet, "sample": 10}, duration_s=1.0)
    assert (whole["simulated_processes"], part["simulated_processes"]) == (40, 10)
    assert part["offered_per_s"] == pytest.approx(whole["offered_per_s"], rel=0.03)
    assert part["answered_per_s"] == pytest.approx(whole["answered_per_s"], rel=0.03)
    assert part["p99_ms"] == pytest.approx(whole["p99_ms"], rel=0.2)


def test_instances_and_executions_share_a_device() -> None:
    traffic = {"arrivals": "closed", "in_flight": 64, "streams": 2}
    one = run(traffic, {"instances": 2})
    two = run(traffic, {"instances": 2}, fleet={"executions": 2})
    unlimited = run(traffic, {"instances": 2}, fleet={"executions": 0})
    assert one["answered_per_s"] == pytest.approx(800, rel=0.02)
    assert two["answered_per_s"] == unlimited["answered_per_s"] == pytest.approx(1600, rel=0.02)


def test_a_host_s_process_has_one_queue_for_its_devices() -> None:
    traffic = {"rate": 350, "streams": 64}
    fleet = {"devices_per_host": 4}
    apart = run(traffic, {"max_rows": 1}, fleet={**fleet, "balancing": "random"})
    shared = run(traffic, {"max_rows": 1}, fleet={**fleet, "process": "host"})
    assert shared["processes"] == 1
    assert shared["busy"]["devices"]["count"] == 4
    assert shared["p99_ms"] < apart["p99_ms"]


def test_a_trace_is_played(tmp_path: Path) -> None:
    (tmp_path / "trace.csv").write_text(
        "time_s,rows,stream\n" + "".join(f"{2 + i / 10},4,{i % 3}\n" for i in range(20))
    )
    document = {
        "models": {"m": {"call_us": 10_000, "max_rows": 8}},
        "traffic": {"t": {"model": "m", "arrivals": "trace", "trace": "trace.csv"}},
    }
    outcome = simulate(files.build(document, tmp_path))
    assert outcome.tallies["t"].offered == outcome.tallies["t"].ok == 20
    assert outcome.models["m"].rows == 80
    assert outcome.most_streams == 3
