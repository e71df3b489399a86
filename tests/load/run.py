"""Load with ghz: installs it, serves on the emulated device, runs scenarios, checks what came of them.

    python -m tests.load.run [SCENARIO ...] [--target HOST:PORT]

ghz knows the server by reflection alone. It writes one kind of report in a run and keeps no answers, so each scenario
runs four times: through the proxy of `recorder.py`, for the checks and the percentiles over items, then straight, for
the JSON report, the HTML report and the summary. Everything is kept under out/load.

Without --target each scenario has a server of its own, with the latency that its file wants, and must reach the
thresholds of its file. With it only what came of the calls and the items is checked.
"""

from __future__ import annotations

import argparse
import json
import sys
import urllib.request
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from tests.load import ghz, percentiles, scenario
from tests.load.checks import Run, missed_thresholds, outcome, problems, timing
from tests.load.recorder import Call, recording
from tests.load.scenario import Scenario
from tests.load.server import Place, started

OUT = ghz.ROOT / "out" / "load"


def recorded(work: Scenario, place: Place, out: Path = OUT) -> Run:
    """Runs a scenario through the proxy; keeps the answers, without their outputs, in NAME.items.jsonl."""
    with recording(place.grpc) as (address, calls):
        run = reported(work, place, out / f"{work.name}.recorded.json", address)
        run.calls = calls()
    _keep(run.calls, out / f"{work.name}.items.jsonl")
    return run


def reported(work: Scenario, place: Place, file: Path, address: str = "") -> Run:
    """Runs a scenario with ghz's JSON report in `file`; straight, or with the proxy at `address`."""
    file.parent.mkdir(parents=True, exist_ok=True)
    before = _executed(place)
    settings = {"host": address or place.grpc, "format": "pretty", "output": str(file)}
    ghz.run({**work.ghz, **settings}, _config_file(work, file.parent))
    after = _executed(place)
    executed = after - before if before is not None and after is not None else None
    return Run(work, json.loads(file.read_text(encoding="utf-8")), [], executed)


def _config_file(work: Scenario, out: Path) -> Path:
    return out / f"{work.name}.config.json"


def _keep(calls: Sequence[Call], file: Path) -> None:
    with file.open("w", encoding="utf-8") as lines:
        for number, call in enumerate(calls):
            for result in call.results:
                times = timing(result) if result.HasField("timing") else None
                answer = {"call": number, "id": result.id, "outcome": outcome(result), "timing": times}
                lines.write(json.dumps(answer) + "\n")


def _executed(place: Place) -> int | None:
    """How many items the server has executed without an error, as its metrics tell."""
    if not place.metrics:
        return None
    with urllib.request.urlopen(f"http://{place.metrics}/metrics", timeout=10) as page:
        families = text_string_to_metric_families(page.read().decode())
    samples = [sample for family in families for sample in family.samples if sample.name == "aclserve_items_total"]
    return sum(int(sample.value) for sample in samples if sample.labels["code"] == "OK")


def show(run: Run) -> None:
    """Prints how the calls ended, what became of the items, and the percentiles over items."""
    print(f"  calls       {dict(run.codes)}")
    print(f"  items       {dict(run.outcomes)}")
    if run.scenario.streams:
        print(f"              {run.after_half_close} of them answered after the half-close")
    if run.executed is not None:
        print(f"  items/s     {run.items_per_second:.0f}")
    print("\n" + percentiles.table(run.percentiles), flush=True)


def run_scenario(work: Scenario, target: str) -> list[str]:
    """Runs a scenario, prints and writes everything; returns what is wrong, in words."""
    print(f"== {work.name}\n", flush=True)
    with nullcontext(Place(target)) if target else started(work.server) as place:
        seen = recorded(work, place)
        straight = reported(work, place, OUT / f"{work.name}.json")
        config = {**work.ghz, "host": place.grpc}
        ghz.run({**config, "format": "html", "output": str(OUT / f"{work.name}.html")}, _config_file(work, OUT))
        summary = ghz.run({**config, "format": "summary"}, _config_file(work, OUT))
    show(seen)
    print(summary.strip() + "\n", flush=True)
    return [*problems(seen), *problems(straight), *([] if target else missed_thresholds(seen))]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line; 0 when all scenarios went as they should."""
    known = scenario.names()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenarios", nargs="*", metavar="SCENARIO", help=f"{', '.join(known)}; without any: all")
    parser.add_argument("--target", default="", metavar="HOST:PORT", help="a server that runs, with the digits model")
    arguments = parser.parse_args(argv)
    chosen = arguments.scenarios or known
    if unknown := set(chosen) - set(known):
        parser.error(f"no scenario {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    wrong: list[str] = []
    try:
        ghz.install()
        for name in chosen:
            wrong += (f"{name}: {text}" for text in run_scenario(scenario.load(name), arguments.target))
    except (ghz.GhzError, RuntimeError, OSError) as error:
        wrong.append(str(error))
    for text in wrong:
        print(f"load: {text}", file=sys.stderr)
    if not wrong:
        print(f"all went as it should; the reports are in {OUT.relative_to(ghz.ROOT)}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
