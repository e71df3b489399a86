"""What a contract test speaks to, and how it says that a call fails."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import pytest

from aclserve_server.acl.errors import AclError
from aclserve_server.acl.library import Library
from aclserve_server.emulator import Emulator
from contract.driving import Driver


@dataclass
class Subject:
    """What a contract test speaks to."""

    library: Library
    emulator: Emulator | None
    release: tuple[int, int]

    def start(self) -> Driver:
        """Initialise and set device 0 in this thread."""
        with suppress(AclError):
            self.library.aclInit(None)
        self.library.aclrtSetDevice(0)
        return Driver(self.library)

    def only_emulated(self) -> Emulator:
        """The emulator, for what hardware cannot be brought to do."""
        if self.emulator is None:
            pytest.skip("only the emulated device can be held, made to fail, or given another machine")
        return self.emulator


@contextmanager
def fails(*codes: int) -> Iterator[None]:
    """The call in this block must give one of these status codes."""
    with pytest.raises(AclError) as caught:
        yield
    assert caught.value.code in codes, str(caught.value)


def in_thread(function: Callable[[], None]) -> None:
    """Run in a thread of its own, which has no context, and raise what it raised."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            function()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if raised:
        raise raised[0]
