"""Section 16 of the contract, row by row: each situation is brought about through the table and gives its code."""

from __future__ import annotations

import ctypes
import re
import threading
from collections.abc import Callable
from ctypes import byref, c_size_t, c_uint32, c_void_p
from pathlib import Path
from typing import Any

import pytest

from aclserve_server.acl import types as acl
from aclserve_server.emulator import bake
from contract.driving import DEVICE_TO_DEVICE, HOST_TO_DEVICE, Driver, Slot
from contract.models import doubled, positions, weighted
from contract.subject import Subject, fails, in_thread

Make = Callable[..., Subject]
PROFILES = ["8.1", "8.5", "9.1"]
ROWS: dict[str, Callable[..., None]] = {}


def row(title: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    def register(function: Callable[..., None]) -> Callable[..., None]:
        assert title not in ROWS
        ROWS[title] = function
        return function

    return register


@row("NULL out-pointer / handle in ACL layer")
def test_null(driver: Driver) -> None:
    library = driver.library
    for call in (
        lambda: library.aclrtMalloc(None, 64, 0),
        lambda: library.aclrtGetRunMode(None),
        lambda: library.aclrtCreateStream(None),
        lambda: library.aclrtDestroyEvent(None),
        lambda: library.aclDestroyDataBuffer(None),
        lambda: library.aclmdlDestroyDataset(None),
        lambda: library.aclmdlDestroyDesc(None),
        lambda: library.aclmdlAddDatasetBuffer(library.aclmdlCreateDataset(), None),
        lambda: library.aclrtMemcpy(None, 8, ctypes.create_string_buffer(8), 8, HOST_TO_DEVICE),
        lambda: library.aclrtGetMemInfo(0, None, None),
        lambda: library.aclmdlExecute(1, None, None),
    ):
        with fails(100000):
            call()


@row("aclInit repeated / aclFinalize repeated")
def test_repeated_init(subject: Subject) -> None:
    library = subject.library
    library.aclInit(None)
    with fails(100002):
        library.aclInit(None)
    library.aclFinalize()
    with fails(100037):
        library.aclFinalize()
    library.aclInit(None)
    library.aclFinalize()


@row("re-init after finalize with other config content")
def test_other_config(subject: Subject, tmp_path: Path) -> None:
    library = subject.library
    config = tmp_path / "acl.json"
    config.write_text('{"err_msg_mode": "0"}')
    library.aclInit(str(config).encode())
    config.write_text('{"err_msg_mode": "1"}')
    with fails(100002):
        library.aclInit(str(config).encode())
    library.aclFinalize()
    with fails(100000):
        library.aclInit(str(config).encode())
    config.write_text('{"err_msg_mode":   "0"}')
    library.aclInit(str(config).encode())


@row("model API before aclInit")
def test_model_before_init(subject: Subject) -> None:
    library = subject.library
    library.aclrtSetDevice(0)
    model_id = c_uint32()
    with fails(145001):
        library.aclmdlLoadFromFile(b"model.onnx", byref(model_id))
    with fails(145001):
        library.aclmdlUnload(1)
    library.aclrtResetDevice(0)


@row("device id out of range")
def test_device_id(subject: Subject) -> None:
    library = subject.library
    library.aclInit(None)
    context = acl.Context()
    for number in (-1, 4096):
        with fails(107001):
            library.aclrtSetDevice(number)
        with fails(107001):
            library.aclrtCreateContext(byref(context), number)


@row("device cannot be opened")
def test_broken_device(make_subject: Make) -> None:
    library = make_subject(broken_devices=(0,)).library
    library.aclInit(None)
    with fails(507033):
        library.aclrtSetDevice(0)


@row("no usable device at all (count query)")
def test_no_device(make_subject: Make) -> None:
    library = make_subject(device_count=0).library
    with fails(207004):
        library.aclrtGetDeviceCount(byref(c_uint32()))
    with fails(500000):
        library.aclInit(None)
    assert library.aclrtGetSocName() is None
    with fails(107001):
        library.aclrtSetDevice(0)


@row("ResetDevice never set")
def test_reset_unset(subject: Subject) -> None:
    subject.library.aclInit(None)
    with fails(507007):
        subject.library.aclrtResetDevice(0)


@row("thread has no context")
def test_no_context(driver: Driver) -> None:
    library = driver.library
    device_memory, host_memory = driver.malloc(64), driver.malloc_host(64)
    size = c_size_t()
    calls: list[Callable[[], Any]] = [
        lambda: library.aclrtMalloc(byref(acl.DevicePtr()), 64, 0),
        lambda: library.aclrtMallocHost(byref(c_void_p()), 64),
        lambda: library.aclrtMemcpy(device_memory, 64, host_memory, 64, HOST_TO_DEVICE),
        lambda: library.aclrtMemset(device_memory, 64, 0, 64),
        lambda: library.aclrtGetMemInfo(0, byref(size), byref(size)),
        lambda: library.aclrtCreateStream(byref(acl.Stream())),
        lambda: library.aclrtCreateEvent(byref(acl.Event())),
        lambda: library.aclrtSynchronizeStream(None),
        lambda: library.aclrtSynchronizeDevice(),
        lambda: library.aclrtGetDevice(byref(ctypes.c_int32())),
        lambda: library.aclrtGetCurrentContext(byref(acl.Context())),
    ]

    def probe() -> None:
        for call in calls:
            with fails(107002):
                call()
        library.aclrtFree(device_memory)  # these two need none
        library.aclrtFreeHost(host_memory)

    in_thread(probe)


@row("SetCurrentContext with a destroyed context")
@pytest.mark.parametrize("profile", PROFILES)
def test_dead_context(make_subject: Make, profile: str) -> None:
    subject = make_subject(profile=profile)
    library = subject.library
    library.aclInit(None)
    context = acl.Context()
    library.aclrtCreateContext(byref(context), 0)
    library.aclrtDestroyContext(context)
    if subject.release >= (9, 1):
        with fails(107002):
            library.aclrtSetCurrentContext(context)
    else:
        library.aclrtSetCurrentContext(context)
    with fails(107002):
        library.aclrtMalloc(byref(acl.DevicePtr()), 64, 0)


@row("SetCurrentContext(NULL), DestroyStream(NULL), aclrtFree(NULL), aclrtFreeHost(NULL), malloc(0)")
def test_nothing_given(driver: Driver) -> None:
    library = driver.library
    for call in (
        lambda: library.aclrtSetCurrentContext(None),
        lambda: library.aclrtDestroyStream(None),
        lambda: library.aclrtFree(None),
        lambda: library.aclrtFreeHost(None),
        lambda: library.aclrtMalloc(byref(acl.DevicePtr()), 0, 0),
        lambda: library.aclrtMallocHost(byref(c_void_p()), 0),
    ):
        with fails(100000):
            call()


@row("stream of another context")
def test_foreign_stream(driver: Driver) -> None:
    library = driver.library
    stream, memory, home = driver.stream(), driver.malloc(64), driver.context()
    other = acl.Context()
    library.aclrtCreateContext(byref(other), 0)
    with fails(107003):
        library.aclrtMemsetAsync(memory, 64, 0, 64, stream)
    with fails(107003):
        library.aclrtDestroyStream(stream)
    library.aclrtSynchronizeStream(stream)
    library.aclrtSetCurrentContext(home)
    library.aclrtDestroyContext(other)
    library.aclrtDestroyStream(stream)
    library.aclrtFree(memory)


@row("stale stream/event handle (recent master)")
def test_stale(driver: Driver) -> None:
    library = driver.library
    stream, event = driver.stream(), driver.event()
    library.aclrtDestroyStream(stream)
    library.aclrtDestroyEvent(event)
    with fails(107017):
        library.aclrtSynchronizeStream(stream)
    with fails(107017):
        library.aclrtRecordEvent(event, None)


@row("count > destMax")
def test_overrun(driver: Driver) -> None:
    library = driver.library
    memory, host = driver.malloc(64), driver.malloc_host(128)
    with fails(107000):
        library.aclrtMemcpy(memory, 64, host, 128, HOST_TO_DEVICE)
    with fails(107000):
        library.aclrtMemcpyAsync(memory, 64, host, 128, HOST_TO_DEVICE, None)
    with fails(107000):
        library.aclrtMemsetAsync(memory, 64, 0, 128, None)
    library.aclrtFree(memory)
    library.aclrtFreeHost(host)


@row("count == 0")
@pytest.mark.parametrize("profile", PROFILES)
def test_zero_count(make_subject: Make, profile: str) -> None:
    subject = make_subject(profile=profile)
    driver = subject.start()
    library = driver.library
    memory, host = driver.malloc(64), driver.malloc_host(64)
    for call in (
        lambda: library.aclrtMemcpy(memory, 64, host, 0, HOST_TO_DEVICE),
        lambda: library.aclrtMemcpyAsync(memory, 64, host, 0, HOST_TO_DEVICE, None),
        lambda: library.aclrtMemset(memory, 64, 0, 0),
        lambda: library.aclrtMemsetAsync(memory, 64, 0, 0, None),
    ):
        if subject.release >= (9, 1):
            call()
        else:
            with fails(107000):
                call()


@row("bad memcpy kind number")
def test_bad_kind(driver: Driver) -> None:
    memory = driver.malloc(128)
    for kind in (6, 7, 99):
        with fails(100000):
            driver.library.aclrtMemcpy(memory, 64, memory + 64, 64, kind)
    driver.library.aclrtFree(memory)


@row("async host-to-host on PCIe host")
def test_async_host_to_host(make_subject: Make, where: str) -> None:
    subject = make_subject(profile="9.1")
    driver = subject.start()
    host = driver.malloc_host(128)

    def copy() -> None:
        driver.library.aclrtMemcpyAsync(host + 64, 64, host, 64, 0, None)

    if driver.unified:
        copy()
        driver.library.aclrtSynchronizeStream(None)
    else:
        with fails(207000):
            copy()


@row("out of device memory")
def test_out_of_memory(driver: Driver) -> None:
    for policy in (0, 1, 2):
        with fails(207001):
            driver.malloc(1 << 50, policy)


@row("GetMemInfo bad attr")
def test_bad_attribute(driver: Driver) -> None:
    size = c_size_t()
    for attribute in (99, 1 << 20):
        with fails(107016):
            driver.library.aclrtGetMemInfo(attribute, byref(size), byref(size))


@row("sync timeout: stream or device / event")
def test_sync_timeout(subject: Subject, driver: Driver) -> None:
    emulator, library = subject.only_emulated(), driver.library
    stream, event, memory = driver.stream(), driver.event(), driver.malloc(64)
    emulator.hold()
    library.aclrtMemsetAsync(memory, 64, 1, 64, stream)
    library.aclrtRecordEvent(event, stream)
    with fails(507046):
        library.aclrtSynchronizeStreamWithTimeout(stream, 1)
    with fails(507046):
        library.aclrtSynchronizeDeviceWithTimeout(1)
    with fails(507047):
        library.aclrtSynchronizeEventWithTimeout(event, 1)
    emulator.release()
    library.aclrtSynchronizeStreamWithTimeout(stream, -1)
    library.aclrtSynchronizeEventWithTimeout(event, -1)


@row("timeout argument < -1 (stream, event, device)")
def test_timeout_argument(driver: Driver) -> None:
    library = driver.library
    stream, event = driver.stream(), driver.event()
    with fails(107000):
        library.aclrtSynchronizeStreamWithTimeout(stream, -2)
    with fails(107000):
        library.aclrtSynchronizeStreamWithTimeout(stream, 0)
    with fails(107000):
        library.aclrtSynchronizeEventWithTimeout(event, -2)
    with fails(107000):
        library.aclrtSynchronizeDeviceWithTimeout(-2)


@row("ProcessReport timeout argument 0 or < -1")
def test_report_argument(driver: Driver) -> None:
    for timeout in (0, -2):
        with fails(100000):
            driver.library.aclrtProcessReport(timeout)


@row("ProcessReport in unsubscribed thread / timed out")
def test_report_thread(driver: Driver) -> None:
    library = driver.library
    with fails(107012):
        library.aclrtProcessReport(1)
    stream = driver.stream()
    library.aclrtSubscribeReport(threading.get_ident(), stream)
    with fails(507012):
        library.aclrtProcessReport(1)
    library.aclrtUnSubscribeReport(threading.get_ident(), stream)
    with fails(107012, 107011):
        library.aclrtUnSubscribeReport(threading.get_ident(), stream)
    library.aclrtDestroyStream(stream)


@row("LaunchCallback on unsubscribed stream / NULL fn / bad blockType")
def test_launch(driver: Driver) -> None:
    library = driver.library
    stream = driver.stream()
    callback = acl.aclrtCallback(lambda user_data: None)
    with fails(107015):
        library.aclrtLaunchCallback(callback, None, 0, stream)
    library.aclrtSubscribeReport(threading.get_ident(), stream)
    with fails(107000):
        library.aclrtLaunchCallback(acl.aclrtCallback(), None, 0, stream)
    with fails(100000):
        library.aclrtLaunchCallback(callback, None, 7, stream)
    library.aclrtUnSubscribeReport(threading.get_ident(), stream)


@row("subscribe twice on one stream")
def test_subscribe_twice(driver: Driver) -> None:
    library = driver.library
    stream, me = driver.stream(), threading.get_ident()
    library.aclrtSubscribeReport(me, stream)
    with fails(107011):
        library.aclrtSubscribeReport(me, stream)
    library.aclrtUnSubscribeReport(me, stream)


@row("too many streams / events")
def test_limits(make_subject: Make) -> None:
    driver = make_subject(stream_limit=3, event_limit=2).start()
    streams = [driver.stream() for _ in range(3)]
    with fails(207008, 207005):
        driver.stream()
    events = [driver.event() for _ in range(2)]
    with fails(207007):
        driver.event()
    driver.library.aclrtDestroyStream(streams[0])
    driver.library.aclrtDestroyEvent(events[0])
    driver.stream()
    driver.event()


@row("model path / id / user memory too small")
def test_model_arguments(subject: Subject, driver: Driver, tmp_path: Path) -> None:
    library = driver.library
    model_id = c_uint32()
    with fails(145002):
        library.aclmdlLoadFromFile(str(tmp_path / "none.om").encode(), byref(model_id))
    desc = library.aclmdlCreateDesc()
    dataset = library.aclmdlCreateDataset()
    for call in (
        lambda: library.aclmdlUnload(99),
        lambda: library.aclmdlGetDesc(desc, 99),
        lambda: library.aclmdlExecute(99, dataset, dataset),
        lambda: library.aclmdlSetDynamicBatchSize(99, dataset, 0, 1),
    ):
        with fails(145003):
            call()
    library.aclmdlDestroyDataset(dataset)
    library.aclmdlDestroyDesc(desc)
    subject.only_emulated()
    path = tmp_path / "model.onnx"
    path.write_bytes(weighted())
    weights = driver.malloc(64)
    with fails(145000):
        library.aclmdlLoadFromFileWithMem(str(path).encode(), byref(model_id), None, 0, weights, 35)
    library.aclrtFree(weights)


@row("wrong number or length of execute buffers")
@pytest.mark.parametrize("profile", PROFILES)
def test_execute_buffers(make_subject: Make, profile: str) -> None:
    subject = make_subject(profile=profile)
    driver = subject.start()
    library, expected = driver.library, (145000 if subject.release < (8, 5) else 500002)
    slot = Slot(driver, driver.load(doubled([64, 4])))
    empty = library.aclmdlCreateDataset()
    with fails(expected):
        library.aclmdlExecute(slot.model_id, empty, slot.outputs)
    with fails(expected):
        library.aclmdlExecute(slot.model_id, slot.inputs, empty)
    buffer = library.aclmdlGetDatasetBuffer(slot.inputs, 0)
    library.aclUpdateDataBuffer(buffer, slot.input_places[0], 1024 - 65)
    with fails(expected):
        slot.execute()
    library.aclUpdateDataBuffer(buffer, slot.input_places[0], 1024 - 64)  # up to 64 bytes short is tolerated
    slot.execute()


@row("device failure in sync aclmdlExecute")
@pytest.mark.parametrize("profile", PROFILES)
def test_failing_execute(make_subject: Make, profile: str) -> None:
    subject = make_subject(profile=profile)
    driver = subject.start()
    slot = Slot(driver, driver.load(doubled([2, 3])))
    subject.only_emulated().faults.fail_task("aclmdlExecute", 507015)
    with fails(507015 if subject.release < (8, 5) else 500002):
        slot.execute()
    assert slot.read(0, "u1", (24,)).tolist() == [0xA5] * 24


@row("gear not compiled / gear buffer short")
def test_gears(subject: Subject, driver: Driver) -> None:
    subject.only_emulated()
    library = driver.library
    slot = Slot(driver, driver.load(bake(doubled(["N", 3]), dynamic_batch_size=(1, 4))))
    with fails(145013):
        slot.set_batch(3)
    buffer = library.aclmdlGetDatasetBuffer(slot.inputs, slot.gear_index)
    library.aclUpdateDataBuffer(buffer, slot.input_places[slot.gear_index], 3)
    with fails(145012):
        slot.set_batch(4)
    static = Slot(driver, driver.load(doubled([2, 3])))
    with fails(145013):
        library.aclmdlSetDynamicBatchSize(static.model_id, static.inputs, 0, 2)


@row("AIPP missing")
def test_aipp(driver: Driver, model_id: int) -> None:
    info = acl.aclAippInfo()
    with fails(145015):
        driver.library.aclmdlGetFirstAippInfo(model_id, 0, byref(info))
    kind, attached = c_uint32(9), c_size_t()
    driver.library.aclmdlGetAippType(model_id, 0, byref(kind), byref(attached))
    assert (kind.value, attached.value) == (0, 0xFFFFFFFF)


@row("cur output dims on unknown-shape model")
def test_unknown_dims(subject: Subject, driver: Driver) -> None:
    subject.only_emulated()
    slot = Slot(driver, driver.load(positions()))
    with fails(200001):
        slot.current_dims(0)


@row("not supported on this chip or build")
def test_unsupported(subject: Subject, driver: Driver) -> None:
    subject.only_emulated()
    library = driver.library
    with fails(207000):
        driver.malloc(64, acl.aclrtMemMallocPolicy.ACL_MEM_MALLOC_HUGE1G_ONLY)
    with fails(207000):
        library.aclrtMemUceRepair(0, None, 0)
    queue = c_uint32()
    with fails(200001):
        library.aclmdlLoadFromFileWithQ(b"m", byref(c_uint32()), byref(queue), 1, byref(queue), 1)


def test_every_row_is_here(shared: Path) -> None:
    """The titles above are the rows of the table."""
    text = (shared / "acl" / "CONTRACT.md").read_text()
    section = text.split("## 16.", 1)[1].split("## 17.", 1)[0]
    titles = re.findall(r"^\| ([^|]+?) \| [^|]+ \|$", section, re.MULTILINE)
    assert [title.replace("\u2212", "-") for title in titles if title != "Situation"] == list(ROWS)


def test_copy_kinds_follow_the_addresses_from_9(make_subject: Make) -> None:
    """Section 10.4: a wrong kind is refused up to 8.1, and only a hint later. Unified memory has no wrong kind."""
    for profile in PROFILES:
        driver = make_subject(profile=profile).start()
        memory, host = driver.malloc(64), driver.malloc_host(64)

        def copy(driver: Driver = driver, memory: int = memory, host: int = host) -> None:
            driver.library.aclrtMemcpy(memory, 64, host, 64, DEVICE_TO_DEVICE)

        if profile == "8.1" and not driver.unified:
            with fails(107000):
                copy()
        else:
            copy()
