"""How results are judged: what raises, what the error carries, and what a successful call costs."""

from __future__ import annotations

import copy
import ctypes
import json
import logging
import pickle
import threading
from pathlib import Path
from typing import Any

import pytest

from aclserve_server.acl import types
from aclserve_server.acl.abi import PROTOTYPES, Check
from aclserve_server.acl.codes import Category, lookup
from aclserve_server.acl.errors import AclError, LibraryError, Unsupported
from aclserve_server.acl.library import Library

FACTS: dict[str, Any] = json.loads(Path(__file__).with_name("facts.json").read_text(encoding="utf-8"))
CODES = sorted({value for value, _, category, _ in FACTS["codes"].values() if category != "ok"} - {100039})
BY_CHECK = {check: [name for name, row in PROTOTYPES.items() if row.check is check] for check in Check}
HANDLES = [kind for kind in vars(types).values() if isinstance(kind, type) and issubclass(kind, ctypes.c_void_p)]
HANDLES = [kind for kind in HANDLES if kind not in (ctypes.c_void_p, types.DevicePtr)]


def nothing(name: str) -> list[Any]:
    """Zeros and NULLs for every argument of a function."""
    values: list[Any] = []
    for declared in PROTOTYPES[name].arguments:
        if issubclass(declared, ctypes._CFuncPtr):
            values.append(declared())
        elif issubclass(declared, ctypes.c_void_p | ctypes.c_char_p | ctypes._Pointer):
            values.append(None)
        else:
            values.append(0)
    if name == "aclAppLog":
        values[-1] = b"text"
    if name in ("aclmdlCreateAndGetOpDesc", "aclsysGetVersionStr"):  # the probe writes text through these
        values[3 if name == "aclmdlCreateAndGetOpDesc" else 1] = ctypes.create_string_buffer(64)
    return values


@pytest.mark.parametrize("name", BY_CHECK[Check.STATUS])
def test_a_failing_status_raises(name: str, library: Library, probe: Any) -> None:
    code = CODES[list(PROTOTYPES).index(name) % len(CODES)]
    assert getattr(library, name)(*nothing(name)) == 0
    probe.program(name, code)
    with pytest.raises(AclError) as caught:
        getattr(library, name)(*nothing(name))
    error, row = caught.value, lookup(code)
    assert (error.call, error.code, error.name, error.category) == (name, code, row.name, row.category)
    assert error.text == f"E{code}: {name} refused in thread {threading.get_ident()}"
    for part in (name, str(code), row.name, error.text):
        assert part in str(error)
    assert library.raw(name)(*nothing(name)) == code


def test_every_code_of_the_facts_raises_under_its_name(library: Library, probe: Any) -> None:
    for code in CODES:
        probe.program("aclrtSynchronizeStream", code)
        with pytest.raises(AclError) as caught:
            library.aclrtSynchronizeStream(types.Stream(1))
        assert FACTS["codes"][caught.value.name][0] == caught.value.code == code


def test_an_unknown_and_a_negative_code_raise_too(library: Library, probe: Any) -> None:
    for code in (999999, -1):
        probe.program("aclrtFree", code)
        with pytest.raises(AclError) as caught:
            library.aclrtFree(types.DevicePtr(1))
        assert (caught.value.code, caught.value.name) == (code, f"UNKNOWN_{code}")
        assert caught.value.category is Category.INTERNAL


@pytest.mark.parametrize("name", BY_CHECK[Check.HANDLE])
def test_a_null_handle_raises(name: str, library: Library, probe: Any) -> None:
    with pytest.raises(AclError, match="returned NULL") as caught:
        getattr(library, name)(*nothing(name))
    assert (caught.value.call, caught.value.code) == (name, 500000)
    assert probe.names() == [name, "aclGetRecentErrMsg"]


@pytest.mark.parametrize("name", BY_CHECK[Check.VALUE] + BY_CHECK[Check.UNCHECKED] + BY_CHECK[Check.VOID])
def test_values_and_deliberately_unchecked_results_never_raise(name: str, library: Library, probe: Any) -> None:
    for bits in (0, 107002):
        probe.program(name, bits, float(bits))
        result = getattr(library, name)(*nothing(name))
        if PROTOTYPES[name].check is Check.UNCHECKED:
            assert result == bits
    assert probe.names() == [name, name]


@pytest.mark.parametrize("name", BY_CHECK[Check.STATUS])
def test_a_successful_call_is_one_c_call(name: str, library: Library, probe: Any) -> None:
    getattr(library, name)(*nothing(name))
    assert probe.names() == [name]


def test_plain_values_are_bound_without_a_python_check(library: Library) -> None:
    for check in (Check.VALUE, Check.UNCHECKED, Check.VOID):
        for name in BY_CHECK[check]:
            assert getattr(library, name) is library.raw(name)


def test_the_message_is_read_at_once_in_the_failing_thread(library: Library, probe: Any) -> None:
    """The library keeps messages per thread and a read clears them: each thread must get its own."""
    probe.program("aclrtSynchronizeStream", 507011)
    errors: dict[int, AclError] = {}
    gate = threading.Barrier(4)

    def fail() -> None:
        gate.wait()
        try:
            library.aclrtSynchronizeStream(types.Stream(1))
        except AclError as error:
            errors[threading.get_ident()] = error

    threads = [threading.Thread(target=fail) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(errors) == 4
    for ident, error in errors.items():
        assert error.text.endswith(f"in thread {ident}")
    for ident in errors:
        mine = [call.name for call in probe.calls if call.thread == ident]
        assert mine == [b"aclrtSynchronizeStream", b"aclGetRecentErrMsg"]
    assert library.aclGetRecentErrMsg() is None


def test_the_text_is_a_copy_and_may_be_any_bytes(library: Library, probe: Any) -> None:
    memory = ctypes.create_string_buffer(b"caf\xc3\xa9 \xff", 16)
    probe.program("aclGetRecentErrMsg", ctypes.addressof(memory))
    probe.program("aclrtFree", 107000)
    with pytest.raises(AclError) as caught:
        library.aclrtFree(types.DevicePtr(8))
    memory.value = b"overwritten"
    assert caught.value.text == "caf\N{LATIN SMALL LETTER E WITH ACUTE} \\xff"


def test_a_failure_without_a_message_has_an_empty_text(library: Library, probe: Any) -> None:
    memory = ctypes.create_string_buffer(b"", 4)
    probe.program("aclGetRecentErrMsg", ctypes.addressof(memory))
    probe.program("aclrtFree", 107000)
    with pytest.raises(AclError) as caught:
        library.aclrtFree(types.DevicePtr(8))
    assert caught.value.text == ""
    assert not str(caught.value).endswith("| ")


def test_the_stub_library_is_explained_and_nothing_it_returns_is_read(library: Library, probe: Any) -> None:
    probe.program("aclInit", 100039)
    probe.program("aclGetRecentErrMsg", 100039)  # a stub answers so everywhere; as an address it would crash
    with pytest.raises(AclError) as caught:
        library.aclInit(None)
    assert (caught.value.name, caught.value.text) == ("ACL_ERROR_COMPILING_STUB_MODE", "")
    assert library.path in str(caught.value)
    assert "stub" in caught.value.hint
    assert "LD_LIBRARY_PATH" in caught.value.hint


@pytest.mark.parametrize("name", [name for name, row in PROTOTYPES.items() if set(row.arguments) & set(HANDLES)])
def test_a_handle_of_another_kind_is_refused_before_the_call(name: str, library: Library, probe: Any) -> None:
    for position, declared in enumerate(PROTOTYPES[name].arguments):
        for other in HANDLES if declared in HANDLES else ():
            arguments = nothing(name)
            arguments[position] = other(0x1000)
            probe.reset()
            if other is declared:
                library.raw(name)(*arguments)
                assert probe.names() == [name]
            else:
                with pytest.raises(ctypes.ArgumentError):
                    library.raw(name)(*arguments)
                assert probe.names() == []


def test_a_stream_is_refused_where_a_dataset_is_due(library: Library) -> None:
    with pytest.raises(ctypes.ArgumentError, match="argument 2"):
        library.aclmdlExecute(1, types.Stream(0x10), types.Dataset(0x20))
    with pytest.raises(ctypes.ArgumentError):
        library.aclrtCreateStream(ctypes.byref(types.Event()))


def test_names_outside_the_table_are_attribute_errors(library: Library) -> None:
    with pytest.raises(AttributeError, match="aclrtNoSuchThing"):
        _ = library.aclrtNoSuchThing
    with pytest.raises(KeyError):
        library.raw("aclrtNoSuchThing")
    assert not library.has("aclrtNoSuchThing")
    assert library.has("aclrtMalloc")


def _addresses(library: Library) -> dict[str, int]:
    loaded = ctypes.CDLL(library.path)
    return {name: ctypes.cast(loaded[name], ctypes.c_void_p).value or 0 for name in PROTOTYPES}


def test_binding_from_addresses_is_the_same_binding(library: Library, probe: Any) -> None:
    """The way the emulator is bound: from addresses alone."""
    bound = Library.from_addresses("emulator", _addresses(library))
    assert bound.path == "emulator"
    assert not bound.missing
    size = 0x1_0000_0001
    pointer = types.DevicePtr()
    bound.aclrtMalloc(ctypes.byref(pointer), size, types.aclrtMemMallocPolicy.ACL_MEM_MALLOC_HUGE_FIRST)
    assert probe.calls[0].arguments[1].bits == size
    probe.program("aclrtMalloc", 207001)
    with pytest.raises(AclError) as caught:
        bound.aclrtMalloc(ctypes.byref(pointer), size, 0)
    assert caught.value.category is Category.RESOURCE


def test_absent_optional_functions_are_refused_when_called(library: Library, probe: Any) -> None:
    gone = {"aclrtGetMemUsageInfo": "first in 8.5.0", "aclrtCreateStreamWithConfig": "first in 6.2 or 6.3"}
    bound = Library.from_addresses("old", {k: v for k, v in _addresses(library).items() if k not in gone})
    assert bound.missing == set(gone)
    for name, words in gone.items():
        assert not bound.has(name)
        for function in (getattr(bound, name), bound.raw(name)):
            with pytest.raises(Unsupported) as caught:
                function(1, 2, 3)
            assert str(caught.value) == f"this CANN has no {name} ({words})"
            assert isinstance(caught.value, AclError)
            assert (caught.value.call, caught.value.name) == (name, "ACL_ERROR_API_NOT_SUPPORT")
    assert probe.names() == []


def test_a_zero_address_counts_as_missing(library: Library) -> None:
    with pytest.raises(LibraryError, match="aclrtMalloc "):
        Library.from_addresses("broken", _addresses(library) | {"aclrtMalloc": 0})


def test_errors_survive_copy_and_pickle() -> None:
    for error in (AclError("aclrtFree", 107000, "text", "hint"), Unsupported("aclrtGetMemUsageInfo", "8.5.0")):
        for twin in (copy.copy(error), pickle.loads(pickle.dumps(error))):
            assert type(twin) is type(error)
            assert str(twin) == str(error)
            assert (twin.call, twin.code, twin.text) == (error.call, error.code, error.text)


@pytest.fixture
def tracing(library: Library, caplog: pytest.LogCaptureFixture) -> Any:
    caplog.set_level(logging.DEBUG, "aclserve_server.acl.library")
    library.set_trace(True)
    yield caplog
    library.set_trace(False)


def test_trace_is_off_unless_asked_for(library: Library, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "aclserve_server.acl.library")
    library.aclrtSetDevice(3)
    assert caplog.messages == []


def test_trace_names_call_arguments_result_and_time(library: Library, probe: Any, tracing: Any) -> None:
    stream, model_id = types.Stream(), ctypes.c_uint32()
    library.aclrtSetDevice(3)
    library.aclrtCreateStream(ctypes.byref(stream))
    library.aclrtMemcpy(ctypes.c_void_p(16), 64, b"secret", 6, types.aclrtMemcpyKind.ACL_MEMCPY_HOST_TO_DEVICE)
    library.aclmdlLoadFromFile(b"model.om", ctypes.byref(model_id))
    library.raw("aclrtProcessReport")(100)
    probe.program("aclrtFree", 107000)
    with pytest.raises(AclError):
        library.aclrtFree(types.DevicePtr(0x40))
    shown = [message.rpartition(" [")[0] for message in tracing.messages]
    assert all(message.endswith(" us]") for message in tracing.messages)
    assert shown == [
        "aclrtSetDevice(3) = 0",
        f"aclrtCreateStream(&Stream({stream.value:#x})) = 0",
        "aclrtMemcpy(c_void_p(0x10), 64, <6 bytes>, 6, ACL_MEMCPY_HOST_TO_DEVICE) = 0",
        f"aclmdlLoadFromFile(b'model.om', &{model_id.value}) = 0",
        "aclrtProcessReport(100) = 0",
        "aclrtFree(DevicePtr(0x40)) = failed 107000",
    ]
    library.set_trace(False)
    tracing.clear()
    library.aclrtSetDevice(3)
    assert tracing.messages == []
