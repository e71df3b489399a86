"""What an emulated device is like: one frozen value, given once, read by every part."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

RUN_MODES = ("device", "host")
PROFILES = ("8.1", "8.5", "9.1")


@dataclass(frozen=True, slots=True)
class Latency:
    """How slow the device is, in microseconds: `call_us` for the caller, `task_us` and `row_us` for the stream."""

    call_us: Mapping[str, float] = field(default_factory=dict)
    task_us: Mapping[str, float] = field(default_factory=dict)
    row_us: float = 0.0

    def task_seconds(self, function: str, rows: int) -> float:
        """The device time of a task with so many rows."""
        if not self.task_us and not self.row_us:
            return 0.0
        return (self.task_us.get(function, 0.0) + self.row_us * rows) / 1e6


@dataclass(frozen=True, slots=True)
class PlannedFault:
    """One planned failure: calls (or, with `task`, tasks) `nth` to `nth + times - 1` of `function` give `code`."""

    function: str
    code: int
    nth: int = 1
    times: int = 1
    task: bool = False


@dataclass(frozen=True, slots=True)
class EmulatorConfig:
    """The emulated machine. `profile` is the CANN release whose answers are given where releases differ."""

    run_mode: str = "device"
    soc_name: str = "Ascend310P3"
    device_count: int = 1
    memory_bytes: int = 8 << 30
    host_memory_bytes: int = 16 << 30
    profile: str = "8.1"
    slot_budget_bytes: int = 256 << 20
    intra_op_threads: int = 1
    seed: int = 0
    stream_limit: int = 1024
    event_limit: int = 1023
    broken_devices: tuple[int, ...] = ()
    latency: Latency = field(default_factory=Latency)
    faults: tuple[PlannedFault, ...] = ()
    fault_rates: Mapping[str, tuple[float, int]] = field(default_factory=dict)
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep

    def __post_init__(self) -> None:
        """Refuse a machine that cannot exist."""
        if self.run_mode not in RUN_MODES:
            raise ValueError(f"run_mode is {self.run_mode!r}, expected one of {', '.join(RUN_MODES)}")
        if self.profile not in PROFILES:
            raise ValueError(f"profile is {self.profile!r}, expected one of {', '.join(PROFILES)}")
        if self.device_count < 0 or self.memory_bytes < 1 or self.host_memory_bytes < 1 or self.slot_budget_bytes < 1:
            raise ValueError("device_count may not be negative; memory, host memory and slot budget must be positive")
        if self.intra_op_threads < 1 or self.stream_limit < 1 or self.event_limit < 1:
            raise ValueError("intra_op_threads, stream_limit and event_limit must be positive")

    @property
    def unified(self) -> bool:
        """Whether host and device are one memory."""
        return self.run_mode == "device"

    @property
    def release(self) -> tuple[int, int]:
        """The profile as numbers, for comparison."""
        major, minor = self.profile.split(".")
        return int(major), int(minor)
