"""The memory manager over the emulated device, in both run modes: the same operations through the whole driver."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack
from typing import Any

import google_crc32c
import pytest

from aclserve.errors import NotFound
from aclserve_server.acl.errors import AclError
from aclserve_server.acl.library import Library
from aclserve_server.acl.types import aclrtMemAttr, aclrtMemMallocPolicy
from aclserve_server.device.device import Device
from aclserve_server.device.faults import classify
from aclserve_server.device.runtime import Runtime
from aclserve_server.device.thread import DeviceThread
from aclserve_server.emulator import Emulator
from aclserve_server.emulator.config import EmulatorConfig
from aclserve_server.engine.devices import DeviceDirectory
from aclserve_server.engine.items import BufferSlice
from aclserve_server.engine.memory import MemoryLimits, MemoryManager
from device.helpers import live

MIB = 1 << 20
LIMITS = MemoryLimits(100, 64 * MIB, 64 * MIB, 100.0, 16 * MIB)
SPACES = ("host", "device")


class World:
    """The emulated device, its blocking thread and a memory manager; `memory` exists inside `run`."""

    def __init__(self, run_mode: Any, stack: ExitStack) -> None:
        self.now = 0.0
        self.emulator = Emulator(EmulatorConfig(run_mode=run_mode, memory_bytes=16 * MIB))
        stack.callback(self.emulator.close)
        library = Library.from_addresses("emulator", self.emulator.addresses())
        runtime = stack.enter_context(Runtime.open(library))
        self.device = stack.enter_context(Device.open(runtime, 0))
        self.thread = stack.enter_context(DeviceThread("blocking", self.device))
        self.memory: MemoryManager

    def run(self, test: Callable[[], Awaitable[None]]) -> None:
        async def main() -> None:
            self.memory = MemoryManager(self.device, self.thread, LIMITS, lambda: self.now)
            await self.memory.start()
            try:
                await test()
            finally:
                await self.memory.close()
            use = self.memory.use()
            assert (use.leases, use.buffers, use.uploads, use.device_bytes, use.host_bytes) == (0, 0, 0, 0, 0)
            assert not [buffer for buffer in self.device.children.of("buffer") if not buffer.closed]
            held = live(self.emulator)
            assert not {kind for kind in held if "alloc" in kind}, held

        asyncio.run(main())

    async def write(self, lease: str, buffer: str, offset: int, data: bytes) -> None:
        writer = self.memory.begin_write(lease, buffer, offset, len(data), google_crc32c.value(data))
        await writer.write(data)
        writer.finish()

    async def read(self, lease: str, buffer: str) -> bytes:
        reader = self.memory.begin_read(lease, buffer, 0, 0)
        data = b""
        while reader.remaining_bytes:
            data += await reader.read()
        return data


@pytest.fixture(params=["device", "host"])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    """Afterwards nothing is live in the emulated device and none of its entry points failed."""
    with ExitStack() as stack:
        world = World(request.param, stack)
        emulator = world.emulator
        yield world
        gc.collect()
        assert not list(emulator.errors)


def test_bytes_through_every_direction(world: World) -> None:
    async def test() -> None:
        memory = world.memory
        lease = memory.create_lease().id
        data = bytes(range(251)) * 9000
        for source_space in SPACES:
            for target_space in SPACES:
                source = (await memory.allocate(lease, source_space, len(data))).id  # type: ignore[arg-type]
                target = (await memory.allocate(lease, target_space, len(data) + 7)).id  # type: ignore[arg-type]
                await world.write(lease, source, 0, data)
                await memory.set_memory(lease, target, 0, 0, 0xEE)
                await memory.copy(lease, source, 1, target, 3, len(data) - 1)
                assert await world.read(lease, target) == b"\xee" * 3 + data[1:] + b"\xee" * 5
                await memory.free(lease, source)
                await memory.free(lease, target)

    world.run(test)


def test_device_to_device_copies_never_touch_the_host(world: World) -> None:
    async def test() -> None:
        memory = world.memory
        lease = memory.create_lease().id
        source, target = [(await memory.allocate(lease, "device", MIB)).id for _ in range(2)]
        await memory.set_memory(lease, source, 0, 0, 5)
        before = dict(world.emulator.counters.copied_bytes)
        await memory.copy(lease, source, 0, target, 0, MIB)
        after = dict(world.emulator.counters.copied_bytes)
        moved = {kind: after[kind] - before.get(kind, 0) for kind in after if after[kind] != before.get(kind, 0)}
        assert moved == {"device_to_device": MIB}
        assert await world.read(lease, target) == b"\5" * MIB

    world.run(test)


def test_transfers_allocate_nothing_once_started(world: World) -> None:
    async def test() -> None:
        memory = world.memory
        lease = memory.create_lease().id
        buffer = (await memory.allocate(lease, "device", 3 * MIB)).id
        calls = world.emulator.counters.calls
        before = calls["aclrtMalloc"], calls["aclrtMallocHost"]
        await world.write(lease, buffer, 0, b"x" * 3 * MIB)
        assert await world.read(lease, buffer) == b"x" * 3 * MIB
        assert (calls["aclrtMalloc"], calls["aclrtMallocHost"]) == before

    world.run(test)


def test_a_full_device_leaves_no_charge(world: World) -> None:
    async def test() -> None:
        memory = world.memory
        lease = memory.create_lease().id
        with pytest.raises(AclError) as caught:
            await memory.allocate(lease, "device", 32 * MIB)
        assert classify(caught.value).reason == "DEVICE_OUT_OF_MEMORY"
        assert memory.use().device_bytes == 0
        await memory.allocate(lease, "device", 4 * MIB)

    world.run(test)


@pytest.mark.parametrize("way", ["expire", "release", "free"])
def test_pinned_memory_is_freed_with_its_last_pin(world: World, way: str) -> None:
    async def test() -> None:
        memory = world.memory
        lease = memory.create_lease(10).id
        buffer = (await memory.allocate(lease, "device", 100)).id
        pin = memory.pin(lease, BufferSlice(buffer, 0, 0), 100)
        frees = world.emulator.counters.calls["aclrtFree"]
        if way == "expire":
            world.now += 10
            memory.expire_due(world.now)
        elif way == "release":
            assert await memory.release(lease) == 1
        else:
            await memory.free(lease, buffer)
        world.device.set_memory(pin.buffer, 0, 100, 1)
        assert world.emulator.counters.calls["aclrtFree"] == frees
        pin.release()

    world.run(test)


def test_expiry_during_calls_that_have_begun(world: World) -> None:
    async def test() -> None:
        memory = world.memory
        lease = memory.create_lease(10).id
        source, target = [(await memory.allocate(lease, "device", MIB)).id for _ in range(2)]
        async with asyncio.TaskGroup() as group:
            copy = group.create_task(memory.copy(lease, source, 0, target, 0, MIB))
            late = group.create_task(_lost(memory.allocate(lease, "device", MIB)))
            await asyncio.sleep(0)
            world.now += 10
            memory.expire_due(world.now)
        assert copy.done()
        assert late.result()

    world.run(test)


async def _lost(allocation: Any) -> bool:
    with pytest.raises(NotFound, match="LEASE_NOT_FOUND"):
        await allocation
    return True


def test_policies_reach_the_device(world: World) -> None:
    async def test() -> None:
        memory = world.memory
        lease = memory.create_lease().id
        for policy in (
            aclrtMemMallocPolicy.ACL_MEM_MALLOC_HUGE_FIRST,
            aclrtMemMallocPolicy.ACL_MEM_MALLOC_HUGE_ONLY,
            aclrtMemMallocPolicy.ACL_MEM_MALLOC_NORMAL_ONLY,
        ):
            assert (await memory.allocate(lease, "device", 100, policy)).policy is policy

    world.run(test)


def test_what_the_device_tells_about_itself(world: World) -> None:
    async def test() -> None:
        devices = DeviceDirectory(world.device, 0, True, world.thread)
        (snapshot,) = await devices.list_devices()
        assert (snapshot.soc_name, snapshot.run_mode) == (world.device.soc_name, world.device.run_mode)
        assert snapshot.memory
        assert all(0 <= use.free_bytes <= use.total_bytes > 0 for use in snapshot.memory)
        every = await devices.query_memory(aclrtMemAttr)
        assert [use.attribute for use in every] == list(aclrtMemAttr)
        present = [use.attribute for use in await devices.query_memory()]
        assert present == [use.attribute for use in every if use.total_bytes]

    world.run(test)


def test_uploads_reach_a_model_load_as_they_were_sent(world: World) -> None:
    async def test() -> None:
        memory = world.memory
        lease = memory.create_lease().id
        data = bytes(range(256)) * 5000
        with memory.begin_upload(lease, len(data), google_crc32c.value(data)) as upload:
            for at in range(0, len(data), 100_000):
                await upload.write(data[at : at + 100_000])
            upload_id, _ = upload.finish()
        pin = memory.pin_upload(lease, upload_id)
        assert pin.data == data
        pin.release()

    world.run(test)
