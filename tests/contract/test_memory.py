"""Contract sections 8 to 10: device memory, host memory, copy and set."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Callable
from ctypes import byref, c_size_t, c_void_p

import pytest

from aclserve_server.acl import types as acl
from contract.driving import DEVICE_TO_DEVICE, DEVICE_TO_HOST, HOST_TO_DEVICE, Driver
from contract.subject import Subject, fails

Make = Callable[..., Subject]
MB = 1 << 20


def free_bytes(driver: Driver, attribute: int = 0) -> int:
    free, total = c_size_t(), c_size_t()
    driver.library.aclrtGetMemInfo(attribute, byref(free), byref(total))
    assert free.value <= total.value
    return free.value


@pytest.mark.parametrize("policy", [0, 1, 2, 3, 4, 5, 0x100, 0x1000, 77])
def test_every_policy_gives_aligned_memory(driver: Driver, policy: int) -> None:
    """8.3, 8.5: 64-byte aligned; an unknown policy falls back to huge pages first."""
    for size in (1, 31, 4096, 3 * MB):
        address = driver.malloc(size, policy)
        assert address % 64 == 0
        driver.library.aclrtFree(address)


def test_accounting(subject: Subject, driver: Driver) -> None:
    """8.2: ALIGN_UP(size, 32) + 32 bytes are taken; 8.6: huge pages come in 2 MiB."""
    subject.only_emulated()
    before = free_bytes(driver)
    taken = []
    for size, policy in ((1, 2), (32, 2), (33, 2), (100, 0), (MB, 0), (MB + 1, 0), (MB + 1, 2), (10, 1)):
        address = driver.malloc(size, policy)
        taken.append(before - free_bytes(driver))
        driver.library.aclrtFree(address)
    ordinary = MB + 64
    assert taken == [64, 64, 96, 160, MB + 32, 2 * MB, ordinary, 2 * MB]
    pointer = acl.DevicePtr()
    driver.library.aclrtMallocAlign32(byref(pointer), 33, 2)
    assert before - free_bytes(driver) == 64
    driver.library.aclrtFree(pointer)
    assert free_bytes(driver) == before


def test_huge_first_falls_back_to_ordinary_pages(make_subject: Make) -> None:
    """8.5"""
    driver = make_subject(memory_bytes=3 * MB + MB // 2).start()
    driver.malloc(3 * MB // 2, 0)
    assert free_bytes(driver) == 3 * MB // 2
    driver.malloc(5 * MB // 4, 0)
    with fails(207001):
        driver.malloc(64, 1)


def test_free_is_strict(driver: Driver) -> None:
    """8.7, 8.8: no interior, foreign or stale pointer; pinned memory has its own free."""
    library = driver.library
    address, host = driver.malloc(256), driver.malloc_host(256)
    for bad in (address + 64, host, ctypes.addressof(ctypes.create_string_buffer(64))):
        assert library.raw("aclrtFree")(bad) != 0
    for bad in (host + 64, address):
        with fails(107000):
            library.aclrtFreeHost(bad)
    library.aclrtFree(address)
    library.aclrtFreeHost(host)
    assert library.raw("aclrtFree")(address) != 0
    assert library.raw("aclrtFreeHost")(host) != 0


def test_use_after_free_is_seen(driver: Driver) -> None:
    library = driver.library
    address, host = driver.malloc(256), driver.malloc_host(256)
    library.aclrtFree(address)
    assert library.raw("aclrtMemcpy")(address, 64, host, 64, HOST_TO_DEVICE) != 0
    assert library.raw("aclrtMemset")(address, 64, 0, 64) != 0
    library.aclrtFreeHost(host)


def test_bounds(driver: Driver) -> None:
    """10.12: not checked by AscendCL's front layer, so the emulated device checks them."""
    library = driver.library
    address, host = driver.malloc(256), driver.malloc_host(512)
    library.aclrtMemcpy(address + 192, 64, host, 64, HOST_TO_DEVICE)
    for offset, length in ((0, 257), (193, 64), (255, 2)):
        assert library.raw("aclrtMemcpy")(address + offset, length, host, length, HOST_TO_DEVICE) != 0
        assert library.raw("aclrtMemcpy")(host, length, address + offset, length, DEVICE_TO_HOST) != 0
        assert library.raw("aclrtMemset")(address + offset, length, 0, length) != 0
        assert library.raw("aclrtMemcpyAsync")(host, length, address + offset, length, DEVICE_TO_HOST, None) != 0


def test_copies_in_every_direction(subject: Subject, driver: Driver) -> None:
    library = driver.library
    one, two = driver.malloc(64), driver.malloc(64)
    data = bytes(range(64))
    if subject.emulator is not None:
        subject.emulator.counters.reset()
    library.aclrtMemcpy(one, 64, data, 64, HOST_TO_DEVICE)
    library.aclrtMemcpy(two, 64, one, 64, DEVICE_TO_DEVICE)
    assert driver.download(two, 64) == data
    plain = ctypes.create_string_buffer(64)
    library.aclrtMemcpy(plain, 64, data, 64, 0)
    assert plain.raw == data
    library.aclrtMemcpy(two + 8, 56, one, 4, acl.aclrtMemcpyKind.ACL_MEMCPY_DEFAULT)
    assert driver.download(two, 16) == data[:8] + data[:4] + data[12:16]
    if subject.emulator is not None:
        copied = dict(subject.emulator.counters.copied_bytes)
        assert copied == {"host_to_host": 64, "host_to_device": 64, "device_to_host": 80, "device_to_device": 68}


def test_memset(driver: Driver) -> None:
    """10.10"""
    library = driver.library
    address, host = driver.malloc(64), driver.malloc_host(64)
    library.aclrtMemset(address, 64, 0x1FF, 32)
    library.aclrtMemset(address + 32, 32, 0, 32)
    assert driver.download(address, 64) == b"\xff" * 32 + bytes(32)
    library.aclrtMemset(host, 64, 7, 64)
    assert driver.host_bytes(host, 64) == b"\x07" * 64
    library.aclrtMemsetAsync(address, 64, 9, 64, None)
    library.aclrtSynchronizeStream(None)
    assert driver.download(address, 64) == b"\x09" * 64
    foreign = ctypes.create_string_buffer(64)
    assert library.raw("aclrtMemset")(ctypes.addressof(foreign), 64, 0, 64) != 0


def test_rows(driver: Driver) -> None:
    """10.11"""
    library = driver.library
    address, host = driver.malloc(64), driver.malloc_host(64)
    library.aclrtMemset(address, 64, 0, 64)
    ctypes.memmove(host, bytes(range(64)), 64)
    library.aclrtMemcpy2d(address, 16, host, 8, 4, 3, HOST_TO_DEVICE)
    expected = bytearray(64)
    for row in range(3):
        expected[16 * row : 16 * row + 4] = bytes(range(8 * row, 8 * row + 4))
    assert driver.download(address, 64) == bytes(expected)
    library.aclrtMemcpy2dAsync(host, 8, address, 16, 4, 3, DEVICE_TO_HOST, None)
    library.aclrtSynchronizeStream(None)
    assert driver.host_bytes(host, 4) == bytes(range(4))
    for width, height, kind in ((17, 1, 1), (5_000_001, 1, 1), (4, 1, 0), (4, 1, 99)):
        with fails(100000):
            library.aclrtMemcpy2d(address, 16, host, 16, width, height, kind)
    assert library.raw("aclrtMemcpy2d")(address, 16, host, 16, 16, 5, 1) != 0


@pytest.mark.parametrize("profile", ["8.1", "9.1"])
def test_pageable_memory_and_asynchronous_copies(make_subject: Make, profile: str) -> None:
    """10.6: up to 8.1 unpredictable and to be aligned (refused here), from 9 a synchronous copy in disguise."""
    driver = make_subject(profile=profile).start()
    library, address = driver.library, driver.malloc(128)
    host = driver.malloc_host(128)
    plain = ctypes.create_string_buffer(b"x" * 64, 64)

    def pageable() -> None:
        library.aclrtMemcpyAsync(address, 64, plain, 64, HOST_TO_DEVICE, None)

    def unaligned() -> None:
        library.aclrtMemcpyAsync(address + 4, 64, host, 64, HOST_TO_DEVICE, None)

    if profile == "8.1":
        with fails(107000):
            pageable()
        with fails(107008):
            unaligned()
    else:
        pageable()
        assert driver.download(address, 64) == b"x" * 64
        unaligned()
        library.aclrtSynchronizeStream(None)


def test_registered_host_memory(driver: Driver) -> None:
    """9.4"""
    library = driver.library
    page = mmap.mmap(-1, 8192)
    pointer = ctypes.addressof(ctypes.c_char.from_buffer(page))
    device = acl.DevicePtr()
    with fails(107000):
        library.aclrtHostRegister(pointer + 64, 4096, 0, byref(device))
    with fails(100000):
        library.aclrtHostRegister(pointer, 0, 0, byref(device))
    library.aclrtHostRegister(pointer, 4096, 0, byref(device))
    with fails(507910):
        library.aclrtHostRegister(pointer, 4096, 0, byref(device))
    again = c_void_p()
    library.aclrtHostGetDevicePointer(pointer + 8, byref(again), 0)
    assert again.value == (device.value or 0) + 8
    memory = driver.malloc(64)
    page[:64] = bytes(range(64))
    library.aclrtMemcpyAsync(memory, 64, pointer, 64, HOST_TO_DEVICE, None)
    library.aclrtSynchronizeStream(None)
    assert driver.download(memory, 64) == bytes(range(64))
    library.aclrtHostUnregister(pointer)
    with fails(507911):
        library.aclrtHostUnregister(pointer)


def test_memory_by_attribute(make_subject: Make) -> None:
    """8.10: the wrong group answers 0 with success, or the DDR where the chip has no HBM."""
    expected = {
        ("Ascend310P3", "8.1"): (True, True),
        ("Ascend310", "8.1"): (True, False),
        ("Ascend310", "9.1"): (True, True),
        ("Ascend910B4", "8.1"): (False, True),
    }
    for (soc, profile), (has_ddr, has_hbm) in expected.items():
        driver = make_subject(soc_name=soc, profile=profile).start()
        assert bool(free_bytes(driver, 0)) == has_ddr
        assert bool(free_bytes(driver, 1)) == has_hbm
        for attribute in range(12, 18):
            if profile == "8.1":
                with fails(107016):
                    free_bytes(driver, attribute)
            else:
                free_bytes(driver, attribute)


def test_pointer_attributes(driver: Driver) -> None:
    address, host = driver.malloc(64), driver.malloc_host(64)
    plain = ctypes.create_string_buffer(64)
    found = []
    for pointer in (host, address, ctypes.addressof(plain)):
        record = acl.aclrtPtrAttributes()
        driver.library.aclrtPointerGetAttributes(pointer, byref(record))
        found.append(record.location.type)
    assert found == [0, 1, 2]


def test_peak_usage(driver: Driver) -> None:
    record, count = acl.aclrtMemUsageInfo(), c_size_t()
    driver.library.aclrtFree(driver.malloc(MB))
    driver.library.aclrtGetMemUsageInfo(0, byref(record), 1, byref(count))
    assert count.value == 1
    assert record.memPeakSize >= MB > record.curMemSize
