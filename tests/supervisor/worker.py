"""A worker that does what a file says: `{"DEVICE": CODE}` has it end with that code at once. SIGUSR1 breaks its device.

python -m tests.supervisor.worker PLAN LINK SHARED_PORT OPTIONS...
"""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path


def device_of(flags: list[str]) -> int:
    """The device that a worker's command line names."""
    return next((int(flag.partition("=")[2]) for flag in flags if flag.startswith("--device=")), 0)


def run(plan: Path, argv: list[str]) -> int:
    code = json.loads(plan.read_text()).get(str(device_of(argv)))
    if code is not None:
        return int(code)
    import aclserve_server.server as server_module
    from aclserve_server.emulator import Emulator
    from aclserve_server.worker import main

    def breakable(config: object) -> Emulator:
        emulator = Emulator(config)  # type: ignore[arg-type]
        signal.signal(signal.SIGUSR1, lambda *_: emulator.faults.fail_call("aclmdlExecuteAsync", 507901))
        return emulator

    server_module.Emulator = breakable  # type: ignore[assignment,misc]
    return main(argv)


if __name__ == "__main__":
    sys.exit(run(Path(sys.argv[1]), sys.argv[2:]))
