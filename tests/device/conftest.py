"""An emulated device in both run modes; every test must leave nothing behind."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from aclserve_server.acl.library import Library
from aclserve_server.device.device import Device
from aclserve_server.device.runtime import Runtime
from aclserve_server.emulator import Emulator
from aclserve_server.emulator.config import EmulatorConfig
from device.helpers import live

KINDS = ("report", "model", "buffer", "event", "stream")


@pytest.fixture(params=["device", "host"])
def emulator(request: pytest.FixtureRequest) -> Iterator[Emulator]:
    """The emulated device; afterwards nothing is live in it and none of its entry points failed."""
    emulator = Emulator(EmulatorConfig(run_mode=request.param, memory_bytes=64 << 20))
    yield emulator
    gc.collect()
    left, errors = live(emulator), list(emulator.errors)
    emulator.close()
    assert not errors, errors
    assert not left


@pytest.fixture
def library(emulator: Emulator) -> Library:
    return Library.from_addresses("emulator", emulator.addresses())


@pytest.fixture
def runtime(library: Library) -> Iterator[Runtime]:
    with Runtime.open(library) as runtime:
        yield runtime


@pytest.fixture
def device(runtime: Runtime) -> Iterator[Device]:
    """Device 0, bound to the test's thread; the test must have closed all it made."""
    with Device.open(runtime, 0) as device:
        yield device
        left = [child for kind in KINDS for child in device.children.of(kind)]
        assert not left
