"""What becomes of a server whose device is lost: it answers everybody with why, and stops being ready.

The process that serves then ends with an exit code of its own, and whoever watches it starts another (`cli`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress

from aclserve.errors import Unavailable
from aclserve_server.acl.library import Library
from aclserve_server.device.device import Device
from aclserve_server.device.loss import Loss

Step = Callable[[Unavailable], object]
"""Takes the error that answers everything from then on. Called on the event loop."""


class Surrender:
    """Takes the loss of the device to the event loop, and there to all whom it concerns."""

    def __init__(self) -> None:
        self.lost = asyncio.Event()
        self.loss = Loss()
        self._steps: list[Step] = []

    def follow(self, library: Library, device: Device) -> None:
        """Has every failed call looked at. On the event loop."""
        loop = asyncio.get_running_loop()
        self.loss = device.loss

        def tell() -> None:
            with suppress(RuntimeError):  # the loop is closed: nobody is served any more
                loop.call_soon_threadsafe(self._take)

        self.loss.listen(tell)
        library.on_failure = self.loss.note

    def tell(self, step: Step) -> None:
        """Has `step` called when the device is lost; now where it is lost already."""
        self._steps.append(step)
        if self.lost.is_set():
            assert self.loss.error is not None
            step(self.loss.error)

    def check(self) -> None:
        """Raises the error of the loss, where there was one."""
        if self.loss.error is not None:
            raise self.loss.error

    def _take(self) -> None:
        assert self.loss.error is not None
        self.lost.set()
        for step in self._steps:
            step(self.loss.error)
