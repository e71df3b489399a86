"""What plans, traces and costs may say, and what is told of those that cannot be used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from aclserve_server.options import ConfigError, options_of
from aclserve_server.plan import files
from aclserve_server.plan.settings import NAMED, SECTIONS, Arrival, Plan, Run
from aclserve_server.plan.simulation import execution_seconds

SMALL = """
seed = 5
[models.m]
call_us = 1000
[traffic.t]
model = "m"
rate = 10
"""


def build(text: str, folder: Path, *settings: str, suffix: str = ".toml") -> Plan:
    path = folder / f"plan{suffix}"
    path.write_text(text)
    document, sweeps, beside = files.load(path, settings)
    assert not sweeps
    return files.build(document, beside)


def problems(text: str, folder: Path, *settings: str) -> str:
    with pytest.raises(ConfigError) as caught:
        build(text, folder, *settings)
    return str(caught.value)


def test_toml_json_and_settings_say_the_same(tmp_path: Path) -> None:
    plan = build(SMALL, tmp_path)
    as_json = {"seed": 5, "models": {"m": {"call_us": 1000}}, "traffic": {"t": {"model": "m", "rate": 10}}}
    assert build(json.dumps(as_json), tmp_path, suffix=".json") == plan
    document, _, folder = files.load(
        None, ["seed=5", "models.m.call_us=1000", "traffic.t.model=m", "traffic.t.rate = 10.0"]
    )
    assert files.build(document, folder) == plan
    assert build(SMALL, tmp_path, "traffic.t.rate=20").traffic["t"].rate == 20.0


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("seed = true", "seed: got True, expected a whole number"),
        ("speed = 1", "speed: there is no such key; there are title, seed"),
        ("[fleet]\nhosts = 0", "fleet.hosts: got 0, expected a whole number from 1 to 100000"),
        ("[fleet]\nbalancing = 'luck'", "fleet.balancing: got 'luck', expected one of least_request, round_robin"),
        ("[fleet]\nsample = 2", "fleet.sample: got 2, there are 1 processes"),
        ("[proxy]\nmessage_us = -1.0", "proxy.message_us: got -1.0"),
        ("[models.n]\nrow_us = 0", "models.n: how long does it run?"),
        ("[models.n]\ncosts_us = {0 = 4}", "models.n.costs_us: got {'0': 4}, expected a table from rows"),
        ("[models.n]\ncall_us = 1\ngears = [1, 'x']", "models.n.gears: got [1, 'x'], expected whole numbers"),
        ("[models.n]\ncosts = 'absent.json'", "absent.json: No such file"),
        ("[traffic.u]\nmodel = 'x'\nrate = 1", "traffic.u.model: got 'x', expected one of m"),
        ("[traffic.u]\nmodel = 'm'", "traffic.u.rate: got nothing, but arrivals = 'poisson' needs it"),
        ("[traffic.u]\nmodel = 'm'\nrate = 1\nrows = 33", "traffic.u.rows: got 33, the model takes 32"),
        ("[traffic.u]\nmodel = 'm'\narrivals = 'closed'\npolicy = 'drop_newest'", "traffic.u.policy"),
        ("[traffic.u]\nmodel = 'm'\nrate = 1\nunary = true\npolicy = 'drop_newest'", "unary calls have none"),
        ("[traffic.u]\nmodel = 'm'\nrate = 1e8", "50000000 are the most"),
        ("[[sweep]]\nkey = 'seed'", "[[sweep]]: got"),
        ("[fleet", "plan.toml: it is no TOML"),
    ],
)
def test_what_is_wrong_is_told(tmp_path: Path, change: str, told: str) -> None:
    top, _, rest = SMALL.partition("[")
    text = change + "\n[" + rest if change.startswith("s") else SMALL + change
    assert told in problems(text if change.startswith("s") else top + "[" + text.partition("[")[2], tmp_path)


def test_everything_wrong_is_told_at_once(tmp_path: Path) -> None:
    told = problems("[fleet]\nhosts = 0\nx = 1\n", tmp_path)
    assert len(told.splitlines()) == 4  # and neither models nor traffic


@pytest.mark.parametrize("setting", ["fleet.hosts", "=3", "seed.x=3"])
def test_settings_that_set_nothing_are_refused(tmp_path: Path, setting: str) -> None:
    assert problems(SMALL, tmp_path, setting)


BAD_TRACES = (
    "\ufeff1;2\n",
    "a,b\n1\n1,2,3\n",
    "time_s\nnan\n",
    "time_s\ninf\n",
    "time_s,rows\n1,1e9\n",
    '"time_s\n1\n',
    "time_s,model\n1,m,rest,of,it\n,,,,\n",
)


def test_traces_are_csv_or_json_lines(tmp_path: Path) -> None:
    text = SMALL.replace("rate = 10", "arrivals = 'trace'\ntrace = 'trace.csv'")
    (tmp_path / "trace.csv").write_text("time_s,model,rows,stream\n2.5,m,3,b\n1.5,,,a\n1,other,1,a\n")
    expected = [Arrival(1.5, 0, "a"), Arrival(2.5, 3, "b")]
    assert build(text, tmp_path).traces["t"] == expected
    lines = [{"time_s": 1.5, "stream": "a"}, {"time_s": 2.5, "model": "m", "rows": 3, "stream": "b"}]
    (tmp_path / "trace.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert build(text.replace(".csv", ".jsonl"), tmp_path).traces["t"] == expected
    for bad in ("time_s\nsoon\n", "rows\n1\n", "time_s\n-1\n", "time_s,rows\n1,99\n", *BAD_TRACES):
        (tmp_path / "trace.csv").write_text(bad)
        assert "trace" in problems(text, tmp_path)
    for bad in ("[" * 100_000, '{"time_s": 1, "rows": 1e999}', f'{{"time_s": 1{"0" * 400}}}'):
        (tmp_path / "trace.jsonl").write_text(bad)
        assert "trace.jsonl" in problems(text.replace(".csv", ".jsonl"), tmp_path)


def test_costs_come_from_a_file_a_table_or_a_line(tmp_path: Path) -> None:
    (tmp_path / "costs.json").write_text(json.dumps({"gears": [1, 4, 8, 16], "costs_us": {"4": 100.0, "8": 300.0}}))
    plan = build(SMALL.replace("call_us = 1000", "costs = 'costs.json'"), tmp_path)
    assert files.gears_of(plan.models["m"]) == [1, 4, 8, 16]
    seconds = execution_seconds(plan.models["m"])
    assert [round(1e6 * seconds(gear)) for gear in (1, 4, 6, 8, 16)] == [100, 100, 200, 300, 700]
    table = build(SMALL.replace("call_us = 1000", "costs_us = {1 = 50, 32 = 500}"), tmp_path).models["m"]
    assert files.gears_of(table) == [1, 32]
    line = build(SMALL + "[models.n]\ncall_us = 10\nrow_us = 2\nmax_rows = 8", tmp_path).models["n"]
    assert 1e6 * execution_seconds(line)(8) == pytest.approx(26)


def test_every_key_is_documented(root: Path) -> None:
    text = (root / "docs" / "planning.md").read_text(encoding="utf-8")
    sections: dict[str, Any] = {"": Run, **SECTIONS, **{f"{name}.NAME": kind for name, kind in NAMED.items()}}
    for name, kind in sections.items():
        assert not name or f"`[{name}]`" in text, name
        for option in options_of(kind):
            assert f"| `{option.name}` |" in text, (name, option.name)
