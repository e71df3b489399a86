"""What reaches C: every function of the table is called through the driver, and the probe tells what arrived.

The probe was compiled from facts.json alone and is opened on the normal loading path. The values are chosen so that a
wrong width, sign, order or indirection of any argument shows: sizes above 2^32, negative integers, fractions, distinct
addresses.
"""

from __future__ import annotations

import ctypes
import json
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from aclserve_server.acl import types
from aclserve_server.acl.abi import PROTOTYPES, Check
from aclserve_server.acl.library import Library

FACTS: dict[str, Any] = json.loads(Path(__file__).with_name("facts.json").read_text(encoding="utf-8"))
FUNCTIONS: dict[str, dict[str, Any]] = {row["name"]: row for row in FACTS["functions"]}
CALLBACKS = {name: getattr(types, name) for name in FACTS["callbacks"]}

U64 = (1 << 64) - 1


@dataclass
class Sent:
    """One argument as given to the driver, and what C must see of it."""

    value: Any
    bits: int
    text: bytes = b""
    block: bytes | None = None
    written: bytes | None = None
    memory: Any = field(default=None, repr=False)


def integer(position: int, size: int, signed: bool) -> int:
    """A value that needs all its bytes: above 2^32 in 64 bits, negative where there is a sign."""
    top = {1: 0xC0, 2: 0xC1A0, 4: 0xC1A2_0F00, 8: 0x0000_7C1A_20F0_0000}[size] + position
    return top - (1 << 8 * size) if signed and size < 8 else -top if signed else top


def send(kind: str, name: str, way: str, position: int, declared: Any, probes: ModuleType) -> Sent:
    """A distinctive argument of this C type for this row of the table."""
    base = FACTS["aliases"].get(kind, kind)
    address = 0x7F00_0000_1000 + 0x1_0000_0040 * position
    if kind in CALLBACKS:
        callback = declared(lambda *_: 0 if FACTS["callbacks"][kind]["result"] == "aclError" else None)
        return Sent(callback, ctypes.cast(callback, ctypes.c_void_p).value or 0, memory=callback)
    if kind in FACTS["enums"]:
        member = list(getattr(types, kind))[-1 if position % 2 else 0]
        return Sent(member, int(member) & U64)
    if kind.removeprefix("const ") == "char *":
        return send_text(name, way, kind.startswith("const"))
    size = probes.pointed_size(kind, FACTS)
    if size:
        return send_block(kind, way, position, size, declared, probes)
    if "*" in base:
        return Sent(declared(address), address)
    if base == "float":
        real = -1.5 - position / 4
        return Sent(real, struct.unpack("Q", struct.pack("d", real))[0])
    signed = base == "int" or base.startswith("int")
    number = integer(position, probes.value_size(base, FACTS), signed)
    return Sent(number, number & U64)


def send_text(name: str, way: str, constant: bool) -> Sent:
    if constant:
        text = f"text of {name} \N{LATIN SMALL LETTER E WITH ACUTE}".encode()
        return Sent(text, 0, text=text)
    memory = ctypes.create_string_buffer(f"text of {name}".encode(), 128)
    written = f"written by {name}".encode() if way == "out" else None
    return Sent(memory, ctypes.addressof(memory), memory=memory, text=b"" if written else memory.value, written=written)


def send_block(kind: str, way: str, position: int, size: int, declared: Any, probes: ModuleType) -> Sent:
    """Memory of the size the facts say, with room behind it, given as the pointer type the table says."""
    content = bytes((position * 17 + i * 3) & 0xFF for i in range(size))
    memory = ctypes.create_string_buffer(content, size + 4096)
    written = probes.pattern(position, size) if probes.writes(kind, way) else None
    pointer = ctypes.cast(memory, declared)
    return Sent(pointer, ctypes.addressof(memory), block=content, written=written, memory=memory)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_argument_arrives(name: str, library: Library, probe: Any, probes: ModuleType) -> None:
    params = [param for param in FUNCTIONS[name]["params"] if param[0] != "..."]
    declared = PROTOTYPES[name].arguments
    sent = [send(*param, position, declared[position], probes) for position, param in enumerate(params)]
    library.raw(name)(*(each.value for each in sent))

    assert probe.names() == [name]
    call = probe.calls[0]
    assert call.thread == threading.get_ident()
    assert call.count == len(sent)
    for each, arrived in zip(sent, call.arguments, strict=False):
        if each.bits or not each.text:
            assert arrived.bits == each.bits
        assert arrived.text == each.text
        if each.block is not None:
            assert (arrived.length, arrived.digest) == (len(each.block), probe.digest(each.block))
        if each.written is not None:
            assert each.memory.raw[: len(each.written)] == each.written
        elif each.block is not None:
            assert each.memory.raw[: len(each.block)] == each.block


@pytest.mark.parametrize("name", [name for name, row in FUNCTIONS.items() if row["params"]])
def test_null_pointers_arrive_as_null(name: str, library: Library, probe: Any, probes: ModuleType) -> None:
    values = []
    for (kind, _, way), declared in zip(FUNCTIONS[name]["params"], PROTOTYPES[name].arguments, strict=False):
        if kind == "char *" and way == "out":
            values.append(ctypes.create_string_buffer(64))
        elif kind in CALLBACKS:
            values.append(declared())
        elif probes.is_address(kind, FACTS):
            values.append(None)
        else:
            values.append(0)
    if name == "aclAppLog":
        values[-1] = b"the format is always a text"
    library.raw(name)(*values)
    arrived = [each.bits for each in probe.calls[0].arguments[: len(values)]]
    assert arrived == [each if isinstance(each, int) else _address(each) for each in values] or name == "aclAppLog"


def _address(value: Any) -> int:
    return ctypes.addressof(value) if isinstance(value, ctypes.Array) else 0


def test_variadic_arguments_follow_the_fixed_ones(library: Library, probe: Any) -> None:
    library.aclAppLog(types.aclLogLevel.ACL_ERROR, b"function", b"file", 7, b"%d", ctypes.c_int(-12345))
    assert probe.calls[0].arguments[5].bits == -12345 & U64


RESULTS: dict[str, tuple[int, Any]] = {
    "size_t": (0x1_2345_6789_ABCD, 0x1_2345_6789_ABCD),
    "uint32_t": (0xFFFF_0000_8765_4321, 0x8765_4321),
    "int64_t": (-5_000_000_000, -5_000_000_000),
    "aclFloat16": (0xFFFF_3C01, 0x3C01),
    "aclDataType": (-1, -1),
    "aclFormat": (-1, -1),
    "void *": (0x7F12_3456_7890, 0x7F12_3456_7890),
}


@pytest.mark.parametrize("name", [name for name, row in FUNCTIONS.items() if row["result"] not in ("void", "aclError")])
def test_every_plain_result_comes_back(name: str, library: Library, probe: Any) -> None:
    kind, prototype = FUNCTIONS[name]["result"], PROTOTYPES[name]
    text = ctypes.create_string_buffer("owned by C: \N{LATIN SMALL LETTER E WITH ACUTE}".encode())
    arguments = [_nothing(each) for each in prototype.arguments]
    if kind == "float":
        probe.program(name, real=-0.625)
        assert getattr(library, name)(*arguments) == -0.625
    elif kind == "const char *":
        assert getattr(library, name)(*arguments) is None
        probe.program(name, ctypes.addressof(text))
        assert getattr(library, name)(*arguments) == text.value.decode()
        assert library.raw(name)(*arguments) == ctypes.addressof(text)
    elif kind.endswith("*") and kind != "void *":
        probe.program(name, 0x7F12_3456_7890)
        result = getattr(library, name)(*arguments)
        assert type(result) is prototype.result
        assert result.value == 0x7F12_3456_7890
    else:
        bits, expected = RESULTS[kind]
        probe.program(name, bits)
        assert getattr(library, name)(*arguments) == expected


def _nothing(declared: Any) -> Any:
    """Zero or NULL for an argument."""
    if isinstance(declared, type) and issubclass(declared, ctypes._CFuncPtr):
        return declared()
    pointer = declared in (ctypes.c_void_p, ctypes.c_char_p) or issubclass(declared, ctypes.c_void_p | ctypes._Pointer)
    return None if pointer else 0


@pytest.mark.parametrize("name", FACTS["structs"])
def test_fields_set_by_name_are_read_by_name_in_c(name: str, probe: Any) -> None:
    ours = getattr(types, name)
    for position, (key, kind, dims, _, _) in enumerate(FACTS["structs"][name]["fields"]):
        if kind in FACTS["structs"]:
            continue
        instance = ours()
        expected = _set_last(instance, key, dims, kind, position)
        assert probe.field(name, key, ctypes.addressof(instance)) == expected, key


def _set_last(instance: Any, key: str, dims: list[int], kind: str, position: int) -> int:
    """Set the field (the last element of an array) to a distinctive value; returns the bits C must see."""
    if kind == "float":
        setattr(instance, key, 2.5 + position)
        return int(struct.unpack("Q", struct.pack("d", 2.5 + position))[0])
    if kind == "char":
        setattr(instance, key, b"A" * (dims[0] - 1) + b"Z")  # full, so that the last element counts
        return ord("Z")
    if kind.endswith("*"):
        declared = dict(instance._fields_)[key]
        setattr(instance, key, ctypes.cast(0x7F00_1234_5678, declared))
        return 0x7F00_1234_5678
    sizes = {
        "int8_t": 1,
        "uint8_t": 1,
        "uint16_t": 2,
        "int32_t": 4,
        "uint32_t": 4,
        "int64_t": 8,
        "uint64_t": 8,
        "size_t": 8,
    }
    if kind in FACTS["enums"]:
        number = next(iter(FACTS["enums"][kind]["members"].values()))
    else:
        number = integer(position, sizes[kind], kind.startswith("int"))
    holder: Any = instance
    for size in dims[:-1]:
        holder, key = getattr(holder, key) if isinstance(key, str) else holder[key], size - 1
    if dims:
        array = getattr(holder, key) if isinstance(key, str) else holder[key]
        array[dims[-1] - 1] = number
    else:
        setattr(instance, key, number)
    return number & U64


def _setters(library: Library) -> dict[str, Callable[[Any], Any]]:
    return {
        "aclrtCallback": lambda fn: library.aclrtLaunchCallback(fn, None, 0, types.Stream(1)),
        "aclrtExceptionInfoCallback": lambda fn: library.aclrtSetExceptionInfoCallback(fn),
        "aclrtHostFunc": lambda fn: library.aclrtLaunchHostFunc(types.Stream(1), fn, None),
        "aclInitCallbackFunc": lambda fn: library.aclInitCallbackRegister(0, fn, None),
        "aclFinalizeCallbackFunc": lambda fn: library.aclFinalizeCallbackRegister(0, fn, None),
    }


@pytest.mark.parametrize("name", CALLBACKS)
def test_callbacks_are_called_from_a_c_thread(name: str, library: Library, probe: Any, recorder: ModuleType) -> None:
    received: list[tuple[int, Any]] = []

    def callback(*arguments: Any) -> int | None:
        received.append((threading.get_ident(), arguments))
        return -4321 if FACTS["callbacks"][name]["result"] == "aclError" else None

    function = CALLBACKS[name](callback)
    _setters(library)[name](function)
    request = recorder.Request(pointer=0x7F55_0000_1234)
    probe.fire(name, request)
    expected: list[Any] = []
    for kind, _ in FACTS["callbacks"][name]["params"]:
        if kind == "const char *":
            expected.append(b"text from C")
        else:
            expected.append(0x2_0000_0005 if kind == "size_t" else 0x7F55_0000_1234)
    [(thread, arguments)] = received
    assert thread == request.thread != threading.get_ident()
    assert [getattr(each, "value", each) for each in arguments] == expected
    if FACTS["callbacks"][name]["result"] == "aclError":
        assert request.result == -4321 & U64


def test_exception_info_reaches_its_getters(library: Library, probe: Any, recorder: ModuleType) -> None:
    """Inside the callback the info is a handle that the getters take as it came."""
    told: list[int] = []

    def callback(info: types.ExceptionInfo) -> None:
        told.append(library.aclrtGetStreamIdFromExceptionInfo(info))

    function = types.aclrtExceptionInfoCallback(callback)
    library.aclrtSetExceptionInfoCallback(function)
    probe.program("aclrtGetStreamIdFromExceptionInfo", 0xFFFF_FFFF)
    probe.fire("aclrtExceptionInfoCallback", recorder.Request(pointer=0x7F66_0000_0008))
    assert told == [0xFFFF_FFFF]
    assert probe.calls[-1].arguments[0].bits == 0x7F66_0000_0008


def test_calls_leave_the_interpreter_free(library: Library, probe: Any, recorder: ModuleType) -> None:
    """A bound function that waits for a callback in another thread returns: it holds no lock of the interpreter.

    The row of aclrtMemInvalidate is bound to the probe's helper that calls a callback from a C thread and joins it.
    """
    loaded = ctypes.CDLL(library.path)
    addresses = {name: ctypes.cast(loaded[name], ctypes.c_void_p).value or 0 for name in PROTOTYPES}
    addresses["aclrtMemInvalidate"] = ctypes.cast(loaded["probe_fire_aclrtCallback"], ctypes.c_void_p).value or 0
    waiting = Library.from_addresses("probe", addresses)
    request, ran = recorder.Request(), []
    function = types.aclrtCallback(lambda _: ran.append(threading.get_ident()))
    waiting.aclrtLaunchCallback(function, None, 0, types.Stream(1))
    waiting.aclrtMemInvalidate(types.DevicePtr(ctypes.addressof(request)), 0)
    assert ran == [request.thread]


def test_every_kind_of_check_is_used() -> None:
    assert {row.check for row in PROTOTYPES.values()} == set(Check)
