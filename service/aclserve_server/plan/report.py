"""What came of a plan, as a document for programs and as tables for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from aclserve_server.plan.settings import Plan
from aclserve_server.plan.simulation import Outcome
from aclserve_server.plan.sources import Tally

Document = dict[str, Any]


def document(outcome: Outcome) -> Document:
    """Everything, with units in the names. Rates are of the whole fleet, shares from 0 to 1."""
    plan = outcome.plan
    traffic = {name: _traffic(tally, outcome) for name, tally in outcome.tallies.items()}
    missed = _missed(plan, traffic)
    return {
        "title": plan.run.title,
        "seed": plan.run.seed,
        "warmup_s": plan.run.warmup_s,
        "duration_s": plan.run.duration_s,
        "devices": plan.devices,
        "processes": plan.processes,
        "simulated_processes": len(outcome.loops),
        "traffic": traffic,
        "models": {name: _model(name, outcome) for name in outcome.models},
        "busy": {
            "devices": _shares(outcome.devices),
            "event_loops": _shares(outcome.loops),
            "proxy_threads": _shares(outcome.proxies),
        },
        "streams": {"most_of_a_process": outcome.most_streams, "window_there_items": outcome.window},
        "goal": {"asked": bool(plan.goal.p99_ms or plan.goal.answered), "missed": missed},
    }


def _traffic(tally: Tally, outcome: Outcome) -> Document:
    per_second = outcome.scale / outcome.seconds
    ordered = sorted(tally.latencies)
    return {
        "offered_per_s": tally.offered * per_second,
        "answered_per_s": tally.ok * per_second,
        "answered_rows_per_s": tally.rows * per_second,
        "answered_share": min(tally.ok / tally.offered, 1.0) if tally.offered else 1.0,
        "p50_ms": _percentile(ordered, 0.50) * 1e3,
        "p99_ms": _percentile(ordered, 0.99) * 1e3,
        "dropped_per_s": {reason: count * per_second for reason, count in sorted(tally.drops.items())},
        "refused_per_s": {reason: count * per_second for reason, count in sorted(tally.refused.items())},
    }


def _percentile(ordered: Sequence[float], share: float) -> float:
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)] if ordered else 0.0


def _model(name: str, outcome: Outcome) -> Document:
    totals = outcome.models[name]
    per_second = outcome.scale / outcome.seconds
    return {
        "batches_per_s": totals.batches * per_second,
        "rows_per_s": totals.rows * per_second,
        "rows_per_batch": totals.rows / totals.batches if totals.batches else 0.0,
        "fill": totals.rows / totals.gear_rows if totals.gear_rows else 0.0,
        "most_queue_rows": totals.most_queue_rows,
    }


def _shares(values: Sequence[float]) -> Document:
    if not values:
        return {"count": 0, "mean": 0.0, "least": 0.0, "most": 0.0, "each": []}
    mean = sum(values) / len(values)
    return {"count": len(values), "mean": mean, "least": min(values), "most": max(values), "each": list(values)}


def _missed(plan: Plan, traffic: Mapping[str, Document]) -> list[str]:
    goal = plan.goal
    missed = []
    for name, found in traffic.items():
        if goal.p99_ms and found["p99_ms"] > goal.p99_ms:
            missed.append(f"{name}: p99 is {found['p99_ms']:.1f} ms, {goal.p99_ms:g} ms are asked for")
        if goal.answered and found["answered_share"] < goal.answered:
            missed.append(
                f"{name}: {100 * found['answered_share']:.1f} % are answered, {100 * goal.answered:g} % are asked for"
            )
    return missed


def text(found: Document) -> str:
    """A run as tables."""
    simulated = found["simulated_processes"]
    of = f", {simulated} of them simulated" if simulated != found["processes"] else ""
    span = f"{found['duration_s']:g} s after {found['warmup_s']:g} s, seed {found['seed']}"
    lines = [
        *([found["title"]] if found["title"] else []),
        f"{found['devices']} devices, {found['processes']} processes{of}; {span}",
        "",
        *_table(
            ["traffic", "offered/s", "answered/s", "p50 ms", "p99 ms", "dropped/s", "refused/s"],
            [_traffic_row(name, each) for name, each in found["traffic"].items()],
        ),
        "",
        *_table(
            ["model", "batches/s", "rows/s", "rows/batch", "fill", "longest queue"],
            [_model_row(name, each) for name, each in found["models"].items()],
        ),
        "",
        *_table(["busy", "number", "mean", "least", "most"], list(_busy_rows(found["busy"]))),
    ]
    lines += [f"  {name}: {reason} {rate:.1f}/s" for name, reason, rate in _reasons(found)]
    lines += [f"goal missed: {each}" for each in found["goal"]["missed"]]
    if found["goal"]["asked"] and not found["goal"]["missed"]:
        lines.append("the goal is met")
    return "\n".join(lines) + "\n"


def sweep_text(title: str, key: str, found: Sequence[tuple[object, Document]]) -> str:
    """Runs of a plan with different values of one key, a line each."""
    rows = [[_show(value), *_sweep_row(each)] for value, each in found]
    heads = [key, "offered/s", "answered/s", "p50 ms", "p99 ms", "lost/s", "rows/batch", "fill"]
    heads += ["device", "loop", "proxy", "streams", "window", "goal"]
    columns = list(zip(heads, *rows, strict=True))
    shown = [column for column in columns if any(cell not in ("", "-") for cell in column[1:])]
    lines = [*([title] if title else []), *_table([column[0] for column in shown], _rows(shown))]
    return "\n".join(lines) + "\n"


def _rows(columns: Sequence[Sequence[str]]) -> list[list[str]]:
    return [list(row) for row in list(zip(*columns, strict=True))[1:]]


def _sweep_row(found: Document) -> list[str]:
    traffic, models = found["traffic"].values(), found["models"].values()
    batches = sum(each["batches_per_s"] for each in models)
    rows = sum(each["rows_per_s"] for each in models)
    gears = sum(each["rows_per_s"] / each["fill"] for each in models if each["fill"])
    busy = found["busy"]
    goal = found["goal"]
    return [
        _rate(sum(each["offered_per_s"] for each in traffic)),
        _rate(sum(each["answered_per_s"] for each in traffic)),
        f"{max(each['p50_ms'] for each in traffic):.1f}",
        f"{max(each['p99_ms'] for each in traffic):.1f}",
        _rate(sum(sum(each["dropped_per_s"].values()) + sum(each["refused_per_s"].values()) for each in traffic)),
        f"{rows / batches:.1f}" if batches else "-",
        _part(rows / gears) if gears else "-",
        _part(busy["devices"]["mean"]),
        _part(busy["event_loops"]["most"]) if busy["event_loops"]["most"] else "-",
        _part(busy["proxy_threads"]["most"]) if busy["proxy_threads"]["count"] else "-",
        str(found["streams"]["most_of_a_process"]),
        str(found["streams"]["window_there_items"]),
        "" if not goal["asked"] else "missed" if goal["missed"] else "met",
    ]


def _traffic_row(name: str, found: Document) -> list[str]:
    return [
        name,
        _rate(found["offered_per_s"]),
        _rate(found["answered_per_s"]),
        f"{found['p50_ms']:.1f}",
        f"{found['p99_ms']:.1f}",
        _rate(sum(found["dropped_per_s"].values())),
        _rate(sum(found["refused_per_s"].values())),
    ]


def _model_row(name: str, found: Document) -> list[str]:
    return [
        name,
        _rate(found["batches_per_s"]),
        _rate(found["rows_per_s"]),
        f"{found['rows_per_batch']:.1f}",
        _part(found["fill"]),
        str(found["most_queue_rows"]),
    ]


def _busy_rows(busy: Document) -> Sequence[list[str]]:
    return [
        [name.replace("_", " "), str(each["count"]), _part(each["mean"]), _part(each["least"]), _part(each["most"])]
        for name, each in busy.items()
        if each["count"] and (name == "devices" or each["most"])
    ]


def _reasons(found: Document) -> list[tuple[str, str, float]]:
    return [
        (name, reason, rate)
        for name, each in found["traffic"].items()
        for kind in ("dropped_per_s", "refused_per_s")
        for reason, rate in each[kind].items()
    ]


def _show(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _rate(value: float) -> str:
    return f"{value:.0f}" if value >= 100 or not value else f"{value:.1f}"


def _part(value: float) -> str:
    return f"{100 * value:.0f} %"


def _table(heads: list[str], rows: Sequence[list[str]]) -> list[str]:
    """Columns with two spaces between them, the first to the left and the others to the right."""
    widths = [max(len(line[at]) for line in [heads, *rows]) for at in range(len(heads))]
    return [
        "  ".join(
            cell.ljust(width) if at == 0 else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in [heads, *rows]
    ]
