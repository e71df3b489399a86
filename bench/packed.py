"""What packing is worth: server CPU for an item of 64 bytes on the native stream, several in a message, beside Triton's
C++ front end on its own stream, in interleaved rounds.

`make bench-peers` runs this in the harness's client environment. The harness's load generator drives the peer, which
takes one item a message; `bench/load.py` drives ours, with the interpreter that `--python` names.
"""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from bench.open_loop import Peer, started

PEER = "triton-native"
PACKS = (1, 8, 16)
STREAMS, WINDOW = 8, 4


def ours(loadgen: Any, server: Peer, python: str, pack: int, seconds: float) -> float:
    """CPU seconds of our server per 1000 items."""
    command = [python, str(Path(__file__).with_name("load.py")), server.address, "identity", "--mode", "stream"]
    command += ["--streams", str(STREAMS), "--window", str(WINDOW), "--pack", str(pack), "--seconds", str(seconds)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as load:
        assert load.stdout is not None
        window = json.loads(load.stdout.readline())
        time.sleep(max(window["begin"] - time.monotonic(), 0))
        before = loadgen.cpu_of([server.pid])
        time.sleep(max(window["end"] - time.monotonic(), 0))
        cpu = loadgen.cpu_of([server.pid]) - before
        report = json.loads(load.stdout.read())
    if load.returncode or report["errors"]:
        raise RuntimeError(f"{' '.join(command)} failed: {report}")
    return float(1e3 * cpu / report["items"])


def theirs(loadgen: Any, server: Peer, harness: str, seconds: float) -> float:
    """CPU seconds of a peer's processes per 1000 requests."""
    command = [sys.executable, f"{harness}/loadgen.py", "--target", server.address, "--mode", "stream"]
    command += ["--model", "identity_fp32", "--concurrency", str(STREAMS), "--inflight", str(WINDOW)]
    command += ["--seconds", str(seconds), "--server-pid", str(server.pid)]
    output = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
    report = json.loads(output.stdout.splitlines()[-1])
    if report["errors"] or not report["server_cpu_s_per_1000"]:
        raise RuntimeError(f"{PEER} does not answer: {report['error']}")
    return float(report["server_cpu_s_per_1000"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("address", help="where our server listens")
    parser.add_argument("--pid", type=int, required=True, help="our server's process")
    parser.add_argument("--python", required=True, help="the interpreter that our client is installed for")
    parser.add_argument("--harness", required=True)
    parser.add_argument("--tools", type=Path, required=True, help="folder of venvs, models and native")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    sys.path.insert(0, arguments.harness)
    loadgen, harness = importlib.import_module("loadgen"), importlib.import_module("run")
    server = Peer(arguments.address, arguments.pid)
    rounds: list[dict[str, float]] = []
    with started(harness, [PEER], arguments.tools) as peers:
        for number in range(arguments.rounds):
            print(f"packed: round {number + 1} of {arguments.rounds}", file=sys.stderr)
            found = {PEER: theirs(loadgen, peers[PEER], arguments.harness, arguments.seconds)}
            found |= {str(pack): ours(loadgen, server, arguments.python, pack, arguments.seconds) for pack in PACKS}
            rounds.append(found)
    arguments.out.write_text(json.dumps(rounds))


if __name__ == "__main__":
    main()
