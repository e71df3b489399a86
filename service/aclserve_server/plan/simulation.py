"""Runs a plan: builds its processes, balances streams and calls between them, lets time pass, and reports."""

from __future__ import annotations

import random
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass

from aclserve_server.engine.frames import Policy, share_of_queue
from aclserve_server.plan import arrivals
from aclserve_server.plan.agenda import Agenda, Meter, Worker
from aclserve_server.plan.balance import Balancer, Placed, chance_of, place, stream_count
from aclserve_server.plan.files import gears_of, proxy_threads
from aclserve_server.plan.lanes import Device, Overheads
from aclserve_server.plan.process import Costs, Limits, Process, Served, Totals
from aclserve_server.plan.settings import PRIORITIES, Model, Plan, Traffic
from aclserve_server.plan.sources import Calls, Manner, Road, Stream, Tally

_POLICIES = {policy.value.replace(" ", "_"): policy for policy in Policy}


@dataclass
class Outcome:
    """What came of a plan. Shares are of the time that is looked at; `scale` is by how much the fleet is larger than
    what was simulated. `most_streams` are open to the fullest process, and `window` is what each of them may have
    pending.
    """

    plan: Plan
    scale: float
    seconds: float
    tallies: dict[str, Tally]
    models: dict[str, Totals]
    devices: list[float]
    loops: list[float]
    proxies: list[float]
    most_streams: int
    window: int


def simulate(plan: Plan) -> Outcome:
    """Runs a plan. The same plan gives the same outcome, on any machine."""
    return _Simulation(plan).run()


def execution_seconds(model: Model) -> Callable[[int], float]:
    """The time of an execution in a gear, without chance."""
    points = model.costs_us

    def seconds(gear: int) -> float:
        if not points:
            return (model.call_us + model.row_us * gear) / 1e6
        at = bisect_left(points, gear, key=lambda point: point[0])
        if at < len(points) and points[at][0] == gear:
            return points[at][1] / 1e6
        if len(points) == 1 or at == 0:
            return points[0][1] / 1e6
        (low, low_us), (high, high_us) = points[max(min(at, len(points) - 1) - 1, 0)], points[min(at, len(points) - 1)]
        return max(low_us + (high_us - low_us) * (gear - low) / (high - low), 1.0) / 1e6

    return seconds


class _Simulation:
    """One run of a plan."""

    def __init__(self, plan: Plan) -> None:
        run = plan.run
        self.plan = plan
        self.agenda = Agenda()
        self.span = (run.warmup_s, run.warmup_s + run.duration_s)
        self.totals = {name: Totals() for name in plan.models}
        self.tallies = {name: Tally(*self.span) for name in plan.traffic}
        self.placement = place(plan)
        self.simulated = plan.fleet.sample or plan.processes
        self.threads, self.proxy_s = self._threads()
        self.processes = [self._process(number) for number in range(self.simulated)]
        self.balancer = Balancer(plan, chance_of(plan, "calls"))
        self.turn = 0

    def run(self) -> Outcome:
        plan = self.plan
        for name, traffic in plan.traffic.items():
            if traffic.unary:
                self._start_calls(name, traffic)
        for placed in self.placement.streams:
            self._start_stream(placed)
        self.agenda.run(self.span[1])
        devices = [device for process in self.processes for device in process.devices]
        for device in devices:
            device.stop()
        return Outcome(
            plan,
            plan.processes / self.simulated,
            plan.run.duration_s,
            self.tallies,
            self.totals,
            [device.meter.share for device in devices],
            [process.loop.meter.share for process in self.processes],
            [worker.meter.share for worker in self.threads],
            self.placement.most,
            self._window(self.placement.most),
        )

    def _meter(self) -> Meter:
        return Meter(*self.span)

    def _window(self, streams: int) -> int:
        """What each stream may have pending, where a process has so many."""
        server = self.plan.server
        return share_of_queue(server.max_stream_items, streams, server.max_queue_rows)

    def _threads(self) -> tuple[list[Worker], float]:
        """The proxies' threads, and what a message costs one. A sample of the processes has the same part of them, and
        where that is no whole number, their speed makes up for it.
        """
        proxy = self.plan.proxy
        share = proxy_threads(self.plan)
        if not share or not proxy.message_us:
            return [], 0.0
        count = max(round(share), 1)
        workers = [Worker(self.agenda, self._meter()) for _ in range(count)]
        return workers, proxy.message_us / 1e6 * count / share

    def _process(self, number: int) -> Process:
        plan, loop = self.plan, self.plan.loop
        count = 1 if plan.fleet.process == "device" else plan.fleet.devices_per_host
        costs = Costs(
            loop.message_us / 1e6,
            loop.item_us / 1e6,
            loop.call_us / 1e6,
            Overheads(loop.batch_us / 1e6, loop.handoff_us / 1e6),
        )
        devices = [Device(self.agenda, plan.fleet.executions, self._meter()) for _ in range(count)]
        process = Process(self.agenda, Worker(self.agenda, self._meter()), devices, costs)
        for name, model in plan.models.items():
            process.models[name] = self._served(process, name, model, number)
        return process

    def _served(self, process: Process, name: str, model: Model, number: int) -> Served:
        server = self.plan.server
        delay_us = server.max_queue_delay_us if model.max_queue_delay_us < 0 else model.max_queue_delay_us
        limits = Limits(
            max_queue_rows=server.max_queue_rows,
            max_rows_per_stream=server.max_stream_rows,
            max_queue_items=model.max_queue_items,
            max_delay_s=delay_us / 1e6,
            timeout_s=model.timeout_us / 1e6,
            batched=model.batched,
        )
        seconds = execution_seconds(model)
        if model.spread:
            seconds = _spread(seconds, model.spread, chance_of(self.plan, "times", name, number))
        lanes = process.lanes(model.instances, server.slots)
        return Served(process, gears_of(model), seconds, limits, lanes, self.totals[name], self.span)

    def _start_stream(self, placed: Placed) -> None:
        process = self.processes[placed.process]
        process.active += 1
        manner = _manner(self.plan.traffic[placed.traffic])
        window = self._window(self.placement.open_to[placed.process])
        road = self._road(process, placed.turn)
        stream = Stream(self.agenda, road, manner, self.tallies[placed.traffic], window)
        if manner.closed:
            self.agenda.at(0.0, stream.start)
        else:
            self._feed(placed.traffic, placed.number, stream.send)

    def _start_calls(self, name: str, traffic: Traffic) -> None:
        calls = Calls(self.agenda, self._next_road, _manner(traffic), self.tallies[name])
        for number in range(stream_count(self.plan, name)):
            if traffic.arrivals == "closed":
                self.agenda.at(0.0, calls.start)
            else:
                self._feed(name, number, calls.send)

    def _next_road(self) -> Road:
        """Where a unary call goes: proxies take calls in turn, and know what all have open."""
        self.turn += 1
        number = self.balancer.choose(self.turn, lambda process: self.processes[process].active)
        return self._road(self.processes[number], self.turn)

    def _road(self, process: Process, turn: int) -> Road:
        """The way by a thread of a proxy; they take streams and calls in turn."""
        worker = self.threads[turn % len(self.threads)] if self.threads else None
        return Road(process, worker, self.proxy_s)

    def _feed(self, name: str, number: int, send: arrivals.Send) -> None:
        traffic = self.plan.traffic[name]
        if traffic.arrivals == "trace":
            trace = self.plan.traces[name]
            times = arrivals.lines(trace, arrivals.names_of(trace)[number])
        else:
            chance = chance_of(self.plan, "arrivals", name, number)
            times = arrivals.moments(traffic, stream_count(self.plan, name), number, chance)
        arrivals.feed(self.agenda, times, self.span[1], send)


def _manner(traffic: Traffic) -> Manner:
    return Manner(
        traffic.model,
        traffic.rows,
        traffic.message_items,
        _POLICIES[traffic.policy],
        PRIORITIES.index(traffic.priority),
        traffic.window,
        traffic.timeout_ms / 1e3 or None,
        traffic.max_age_ms / 1e3 or None,
        traffic.in_flight if traffic.arrivals == "closed" else 0,
    )


def _spread(seconds: Callable[[int], float], spread: float, chance: random.Random) -> Callable[[int], float]:
    """Times with chance: normally distributed, and never less than a fifth."""
    return lambda gear: seconds(gear) * max(chance.gauss(1.0, spread), 0.2)
