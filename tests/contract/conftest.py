"""The library under contract: the emulated device in both run modes, and real hardware where its library is named.

ACLSERVE_CONTRACT_LIBRARY names the AscendCL library of this machine, ACLSERVE_CONTRACT_MODEL an OM with one static
input and output for it. What only an emulated device can be brought to do is asked of `subject.emulator`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from ctypes import byref, c_uint32
from pathlib import Path
from typing import Any

import pytest

from aclserve_server.acl.errors import AclError
from aclserve_server.acl.library import Library, open_library
from aclserve_server.emulator import Emulator, EmulatorConfig
from contract.driving import Driver
from contract.models import doubled
from contract.subject import Subject

HARDWARE = os.environ.get("ACLSERVE_CONTRACT_LIBRARY")
SUBJECTS = ["emulator-device", "emulator-host", *(["hardware"] if HARDWARE else [])]


@pytest.fixture(params=SUBJECTS)
def where(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def make_subject(where: str) -> Iterator[Callable[..., Subject]]:
    """A subject by emulator options; options other than the profile need the emulator."""
    made: list[Emulator] = []

    def make(**options: Any) -> Subject:
        if where == "hardware":
            if options:
                pytest.skip("needs a machine that only the emulated device can be")
            return Subject(open_library(HARDWARE, os.environ), None, (9, 1))
        options.setdefault("memory_bytes", 64 << 20)
        emulator = Emulator(EmulatorConfig(run_mode=where.removeprefix("emulator-"), **options))
        made.append(emulator)
        return Subject(Library.from_addresses("emulator", emulator.addresses()), emulator, emulator.config.release)

    yield make
    errors = [error for emulator in made for error in emulator.errors]
    for emulator in made:
        emulator.close()
    assert not errors, errors


@pytest.fixture
def subject(make_subject: Callable[..., Subject]) -> Subject:
    return make_subject()


@pytest.fixture
def driver(subject: Subject) -> Iterator[Driver]:
    driver = subject.start()
    yield driver
    with suppress(AclError):
        subject.library.aclrtResetDevice(0)
    with suppress(AclError):
        subject.library.aclFinalize()


@pytest.fixture
def library(driver: Driver) -> Library:
    return driver.library


@pytest.fixture
def model_id(driver: Driver, subject: Subject, tmp_path: Path) -> int:
    """A static model with one input and one output: y = x + x on the emulated device, the named OM on hardware."""
    path = tmp_path / "model.onnx"
    if subject.emulator is None:
        named = os.environ.get("ACLSERVE_CONTRACT_MODEL")
        if not named:
            pytest.skip("ACLSERVE_CONTRACT_MODEL names no OM for this hardware")
        path = Path(named)
    else:
        path.write_bytes(doubled([2, 3]))
    loaded = c_uint32()
    driver.library.aclmdlLoadFromFile(str(path).encode(), byref(loaded))
    return loaded.value
