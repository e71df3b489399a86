"""A real server on a loopback port with the memory and device services, for tests."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack, asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import pytest
from google.rpc import error_details_pb2, status_pb2

from aclserve.v1 import device_pb2_grpc, memory_pb2, memory_pb2_grpc
from aclserve_server.acl.library import Library
from aclserve_server.device.device import Device
from aclserve_server.device.runtime import Runtime
from aclserve_server.device.thread import DeviceThread
from aclserve_server.doctor.findings import Diagnosis, Finding, Level, Setting
from aclserve_server.emulator import Emulator
from aclserve_server.emulator.config import EmulatorConfig
from aclserve_server.engine.devices import DeviceDirectory
from aclserve_server.engine.memory import MemoryLimits, MemoryManager
from aclserve_server.engine.regions import Regions
from aclserve_server.rpc.device import DeviceService, ServerInfo
from aclserve_server.rpc.guard import Guard
from aclserve_server.rpc.memory import MemoryService
from device.helpers import live
from engine.memory_double import FakeDevice, HeldThread

LIMITS = MemoryLimits(
    max_leases=3,
    max_lease_device_bytes=8 << 20,
    max_lease_host_bytes=8 << 20,
    max_ttl_s=100.0,
    max_upload_bytes=1 << 20,
)
DIAGNOSIS = Diagnosis(
    "1.2.3",
    tuple(Finding(f"area.{level}", level, f"text {level}", "" if level is Level.OK else "fix") for level in Level),
    (
        Setting("max_queue_rows", "7", "flag"),
        Setting("host", "", "environment", hidden=True),
        Setting("unix_socket", "", "default"),
    ),
)
INFO = ServerInfo("1.2.3", "1.14.0", ("reflection",), 64 << 20, 1000, 100, LIMITS, 1 << 28, 256)
TIMEOUT_S = 60
MAX_REGIONS = 3


class Wire:
    """Stubs, and the server's insides."""

    def __init__(
        self, channel: grpc.aio.Channel, memory: MemoryManager, device: Any, thread: Any, regions: Regions
    ) -> None:
        self.channel = channel
        self.memories = memory_pb2_grpc.MemoryServiceStub(channel)
        self.devices = device_pb2_grpc.DeviceServiceStub(channel)
        self.memory = memory
        self.device = device
        self.thread = thread
        self.regions = regions
        self.now = 1000.0

    async def lease(self, ttl_s: int | None = None) -> tuple[tuple[str, str], ...]:
        """The metadata of a new lease."""
        request = memory_pb2.CreateLeaseRequest()
        if ttl_s is not None:
            request.ttl.seconds = ttl_s
        answer = await self.memories.CreateLease(request, timeout=TIMEOUT_S)
        return (("aclserve-lease", answer.lease.id),)

    async def buffer(self, lease: Any, size: int, space: int = memory_pb2.MEMORY_SPACE_DEVICE) -> str:
        """The id of a new buffer."""
        request = memory_pb2.AllocateBufferRequest(space=space, size_bytes=size)  # type: ignore[arg-type]
        answer = await self.memories.AllocateBuffer(request, metadata=lease, timeout=TIMEOUT_S)
        buffer_id: str = answer.buffer.id
        return buffer_id


@asynccontextmanager
async def serving(add: Callable[[Any], None], **guarding: Any) -> AsyncIterator[grpc.aio.Channel]:
    """A channel to a server with the guard and what `add` adds."""
    server = grpc.aio.server()
    add(Guard(server, **guarding))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield channel
    finally:
        await server.stop(None)


def run(test: Callable[[Wire], Awaitable[None]], run_mode: str = "host", capacity: int = 1 << 40) -> None:
    """Runs a test against a server over a device of byte arrays; afterwards nothing is left."""

    async def main() -> None:
        thread = HeldThread()
        device = FakeDevice(thread, run_mode, capacity)
        await run_on(test, device, thread)
        assert not device.live

    asyncio.run(main())


def run_emulated(test: Callable[[Wire], Awaitable[None]], run_mode: Any) -> None:
    """The same over the emulated device."""
    with ExitStack() as stack:
        emulator = stack.enter_context(Emulator(EmulatorConfig(run_mode=run_mode, memory_bytes=64 << 20)))
        runtime = stack.enter_context(Runtime.open(Library.from_addresses("emulator", emulator.addresses())))
        device = stack.enter_context(Device.open(runtime, 0))
        thread = stack.enter_context(DeviceThread("blocking", device))
        asyncio.run(run_on(test, device, thread))
        thread.close()
        assert not list(emulator.errors)
        assert not live(emulator)


async def run_on(test: Callable[[Wire], Awaitable[None]], device: Any, thread: Any) -> None:
    """The same over any device."""
    wire: Wire
    counter = itertools.count()
    regions = Regions(enabled=True, max_per_owner=MAX_REGIONS)
    memory = MemoryManager(
        device, thread, LIMITS, lambda: wire.now, lambda: f"id-{next(counter):06}", regions.end_owner
    )
    devices = DeviceDirectory(device, 0, True, thread)

    async def diagnose() -> Diagnosis:
        return DIAGNOSIS

    def add(server: grpc.aio.Server) -> None:
        memory_pb2_grpc.add_MemoryServiceServicer_to_server(MemoryService(memory, devices, regions), server)
        device_pb2_grpc.add_DeviceServiceServicer_to_server(
            DeviceService(devices, INFO, lambda: 12.5, diagnose), server
        )

    async with serving(add) as channel:
        wire = Wire(channel, memory, device, thread, regions)
        await memory.start()
        await test(wire)
        if isinstance(thread, HeldThread):
            thread.release()
    await memory.close()
    assert not regions.use().descriptors
    use = memory.use()
    assert (use.leases, use.buffers, use.uploads, use.device_bytes, use.host_bytes) == (0, 0, 0, 0, 0)


def details_of(error: grpc.aio.AioRpcError) -> status_pb2.Status:
    """The google.rpc.Status in an error's trailing metadata."""
    raw = dict(error.trailing_metadata() or ())["grpc-status-details-bin"]
    assert isinstance(raw, bytes)
    status = status_pb2.Status.FromString(raw)
    assert status.code == error.code().value[0]
    assert status.message == error.details()
    return status


def info_of(status: status_pb2.Status) -> error_details_pb2.ErrorInfo:
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert info.domain == "aclserve"
    return info


def retry_delay_of(status: status_pb2.Status) -> float | None:
    """Seconds, or None without RetryInfo."""
    for detail in status.details:
        retry = error_details_pb2.RetryInfo()
        if detail.Unpack(retry):
            return retry.retry_delay.ToNanoseconds() / 1e9
    return None


async def refused(call: Awaitable[Any], code: grpc.StatusCode, reason: str) -> status_pb2.Status:
    """Sees that a call fails as it should; returns the details."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    assert caught.value.code() is code, caught.value
    status = details_of(caught.value)
    assert info_of(status).reason == reason
    return status
