"""The things a runtime keeps: devices, contexts, events, tasks and streams. What they mean is told in `runtime`."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from aclserve_server.emulator.faults import Failure


@dataclass(eq=False, slots=True)
class Device:
    """One NPU as this process sees it. `references` counts aclrtSetDevice minus aclrtResetDevice."""

    number: int
    references: int = 0
    primary: Context | None = None
    forced: bool = False
    peers: set[int] = field(default_factory=set)


@dataclass(eq=False, slots=True)
class Context:
    """The owner of streams and events; dead after destruction, but a thread may still hold it as current."""

    device: Device
    explicit: bool
    handle: int = 0
    live: bool = True
    streams: set[Stream] = field(default_factory=set)
    default_stream: Stream | None = None


@dataclass(eq=False, slots=True)
class Event:
    """A marker. `submitted` and `done` count records; `clock` is what the latest record is certain to follow."""

    context: Context
    number: int
    flags: int
    extended: bool = False
    handle: int = 0
    submitted: int = 0
    done: int = 0
    reset: bool = False
    time: float = 0.0
    clock: dict[int, int] = field(default_factory=dict)
    waiting: set[Stream] = field(default_factory=set)


@dataclass(eq=False, slots=True)
class Task:
    """Work in a stream. `run` does it; `poison` is what is done instead when it fails; `fault` makes it fail."""

    function: str
    run: Callable[[], None] | None = None
    poison: Callable[[], None] | None = None
    rows: int = 0
    fault: int = 0
    reason: str = "planned failure"
    awaits: Event | None = None
    generation: int = 0
    number: int = 0
    stream: Stream | None = None
    thread: int = 0
    owner: int = 0  # model id
    device: int = 0
    done: bool = False


class Stream:
    """An ordered queue of tasks. Every field is guarded by the runtime's lock."""

    def __init__(self, context: Context, number: int, lock: threading.RLock, flags: int, priority: int) -> None:
        self.context = context
        self.number = number
        self.flags = flags
        self.priority = priority
        self.handle = 0
        self.tasks: deque[Task] = deque()
        self.submitted = 0
        self.done = 0
        self.clock: dict[int, int] = {}
        self.error = 0
        self.error_text = ""
        self.stop_on_failure = False
        self.stopped = 0
        self.aborts = 0
        self.closing = False
        self.waiters = 0
        self.report_thread: int | None = None
        self.host_functions = False
        self.running: Task | None = None
        self.idle_worker = False
        self.wakeup = threading.Condition(lock)
        self.progress = threading.Condition(lock)
        self.worker: threading.Thread | None = None

    def drop_tasks(self, aborted: bool) -> None:
        """Forget the tasks that have not started; `aborted` tells it to who waits for them."""
        self.aborts += aborted and bool(self.tasks)
        for task in self.tasks:
            task.done = task is not self.running
        self.tasks.clear()
        if self.running is not None:
            self.tasks.append(self.running)
        else:
            self.done = self.submitted
        self.progress.notify_all()

    def raise_error(self) -> None:
        """Give the first failure since the last time, once."""
        if self.error:
            code, text = self.error, self.error_text
            self.error, self.error_text = 0, ""
            raise Failure(code, text)
