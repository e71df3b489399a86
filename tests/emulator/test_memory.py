"""The address space: arenas, poison, pages, and addresses that fault."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from ctypes import byref, c_size_t

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aclserve_server.acl import types as acl
from aclserve_server.emulator import Emulator
from aclserve_server.emulator.arena import Arena
from contract.driving import Driver
from emulator.conftest import Factory, bind, start

MB = 1 << 20
BASE, SIZE = 0x10000, 1 << 14


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(1, 40), st.sampled_from([64, 64, 4096])), max_size=60))
def test_arena_never_hands_out_the_same_byte_twice(steps: list[tuple[bool, int, int]]) -> None:
    arena, live = Arena(BASE, SIZE), dict[int, int]()
    for release, number, alignment in steps:
        if release and live:
            start = sorted(live)[number % len(live)]
            length = live.pop(start)
            low, high = arena.release(start, length)
            assert low <= start
            assert start + length <= high
        else:
            length = 64 * number
            address = arena.allocate(length, alignment)
            if address is None:
                fits = [
                    range_
                    for range_ in arena.free_ranges()
                    if -(-range_[0] // alignment) * alignment + length <= range_[1]
                ]
                assert not fits
                continue
            assert address % alignment == 0
            assert all(address + length <= other or other + size <= address for other, size in live.items())
            live[address] = length
        ranges = arena.free_ranges()
        assert sum(end - start for start, end in ranges) + sum(live.values()) == SIZE
        assert all(end < ranges[index + 1][0] for index, (_, end) in enumerate(ranges[:-1]))


def test_arena_refuses_a_second_release() -> None:
    arena = Arena(BASE, SIZE)
    address = arena.allocate(64, 64)
    assert address is not None
    arena.release(address, 64)
    with pytest.raises(ValueError, match="already"):
        arena.release(address, 64)


def test_a_freed_address_is_not_reused_at_once(driver: Driver) -> None:
    seen = set()
    for _ in range(100):
        address = driver.malloc(64)
        assert address not in seen
        seen.add(address)
        driver.library.aclrtFree(address)


def test_fresh_and_freed_memory_is_poison(emulator: Emulator, driver: Driver) -> None:
    for size in (1, 64, 5000, 3 * MB):
        address = driver.malloc(size)
        assert driver.download(address, size) == b"\xa5" * size
        driver.library.aclrtMemset(address, size, 1, size)
        driver.library.aclrtFree(address)
        if driver.unified:
            assert ctypes.string_at(address, size) == b"\xa5" * size


def test_neighbours_survive_a_free(driver: Driver) -> None:
    addresses = [driver.malloc(3000) for _ in range(40)]
    for number, address in enumerate(addresses):
        driver.library.aclrtMemset(address, 3000, number, 3000)
    for address in addresses[::2]:
        driver.library.aclrtFree(address)
    for number, address in enumerate(addresses):
        if number % 2:
            assert driver.download(address, 3000) == bytes([number]) * 3000


def test_unified_memory_is_usable_directly(make_emulator: Factory) -> None:
    driver = start(bind(make_emulator(run_mode="device")))
    for address in (driver.malloc(64), driver.malloc_host(64)):
        ctypes.memset(address, 7, 64)
        assert driver.download(address, 64) == b"\x07" * 64


def test_pinned_memory_is_the_devices_where_there_is_one_memory(driver: Driver) -> None:
    free, after, total = c_size_t(), c_size_t(), c_size_t()
    driver.library.aclrtGetMemInfo(0, byref(free), byref(total))
    driver.malloc_host(MB)
    driver.library.aclrtGetMemInfo(0, byref(after), byref(total))
    assert (free.value - after.value >= MB) == driver.unified


CHILD = """
import ctypes, sys
from ctypes import byref
from aclserve_server.acl import types
from aclserve_server.acl.library import Library
from aclserve_server.emulator import Emulator, EmulatorConfig
emulator = Emulator(EmulatorConfig(run_mode=sys.argv[1]))
library = Library.from_addresses("emulator", emulator.addresses())
library.aclInit(None)
library.aclrtSetDevice(0)
pointer = types.DevicePtr()
library.aclrtMalloc(byref(pointer), 4096, 0)
print(ctypes.string_at(pointer.value, 1).hex(), flush=True)
"""


@pytest.mark.parametrize(("run_mode", "status", "output"), [("host", -signal.SIGSEGV, ""), ("device", 0, "a5\n")])
def test_a_device_address_faults_on_a_host(run_mode: str, status: int, output: str) -> None:
    environment = {**os.environ, "PYTHONFAULTHANDLER": "", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    child = subprocess.run(
        [sys.executable, "-c", CHILD, run_mode], capture_output=True, text=True, env=environment, check=False
    )
    assert (child.returncode, child.stdout) == (status, output), child.stderr


def test_freed_pages_go_back_to_the_system(driver: Driver) -> None:
    process = psutil.Process()

    def use(size: int) -> None:
        address = driver.malloc(size)
        driver.library.aclrtMemset(address, size, 3, size)
        driver.library.aclrtFree(address)

    use(32 * MB)
    before = process.memory_info().rss
    for _ in range(20):
        use(32 * MB)
        for _ in range(50):
            use(3000)
    assert process.memory_info().rss - before < 16 * MB


def test_capacity(make_emulator: Factory) -> None:
    for run_mode in ("device", "host"):
        driver = start(bind(make_emulator(run_mode=run_mode, memory_bytes=8 * MB)))
        taken = [driver.malloc(MB, 2) for _ in range(7)]
        assert driver.library.raw("aclrtMalloc")(byref(acl.DevicePtr()), MB, 2) == 207001
        for address in taken:
            driver.library.aclrtFree(address)
        for _ in range(100):  # fragments never keep memory from being used
            small = [driver.malloc(5000, 2) for _ in range(100)]
            large = driver.malloc(7 * MB, 2)
            for address in (*small, large):
                driver.library.aclrtFree(address)


def test_close_keeps_unfreed_memory_readable(make_emulator: Factory) -> None:
    emulator = make_emulator(run_mode="device")
    driver = start(bind(emulator))
    address = driver.malloc(64)
    emulator.close()
    assert ctypes.string_at(address, 64) == b"\xa5" * 64
