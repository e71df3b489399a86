"""Kills replicas behind Envoy, one after the other, under a load that is to lose nothing.

python -m tests.deploy.kills [--kills 200] [--seconds 1800]
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import aclserve_client as ac
from deploy.load import Load
from deploy.site import Envoy


@dataclass
class Tally:
    """What became of the load. `cut` counts streams that were open at the replicas that were killed."""

    kills: int = 0
    cut: int = 0
    gaps_s: list[float] = field(default_factory=list)
    load: Load | None = None


def kill_under_load(
    proxy: Envoy,
    kills: int,
    *,
    until: float = float("inf"),
    tell: Callable[[str], object] = lambda line: None,
) -> Tally:
    """Kills the replica with the most streams `kills` times, or until a point of the monotonic clock.

    After each kill every stream must go on before the replica is back; after its return the next follows.
    """
    tally = Tally()
    load = tally.load = Load(proxy.address, options(proxy))
    with load.running():
        load.wait_for_progress("all streams have answers")
        while tally.kills < kills and time.monotonic() < until:
            victim = max(proxy.replicas, key=lambda replica: replica.metric("aclserve_streams"))
            tally.cut += int(victim.metric("aclserve_streams"))
            victim.kill()
            tally.kills += 1
            began = time.monotonic()
            victim.launch()
            load.wait_for_progress(f"all streams have answers after kill {tally.kills}")
            tally.gaps_s.append(time.monotonic() - began)
            victim.wait()
            if not tally.kills % 10:
                tell(f"{tally.kills} kills, {tally.cut} streams cut, {load.answered} items answered")
    return tally


def options(proxy: Envoy) -> ac.Options:
    """Of the clients: they wait for a server rather than give up."""
    return ac.Options(credentials=proxy.credentials, retry_backoff=0.02, resume_timeout=120.0)
