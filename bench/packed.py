"""What packing is worth: items of the native stream, several in a message, beside Triton, which takes one, in
interleaved rounds: 64 bytes beside streams to its C++ identity backend, and a small CNN beside its Python backend with
as many unary calls at once as ours has items of one message in flight. (On its streams it ends under that load.)

`make bench-peers` runs this in the harness's client environment. The harness's load generator drives the peers, and
`bench/load.py` drives ours, with the interpreter that `--python` names.
"""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.open_loop import Peer, started


@dataclass(frozen=True)
class Case:
    """A peer with its model and load, and ours with its streams, the messages in flight on each, and the numbers of
    items in a message.
    """

    peer: str
    their_model: str
    their_shape: str
    their_load: tuple[str, ...]
    our_model: str
    streams: int
    window: int
    packs: tuple[int, ...]


CASES = {
    "64 B": Case(
        "triton-native",
        "identity_fp32",
        "1,16",
        ("--mode", "stream", "--concurrency", "8", "--inflight", "4"),
        "identity",
        8,
        4,
        (1, 8, 16),
    ),
    "small CNN": Case(
        "triton-python",
        "cnn_small",
        "1,3,64,64",
        ("--mode", "unary", "--concurrency", "64"),
        "cnn_small",
        8,
        8,
        (1, 8),
    ),
}

Found = dict[str, float]
"""CPU seconds of a server per 1000 items, and items per second."""


def ours(loadgen: Any, server: Peer, python: str, case: Case, pack: int, seconds: float) -> Found:
    """What our server makes of it."""
    command = [python, str(Path(__file__).with_name("load.py")), server.address, case.our_model, "--mode", "stream"]
    command += ["--streams", str(case.streams), "--window", str(case.window), "--pack", str(pack)]
    command += ["--seconds", str(seconds)]
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
    return {"cpu": 1e3 * cpu / report["items"], "rate": report["items"] / seconds}


def theirs(server: Peer, harness: str, case: Case, seconds: float) -> Found:
    """What a peer makes of it, with all its processes."""
    command = [sys.executable, f"{harness}/loadgen.py", "--target", server.address, *case.their_load]
    command += ["--model", case.their_model, "--shape", case.their_shape]
    command += ["--seconds", str(seconds), "--server-pid", str(server.pid)]
    output = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
    report = json.loads(output.stdout.splitlines()[-1])
    if report["errors"] or not report["server_cpu_s_per_1000"]:
        raise RuntimeError(f"{case.peer} does not answer: {report['error']}")
    return {"cpu": float(report["server_cpu_s_per_1000"]), "rate": float(report["rps"])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("address", help="where our server listens")
    parser.add_argument("--pid", type=int, required=True, help="our server's process")
    parser.add_argument("--python", required=True, help="the interpreter that our client is installed for")
    parser.add_argument("--harness", required=True)
    parser.add_argument("--tools", type=Path, required=True, help="folder of venvs, models and native")
    parser.add_argument("--peers", type=lambda text: text.split(","), required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    sys.path.insert(0, arguments.harness)
    loadgen, harness = importlib.import_module("loadgen"), importlib.import_module("run")
    server = Peer(arguments.address, arguments.pid)
    found: dict[str, list[dict[str, Found]]] = {}
    for name, case in CASES.items():
        if case.peer not in arguments.peers:
            continue
        found[name] = []
        with started(harness, [case.peer], arguments.tools, [case.their_model]) as peers:
            for number in range(arguments.rounds):
                print(f"packed, {name}: round {number + 1} of {arguments.rounds}", file=sys.stderr)
                of_peer = theirs(peers[case.peer], arguments.harness, case, arguments.seconds)
                of_ours = {
                    str(pack): ours(loadgen, server, arguments.python, case, pack, arguments.seconds)
                    for pack in case.packs
                }
                found[name].append({case.peer: of_peer, **of_ours})
    arguments.out.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
