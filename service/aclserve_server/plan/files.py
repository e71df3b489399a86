"""Reads plans, traces and measured costs; every problem is told, all at once, as `options` tells those of flags."""

from __future__ import annotations

import csv
import json
import math
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from aclserve_server.options import ConfigError, options_of
from aclserve_server.plan.settings import (
    NAMED,
    SECTIONS,
    Arrival,
    Model,
    Plan,
    Run,
    Sweep,
    Traffic,
)

MOST_BYTES = 64 << 20
"""Longest file that is read."""

MOST_ARRIVALS = 50_000_000
MOST_VALUES = 1000

Document = dict[str, Any]


def load(path: Path | None, settings: Sequence[str] = ()) -> tuple[Document, list[Sweep], Path]:
    """A plan's document with `KEY=VALUE` settings worked in, its sweeps, and the folder that its files are beside."""
    document: Document = {} if path is None else _document(path)
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals or not key:
            raise ConfigError([f"--set: got {setting!r}, expected KEY=VALUE, such as fleet.hosts=8"])
        put(document, key.strip(), _value(text))
    sweeps = document.pop("sweep", [])
    return document, list(_sweeps(sweeps)), Path() if path is None else path.parent


def put(document: Document, key: str, value: object) -> None:
    """Sets a key, such as `traffic.cameras.fps`."""
    *way, last = key.split(".")
    place = document
    for name in way:
        place = place.setdefault(name, {})
        if not isinstance(place, dict):
            raise ConfigError([f"{key}: {name!r} is a value, not a section; name a key of a section"])
    place[last] = value


def build(document: Mapping[str, Any], folder: Path) -> Plan:
    """The plan of a document; ConfigError with everything that is wrong with it."""
    problems: list[str] = []
    top = {key: value for key, value in document.items() if key not in SECTIONS and key not in NAMED}
    parts: dict[str, Any] = {"run": _section("", Run, top, problems)}
    for name, kind in SECTIONS.items():
        parts[name] = _section(name, kind, document.get(name, {}), problems)
    for name, kind in NAMED.items():
        given = document.get(name, {})
        if not isinstance(given, dict) or not given:
            problems.append(f"[{name}.NAME]: got none, expected at least one")
            given = {}
        parts[name] = {each: _section(f"{name}.{each}", kind, value, problems) for each, value in given.items()}
    plan = Plan(**parts)
    if not problems:
        plan = _with_files(plan, folder, problems)
        problems += _contradictions(plan)
    if problems:
        raise ConfigError(problems)
    return plan


def _document(path: Path) -> Document:
    text = _text(path)
    try:
        document = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError([f"{path.name}: it is no {'JSON' if path.suffix == '.json' else 'TOML'}: {error}"]) from error
    if not isinstance(document, dict):
        raise ConfigError([f"{path.name}: got a {type(document).__name__}, expected sections"])
    return document


def _text(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            data = stream.read(MOST_BYTES + 1)
        if len(data) > MOST_BYTES:
            raise ConfigError([f"{path.name}: it is longer than {MOST_BYTES} bytes; split it"])
        return data.decode()
    except OSError as error:
        raise ConfigError([f"{path}: {error.strerror}; name a file that can be read"]) from error
    except UnicodeDecodeError as error:
        raise ConfigError([f"{path.name}: it is not UTF-8 text"]) from error


def _value(text: str) -> object:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _sweeps(given: object) -> Iterator[Sweep]:
    entries: list[Any] = given if isinstance(given, list) else [given]
    for each in entries:
        fits = isinstance(each, dict) and set(each) == {"key", "values"} and isinstance(each["values"], list)
        if not fits or not isinstance(each["key"], str) or not 0 < len(each["values"]) <= MOST_VALUES:
            raise ConfigError(
                [f'[[sweep]]: got {each!r}, expected `key`, such as "fleet.hosts", and a list of `values`']
            )
        yield Sweep(each["key"], tuple(each["values"]))


def _section(name: str, kind: type, given: object, problems: list[str]) -> Any:
    """A section as its dataclass; with defaults where something is wrong, which is told."""
    if not isinstance(given, dict):
        problems.append(f"[{name}]: got {given!r}, expected keys")
        return kind()
    options = {option.name: option for option in options_of(kind)}
    special: dict[str, Callable[[object], Any]] = {"gears": _gears, "costs_us": _costs} if kind is Model else {}
    values: dict[str, Any] = {}
    for key, value in given.items():
        where = f"{name}.{key}" if name else key
        if key in special:
            read = special[key](value)
            if read is None:
                problems.append(f"{where}: got {value!r}, expected {_EXPECTED[key]}")
            else:
                values[key] = read
        elif key not in options:
            known = ", ".join([*options] + ([] if name else [*SECTIONS, *NAMED]))
            problems.append(f"{where}: there is no such key; there are {known}")
        else:
            option = options[key]
            if isinstance(value, int) and not isinstance(value, bool) and option.kind is float:
                value = float(value)
            if option.accepts(value):
                values[key] = value
            else:
                problems.append(f"{where}: got {value!r}, expected {option.expected()}")
    return kind(**values)


_EXPECTED = {
    "gears": "whole numbers of rows, such as [1, 8, 32]",
    "costs_us": "a table from rows to microseconds, such as {1 = 900, 32 = 4000}",
}


def _gears(value: object) -> tuple[int, ...] | None:
    if not isinstance(value, list) or not all(type(gear) is int and gear > 0 for gear in value):
        return None
    return tuple(sorted(set(value)))


def _costs(value: object) -> tuple[tuple[int, float], ...] | None:
    if not isinstance(value, dict):
        return None
    for rows, micros in value.items():
        if not str(rows).isdecimal() or int(rows) < 1 or isinstance(micros, bool):
            return None
        if not isinstance(micros, (int, float)) or not 0 < micros < 1e12:
            return None
    return tuple(sorted((int(rows), float(micros)) for rows, micros in value.items()))


def _with_files(plan: Plan, folder: Path, problems: list[str]) -> Plan:
    """The plan with what its files say."""
    models = {name: _measured(model, folder, problems) for name, model in plan.models.items()}
    traces = {
        name: _trace(folder / traffic.trace, traffic.model, problems)
        for name, traffic in plan.traffic.items()
        if traffic.arrivals == "trace" and traffic.trace
    }
    return replace(plan, models=models, traces=traces)


def _measured(model: Model, folder: Path, problems: list[str]) -> Model:
    if not model.costs:
        return model
    document = _document(folder / model.costs)
    costs, gears = _costs(document.get("costs_us")), _gears(document.get("gears"))
    if not costs or gears is None:
        problems.append(f"{model.costs}: expected what `aclserve plan measure` writes: `gears` and `costs_us`")
        return model
    return replace(model, costs_us=model.costs_us or costs, gears=model.gears or gears)


def _trace(path: Path, model: str, problems: list[str]) -> list[Arrival]:
    """The arrivals of a file that are of a model, in order of time. One that names none is of any."""
    lines = _text(path).splitlines()
    json_lines = path.suffix in (".jsonl", ".ndjson", ".json")
    try:
        rows = [json.loads(line) for line in lines if line.strip()] if json_lines else list(csv.DictReader(lines))
        arrivals = [
            Arrival(float(row["time_s"]), int(row.get("rows") or 0), str(row.get("stream") or ""))
            for row in rows
            if (row.get("model") or model) == model
        ]
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError, csv.Error) as error:
        problems.append(
            f"{path.name}: expected a number `time_s` in every line, and perhaps `model`, `rows`, `stream`; {error!r}"
        )
        return []
    if not arrivals:
        problems.append(f"{path.name}: got no line of the model {model!r}, expected some, each with a number `time_s`")
    if not all(0 <= arrival.at < math.inf and arrival.rows >= 0 for arrival in arrivals):
        problems.append(f"{path.name}: expected seconds in `time_s` and no negative numbers")
    return sorted(arrivals, key=lambda arrival: arrival.at)


def _contradictions(plan: Plan) -> Iterator[str]:
    for name, model in plan.models.items():
        if not model.costs_us and not model.call_us and not model.row_us:
            yield f"models.{name}: how long does it run? give `costs`, `costs_us`, or `call_us` and `row_us`"
    for name, traffic in plan.traffic.items():
        yield from _contradictions_of(f"traffic.{name}", traffic, plan)
    if plan.fleet.sample > plan.processes:
        yield f"fleet.sample: got {plan.fleet.sample}, there are {plan.processes} processes; give fewer"
    if plan.proxy.count and plan.proxy.message_us and proxy_threads(plan) < 0.5:
        yield "fleet.sample: a sample so small has no part of a proxy's thread; give more"
    if expected_arrivals(plan) > MOST_ARRIVALS:
        yield (
            f"about {expected_arrivals(plan):.3g} items would come, {MOST_ARRIVALS} are the most; give a shorter "
            "`duration_s`, or a `fleet.sample`"
        )


def _contradictions_of(where: str, traffic: Traffic, plan: Plan) -> Iterator[str]:
    model = plan.models.get(traffic.model)
    if model is None:
        yield f"{where}.model: got {traffic.model!r}, expected one of {', '.join(plan.models)}"
    elif traffic.rows > max_rows(model):
        yield f"{where}.rows: got {traffic.rows}, the model takes {max_rows(model)}; send several items"
    needed = {"poisson": "rate", "constant": "rate", "burst": "rate", "periodic": "fps", "trace": "trace"}
    if (key := needed.get(traffic.arrivals)) and not getattr(traffic, key):
        yield f"{where}.{key}: got nothing, but arrivals = {traffic.arrivals!r} needs it"
    if traffic.unary and traffic.policy != "wait":
        yield f"{where}.policy: got {traffic.policy!r}, but unary calls have none; leave it out"
    if traffic.unary and plan.fleet.sample:
        yield f"{where}.unary: calls find their process anew each time; with them leave fleet.sample out"
    if traffic.arrivals == "closed" and traffic.policy != "wait":
        yield f"{where}.policy: got {traffic.policy!r}, but closed clients wait for their answers; leave it out"
    for arrival in plan.traces.get(where.partition(".")[2], ()):
        if model is not None and arrival.rows > max_rows(model):
            yield f"{where}.trace: an item has {arrival.rows} rows, the model takes {max_rows(model)}"
            break


def gears_of(model: Model) -> list[int]:
    """The row counts that a model is compiled for, ascending."""
    return list(model.gears or [rows for rows, _ in model.costs_us] or [model.max_rows])


def max_rows(model: Model) -> int:
    """The most rows of an execution."""
    return gears_of(model)[-1]


def proxy_threads(plan: Plan) -> float:
    """The proxies' threads for the processes that are simulated."""
    return plan.proxy.count * plan.proxy.threads * (plan.fleet.sample or plan.processes) / plan.processes


def expected_arrivals(plan: Plan) -> float:
    """About how many items come, but for those of closed clients."""
    share = plan.fleet.sample / plan.processes if plan.fleet.sample else 1.0
    seconds = plan.run.warmup_s + plan.run.duration_s
    total = 0.0
    for name, traffic in plan.traffic.items():
        times = plan.devices if traffic.per_device else 1
        per_second = traffic.rate
        if traffic.arrivals == "periodic":
            per_second = traffic.fps * traffic.streams * traffic.message_items
        total += per_second * seconds * times * share + len(plan.traces.get(name, ()))
    return total
