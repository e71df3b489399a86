"""A supervisor whose workers do what a file says (`worker`), and whose patience is short.

python -m tests.supervisor.run PLAN OPTIONS...
"""

from __future__ import annotations

import asyncio
import sys

from aclserve_server import logs
from aclserve_server.config import Config
from aclserve_server.supervisor import supervisor


def run(plan: str, flags: list[str]) -> int:
    config = Config.from_args(flags, {})
    logs.configure(config.log_level, config.log_format)
    supervisor.LEAST_SILENCE_S = 4.0
    command = (sys.executable, "-m", "tests.supervisor.worker", plan)
    return asyncio.run(supervisor.Supervisor(config, command).run())


if __name__ == "__main__":
    sys.exit(run(sys.argv[1], sys.argv[2:]))
