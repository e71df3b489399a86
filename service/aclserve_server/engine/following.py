"""Follows the repository as it changes, in the control mode "poll".

A change is acted upon when two looks in a row have found the same, so that a file is not loaded while it is written;
what was found unfinished all the same is tried again when it changes. A model that fails keeps what serves.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable

from aclserve.errors import AclserveError
from aclserve_server.engine.engine import Engine
from aclserve_server.engine.repository import Entry, Stamp

log = logging.getLogger(__name__)

SETTLE_S = 1.0
"""After a change the next look comes so soon, if not earlier."""

Mark = tuple[tuple[int, str, bool, Stamp], ...]
"""What tells that a model has changed: of each version its number, problem, whether it is served, its files."""


class Follower:
    """Looks at the repository again and again. Belongs to the event loop."""

    def __init__(self, engine: Engine, found: Iterable[Entry]) -> None:
        """`found` is what was there when the engine loaded the repository."""
        self._engine = engine
        self._done = _marks(found)
        self._seen = dict(self._done)
        self._gone = False

    async def run(self, interval_s: float) -> None:
        """Looks every so many seconds, sooner while something changes; ends only by cancellation."""
        while True:
            settled = await self.look()
            await asyncio.sleep(interval_s if settled else min(interval_s, SETTLE_S))

    async def look(self) -> bool:
        """Looks once and does what has settled; whether nothing is left to be looked at again soon."""
        try:
            found = await self._engine.scan()
        except (ValueError, OSError):
            if not self._gone:
                log.warning("the model repository cannot be read; what is served stays, and it is looked at again")
            self._gone = True
            return True
        self._gone = False
        marks = _marks(found)
        settled = True
        for name in sorted(marks.keys() | self._done.keys()):
            mark = marks.get(name)
            if mark == self._done.get(name):
                self._remember(self._seen, name, mark)
            elif mark != self._seen.get(name):
                self._remember(self._seen, name, mark)
                settled = False
            else:
                self._remember(self._done, name, mark)
                await self._act(name, [entry for entry in found if entry.name == name])
        return settled

    async def _act(self, name: str, entries: list[Entry]) -> None:
        log.info("model %s has changed in the repository", name)
        try:
            await self._engine.operations.finish(self._engine.follow(name, entries))
        except AclserveError as error:
            log.warning("model %s was not loaded anew: %s", name, error.message)
        except OSError:
            log.warning("model %s was not loaded anew: its files cannot be read", name)

    def _remember(self, marks: dict[str, Mark], name: str, mark: Mark | None) -> None:
        if mark is None:
            marks.pop(name, None)
        else:
            marks[name] = mark


def _marks(entries: Iterable[Entry]) -> dict[str, Mark]:
    marks: dict[str, Mark] = {}
    for entry in entries:
        one = (entry.version, entry.problem, entry.chosen, entry.stamp)
        marks[entry.name] = (*marks.get(entry.name, ()), one)
    return marks
