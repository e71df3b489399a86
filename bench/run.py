"""`make bench`: the service beside the same models in process, in interleaved rounds on one machine.

For every case: server CPU per 1000 items, and its ratio to in-process ONNX Runtime at its best batch size in the same
round. Compare ratios of one run only: the speed of a shared machine drifts from minute to minute.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnxruntime
import psutil

from bench.models import IMAGE, build
from bench.server import ROOT, machine, serving, table

CASES = {
    "cnn_small, stream 8x8": ("cnn_small", "--mode stream --streams 8 --window 8"),
    "cnn_small, stream 8x8, 8 a message": ("cnn_small", "--mode stream --streams 8 --window 8 --pack 8"),
    "cnn_small, KServe v2 stream 8x4": ("cnn_small", "--api v2 --mode stream --streams 8 --window 4"),
    "cnn_small, unary 32 at once": ("cnn_small", "--mode unary --streams 32"),
    "resnet50, stream 8x1": ("resnet50", "--mode stream --streams 8 --window 1"),
    "resnet50, unary 8 at once": ("resnet50", "--mode unary --streams 8"),
    "64 B, stream 8x4": ("identity", "--mode stream --streams 8 --window 4"),
    "64 B, stream 8x4, 8 a message": ("identity", "--mode stream --streams 8 --window 4 --pack 8"),
    "64 B, stream 8x4, 16 a message": ("identity", "--mode stream --streams 8 --window 4 --pack 16"),
    "64 B, KServe v2 stream 8x4": ("identity", "--api v2 --mode stream --streams 8 --window 4"),
    "150 KB, stream 4x4": ("identity_image", "--mode stream --streams 4 --window 4"),
    "150 KB, KServe v2 stream 4x4": ("identity_image", "--api v2 --mode stream --streams 4 --window 4"),
    "150 KB, shared memory, stream 1x4": ("identity_image", "--mode stream --streams 1 --window 4 --shared-memory"),
    "6.2 MB, stream 1x4": ("identity_frame", "--mode stream --streams 1 --window 4"),
    "6.2 MB, KServe v2 stream 1x4": ("identity_frame", "--api v2 --mode stream --streams 1 --window 4"),
    "6.2 MB, shared memory, stream 1x4": ("identity_frame", "--mode stream --streams 1 --window 4 --shared-memory"),
    "6.2 MB in, 64 B out, stream 1x4": ("glance_frame", "--mode stream --streams 1 --window 4"),
    "6.2 MB in, 64 B out, shared memory, stream 1x4": (
        "glance_frame",
        "--mode stream --streams 1 --window 4 --shared-memory",
    ),
}
SECONDS = {"resnet50": 20.0}
BATCHES = {"cnn_small": (1, 4, 8, 16, 32), "resnet50": (1, 4, 8)}
"""Models with a limit in process: rows of one run, of which the best is taken. A copy has none to speak of."""


def in_process(root: Path, model: str, batch: int, seconds: float) -> float:
    """CPU seconds per 1000 images of ONNX Runtime alone, one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    path = root / model / "1" / "model.onnx"
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    images = np.random.default_rng(0).random((batch, *IMAGE[model]), np.float32)
    session.run(None, {"INPUT": images})
    begin, cpu, runs = time.monotonic(), time.process_time(), 0
    while time.monotonic() - begin < seconds:
        session.run(None, {"INPUT": images})
        runs += 1
    return 1e3 * (time.process_time() - cpu) / (runs * batch)


def measure(process: psutil.Process, address: str, model: str, options: str, seconds: float) -> dict[str, float]:
    """One load; server CPU is read at the edges of the load's window."""
    command = [sys.executable, str(ROOT / "bench" / "load.py"), address, model, *options.split()]
    command += ["--seconds", str(seconds)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as load:
        assert load.stdout is not None
        window = json.loads(load.stdout.readline())
        time.sleep(max(window["begin"] - time.monotonic(), 0))
        before = sum(process.cpu_times()[:2])
        time.sleep(max(window["end"] - time.monotonic(), 0))
        cpu = sum(process.cpu_times()[:2]) - before
        report: dict[str, float] = json.loads(load.stdout.read())
    if load.returncode or report["errors"]:
        raise RuntimeError(f"{' '.join(command)} failed: {report}")
    report["items_per_s"] = report["items"] / seconds
    report["cpu_s_per_1000"] = 1e3 * cpu / report["items"]
    return report


def shown(value: float, form: str) -> str:
    """A figure, or nothing where there is none."""
    return "" if math.isnan(value) else format(value, form)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cases", default="", help="only cases whose name contains this")
    parser.add_argument("--run-mode", choices=("device", "host"), default="device")
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "bench")
    arguments = parser.parse_args()
    root = arguments.out / "models"
    build(root)
    cases = {name: case for name, case in CASES.items() if arguments.cases in name}
    found: dict[str, list[dict[str, float]]] = {name: [] for name in cases}
    with serving(root, "--emulator-run-mode", arguments.run_mode, "--system-shared-memory") as server:
        process = psutil.Process(server.pid)
        best = {
            model: min(BATCHES[model], key=lambda batch: in_process(root, model, batch, 1.0))
            for model in {model for model, _ in cases.values()} & BATCHES.keys()
        }
        for number in range(arguments.rounds):
            for name, (model, options) in cases.items():
                print(f"round {number + 1} of {arguments.rounds}: {name}", file=sys.stderr)
                seconds = SECONDS.get(model, 3.0)
                before = in_process(root, model, best[model], seconds / 2) if model in best else math.nan
                report = measure(process, server.address, model, options, seconds)
                after = in_process(root, model, best[model], seconds / 2) if model in best else math.nan
                limit = (before + after) / 2
                found[name].append({**report, "in_process": limit, "ratio": report["cpu_s_per_1000"] / limit})
    print(machine())
    print(f"run mode {arguments.run_mode}; medians of {arguments.rounds} rounds; in process: best batch {best}\n")
    head = [
        "case",
        "items/s",
        "server CPU-s/1000",
        "in process",
        "ratio",
        "rows/batch",
        "items/message",
        "p50 ms",
        "p99 ms",
    ]
    rows = []
    for name, reports in found.items():
        middle = {key: statistics.median(report[key] for report in reports) for key in reports[0]}
        cells = [
            f"{middle['items_per_s']:.0f}",
            f"{middle['cpu_s_per_1000']:.3f}",
            shown(middle["in_process"], ".3f"),
            shown(middle["ratio"], ".2f"),
            shown(middle["rows_per_batch"], ".1f"),
            f"{middle['items'] / middle['messages']:.1f}",
            f"{middle['p50_ms']:.1f}",
            f"{middle['p99_ms']:.1f}",
        ]
        rows.append([name, *cells])
    print(table(head, rows))
    (arguments.out / "results.json").write_text(json.dumps({"machine": machine(), "cases": found}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
