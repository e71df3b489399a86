"""Buffers, copies in all directions, events, memory information."""

from __future__ import annotations

import threading
from contextlib import nullcontext, suppress

import pytest

from aclserve.errors import FailedPrecondition, InvalidArgument, OutOfRange, Unimplemented
from aclserve_server.acl.errors import AclError
from aclserve_server.acl.types import aclrtMemAttr, aclrtMemMallocPolicy
from aclserve_server.device.buffers import Buffer
from aclserve_server.device.device import Device
from aclserve_server.device.exceptions import ExceptionWatch
from aclserve_server.emulator import Emulator

SIZE = 1000


def make(device: Device, space: str, size: int = SIZE) -> Buffer:
    return device.allocate(size) if space == "device" else device.allocate_host(size)


def fill(device: Device, buffer: Buffer, data: bytes) -> None:
    with device.allocate_host(len(data)) as host:
        host.view()[:] = data
        device.copy(buffer, 0, host, 0, len(data))


def content(device: Device, buffer: Buffer) -> bytes:
    with device.allocate_host(buffer.size_bytes) as host:
        device.copy(host, 0, buffer, 0, buffer.size_bytes)
        return bytes(host.view())


PATTERN = bytes(index % 251 for index in range(SIZE))


@pytest.mark.parametrize("src_space", ["host", "device"])
@pytest.mark.parametrize("dst_space", ["host", "device"])
def test_copy_in_every_direction(device: Device, emulator: Emulator, src_space: str, dst_space: str) -> None:
    with make(device, src_space) as src, make(device, dst_space) as dst:
        fill(device, src, PATTERN)
        device.set_memory(dst, 0, SIZE, 7)
        emulator.counters.reset()
        device.copy(dst, 100, src, 10, 50)
        assert content(device, dst) == b"\7" * 100 + PATTERN[10:60] + b"\7" * (SIZE - 150)
        if device.run_mode == "host":
            assert emulator.counters.copied_bytes[f"{src_space}_to_{dst_space}"] >= 50


@pytest.mark.parametrize("src_space", ["host", "device"])
@pytest.mark.parametrize("dst_space", ["host", "device"])
def test_copy_in_a_stream_waits_for_the_device(
    device: Device, emulator: Emulator, src_space: str, dst_space: str
) -> None:
    with make(device, src_space) as src, make(device, dst_space) as dst, device.create_stream() as stream:
        fill(device, src, PATTERN)
        device.set_memory(dst, 0, SIZE, 7)
        if device.run_mode == "host" and src_space == dst_space == "host":
            with pytest.raises(Unimplemented, match="host-to-host"):
                stream.copy(dst, 0, src, 0, SIZE)
            return
        emulator.hold()
        stream.copy(dst, 0, src, 0, SIZE)
        assert not stream.query()
        if src.host_accessible:  # the source is read only when the task runs
            src.view()[0] = 99
        emulator.release()
        stream.synchronize()
        assert stream.query()
        first = bytes([99]) if src.host_accessible else PATTERN[:1]
        assert content(device, dst) == first + PATTERN[1:]


def test_memory_is_set_at_once_and_in_a_stream(device: Device) -> None:
    with device.allocate(SIZE) as buffer, device.create_stream() as stream:
        device.set_memory(buffer, 0, SIZE, 0)
        device.set_memory(buffer, 10, 20, 255)
        stream.set_memory(buffer, 500, 100, 3)
        stream.synchronize()
        expected = b"\0" * 10 + b"\xff" * 20 + b"\0" * 470 + b"\3" * 100 + b"\0" * 400
        assert content(device, buffer) == expected
        for value in (-1, 256):
            with pytest.raises(InvalidArgument, match=str(value)):
                device.set_memory(buffer, 0, 1, value)


def test_zero_bytes_call_nothing(device: Device, emulator: Emulator) -> None:
    with device.allocate(SIZE) as a, device.allocate(SIZE) as b, device.create_stream() as stream:
        device.copy(a, SIZE, b, 0, 0)
        stream.copy(a, 0, b, SIZE, 0)
        device.set_memory(a, SIZE, 0, 1)
        stream.set_memory(a, 0, 0, 1)
    calls = emulator.counters.calls
    assert not any(calls[name] for name in ("aclrtMemcpy", "aclrtMemcpyAsync", "aclrtMemset", "aclrtMemsetAsync"))


@pytest.mark.parametrize(("offset", "length"), [(-1, 5), (0, SIZE + 1), (SIZE, 1), (5, -1), (2**63, 2**63)])
def test_ranges_are_checked_before_the_call(device: Device, emulator: Emulator, offset: int, length: int) -> None:
    with device.allocate(SIZE) as a, device.allocate(SIZE) as b, device.create_stream() as stream:
        for attempt in (
            lambda: device.copy(a, offset, b, 0, length),
            lambda: device.copy(a, 0, b, offset, length),
            lambda: stream.copy(a, offset, b, 0, length),
            lambda: device.set_memory(a, offset, length, 0),
            lambda: stream.set_memory(a, offset, length, 0),
        ):
            with pytest.raises(OutOfRange, match=str(SIZE)) as caught:
                attempt()
            assert caught.value.reason == "BUFFER_RANGE"
    assert not emulator.counters.calls["aclrtMemcpy"]


@pytest.mark.parametrize(("dst_offset", "src_offset"), [(1, 0), (0, 32), (96, 128)])
def test_copies_in_a_stream_are_aligned(device: Device, emulator: Emulator, dst_offset: int, src_offset: int) -> None:
    with device.allocate(SIZE) as a, device.allocate(SIZE) as b, device.create_stream() as stream:
        with pytest.raises(InvalidArgument, match="64 bytes") as caught:
            stream.copy(a, dst_offset, b, src_offset, 8)
        assert caught.value.reason == "COPY_UNALIGNED"
        stream.copy(a, 64, b, 128, 7)
        stream.synchronize()
    assert emulator.counters.calls["aclrtMemcpyAsync"] == 1


def test_views_exist_only_where_the_host_may_touch(device: Device) -> None:
    with device.allocate_host(SIZE) as host, device.allocate(SIZE) as on_device:
        view = host.view()
        assert (view.nbytes, view.format, view.readonly) == (SIZE, "B", False)
        assert host.address % 64 == on_device.address % 64 == 0
        if device.run_mode == "host":
            assert not on_device.host_accessible
            with pytest.raises(FailedPrecondition) as caught:
                on_device.view()
            assert caught.value.reason == "BUFFER_NOT_HOST_ACCESSIBLE"
        else:
            on_device.view()[:3] = b"abc"
            assert content(device, on_device)[:3] == b"abc"


@pytest.mark.parametrize("policy", list(aclrtMemMallocPolicy)[:3])
def test_policies(device: Device, policy: aclrtMemMallocPolicy) -> None:
    with device.allocate(3 << 20, policy) as buffer:
        assert buffer.policy is policy
        assert buffer.size_bytes == 3 << 20


def test_memory_information_by_every_attribute(device: Device) -> None:
    free, total = device.memory_info(aclrtMemAttr.ACL_DDR_MEM)
    assert 0 < free <= total
    with device.allocate(4 << 20):
        assert device.memory_info(aclrtMemAttr.ACL_DDR_MEM)[0] <= free - (4 << 20)
    for attribute in aclrtMemAttr:
        with suppress(Unimplemented) if attribute >= aclrtMemAttr.ACL_MEM_NORMAL else nullcontext():
            free, total = device.memory_info(attribute)
            assert 0 <= free <= total
    assert device.utilization() is None or 0 <= (device.utilization() or 0) <= 100


def test_memory_attribute_newer_than_the_installed_cann(device: Device, emulator: Emulator) -> None:
    emulator.faults.fail_call("aclrtGetMemInfo", 107016)
    with pytest.raises(Unimplemented, match="ACL_MEM_HUGE1G") as caught:
        device.memory_info(aclrtMemAttr.ACL_MEM_HUGE1G)
    assert caught.value.reason == "MEMORY_ATTRIBUTE_UNSUPPORTED"
    emulator.faults.fail_call("aclrtGetMemInfo", 107002)
    with pytest.raises(AclError):
        device.memory_info(aclrtMemAttr.ACL_DDR_MEM)


def test_out_of_memory(device: Device) -> None:
    with pytest.raises(AclError) as caught:
        device.allocate(1 << 40)
    assert caught.value.code == 207001


def test_events_order_streams(device: Device, emulator: Emulator) -> None:
    with (
        device.allocate(8) as a,
        device.allocate(8) as b,
        device.create_stream() as first,
        device.create_stream() as second,
        device.create_event() as start,
        device.create_event() as event,
    ):
        device.set_memory(a, 0, 8, 1)
        device.set_memory(b, 0, 8, 0)
        emulator.hold()
        start.record(first)
        first.set_memory(a, 0, 8, 2)
        event.record(first)
        second.wait(event)
        second.copy(b, 0, a, 0, 8)
        assert not event.query()
        with pytest.raises(AclError) as caught:
            event.synchronize(timeout_ms=1)
        assert caught.value.code == 507047
        with pytest.raises(AclError) as caught:
            second.synchronize(timeout_ms=1)
        assert caught.value.code == 507046
        emulator.release()
        event.synchronize()
        second.synchronize()
        assert event.query()
        assert event.elapsed_ms(start) >= 0
        assert content(device, b) == b"\2" * 8


@pytest.mark.parametrize("timeout_ms", [0, -2])
def test_timeouts_that_mean_nothing(device: Device, timeout_ms: int) -> None:
    with device.create_stream() as stream, device.create_event() as event:
        for waiter in (stream, event):
            with pytest.raises(InvalidArgument, match=str(timeout_ms)):
                waiter.synchronize(timeout_ms)


def test_a_failed_task_shows_at_synchronize_once(device: Device, emulator: Emulator) -> None:
    with device.allocate(SIZE) as a, device.allocate(SIZE) as b, device.create_stream() as stream:
        emulator.faults.fail_task("aclrtMemcpyAsync", 507013)
        stream.copy(a, 0, b, 0, SIZE)
        with pytest.raises(AclError) as caught:
            stream.synchronize()
        assert caught.value.code == 507013
        stream.synchronize()


def test_every_thread_binds_itself(device: Device) -> None:
    codes: list[int] = []

    def work() -> None:
        try:
            device.create_stream()
        except AclError as error:
            codes.append(error.code)
        device.bind_thread()
        device.create_stream().close()

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert codes == [107002]


def test_exception_watch_names_the_stream(device: Device, emulator: Emulator) -> None:
    with (
        ExceptionWatch(device.library) as watch,
        device.allocate(SIZE) as a,
        device.allocate(SIZE) as b,
        device.create_stream() as sound,
        device.create_stream() as stream,
    ):
        emulator.faults.fail_task("aclrtMemcpyAsync", 507013)
        stream.copy(a, 0, b, 0, SIZE)
        with pytest.raises(AclError):
            stream.synchronize()
        sound.copy(a, 0, b, 0, SIZE)
        sound.synchronize()
        (failure,) = watch.take()
        assert (failure.device_id, failure.code, failure.stream_id) == (0, 507013, stream.query_id())
        assert stream.query_id() != sound.query_id()
        assert watch.take() == []
