"""One run of one worker's process: a fresh interpreter, never a fork of this one, and the link to it.

The worker inherits standard error, where it logs, and one end of the link. Its own process group keeps a terminal's
Ctrl-C from it: the supervisor alone decides when it stops.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress

from aclserve_server.supervisor.link import Link, Message

log = logging.getLogger(__name__)

COMMAND = (sys.executable, "-m", "aclserve_server.worker")

LAST_WORDS_S = 2.0
"""How long what a process had told before its end may take to be read."""

NOT_STARTED = 127
"""The exit code of a process that could not be started, as a shell has it."""


class Run:
    """`run` once; the signals at any time."""

    def __init__(self, device: int, command: Sequence[str], hear: Callable[[Message], None]) -> None:
        """`command` gets the number of its end of the link in place of `{link}`. `hear` gets all that it tells."""
        self.device = device
        self._command = command
        self._hear = hear
        self._process: asyncio.subprocess.Process | None = None
        self._early: signal.Signals | None = None
        """What was sent before there was a process to take it."""
        self._link: Link | None = None
        self._page: asyncio.Future[str | None] | None = None

    @property
    def pid(self) -> int:
        """0 where there is no process."""
        return self._process.pid if self._process else 0

    async def run(self) -> int:
        """Starts the process and waits for its end; its exit code, or minus the signal that ended it."""
        mine, its = socket.socketpair()
        try:
            with its:
                command = [word.replace("{link}", str(its.fileno())) for word in self._command]
                self._process = await asyncio.create_subprocess_exec(
                    *command,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=2,
                    pass_fds=[its.fileno()],
                    process_group=0,
                )
            if self._early is not None:
                self._send(self._early)
            self._link = await Link.open(mine)
        except OSError as error:
            mine.close()
            log.error("cannot start the worker of device %d: %s", self.device, error)
            if self._process is None:
                return NOT_STARTED
        return await self._listen(self._process)

    async def _listen(self, process: asyncio.subprocess.Process) -> int:
        listening = asyncio.create_task(self._read())
        try:
            code = await process.wait()
            await asyncio.wait({listening}, timeout=LAST_WORDS_S)
            return code
        finally:
            if self._link is not None:
                self._link.close()
            self._link = None
            if self._page is not None and not self._page.done():
                self._page.set_result(None)
            listening.cancel()
            with suppress(asyncio.CancelledError):
                await listening

    async def _read(self) -> None:
        if self._link is None:
            return
        async for message in self._link.messages():
            if message["event"] != "page":
                self._hear(message)
            elif self._page is not None and not self._page.done():
                text = message["text"]
                self._page.set_result(None if text is None else str(text))

    def terminate(self) -> None:
        """Tells it to answer what it has accepted, and to end."""
        self._send(signal.SIGTERM)

    def kill(self) -> None:
        """Ends it at once."""
        self._send(signal.SIGKILL)

    async def page(self, timeout_s: float) -> str | None:
        """Its metrics; None where it does not tell in time, or ends. Who asks meanwhile gets the same page."""
        if self._link is None or self._link.is_crowded:
            return None
        if self._page is None or self._page.done():
            self._page = asyncio.get_running_loop().create_future()
            self._link.tell("metrics")
        try:
            return await asyncio.wait_for(asyncio.shield(self._page), timeout_s)
        except TimeoutError:
            return None

    def _send(self, number: signal.Signals) -> None:
        if self._process is None:
            self._early = number
        else:
            with suppress(ProcessLookupError):
                self._process.send_signal(number)
