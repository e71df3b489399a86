"""Latency at a fixed rate: requests leave when they are due, whether or not earlier ones are answered.

`make bench-peers` runs this in the harness's client environment. The harness starts the peers; ours runs already.
For each size, the peak of every server is
measured first, closed loop; then all get half of the slowest one's peak, in turn, for some rounds. A request's latency
counts from the moment it was due, so a server that falls behind cannot hide it.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import numpy as np

STREAM = "/inference.GRPCInferenceService/ModelStreamInfer"
SIZES = {
    "64 B": ("identity_fp32", "identity_fp32", "FP32", "1,16", 8, 4),
    "150 KB": ("identity_u8", "identity_u8_224", "UINT8", "1,224,224,3", 4, 4),
}
"""Name -> a peer's model, ours, data type, shape, streams and requests in flight for the peak."""
STREAMS = 4
ANSWERS = 2000


def payloads(loadgen: Any, model: str, dtype: str, shape: str) -> list[bytes]:
    """A thousand requests that differ in their id."""
    dims = [int(size) for size in shape.split(",")]
    values = np.random.default_rng(1).integers(0, 100, dims).astype(loadgen.NP[dtype])
    return [loadgen.build(model, dtype, dims, f"{number:08d}", values.tobytes()) for number in range(1000)]


def peak(harness: str, address: str, model: str, dtype: str, shape: str, streams: int, window: int) -> float:
    """Answers per second, closed loop."""
    command = [sys.executable, f"{harness}/loadgen.py", "--target", address, "--mode", "stream", "--model", model]
    command += ["--dtype", dtype, "--shape", shape, "--concurrency", str(streams), "--inflight", str(window)]
    output = subprocess.run([*command, "--seconds", "2"], check=True, capture_output=True, text=True, timeout=120)
    report = json.loads(output.stdout.splitlines()[-1])
    if report["errors"] or not report["rps"]:
        raise RuntimeError(f"{model} at {address} does not answer: {report['error']}")
    return float(report["rps"])


async def open_loop(address: str, messages: list[bytes], rate: float, answers: int) -> list[float]:
    """The latencies, in milliseconds, of `answers` requests at `rate` a second on `STREAMS` streams."""
    options = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
    channels = [
        grpc.aio.insecure_channel(address, options=[*options, ("grpc.use_local_subchannel_pool", 1), ("bench", number)])
        for number in range(STREAMS)
    ]
    calls: list[Any] = [channel.stream_stream(STREAM)() for channel in channels]
    for call in calls:
        await call.write(messages[0])
        await call.read()
    each = answers // STREAMS
    begin = time.perf_counter() + 0.2

    def due(stream: int, number: int) -> float:
        return begin + (number * STREAMS + stream) / rate

    async def send(stream: int) -> None:
        for number in range(each):
            await asyncio.sleep(max(due(stream, number) - time.perf_counter(), 0))
            await calls[stream].write(messages[number % len(messages)])
        await calls[stream].done_writing()

    latencies: list[float] = []

    async def receive(stream: int) -> None:
        for number in range(each):
            if await calls[stream].read() is grpc.aio.EOF:
                raise RuntimeError("the stream ended early")
            latencies.append(1e3 * (time.perf_counter() - due(stream, number)))

    async with asyncio.TaskGroup() as group:
        for stream in range(STREAMS):
            group.create_task(send(stream))
            group.create_task(receive(stream))
    for channel in channels:
        await channel.close()
    return latencies


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(int(len(values) * share), len(values) - 1)]


class Peer(NamedTuple):
    """A server that runs; `pid` is the root of its processes."""

    address: str
    pid: int


@contextmanager
def started(
    harness: Any, peers: Sequence[str], tools: Path, models: Sequence[str] = ("identity_fp32", "identity_u8")
) -> Iterator[dict[str, Peer]]:
    """Peers as the harness starts them, by name, once they serve these models."""
    found: dict[str, Peer] = {}
    with tempfile.TemporaryDirectory() as work, ExitStack() as undo:
        for number, name in enumerate(peers):
            target, port = harness.TARGETS[name], 18500 + 10 * number
            native = str(tools / "native") if name == "triton-native" else ""
            places = {"port": port, "models": tools / "models", "threads": 1, "work": f"{work}/{name}"}
            argv = [argument.format(**places, native=native) for argument in target["argv"]]
            python = str(tools / "venvs" / target["venv"] / "bin" / "python")
            log = undo.enter_context(open(f"{work}/{name}.log", "w", encoding="utf-8"))
            process = subprocess.Popen([python, *argv], stdout=log, stderr=log, start_new_session=True, cwd=work)
            undo.callback(harness.stop, process)
            found[name] = Peer(f"127.0.0.1:{port}", process.pid)
            if not harness.ready(found[name].address, list(models), time.time() + 90, process):
                raise RuntimeError(f"{name} did not start")
        yield found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("address", help="where our server listens")
    parser.add_argument("--harness", required=True)
    parser.add_argument("--tools", type=Path, required=True, help="folder of venvs, models and native")
    parser.add_argument("--peers", type=lambda text: text.split(","), required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    sys.path.insert(0, arguments.harness)
    loadgen, harness = importlib.import_module("loadgen"), importlib.import_module("run")
    found: dict[str, dict[str, Any]] = {}
    with started(harness, arguments.peers, arguments.tools) as peers:
        servers = {"aclserve": arguments.address, **{name: peer.address for name, peer in peers.items()}}
        for size in SIZES:
            found[size] = compare(size, servers, loadgen, arguments.harness, arguments.rounds)
    arguments.out.write_text(json.dumps(found))


def compare(size: str, servers: dict[str, str], loadgen: Any, harness: str, rounds: int) -> dict[str, Any]:
    """The servers in turn, at one rate; medians of the rounds."""
    theirs, ours, dtype, shape, streams, window = SIZES[size]
    models = {name: ours if name == "aclserve" else theirs for name in servers}
    peaks: dict[str, float] = {}
    for name, address in servers.items():
        try:
            peaks[name] = peak(harness, address, models[name], dtype, shape, streams, window)
        except RuntimeError as error:  # a peer may crash under load; the others are compared all the same
            if name == "aclserve":
                raise
            print(f"{name} is left out: {error}", file=sys.stderr)
    servers = {name: address for name, address in servers.items() if name in peaks}
    rate = min(peaks.values()) / 2
    messages = {name: payloads(loadgen, model, dtype, shape) for name, model in models.items()}
    tails: dict[str, list[float]] = {name: [] for name in servers}
    middles: dict[str, list[float]] = {name: [] for name in servers}
    for number in range(rounds):
        turn = number % len(servers)
        for name in [*servers][turn:] + [*servers][:turn]:
            latencies = asyncio.run(open_loop(servers[name], messages[name], rate, ANSWERS))
            tails[name].append(percentile(latencies, 0.99))
            middles[name].append(percentile(latencies, 0.5))
            print(f"{size} {name}: p99 {tails[name][-1]:.2f} ms", file=sys.stderr)
    return {
        "rate": rate,
        "peaks": peaks,
        "p99_ms": {name: statistics.median(values) for name, values in tails.items()},
        "p50_ms": {name: statistics.median(values) for name, values in middles.items()},
    }


if __name__ == "__main__":
    main()
