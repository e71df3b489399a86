"""What the groups of C functions share: the machine they work on, and writing through out-pointers.

A group is a class whose methods have the names of C functions. A method gets plain values: numbers, bytes,
typed pointers, and for every handle or function pointer its address or None. It returns nothing for success, or
raises Failure; functions that do not return a status return their value.
"""

from __future__ import annotations

from typing import Any

from aclserve_server.emulator import status
from aclserve_server.emulator.faults import Failure
from aclserve_server.emulator.machine import Machine


class Calls:
    """A group of C functions."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.runtime = machine.runtime
        self.memory = machine.memory
        self.config = machine.config


def need(pointer: Any, what: str) -> None:
    """100000 for a null out-pointer, handle or argument."""
    if not pointer:
        raise Failure(status.INVALID_PARAM, f"{what} is NULL")


def refuse(text: str) -> Failure:
    """The ACL layer's answer to a bad argument."""
    return Failure(status.INVALID_PARAM, text)


def unsupported(function: str) -> Failure:
    """The answer of a chip or build without a feature."""
    return Failure(status.RT_FEATURE_NOT_SUPPORT, f"{function} is not supported by the emulated device")


def check_timeout(timeout_ms: int, *, zero_allowed: bool) -> None:
    """107000 for a timeout below -1, or of 0 where that is none."""
    if timeout_ms < -1 or (timeout_ms == 0 and not zero_allowed):
        raise Failure(status.RT_PARAM_INVALID, f"timeout is {timeout_ms} ms, expected -1 or more than 0")
