"""Streams that are to lose nothing, and what is counted of them: every item once, each with its own outputs.

What came back is looked at as it comes and not kept, so that a load may last as long as it likes.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import aclserve_client as ac
from e2e.raw import wait_until

MODEL = "relu"
WINDOW = 16
PACE_S = 0.005
"""Between two items of a stream: a load that leaves the machine room for servers that start."""


def row(number: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """An item's input: no two of a million are alike, and half of each is negative."""
    return np.array([[number % 1_000_000, -(number % 1_000_000), number % 977, -(number % 977)]], np.float32)


@dataclass
class Account:
    """One stream's items. The stream's own thread writes it, others may read the counts."""

    name: str
    sent: int = 0
    answered: int = 0
    resumptions: int = 0
    open: set[int] = field(default_factory=set)
    problems: list[str] = field(default_factory=list)
    over: bool = False

    def items(self, stop: threading.Event) -> Iterator[dict[str, Any]]:
        """Items until `stop`."""
        while not stop.wait(PACE_S):
            self.open.add(self.sent)
            self.sent += 1
            yield {"x": row(self.sent - 1)}

    def take(self, result: ac.Result) -> None:
        """Crosses one item off."""
        number = int(result.id)
        if number not in self.open:
            self.problems.append(f"{self.name}: item {number} was answered twice, or never sent")
            return
        self.open.remove(number)
        self.answered += 1
        if result.error is not None or result.dropped is not None:
            self.problems.append(f"{self.name}: item {number} ended with {result.error or result.dropped}")
        elif not np.array_equal(result.outputs["y"], np.maximum(row(number), 0)):
            self.problems.append(f"{self.name}: item {number} has the outputs of another: {result.outputs['y']}")

    def end(self, stream: ac.Stream | ac.AsyncStream) -> None:
        """The stream is over: nothing may be open."""
        self.resumptions = stream.resumptions
        if self.open:
            self.problems.append(f"{self.name}: {len(self.open)} items have no answer, the first is {min(self.open)}")
        summary = stream.summary
        if summary is None or (summary.received_items, summary.succeeded_items) != (self.sent, self.sent):
            self.problems.append(f"{self.name}: sent {self.sent}, but the totals are {summary}")
        self.over = True


class Load:
    """So many streams of either client, half of them in order of submission, through one address."""

    def __init__(self, address: str, options: ac.Options, blocking: int = 3, asynchronous: int = 3) -> None:
        self.accounts = [Account(f"stream {number}") for number in range(blocking + asynchronous)]
        self._address, self._options = address, options
        self._blocking = blocking
        self._stop = threading.Event()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Streams within the block; afterwards all have ended, and `problems` tells what was wrong."""
        with ac.Client(self._address, self._options) as client:
            works: list[Callable[[], None]] = [
                lambda account=account: self._run(client, account)  # type: ignore[misc]
                for account in self.accounts[: self._blocking]
            ]
            works.append(lambda: asyncio.run(self._run_all(self.accounts[self._blocking :])))
            threads = [threading.Thread(target=self._guarded, args=(work,)) for work in works]
            for thread in threads:
                thread.start()
            try:
                yield
            finally:
                self._stop.set()
                for thread in threads:
                    thread.join(120)

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            self.accounts[0].problems.append(f"a stream ended with {error!r}")

    def _settings(self, account: Account) -> dict[str, Any]:
        order = ("completion", "submission")[self.accounts.index(account) % 2]
        return {"resume": True, "max_pending": WINDOW, "order": order}

    def _run(self, client: ac.Client, account: Account) -> None:
        with client.stream(MODEL, **self._settings(account)) as stream:
            for result in stream.map(account.items(self._stop), pack=4):
                account.take(result)
        account.end(stream)

    async def _run_all(self, accounts: list[Account]) -> None:
        async def run(client: ac.AsyncClient, account: Account) -> None:
            async with client.stream(MODEL, **self._settings(account)) as stream:
                async for result in stream.map(account.items(self._stop), pack=4):
                    account.take(result)
            account.end(stream)

        async with ac.AsyncClient(self._address, self._options) as client, asyncio.TaskGroup() as group:
            for account in accounts:
                group.create_task(run(client, account))

    @property
    def answered(self) -> int:
        """Items answered so far, over all streams."""
        return sum(account.answered for account in self.accounts)

    @property
    def problems(self) -> list[str]:
        """What is wrong, as far as is known."""
        found = [problem for account in self.accounts for problem in account.problems]
        if self._stop.is_set():
            found += [f"{account.name} never ended" for account in self.accounts if not account.over]
        return found

    def wait_for_progress(self, what: str) -> None:
        """Waits until every stream has had answers to more items than can have been under way; raises at a problem."""
        before = [account.answered for account in self.accounts]

        def moved() -> bool:
            assert not self.problems, self.problems
            return all(
                account.answered > count + 2 * WINDOW for account, count in zip(self.accounts, before, strict=True)
            )

        wait_until(moved, what)
