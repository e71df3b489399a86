"""The other side of the probe library: what arrived in C, and what it shall answer. Imports nothing of aclserve."""

from __future__ import annotations

import ctypes
from pathlib import Path

MAX_ARGUMENTS = 20
TEXT_BYTES = 64


class _Argument(ctypes.Structure):
    _fields_ = (
        ("bits", ctypes.c_uint64),
        ("length", ctypes.c_uint64),
        ("digest", ctypes.c_uint64),
        ("text", ctypes.c_char * TEXT_BYTES),
    )


class _Call(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_char_p),
        ("thread", ctypes.c_uint64),
        ("count", ctypes.c_uint64),
        ("arguments", _Argument * MAX_ARGUMENTS),
    )


class Request(ctypes.Structure):
    """A call of a callback from a C thread: `pointer` is what its pointer parameters get."""

    _fields_ = (("pointer", ctypes.c_uint64), ("result", ctypes.c_uint64), ("thread", ctypes.c_uint64))


class Probe:
    """The helpers of one built library: what arrived, and what to answer."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._c = ctypes.CDLL(str(path))
        self._c.probe_call.restype = ctypes.POINTER(_Call)
        self._c.probe_call.argtypes = (ctypes.c_uint64,)
        self._c.probe_call_count.restype = self._c.probe_call_size.restype = ctypes.c_uint64
        self._c.probe_digest.restype = self._c.probe_field.restype = ctypes.c_uint64
        self._c.probe_digest.argtypes = (ctypes.c_void_p, ctypes.c_uint64)
        self._c.probe_field.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_void_p)
        self._c.probe_program.argtypes = (ctypes.c_char_p, ctypes.c_uint64, ctypes.c_double)
        if self._c.probe_call_size() != ctypes.sizeof(_Call):
            raise RuntimeError("the probe's record does not fit its reader")

    def reset(self) -> None:
        """Forget all calls and all programmed results."""
        self._c.probe_reset()

    @property
    def calls(self) -> list[_Call]:
        """The calls since the last reset, oldest first (at most 256)."""
        return [self._c.probe_call(position).contents for position in range(self._c.probe_call_count())]

    def names(self) -> list[str]:
        return [call.name.decode() for call in self.calls]

    def program(self, name: str, bits: int = 0, real: float = 0.0) -> None:
        """What the function returns from now on: `real` if its result is a float, else `bits` in its result type."""
        if not self._c.probe_program(name.encode(), bits & (1 << 64) - 1, real):
            raise KeyError(name)

    def digest(self, block: bytes) -> int:
        return int(self._c.probe_digest(block, len(block)))

    def field(self, structure: str, field: str, address: int) -> int:
        """The bits of a struct's field, read by C by its name (the last element of an array)."""
        return int(self._c.probe_field(structure.encode(), field.encode(), address))

    def fire(self, callback: str, request: Request) -> None:
        """Call the last callback of this type from a thread that C makes, and wait for the thread's end."""
        if self._c[f"probe_fire_{callback}"](ctypes.byref(request)):
            raise RuntimeError(f"no {callback} was given to the probe")
