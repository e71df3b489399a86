"""Installs the clients of other projects that tests/compat runs, each into an environment of its own in .tools/compat.

    python tools/compat.py [CLIENT ...]        # without any: all of them

They cannot share the service's environment: their stubs have the service's names, and they want an older protobuf. What
is there is kept; another version in `CLIENTS`, or another Python, makes an environment anew.
"""

from __future__ import annotations

import argparse
import fcntl
import functools
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / ".tools" / "compat"

CLIENTS = {
    "tritonclient": "tritonclient[grpc]==2.73.0",
    "kserve": "kserve==0.21.0",
}
"""What to install, by the name of the environment."""

STEP_S = 600.0
"""What one step of an installation may take."""


class CompatError(Exception):
    """A client cannot be installed; the message says why."""


def install(client: str) -> Path:
    """The interpreter of a client's environment, which is made where it is missing. Raises `CompatError`."""
    return environment(FOLDER / client, CLIENTS[client])


def environment(folder: Path, requirement: str) -> Path:
    """The interpreter of an environment with one requirement, made where it is missing. Raises `CompatError`."""
    wanted = f"{requirement} Python {sys.version}"
    python, installed = folder / "bin" / "python", folder / "installed"
    with _alone(folder):
        if not installed.is_file() or installed.read_text() != wanted:
            installed.unlink(missing_ok=True)
            _run([sys.executable, "-m", "venv", "--clear", str(folder)])
            options = ["--quiet", "--no-compile", "--disable-pip-version-check", "--timeout", "15", "--retries", "2"]
            _run([str(python), "-m", "pip", "install", *options, requirement])
            installed.write_text(wanted)
    return python


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Lets one process at a time make an environment."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _run(command: Sequence[str]) -> None:
    try:
        done = subprocess.run(  # noqa: S603 (our own commands)
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=STEP_S
        )
    except subprocess.TimeoutExpired:
        raise CompatError(f"{' '.join(command)}\nended after {STEP_S:g} s") from None
    if done.returncode:
        raise CompatError(f"{' '.join(command)}\nended with {done.returncode}:\n{done.stdout}{done.stderr}".rstrip())


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line; 0 when every client is installed."""
    return command("compat", __doc__ or "", {name: functools.partial(install, name) for name in CLIENTS}, argv)


def command(prog: str, about: str, tools: Mapping[str, Callable[[], Path]], argv: Sequence[str] | None) -> int:
    """Installs the tools that a command line names, or all; 0 when they are there."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tools", nargs="*", metavar="NAME", help=f"{', '.join(tools)}; without any: all")
    named = parser.parse_args(argv).tools
    if unknown := set(named) - set(tools):
        parser.error(f"no {', '.join(sorted(unknown))} here; there are {', '.join(tools)}")
    for tool in named or tools:
        begin = time.monotonic()
        try:
            path = tools[tool]()
        except CompatError as error:
            print(f"{prog}: {tool}: {error}", file=sys.stderr)
            return 1
        print(f"{tool:<22}{path.relative_to(ROOT)} ({time.monotonic() - begin:.0f} s)", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
