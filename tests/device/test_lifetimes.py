"""Owning objects: made once, closed once, nothing left behind, nothing freed by the garbage collector."""

from __future__ import annotations

import copy
import gc
import threading
import warnings
from collections.abc import Callable
from typing import Any

import pytest

from aclserve.errors import FailedPrecondition, InvalidArgument, NotFound
from aclserve_server.acl.errors import AclError
from aclserve_server.acl.library import Library
from aclserve_server.acl.types import DevicePtr, aclAippInputFormat
from aclserve_server.device.aipp import AippParameters
from aclserve_server.device.dataset import Dataset
from aclserve_server.device.device import Device
from aclserve_server.device.reports import ReportThread
from aclserve_server.device.runtime import Runtime
from aclserve_server.emulator import Emulator
from device import onnx_models
from device.helpers import live

MAKERS: dict[str, Callable[[Device], Any]] = {
    "device buffer": lambda device: device.allocate(100),
    "host buffer": lambda device: device.allocate_host(100),
    "stream": lambda device: device.create_stream(),
    "event": lambda device: device.create_event(),
    "model": lambda device: device.load_model(onnx_models.doubled([2, 3])),
    "dataset": lambda device: Dataset.create(device.library, [(4096, 16), (0, 0)]),
    "AIPP parameters": lambda device: AippParameters.create(device.library, 1),
}
USES: dict[str, Callable[[Any], object]] = {
    "device buffer": lambda buffer: buffer.address,
    "host buffer": lambda buffer: buffer.view(),
    "stream": lambda stream: stream.synchronize(),
    "event": lambda event: event.query(),
    "model": lambda model: model.id,
    "dataset": lambda dataset: dataset.update(0, 0, 0),
    "AIPP parameters": lambda parameters: parameters.set_input_format(aclAippInputFormat.ACL_RGB888_U8),
}


def test_runtime_tells_what_it_is(runtime: Runtime, emulator: Emulator) -> None:
    assert runtime.device_count() == 1
    assert runtime.soc_name() == "Ascend310P3"
    assert runtime.run_mode == emulator.config.run_mode
    assert runtime.acl_version().count(".") == 2
    assert isinstance(runtime.cann_version(), str)


def test_second_runtime_shares_and_does_not_tear_down(runtime: Runtime, library: Library) -> None:
    with Runtime.open(library):
        pass
    with Device.open(runtime, 0) as device:
        device.allocate(1).close()


def test_runtime_opens_again_after_close(library: Library) -> None:
    for _ in range(3):
        with Runtime.open(library) as runtime, Device.open(runtime, 0):
            pass


def test_failed_open_leaves_nothing(library: Library, emulator: Emulator) -> None:
    emulator.faults.fail_call("aclrtGetRunMode", 500000)
    with pytest.raises(AclError):
        Runtime.open(library)
    assert emulator.counters.calls["aclFinalize"] == 1
    emulator.faults.fail_call("aclrtGetCurrentContext", 107002)
    with Runtime.open(library) as runtime:
        with pytest.raises(AclError):
            Device.open(runtime, 0)
        assert emulator.counters.calls["aclrtResetDevice"] == 1
        assert not runtime.children.of("device")


@pytest.mark.parametrize("device_id", [-1, 1, 1000])
def test_unknown_device(runtime: Runtime, device_id: int) -> None:
    with pytest.raises(NotFound, match=f"no device {device_id}") as caught:
        Device.open(runtime, device_id)
    assert caught.value.reason == "DEVICE_NOT_FOUND"


@pytest.mark.parametrize("kind", MAKERS)
def test_close_once_and_use_after_close(device: Device, emulator: Emulator, kind: str) -> None:
    before = live(emulator)
    owner = MAKERS[kind](device)
    assert live(emulator) != before
    assert not owner.closed
    USES[kind](owner)
    owner.close()
    owner.close()
    assert owner.closed
    assert live(emulator) == before
    with pytest.raises(FailedPrecondition, match="closed") as caught:
        USES[kind](owner)
    assert caught.value.reason == "RESOURCE_CLOSED"
    with pytest.raises(FailedPrecondition), owner:
        pass


@pytest.mark.parametrize("kind", MAKERS)
def test_forgotten_owner_warns_with_its_place_and_frees_nothing(device: Device, emulator: Emulator, kind: str) -> None:
    owner = MAKERS[kind](device)
    held = live(emulator)
    twin = copy.copy(owner)  # knows the resource, for the end of the test
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        del owner
        gc.collect()
    messages = [str(entry.message) for entry in caught if entry.category is ResourceWarning]
    assert len(messages) == 1
    assert "test_lifetimes.py" in messages[0]
    assert "never closed" in messages[0]
    assert live(emulator) == held
    twin._release()


def test_parents_close_children_first(library: Library, emulator: Emulator) -> None:
    runtime = Runtime.open(library)
    device = Device.open(runtime, 0)
    model = device.load_model(onnx_models.doubled([2, 3]))
    buffer, host = device.allocate(64), device.allocate_host(64)
    stream, event = device.create_stream(), device.create_event()
    reports = ReportThread(device)
    reports.start()
    reports.subscribe(stream)
    order: list[str] = []
    for name, owner in {
        "reports": reports,
        "model": model,
        "buffer": buffer,
        "event": event,
        "stream": stream,
        "device": device,
    }.items():
        original = owner._release

        def noted(name: str = name, original: Callable[[], None] = original) -> None:
            order.append(name)
            original()

        owner._release = noted  # type: ignore[method-assign]
    runtime.close()
    assert order == ["device", "reports", "model", "buffer", "event", "stream"]
    assert all(owner.closed for owner in (device, model, buffer, host, stream, event, reports))
    assert not live(emulator)


def test_one_failing_child_does_not_keep_the_others(library: Library, emulator: Emulator) -> None:
    runtime = Runtime.open(library)
    device = Device.open(runtime, 0)
    host, stream = device.allocate_host(64), device.create_stream()
    buffer = device.allocate(64)
    emulator.faults.fail_call("aclrtFree", 507899)
    with pytest.raises(AclError, match="aclrtFree"):
        device.close()
    assert all(owner.closed for owner in (host, stream, buffer, device))
    assert live(emulator)["device_allocations"] == 1
    library.aclrtFree(DevicePtr(buffer._address))
    runtime.close()


def test_device_closes_from_another_thread(library: Library) -> None:
    runtime = Runtime.open(library)
    device = Device.open(runtime, 0)
    stream = device.create_stream()
    buffer = device.allocate(8)
    thread = threading.Thread(target=device.close)
    thread.start()
    thread.join()
    assert buffer.closed
    assert stream.closed
    runtime.close()


def test_nothing_is_allocated_without_bytes(device: Device, emulator: Emulator) -> None:
    for make in (device.allocate, device.allocate_host):
        for size in (0, -1):
            with pytest.raises(InvalidArgument, match="the least is 1"):
                make(size)
    assert emulator.counters.calls["aclrtMalloc"] == emulator.counters.calls["aclrtMallocHost"] == 0


def test_failed_creation_leaves_no_owner(device: Device, emulator: Emulator) -> None:
    emulator.faults.fail_call("aclrtMalloc", 207001)
    with pytest.raises(AclError) as caught:
        device.allocate(10)
    assert caught.value.code == 207001
    emulator.faults.fail_call("aclmdlAddDatasetBuffer", 100000, call=2)
    with pytest.raises(AclError):
        Dataset.create(device.library, [(4096, 16)] * 3)
