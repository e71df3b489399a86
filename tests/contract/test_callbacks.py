"""Contract section 11: host callbacks and host functions."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from aclserve_server.acl import types as acl
from aclserve_server.acl.errors import AclError
from contract.driving import Driver
from contract.subject import Subject, fails

Make = Callable[..., Subject]


class Reporter:
    """A thread that processes reports with its device set, and what it ran."""

    def __init__(self, driver: Driver) -> None:
        self.driver = driver
        self.ran: list[int | None] = []
        self.callback = acl.aclrtCallback(self.ran.append)
        self._ready, self._stop = threading.Event(), False
        self._thread = threading.Thread(target=self._loop)
        self._thread.start()
        self._ready.wait()

    @property
    def ident(self) -> int:
        assert self._thread.ident is not None
        return self._thread.ident

    def launch(self, number: int, stream: acl.Stream, block: int = 0) -> None:
        self.driver.library.aclrtLaunchCallback(self.callback, number, block, stream)

    def close(self) -> None:
        self._stop = True
        self._thread.join()

    def _loop(self) -> None:
        self.driver.library.aclrtSetDevice(0)
        self._ready.set()
        while not self._stop:
            code = self.driver.library.raw("aclrtProcessReport")(20)
            assert code in (0, 107012, 507012)
            if code == 107012:
                self._subscribed.wait(0.01)
        self.driver.library.aclrtResetDevice(0)

    _subscribed = threading.Event()


@contextmanager
def reporter(driver: Driver, *streams: acl.Stream) -> Iterator[Reporter]:
    made = Reporter(driver)
    for stream in streams:
        driver.library.aclrtSubscribeReport(made.ident, stream)
    try:
        yield made
    finally:
        for stream in streams:
            with suppress(AclError):
                driver.library.aclrtUnSubscribeReport(made.ident, stream)
        made.close()


def test_callbacks_run_in_the_subscribed_thread(driver: Driver) -> None:
    """11.1, 11.2, 11.7: after the earlier tasks, in order, with their argument."""
    stream = driver.stream()
    with reporter(driver, stream) as reports:
        for number in range(1, 21):
            reports.launch(number, stream, block=1)
        driver.library.aclrtSynchronizeStream(stream)  # 11.9: waits for blocking callbacks
        assert reports.ran == list(range(1, 21))


def test_blocking_callback_holds_later_tasks(subject: Subject, driver: Driver) -> None:
    """11.7"""
    library, stream, memory = driver.library, driver.stream(), driver.malloc(64)
    library.aclrtMemset(memory, 64, 0, 64)
    seen: list[bytes] = []
    callback = acl.aclrtCallback(lambda user_data: seen.append(driver.download(memory, 1)))
    with reporter(driver, stream) as reports:
        library.aclrtMemsetAsync(memory, 64, 1, 64, stream)
        library.aclrtLaunchCallback(callback, None, 1, stream)
        library.aclrtMemsetAsync(memory, 64, 2, 64, stream)
        library.aclrtSynchronizeStream(stream)
        assert seen == [b"\x01"]
        assert reports.ran == []


def test_one_call_runs_all_that_wait(driver: Driver) -> None:
    """11.3: over all streams of the thread."""
    library, streams, ran = driver.library, [driver.stream(), driver.stream()], []
    callback = acl.aclrtCallback(ran.append)
    for stream in streams:
        library.aclrtSubscribeReport(threading.get_ident(), stream)
        library.aclrtLaunchCallback(callback, 1 + len(ran), 0, stream)
        library.aclrtSynchronizeStream(stream)
    library.aclrtProcessReport(-1)
    assert len(ran) == 2
    for stream in streams:
        library.aclrtUnSubscribeReport(threading.get_ident(), stream)


def test_callback_after_a_failed_task(subject: Subject, driver: Driver) -> None:
    """3.4, 11.7: it fires all the same."""
    emulator, library = subject.only_emulated(), driver.library
    stream, memory = driver.stream(), driver.malloc(64)
    with reporter(driver, stream) as reports:
        emulator.faults.fail_task("aclrtMemsetAsync", 507011)
        library.aclrtMemsetAsync(memory, 64, 2, 64, stream)
        reports.launch(5, stream, block=1)
        with fails(507011):
            library.aclrtSynchronizeStream(stream)
        assert reports.ran == [5]


def test_host_functions(driver: Driver) -> None:
    """11.11: no subscription; never together with callbacks on one stream."""
    library, stream, ran = driver.library, driver.stream(), []
    function = acl.aclrtHostFunc(ran.append)
    library.aclrtLaunchHostFunc(stream, function, 7)
    library.aclrtSynchronizeStream(stream)
    assert ran == [7]
    with fails(107011):
        library.aclrtSubscribeReport(threading.get_ident(), stream)
    other = driver.stream()
    library.aclrtSubscribeReport(threading.get_ident(), other)
    with fails(107011):
        library.aclrtLaunchHostFunc(other, function, 7)
    library.aclrtUnSubscribeReport(threading.get_ident(), other)
    with fails(107000):
        library.aclrtLaunchHostFunc(stream, acl.aclrtHostFunc(), 7)


def test_a_thread_serves_one_device(make_subject: Make) -> None:
    """11.5"""
    driver = make_subject(device_count=2).start()
    library, me = driver.library, threading.get_ident()
    first = driver.stream()
    library.aclrtSubscribeReport(me, first)
    library.aclrtSetDevice(1)
    second = driver.stream()
    with fails(107012):
        library.aclrtSubscribeReport(me, second)
