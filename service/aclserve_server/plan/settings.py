"""What a plan says, each key declared once: its type, default, unit, limits and meaning."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from aclserve_server.options import declare

BALANCINGS = ("least_request", "round_robin", "random")
ARRIVALS = ("poisson", "constant", "periodic", "burst", "closed", "trace")
POLICIES = ("wait", "drop_oldest", "drop_newest", "latest_only")
PRIORITIES = ("low", "normal", "high")


@dataclass(frozen=True)
class Run:
    """Of the plan itself; these keys stand at the top."""

    title: str = declare("", "what the plan is about", metavar="TEXT")
    seed: int = declare(1, "of all chance: the same plan and seed give the same numbers", minimum=0)
    duration_s: float = declare(10.0, "simulated time that is looked at", unit="seconds", minimum=0.001, maximum=1e6)
    warmup_s: float = declare(1.0, "simulated time before that", unit="seconds", minimum=0.0, maximum=1e6)


@dataclass(frozen=True)
class Fleet:
    """The devices, and who drives them."""

    hosts: int = declare(1, "hosts", minimum=1, maximum=100_000)
    devices_per_host: int = declare(1, "devices of a host", minimum=1, maximum=1024)
    process: str = declare(
        "device",
        "a server process for each device, as the service has it; or, to compare, one for all devices of a host, with "
        "one queue for a model",
        choices=("device", "host"),
    )
    executions: int = declare(
        1, "executions of one device at a time, of whatever model; 0: any number, as an emulated device", minimum=0
    )
    balancing: str = declare(
        "least_request",
        "how a stream, when it opens, or a unary call finds its process: the one of two drawn by lot that has fewer "
        "open, in turn, or by lot as with consistent hashing",
        choices=BALANCINGS,
    )
    sample: int = declare(
        0, "processes that are simulated, of those between which the streams are balanced; 0: all", minimum=0
    )


@dataclass(frozen=True)
class Limits:
    """Options of `aclserve serve`, with the same names and defaults."""

    max_queue_rows: int = declare(8192, "rows that may wait for one model", unit="rows", minimum=1)
    max_stream_items: int = declare(128, "items of a stream accepted and not answered", unit="items", minimum=1)
    max_stream_rows: int = declare(0, "rows that a stream gives to an execution; 0: no bound", unit="rows", minimum=0)
    max_queue_delay_us: float = declare(0.0, "wait for company", unit="microseconds", minimum=0.0)
    slots: int = declare(2, "preallocated datasets of an instance", minimum=1, maximum=64)


@dataclass(frozen=True)
class Loop:
    """What things cost a process's event loop; 0 where that is not to be looked at."""

    message_us: float = declare(0.0, "a stream's message, in either direction", unit="microseconds", minimum=0.0)
    item_us: float = declare(0.0, "each item in a message, in either direction", unit="microseconds", minimum=0.0)
    call_us: float = declare(0.0, "a unary call, there and back", unit="microseconds", minimum=0.0)
    batch_us: float = declare(0.0, "a batch", unit="microseconds", minimum=0.0)
    handoff_us: float = declare(0.0, "delay of a batch on its way to an idle device", unit="microseconds", minimum=0.0)


@dataclass(frozen=True)
class Proxy:
    """An L7 proxy before the processes, such as Envoy."""

    count: int = declare(0, "proxies; 0: none. Each balances by the requests that it has open itself", minimum=0)
    threads: int = declare(1, "worker threads of a proxy; a stream stays on one", minimum=1, maximum=1024)
    message_us: float = declare(0.0, "CPU time of a message, or of half a unary call", unit="microseconds", minimum=0.0)


@dataclass(frozen=True)
class Model:
    """A model. Its times come from `costs`, from `costs_us`, or from `call_us` and `row_us`."""

    costs: str = declare("", "file that `aclserve plan measure` wrote, beside the plan", metavar="FILE")
    max_rows: int = declare(32, "rows of an execution, where no gears are given", unit="rows", minimum=1)
    call_us: float = declare(0.0, "time of an execution without rows", unit="microseconds", minimum=0.0)
    row_us: float = declare(0.0, "time of each row, padding too", unit="microseconds", minimum=0.0)
    spread: float = declare(0.0, "standard deviation of the times, as a part of them", minimum=0.0, maximum=1.0)
    instances: int = declare(1, "instances on each device", minimum=1, maximum=64)
    batched: bool = declare(True, "rows of several items share executions")
    max_queue_delay_us: float = declare(
        -1.0, "wait for company, as in config.pbtxt; -1: the server's", unit="microseconds", minimum=-1.0
    )
    max_queue_items: int = declare(0, "items that may wait; 0: no bound", unit="items", minimum=0)
    timeout_us: float = declare(0.0, "the model's bound of an item's wait; 0: none", unit="microseconds", minimum=0.0)
    gears: tuple[int, ...] = declare((), "compiled numbers of rows; none: those of the times, or `max_rows` alone")
    costs_us: tuple[tuple[int, float], ...] = declare(
        (),
        "times by gear, as {1 = 900, 32 = 4000}; between two, and beyond, on a straight line",
        unit="microseconds",
    )


@dataclass(frozen=True)
class Traffic:
    """One kind of clients."""

    model: str = declare("", "which model", metavar="MODEL")
    arrivals: str = declare(
        "poisson",
        "when items come: by chance at a mean rate, evenly, from each stream at `fps`, `burst_items` at once by "
        "chance, as soon as others are answered, or as a file says",
        choices=ARRIVALS,
    )
    per_device: bool = declare(False, "`streams` and `rate` are of each device, not of the fleet")
    unary: bool = declare(False, "unary calls instead of streams")
    streams: int = declare(1, "streams that are open all the time", minimum=1, maximum=10_000_000)
    rate: float = declare(0.0, "items of all streams together", unit="items/s", minimum=0.0, maximum=1e9)
    fps: float = declare(0.0, "messages of each stream, `periodic`", unit="1/s", minimum=0.0, maximum=1e6)
    jitter: float = declare(0.0, "of `periodic`, as a part of the period, to either side", minimum=0.0, maximum=1.0)
    burst_items: int = declare(1, "items of a burst", unit="items", minimum=1, maximum=1_000_000)
    in_flight: int = declare(1, "items that each stream, or all calls, keep pending, `closed`", unit="items", minimum=1)
    trace: str = declare("", "file of arrivals, `trace`: CSV or JSON lines, see below", metavar="FILE")
    rows: int = declare(1, "rows of an item", unit="rows", minimum=1)
    message_items: int = declare(1, "items of a message", unit="items", minimum=1, maximum=4096)
    policy: str = declare("wait", "frame policy of the streams", choices=POLICIES)
    priority: str = declare("normal", "priority of the items", choices=PRIORITIES)
    window: int = declare(128, "items that a stream asks to have pending at the most", unit="items", minimum=1)
    timeout_ms: float = declare(0.0, "longest wait of an item; 0: none", unit="milliseconds", minimum=0.0)
    max_age_ms: float = declare(0.0, "age at which a stream drops an item; 0: none", unit="milliseconds", minimum=0.0)


@dataclass(frozen=True)
class Goal:
    """What is to hold; 0 asks for nothing."""

    p99_ms: float = declare(0.0, "latency that 99 % of the answered items keep", unit="milliseconds", minimum=0.0)
    answered: float = declare(0.0, "part of the offered items that is answered", minimum=0.0, maximum=1.0)


@dataclass(frozen=True)
class Sweep:
    """The plan again for each value of one of its keys."""

    key: str
    values: tuple[Any, ...]


@dataclass(frozen=True)
class Plan:
    """Everything."""

    run: Run = field(default_factory=Run)
    fleet: Fleet = field(default_factory=Fleet)
    server: Limits = field(default_factory=Limits)
    loop: Loop = field(default_factory=Loop)
    proxy: Proxy = field(default_factory=Proxy)
    goal: Goal = field(default_factory=Goal)
    models: dict[str, Model] = field(default_factory=dict)
    traffic: dict[str, Traffic] = field(default_factory=dict)
    traces: dict[str, list[Arrival]] = field(default_factory=dict)

    @property
    def devices(self) -> int:
        """All devices."""
        return self.fleet.hosts * self.fleet.devices_per_host

    @property
    def processes(self) -> int:
        """All server processes."""
        return self.devices if self.fleet.process == "device" else self.fleet.hosts


@dataclass(frozen=True, slots=True)
class Arrival:
    """A line of a trace. `rows` 0 stands for what the traffic says."""

    at: float
    rows: int = 0
    stream: str = ""


SECTIONS: dict[str, type] = {"fleet": Fleet, "server": Limits, "loop": Loop, "proxy": Proxy, "goal": Goal}
"""Sections that there are once."""

NAMED: dict[str, type] = {"models": Model, "traffic": Traffic}
"""Sections of sections, each with a name of the user's."""
