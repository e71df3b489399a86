"""The supervisor: carries out what the fleet decides, and shows all workers as one service.

up:    the workers' ports, HTTP, health, the workers, and, when each has served or failed once, the ready line
down:  health not serving, SIGTERM to all workers, their ends, health, HTTP, ports

It never loads AscendCL: a device that hangs does not touch it.
"""

from __future__ import annotations

import asyncio
import logging
import math
import signal
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

from prometheus_client import CollectorRegistry

from aclserve_server.config import Config
from aclserve_server.metrics.http import MetricsServer
from aclserve_server.rpc.health import Health
from aclserve_server.rpc.ports import serve_probes
from aclserve_server.supervisor.fleet import Action, Fleet, Limits, Phase
from aclserve_server.supervisor.health import OVERALL, combine, down, serves
from aclserve_server.supervisor.link import Message
from aclserve_server.supervisor.metrics import Aggregate, WorkerFacts
from aclserve_server.supervisor.ports import Ports
from aclserve_server.supervisor.process import COMMAND, Run

log = logging.getLogger(__name__)

EXIT_NO_WORKERS = 70
"""All workers are given up (EX_SOFTWARE of sysexits.h)."""

STOP_GRACE_S = 15.0
"""What a worker may take for its stop beside the drain."""

LEAST_SILENCE_S = 10.0
"""How long at the least a worker may be silent, however short --device-timeout-s is."""

LATE_S = 1.0
"""A timer so late tells that this process was held up, and may have much to read."""

PAGE_S = 5.0
"""How long a worker may take to tell its metrics."""


class Supervisor:
    """Runs the workers of `config.devices` until SIGTERM, Ctrl-C or none is left. SIGHUP restarts them in turn."""

    def __init__(self, config: Config, command: tuple[str, ...] = COMMAND) -> None:
        """`command` runs a worker; its link, the shared port and the options of its configuration follow."""
        self.config = config
        self._command = command
        self._health = Health()
        self._names: dict[int, Mapping[str, bool]] = {device: {} for device in config.device_numbers}
        self._exits: dict[int, Counter[int]] = {device: Counter() for device in config.device_numbers}
        self._facts: dict[int, WorkerFacts] = {}  # made anew at every change: HTTP threads read it
        self._runs: dict[int, Run] = {}
        self._changed = asyncio.Event()
        self._library = ""

    async def run(self) -> int:
        """Serves; the exit code. Raises OSError with words for the operator where it cannot listen."""
        self._loop = asyncio.get_running_loop()
        config = self.config
        limits = Limits(
            config.restart_backoff_s,
            config.restart_limit,
            config.restart_reset_s,
            config.device_timeout_s and max(config.device_timeout_s, LEAST_SILENCE_S),
            config.drain_timeout_s + STOP_GRACE_S,
        )
        self._fleet = Fleet(config.device_numbers, limits, self._loop.time())
        async with AsyncExitStack() as stack:
            self._ports = Ports(config.host, config.port, config.worker_port, config.device_numbers)
            stack.callback(self._ports.close)
            metrics_port = await self._serve_http(stack)
            probes, health_port = await serve_probes(self._health, config.host, config.health_port)
            stack.push_async_callback(probes.stop, 1.0)
            stack.callback(self._health.shutdown)
            self._show()
            for number, act in ((signal.SIGTERM, self._stop), (signal.SIGINT, self._stop), (signal.SIGHUP, self._roll)):
                self._loop.add_signal_handler(number, act)
            async with asyncio.TaskGroup() as self._group:
                tasks = await self._keep(lambda: self._ready_line(metrics_port, health_port))
                for task in tasks:  # of processes that a driver holds for ever
                    task.cancel()
            if self._fleet.has_failed:
                log.error("no worker is left: all are given up")
                return EXIT_NO_WORKERS
            return 0

    async def _keep(self, ready_line: Callable[[], str]) -> set[asyncio.Task[None]]:
        """Does what the fleet wants done until all is over; what still waits for a process's end then."""
        told = False
        tasks: set[asyncio.Task[None]] = set()
        while not self._fleet.is_over:
            rolling = self._fleet.rolling
            for action in self._fleet.due(self._loop.time()):
                if action.kind == "start":
                    run = Run(action.device, self._command_of(action.device), partial(self._hear, action.device))
                    self._runs[action.device] = run
                    task = self._group.create_task(self._follow(run))
                    tasks.add(task)
                    task.add_done_callback(tasks.discard)
                else:
                    self._end(action)
            if rolling and not self._fleet.rolling and not self._fleet.stopping:
                log.info("the rolling restart is over")
            if not told and self._fleet.is_settled:
                told = True
                print(ready_line(), flush=True)
            await self._wait(self._fleet.next_deadline())
        return tasks

    async def _wait(self, deadline: float) -> None:
        """Until something has happened, or the deadline."""
        self._changed.clear()
        timer = None if math.isinf(deadline) else self._loop.call_at(deadline, self._changed.set)
        await self._changed.wait()
        if timer is not None:
            timer.cancel()
        if self._loop.time() > deadline + LATE_S:
            self._fleet.excuse(self._loop.time())

    # What is done.

    def _end(self, action: Action) -> None:
        device = action.device
        if action.kind == "terminate":
            log.info("the worker of device %d is to stop", device)
            self._runs[device].terminate()
        else:
            log.error("the worker of device %d does not answer, and is killed", device)
            self._runs[device].kill()

    def _command_of(self, device: int) -> tuple[str, ...]:
        flags = worker_config(self.config, device, self._ports.own[device]).flags()
        return (*self._command, "{link}", str(self._ports.shared), *flags)

    async def _follow(self, run: Run) -> None:
        """Sees one process through from its start to its end."""
        device, code = run.device, await run.run()
        rolling = self._fleet.rolling
        self._names[device] = down(self._names[device])
        self._exits[device][code] += 1
        self._fleet.exited(device, self._loop.time())
        worker = self._fleet.workers[device]
        if worker.phase is Phase.GIVEN_UP:
            log.error(
                "the worker of device %d ended with %s and is given up after %d restarts in a row; SIGHUP tries again",
                device,
                _words(code),
                worker.failures - 1,
            )
        elif worker.phase is Phase.WAITING and worker.since > self._loop.time():
            wait_s = worker.since - self._loop.time()
            log.warning(
                "the worker of device %d ended with %s; another is started in %.1f s", device, _words(code), wait_s
            )
        else:
            log.info("the worker of device %d ended with %s", device, _words(code))
        if rolling and not self._fleet.rolling:
            log.error("the rolling restart ends here: the worker of device %d does not come back from it", device)
        self._show()

    # What is heard.

    def _hear(self, device: int, message: Message) -> None:
        now = self._loop.time()
        if message["event"] == "ready":
            self._library = str(message["library"])
            self._fleet.ready(device, now)
            log.info("the worker of device %d serves (pid %d)", device, self._runs[device].pid)
        elif message["event"] == "health":
            self._names[device] = dict(message["names"])
        self._fleet.heard(device, now)
        if message["event"] != "alive":
            self._show()

    def _stop(self) -> None:
        if not self._fleet.stopping:
            log.info("stopping: all workers answer first what they have accepted")
        self._fleet.stop(self._loop.time())
        self._health.drain()
        self._changed.set()

    def _roll(self) -> None:
        log.info("SIGHUP: the workers are restarted, one after the other")
        self._fleet.roll(self._loop.time())
        self._changed.set()

    # What is shown.

    def _show(self) -> None:
        """Brings health and metrics up to what is known, and has the fleet looked at."""
        shown, told = self._health.states, combine(self._names)
        for name, serving in told.items():
            if shown.get(name) is not serving:
                self._health.set(name, serving)
        for name in shown.keys() - told.keys():
            self._health.remove(name)
        self._facts = {
            device: WorkerFacts(
                serves(self._names[device]), worker.phase is Phase.GIVEN_UP, worker.restarts, dict(self._exits[device])
            )
            for device, worker in self._fleet.workers.items()
        }
        self._changed.set()

    async def _serve_http(self, stack: AsyncExitStack) -> int:
        config = self.config
        registry = CollectorRegistry()
        registry.register(Aggregate(self._pages, lambda: self._facts))
        http = MetricsServer(
            config.host, config.metrics_port, registry, lambda: self._health.states[OVERALL], process=False
        )
        port = http.start()
        stack.push_async_callback(asyncio.to_thread, http.close)
        return port

    def _pages(self) -> dict[int, str]:
        """The metrics of all workers that have served and answer now. On an HTTP thread."""
        return asyncio.run_coroutine_threadsafe(self._gather(), self._loop).result(2 * PAGE_S)

    async def _gather(self) -> dict[int, str]:
        workers = self._fleet.workers.values()
        runs = {w.device: self._runs[w.device] for w in workers if w.phase in (Phase.READY, Phase.STOPPING)}
        pages = await asyncio.gather(*(run.page(PAGE_S) for run in runs.values()))
        return {device: page for device, page in zip(runs, pages, strict=True) if page is not None}

    def _ready_line(self, metrics_port: int, health_port: int) -> str:
        """What scripts wait for: every place, each worker's own too, under a name of its own."""
        host = f"[{self.config.host}]" if ":" in self.config.host else self.config.host
        places = {"grpc": self._ports.shared, "metrics": metrics_port, "health": health_port}
        words = [f"{name}={host}:{port}" for name, port in places.items() if port]
        words.append(f"devices={','.join(map(str, self._ports.own))}")
        for device, port in self._ports.own.items():
            words.append(f"grpc.{device}={host}:{port}")
            path = worker_config(self.config, device, port).unix_socket
            words += [f"unix.{device}={Path(path).absolute()}"] if path else []
        return " ".join(["ready", *words, f"acl={self._library}"])


def worker_config(config: Config, device: int, port: int) -> Config:
    """The options of one worker: its device, its own port, files of its own."""
    profile = Path(config.profile)
    return replace(
        config,
        devices=(),
        device=device,
        replica=f"{config.replica}-{device}" if config.replica else "",
        port=port,
        worker_port=0,
        metrics_port=0,
        health_port=0,
        unix_socket=f"{config.unix_socket}.{device}" if config.unix_socket else "",
        profile=str(profile.with_suffix(f".{device}{profile.suffix}")) if config.profile else "",
    )


def _words(code: int) -> str:
    """An exit code for people."""
    if code >= 0:
        return f"exit code {code}"
    return f"signal {-code}"
