"""Fuzzes the readers of what clients and files send: each target of `targets` for a while, in a process of its own.

    python -m tests.fuzz.run [--seconds 20] [--runs N] [--seed N] [TARGET ...]

What a run finds goes to out/fuzz, as do inputs worth keeping, from which the next run goes on. To see a finding again:

    python -m tests.fuzz.run --input out/fuzz/v2-crash-... v2
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("unary", "stream", "v2", "config", "model", "upload")
MAX_INPUT_BYTES = 4096
_SPARE_SECONDS = 240


def fuzz(target: Callable[[bytes], None], arguments: list[str]) -> None:
    """Hands the process over to the fuzzer, which ends it: with 0 where nothing was found."""
    import atheris

    atheris.Setup([sys.argv[0], *arguments], target)
    atheris.Fuzz()


def child(name: str, arguments: list[str]) -> None:
    """One target, with our code watched for what is reached."""
    import atheris

    with atheris.instrument_imports(
        include=["aclserve_server.rpc", "aclserve_server.inspect", "aclserve_server.engine.uploads"]
    ):
        from fuzz import targets
    corpus = Path(arguments[0])
    if corpus.is_dir():
        for number, seed in enumerate(targets.seeds(name)):
            (corpus / f"seed-{number:03}").write_bytes(seed)
    fuzz(targets.TARGETS[name], arguments)


def run(name: str, folder: Path, arguments: list[str], seconds: float | None) -> str:
    """Runs a target in a child process; returns what it printed where it found something, else nothing.

    `seconds` is how long it runs; None: `arguments` have a number of runs.
    """
    corpus = folder / name
    corpus.mkdir(parents=True, exist_ok=True)
    command = [
        sys.executable,
        "-m",
        "tests.fuzz.run",
        "--child",
        name,
        str(corpus),
        f"-artifact_prefix={folder}/{name}-",
        f"-max_len={MAX_INPUT_BYTES}",
        "-timeout=10",
        "-verbosity=0",
        *arguments,
    ]
    if seconds is not None:
        command.append(f"-max_total_time={max(int(seconds), 1)}")
    path = os.pathsep.join(str(ROOT / part) for part in ("protos", "service", "client", "tests", "."))
    limit = _SPARE_SECONDS + (seconds or 0)
    environment = {**os.environ, "PYTHONPATH": path}
    ended = subprocess.run(
        command, cwd=ROOT, env=environment, timeout=limit, check=False, capture_output=True, text=True, errors="replace"
    )
    return f"{ended.stdout}{ended.stderr}\nended with {ended.returncode}" if ended.returncode else ""


def main() -> int:
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2], sys.argv[3:])
        return 0
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*", choices=[*NAMES, []], metavar="TARGET", help=", ".join(NAMES))
    parser.add_argument("--seconds", type=float, default=20, help="how long each target runs")
    parser.add_argument("--runs", type=int, help="how many inputs instead")
    parser.add_argument("--seed", type=int, help="the seed of the fuzzer's choices")
    parser.add_argument("--folder", type=Path, default=ROOT / "out" / "fuzz", help="where findings and inputs go")
    parser.add_argument("--input", type=Path, help="an input to try, and nothing else")
    options = parser.parse_args()
    arguments = [] if options.seed is None else [f"-seed={options.seed}"]
    if options.runs is not None:
        arguments.append(f"-atheris_runs={options.runs}")
    failed = []
    for name in options.targets or NAMES:
        if options.input is not None:
            sys.path[:0] = [str(ROOT / "tests")]
            from fuzz import targets

            targets.TARGETS[name](options.input.read_bytes())
            continue
        print(f"fuzzing {name}", flush=True)
        found = run(name, options.folder.resolve(), arguments, None if options.runs is not None else options.seconds)
        if found:
            print(found[-20_000:], file=sys.stderr)
            failed.append(name)
    if failed:
        print(f"found something in: {', '.join(failed)}; see {options.folder}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
