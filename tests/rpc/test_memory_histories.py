"""Random histories of MemoryService's calls over the wire, against a model of dictionaries, on both kinds of device."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aclserve.v1 import memory_pb2 as pb
from rpc.memory_server import LIMITS, TIMEOUT_S, Wire, run_emulated

SPACES = (pb.MEMORY_SPACE_DEVICE, pb.MEMORY_SPACE_HOST)
STEPS = (
    "lease",
    "release",
    "allocate",
    "allocate",
    "allocate",
    "free",
    "write",
    "write",
    "set",
    "copy",
    "read",
    "list",
)
PICK = st.integers(0, 31)
HISTORIES = st.lists(
    st.tuples(st.sampled_from(STEPS), PICK, PICK, st.integers(0, 300), st.integers(0, 300)), max_size=40
)

Metadata = tuple[tuple[str, str], ...]


class History:
    """The wire, and beside it what should be there: leases, and in each its buffers' bytes."""

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self.leases: dict[str, dict[str, bytearray]] = {}
        self.gone: list[tuple[str, str]] = [("no-lease", "no-buffer")]

    async def call(self, method: str, request: Any, lease: str) -> Any:
        """One call's answer, or the name of its status."""
        metadata: Metadata = (("aclserve-lease", lease),)
        stub = getattr(self.wire.memories, method)
        try:
            if method == "ReadBuffer":
                return b"".join([part.data async for part in stub(request, metadata=metadata, timeout=TIMEOUT_S)])
            sent = iter(request) if isinstance(request, list) else request
            return await stub(sent, metadata=metadata, timeout=TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            return error.code().name

    def choose(self, pick: int, other: int) -> tuple[str, str, bytearray | None]:
        """A lease, a buffer, and its bytes: mostly there; sometimes gone, sometimes of another lease (None)."""
        there = [(lease, key) for lease, held in self.leases.items() for key in held]
        if not there or pick % 8 == 7:
            lease, key = self.gone[pick % len(self.gone)]
        else:
            lease, key = there[pick % len(there)]
        if other % 8 == 7 and self.leases:
            lease = list(self.leases)[other % len(self.leases)]
        return lease, key, self.leases.get(lease, {}).get(key)

    async def step(self, name: str, pick: int, other: int, first: int, second: int) -> None:
        lease, key, content = self.choose(pick, other)
        await getattr(self, name)(lease, key, content, other, first, second)

    async def lease(self, *unused: Any) -> None:
        answer = await self.call("CreateLease", pb.CreateLeaseRequest(), "")
        if len(self.leases) == LIMITS.max_leases:
            assert answer == "RESOURCE_EXHAUSTED"
        else:
            self.leases[answer.lease.id] = {}

    async def release(self, lease: str, *unused: Any) -> None:
        answer = await self.call("ReleaseLease", pb.ReleaseLeaseRequest(), lease)
        held = self.leases.pop(lease, None)
        if held is None:
            assert answer == "NOT_FOUND"
        else:
            assert answer.buffers_freed == len(held)
            self.gone += [(lease, key) for key in held]

    async def allocate(self, lease: str, key: str, content: Any, other: int, first: int, second: int) -> None:
        if lease not in self.leases and self.leases:
            lease = next(iter(self.leases))
        request = pb.AllocateBufferRequest(space=SPACES[other % 2], size_bytes=first)
        answer = await self.call("AllocateBuffer", request, lease)
        if lease not in self.leases:
            assert answer in ("NOT_FOUND", "INVALID_ARGUMENT")
        elif not first:
            assert answer == "INVALID_ARGUMENT"
        else:
            made = answer.buffer.id
            filled = await self.call("SetMemory", pb.SetMemoryRequest(buffer_id=made, value=second % 256), lease)
            assert isinstance(filled, pb.SetMemoryResponse)
            self.leases[lease][made] = bytearray([second % 256]) * first

    async def free(self, lease: str, key: str, content: bytearray | None, *unused: Any) -> None:
        answer = await self.call("FreeBuffer", pb.FreeBufferRequest(buffer_id=key), lease)
        if content is None:
            assert answer == "NOT_FOUND"
        else:
            del self.leases[lease][key]
            self.gone.append((lease, key))

    async def write(self, lease: str, key: str, content: bytearray | None, other: int, first: int, second: int) -> None:
        data = bytes((first + at) % 256 for at in range(second % 130 + 1))
        header = pb.WriteBufferHeader(buffer_id=key, offset_bytes=first, length_bytes=len(data))
        parts = [pb.WriteBufferRequest(header=header), pb.WriteBufferRequest(data=data)]
        answer = await self.call("WriteBuffer", parts, lease)
        if content is None:
            assert answer == "NOT_FOUND"
        elif first + len(data) > len(content):
            assert answer == "OUT_OF_RANGE"
        else:
            content[first : first + len(data)] = data

    async def set(self, lease: str, key: str, content: bytearray | None, other: int, first: int, second: int) -> None:
        request = pb.SetMemoryRequest(buffer_id=key, offset_bytes=first, length_bytes=second, value=other)
        answer = await self.call("SetMemory", request, lease)
        if content is None:
            assert answer == "NOT_FOUND"
            return
        length = second or len(content) - first
        if length < 1 or first + length > len(content):
            assert answer == "OUT_OF_RANGE"
        else:
            content[first : first + length] = bytes([other]) * length

    async def copy(self, lease: str, key: str, content: bytearray | None, other: int, first: int, second: int) -> None:
        to = self.choose(other, 0)[1]
        target, length = self.leases.get(lease, {}).get(to), second % 64 + 1
        request = pb.CopyMemoryRequest(
            source_buffer_id=key,
            source_offset_bytes=first,
            destination_buffer_id=to,
            destination_offset_bytes=second,
            length_bytes=length,
        )
        answer = await self.call("CopyMemory", request, lease)
        if content is None or target is None:
            assert answer == "NOT_FOUND"
        elif first + length > len(content) or second + length > len(target):
            assert answer == "OUT_OF_RANGE"
        elif content is target and abs(first - second) < length:
            assert answer == "INVALID_ARGUMENT"
        else:
            target[second : second + length] = content[first : first + length]

    async def read(self, lease: str, key: str, content: bytearray | None, *unused: Any) -> None:
        answer = await self.call("ReadBuffer", pb.ReadBufferRequest(buffer_id=key), lease)
        assert answer == ("NOT_FOUND" if content is None else bytes(content))

    async def list(self, lease: str, *unused: Any) -> None:
        answer = await self.call("ListBuffers", pb.ListBuffersRequest(page_size=100), lease)
        if lease not in self.leases:
            assert answer == "NOT_FOUND"
        else:
            sizes = {buffer.id: buffer.size_bytes for buffer in answer.buffers}
            assert sizes == {key: len(content) for key, content in self.leases[lease].items()}

    async def end(self) -> None:
        """Everything is as the model says, to the last byte."""
        for lease, held in self.leases.items():
            for key, content in held.items():
                await self.read(lease, key, content)
        use = self.wire.memory.use()
        assert use.leases == len(self.leases)
        assert use.buffers == sum(len(held) for held in self.leases.values())
        charged = sum(len(content) for held in self.leases.values() for content in held.values())
        assert use.device_bytes + use.host_bytes == charged


@pytest.mark.parametrize("mode", ["device", "host"])
def test_histories(mode: str) -> None:
    @settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(HISTORIES)
    def check(steps: Any) -> None:
        async def test(wire: Wire) -> None:
            history = History(wire)
            await history.lease()
            for step in steps:
                await history.step(*step)
            await history.end()

        run_emulated(test, mode)

    check()
