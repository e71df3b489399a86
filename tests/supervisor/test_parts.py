"""The pure parts: one health, one page of metrics; and what both ends of a link tell each other."""

from __future__ import annotations

import asyncio
import signal
import socket
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from aclserve_server.config import Config
from aclserve_server.metrics import ServerMetrics
from aclserve_server.metrics.http import page, page_or_none
from aclserve_server.supervisor.health import ALL, combine, down, name_of
from aclserve_server.supervisor.link import Link
from aclserve_server.supervisor.metrics import WorkerFacts, merge, own
from aclserve_server.supervisor.process import NOT_STARTED, Run
from aclserve_server.supervisor.supervisor import worker_config

NAMES = st.dictionaries(st.sampled_from(["", "model:a", "model:b", "service"]), st.booleans())


@given(st.dictionaries(st.integers(0, 7), NAMES, min_size=1))
def test_health_of_all(workers: dict[int, dict[str, bool]]) -> None:
    told = combine(workers)
    up = {device for device, names in workers.items() if names.get("")}
    assert told[""] == bool(up)
    assert told[ALL] == (up == set(workers))
    for device in workers:
        assert told[name_of(device)] == (device in up)
    for name in ("model:a", "model:b", "service"):
        assert (name in told) == any(name in names for names in workers.values())
        assert told.get(name, False) == any(workers[device].get(name, False) for device in up)


def test_a_worker_that_is_gone_leaves_its_names() -> None:
    told = combine({0: down({"": True, "model:a": True}), 1: {}})
    assert told == {"": False, "model:a": False, "device:0": False, "device:1": False, ALL: False}


class Some(Collector):
    """A registry's content made of finished families."""

    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> list[Metric]:
        return self._families


def shown(families: list[Metric]) -> str:
    registry = CollectorRegistry()
    registry.register(Some(families))
    return generate_latest(registry).decode()


def test_pages_of_workers_are_merged_by_family() -> None:
    def text(items: int) -> str:
        registry = CollectorRegistry()
        metrics = ServerMetrics(registry, lambda item: 0)
        model = metrics.model('odd"name\n', 1)
        for _ in range(items):
            model.histograms["total_seconds"].observe(0.5)
        model.rows = 10 * items
        return page(registry)

    first, second = text(2), text(3)
    merged = shown(merge({0: first, 5: second}))
    assert merged.count("# TYPE aclserve_rows_total counter") == 1
    samples = {
        (sample.name, sample.labels["device"], sample.labels.get("le", "")): (sample.value, sample.labels.get("model"))
        for family in text_string_to_metric_families(merged)
        for sample in family.samples
    }
    assert samples["aclserve_rows_total", "0", ""] == (20, 'odd"name\n')
    assert samples["aclserve_rows_total", "5", ""] == (30, 'odd"name\n')
    assert samples["aclserve_total_seconds_count", "5", ""][0] == 3
    assert samples["aclserve_total_seconds_bucket", "0", "+Inf"][0] == 2
    counts = [sum(1 for line in each.splitlines() if not line.startswith("#")) for each in (first, second, merged)]
    assert counts[2] == counts[0] + counts[1]


def test_metrics_that_cannot_be_collected_are_none_and_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Collector):
        def describe(self) -> list[Metric]:
            return []

        def collect(self) -> list[Metric]:
            raise RuntimeError("the cause")

    registry = CollectorRegistry()
    registry.register(Broken())
    assert page_or_none(registry) is None
    assert "the cause" in caplog.text
    assert page_or_none(CollectorRegistry()) == ""


def test_the_supervisors_own_metrics() -> None:
    fact = WorkerFacts(serving=True, given_up=False, restarts=3, exits={-9: 2, 69: 1})
    text = shown(own({4: fact}))
    for line in (
        'aclserve_worker_up{device="4"} 1.0',
        'aclserve_worker_given_up{device="4"} 0.0',
        'aclserve_worker_restarts_total{device="4"} 3.0',
        'aclserve_worker_exits_total{code="-9",device="4"} 2.0',
        'aclserve_worker_exits_total{code="69",device="4"} 1.0',
    ):
        assert line in text.splitlines(), text


def test_the_options_of_a_worker(tmp_path: object) -> None:
    config = Config(
        model_repository=tmp_path,  # type: ignore[arg-type]
        devices=("0-3",),
        replica="host-a",
        worker_port=9000,
        health_port=9300,
        unix_socket="run/aclserve",
        profile="out/profile.html",
        tls_cert="c",
        tls_key="k",
    )
    worker = worker_config(config, 3, 9003)
    assert (worker.devices, worker.device, worker.port, worker.metrics_port, worker.health_port) == ((), 3, 9003, 0, 0)
    assert (worker.unix_socket, worker.profile) == ("run/aclserve.3", "out/profile.3.html")
    assert worker.replica == "host-a-3"
    assert Config.from_args(worker.flags(), {}) == worker


@pytest.mark.parametrize("last", [b"", b'{"event": "ha'])
def test_a_link_tells_everything_in_order_up_to_its_end(last: bytes) -> None:
    async def main() -> list[object]:
        ends = socket.socketpair()
        one, other = [await Link.open(end) for end in ends]
        heard: list[object] = []

        async def listen() -> None:
            async for message in other.messages():
                heard.append(message.get("number"))

        listening = asyncio.create_task(listen())
        for number in range(1000):
            one.tell("count", number=number, text="ü\n" * (number % 7))
        one._writer.write(last)
        one.close()
        one.tell("never")
        await listening
        other.close()
        return heard

    assert asyncio.run(main()) == list(range(1000))


def test_who_waits_for_a_page_of_a_process_that_ends_is_told_at_once() -> None:
    """A bound of an hour: only the process's end can be what ended the wait."""

    program = """
import os
os.write({link}, b'{"event": "up"}' + bytes([10]))
os.read({link}, 1000)
"""

    async def main() -> tuple[int, str | None, str | None]:
        up = asyncio.Event()
        run = Run(0, (sys.executable, "-c", program), lambda message: up.set())
        running = asyncio.create_task(run.run())
        await up.wait()
        first = await run.page(3600.0)
        return await running, first, await run.page(3600.0)

    assert asyncio.run(main()) == (0, None, None)


def test_a_page_that_the_process_cannot_make_is_none() -> None:
    program = """
import os
os.write({link}, b'{"event": "up"}' + bytes([10]))
os.read({link}, 1000)
os.write({link}, b'{"event": "page", "text": null}' + bytes([10]))
os.read({link}, 1000)
"""

    async def main() -> tuple[str | None, bool]:
        up = asyncio.Event()
        run = Run(0, (sys.executable, "-c", program), lambda message: up.set())
        running = asyncio.create_task(run.run())
        await up.wait()
        page = await run.page(3600.0)
        still_there = not running.done()
        run.kill()
        await running
        return page, still_there

    assert asyncio.run(main()) == (None, True)


def test_a_signal_during_the_start_reaches_the_process() -> None:
    async def main() -> int:
        run = Run(0, (sys.executable, "-c", "import os; os.read({link}, 1)"), lambda message: None)
        running = asyncio.create_task(run.run())
        await asyncio.sleep(0)
        assert run.pid == 0
        run.terminate()
        return await running

    assert asyncio.run(main()) == -signal.SIGTERM


def test_a_process_that_cannot_be_started_has_an_exit_code(caplog: pytest.LogCaptureFixture) -> None:
    run = Run(3, ("/nothing/here", "{link}"), lambda message: None)
    assert asyncio.run(run.run()) == NOT_STARTED
    assert "cannot start the worker of device 3" in caplog.text


def test_a_link_that_nobody_reads_is_crowded_and_does_not_block() -> None:
    async def main() -> None:
        ends = socket.socketpair()
        one, other = [await Link.open(end) for end in ends]
        while not one.is_crowded:
            one.tell("page", text="x" * 65536)
        one.close()
        other.close()

    asyncio.run(main())
