"""Contract sections 2 to 5: initialisation, error text, devices, contexts and threads."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from ctypes import byref, c_int32, c_uint32, c_uint64
from pathlib import Path

import pytest

from aclserve_server.acl import types as acl
from aclserve_server.acl.library import Library
from contract.driving import Driver
from contract.subject import Subject, fails, in_thread

Make = Callable[..., Subject]


def test_finalize_reference_counts(make_subject: Make) -> None:
    """2.2, 2.5: from 8.5 every aclInit counts, and so does every aclFinalizeReference."""
    library = make_subject(profile="8.5").library
    count = c_uint64(9)
    with fails(100037):
        library.aclFinalizeReference(byref(count))
    library.aclInit(None)
    for _ in range(2):
        with fails(100002):
            library.aclInit(None)
    library.aclFinalizeReference(byref(count))
    assert count.value == 2
    library.aclFinalizeReference(None)
    library.aclFinalizeReference(byref(count))
    assert count.value == 0
    with fails(100037):
        library.aclFinalizeReference(byref(count))


def test_finalize_ignores_the_count(make_subject: Make) -> None:
    """2.4"""
    library = make_subject(profile="8.5").library
    library.aclInit(None)
    with fails(100002):
        library.aclInit(None)
    library.aclFinalize()
    with fails(100037):
        library.aclFinalize()


def test_finalize_before_init_succeeds(make_subject: Make) -> None:
    """2.4, read in source"""
    make_subject(profile="8.1").library.aclFinalize()


def test_configuration_file(make_subject: Make, tmp_path: Path) -> None:
    """2.1, 2.12: nesting at most ten deep; a default device makes threads without a device work."""
    library = make_subject(profile="8.5").library
    config = tmp_path / "acl.json"
    for text, code in (("{", 100006), ('{"a":' * 11 + "{}" + "}" * 11, 100006)):
        config.write_text(text)
        with fails(code):
            library.aclInit(str(config).encode())
    with fails(100003):
        library.aclInit(str(tmp_path / "none.json").encode())
    config.write_text('{"defaultDevice": {"default_device": "0"}}')
    library.aclInit(str(config).encode())
    number = c_int32(9)
    in_thread(lambda: library.aclrtGetDevice(byref(number)))
    assert number.value == 0


def test_init_callbacks(make_subject: Make) -> None:
    """2.13: a callback registered after aclInit runs at once."""
    library = make_subject(profile="9.1").library
    seen: list[tuple[str, object]] = []

    def on_init(text: bytes, size: int, user_data: int | None) -> int:
        seen.append(("init", user_data))
        return 0

    def on_finalize(user_data: int | None) -> int:
        seen.append(("finalize", user_data))
        return 0

    init, finalize = acl.aclInitCallbackFunc(on_init), acl.aclFinalizeCallbackFunc(on_finalize)
    library.aclInitCallbackRegister(0, init, 1)
    assert seen == []
    library.aclInit(None)
    library.aclInitCallbackRegister(1, init, 2)
    library.aclFinalizeCallbackRegister(0, finalize, 3)
    library.aclFinalize()
    assert seen == [("init", 1), ("init", 2), ("finalize", 3)]
    library.aclInitCallbackUnRegister(1, init)
    with fails(100000):
        library.aclInitCallbackUnRegister(1, init)
    library.aclFinalizeCallbackUnRegister(0, finalize)


def test_error_text_is_per_thread_and_read_once(library: Library) -> None:
    """3.1"""
    assert library.raw("aclrtFree")(None) == 100000
    in_thread(lambda: _assert_no_text(library))
    text = library.aclGetRecentErrMsg()
    assert text is not None
    assert "NULL" in text
    _assert_no_text(library)


def _assert_no_text(library: Library) -> None:
    assert library.aclGetRecentErrMsg() is None


def test_last_error(library: Library) -> None:
    """3.2: Peek keeps the last code of the thread, Get clears it."""
    assert library.raw("aclrtFree")(None) == 100000
    peek, get = library.raw("aclrtPeekAtLastError"), library.raw("aclrtGetLastError")
    assert [peek(0), get(0), get(0)] == [100000, 100000, 0]
    assert get(1) == 100000  # only the thread level is legal


def test_versions(make_subject: Make) -> None:
    """1.7"""
    for profile, api, number in (("8.1", (1, 13), 80100000), ("8.5", (1, 16), 80500000), ("9.1", (1, 17), 90100000)):
        library = make_subject(profile=profile).library
        major, minor, patch = c_int32(), c_int32(), c_int32()
        library.aclrtGetVersion(byref(major), byref(minor), byref(patch))
        assert (major.value, minor.value) == api
        text = ctypes.create_string_buffer(128)
        library.aclsysGetVersionStr(b"runtime", text)
        assert text.value.decode().startswith(profile)
        found = c_int32()
        library.aclsysGetVersionNum(b"runtime", byref(found))
        assert found.value == number
        package = acl.aclCANNPackageVersion()
        library.aclsysGetCANNVersion(0, byref(package))
        assert package.version.decode().startswith(profile)


def test_calls_that_need_no_device(subject: Subject) -> None:
    """4.7"""
    library = subject.library
    count, mode = c_uint32(), c_uint32()
    library.aclrtGetDeviceCount(byref(count))
    library.aclrtGetRunMode(byref(mode))
    assert count.value >= 1
    assert library.aclrtGetSocName().startswith("Ascend")
    assert library.aclDataTypeSize(acl.aclDataType.ACL_BF16) == 2
    assert library.aclFloat16ToFloat(library.aclFloatToFloat16(1.5)) == 1.5
    buffer = library.aclCreateDataBuffer(None, 0)
    library.aclDestroyDataBuffer(buffer)


def test_set_device_counts(subject: Subject) -> None:
    """4.2, 4.4: each SetDevice is matched by one ResetDevice; all threads share the default context."""
    driver = subject.start()
    library, context = driver.library, driver.context()
    library.aclrtSetDevice(0)
    found: list[int | None] = []

    def other() -> None:
        library.aclrtSetDevice(0)
        found.append(driver.context().value)
        library.aclrtResetDevice(0)

    in_thread(other)
    assert found == [context.value]
    library.aclrtResetDevice(0)
    driver.malloc(64)
    library.aclrtResetDevice(0)
    with fails(107002):
        driver.malloc(64)
    with fails(507007):
        library.aclrtResetDevice(0)


def test_reset_force(subject: Subject) -> None:
    """4.5: releases whatever the count is; a second one, and an ordinary reset after it, are errors."""
    driver = subject.start()
    library = driver.library
    library.aclrtSetDevice(0)
    library.aclrtResetDeviceForce(0)
    for call in (library.aclrtResetDeviceForce, library.aclrtResetDevice):
        with fails(507007):
            call(0)


def test_contexts_are_per_thread(driver: Driver) -> None:
    """5.1, 5.4, 5.5, 5.6"""
    library, home = driver.library, driver.context()
    made = acl.Context()
    library.aclrtCreateContext(byref(made), 0)
    assert driver.context().value == made.value != home.value

    def worker() -> None:
        with fails(107002):
            driver.malloc(64)
        library.aclrtSetCurrentContext(made)
        library.aclrtFree(driver.malloc(64))

    in_thread(worker)
    with fails(107002):
        library.aclrtDestroyContext(home)  # the default context cannot be destroyed
    library.aclrtDestroyContext(made)
    with fails(107002):
        driver.malloc(64)
    library.aclrtSetCurrentContext(home)


def test_a_new_thread_never_inherits(driver: Driver) -> None:
    """5.1: also not from a dead thread whose id it got."""
    seen = set()
    for _ in range(50):

        def worker() -> None:
            seen.add(threading.get_ident())
            with fails(107002):
                driver.malloc(64)
            driver.library.aclrtSetDevice(0)

        in_thread(worker)
    assert len(seen) < 50  # ids were reused, or this test shows nothing


def test_utilization(driver: Driver) -> None:
    """4.10"""
    info = acl.aclrtUtilizationInfo()
    driver.library.aclrtGetDeviceUtilizationRate(0, byref(info))
    assert info.memoryUtilization == -1
    info.utilizationExtend = 1
    with fails(100000):
        driver.library.aclrtGetDeviceUtilizationRate(0, byref(info))


def test_peers(make_subject: Make) -> None:
    """4.12, 10.9"""
    driver = make_subject(device_count=2).start()
    library = driver.library
    here = driver.malloc(64)
    library.aclrtSetDevice(1)
    there = driver.malloc(64)
    can, state = c_int32(), c_int32(9)
    library.aclrtDeviceCanAccessPeer(byref(can), 1, 0)
    assert can.value == 1
    with fails(107000):
        library.aclrtMemcpy(there, 64, here, 64, 3)
    library.aclrtDeviceEnablePeerAccess(0, 0)
    library.aclrtDevicePeerAccessStatus(1, 0, byref(state))
    assert state.value == 1
    library.aclrtMemcpy(there, 64, here, 64, 3)
    library.aclrtDeviceDisablePeerAccess(0)
    with fails(107000):
        library.aclrtMemcpy(there, 64, here, 64, 3)


@pytest.mark.parametrize("attribute", [acl.aclrtDevAttr.ACL_DEV_ATTR_TOTAL_GLOBAL_MEM_SIZE])
def test_device_facts(driver: Driver, attribute: int) -> None:
    value = ctypes.c_int64()
    driver.library.aclrtGetDeviceInfo(0, attribute, byref(value))
    assert value.value > 0
    with fails(100000):
        driver.library.aclrtGetDeviceInfo(0, 99999, byref(value))
