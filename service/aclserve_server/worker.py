"""The process of one of several devices, as the supervisor starts it:

    python -m aclserve_server.worker LINK SHARED_PORT OPTIONS...

LINK is the number of an open socket: the supervisor's end of the link closes when the supervisor is gone, however it
went, and then the worker stops as at SIGTERM. SHARED_PORT is the port that all workers listen on, 0 for none. The
options are those of `aclserve serve`; the environment's twins were the supervisor's to read.
"""

from __future__ import annotations

import asyncio
import logging
import os
import select
import socket
import sys
import threading
from collections.abc import Callable, Mapping, Sequence

from aclserve_server import logs
from aclserve_server.cli import EXIT_ERROR, EXIT_USAGE, Alone, serve_device
from aclserve_server.config import Config, ConfigError, options
from aclserve_server.metrics.http import add_process, page_or_none
from aclserve_server.rpc.health import OVERALL
from aclserve_server.server import Addresses, Server
from aclserve_server.supervisor.link import ALIVE_S, Link
from aclserve_server.supervisor.supervisor import STOP_GRACE_S

log = logging.getLogger(__name__)

GATHER_S = 0.05
"""How long changes of single names may wait for more."""


class WorkerServer(Server):
    """A server without HTTP: the supervisor asks for its metrics and knows its health."""

    def _serve_http(self) -> int:
        add_process(self.registry)
        return 0


class Tied(Alone):
    """The life of a process that a supervisor watches."""

    def __init__(self, end: socket.socket, shared_port: int, sources: Mapping[str, str]) -> None:
        super().__init__(sources)
        self._end = end
        self._shared_ports = (shared_port,) if shared_port else ()
        self._tasks: list[asyncio.Task[None]] = []
        self._stale = self._serving = False

    def make_server(self, config: Config) -> Server:
        server = WorkerServer(config, sources=self._sources)
        server.shared_ports = self._shared_ports
        return server

    async def begin(self, server: Server, stop: Callable[[], None]) -> None:
        self._server = server
        self._loop = asyncio.get_running_loop()
        watching = os.dup(self._end.fileno())
        stop_s = server.config.drain_timeout_s + STOP_GRACE_S
        threading.Thread(target=_leave_after, args=(watching, stop_s), name="link", daemon=True).start()
        self._link = await Link.open(self._end)
        server.health.changed = self._health_changed
        self._tasks = [asyncio.create_task(self._live()), asyncio.create_task(self._answer(stop))]

    def ready(self, server: Server, addresses: Addresses) -> None:
        self._tell_health()
        self._link.tell("ready", library=server.library_path)

    def fail(self, error: Exception) -> None:
        log.error("%s", error)

    async def end(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._link.close()

    async def _live(self) -> None:
        while True:
            if not self._link.is_crowded:
                self._link.tell("alive")
            await asyncio.sleep(ALIVE_S)

    async def _answer(self, stop: Callable[[], None]) -> None:
        async for message in self._link.messages():
            if message["event"] == "metrics":
                self._link.tell("page", text=await asyncio.to_thread(page_or_none, self._server.registry))
        stop()

    def _health_changed(self) -> None:
        """Tells of the whole worker at once, of many models together."""
        if self._server.health.states[OVERALL] is not self._serving:
            self._tell_health()
        elif not self._stale:
            self._stale = True
            self._loop.call_later(GATHER_S, self._tell_health)

    def _tell_health(self) -> None:
        self._stale = False
        names = self._server.health.states
        self._serving = names[OVERALL]
        self._link.tell("health", names=names)


def _leave_after(watching: int, stop_s: float) -> None:
    """Waits for the supervisor's end, and ends this process where its own stop takes too long, whatever holds it."""
    ended = select.poll()
    ended.register(watching, 0)  # nothing to read is asked for: hang-up and error are always told
    ended.poll()
    threading.Event().wait(stop_s)
    os._exit(EXIT_ERROR)


def main(argv: Sequence[str]) -> int:
    """Runs a worker; its exit code."""
    link, shared_port, *flags = argv
    try:
        config = Config.from_args(flags, {})
    except ConfigError as error:
        print(f"aclserve: {error}", file=sys.stderr)
        return EXIT_USAGE
    logs.configure(config.log_level, config.log_format)
    logs.set_device(config.device)
    told = {option.name: "flag" for option in options() if getattr(config, option.name) != option.default}
    return serve_device(config, Tied(socket.socket(fileno=int(link)), int(shared_port), told))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
