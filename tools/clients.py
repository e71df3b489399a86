"""Runs the client kits of client/ for other languages against a live server on the emulated device.

    python tools/clients.py [KIT ...]        # without any: all of them

Each kit is prepared from its language's own registry, its tests run, and its example must print the same accuracy as
the Python client does over the same digits. Commands run in the checkout, with ACLSERVE_ADDRESS (the server's
HOST:PORT), ACLSERVE_DIGITS (the folder of the digits) and ACLSERVE_SERVE (a command line, to be split at blanks, that
starts another such server) in their environment. A kit whose toolchain is not there is left out, with the reason; that
is a failure only where the kit was named.
"""

from __future__ import annotations

import argparse
import os
import re
import select
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from aclserve_client import Client

ROOT = Path(__file__).resolve().parents[1]
DIGITS = ROOT / "demo" / "digits"
START_S = 60.0
STOP_S = 30.0
STEP_S = 420.0
"""What one command of a kit may take; the first one downloads and compiles."""

_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


class KitError(Exception):
    """A kit failed; the message says which command, and what it said."""


@dataclass(frozen=True)
class Kit:
    """One language. Commands are for the shell; `needs` are programs with what prints their version and the least one.

    `missing` is a command of the kit's own: it fails, and says in one line why, where the kit cannot run here.
    Programs of `needs` with two empty texts may have any version.
    """

    language: str
    needs: dict[str, tuple[str, str]]
    test: str
    example: str
    missing: str = ""
    prepare: str = ""


KITS = {
    "go": Kit(
        language="Go",
        needs={"go": ("go env GOVERSION", "1.24")},
        prepare="go -C client/go mod download",
        test="go -C client/go vet ./... && go -C client/go test -count=1 ./...",
        example='go -C client/go run ./examples/digits "$ACLSERVE_ADDRESS"',
    ),
    "node": Kit(
        language="JavaScript",
        needs={"node": ("node --version", "20"), "npm": ("", "")},
        prepare="cd client/node && { [ node_modules/.package-lock.json -nt package-lock.json ] || npm ci --silent; }",
        test="cd client/node && npm --silent test && npm --silent run check",
        example='node client/node/examples/digits.js "$ACLSERVE_ADDRESS"',
    ),
    "java": Kit(
        language="Java",
        needs={"mvn": ("", ""), "javac": ("javac -version", "17")},
        test="mvn -q -B -ntp -f client/java/pom.xml verify",
        example="mvn -q -B -ntp -f client/java/pom.xml exec:java -Dexec.args=$ACLSERVE_ADDRESS",
    ),
    "rust": Kit(
        language="Rust",
        needs={"cargo": ("cargo --version", "1.88")},
        prepare="cargo fetch -q --locked --manifest-path client/rust/Cargo.toml",
        test="client/rust/check.sh",
        example='cargo run -q --locked --manifest-path client/rust/Cargo.toml --example digits -- "$ACLSERVE_ADDRESS"',
    ),
    "cpp": Kit(
        language="C++",
        needs={},
        missing="sh client/cpp/missing.sh",
        prepare="cmake -S client/cpp -B client/cpp/build -G Ninja && cmake --build client/cpp/build",
        test="ctest --test-dir client/cpp/build --output-on-failure",
        example='client/cpp/build/digits "$ACLSERVE_ADDRESS"',
    ),
}


def missing(kit: Kit) -> str:
    """Why a kit cannot run on this machine, in one line; empty where it can."""
    for program, (ask, least) in kit.needs.items():
        if shutil.which(program) is None:
            return f"there is no `{program}` on the PATH"
        told = run(ask) if ask else None
        found = re.search(r"\d+(\.\d+)*", told.stdout) if told else None
        if told and (found is None or _version(found[0]) < _version(least)):
            return f"`{ask}` says {told.stdout.strip()!r}; {least} or newer is needed"
    if kit.missing and (done := run(kit.missing)).returncode:
        return (done.stdout.strip() or done.stderr.strip() or kit.missing).splitlines()[-1]
    return ""


def _version(text: str) -> list[int]:
    return [int(number) for number in text.split(".")]


def run(command: str, environ: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Runs a command of a kit in the checkout, at most STEP_S; all its processes end with it."""
    with subprocess.Popen(  # noqa: S602 (our own commands)
        command,
        shell=True,
        cwd=ROOT,
        env={**os.environ, **(environ or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
    ) as process:
        try:
            out, err = process.communicate(timeout=STEP_S)
        except BaseException as error:
            os.killpg(process.pid, signal.SIGKILL)
            out, err = process.communicate()
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            err += f"\n(ended after {STEP_S:g} s)"
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def run_kit(kit: Kit, environ: dict[str, str], accuracy: str) -> None:
    """Prepares a kit, runs its tests and its example. Raises `KitError` where one of them fails."""
    said = ""
    for command in filter(None, (kit.prepare, kit.test, kit.example)):
        done = run(command, environ)
        if done.returncode:
            raise KitError(f"{command}\nended with {done.returncode}:\n{done.stdout}{done.stderr}".rstrip())
        said = done.stdout
    lines = [line.rstrip() for line in _COLOURS.sub("", said).splitlines() if line.startswith("accuracy")]
    if lines[-1:] != [accuracy]:
        raise KitError(f"{kit.example}\nprinted {lines or said!r}; the Python client found {accuracy!r}")


def serve_command() -> list[str]:
    """What starts a server on the emulated device, on free ports, with the digits."""
    options = ["--acl-library", "emulator", "--model-repository", str(ROOT / "models")]
    program = str(Path(sys.executable).parent / "aclserve")
    return [program, "serve", *options, "--port", "0", "--metrics-port", "0", "--log-level", "warning"]


@contextmanager
def serving() -> Iterator[dict[str, str]]:
    """A live server; gives the environment of the kits' commands. Raises `KitError` where it does not start or end."""
    command = serve_command()
    with tempfile.TemporaryFile("w+") as log:
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=log, text=True) as process:  # noqa: S603
            try:
                address = _address(process, START_S)
                environ = {"ACLSERVE_ADDRESS": address, "ACLSERVE_DIGITS": str(DIGITS)}
                yield {**environ, "ACLSERVE_SERVE": shlex.join(command)}
            finally:
                process.terminate()
                try:
                    process.wait(STOP_S)
                except subprocess.TimeoutExpired:
                    process.kill()
        if process.returncode:
            log.seek(0)
            raise KitError(f"the server ended with {process.returncode}; it said:\n{log.read()}")


def _address(process: subprocess.Popen[str], seconds: float) -> str:
    assert process.stdout is not None
    readable, _, _ = select.select([process.stdout], [], [], seconds)
    line = process.stdout.readline() if readable else ""
    if not (ready := re.match(r"ready grpc=(\S+)", line)):
        raise KitError(f"the server did not start within {seconds:g} s; it said {line!r}")
    return ready[1]


def python_accuracy(address: str) -> str:
    """The line that the Python client's answers give, as every kit's example prints it."""
    images = np.load(DIGITS / "heldout_images.npy").astype(np.float32)
    truth = np.load(DIGITS / "heldout_labels.npy")
    right = answers = 0
    with Client(address) as client, client.stream("digits") as stream:
        for result in stream.map({"image": images[row : row + 1]} for row in range(len(images))):
            if result.error is not None:
                raise KitError(f"the Python client got {result.error}")
            right += int(result.outputs["label"][0] == truth[int(result.id)])
            answers += 1
    return f"accuracy    {right / answers:.1%} of {answers} answers"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line; 0 when every kit that was asked for, and can run, did well."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kits", nargs="*", metavar="KIT", help=f"{', '.join(KITS)}; without any: all")
    named = parser.parse_args(argv).kits
    if unknown := set(named) - set(KITS):
        parser.error(f"no kit {', '.join(sorted(unknown))}; there are {', '.join(KITS)}")
    failed = False
    try:
        with serving() as environ:
            accuracy = python_accuracy(environ["ACLSERVE_ADDRESS"])
            print(f"{'Python':<12}{accuracy}", flush=True)
            for name in named or KITS:
                failed |= not _report(KITS[name], environ, accuracy, must_run=bool(named))
    except KitError as error:
        print(f"clients: {error}", file=sys.stderr)
        return 1
    return 1 if failed else 0


def _report(kit: Kit, environ: dict[str, str], accuracy: str, *, must_run: bool) -> bool:
    """Runs a kit and prints how it went; True when that is well."""
    if why := missing(kit):
        print(f"{kit.language:<12}left out: {why}", flush=True)
        return not must_run
    begin = time.monotonic()
    try:
        run_kit(kit, environ, accuracy)
    except KitError as error:
        print(f"{kit.language:<12}FAILED: {error}", flush=True)
        return False
    print(f"{kit.language:<12}{accuracy}, tests passed ({time.monotonic() - begin:.0f} s)", flush=True)
    return True


if __name__ == "__main__":
    sys.exit(main())
