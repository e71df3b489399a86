"""DeviceThread: order, delivery, cancellation, bounds, shutdown."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest

from aclserve.errors import FailedPrecondition, ResourceExhausted
from aclserve_server.acl.errors import AclError
from aclserve_server.device.buffers import Buffer
from aclserve_server.device.device import Device
from aclserve_server.device.thread import DeviceThread
from aclserve_server.emulator import Emulator


@pytest.fixture
def worker(device: Device) -> Iterator[DeviceThread]:
    with DeviceThread("test", device, capacity=100) as worker:
        yield worker


def test_call_runs_with_the_context(device: Device, worker: DeviceThread) -> None:
    def work() -> int:
        device.allocate(8).close()
        return threading.get_ident()

    ident = worker.call(work)
    assert ident != threading.get_ident()
    assert worker.call(lambda: worker.call(threading.get_ident)) == ident
    with pytest.raises(ZeroDivisionError):
        worker.call(lambda: 1 // 0)


def test_order_and_errors_of_submit(worker: DeviceThread, caplog: pytest.LogCaptureFixture) -> None:
    seen: list[int] = []
    for number in range(50):
        worker.submit(lambda number=number: seen.append(number))
    worker.submit(lambda: 1 // 0)
    worker.call(lambda: None)
    assert seen == list(range(50))
    assert "ZeroDivisionError" in caplog.text


def test_run_returns_and_raises(worker: DeviceThread) -> None:
    async def main() -> None:
        assert await worker.run(lambda: 42) == 42
        with pytest.raises(ZeroDivisionError):
            await worker.run(lambda: 1 // 0)
        results = await asyncio.gather(*(worker.run(lambda n=n: n) for n in range(20)))
        assert results == list(range(20))

    asyncio.run(main())


def test_cancelled_caller_disturbs_nobody_and_its_result_is_discarded(device: Device, worker: DeviceThread) -> None:
    gate = threading.Event()
    discarded: list[Buffer] = []

    def drop(buffer: Buffer) -> None:
        discarded.append(buffer)
        buffer.close()

    def slow() -> Buffer:
        gate.wait(20)
        return device.allocate(8)

    async def main() -> None:
        first = asyncio.create_task(worker.run(slow, discard=drop))
        second = asyncio.create_task(worker.run(lambda: "neighbour"))
        await asyncio.sleep(0)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        gate.set()
        assert await second == "neighbour"
        await worker.run(lambda: None)

    asyncio.run(main())
    assert len(discarded) == 1
    assert discarded[0].closed


def test_result_that_arrives_with_the_cancellation_is_discarded(worker: DeviceThread) -> None:
    discarded: list[int] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        task = asyncio.create_task(worker.run(lambda: 7, discard=discarded.append))
        await asyncio.sleep(0)
        worker.call(lambda: None)  # the result is now under way to the loop
        loop.call_soon(task.cancel)  # after its delivery, before the task goes on
        with pytest.raises(asyncio.CancelledError):
            await task
        await worker.run(lambda: None)

    asyncio.run(main())
    assert discarded == [7]


def test_loop_that_is_gone(device: Device, worker: DeviceThread) -> None:
    gate = threading.Event()
    discarded: list[int] = []

    def slow() -> int:
        gate.wait(20)
        return 1

    async def main() -> None:
        task = asyncio.create_task(worker.run(slow, discard=discarded.append))
        await asyncio.sleep(0)
        task.cancel()

    asyncio.run(main())
    gate.set()
    worker.call(lambda: None)
    assert discarded == [1]


def test_full_queue_refuses_at_once(device: Device) -> None:
    gate, entered = threading.Event(), threading.Event()

    def block() -> None:
        entered.set()
        gate.wait(20)

    with DeviceThread("small", device, capacity=2) as worker:
        worker.submit(block)
        entered.wait(20)
        worker.submit(lambda: None)
        worker.submit(lambda: None)
        assert worker.pending == 2
        with pytest.raises(ResourceExhausted) as caught:
            worker.submit(lambda: None)
        assert caught.value.reason == "DEVICE_QUEUE_FULL"
        assert caught.value.retry_delay is not None
        gate.set()


def test_close_runs_what_was_accepted(device: Device) -> None:
    seen: list[int] = []
    worker = DeviceThread("last", device)
    for number in range(100):
        worker.submit(lambda number=number: seen.append(number))
    worker.close()
    worker.close()
    assert seen == list(range(100))
    for use in (worker.submit, worker.call):
        with pytest.raises(FailedPrecondition, match="closed"):
            use(lambda: None)
    with pytest.raises(FailedPrecondition):
        asyncio.run(worker.run(lambda: None))


def test_a_thread_does_not_close_itself(worker: DeviceThread) -> None:
    with pytest.raises(FailedPrecondition, match="itself"):
        worker.call(worker.close)
    assert worker.call(lambda: 1) == 1


def test_a_thread_that_cannot_bind_does_not_start(device: Device, emulator: Emulator) -> None:
    emulator.faults.fail_call("aclrtSetCurrentContext", 107002)
    before = threading.active_count()
    with pytest.raises(AclError):
        DeviceThread("unbound", device)
    assert threading.active_count() == before
