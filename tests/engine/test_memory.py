"""The memory manager over a device of byte arrays: leases, quotas, pins, operations under way."""

from __future__ import annotations

import asyncio
import itertools
import logging
import secrets
from collections.abc import Awaitable, Callable
from typing import Any

import google_crc32c
import pytest

from aclserve.errors import (
    AclserveError,
    DataLoss,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    OutOfRange,
    ResourceExhausted,
    Unauthenticated,
    Unavailable,
)
from aclserve_server.acl.errors import AclError
from aclserve_server.acl.types import aclrtMemAttr, aclrtMemMallocPolicy
from aclserve_server.engine.devices import DeviceDirectory
from aclserve_server.engine.items import BufferSlice
from aclserve_server.engine.leases import ids_of
from aclserve_server.engine.memory import MemoryLimits, MemoryManager
from aclserve_server.engine.transfers import CHUNK_BYTES
from engine.memory_double import FakeDevice, HeldThread

LIMITS = MemoryLimits(
    max_leases=3,
    max_lease_device_bytes=4 << 20,
    max_lease_host_bytes=4 << 20,
    max_ttl_s=100.0,
    max_upload_bytes=1 << 20,
    max_buffers_per_lease=8,
)
HUGE = (1 << 64) - 1


class World:
    """A memory manager with all its surroundings in the test's hands."""

    def __init__(self, run_mode: str, limits: MemoryLimits, capacity: int) -> None:
        self.now = 1000.0
        self.thread = HeldThread()
        self.device: Any = FakeDevice(self.thread, run_mode, capacity)
        thread: Any = self.thread
        counter = itertools.count()
        self.memory = MemoryManager(self.device, thread, limits, lambda: self.now, lambda: f"id-{next(counter):06}")

    @property
    def buffers(self) -> int:
        """Live buffers of clients: the staging memory is not one."""
        return len(self.device.live) - (1 if self.device.run_mode == "host" else 0)


def run(
    test: Callable[[World], Awaitable[None]],
    run_mode: str = "host",
    limits: MemoryLimits = LIMITS,
    capacity: int = 1 << 40,
) -> None:
    """Runs a test, then closes the manager and sees that nothing is left."""

    async def main() -> None:
        world = World(run_mode, limits, capacity)
        await world.memory.start()
        await test(world)
        world.thread.release()
        await world.memory.close()
        assert not world.device.live
        use = world.memory.use()
        assert (use.leases, use.buffers, use.uploads, use.device_bytes, use.host_bytes) == (0, 0, 0, 0, 0)

    asyncio.run(main())


async def settle() -> None:
    """Lets everything that can run, run."""
    for _ in range(20):
        await asyncio.sleep(0)


def expect(kind: type[AclserveError], reason: str) -> Any:
    return pytest.raises(kind, match=rf"\[{reason}\]$")


async def write(world: World, lease: str, buffer: str, offset: int, data: bytes, chunk: int = 1 << 30) -> int:
    writer = world.memory.begin_write(lease, buffer, offset, len(data), google_crc32c.value(data))
    for at in range(0, len(data), chunk):
        await writer.write(data[at : at + chunk])
    return writer.finish()


async def read(world: World, lease: str, buffer: str, offset: int = 0, length: int = 0) -> bytes:
    reader = world.memory.begin_read(lease, buffer, offset, length)
    data = b""
    while reader.remaining_bytes:
        chunk = await reader.read()
        assert 0 < len(chunk) <= CHUNK_BYTES
        data += chunk
    assert await reader.read() == b""
    assert reader.crc32c == google_crc32c.value(data)
    return data


def test_a_lease_lives_as_long_as_it_is_renewed() -> None:
    async def test(world: World) -> None:
        lease = world.memory.create_lease()
        assert (lease.ttl_s, lease.remaining_s) == (60.0, 60.0)
        world.now += 59
        assert world.memory.renew(lease.id).remaining_s == 60.0
        world.now += 59
        assert world.memory.list_buffers(lease.id) == []
        world.now += 1
        with expect(NotFound, "LEASE_NOT_FOUND"):
            world.memory.renew(lease.id)

    run(test)


@pytest.mark.parametrize("ttl_s", [0.0, 0.999, 100.001, -1.0, 1e300])
def test_a_time_to_live_outside_the_limits_is_refused(ttl_s: float) -> None:
    async def test(world: World) -> None:
        with expect(InvalidArgument, "LEASE_TTL_OUT_OF_RANGE"):
            world.memory.create_lease(ttl_s)

    run(test)


def test_unset_time_to_live_keeps_to_a_low_limit() -> None:
    async def test(world: World) -> None:
        assert world.memory.create_lease().ttl_s == 10.0

    run(test, limits=MemoryLimits(3, 1, 1, 10.0, 1))


def test_leases_are_limited_and_expired_ones_make_room() -> None:
    async def test(world: World) -> None:
        for _ in range(3):
            world.memory.create_lease(10)
        with expect(ResourceExhausted, "TOO_MANY_LEASES") as caught:
            world.memory.create_lease(10)
        assert caught.value.retry_delay
        world.now += 10
        assert world.memory.create_lease(10)

    run(test)


def test_without_a_lease_and_with_an_unknown_one() -> None:
    async def test(world: World) -> None:
        with expect(Unauthenticated, "LEASE_REQUIRED"):
            world.memory.list_buffers("")
        with expect(NotFound, "LEASE_NOT_FOUND"):
            world.memory.list_buffers("guess")

    run(test)


def test_ids_begin_with_the_name_of_the_replica() -> None:
    name, _, secret = ids_of("r-1")().partition(".")
    assert (name, len(secret)) == ("r-1", len(secrets.token_urlsafe()))
    assert len({ids_of("r-1")() for _ in range(100)}) == 100
    assert "." not in ids_of("")()


def test_expire_due_ends_what_is_due_and_tells_the_next_deadline() -> None:
    async def test(world: World) -> None:
        early, late = world.memory.create_lease(10), world.memory.create_lease(20)
        await world.memory.allocate(early.id, "device", 100)
        kept = await world.memory.allocate(late.id, "device", 100)
        assert world.memory.expire_due(world.now) == world.now + 10
        world.now += 10
        assert world.memory.expire_due(world.now) == world.now + 10
        await settle()
        assert world.buffers == 1
        assert [buffer.id for buffer in world.memory.list_buffers(late.id)] == [kept.id]
        world.now += 10
        assert world.memory.expire_due(world.now) is None
        await settle()
        assert world.buffers == 0

    run(test)


def test_the_expiry_task_wakes_up_for_new_leases() -> None:
    async def test(world: World) -> None:
        task = asyncio.get_running_loop().create_task(world.memory.run_expiry())
        await settle()
        lease = world.memory.create_lease(50)
        await world.memory.allocate(lease.id, "host", 10)
        await settle()
        world.now += 50
        world.memory.create_lease(50)  # what wakes the task here; otherwise its own deadline does
        await settle()
        assert world.buffers == 0
        assert world.memory.use().leases == 1
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(test)


def test_release_frees_and_counts() -> None:
    async def test(world: World) -> None:
        lease = world.memory.create_lease().id
        for space in ("device", "host"):
            await world.memory.allocate(lease, space, 100)  # type: ignore[arg-type]
        with world.memory.begin_upload(lease, 3) as upload:
            await upload.write(b"abc")
            upload.finish()
        assert await world.memory.release(lease) == 2
        assert world.buffers == 0
        with expect(NotFound, "LEASE_NOT_FOUND"):
            await world.memory.release(lease)

    run(test)


def test_buffers_are_listed_by_id_and_told_as_allocated() -> None:
    async def test(world: World) -> None:
        lease = world.memory.create_lease().id
        policy = aclrtMemMallocPolicy.ACL_MEM_MALLOC_NORMAL_ONLY
        device = await world.memory.allocate(lease, "device", 10, policy)
        host = await world.memory.allocate(lease, "host", 20)
        assert (device.space, device.size_bytes, device.policy, device.pins) == ("device", 10, policy, 0)
        assert (host.space, host.size_bytes, host.policy, host.pins) == ("host", 20, None, 0)
        assert world.memory.list_buffers(lease) == sorted([device, host], key=lambda info: info.id)
        use = world.memory.use()
        assert (use.leases, use.buffers, use.device_bytes, use.host_bytes) == (1, 2, 10, 20)
        info = world.memory.renew(lease)
        assert (info.device_bytes, info.host_bytes) == (10, 20)

    run(test)


def test_quota_is_charged_before_the_device_is_asked_and_given_back() -> None:
    async def test(world: World) -> None:
        lease = world.memory.create_lease().id
        asked = world.device.calls["aclrtMalloc"]
        for size in (HUGE, (4 << 20) + 1):
            with expect(ResourceExhausted, "LEASE_QUOTA_EXCEEDED") as caught:
                await world.memory.allocate(lease, "device", size)
            assert caught.value.metadata["requested_bytes"] == str(size)
            assert caught.value.metadata["quota_bytes"] == str(4 << 20)
        assert world.device.calls["aclrtMalloc"] == asked
        buffer = await world.memory.allocate(lease, "device", 4 << 20)
        with expect(ResourceExhausted, "LEASE_QUOTA_EXCEEDED"):
            await world.memory.allocate(lease, "device", 1)
        await world.memory.allocate(lease, "host", 4 << 20)
        await world.memory.free(lease, buffer.id)
        await world.memory.allocate(lease, "device", 4 << 20)

    run(test)


def test_quota_holds_for_allocations_under_way() -> None:
    async def test(world: World) -> None:
        lease = world.memory.create_lease().id
        world.thread.held = True
        first = asyncio.ensure_future(world.memory.allocate(lease, "device", 3 << 20))
        await settle()
        with expect(ResourceExhausted, "LEASE_QUOTA_EXCEEDED"):
            await world.memory.allocate(lease, "device", 2 << 20)
        world.thread.release()
        await first

    run(test)


def test_the_number_of_buffers_and_uploads_is_limited() -> None:
    async def test(world: World) -> None:
        lease = world.memory.create_lease().id
        for _ in range(7):
            await world.memory.allocate(lease, "host", 1)
        with world.memory.begin_upload(lease, 1):
            with expect(ResourceExhausted, "LEASE_QUOTA_EXCEEDED"):
                await world.memory.allocate(lease, "host", 1)
            with expect(ResourceExhausted, "LEASE_QUOTA_EXCEEDED"):
                world.memory.begin_upload(lease, 1)
        world.thread.held = True
        allocation = asyncio.ensure_future(world.memory.allocate(lease, "host", 1))
        await settle()
        with expect(ResourceExhausted, "LEASE_QUOTA_EXCEEDED"):
            await world.memory.allocate(lease, "host", 1)
        world.thread.release()
        await allocation

    run(test)


def test_a_failed_allocation_leaves_no_charge() -> None:
    async def test(world: World) -> None:
        lease = world.memory.create_lease().id
        with pytest.raises(AclError):
            await world.memory.allocate(lease, "device", 2 << 20)
        assert world.memory.use().device_bytes == 0
        with expect(InvalidArgument, "SIZE_IS_ZERO"):
            await world.memory.allocate(lease, "device", 0)

    run(test, capacity=(1 << 20) + 1000)


def test_unknown_freed_foreign_and_expired_buffers_look_the_same() -> None:
    async def test(world: World) -> None:
        mine, other = world.memory.create_lease(50).id, world.memory.create_lease(10).id
        freed = (await world.memory.allocate(mine, "device", 10)).id
        await world.memory.free(mine, freed)
        foreign = (await world.memory.allocate(other, "device", 10)).id
        texts = set()
        for buffer in ("guess", freed, foreign):
            with expect(NotFound, "BUFFER_NOT_FOUND") as caught:
                world.memory.pin(mine, BufferSlice(buffer, 0, 0), 1)
            texts.add(caught.value.message)
        world.now += 10
        world.memory.expire_due(world.now)
        with expect(NotFound, "BUFFER_NOT_FOUND") as caught:
            await world.memory.free(mine, foreign)
        texts.add(caught.value.message)
        assert len(texts) == 1

    run(test)


@pytest.mark.parametrize("run_mode", ["device", "host"])
@pytest.mark.parametrize("spaces", [("host", "host"), ("host", "device"), ("device", "host"), ("device", "device")])
def test_write_copy_set_read_in_every_direction(run_mode: str, spaces: Any) -> None:
    async def test(world: World) -> None:
        lease = world.memory.create_lease().id
        source, target = [(await world.memory.allocate(lease, space, 1000)).id for space in spaces]
        data = bytes(range(250)) * 4
        assert await write(world, lease, source, 0, data, chunk=77) == google_crc32c.value(data)
        await world.memory.set_memory(lease, target, 0, 0, 7)
        await world.memory.copy(lease, source, 10, target, 500, 300)
        assert await read(world, lease, target) == b"\7" * 500 + data[10:310] + b"\7" * 200
        await world.memory.set_memory(lease, target, 999, 1, 255)
        assert await read(world, lease, target, 998) == b"\7\xff"
        assert await read(world, lease, source, 3, 4) == data[3:7]

    run(test, run_mode)


@pytest.mark.parametrize("run_mode", ["device", "host"])
def test_long_transfers_go_through_one_staging_buffer(run_mode: str) -> None:
    async def test(world: World) -> None:
        lease = world.memory.create_lease().id
        data = bytes(range(256)) * ((5 << 20) // 512)
        buffer = (await world.memory.allocate(lease, "device", len(data) + 3)).id
        allocations = world.device.calls["aclrtMallocHost"], world.device.calls["aclrtMalloc"]
        await write(world, lease, buffer, 3, data)
        assert await read(world, lease, buffer, 3) == data
        assert (world.device.calls["aclrtMallocHost"], world.device.calls["aclrtMalloc"]) == allocations
        assert world.device.calls["copy"] == (6 if run_mode == "host" else 0)

    run(test, run_mode)


BAD_RANGES = [(0, 101), (100, 1), (1, 100), (100, 0), (HUGE, 0), (HUGE, 1), (HUGE, HUGE), (1, HUGE), (0, HUGE)]


@pytest.mark.parametrize(("offset", "length"), BAD_RANGES)
def test_ranges_outside_are_refused_without_a_device_call(offset: int, length: int) -> None:
    async def test(world: World) -> None:
        memory = world.memory
        lease = memory.create_lease().id
        buffer, other = [(await memory.allocate(lease, "device", 100)).id for _ in range(2)]
        calls = world.device.calls.copy()
        with expect(OutOfRange, "RANGE_OUTSIDE_BUFFER") as caught:
            await memory.set_memory(lease, buffer, offset, length, 1)
        assert str(offset) in caught.value.message
        assert caught.value.metadata["buffer_bytes"] == "100"
        with expect(OutOfRange, "RANGE_OUTSIDE_BUFFER"):
            memory.begin_read(lease, buffer, offset, length)
        if length:
            with expect(OutOfRange, "RANGE_OUTSIDE_BUFFER"):
                memory.begin_write(lease, buffer, offset, length)
            with expect(OutOfRange, "RANGE_OUTSIDE_BUFFER"):
                await memory.copy(lease, buffer, offset, other, 0, length)
            with expect(OutOfRange, "RANGE_OUTSIDE_BUFFER"):
                await memory.copy(lease, other, 0, buffer, offset, length)
        with expect(OutOfRange, "RANGE_OUTSIDE_BUFFER"):
            memory.pin(lease, BufferSlice(buffer, offset, length), 1)
        assert world.device.calls == calls
        assert [info.pins for info in memory.list_buffers(lease)] == [0, 0]

    run(test)


def test_what_copy_set_and_write_refuse() -> None:
    async def test(world: World) -> None:
        memory = world.memory
        lease = memory.create_lease().id
        buffer = (await memory.allocate(lease, "device", 100)).id
        for source, target in ((0, 49), (49, 0), (10, 10)):
            with expect(InvalidArgument, "RANGES_OVERLAP"):
                await memory.copy(lease, buffer, source, buffer, target, 50)
        await memory.copy(lease, buffer, 0, buffer, 50, 50)
        with expect(InvalidArgument, "SIZE_IS_ZERO"):
            await memory.copy(lease, buffer, 0, buffer, 50, 0)
        with expect(InvalidArgument, "SIZE_IS_ZERO"):
            memory.begin_write(lease, buffer, 0, 0)
        for value in (-1, 256, 1 << 31):
            with expect(InvalidArgument, "VALUE_NOT_A_BYTE"):
                await memory.set_memory(lease, buffer, 0, 0, value)

    run(test)


def test_transfers_are_checked() -> None:
    async def test(world: World) -> None:
        memory = world.memory
        lease = memory.create_lease().id
        buffer = (await memory.allocate(lease, "host", 100)).id
        writer = memory.begin_write(lease, buffer, 0, 10, 12345)
        await writer.write(b"")
        await writer.write(b"12345")
        with expect(InvalidArgument, "UPLOAD_TRUNCATED"):
            writer.finish()
        with expect(InvalidArgument, "UPLOAD_TOO_LONG"):
            await writer.write(b"678901")
        await writer.write(b"67890")
        with expect(DataLoss, "CHECKSUM_MISMATCH"):
            writer.finish()
        unchecked = memory.begin_write(lease, buffer, 0, 1)
        await unchecked.write(b"x")
        assert unchecked.finish() == google_crc32c.value(b"x")

    run(test)


def test_a_buffer_freed_between_chunks_ends_the_transfer() -> None:
    async def test(world: World) -> None:
        memory = world.memory
        lease = memory.create_lease(10).id
        first, second = [(await memory.allocate(lease, "host", 100)).id for _ in range(2)]
        writer, reader = memory.begin_write(lease, first, 0, 10), memory.begin_read(lease, second, 0, 0)
        await writer.write(b"1")
        await memory.free(lease, first)
        assert world.buffers == 1
        with expect(NotFound, "BUFFER_NOT_FOUND"):
            await writer.write(b"2")
        world.now += 10
        with expect(NotFound, "LEASE_NOT_FOUND"):
            await reader.read()
        await settle()
        assert world.buffers == 0

    run(test)


def test_freed_while_pinned() -> None:
    async def test(world: World) -> None:
        memory = world.memory
        lease = memory.create_lease().id
        buffer = (await memory.allocate(lease, "device", 100)).id
        pin, again = [memory.pin(lease, BufferSlice(buffer, 20, 0), 30) for _ in range(2)]
        assert (pin.offset_bytes, pin.length_bytes) == (20, 30)
        assert memory.list_buffers(lease)[0].pins == 2
        await memory.free(lease, buffer)
        assert memory.list_buffers(lease) == []
        with expect(NotFound, "BUFFER_NOT_FOUND"):
            memory.pin(lease, BufferSlice(buffer, 0, 0), 1)
        pin.release()
        pin.release()
        await settle()
        assert not again.buffer.closed
        assert memory.use().device_bytes == memory.renew(lease).device_bytes == 100
        again.release()
        await settle()
        assert again.buffer.closed
        assert memory.use().device_bytes == memory.renew(lease).device_bytes == 0

    run(test)


@pytest.mark.parametrize("way", ["expire", "release"])
def test_pinned_memory_outlives_its_lease(way: str) -> None:
    async def test(world: World) -> None:
        memory = world.memory
        lease = memory.create_lease(10).id
        buffer = (await memory.allocate(lease, "device", 100)).id
        pin = memory.pin(lease, BufferSlice(buffer, 0, 0), 1)
        if way == "release":
            assert await memory.release(lease) == 1
        else:
            world.now += 10
            memory.expire_due(world.now)
        await settle()
        assert memory.use().device_bytes == 100
        pin.release()
        await settle()
        assert world.buffers == 0

    run(test)


def test_pins_for_inputs_and_outputs() -> None:
    async def test(world: World) -> None:
        memory = world.memory
        lease = memory.create_lease().id
        buffer = (await memory.allocate(lease, "device", 100)).id

        def pin(offset: int, length: int, need: int, output: bool) -> tuple[int, int]:
            held = memory.pin(lease, BufferSlice(buffer, offset, length), need, output=output)
            held.release()
            return held.offset_bytes, held.length_bytes

        assert pin(10, 0, 90, False) == (10, 90)
        assert pin(10, 90, 90, False) == (10, 90)
        with expect(OutOfRange, "RANGE_OUTSIDE_BUFFER"):
            pin(10, 0, 91, False)
        assert pin(10, 0, 90, True) == (10, 90)
        assert pin(10, 0, 0, True) == (10, 90)
        assert pin(10, 50, 20, True) == (10, 50)
        for offset, length, need in ((10, 0, 91), (10, 20, 21), (100, 0, 1)):
            with expect(FailedPrecondition, "BUFFER_TOO_SMALL"):
                pin(offset, length, need, True)
        with expect(OutOfRange, "RANGE_OUTSIDE_BUFFER"):
            pin(101, 0, 0, True)
        with expect(Unauthenticated, "LEASE_REQUIRED"):
            memory.pin("", BufferSlice(buffer, 0, 0), 1)

    run(test)


def test_pins_for_a_models_memory() -> None:
    async def test(world: World) -> None:
        memory = world.memory
        lease = memory.create_lease().id
        device = (await memory.allocate(lease, "device", 100)).id
        host = (await memory.allocate(lease, "host", 100)).id
        with expect(FailedPrecondition, "BUFFER_TOO_SMALL"):
            memory.pin_model_memory(lease, device, 101)
        with expect(InvalidArgument, "BUFFER_NOT_ON_DEVICE"):
            memory.pin_model_memory(lease, host, 100)
        pin = memory.pin_model_memory(lease, device, 100)
        assert (pin.offset_bytes, pin.length_bytes) == (0, 100)
        await memory.release(lease)
        assert world.buffers == 1
        pin.release()

    run(test)


@pytest.mark.parametrize("way", ["expire", "release", "close"])
def test_a_lease_that_ends_gets_no_allocation(way: str) -> None:
    async def test(world: World) -> None:
        memory = world.memory
        lease = memory.create_lease(10).id
        world.thread.held = True
        allocation = asyncio.ensure_future(memory.allocate(lease, "device", 100))
        await settle()
        closing = None
        if way == "expire":
            world.now += 10
            memory.expire_due(world.now)
        elif way == "release":
            await memory.release(lease)
        else:
            closing = asyncio.ensure_future(memory.close())
        await settle()
        world.thread.release()
        with expect(NotFound, "LEASE_NOT_FOUND"):
            await allocation
        await settle()
        assert memory.use().device_bytes == 0
        if closing is not None:
            await closing

    run(test)


def test_an_allocation_nobody_waits_for_is_freed() -> None:
    async def test(world: World) -> None:
        memory = world.memory
        lease = memory.create_lease().id
        world.thread.held = True
        allocation = asyncio.ensure_future(memory.allocate(lease, "device", 100))
        await settle()
        allocation.cancel()
        await settle()
        assert allocation.cancelled()
        world.thread.release()
        await settle()
        assert world.buffers == 0
        assert memory.list_buffers(lease) == []
        assert memory.renew(lease).device_bytes == 0

    run(test)


@pytest.mark.parametrize("ending", ["free", "release", "expire", "cancel"])
def test_memory_stays_until_the_operation_on_it_has_ended(ending: str) -> None:
    async def test(world: World) -> None:
        memory = world.memory
        lease = memory.create_lease(10).id
        source, target = [(await memory.allocate(lease, "device", 100)).id for _ in range(2)]
        world.thread.held = True
        copy = asyncio.ensure_future(memory.copy(lease, source, 0, target, 0, 100))
        await settle()
        if ending == "free":
            await memory.free(lease, source)
        elif ending == "release":
            assert await memory.release(lease) == 2
        elif ending == "expire":
            world.now += 10
            memory.expire_due(world.now)
        else:
            copy.cancel()
        await settle()
        assert world.buffers == 2
        world.thread.release()
        if ending == "cancel":
            with pytest.raises(asyncio.CancelledError):
                await copy
            await settle()
            assert [info.pins for info in memory.list_buffers(lease)] == [0, 0]
        else:
            await copy
            await settle()
            assert world.buffers == (1 if ending == "free" else 0)
        assert world.device.calls["copy"] == 1

    run(test)


def test_a_failure_after_the_caller_has_gone_harms_nobody() -> None:
    async def test(world: World) -> None:
        memory = world.memory
        lease = memory.create_lease().id
        world.thread.held = True
        allocation = asyncio.ensure_future(memory.allocate(lease, "device", 2 << 20))
        await settle()
        allocation.cancel()
        world.thread.release()
        await settle()
        assert memory.renew(lease).device_bytes == 0

    run(test, capacity=(1 << 20) + 100)


def test_a_free_waits_for_a_full_thread() -> None:
    async def test(world: World) -> None:
        memory = world.memory
        lease = memory.create_lease().id
        buffer = (await memory.allocate(lease, "device", 100)).id
        world.thread.refusals.extend(ResourceExhausted("full", reason="DEVICE_QUEUE_FULL") for _ in range(2))
        await memory.free(lease, buffer)
        assert not world.thread.refusals
        assert world.buffers == 0

    run(test)


def test_a_free_that_fails_is_told_or_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def test(world: World) -> None:
        memory = world.memory
        lease = memory.create_lease().id
        first, second = [(await memory.allocate(lease, "device", 100)).id for _ in range(2)]
        world.device.free_errors.extend(AclError("aclrtFree", 507899) for _ in range(2))
        with pytest.raises(AclError):
            await memory.free(lease, first)
        assert memory.renew(lease).device_bytes == 100
        with caplog.at_level(logging.ERROR):
            assert await memory.release(lease) == 1
        assert "could not be freed" in caplog.text
        assert second

    run(test)


def test_close_frees_what_is_still_pinned_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    async def test(world: World) -> None:
        memory = world.memory
        lease = memory.create_lease().id
        buffer = (await memory.allocate(lease, "device", 100)).id
        pin = memory.pin(lease, BufferSlice(buffer, 0, 0), 1)
        with caplog.at_level(logging.WARNING):
            await memory.close()
        assert "still in use" in caplog.text
        assert not world.device.live
        pin.release()
        await settle()
        with expect(Unavailable, "SERVER_STOPPING"):
            memory.create_lease()

    run(test)


def test_uploads_are_kept_with_their_lease_and_pinned_while_used() -> None:
    async def test(world: World) -> None:
        memory = world.memory
        lease, other = memory.create_lease().id, memory.create_lease().id
        with memory.begin_upload(lease, 6, google_crc32c.value(b"abcdef")) as writer:
            await writer.write(b"abc")
            await writer.write(b"")
            await writer.write(b"def")
            upload_id, crc32c = writer.finish()
        assert crc32c == google_crc32c.value(b"abcdef")
        assert memory.use().uploads == 1
        pin = memory.pin_upload(lease, upload_id)
        assert bytes(pin.data) == b"abcdef"
        assert pin.data.readonly
        for wrong_lease, wrong_id in ((other, upload_id), (lease, "guess")):
            with expect(NotFound, "UPLOAD_NOT_FOUND"):
                memory.pin_upload(wrong_lease, wrong_id)
        await memory.release(lease)
        assert memory.use().uploads == 0
        assert memory.use().host_bytes == 6
        assert bytes(pin.data) == b"abcdef"
        pin.release()
        pin.release()
        assert memory.use().host_bytes == 0

    run(test)


def test_what_uploads_refuse_and_that_nothing_of_them_stays() -> None:
    async def test(world: World) -> None:
        memory = world.memory
        lease = memory.create_lease().id
        for size, kind, reason in (
            (0, InvalidArgument, "SIZE_IS_ZERO"),
            ((1 << 20) + 1, InvalidArgument, "UPLOAD_TOO_LARGE"),
            (HUGE, InvalidArgument, "UPLOAD_TOO_LARGE"),
        ):
            with expect(kind, reason):
                memory.begin_upload(lease, size)
        with expect(InvalidArgument, "UPLOAD_TRUNCATED"), memory.begin_upload(lease, 10) as writer:
            await writer.write(b"123")
            with expect(NotFound, "UPLOAD_NOT_FOUND"):
                memory.pin_upload(lease, writer._upload.id)
            writer.finish()
        with expect(InvalidArgument, "UPLOAD_TOO_LONG"), memory.begin_upload(lease, 2) as writer:
            await writer.write(b"123")
        with expect(DataLoss, "CHECKSUM_MISMATCH"), memory.begin_upload(lease, 3, 1) as writer:
            await writer.write(b"123")
            writer.finish()
        assert memory.use().uploads == 0
        assert memory.renew(lease).host_bytes == 0
        await memory.allocate(lease, "host", (4 << 20) - 1)
        with expect(ResourceExhausted, "LEASE_QUOTA_EXCEEDED"):
            memory.begin_upload(lease, 2)

    run(test)


def test_an_upload_ends_with_its_lease() -> None:
    async def test(world: World) -> None:
        memory = world.memory
        lease = memory.create_lease(10).id
        with memory.begin_upload(lease, 10) as writer:
            await writer.write(b"12345")
            world.now += 10
            for _ in range(2):
                with expect(NotFound, "LEASE_NOT_FOUND"):
                    await writer.write(b"67890")
            assert memory.use().host_bytes == 0
            with expect(NotFound, "LEASE_NOT_FOUND"):
                writer.finish()

    run(test)


def test_memory_is_told_by_attribute() -> None:
    async def test(world: World) -> None:
        thread: Any = world.thread
        devices = DeviceDirectory(world.device, 3, True, thread)
        hbm, ddr, unknown = aclrtMemAttr.ACL_HBM_MEM, aclrtMemAttr.ACL_DDR_MEM, aclrtMemAttr.ACL_MEM_P2P_HUGE1G
        found = await devices.query_memory([ddr, hbm, unknown])
        assert [(use.attribute, use.free_bytes, use.total_bytes) for use in found] == [
            (ddr, 0, 0),
            (hbm, 60, 100),
            (unknown, 0, 0),
        ]
        assert [use.attribute for use in await devices.query_memory()] == [hbm]
        (snapshot,) = await devices.list_devices()
        assert (snapshot.id, snapshot.soc_name, snapshot.run_mode) == (3, "Fake910", "host")
        assert [use.attribute for use in snapshot.memory] == [hbm]
        assert snapshot.utilization_percent == 7

    run(test)
