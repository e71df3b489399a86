"""A device of byte arrays and a thread that can be held, for tests of the memory manager's own logic."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable
from typing import Any

from aclserve.errors import Unimplemented
from aclserve_server.acl.errors import AclError
from aclserve_server.acl.types import aclrtMemAttr, aclrtMemMallocPolicy

OUT_OF_MEMORY = 207001


class HeldThread:
    """Runs functions on the loop, one at a time; while held they wait until `step`."""

    def __init__(self) -> None:
        self.held = False
        self.inside = False
        self.refusals: deque[Exception] = deque()
        self.waiting: deque[Callable[[], None]] = deque()

    async def run(self, function: Callable[[], Any], *, cleanup: bool = False) -> Any:
        if self.refusals:
            raise self.refusals.popleft()
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

        def work() -> None:
            self.inside = True
            try:
                result = function()
            except Exception as error:
                if not future.done():
                    future.set_exception(error)
            else:
                if not future.done():
                    future.set_result(result)
            finally:
                self.inside = False

        self.waiting.append(work)
        if not self.held:
            asyncio.get_running_loop().call_soon(self.step)
        return await future

    def step(self) -> None:
        if self.waiting:
            self.waiting.popleft()()

    def release(self) -> None:
        self.held = False
        while self.waiting:
            self.step()


class FakeBuffer:
    def __init__(self, device: FakeDevice, space: str, size_bytes: int, policy: aclrtMemMallocPolicy | None) -> None:
        self.device = device
        self.space = space
        self.size_bytes = size_bytes
        self.policy = policy
        self.bytes = bytearray(b"\xa5" * size_bytes)
        self.closed = False

    @property
    def host_accessible(self) -> bool:
        return self.space == "host" or self.device.run_mode == "device"

    def view(self) -> memoryview:
        self.device.enter("view")
        assert not self.closed
        assert self.host_accessible
        return memoryview(self.bytes)

    def close(self) -> None:
        self.device.enter("close")
        assert not self.closed
        self.closed = True
        self.device.live.remove(self)
        if self.device.free_errors:
            raise self.device.free_errors.popleft()


class FakeDevice:
    """The part of the device that clients' memory needs. Checks that calls come one at a time from its thread."""

    soc_name = "Fake910"

    def __init__(self, thread: HeldThread, run_mode: str = "host", capacity: int = 1 << 40) -> None:
        self.thread = thread
        self.run_mode = run_mode
        self.capacity = capacity
        self.live: set[FakeBuffer] = set()
        self.calls: Counter[str] = Counter()
        self.free_errors: deque[Exception] = deque()
        self.memory: dict[aclrtMemAttr, tuple[int, int]] = {aclrtMemAttr.ACL_HBM_MEM: (60, 100)}
        self.unknown: set[aclrtMemAttr] = {aclrtMemAttr.ACL_MEM_P2P_HUGE1G}

    def enter(self, name: str) -> None:
        assert self.thread.inside, f"{name} was called outside the blocking thread"
        self.calls[name] += 1

    def allocate(
        self, size_bytes: int, policy: aclrtMemMallocPolicy = aclrtMemMallocPolicy.ACL_MEM_MALLOC_HUGE_FIRST
    ) -> FakeBuffer:
        return self._allocate("aclrtMalloc", "device", size_bytes, policy)

    def allocate_host(self, size_bytes: int) -> FakeBuffer:
        return self._allocate("aclrtMallocHost", "host", size_bytes, None)

    def _allocate(self, call: str, space: str, size: int, policy: aclrtMemMallocPolicy | None) -> FakeBuffer:
        self.enter(call)
        if sum(buffer.size_bytes for buffer in self.live) + size > self.capacity:
            raise AclError(call, OUT_OF_MEMORY, "no memory in /secret/path")
        buffer = FakeBuffer(self, space, size, policy)
        self.live.add(buffer)
        return buffer

    def set_memory(self, buffer: FakeBuffer, offset: int, length: int, value: int) -> None:
        self.enter("set")
        assert not buffer.closed
        assert 0 < length <= buffer.size_bytes - offset
        buffer.bytes[offset : offset + length] = bytes([value]) * length

    def copy(self, dst: FakeBuffer, dst_offset: int, src: FakeBuffer, src_offset: int, length: int) -> None:
        self.enter("copy")
        assert not dst.closed
        assert not src.closed
        assert 0 < length <= min(dst.size_bytes - dst_offset, src.size_bytes - src_offset)
        dst.bytes[dst_offset : dst_offset + length] = src.bytes[src_offset : src_offset + length]

    def memory_info(self, attribute: aclrtMemAttr) -> tuple[int, int]:
        self.enter("memory_info")
        if attribute in self.unknown:
            raise Unimplemented("this CANN does not know it", reason="MEMORY_ATTRIBUTE_UNSUPPORTED")
        return self.memory.get(attribute, (0, 0))

    def utilization(self) -> int | None:
        self.enter("utilization")
        return 7
