"""A server process whose emulated device fails by chance, and hangs when it is sent SIGUSR1.

    python -m tests.chaos.worker '{"fault_rates": {"aclrtMalloc": [0.01, 207001]}, "seed": 7}' serve --port 0 ...

The rest of the command line is that of `aclserve`. When it ends in order, the last line of its standard output is a
JSON object of what was live on the device when AscendCL was finalised, and of exceptions inside the emulated device.
"""

from __future__ import annotations

import json
import signal
import sys
from typing import Any

import aclserve_server.server as server_module
from aclserve_server.cli import main
from aclserve_server.config import Config
from aclserve_server.emulator import Emulator, EmulatorConfig, Latency

_made: list[Emulator] = []


def _emulator(config: EmulatorConfig) -> Emulator:
    emulator = Emulator(config)
    _made.append(emulator)
    signal.signal(signal.SIGUSR1, lambda *arguments: emulator.hold())
    return emulator


def run(settings: dict[str, Any], argv: list[str]) -> int:
    """The command `aclserve` with an emulated device of these settings."""
    rates = {name: (rate, code) for name, (rate, code) in settings.get("fault_rates", {}).items()}
    latency = Latency(row_us=settings.get("row_us", 0.0), task_us=settings.get("task_us", {}))

    def config_of(config: Config) -> EmulatorConfig:
        return EmulatorConfig(
            run_mode=config.emulator_run_mode,
            memory_bytes=config.emulator_memory_bytes,
            fault_rates=rates,
            seed=settings.get("seed", 0),
            latency=latency,
        )

    server_module.emulator_config = config_of
    server_module.Emulator = _emulator  # type: ignore[assignment,misc]
    code = main(argv)
    left = {kind: count for emulator in _made for kind, count in emulator.leaks.items() if count}
    errors = [repr(error) for emulator in _made for error in emulator.errors]
    print(json.dumps({"left": left, "errors": errors}), flush=True)
    return code


if __name__ == "__main__":
    sys.exit(run(json.loads(sys.argv[1]), sys.argv[2:]))
