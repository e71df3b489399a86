"""`aclserve plan run` and `aclserve plan measure`."""

from __future__ import annotations

import argparse
import copy
import json
import shlex
import sys
from pathlib import Path

from aclserve_server.options import ConfigError
from aclserve_server.plan import files, picture, report
from aclserve_server.plan.settings import Sweep
from aclserve_server.plan.simulation import Outcome, simulate

EXIT_ERROR = 1
EXIT_MISSED = 3
"""The plan's goal is missed, with --check."""


def add_commands(parser: argparse.ArgumentParser) -> None:
    """Adds the commands below `plan`; each sets `run` to what it does."""
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    run = commands.add_parser("run", help="simulate a plan", allow_abbrev=False)
    run.add_argument("file", nargs="?", type=Path, help="the plan, TOML or JSON; docs/planning.md lists its keys")
    run.add_argument(
        "--set",
        dest="settings",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a key of the plan, such as traffic.cameras.fps=30; wins over the file, may be repeated",
    )
    run.add_argument("--json", action="store_true", help="one JSON document instead of tables")
    run.add_argument("--picture", type=Path, metavar="FILE", help="draw it into a PNG file (extra `plan`)")
    run.add_argument("--check", action="store_true", help=f"exit with {EXIT_MISSED} where the plan's goal is missed")
    run.set_defaults(run=_run)
    measure = commands.add_parser("measure", help="find out how long a model's executions take", allow_abbrev=False)
    measure.add_argument("model", help="its name")
    measure.add_argument(
        "--address", metavar="HOST:PORT", help="a server that runs; without it, one is started, as --serve says"
    )
    measure.add_argument("--tls-ca", type=Path, metavar="FILE", help="authorities of the server's certificate (PEM)")
    measure.add_argument("--token-file", type=Path, metavar="FILE", help="file of a token that may infer")
    measure.add_argument(
        "--repeats",
        type=int,
        default=20,
        metavar="N",
        help="executions of each gear to ask for (20); 0 asks for none, and reads what the server has done already",
    )
    measure.add_argument("--output", type=Path, metavar="FILE", help="where to write the costs, JSON (standard output)")
    measure.add_argument(
        "--serve", default="", metavar="OPTIONS", help="options of `aclserve serve`, as one word: --serve='--device 1'"
    )
    measure.set_defaults(run=_measure)


def _run(arguments: argparse.Namespace) -> int:
    document, sweeps, folder = files.load(arguments.file, arguments.settings)
    if arguments.picture:
        picture.prepare(arguments.picture)
    if not sweeps:
        outcome = simulate(files.build(document, folder))
        found = report.document(outcome)
        print(json.dumps(found, indent=2) if arguments.json else report.text(found), end="\n" if arguments.json else "")
        if arguments.picture:
            picture.draw(arguments.picture, outcome, _title(found, arguments.file))
        missed = bool(found["goal"]["missed"])
    else:
        missed = _run_sweeps(arguments, document, sweeps, folder)
    return EXIT_MISSED if arguments.check and missed else 0


def _run_sweeps(arguments: argparse.Namespace, document: files.Document, sweeps: list[Sweep], folder: Path) -> bool:
    """Runs every value of every sweep; whether a goal was missed by all values of one."""
    all_found = []
    missed = False
    for number, sweep in enumerate(sweeps):
        found = [(value, report.document(_with(document, sweep.key, value, folder))) for value in sweep.values]
        all_found.append({"key": sweep.key, "runs": [{"value": value, **each} for value, each in found]})
        missed = missed or all(each["goal"]["missed"] for _, each in found)
        title = _title(found[0][1], arguments.file)
        if not arguments.json:
            print(("\n" if number else "") + report.sweep_text("" if number else title, sweep.key, found), end="")
        if arguments.picture:
            picture.draw_sweep(_numbered(arguments.picture, number, len(sweeps)), title, sweep.key, found)
    if arguments.json:
        print(json.dumps({"sweeps": all_found}, indent=2))
    return missed


def _with(document: files.Document, key: str, value: object, folder: Path) -> Outcome:
    changed = copy.deepcopy(document)
    files.put(changed, key, value)
    return simulate(files.build(changed, folder))


def _title(found: report.Document, file: Path | None) -> str:
    return str(found["title"] or ("" if file is None else file.stem))


def _numbered(path: Path, number: int, count: int) -> Path:
    return path if count == 1 else path.with_stem(f"{path.stem}-{number + 1}")


def _measure(arguments: argparse.Namespace) -> int:
    from aclserve_server.plan import measure  # gRPC is loaded for this alone

    if arguments.repeats < 0:
        raise ConfigError([f"--repeats: got {arguments.repeats}, expected a whole number, at least 0"])
    try:
        words = shlex.split(arguments.serve)
        if arguments.output is not None:
            arguments.output.parent.mkdir(parents=True, exist_ok=True)
    except ValueError as error:
        raise ConfigError([f"--serve: got {arguments.serve!r}, expected words as in a shell: {error}"]) from error
    except OSError as error:
        raise ConfigError(
            [f"--output: got {str(arguments.output)!r}, cannot make its folder: {error.strerror}"]
        ) from error
    try:
        found = measure.measure(
            arguments.model,
            measure.Access(arguments.address or "", arguments.tls_ca, arguments.token_file),
            arguments.repeats,
            words,
        )
    except measure.MeasureError as error:
        print(f"aclserve: {error}", file=sys.stderr)
        return EXIT_ERROR
    text = json.dumps(found, indent=2) + "\n"
    if arguments.output is None:
        print(text, end="")
    else:
        arguments.output.write_text(text, encoding="utf-8")
    return 0
