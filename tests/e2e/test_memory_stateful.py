"""Random histories of MemoryService over the wire against a model: every answer, every refusal, every byte read back.

A real server on the emulated device, in both run modes; two clients' leases; time is the test's own.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import google_crc32c
import grpc
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from aclserve.v1 import memory_pb2 as pb
from aclserve_server.emulator import EmulatorConfig
from e2e.raw import Raw, on_loop, refusal_of
from serving import Serving, serving

QUOTA, LEASES, TTL_S = 400, 3, 50
SPACES = {"device": pb.MEMORY_SPACE_DEVICE, "host": pb.MEMORY_SPACE_HOST}
PATIENCE = 5000
PICK = st.integers(0, 1 << 10)
OFFSET = st.one_of(st.integers(0, 140), st.sampled_from([1 << 31, (1 << 63) - 1, (1 << 64) - 1]))
LENGTH = st.integers(1, 140)

NOT_FOUND, OUT_OF_RANGE, EXHAUSTED, DATA_LOSS = (
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.OUT_OF_RANGE,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.DATA_LOSS,
)


@dataclass(eq=False)
class ModelBuffer:
    """`data` is None where a byte was never written: what it holds is nobody's promise."""

    id: str
    space: str
    data: list[int | None]


@dataclass(eq=False)
class ModelLease:
    id: str
    ends: float
    buffers: dict[str, ModelBuffer] = field(default_factory=dict)

    def held(self, space: str) -> int:
        return sum(len(buffer.data) for buffer in self.buffers.values() if buffer.space == space)


class Memory(RuleBasedStateMachine):
    """`served` is set by the test that runs it."""

    served: ClassVar[Serving]
    raw: ClassVar[Raw]

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.served.server.memory._clock = lambda: self.now
        self.leases: list[ModelLease] = []
        self.gone: list[ModelBuffer] = []

    def call(self, expected: grpc.StatusCode | None, lease: ModelLease, method: str, request: Any) -> Any:
        """A call that must fail with a code, or succeed; its answer."""
        try:
            answer = self.raw.call("memory", method, request, lease.id)
        except grpc.RpcError as error:
            refusal = refusal_of(error).check_clean([lease.id, *(buffer.id for buffer in self.gone)])
            assert refusal.code is expected, (method, refusal)
            return None
        assert expected is None, f"{method} was to fail with {expected}"
        return answer

    def alive(self) -> list[ModelLease]:
        return [lease for lease in self.leases if lease.ends > self.now]

    def a_lease(self, pick: int) -> ModelLease:
        """Mostly one that is alive."""
        choice = self.leases if pick % 7 == 0 else self.alive()
        return choice[pick % len(choice)] if choice else ModelLease("never-was", -1.0)

    def a_buffer(self, pick: int) -> tuple[ModelLease, ModelBuffer, grpc.StatusCode | None]:
        """Mostly one that is there, shown with its own lease; and what its use comes to for that."""
        lease = self.a_lease(pick)
        others = [buffer for other in self.leases if other is not lease for buffer in other.buffers.values()]
        if pick % 5 == 0 and self.gone + others:
            strange = self.gone + others
            return lease, strange[pick % len(strange)], NOT_FOUND
        if not lease.buffers:
            return lease, ModelBuffer("never-was", "device", [None]), NOT_FOUND
        buffer = list(lease.buffers.values())[pick % len(lease.buffers)]
        return lease, buffer, None if lease.ends > self.now else NOT_FOUND

    @rule(ttl=st.sampled_from([1, 20, TTL_S]))
    def create(self, ttl: int) -> None:
        full = len(self.alive()) >= LEASES
        request = pb.CreateLeaseRequest()
        request.ttl.seconds = ttl
        answer = self.call(EXHAUSTED if full else None, ModelLease("", 0.0), "CreateLease", request)
        if answer is not None:
            self.leases.append(ModelLease(answer.lease.id, self.now + ttl))

    @rule(pick=PICK)
    def release(self, pick: int) -> None:
        lease = self.a_lease(pick)
        there = lease.ends > self.now
        answer = self.call(None if there else NOT_FOUND, lease, "ReleaseLease", pb.ReleaseLeaseRequest())
        if answer is not None:
            assert answer.buffers_freed == len(lease.buffers)
            lease.ends = self.now
            self.gone += lease.buffers.values()
            lease.buffers.clear()

    @rule(seconds=st.sampled_from([0.5, 5.0]))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds

    @rule(pick=PICK, space=st.sampled_from(sorted(SPACES)), size=LENGTH)
    def allocate(self, pick: int, space: str, size: int) -> None:
        lease = self.a_lease(pick)
        expected = None if lease.ends > self.now else NOT_FOUND
        if expected is None and lease.held(space) + size > QUOTA:
            expected = EXHAUSTED
        request = pb.AllocateBufferRequest(space=SPACES[space], size_bytes=size)  # type: ignore[arg-type]
        answer = self.call(expected, lease, "AllocateBuffer", request)
        if answer is not None:
            assert (answer.buffer.size_bytes, answer.buffer.space) == (size, SPACES[space])
            lease.buffers[answer.buffer.id] = ModelBuffer(answer.buffer.id, space, [None] * size)

    @rule(pick=PICK)
    def free(self, pick: int) -> None:
        lease, buffer, expected = self.a_buffer(pick)
        self.call(expected, lease, "FreeBuffer", pb.FreeBufferRequest(buffer_id=buffer.id))
        if expected is None:
            self.gone.append(lease.buffers.pop(buffer.id))

    @rule(pick=PICK, offset=OFFSET, data=st.binary(min_size=1, max_size=140), cut=LENGTH, right=st.booleans())
    def write(self, pick: int, offset: int, data: bytes, cut: int, right: bool) -> None:
        lease, buffer, expected = self.a_buffer(pick)
        checksum = google_crc32c.value(data) ^ (0 if right else 1)
        header = pb.WriteBufferHeader(buffer_id=buffer.id, offset_bytes=offset, length_bytes=len(data), crc32c=checksum)
        parts = [pb.WriteBufferRequest(header=header)]
        parts += [pb.WriteBufferRequest(data=data[at : at + cut]) for at in range(0, len(data), cut)]
        fits = offset + len(data) <= len(buffer.data)
        expected = expected or (None if fits else OUT_OF_RANGE) or (None if right else DATA_LOSS)
        self.call(expected, lease, "WriteBuffer", parts)
        if expected is None:
            buffer.data[offset : offset + len(data)] = data
        elif expected is DATA_LOSS:
            buffer.data[offset : offset + len(data)] = [None] * len(data)

    @rule(pick=PICK, offset=OFFSET, length=LENGTH)
    def read(self, pick: int, offset: int, length: int) -> None:
        lease, buffer, expected = self.a_buffer(pick)
        expected = expected or (None if offset + length <= len(buffer.data) else OUT_OF_RANGE)
        request = pb.ReadBufferRequest(buffer_id=buffer.id, offset_bytes=offset, length_bytes=length)
        parts = self.call(expected, lease, "ReadBuffer", request)
        if parts is not None:
            content = b"".join(part.data for part in parts)
            assert parts[-1].crc32c == google_crc32c.value(content)
            wanted = buffer.data[offset : offset + length]
            assert len(content) == length
            assert all(mine is None or mine == its for mine, its in zip(wanted, content, strict=True))

    @rule(pick=PICK, offset=OFFSET, length=LENGTH, value=st.integers(0, 255))
    def set(self, pick: int, offset: int, length: int, value: int) -> None:
        lease, buffer, expected = self.a_buffer(pick)
        expected = expected or (None if offset + length <= len(buffer.data) else OUT_OF_RANGE)
        request = pb.SetMemoryRequest(buffer_id=buffer.id, offset_bytes=offset, length_bytes=length, value=value)
        self.call(expected, lease, "SetMemory", request)
        if expected is None:
            buffer.data[offset : offset + length] = [value] * length

    @rule(pick=PICK, other=PICK, at=OFFSET, to=OFFSET, length=LENGTH)
    def copy(self, pick: int, other: int, at: int, to: int, length: int) -> None:
        """In all four directions, as the buffers lie."""
        lease, source, expected = self.a_buffer(pick)
        mine = list(lease.buffers.values())
        target = mine[other % len(mine)] if mine else source
        if target is source:
            return
        fits = at + length <= len(source.data) and to + length <= len(target.data)
        expected = expected or (None if fits else OUT_OF_RANGE)
        request = pb.CopyMemoryRequest(
            source_buffer_id=source.id,
            source_offset_bytes=at,
            destination_buffer_id=target.id,
            destination_offset_bytes=to,
            length_bytes=length,
        )
        self.call(expected, lease, "CopyMemory", request)
        if expected is None:
            target.data[to : to + length] = source.data[at : at + length]

    @rule(pick=PICK)
    def list(self, pick: int) -> None:
        lease = self.a_lease(pick)
        expected = None if lease.ends > self.now else NOT_FOUND
        answer = self.call(expected, lease, "ListBuffers", pb.ListBuffersRequest())
        if answer is not None:
            listed = {(buffer.id, buffer.size_bytes, buffer.space) for buffer in answer.buffers}
            assert listed == {(one.id, len(one.data), SPACES[one.space]) for one in lease.buffers.values()}

    @invariant()
    def the_server_holds_what_the_model_holds(self) -> None:
        for lease in self.leases:
            if lease.ends <= self.now:
                self.gone += lease.buffers.values()
                lease.buffers.clear()
        alive = self.alive()
        wanted = (
            len(alive),
            sum(len(lease.buffers) for lease in alive),
            sum(lease.held("device") for lease in alive),
            sum(lease.held("host") for lease in alive),
        )

        def use() -> tuple[int, ...]:
            self.served.server.memory.expire_due(self.now)
            found = self.served.server.memory.use()
            return found.leases, found.buffers, found.device_bytes, found.host_bytes

        for _ in range(PATIENCE):  # what a lease held is freed on the device's thread
            if (found := on_loop(self.served, use)) == wanted:
                return
            time.sleep(0.001)
        raise AssertionError(f"leases, buffers, bytes on device and host are {found}, expected {wanted}")

    def teardown(self) -> None:
        """Nothing is left when the leases have ended."""
        self.now += 2 * TTL_S
        self.the_server_holds_what_the_model_holds()
        super().teardown()


@pytest.fixture(params=["device", "host"])
def served(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Serving]:
    limits = {"max_leases": LEASES, "max_lease_device_bytes": QUOTA, "max_lease_host_bytes": QUOTA}
    device = EmulatorConfig(run_mode=request.param, memory_bytes=256 << 20)
    with serving(tmp_path, emulator=device, max_lease_ttl_s=TTL_S, max_upload_bytes=QUOTA, **limits) as up:
        yield up


def test_memory_over_the_wire(served: Serving) -> None:
    with Raw(served.address) as raw:
        Memory.served, Memory.raw = served, raw
        quick = settings(
            max_examples=30, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
        )
        run_state_machine_as_test(Memory, settings=quick)  # type: ignore[no-untyped-call]
