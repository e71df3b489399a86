"""MemoryService on the wire: every operation, every reason of the contract, and nothing left behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import google_crc32c
import grpc
import pytest

from aclserve.v1 import memory_pb2 as pb
from aclserve_server.acl.types import aclrtMemAttr, aclrtMemMallocPolicy
from aclserve_server.engine.devices import AttributeUse
from aclserve_server.engine.holdings import BufferInfo
from aclserve_server.engine.items import BufferSlice
from aclserve_server.rpc import convert_memory as convert
from rpc.memory_server import LIMITS, TIMEOUT_S, Wire, info_of, refused, retry_delay_of, run, run_emulated

CODE = grpc.StatusCode
HOST, DEVICE = pb.MEMORY_SPACE_HOST, pb.MEMORY_SPACE_DEVICE
HUGE = (1 << 64) - 1
ON_ALL = pytest.mark.parametrize(
    "run",
    [partial(run, run_mode=mode) for mode in ("device", "host")]
    + [partial(run_emulated, run_mode=mode) for mode in ("device", "host")],
    ids=["fake-device", "fake-host", "emulated-device", "emulated-host"],
)


def parts(header: pb.WriteBufferHeader | None, *chunks: bytes) -> list[pb.WriteBufferRequest]:
    head = [] if header is None else [pb.WriteBufferRequest(header=header)]
    return head + [pb.WriteBufferRequest(data=chunk) for chunk in chunks]


async def write(wire: Wire, lease: Any, buffer: str, offset: int, *chunks: bytes) -> int:
    data = b"".join(chunks)
    header = pb.WriteBufferHeader(
        buffer_id=buffer, offset_bytes=offset, length_bytes=len(data), crc32c=google_crc32c.value(data)
    )
    answer = await wire.memories.WriteBuffer(iter(parts(header, *chunks)), metadata=lease, timeout=TIMEOUT_S)
    assert answer.crc32c == google_crc32c.value(data)
    return len(data)


async def read(wire: Wire, lease: Any, buffer: str, offset: int = 0, length: int = 0) -> bytes:
    request = pb.ReadBufferRequest(buffer_id=buffer, offset_bytes=offset, length_bytes=length)
    chunks = [chunk async for chunk in wire.memories.ReadBuffer(request, metadata=lease, timeout=TIMEOUT_S)]
    data = b"".join(chunk.data for chunk in chunks)
    assert [chunk.HasField("crc32c") for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert chunks[-1].crc32c == google_crc32c.value(data)
    assert max(len(chunk.data) for chunk in chunks) <= 1 << 20
    return data


@ON_ALL
def test_the_life_of_a_lease(run: Any) -> None:
    async def test(wire: Wire) -> None:
        answer = await wire.memories.CreateLease(pb.CreateLeaseRequest(), timeout=TIMEOUT_S)
        assert (answer.lease.ttl.seconds, answer.lease.remaining.seconds) == (60, 60)
        assert answer.lease.device_quota_bytes == LIMITS.max_lease_device_bytes
        assert answer.lease.host_quota_bytes == LIMITS.max_lease_host_bytes
        lease = (("aclserve-lease", answer.lease.id),)
        await wire.buffer(lease, 1000)
        await wire.buffer(lease, 10, HOST)
        wire.now += 59.5
        renewed = (await wire.memories.RenewLease(pb.RenewLeaseRequest(), metadata=lease)).lease
        assert renewed.remaining.seconds == 60
        assert (renewed.device_bytes, renewed.host_bytes) == (1000, 10)
        released = await wire.memories.ReleaseLease(pb.ReleaseLeaseRequest(), metadata=lease)
        assert released.buffers_freed == 2
        await refused(
            wire.memories.ReleaseLease(pb.ReleaseLeaseRequest(), metadata=lease), CODE.NOT_FOUND, "LEASE_NOT_FOUND"
        )

    run(test)


def test_what_create_lease_refuses() -> None:
    async def test(wire: Wire) -> None:
        for seconds, nanos in ((0, 0), (0, 999_999_999), (101, 0), (-5, 0), (100, 1)):
            request = pb.CreateLeaseRequest()
            request.ttl.seconds, request.ttl.nanos = seconds, nanos
            status = await refused(wire.memories.CreateLease(request), CODE.INVALID_ARGUMENT, "LEASE_TTL_OUT_OF_RANGE")
            assert info_of(status).metadata["max_ttl_s"] == "100"
        for _ in range(3):
            await wire.lease(10)
        status = await refused(
            wire.memories.CreateLease(pb.CreateLeaseRequest()), CODE.RESOURCE_EXHAUSTED, "TOO_MANY_LEASES"
        )
        assert retry_delay_of(status) == 1.0

    run(test)


def test_keeping_a_lease_alive() -> None:
    async def test(wire: Wire) -> None:
        lease = await wire.lease(10)
        stream = wire.memories.KeepLeaseAlive(metadata=lease, timeout=TIMEOUT_S)
        for _ in range(3):
            wire.now += 9
            await stream.write(pb.KeepLeaseAliveRequest())
            answer = await stream.read()
            assert answer.lease.remaining.seconds == 10
        await stream.done_writing()
        assert await stream.read() is grpc.aio.EOF
        await wire.memories.RenewLease(pb.RenewLeaseRequest(), metadata=lease)
        stream = wire.memories.KeepLeaseAlive(metadata=lease, timeout=TIMEOUT_S)
        wire.now += 10
        await stream.write(pb.KeepLeaseAliveRequest())
        await refused(stream.read(), CODE.NOT_FOUND, "LEASE_NOT_FOUND")

    run(test)


def calls_with_a_lease(wire: Wire, lease: Any) -> dict[str, Any]:
    """A call of every rpc that needs a lease, with a buffer that does not exist."""
    header = pb.WriteBufferHeader(buffer_id="x", length_bytes=1)

    async def first(call: Any) -> None:
        await call.read()

    memories = wire.memories
    return {
        "RenewLease": lambda: memories.RenewLease(pb.RenewLeaseRequest(), metadata=lease),
        "KeepLeaseAlive": lambda: first(memories.KeepLeaseAlive(iter([pb.KeepLeaseAliveRequest()]), metadata=lease)),
        "ReleaseLease": lambda: memories.ReleaseLease(pb.ReleaseLeaseRequest(), metadata=lease),
        "AllocateBuffer": lambda: memories.AllocateBuffer(
            pb.AllocateBufferRequest(space=HOST, size_bytes=1), metadata=lease
        ),
        "FreeBuffer": lambda: memories.FreeBuffer(pb.FreeBufferRequest(buffer_id="x"), metadata=lease),
        "ListBuffers": lambda: memories.ListBuffers(pb.ListBuffersRequest(), metadata=lease),
        "SetMemory": lambda: memories.SetMemory(pb.SetMemoryRequest(buffer_id="x"), metadata=lease),
        "CopyMemory": lambda: memories.CopyMemory(
            pb.CopyMemoryRequest(source_buffer_id="x", destination_buffer_id="x", length_bytes=1), metadata=lease
        ),
        "WriteBuffer": lambda: memories.WriteBuffer(iter(parts(header, b"1")), metadata=lease),
        "ReadBuffer": lambda: first(memories.ReadBuffer(pb.ReadBufferRequest(buffer_id="x"), metadata=lease)),
        "RegisterRegion": lambda: memories.RegisterRegion(
            pb.RegisterRegionRequest(key="/x", size_bytes=1), metadata=lease
        ),
        "UnregisterRegion": lambda: memories.UnregisterRegion(
            pb.UnregisterRegionRequest(region_id="x"), metadata=lease
        ),
        "ListRegions": lambda: memories.ListRegions(pb.ListRegionsRequest(), metadata=lease),
    }


def test_every_call_wants_its_lease() -> None:
    async def test(wire: Wire) -> None:
        names = set(pb.DESCRIPTOR.services_by_name["MemoryService"].methods_by_name)
        assert set(calls_with_a_lease(wire, ())) == names - {"CreateLease", "QueryMemory"}
        for call in calls_with_a_lease(wire, ()).values():
            await refused(call(), CODE.UNAUTHENTICATED, "LEASE_REQUIRED")
        expired = await wire.lease(1)
        wire.now += 1
        for lease in ((("aclserve-lease", "guess"),), expired):
            for call in calls_with_a_lease(wire, lease).values():
                await refused(call(), CODE.NOT_FOUND, "LEASE_NOT_FOUND")

    run(test)


@ON_ALL
def test_unknown_freed_and_foreign_buffers_are_not_found(run: Any) -> None:
    async def test(wire: Wire) -> None:
        mine, other = await wire.lease(), await wire.lease()
        freed, foreign = await wire.buffer(mine, 10), await wire.buffer(other, 10)
        await wire.memories.FreeBuffer(pb.FreeBufferRequest(buffer_id=freed), metadata=mine)
        calls = calls_with_a_lease(wire, mine)
        messages = set()
        for name in ("FreeBuffer", "SetMemory", "CopyMemory", "WriteBuffer", "ReadBuffer"):
            messages.add((await refused(calls[name](), CODE.NOT_FOUND, "BUFFER_NOT_FOUND")).message)
        for buffer in (freed, foreign):
            status = await refused(
                wire.memories.FreeBuffer(pb.FreeBufferRequest(buffer_id=buffer), metadata=mine),
                CODE.NOT_FOUND,
                "BUFFER_NOT_FOUND",
            )
            messages.add(status.message)
        assert len(messages) == 1

    run(test)


def test_allocation_and_what_it_refuses() -> None:
    async def test(wire: Wire) -> None:
        lease = await wire.lease()

        def allocate(**fields: Any) -> Any:
            return wire.memories.AllocateBuffer(pb.AllocateBufferRequest(**fields), metadata=lease)

        for policy in range(1, 9):
            buffer = (await allocate(space=DEVICE, size_bytes=policy, policy=policy)).buffer
            assert (buffer.space, buffer.size_bytes, buffer.policy, buffer.pins) == (DEVICE, policy, policy, 0)
        defaulted = (await allocate(space=DEVICE, size_bytes=1)).buffer
        assert defaulted.policy == pb.ALLOCATION_POLICY_HUGE_FIRST
        host = (await allocate(space=HOST, size_bytes=1)).buffer
        assert (host.space, host.policy) == (HOST, pb.ALLOCATION_POLICY_UNSPECIFIED)
        await refused(allocate(space=HOST), CODE.INVALID_ARGUMENT, "SIZE_IS_ZERO")
        await refused(allocate(size_bytes=1), CODE.INVALID_ARGUMENT, "MEMORY_SPACE_INVALID")
        await refused(allocate(space=9, size_bytes=1), CODE.INVALID_ARGUMENT, "MEMORY_SPACE_INVALID")
        await refused(allocate(space=HOST, size_bytes=1, policy=1), CODE.INVALID_ARGUMENT, "POLICY_NOT_APPLICABLE")
        await refused(
            allocate(space=DEVICE, size_bytes=1, policy=99), CODE.INVALID_ARGUMENT, "ALLOCATION_POLICY_INVALID"
        )
        status = await refused(allocate(space=DEVICE, size_bytes=HUGE), CODE.RESOURCE_EXHAUSTED, "LEASE_QUOTA_EXCEEDED")
        assert info_of(status).metadata["requested_bytes"] == str(HUGE)

    run(test)


def test_a_full_device_is_told_as_such() -> None:
    async def test(wire: Wire) -> None:
        lease = await wire.lease()
        request = pb.AllocateBufferRequest(space=DEVICE, size_bytes=2 << 20)
        status = await refused(
            wire.memories.AllocateBuffer(request, metadata=lease), CODE.RESOURCE_EXHAUSTED, "DEVICE_OUT_OF_MEMORY"
        )
        assert info_of(status).metadata["acl_name"]
        assert "secret" not in str(status)
        assert retry_delay_of(status) is not None

    run(test, capacity=(1 << 20) + 1)


@ON_ALL
def test_listing_by_pages(run: Any) -> None:
    async def test(wire: Wire) -> None:
        lease = await wire.lease()
        ids = sorted([await wire.buffer(lease, 1) for _ in range(7)])

        async def pages(size: int) -> list[list[str]]:
            found, token = [], ""
            while True:
                request = pb.ListBuffersRequest(page_size=size, page_token=token)
                answer = await wire.memories.ListBuffers(request, metadata=lease)
                found.append([buffer.id for buffer in answer.buffers])
                if not (token := answer.next_page_token):
                    return found

        assert await pages(0) == [ids]
        assert await pages(1 << 31) == [ids]
        assert await pages(7) == [ids]
        assert await pages(3) == [ids[:3], ids[3:6], ids[6:]]
        for token in ("x", "!", "é", "AAAAAAAA", "a" * 1000):
            await refused(
                wire.memories.ListBuffers(pb.ListBuffersRequest(page_token=token), metadata=lease),
                CODE.INVALID_ARGUMENT,
                "PAGE_TOKEN_INVALID",
            )
        # a buffer that a page ended with may be gone by the next one
        first = await wire.memories.ListBuffers(pb.ListBuffersRequest(page_size=3), metadata=lease)
        await wire.memories.FreeBuffer(pb.FreeBufferRequest(buffer_id=ids[2]), metadata=lease)
        request = pb.ListBuffersRequest(page_token=first.next_page_token)
        second = await wire.memories.ListBuffers(request, metadata=lease)
        assert [buffer.id for buffer in second.buffers] == ids[3:]

    run(test)


@ON_ALL
def test_bytes_through_every_direction(run: Any) -> None:
    async def test(wire: Wire) -> None:
        lease = await wire.lease()
        first, last = await wire.buffer(lease, 1000, HOST), await wire.buffer(lease, 1000, HOST)
        near, far = await wire.buffer(lease, 1000), await wire.buffer(lease, 1000)
        data = bytes(range(200)) * 5
        await write(wire, lease, first, 0, data[:1], b"", data[1:])
        for source, target in ((first, near), (near, far), (far, last), (last, first)):
            await wire.memories.SetMemory(pb.SetMemoryRequest(buffer_id=target, value=238), metadata=lease)
            request = pb.CopyMemoryRequest(
                source_buffer_id=source,
                source_offset_bytes=100,
                destination_buffer_id=target,
                destination_offset_bytes=100,
                length_bytes=800,
            )
            await wire.memories.CopyMemory(request, metadata=lease)
            assert await read(wire, lease, target) == b"\xee" * 100 + data[100:900] + b"\xee" * 100
        await write(wire, lease, far, 997, b"abc")
        assert await read(wire, lease, far, 996) == b"\xeeabc"
        assert await read(wire, lease, far, 996, 2) == b"\xeea"

    run(test)


@ON_ALL
def test_reads_come_in_chunks(run: Any) -> None:
    async def test(wire: Wire) -> None:
        lease = await wire.lease()
        data = bytes(range(256)) * ((3 << 20) // 256 + 1)
        buffer = await wire.buffer(lease, len(data))
        await write(wire, lease, buffer, 0, data[: 1 << 20], data[1 << 20 :])
        assert await read(wire, lease, buffer) == data

    run(test)


@ON_ALL
def test_what_writing_refuses(run: Any) -> None:
    async def test(wire: Wire) -> None:
        lease = await wire.lease()
        buffer = await wire.buffer(lease, 100)

        def send(header: pb.WriteBufferHeader | None, *chunks: bytes) -> Any:
            return wire.memories.WriteBuffer(iter(parts(header, *chunks)), metadata=lease, timeout=TIMEOUT_S)

        def header(length: int, offset: int = 0, crc32c: int | None = None) -> pb.WriteBufferHeader:
            return pb.WriteBufferHeader(buffer_id=buffer, offset_bytes=offset, length_bytes=length, crc32c=crc32c)

        assert (await send(header(3), b"abc")).crc32c == google_crc32c.value(b"abc")
        assert (await send(header(3, 97, google_crc32c.value(b"abc")), b"abc")).crc32c
        status = await refused(send(header(3), b"ab"), CODE.INVALID_ARGUMENT, "UPLOAD_TRUNCATED")
        assert dict(info_of(status).metadata) == {"received_bytes": "2", "expected_bytes": "3"}
        await refused(send(header(3)), CODE.INVALID_ARGUMENT, "UPLOAD_TRUNCATED")
        await refused(send(header(3), b"abcd"), CODE.INVALID_ARGUMENT, "UPLOAD_TOO_LONG")
        await refused(send(header(3, 0, 1), b"abc"), CODE.DATA_LOSS, "CHECKSUM_MISMATCH")
        await refused(send(header(3, 0, 0), b"abc"), CODE.DATA_LOSS, "CHECKSUM_MISMATCH")
        await refused(send(header(0)), CODE.INVALID_ARGUMENT, "SIZE_IS_ZERO")
        await refused(send(None, b"abc"), CODE.INVALID_ARGUMENT, "HEADER_MISSING")
        await refused(send(None), CODE.INVALID_ARGUMENT, "HEADER_MISSING")
        twice = [*parts(header(3), b"a"), *parts(header(3))]
        await refused(wire.memories.WriteBuffer(iter(twice), metadata=lease), CODE.INVALID_ARGUMENT, "HEADER_REPEATED")
        for length, offset in ((101, 0), (1, 100), (1, HUGE), (HUGE, 1), (HUGE, HUGE)):
            await refused(send(header(length, offset), b"a"), CODE.OUT_OF_RANGE, "RANGE_OUTSIDE_BUFFER")
        assert wire.memory.list_buffers(lease[0][1])[0].pins == 0

    run(test)


@ON_ALL
def test_what_copy_set_and_read_refuse(run: Any) -> None:
    async def test(wire: Wire) -> None:
        lease = await wire.lease()
        buffer, other = await wire.buffer(lease, 100), await wire.buffer(lease, 100)

        def copy(at: int, to: int, length: int, target: str = buffer) -> Any:
            request = pb.CopyMemoryRequest(
                source_buffer_id=buffer,
                source_offset_bytes=at,
                destination_buffer_id=target,
                destination_offset_bytes=to,
                length_bytes=length,
            )
            return wire.memories.CopyMemory(request, metadata=lease)

        def set_memory(offset: int, length: int, value: int = 0) -> Any:
            request = pb.SetMemoryRequest(buffer_id=buffer, offset_bytes=offset, length_bytes=length, value=value)
            return wire.memories.SetMemory(request, metadata=lease)

        def read_first(offset: int, length: int) -> Any:
            request = pb.ReadBufferRequest(buffer_id=buffer, offset_bytes=offset, length_bytes=length)
            return wire.memories.ReadBuffer(request, metadata=lease).read()

        for at, to, length in ((0, 1, 100), (1, 0, 100), (HUGE, 0, 1), (0, HUGE, 1), (1, 0, HUGE)):
            await refused(copy(at, to, length, other), CODE.OUT_OF_RANGE, "RANGE_OUTSIDE_BUFFER")
        await refused(copy(0, 10, 11), CODE.INVALID_ARGUMENT, "RANGES_OVERLAP")
        await refused(copy(0, 10, 0), CODE.INVALID_ARGUMENT, "SIZE_IS_ZERO")
        for offset, length in ((0, 101), (100, 0), (HUGE, 0), (HUGE, HUGE), (50, HUGE)):
            status = await refused(set_memory(offset, length), CODE.OUT_OF_RANGE, "RANGE_OUTSIDE_BUFFER")
            assert info_of(status).metadata["buffer_bytes"] == "100"
            await refused(read_first(offset, length), CODE.OUT_OF_RANGE, "RANGE_OUTSIDE_BUFFER")
        await refused(set_memory(0, 0, 256), CODE.INVALID_ARGUMENT, "VALUE_NOT_A_BYTE")

    run(test)


def test_memory_is_told_by_attribute_without_a_lease() -> None:
    async def test(wire: Wire) -> None:
        def query(*attributes: int) -> Any:
            return wire.memories.QueryMemory(pb.QueryMemoryRequest(attributes=attributes))  # type: ignore[arg-type]

        def told(answer: pb.QueryMemoryResponse) -> list[tuple[int, int, int]]:
            return [(usage.attribute, usage.free_bytes, usage.total_bytes) for usage in answer.usage]

        hbm, ddr = pb.MEMORY_ATTRIBUTE_HBM, pb.MEMORY_ATTRIBUTE_DDR
        assert told(await query()) == [(hbm, 60, 100)]
        assert told(await query(pb.MEMORY_ATTRIBUTE_UNSPECIFIED)) == [(hbm, 60, 100)]
        assert told(await query(ddr, hbm, ddr)) == [(ddr, 0, 0), (hbm, 60, 100)]
        assert told(await query(pb.MEMORY_ATTRIBUTE_P2P_HUGE1G)) == [(pb.MEMORY_ATTRIBUTE_P2P_HUGE1G, 0, 0)]
        await refused(query(ddr, 77), CODE.INVALID_ARGUMENT, "MEMORY_ATTRIBUTE_INVALID")

    run(test)


def test_a_client_that_dies_while_writing_leaves_no_pin() -> None:
    async def test(wire: Wire) -> None:
        lease = await wire.lease()
        buffer = await wire.buffer(lease, 100)
        reached = asyncio.Event()

        async def stall() -> AsyncIterator[pb.WriteBufferRequest]:
            header = pb.WriteBufferHeader(buffer_id=buffer, length_bytes=10)
            for part in parts(header, b"abc"):
                yield part
            reached.set()
            await asyncio.Event().wait()

        call = wire.memories.WriteBuffer(stall(), metadata=lease)
        await reached.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await wire.memories.ReleaseLease(pb.ReleaseLeaseRequest(), metadata=lease)
        assert wire.memory.use().device_bytes == 0

    run(test)


def test_a_call_cancelled_while_the_device_allocates_leaves_nothing() -> None:
    async def test(wire: Wire) -> None:
        lease = await wire.lease()
        wire.thread.held = True
        call = wire.memories.AllocateBuffer(pb.AllocateBufferRequest(space=DEVICE, size_bytes=10), metadata=lease)
        waiting = asyncio.ensure_future(_until(lambda: wire.thread.waiting))
        await waiting
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        # the server learns of it with a later message on the same connection
        await wire.memories.RenewLease(pb.RenewLeaseRequest(), metadata=lease)
        wire.thread.release()
        await _until(lambda: wire.memory.renew(lease[0][1]).device_bytes == 0)
        assert wire.memory.list_buffers(lease[0][1]) == []

    run(test)


def test_a_freed_buffer_that_is_in_use_disappears_at_once() -> None:
    async def test(wire: Wire) -> None:
        lease = await wire.lease()
        buffer = await wire.buffer(lease, 100)
        pin = wire.memory.pin(lease[0][1], BufferSlice(buffer, 0, 0), 100)
        listed = await wire.memories.ListBuffers(pb.ListBuffersRequest(), metadata=lease)
        assert [found.pins for found in listed.buffers] == [1]
        await wire.memories.FreeBuffer(pb.FreeBufferRequest(buffer_id=buffer), metadata=lease)
        listed = await wire.memories.ListBuffers(pb.ListBuffersRequest(), metadata=lease)
        assert not listed.buffers
        assert (await wire.memories.RenewLease(pb.RenewLeaseRequest(), metadata=lease)).lease.device_bytes == 100
        pin.release()
        await _until(lambda: wire.memory.use().device_bytes == 0)

    run(test)


async def _until(condition: Any) -> None:
    """Yields to the loop until something has happened; fails after very many turns."""
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110 (it is the state of the server behind the wire)
            await asyncio.sleep(0)


def test_every_enumerator_is_mapped() -> None:
    for value in pb.AllocationPolicy.values()[1:]:
        request = pb.AllocateBufferRequest(space=DEVICE, size_bytes=3, policy=value)  # type: ignore[arg-type]
        space, size, policy = convert.allocation_from_proto(request)
        assert (space, size) == ("device", 3)
        assert policy.name.removeprefix("ACL_MEM_MALLOC_") == pb.AllocationPolicy.Name(value).removeprefix(
            "ALLOCATION_POLICY_"
        )
        shown = convert.buffer_to_proto(BufferInfo("x", space, size, policy, 2))
        assert (shown.policy, shown.pins) == (value, 2)
    for value in pb.MemoryAttribute.values()[1:]:
        (attribute,) = convert.attributes_from_proto([value])  # type: ignore[list-item]
        words = sorted(attribute.name.replace("MEM_", "").removesuffix("_MEM").removeprefix("ACL_").split("_"))
        assert words == sorted(pb.MemoryAttribute.Name(value).removeprefix("MEMORY_ATTRIBUTE_").split("_"))
        assert convert.usage_to_proto(AttributeUse(attribute, 1, 2)).attribute == value
    assert len(pb.MemoryAttribute.values()) - 1 == len(aclrtMemAttr)
    assert aclrtMemMallocPolicy.ACL_MEM_TYPE_LOW_BAND_WIDTH not in convert._POLICIES_BACK


@pytest.mark.parametrize("seconds", [0.0, 1.0, 0.25, 59.999999999, 3600.0, 1e9])
def test_durations_survive(seconds: float) -> None:
    assert convert.seconds_from_proto(convert.seconds_to_proto(seconds)) == pytest.approx(seconds, abs=1e-6)
