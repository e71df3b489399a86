"""Installs the clients of other projects that tests/compat runs, each into an environment of its own in .tools/compat.

    python tools/compat.py [CLIENT ...]        # without any: all of them

They cannot share the service's environment: their stubs have the service's names, and they want an older protobuf. What
is there is kept; another version in `CLIENTS`, or another Python, makes an environment anew.
"""

from __future__ import annotations

import argparse
import fcntl
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[1] / ".tools" / "compat"

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
    folder, wanted = FOLDER / client, f"{CLIENTS[client]} Python {sys.version}"
    python, installed = folder / "bin" / "python", folder / "installed"
    with _alone(client):
        if not installed.is_file() or installed.read_text() != wanted:
            installed.unlink(missing_ok=True)
            _run([sys.executable, "-m", "venv", "--clear", str(folder)])
            options = ["--quiet", "--no-compile", "--disable-pip-version-check", "--timeout", "15", "--retries", "2"]
            _run([str(python), "-m", "pip", "install", *options, CLIENTS[client]])
            installed.write_text(wanted)
    return python


@contextmanager
def _alone(client: str) -> Iterator[None]:
    """Lets one process at a time make an environment."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    with (FOLDER / f"{client}.lock").open("w") as lock:
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clients", nargs="*", metavar="CLIENT", help=f"{', '.join(CLIENTS)}; without any: all")
    named = parser.parse_args(argv).clients
    if unknown := set(named) - set(CLIENTS):
        parser.error(f"no client {', '.join(sorted(unknown))}; there are {', '.join(CLIENTS)}")
    for client in named or CLIENTS:
        begin = time.monotonic()
        try:
            install(client)
        except CompatError as error:
            print(f"compat: {client}: {error}", file=sys.stderr)
            return 1
        print(f"{client:<14}{CLIENTS[client]} ({time.monotonic() - begin:.0f} s)", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
