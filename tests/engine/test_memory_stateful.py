"""Random histories of leases, buffers, pins and time, against a model of dictionaries."""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import dataclass, field
from typing import Any

import google_crc32c
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from aclserve.errors import NotFound, OutOfRange, ResourceExhausted
from aclserve_server.engine.items import BufferSlice
from aclserve_server.engine.memory import MemoryLimits, MemoryManager, Pin
from engine.memory_double import FakeDevice, HeldThread

QUOTA = 300
LIMITS = MemoryLimits(4, QUOTA, QUOTA, 50.0, QUOTA, 6)
SPACES = st.sampled_from(["device", "host"])
OFFSETS = st.integers(0, 1 << 16).map(lambda n: n % 80 if n % 8 else (n << 48) + 1)
PICK = st.integers(0, 1 << 10)

ARGUMENTS: dict[str, dict[str, st.SearchStrategy[Any]]] = {
    "create": {"ttl": st.sampled_from([1.0, 20.0, 50.0])},
    "renew": {"pick": PICK},
    "release": {"pick": PICK},
    "pass_time": {"seconds": st.sampled_from([0.5, 1.0, 5.0]), "expire": st.booleans()},
    "allocate": {"pick": PICK, "space": SPACES, "size": st.integers(1, 130)},
    "free": {"pick": PICK},
    "write": {"pick": PICK, "offset": OFFSETS, "data": st.binary(min_size=1, max_size=130)},
    "set": {"pick": PICK, "offset": OFFSETS, "length": OFFSETS, "value": st.integers(0, 255)},
    "copy": {"pick": PICK, "other": PICK, "at": OFFSETS, "to": OFFSETS, "length": st.integers(1, 130)},
    "pin": {"pick": PICK},
    "unpin": {"pick": PICK},
}
STEPS = [*ARGUMENTS, "allocate", "allocate", "free", "pin", "unpin", "copy", "write"]


@dataclass(eq=False)
class ModelBuffer:
    id: str
    space: str
    data: bytearray
    pins: int = 0


@dataclass(eq=False)
class ModelLease:
    id: str
    ttl: float
    ends: float
    buffers: dict[str, ModelBuffer] = field(default_factory=dict)
    orphans: list[ModelBuffer] = field(default_factory=list)

    def charged(self, space: str) -> int:
        held = [*self.buffers.values(), *self.orphans]
        return sum(len(buffer.data) for buffer in held if buffer.space == space)


class Memory(RuleBasedStateMachine):
    """Run mode host, so that both ways into a buffer are taken."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.runner.get_loop()
        self.now = 0.0
        self.thread = HeldThread()
        self.device = FakeDevice(self.thread, "host")
        device: Any = self.device
        thread: Any = self.thread
        counter = itertools.count()
        self.memory = MemoryManager(device, thread, LIMITS, lambda: self.now, lambda: f"{next(counter):05}")
        self.run(self.memory.start())
        self.model: dict[str, ModelLease] = {}
        self.ended: list[ModelLease] = []
        self.stale: list[tuple[ModelLease, str]] = []
        self.held: list[tuple[ModelLease, ModelBuffer, Pin]] = []

    def a_lease(self, pick: int) -> ModelLease:
        """A lease by number: mostly one that may be alive, sometimes one that has ended."""
        choice = self.ended if pick % 8 == 0 and self.ended else list(self.model.values())
        return choice[pick % len(choice)] if choice else ModelLease("none", 1.0, -1.0)

    def a_buffer(self, pick: int) -> tuple[ModelLease, str]:
        """A buffer by number: mostly one that may be there, sometimes one that is gone."""
        there = [(lease, key) for lease in self.model.values() for key in lease.buffers]
        choice = self.stale if pick % 8 == 0 and self.stale else there
        return choice[pick % len(choice)] if choice else (self.a_lease(pick), "none")

    @initialize(space=SPACES)
    def begin(self, space: str) -> None:
        """Something to work on from the first step."""
        self.create(50.0)
        for _ in range(2):
            self.allocate(0, space, 100)

    def run(self, coroutine: Any) -> Any:
        async def main() -> Any:
            try:
                return await coroutine
            finally:
                await self.memory._operations.drain()

        return self.runner.run(main())

    def call(self, function: Any) -> Any:
        async def main() -> Any:
            return function()

        return self.run(main())

    def lease(self, lease: ModelLease) -> ModelLease | None:
        """The lease if it is alive; else sees that the manager knows that too."""
        if self.model.get(lease.id) is lease and lease.ends > self.now:
            return lease
        self.end(lease)
        with pytest.raises(NotFound, match="LEASE_NOT_FOUND"):
            self.call(lambda: self.memory.list_buffers(lease.id))
        return None

    def end(self, lease: ModelLease) -> None:
        if self.model.pop(lease.id, None) is not None:
            self.stale += [(lease, key) for key in lease.buffers]
            lease.orphans += [buffer for buffer in lease.buffers.values() if buffer.pins]
            lease.buffers.clear()
            self.ended.append(lease)

    def find(self, pair: tuple[ModelLease, str]) -> tuple[ModelLease, ModelBuffer] | None:
        lease = self.lease(pair[0])
        if lease is None:
            return None
        buffer = lease.buffers.get(pair[1])
        if buffer is None:
            with pytest.raises(NotFound, match="BUFFER_NOT_FOUND"):
                self.call(lambda: self.memory.begin_read(lease.id, pair[1], 0, 0))
            return None
        return lease, buffer

    @rule(name=st.sampled_from(STEPS), data=st.data())
    def step(self, name: str, data: st.DataObject) -> None:
        """One rule for all steps, so that every history mixes them."""
        getattr(self, name)(**{key: data.draw(strategy, key) for key, strategy in ARGUMENTS[name].items()})

    def create(self, ttl: float) -> None:
        alive = [lease for lease in self.model.values() if lease.ends > self.now]
        try:
            info = self.call(lambda: self.memory.create_lease(ttl))
        except ResourceExhausted:
            assert len(alive) == 4
            return
        assert len(alive) < 4
        for lease in [lease for lease in self.model.values() if lease.ends <= self.now and len(self.model) >= 4]:
            self.end(lease)
        self.model[info.id] = ModelLease(info.id, ttl, self.now + ttl)

    def renew(self, pick: int) -> None:
        if (alive := self.lease(self.a_lease(pick))) is not None:
            self.call(lambda: self.memory.renew(alive.id))
            alive.ends = self.now + alive.ttl

    def release(self, pick: int) -> None:
        if (alive := self.lease(self.a_lease(pick))) is not None:
            assert self.run(self.memory.release(alive.id)) == len(alive.buffers)
            self.end(alive)

    def pass_time(self, seconds: float, expire: bool) -> None:
        self.now += seconds
        if expire:
            next_end = self.call(lambda: self.memory.expire_due(self.now))
            for lease in [lease for lease in self.model.values() if lease.ends <= self.now]:
                self.end(lease)
            assert next_end == min((lease.ends for lease in self.model.values()), default=None)

    def allocate(self, pick: int, space: Any, size: int) -> None:
        if (lease := self.lease(self.a_lease(pick))) is None:
            return
        fits = lease.charged(space) + size <= QUOTA and len(lease.buffers) < 6
        try:
            info = self.run(self.memory.allocate(lease.id, space, size))
        except ResourceExhausted:
            assert not fits
            return
        assert fits
        lease.buffers[info.id] = ModelBuffer(info.id, space, bytearray(b"\xa5" * size))

    def free(self, pick: int) -> None:
        if (found := self.find(self.a_buffer(pick))) is not None:
            lease, buffer = found
            self.run(self.memory.free(lease.id, buffer.id))
            del lease.buffers[buffer.id]
            self.stale.append((lease, buffer.id))
            if buffer.pins:
                lease.orphans.append(buffer)

    def write(self, pick: int, offset: int, data: bytes) -> None:
        if (found := self.find(self.a_buffer(pick))) is None:
            return
        lease, buffer = found

        async def write() -> int:
            writer = self.memory.begin_write(lease.id, buffer.id, offset, len(data), google_crc32c.value(data))
            await writer.write(data[: len(data) // 2])
            await writer.write(data[len(data) // 2 :])
            return writer.finish()

        if offset + len(data) > len(buffer.data):
            with pytest.raises(OutOfRange):
                self.run(write())
        else:
            self.run(write())
            buffer.data[offset : offset + len(data)] = data

    def set(self, pick: int, offset: int, length: int, value: int) -> None:
        if (found := self.find(self.a_buffer(pick))) is None:
            return
        lease, buffer = found
        real = length or len(buffer.data) - offset
        operation = self.memory.set_memory(lease.id, buffer.id, offset, length, value)
        if real < 1 or offset + real > len(buffer.data):
            with pytest.raises(OutOfRange):
                self.run(operation)
        else:
            self.run(operation)
            buffer.data[offset : offset + real] = bytes([value]) * real

    def copy(self, pick: int, other: int, at: int, to: int, length: int) -> None:
        if (found := self.find(self.a_buffer(pick))) is None:
            return
        lease, source = found
        target_id = self.a_buffer(other)[1]
        target = lease.buffers.get(target_id)
        operation = self.memory.copy(lease.id, source.id, at, target_id, to, length)
        if target is None:
            with pytest.raises(NotFound, match="BUFFER_NOT_FOUND"):
                self.run(operation)
        elif at + length > len(source.data) or to + length > len(target.data):
            with pytest.raises(OutOfRange):
                self.run(operation)
        elif source is target and abs(at - to) < length:
            with pytest.raises(Exception, match="RANGES_OVERLAP"):
                self.run(operation)
        else:
            self.run(operation)
            target.data[to : to + length] = source.data[at : at + length]

    def pin(self, pick: int) -> None:
        if (found := self.find(self.a_buffer(pick))) is not None:
            lease, buffer = found
            pin = self.call(lambda: self.memory.pin(lease.id, BufferSlice(buffer.id, 0, 0), 1))
            buffer.pins += 1
            self.held.append((lease, buffer, pin))

    def unpin(self, pick: int) -> None:
        if not self.held:
            return
        lease, buffer, pin = self.held.pop(pick % len(self.held))
        assert bytes(pin.buffer.bytes) == buffer.data  # type: ignore[attr-defined]
        self.call(pin.release)
        buffer.pins -= 1
        if not buffer.pins and buffer in lease.orphans:
            lease.orphans.remove(buffer)

    @invariant()
    def contents_and_totals_agree(self) -> None:
        for lease in [*self.model.values()]:
            if lease.ends > self.now:
                listed = self.call(lambda lease=lease: self.memory.list_buffers(lease.id))
                assert [info.id for info in listed] == sorted(lease.buffers)
                for info in listed:
                    buffer = lease.buffers[info.id]
                    assert (info.space, info.size_bytes, info.pins) == (buffer.space, len(buffer.data), buffer.pins)
        use = self.memory.use()
        leases = [*self.model.values(), *self.ended]
        assert use.device_bytes == sum(lease.charged("device") for lease in leases)
        assert use.host_bytes == sum(lease.charged("host") for lease in leases)
        assert len(self.device.live) - 1 == use.buffers
        live = sorted(bytes(buffer.bytes) for buffer in self.device.live if buffer.size_bytes <= 130)
        modelled = [bytes(b.data) for lease in leases for b in [*lease.buffers.values(), *lease.orphans]]
        assert live == sorted(modelled)

    def teardown(self) -> None:
        self.run(self.memory.close())
        assert not self.device.live
        assert self.memory.use().device_bytes == self.memory.use().host_bytes == 0
        self.runner.close()


TestMemory = Memory.TestCase
TestMemory.settings = settings(
    max_examples=100, stateful_step_count=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
