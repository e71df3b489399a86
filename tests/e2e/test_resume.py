"""Streams that outlive their servers: rolling restarts, servers killed under load, and what clients see of it."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import aclserve_client as ac
from aclserve_server.emulator import EmulatorConfig
from e2e.raw import wait_until
from serving import Serving, elementwise, put_model, rows, serving

EMULATED = EmulatorConfig(memory_bytes=256 << 20)
OPTIONS = ac.Options(retry_backoff=0.02, resume_timeout=60.0)
WINDOW = 16


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    put_model(tmp_path, "one", elementwise(), "dynamic_batching {}\n")
    return tmp_path


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Site:
    """A server in this process that comes and goes on one port."""

    def __init__(self, repository: Path) -> None:
        self.port = free_port()
        self.address = f"127.0.0.1:{self.port}"
        self.rows = 0
        self._repository = repository
        self._running = ExitStack()
        self._serving: Serving | None = None

    def start(self) -> None:
        self._serving = self._running.enter_context(serving(self._repository, emulator=EMULATED, port=self.port))

    def stop(self) -> None:
        """Drains the server, and counts the rows that it has executed."""
        up, self._serving = self._serving, None
        self._running.close()
        if up is not None:
            self.rows += int(
                up.server.registry.get_sample_value("aclserve_rows_total", {"model": "one", "version": "1"}) or 0
            )


class Load:
    """Clients that stream rows until they are told to stop, and keep what came back."""

    def __init__(self, addresses: list[str]) -> None:
        self.addresses = addresses
        self.results: list[list[ac.Result]] = []
        self.summaries: list[ac.StreamSummary | None] = []
        self.resumptions: list[int] = []
        self.failures: list[BaseException] = []
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []

    @contextmanager
    def running(self, blocking: int, asynchronous: int, **settings: Any) -> Iterator[None]:
        """Runs so many streams of each kind; the asynchronous ones share a client, and so do the others."""
        with ac.Client(self.addresses, OPTIONS) as client:
            for _ in range(blocking):
                self._begin(lambda found: self._stream(client, found, settings))
            self._begin(lambda found: asyncio.run(self._streams(asynchronous, settings)), keeps=False)
            try:
                yield
            finally:
                self._stop.set()
                for thread in self._threads:
                    thread.join(60)
        assert not self.failures, self.failures
        assert not any(thread.is_alive() for thread in self._threads)

    def _begin(self, work: Any, *, keeps: bool = True) -> None:
        found: list[ac.Result] = []
        if keeps:
            self.results.append(found)

        def run() -> None:
            try:
                work(found)
            except BaseException as error:
                self.failures.append(error)

        self._threads.append(threading.Thread(target=run))
        self._threads[-1].start()

    def _items(self) -> Iterator[dict[str, Any]]:
        number = 0
        while not self._stop.is_set():
            yield {"x": rows(number, 1)}
            number += 1

    def _note(self, stream: ac.Stream | ac.AsyncStream) -> None:
        self.summaries.append(stream.summary)
        self.resumptions.append(stream.resumptions)

    def _stream(self, client: ac.Client, found: list[ac.Result], settings: dict[str, Any]) -> None:
        with client.stream("one", resume=True, max_pending=WINDOW, **settings) as stream:
            for result in stream.map(self._items(), pack=4):
                found.append(result)
            self._note(stream)

    async def _streams(self, count: int, settings: dict[str, Any]) -> None:
        async def run(client: ac.AsyncClient, found: list[ac.Result]) -> None:
            async with client.stream("one", resume=True, max_pending=WINDOW, **settings) as stream:
                async for result in stream.map(self._items(), pack=4):
                    found.append(result)
                self._note(stream)

        async with ac.AsyncClient(self.addresses, OPTIONS) as client, asyncio.TaskGroup() as group:
            for _ in range(count):
                found: list[ac.Result] = []
                self.results.append(found)
                group.create_task(run(client, found))

    def answered(self) -> list[int]:
        """Results of each stream so far."""
        assert not self.failures, self.failures
        return [len(found) for found in self.results]

    def wait_for_progress(self, streams: int, what: str) -> None:
        """Waits until every stream has results that it did not have before."""
        before = dict(enumerate(self.answered()))
        wait_until(
            lambda: (
                len(self.results) == streams
                and all(len(found) >= before.get(at, 0) + 2 * WINDOW for at, found in enumerate(self.results))
            ),
            what,
        )

    def check(self, *, in_order: bool) -> int:
        """Every item has exactly one answer, its own; returns how many there were."""
        for found in self.results:
            ids = [int(result.id) for result in found]
            assert max(Counter(ids).values()) == 1
            assert sorted(ids) == list(range(len(ids)))
            if in_order:
                assert ids == sorted(ids)
            for result in found:
                np.testing.assert_array_equal(result.raise_for_error().outputs["y"], rows(int(result.id), 1))
        total = sum(map(len, self.results))
        assert sorted(summary.received_items for summary in self.summaries if summary) == sorted(
            len(found) for found in self.results
        )
        assert sum(summary.succeeded_items for summary in self.summaries if summary) == total
        return total


@pytest.mark.parametrize("order", ["completion", "submission"])
def test_rolling_restarts_under_load(repository: Path, order: str) -> None:
    sites = [Site(repository), Site(repository)]
    load = Load([site.address for site in sites])
    for site in sites:
        site.start()
    try:
        with load.running(2, 2, order=order):
            load.wait_for_progress(4, "all streams have results")
            for restart in range(20):
                site = sites[restart % 2]
                site.stop()
                site.start()
                load.wait_for_progress(4, f"all streams have results after restart {restart}")
    finally:
        for site in sites:
            site.stop()
    total = load.check(in_order=order == "submission")
    assert min(load.resumptions) >= 20
    assert sum(site.rows for site in sites) == total


@contextmanager
def process(repository: Path, port: int) -> Iterator[subprocess.Popen[str]]:
    """A server process that is up; killed at the end."""
    command = [sys.executable, "-m", "aclserve_server", "serve", "--acl-library", "emulator"]
    command += ["--model-repository", str(repository), "--port", str(port), "--metrics-port", "0"]
    root = Path(__file__).resolve().parents[2]
    paths = os.pathsep.join(str(root / name) for name in ("protos", "service", "client"))
    environ = {**os.environ, "PYTHONPATH": paths}
    with subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, text=True) as running:
        try:
            assert running.stdout is not None
            assert running.stdout.readline().startswith("ready ")
            yield running
        finally:
            running.kill()


def test_servers_killed_under_load(repository: Path) -> None:
    ports = [free_port(), free_port()]
    load = Load([f"127.0.0.1:{port}" for port in ports])
    with ExitStack() as running:
        servers = [running.enter_context(process(repository, port)) for port in ports]
        with load.running(2, 2, order="submission"):
            load.wait_for_progress(4, "all streams have results")
            for kill in range(4):
                at = kill % 2
                servers[at].send_signal(signal.SIGKILL)
                servers[at].wait(20)
                load.wait_for_progress(4, f"all streams have results after kill {kill}")
                servers[at] = running.enter_context(process(repository, ports[at]))
    assert load.check(in_order=True) > 0
    assert min(load.resumptions) >= 4


def test_one_server_that_restarts_is_waited_for(repository: Path) -> None:
    site = Site(repository)
    site.start()
    load = Load([site.address])
    try:
        with load.running(1, 1):
            load.wait_for_progress(2, "both streams have results")
            for restart in range(2):
                site.stop()
                site.start()
                load.wait_for_progress(2, f"both streams have results after restart {restart}")
    finally:
        site.stop()
    assert site.rows == load.check(in_order=False)


def test_a_stream_without_resume_tells_what_became_of_each_item(repository: Path) -> None:
    site = Site(repository)
    site.start()
    stopper = threading.Thread(target=site.stop)
    try:
        with ac.Client(site.address, OPTIONS) as client, client.stream("one", max_pending=WINDOW) as stream:
            ids = stream.send_many([{"x": rows(number, 1)} for number in range(WINDOW)])
            stopper.start()
            results = list(stream.results())
            assert [result.id for result in sorted(results, key=lambda result: int(result.id))] == ids
            assert stream.going_away
            answered = [result for result in results if result.error is None]
            refused = [result.error.reason for result in results if result.error is not None]
            assert set(refused) <= {"SERVER_GOING_AWAY"}
            assert stream.summary is not None
            assert stream.summary.received_items == len(answered)
    finally:
        stopper.join(60)
