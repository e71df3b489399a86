"""`make bench-peers`: this server beside others that speak KServe v2, on one machine, in interleaved rounds.

The load generator and the rounds are a neutral harness that lies beside the checkout (../shared/bench); this program
installs the peers into environments of their own (.tools/peers), starts our server, runs the harness and prints the
ratios of server CPU per request. Compare figures of one run only: the speed of a shared machine drifts.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import statistics
import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.models import build
from bench.server import ROOT, Serving, machine, serving, table

HARNESS = ROOT.parent / "shared" / "bench"
TOOLS = ROOT / ".tools" / "peers"

ENVIRONMENTS: dict[str, list[str]] = {
    "client": ["tritonclient[grpc]", "grpcio", "grpcio-tools", "protobuf", "psutil", "onnx", "onnxruntime", "uvloop"],
    "triton": ["nvidia-pytriton", "onnxruntime"],
    "mlserver": ["mlserver", "onnxruntime", "uvloop<0.22"],
    "kserve": ["kserve", "onnxruntime"],
}
NEEDS = {
    "triton-native": "triton",
    "triton-python": "triton",
    "pytriton": "triton",
    "mlserver": "mlserver",
    "mlserver-pool": "mlserver",
    "kserve": "kserve",
    "ref-sync": "client",
    "ref-aio": "client",
}
CASES = (
    r"^(tiny stream 8x4|150KB stream 4x4|6.2MB stream 1x4|tiny unary c8|150KB unary c8|6.2MB unary c4|cnn stream 8x1"
    r"|cnn unary c32|resnet50 stream 8x1)$"
)
OPTIONS = ("--max-message-bytes", "128MiB")

Packed = dict[str, list[dict[str, dict[str, float]]]]
"""By case, the rounds: what packed.py found of the peer, which comes first, and of ours by items in a message."""


def prepare(peers: Sequence[str]) -> None:
    """Installs what is missing, and makes models and the native identity backend."""
    for name in sorted({"client", *(NEEDS[peer] for peer in peers)}):
        folder, done = TOOLS / "venvs" / name, TOOLS / "venvs" / name / "installed"
        if not done.is_file():
            print(f"installing {name}: {', '.join(ENVIRONMENTS[name])}", file=sys.stderr)
            venv.create(folder, with_pip=True)
            pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
            subprocess.run([*pip, *ENVIRONMENTS[name]], check=True)
            done.touch()
    if not (TOOLS / "repository" / "resnet50").is_dir():
        command = [str(TOOLS / "venvs" / "client" / "bin" / "python"), str(HARNESS / "models.py")]
        for name in ("models", "repository"):
            (TOOLS / name).mkdir(parents=True, exist_ok=True)
        subprocess.run([*command, str(TOOLS / "models"), str(TOOLS / "repository")], check=True)
    backend = TOOLS / "native" / "libtriton_echo.so"
    if "triton-native" in peers and not backend.is_file():
        backend.parent.mkdir(exist_ok=True)
        source = HARNESS / "native" / "echo_backend.cc"
        subprocess.run(["g++", "-O2", "-shared", "-fPIC", "-o", str(backend), str(source)], check=True)


def run(server: Serving, arguments: argparse.Namespace, out: Path) -> dict[str, Any]:
    """The harness's own report."""
    command = [str(TOOLS / "venvs" / "client" / "bin" / "python"), str(HARNESS / "run.py")]
    command += ["--venvs", str(TOOLS / "venvs"), "--models", str(TOOLS / "models"), "--native", str(TOOLS / "native")]
    command += ["--out", str(out), "--targets", ",".join(arguments.peers), "--cases", arguments.cases]
    command += ["--rounds", str(arguments.rounds), "--seconds", str(arguments.seconds)]
    command += ["--ours", f"aclserve@{server.address}={server.pid}"]
    subprocess.run(command, check=True, stdout=sys.stderr)
    report: dict[str, Any] = json.loads(out.read_text())
    return report


def open_loop(server: Serving, arguments: argparse.Namespace, out: Path) -> dict[str, Any]:
    """Latencies at one rate for all; see open_loop.py."""
    command = [str(TOOLS / "venvs" / "client" / "bin" / "python"), str(ROOT / "bench" / "open_loop.py"), server.address]
    command += ["--harness", str(HARNESS), "--tools", str(TOOLS), "--peers", ",".join(arguments.peers)]
    subprocess.run([*command, "--rounds", str(arguments.rounds), "--out", str(out)], check=True)
    report: dict[str, Any] = json.loads(out.read_text())
    return report


def packed(server: Serving, arguments: argparse.Namespace, out: Path) -> Packed:
    """Items of the native stream, several in a message, beside Triton; see packed.py."""
    command = [str(TOOLS / "venvs" / "client" / "bin" / "python"), "-m", "bench.packed", server.address]
    command += ["--pid", str(server.pid), "--python", sys.executable, "--harness", str(HARNESS), "--tools", str(TOOLS)]
    command += ["--peers", ",".join(arguments.peers)]
    subprocess.run([*command, "--rounds", str(arguments.rounds), "--out", str(out)], check=True, cwd=ROOT)
    report: Packed = json.loads(out.read_text())
    return report


def packs(report: Packed) -> str:
    """What an item costs by how many are in a message, and what that is to a request of the peer's."""
    rows = []
    for case, rounds in report.items():
        peer = next(iter(rounds[0]))
        for pack in list(rounds[0])[1:]:
            cost, rate = (statistics.median(found[pack][key] for found in rounds) for key in ("cpu", "rate"))
            less = statistics.median(found[peer]["cpu"] / found[pack]["cpu"] for found in rounds)
            faster = statistics.median(found[pack]["rate"] / found[peer]["rate"] for found in rounds)
            cells = [f"{cost:.4f}", f"{rate:.0f}", f"{less:.1f} times less", f"{faster:.2f} times"]
            rows.append([f"{case}, {pack} a message", *cells, peer])
    return table(["native stream", "CPU-s/1000", "items/s", "CPU", "items/s", "than a request of"], rows)


def latencies(report: dict[str, Any], peers: Sequence[str]) -> str:
    """p99 at the fixed rate, and how ours compares with the best peer's."""
    rows = []
    for size, found in report.items():
        p99 = found["p99_ms"]
        cells = [f"{p99[name]:.2f}" if name in p99 else "crashed" for name in ("aclserve", *peers)]
        best = min((p99[peer] for peer in peers if peer in p99), default=math.nan)
        rows.append([f"{size}, stream", f"{found['rate']:.0f}", *cells, f"{p99['aclserve'] / best:.2f}"])
    return table(["open loop", "requests/s", "ours: p99 ms", *peers, "of the best"], rows)


def summary(report: dict[str, Any], peers: Sequence[str]) -> str:
    """Medians, and the ratio of our server CPU per request to each peer's, round by round."""
    head = ["case", "ours: req/s", "p50 ms", "p99 ms", "CPU-s/1000", *(f"of {peer}" for peer in peers)]
    rows = []
    for case, found in report["rows"].items():
        ours = found.get("aclserve", [])
        bad = next(
            (run.get("failed") or run.get("error") for run in ours if run.get("failed") or run.get("errors")), ""
        )
        if bad or not ours:
            rows.append([case, f"failed: {bad or 'not run'}"[:120], *[""] * (len(head) - 2)])
            continue
        middle = [f"{statistics.median(run[key] for run in ours):.4g}" for key in ("rps", "p50_ms", "p99_ms")]
        cost = f"{statistics.median(run['server_cpu_s_per_1000'] for run in ours):.3g}"
        rows.append([case, *middle, cost, *(_ratio(ours, found.get(peer, [])) for peer in peers)])
    return table(head, rows)


def _ratio(ours: Sequence[dict[str, Any]], theirs: Sequence[dict[str, Any]]) -> str:
    key = "server_cpu_s_per_1000"
    pairs = [(a[key], b[key]) for a, b in zip(ours, theirs, strict=False) if a.get(key) and b.get(key)]
    return f"{statistics.median(a / b for a, b in pairs):.2f}" if pairs else ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--cases", default=CASES, help="a regular expression over the harness's names")
    parser.add_argument("--peers", type=lambda text: text.split(","), default=["triton-native", "triton-python"])
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "bench")
    arguments = parser.parse_args()
    re.compile(arguments.cases)
    unknown = [peer for peer in arguments.peers if peer not in NEEDS]
    if unknown:
        parser.error(f"--peers: got {', '.join(unknown)}; there are {', '.join(NEEDS)}")
    if not HARNESS.is_dir():
        parser.error(f"the harness is expected in {HARNESS}; it is not part of this repository")
    prepare(arguments.peers)
    arguments.out.mkdir(parents=True, exist_ok=True)
    with serving(TOOLS / "repository", *OPTIONS) as server:
        report = run(server, arguments, (arguments.out / "peers.json").resolve())
        fixed_rate = open_loop(server, arguments, (arguments.out / "open_loop.json").resolve())
    items: Packed = {}
    if {"triton-native", "triton-python"} & set(arguments.peers):
        with serving(build(arguments.out / "models"), *OPTIONS) as server:
            items = packed(server, arguments, (arguments.out / "packed.json").resolve())
    print(machine())
    print(f"medians of {arguments.rounds} rounds; ratios of server CPU per request\n")
    print(summary(report, arguments.peers))
    print(f"\np99 latency at half the slowest server's peak; medians of {arguments.rounds} rounds\n")
    print(latencies(fixed_rate, arguments.peers))
    if items:
        print(f"\nitems of the native stream; medians of {arguments.rounds} rounds\n")
        print(packs(items))
    return 0


if __name__ == "__main__":
    sys.exit(main())
