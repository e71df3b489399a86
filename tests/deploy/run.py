"""Kills one of three replicas behind Envoy, again and again, under streams that are to lose nothing.

python -m tests.deploy.run [--kills 200] [--seconds 2400]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / name) for name in ("tests", "protos", "service", "client")]

from deploy.kills import Tally, kill_under_load  # noqa: E402
from deploy.site import NAMES, Envoy, Replica, up  # noqa: E402
from serving import elementwise, put_model  # noqa: E402
from tools.compat import CompatError  # noqa: E402
from tools.deploy import envoy  # noqa: E402


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line; 0 when nothing was lost, wrong or given twice."""
    parser = argparse.ArgumentParser(prog="python -m tests.deploy.run", description=__doc__)
    parser.add_argument("--kills", type=int, default=200, help="how many")
    parser.add_argument("--seconds", type=float, default=2400.0, help="how long at the most")
    given = parser.parse_args(argv)
    try:
        binary = envoy()
    except CompatError as error:
        print(f"replicas: {error}", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        put_model(folder / "models", "relu", elementwise("Relu"), "dynamic_batching {}\n")
        replicas = [Replica(replica, folder / "models") for replica in NAMES]
        (folder / "envoy").mkdir()
        with up(replicas), Envoy(binary, folder / "envoy", replicas) as proxy:
            until = time.monotonic() + given.seconds
            tally = kill_under_load(proxy, given.kills, until=until, tell=lambda line: print(line, flush=True))
    problems = tell(tally)
    if tally.kills < given.kills:
        problems.append(f"only {tally.kills} of {given.kills} kills in {given.seconds:g} s")
    for problem in problems:
        print(f"PROBLEM {problem}")
    return 1 if problems else 0


def tell(tally: Tally) -> list[str]:
    """Prints what became of the load; what was wrong."""
    assert tally.load is not None
    accounts, gaps = tally.load.accounts, sorted(tally.gaps_s) or [0.0]
    print(
        f"{tally.kills} kills cut {tally.cut} streams; {len(accounts)} streams were resumed "
        f"{sum(account.resumptions for account in accounts)} times; {sum(account.sent for account in accounts)} items "
        f"sent, {tally.load.answered} answered once; until all streams went on: median {gaps[len(gaps) // 2]:.2f} s, "
        f"longest {gaps[-1]:.2f} s"
    )
    return tally.load.problems


if __name__ == "__main__":
    sys.exit(main())
