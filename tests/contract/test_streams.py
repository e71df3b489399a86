"""Contract sections 6 and 7: streams, events, failed tasks."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ctypes import byref, c_float, c_int32, c_uint32, c_uint64

import pytest

from aclserve_server.acl import types as acl
from aclserve_server.acl.errors import AclError
from aclserve_server.emulator import Emulator
from contract.driving import DEVICE_TO_HOST, HOST_TO_DEVICE, Driver
from contract.subject import Subject, fails, in_thread

Make = Callable[..., Subject]


def query(driver: Driver, stream: acl.Stream) -> int:
    state = c_uint32(9)
    driver.library.aclrtStreamQuery(stream, byref(state))
    return state.value


def test_submission_returns_at_once(subject: Subject, driver: Driver) -> None:
    """3.4, 10.6: the source is read, and the target written, when the task runs."""
    emulator, library = subject.only_emulated(), driver.library
    stream, memory = driver.stream(), driver.malloc(64)
    source, target = driver.malloc_host(64), driver.malloc_host(64)
    ctypes.memset(source, 1, 64)
    emulator.hold()
    library.aclrtMemcpyAsync(memory, 64, source, 64, HOST_TO_DEVICE, stream)
    library.aclrtMemcpyAsync(target, 64, memory, 64, DEVICE_TO_HOST, stream)
    assert query(driver, stream) == 1
    assert driver.host_bytes(target, 64) == b"\xa5" * 64
    ctypes.memset(source, 2, 64)
    emulator.release()
    library.aclrtSynchronizeStream(stream)
    assert driver.host_bytes(target, 64) == b"\x02" * 64
    assert query(driver, stream) == 0


def test_streams_run_in_order_and_events_tie_them(subject: Subject, driver: Driver) -> None:
    """6.2, 7.7: what a waiting stream does comes after the record, however late that is."""
    emulator, library = subject.only_emulated(), driver.library
    first, second, event = driver.stream(), driver.stream(), driver.event()
    memory = driver.malloc(64)
    for _ in range(20):
        emulator.hold()
        for value in range(5):
            library.aclrtMemsetAsync(memory, 64, value, 64, first)
        library.aclrtRecordEvent(event, first)
        library.aclrtStreamWaitEvent(second, event)
        library.aclrtMemsetAsync(memory, 32, 77, 32, second)
        emulator.release()
        library.aclrtSynchronizeStream(second)
        assert driver.download(memory, 64) == b"\x4d" * 32 + b"\x04" * 32
    library.aclrtSynchronizeStream(first)


def test_event_states(subject: Subject, driver: Driver) -> None:
    """7.4: the two queries count in opposite ways. 7.6: times need two completed records in order."""
    emulator, library = subject.only_emulated(), driver.library
    stream, start, end = driver.stream(), driver.event(), driver.event()
    old, new, milliseconds = c_uint32(9), c_uint32(9), c_float()
    with fails(107006):
        library.aclrtEventElapsedTime(byref(milliseconds), start, end)
    emulator.hold()
    library.aclrtRecordEvent(start, stream)
    library.aclrtQueryEvent(start, byref(old))
    library.aclrtQueryEventStatus(start, byref(new))
    assert (old.value, new.value) == (1, 0)
    library.aclrtRecordEvent(end, stream)
    emulator.release()
    library.aclrtSynchronizeEvent(end)
    library.aclrtQueryEvent(start, byref(old))
    library.aclrtQueryEventStatus(start, byref(new))
    assert (old.value, new.value) == (0, 1)
    library.aclrtEventElapsedTime(byref(milliseconds), start, end)
    assert milliseconds.value >= 0
    library.aclrtRecordEvent(start, stream)
    library.aclrtSynchronizeStream(stream)
    with fails(107007):
        library.aclrtEventElapsedTime(byref(milliseconds), start, end)


def test_event_kinds(driver: Driver) -> None:
    """7.1"""
    library = driver.library
    stream, timed, extended = driver.stream(), acl.Event(), acl.Event()
    library.aclrtCreateEventWithFlag(byref(timed), acl.ACL_EVENT_TIME_LINE)
    library.aclrtCreateEventExWithFlag(byref(extended), acl.ACL_EVENT_SYNC)
    with fails(107000):
        library.aclrtStreamWaitEvent(stream, timed)
    with fails(107000):
        library.aclrtResetEvent(extended, stream)
    with fails(107000):
        library.aclrtQueryEvent(extended, byref(c_uint32()))
    with fails(100000):
        library.aclrtCreateEventWithFlag(byref(timed), 0x4000)
    event, state = driver.event(), c_uint32()
    library.aclrtRecordEvent(event, stream)
    library.aclrtResetEvent(event, stream)
    library.aclrtSynchronizeStream(stream)
    library.aclrtQueryEventStatus(event, byref(state))
    assert state.value == 0


def test_default_stream(driver: Driver) -> None:
    """6.1"""
    library, memory, stream = driver.library, driver.malloc(64), acl.Stream()
    library.aclrtMemsetAsync(memory, 64, 3, 64, None)
    library.aclrtSynchronizeStream(None)
    library.aclrtCtxGetCurrentDefaultStream(byref(stream))
    with fails(100000):
        library.aclrtDestroyStream(stream)


def test_stream_facts(driver: Driver) -> None:
    library, stream = driver.library, acl.Stream()
    free, after, priority, flags, number = c_uint32(), c_uint32(), c_uint32(), c_uint32(), c_int32(-1)
    library.aclrtGetStreamAvailableNum(byref(free))
    library.aclrtCreateStreamWithConfig(byref(stream), 3, acl.ACL_STREAM_FAST_LAUNCH | acl.ACL_STREAM_FAST_SYNC)
    library.aclrtGetStreamAvailableNum(byref(after))
    assert after.value == free.value - 1
    library.aclrtStreamGetPriority(stream, byref(priority))
    library.aclrtStreamGetFlags(stream, byref(flags))
    library.aclrtStreamGetId(stream, byref(number))
    assert (priority.value, flags.value) == (3, 3)
    assert number.value >= 0


def test_destroy_waits_and_force_does_not(subject: Subject, driver: Driver) -> None:
    """6.4"""
    emulator, library = subject.only_emulated(), driver.library
    memory, stream = driver.malloc(64), driver.stream()
    library.aclrtMemset(memory, 64, 0, 64)
    for value in range(100):
        library.aclrtMemsetAsync(memory, 64, value, 64, stream)
    library.aclrtDestroyStream(stream)
    assert driver.download(memory, 64) == b"\x63" * 64
    stream = driver.stream()
    emulator.hold()
    library.aclrtMemsetAsync(memory, 64, 0, 64, stream)
    library.aclrtDestroyStreamForce(stream)
    emulator.release()
    assert driver.download(memory, 64) == b"\x63" * 64


@contextmanager
def waiting_thread(driver: Driver, emulator: Emulator, stream: acl.Stream, codes: list[int]) -> Iterator[None]:
    """A thread that waits for a held stream."""
    library, context = driver.library, driver.context()

    def wait() -> None:
        library.aclrtSetCurrentContext(context)
        codes.append(library.raw("aclrtSynchronizeStream")(stream))

    thread = threading.Thread(target=wait)
    thread.start()
    while emulator.waiters == 0:
        assert thread.is_alive()
    yield
    thread.join()


def test_abort(subject: Subject, driver: Driver) -> None:
    """6.10: drops tasks, who waits gets 107023."""
    emulator, library, codes = subject.only_emulated(), driver.library, []
    memory, stream = driver.malloc(64), driver.stream()
    emulator.hold()
    library.aclrtMemsetAsync(memory, 64, 0, 64, stream)
    with waiting_thread(driver, emulator, stream, codes):
        library.aclrtStreamAbort(stream)
    assert codes == [107023]
    emulator.release()
    library.aclrtSynchronizeStream(stream)
    assert driver.download(memory, 64) == b"\xa5" * 64


def test_a_stream_in_use_cannot_be_destroyed(subject: Subject, driver: Driver) -> None:
    """6.4: not while another thread waits for it."""
    emulator, library, codes = subject.only_emulated(), driver.library, []
    memory, stream = driver.malloc(64), driver.stream()
    emulator.hold()
    library.aclrtMemsetAsync(memory, 64, 0, 64, stream)
    with waiting_thread(driver, emulator, stream, codes):
        with fails(200005):
            library.aclrtDestroyStream(stream)
        emulator.release()
    assert codes == [0]


def test_failed_task(subject: Subject, driver: Driver) -> None:
    """3.4, 3.7: submission succeeds, the target is poison, later tasks run, the code comes once at the synchronise."""
    emulator, library = subject.only_emulated(), driver.library
    stream, memory, target = driver.stream(), driver.malloc(64), driver.malloc_host(128)
    library.aclrtMemset(memory, 64, 1, 64)
    ctypes.memset(target, 0, 128)
    infos: list[tuple[int, ...]] = []
    getters = ("Task", "Stream", "Thread", "Device")

    def note(info: acl.ExceptionInfo) -> None:
        found = [getattr(library, f"aclrtGet{what}IdFromExceptionInfo")(info) for what in getters]
        infos.append((*found, library.aclrtGetErrorCodeFromExceptionInfo(info)))

    callback = acl.aclrtExceptionInfoCallback(note)
    library.aclrtSetExceptionInfoCallback(callback)
    emulator.faults.fail_task("aclrtMemcpyAsync", 507013, task=2)
    for offset in (0, 64):
        library.aclrtMemcpyAsync(target + offset, 64, memory, 64, DEVICE_TO_HOST, stream)
    library.aclrtMemsetAsync(memory, 64, 9, 64, stream)
    with fails(507013):
        library.aclrtSynchronizeStream(stream)
    library.aclrtSynchronizeStream(stream)
    assert driver.host_bytes(target, 128) == b"\x01" * 64 + b"\xa5" * 64
    assert driver.download(memory, 64) == b"\x09" * 64
    number = c_int32()
    library.aclrtStreamGetId(stream, byref(number))
    thread = threading.get_ident() & 0xFFFFFFFF
    assert infos == [(2, number.value, thread, 0, 507013)]
    assert library.aclrtGetTaskIdFromExceptionInfo(None) == 0xFFFFFFFF
    library.aclrtSetExceptionInfoCallback(acl.aclrtExceptionInfoCallback())


def test_stop_on_failure(subject: Subject, driver: Driver) -> None:
    """6.9"""
    emulator, library = subject.only_emulated(), driver.library
    stream, memory = driver.stream(), driver.malloc(64)
    library.aclrtMemset(memory, 64, 1, 64)
    library.aclrtSetStreamFailureMode(stream, acl.ACL_STOP_ON_FAILURE)
    with fails(107000):
        library.aclrtSetStreamFailureMode(stream, acl.ACL_CONTINUE_ON_FAILURE)
    with fails(207000):
        library.aclrtSetStreamFailureMode(None, acl.ACL_STOP_ON_FAILURE)
    emulator.hold()
    emulator.faults.fail_task("aclrtMemsetAsync", 507011)
    library.aclrtMemsetAsync(memory, 64, 2, 64, stream)
    library.aclrtMemsetAsync(memory, 64, 3, 64, stream)
    emulator.release()
    with fails(507011):
        library.aclrtSynchronizeStream(stream)
    assert driver.download(memory, 64) == b"\xa5" * 64
    with fails(507011):
        library.aclrtMemsetAsync(memory, 64, 4, 64, stream)


def test_freeing_ends_a_running_task_badly(subject: Subject, driver: Driver) -> None:
    """8.7: free does not wait; what a task does with freed memory is undefined, here it fails."""
    emulator, library = subject.only_emulated(), driver.library
    stream, memory, host = driver.stream(), driver.malloc(64), driver.malloc_host(64)
    emulator.hold()
    library.aclrtMemcpyAsync(memory, 64, host, 64, HOST_TO_DEVICE, stream)
    library.aclrtFree(memory)
    emulator.release()
    with fails(507013):
        library.aclrtSynchronizeStream(stream)


def test_reset_ends_the_default_contexts_streams(driver: Driver) -> None:
    """4.4"""
    library, stream = driver.library, driver.stream()
    library.aclrtResetDevice(0)
    library.aclrtSetDevice(0)
    with fails(107017):
        library.aclrtSynchronizeStream(stream)


def test_device_synchronise_waits_for_all_streams(subject: Subject, driver: Driver) -> None:
    """4.11"""
    emulator, library = subject.only_emulated(), driver.library
    memory, streams = driver.malloc(128), [driver.stream(), driver.stream()]
    emulator.faults.fail_task("aclrtMemsetAsync", 507015, task=2)
    emulator.hold()
    for index, stream in enumerate(streams):
        library.aclrtMemsetAsync(memory + 64 * index, 64, 5, 64, stream)
    emulator.release()
    with fails(507015):
        library.aclrtSynchronizeDevice()
    assert driver.download(memory, 128) == b"\x05" * 64 + b"\xa5" * 64
    in_thread(lambda: None)


def test_event_numbers(driver: Driver) -> None:
    free, after, number, time = c_uint32(), c_uint32(), c_uint32(), c_uint64()
    library = driver.library
    library.aclrtGetEventAvailNum(byref(free))
    event = driver.event()
    library.aclrtGetEventAvailNum(byref(after))
    library.aclrtGetEventId(event, byref(number))
    assert after.value == free.value - 1
    with pytest.raises(AclError):
        library.aclrtEventGetTimestamp(event, byref(time))
