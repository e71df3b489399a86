"""A server on an emulated device with a latency, which `aclserve serve` has no options for, in a process of its own.

    python -m tests.load.server '{"options": {"max_queue_rows": 64}, "latency": {"row_us": 100}}'

`options` are fields of the server's Config, `latency` those of the emulated device's Latency. It prints the same line
as `aclserve serve`, serves until its standard input ends, and exits with 1 when something is left on the device.
"""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aclserve_server import allocator
from aclserve_server.cli import ready_line
from aclserve_server.config import Config
from aclserve_server.emulator import Emulator, EmulatorConfig, Latency
from aclserve_server.server import Server

ROOT = Path(__file__).resolve().parents[2]

_STOP_S = 60.0


@dataclass(frozen=True)
class Place:
    """Where a server listens; `metrics` is empty where nobody told."""

    grpc: str
    metrics: str = ""


@contextmanager
def started(settings: dict[str, Any]) -> Iterator[Place]:
    """Runs a server with these settings. RuntimeError when it does not come up, or does not end well."""
    command = [sys.executable, "-m", "tests.load.server", json.dumps(settings)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            words = process.stdout.readline().split()
            if words[:1] != ["ready"]:
                raise RuntimeError("the server did not come up")
            places = dict(word.split("=", 1) for word in words[1:])
            yield Place(places["grpc"], places["metrics"])
        finally:
            process.stdin.close()
            try:
                code = process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
        if code:
            raise RuntimeError(f"the server ended with {code}")


async def serve(settings: dict[str, Any]) -> int:
    """Serves until standard input ends; returns the exit code."""
    device = Emulator(EmulatorConfig(latency=Latency(**settings.get("latency", {}))))
    config = Config(
        acl_library="emulator",
        model_repository=ROOT / "models",
        port=0,
        metrics_port=0,
        **settings.get("options", {}),
    )
    try:
        server = Server(config, device)
        addresses = await server.start()
        print(ready_line(config, addresses, server.library_path), flush=True)
        await asyncio.to_thread(sys.stdin.read)
        await server.stop()
        live = {kind: count for kind, count in device.ledger().items() if count}
        if live or device.errors:
            print(f"left on the device: {live}; errors in it: {device.errors}", file=sys.stderr)
            return 1
    finally:
        device.close()
    return 0


def main() -> int:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    allocator.tune()
    return asyncio.run(serve(json.loads(sys.argv[1])))


if __name__ == "__main__":
    sys.exit(main())
