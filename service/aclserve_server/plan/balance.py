"""Which process serves which stream or call."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from aclserve_server.plan.arrivals import names_of
from aclserve_server.plan.settings import Plan


@dataclass(frozen=True, slots=True)
class Placed:
    """A stream: which of its traffic's, its process of those that are simulated, and its turn among these."""

    traffic: str
    number: int
    process: int
    turn: int


@dataclass(frozen=True)
class Placement:
    """All streams that are simulated, and how many each of the processes has, and the fullest one of the fleet."""

    streams: list[Placed]
    open_to: list[int]
    most: int


def chance_of(plan: Plan, *names: object) -> random.Random:
    """A source of chance of its own for each use of it, from the plan's seed."""
    return random.Random("/".join(map(str, (plan.run.seed, *names))))


def stream_count(plan: Plan, name: str) -> int:
    """How many streams a traffic has."""
    traffic = plan.traffic[name]
    if traffic.arrivals == "trace":
        return len(names_of(plan.traces[name]))
    return traffic.streams * (plan.devices if traffic.per_device else 1)


class Balancer:
    """Chooses the process for what opens next."""

    def __init__(self, plan: Plan, chance: random.Random) -> None:
        self._balancing = plan.fleet.balancing
        self._processes = plan.processes
        self._random = chance.random

    def choose(self, turn: int, open_to: Callable[[int], int]) -> int:
        """A process; `open_to` tells how many requests one has, as far as is known."""
        processes = self._processes
        if self._balancing == "round_robin":
            return turn % processes
        one = int(self._random() * processes)
        if self._balancing == "random" or processes == 1:
            return one
        other = int(self._random() * processes)
        return one if open_to(one) <= open_to(other) else other


class _Open(dict[int, int]):
    """How many requests a proxy has open, by process."""

    def __missing__(self, process: int) -> int:
        return 0


def place(plan: Plan) -> Placement:
    """Balances the streams. Several kinds open in an order drawn by lot. A proxy knows those that it has opened."""
    opening = [
        (name, number)
        for name, traffic in plan.traffic.items()
        if not traffic.unary
        for number in range(stream_count(plan, name))
    ]
    if len({name for name, _ in opening}) > 1:
        chance_of(plan, "opening").shuffle(opening)
    balancer = Balancer(plan, chance_of(plan, "balance"))
    proxies = max(plan.proxy.count, 1)
    known = [_Open() for _ in range(proxies)]
    open_to = [0] * plan.processes
    chosen = []
    for turn, _ in enumerate(opening):
        seen = known[turn % proxies]
        process = balancer.choose(turn, seen.__getitem__)
        seen[process] += 1
        open_to[process] += 1
        chosen.append(process)
    kept = _kept(plan, open_to)
    simulated = [(*stream, kept[process]) for stream, process in zip(opening, chosen, strict=True) if process in kept]
    streams = [Placed(*stream, turn) for turn, stream in enumerate(simulated)]
    return Placement(streams, [open_to[process] for process in kept], max(open_to))


def _kept(plan: Plan, open_to: list[int]) -> dict[int, int]:
    """Which processes are simulated, and as which: evenly from those with the fewest streams to those with the most."""
    if not plan.fleet.sample:
        return {process: process for process in range(len(open_to))}
    ranked = sorted(range(len(open_to)), key=lambda process: (open_to[process], process))
    step = len(ranked) / plan.fleet.sample
    return {ranked[int((at + 0.5) * step)]: at for at in range(plan.fleet.sample)}
