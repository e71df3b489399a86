"""The report thread, against the emulated device and its clockwork."""

from __future__ import annotations

import logging
import threading
from functools import partial

import numpy as np
import pytest

from aclserve.errors import FailedPrecondition
from aclserve_server.acl.errors import AclError
from aclserve_server.device.device import Device
from aclserve_server.device.reports import ReportThread
from aclserve_server.device.streams import Stream
from aclserve_server.emulator import Emulator
from device import onnx_models
from device.helpers import Bound

PATIENCE_S = 20


class Arrivals:
    """Callbacks that note what came, and an event when all did."""

    def __init__(self, expected: int) -> None:
        self.seen: list[object] = []
        self.threads: set[int] = set()
        self._expected = expected
        self._all = threading.Event()

    def note(self, what: object) -> None:
        self.seen.append(what)
        self.threads.add(threading.get_ident())
        if len(self.seen) >= self._expected:
            self._all.set()

    def wait(self) -> None:
        assert self._all.wait(PATIENCE_S), f"only {len(self.seen)} of {self._expected} callbacks came"


@pytest.fixture
def reports(device: Device) -> ReportThread:
    reports = ReportThread(device, poll_ms=20)
    reports.start()
    return reports


def test_callbacks_run_after_their_work_and_in_order(device: Device, emulator: Emulator, reports: ReportThread) -> None:
    arrivals = Arrivals(50)
    with device.allocate_host(64) as a, device.allocate(64) as b, device.create_stream() as stream:
        reports.subscribe(stream)
        emulator.hold()
        for number in range(50):
            stream.copy(b, 0, a, 0, 64)
            reports.launch(stream, lambda number=number: arrivals.note(number))
        assert arrivals.seen == []
        emulator.release()
        arrivals.wait()
        assert arrivals.seen == list(range(50))
        assert arrivals.threads == {reports._thread.ident}
        reports.close()


def test_callbacks_may_call_ascendcl(device: Device, reports: ReportThread) -> None:
    arrivals = Arrivals(1)
    with (
        device.load_model(onnx_models.doubled([2, 3])) as model,
        Bound(model) as bound,
        device.create_stream() as stream,
    ):
        x = np.ones((2, 3), np.float32)
        bound.fill([x])
        reports.subscribe(stream)

        def done() -> None:
            stream.synchronize()
            device.allocate(8).close()
            arrivals.note(bound.results()[0])

        model.execute_async(bound.input_set, bound.output_set, stream)
        reports.launch(stream, done)
        arrivals.wait()
        np.testing.assert_array_equal(arrivals.seen[0], x + x)
        reports.close()


def test_callbacks_carry_no_status(device: Device, emulator: Emulator, reports: ReportThread) -> None:
    arrivals = Arrivals(1)
    with (
        device.load_model(onnx_models.doubled([2, 3])) as model,
        Bound(model) as bound,
        device.create_stream() as stream,
    ):
        bound.fill([np.ones((2, 3), np.float32)])
        reports.subscribe(stream)

        def done() -> None:
            try:
                stream.synchronize()
                arrivals.note(0)
            except AclError as error:
                arrivals.note(error.code)

        emulator.faults.fail_task("aclmdlExecuteAsync", 507011)
        model.execute_async(bound.input_set, bound.output_set, stream)
        reports.launch(stream, done)
        arrivals.wait()
        assert arrivals.seen == [507011]
        reports.close()


def test_several_streams_and_a_new_one_after_the_last_was_unsubscribed(device: Device, reports: ReportThread) -> None:
    for _ in range(3):
        arrivals = Arrivals(40)
        streams = [device.create_stream() for _ in range(4)]
        for stream in streams:
            reports.subscribe(stream)
        for number in range(10):
            for index, stream in enumerate(streams):
                reports.launch(stream, partial(arrivals.note, (index, number)))
        arrivals.wait()
        for index in range(4):
            assert [n for i, n in arrivals.seen if i == index] == list(range(10))  # type: ignore[misc]
        for stream in streams:
            reports.unsubscribe(stream)
            reports.unsubscribe(stream)
            stream.close()
    reports.close()


def test_a_failing_callback_is_logged_and_the_thread_lives(
    device: Device, reports: ReportThread, caplog: pytest.LogCaptureFixture
) -> None:
    arrivals = Arrivals(1)
    with device.create_stream() as stream:
        reports.subscribe(stream)
        reports.launch(stream, lambda: 1 // 0)
        reports.launch(stream, lambda: arrivals.note("after"))
        arrivals.wait()
        reports.close()
    assert "ZeroDivisionError" in caplog.text


def test_unsubscribe_waits_for_callbacks_under_way(device: Device, emulator: Emulator, reports: ReportThread) -> None:
    entered, leave = threading.Event(), threading.Event()
    arrivals = Arrivals(1)

    def slow() -> None:
        entered.set()
        leave.wait(PATIENCE_S)
        arrivals.note("slow")

    with device.create_stream() as stream:
        reports.subscribe(stream)
        reports.launch(stream, slow)
        assert entered.wait(PATIENCE_S)
        closer = threading.Thread(target=lambda: (device.bind_thread(), reports.unsubscribe(stream)))
        closer.start()
        leave.set()
        closer.join()
        assert arrivals.seen == ["slow"]
        reports.close()


def test_callbacks_that_never_come_are_dropped(
    device: Device, emulator: Emulator, caplog: pytest.LogCaptureFixture
) -> None:
    reports = ReportThread(device, poll_ms=20, drain_s=0.05)
    reports.start()
    seen: list[int] = []
    with device.create_stream() as stream:
        reports.subscribe(stream)
        emulator.hold()
        reports.launch(stream, lambda: seen.append(1))
        reports.unsubscribe(stream)
        emulator.release()
        stream.synchronize()
        reports.close()
    assert seen == []
    assert "1 callbacks" in caplog.text


def test_launch_that_fails_runs_nothing(device: Device, emulator: Emulator, reports: ReportThread) -> None:
    seen: list[int] = []
    with device.create_stream() as stream:
        with pytest.raises(AclError) as caught:
            reports.launch(stream, lambda: seen.append(1))
        assert caught.value.code == 107015
        reports.subscribe(stream)
        with pytest.raises(AclError) as caught:
            reports.subscribe(stream)
        assert caught.value.code == 107011
        emulator.faults.fail_call("aclrtLaunchCallback", 507001)
        with pytest.raises(AclError):
            reports.launch(stream, lambda: seen.append(2))
        assert not reports._pending
        reports.close()
    assert seen == []


def test_no_subscription_no_polling(device: Device, emulator: Emulator, reports: ReportThread) -> None:
    reports.close()
    assert emulator.counters.calls["aclrtProcessReport"] == 0


@pytest.mark.parametrize("code", [107012, 100035, 507012, 100036, 507000])
def test_old_and_new_codes_of_an_idle_thread(
    device: Device, emulator: Emulator, caplog: pytest.LogCaptureFixture, code: int
) -> None:
    arrivals = Arrivals(1)
    emulator.faults.fail_call("aclrtProcessReport", code, times=3)
    reports = ReportThread(device, poll_ms=1)
    reports.start()
    with caplog.at_level(logging.WARNING), device.create_stream() as stream:
        reports.subscribe(stream)
        reports.launch(stream, lambda: arrivals.note("came"))
        arrivals.wait()
        reports.close()
    assert ("aclrtProcessReport" in caplog.text) == (code == 507000)


def test_not_started_and_closed(device: Device) -> None:
    reports = ReportThread(device)
    with device.create_stream() as stream:
        with pytest.raises(FailedPrecondition, match="not started"):
            reports.subscribe(stream)
        reports.close()
        reports.close()
        with pytest.raises(FailedPrecondition, match="closed"):
            reports.start()
        with pytest.raises(FailedPrecondition):
            reports.subscribe(stream)


def test_close_unsubscribes_all(device: Device, emulator: Emulator, reports: ReportThread) -> None:
    streams: list[Stream] = [device.create_stream() for _ in range(3)]
    for stream in streams:
        reports.subscribe(stream)
    reports.close()
    assert emulator.counters.calls["aclrtUnSubscribeReport"] == 3
    assert not reports._thread.is_alive()
    for stream in streams:
        stream.close()
