"""An emulated device in both run modes, and the driver's table over it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from aclserve_server.acl.library import Library
from aclserve_server.emulator import Emulator, EmulatorConfig
from contract.driving import Driver

Factory = Callable[..., Emulator]


@pytest.fixture
def make_emulator() -> Iterator[Factory]:
    """Emulators by configuration; afterwards none of their entry points may have failed inside."""
    made: list[Emulator] = []

    def make(**options: Any) -> Emulator:
        options.setdefault("memory_bytes", 256 << 20)
        made.append(Emulator(EmulatorConfig(**options)))
        return made[-1]

    yield make
    errors = [error for emulator in made for error in emulator.errors]
    for emulator in made:
        emulator.release()
        emulator.close()
    assert not errors, errors


@pytest.fixture(params=["device", "host"])
def emulator(request: pytest.FixtureRequest, make_emulator: Factory) -> Emulator:
    return make_emulator(run_mode=request.param)


@pytest.fixture
def library(emulator: Emulator) -> Library:
    return bind(emulator)


@pytest.fixture
def driver(library: Library) -> Driver:
    """The library, initialised, with device 0 current in the test's thread."""
    return start(library)


def bind(emulator: Emulator) -> Library:
    return Library.from_addresses("emulator", emulator.addresses())


def start(library: Library) -> Driver:
    library.aclInit(None)
    library.aclrtSetDevice(0)
    return Driver(library)
