"""Allocation, registration, memory information and memory set."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable
from typing import Any

from aclserve_server.acl.types import aclrtMallocAttrType, aclrtMemAttr, aclrtMemMallocPolicy
from aclserve_server.emulator import status
from aclserve_server.emulator.calls import Calls, need, refuse, unsupported
from aclserve_server.emulator.entities import Task
from aclserve_server.emulator.faults import Failure
from aclserve_server.emulator.memory import HUGE_PAGE_BYTES, Block

_GIANT_PAGE_BYTES = 1 << 30
_HUGE_FROM_BYTES = 1 << 20
_HUGE_ONLY = (aclrtMemMallocPolicy.ACL_MEM_MALLOC_HUGE_ONLY, aclrtMemMallocPolicy.ACL_MEM_MALLOC_HUGE_ONLY_P2P)
_NORMAL_ONLY = (aclrtMemMallocPolicy.ACL_MEM_MALLOC_NORMAL_ONLY, aclrtMemMallocPolicy.ACL_MEM_MALLOC_NORMAL_ONLY_P2P)
_GIANT = (aclrtMemMallocPolicy.ACL_MEM_MALLOC_HUGE1G_ONLY, aclrtMemMallocPolicy.ACL_MEM_MALLOC_HUGE1G_ONLY_P2P)
_P2P = (3, 4, 5, 7)
_DDR_ATTRIBUTES = (0, 2, 3, 6, 7)
_GIANT_ATTRIBUTES = (10, 11, 14, 17)
_FIRST_NEUTRAL = int(aclrtMemAttr.ACL_MEM_NORMAL)
_REGISTER_TYPES = (0, 4, 8)


class MemoryCalls(Calls):
    """acl/acl_rt.h: aclrtMalloc to aclrtFreeHost, aclrtHostRegister, aclrtGetMemInfo, aclrtMemset."""

    def aclrtMalloc(self, pointer: Any, size: int, policy: int) -> None:
        self._allocate(pointer, size, policy, 32)

    def aclrtMallocCached(self, pointer: Any, size: int, policy: int) -> None:
        self._allocate(pointer, size, policy, 32)

    def aclrtMallocAlign32(self, pointer: Any, size: int, policy: int) -> None:
        self._allocate(pointer, size, policy, 0)

    def aclrtMallocWithCfg(self, pointer: Any, size: int, policy: int, config: Any) -> None:
        _check_malloc_config(config)
        self._allocate(pointer, size, policy, 32)

    def aclrtMemFlush(self, pointer: int | None, size: int) -> None:
        self._check_cached(pointer, size)

    def aclrtMemInvalidate(self, pointer: int | None, size: int) -> None:
        self._check_cached(pointer, size)

    def aclrtFree(self, pointer: int | None) -> None:
        need(pointer, "devPtr")
        self.memory.free(pointer or 0, "device")

    def aclrtFreeWithDevSync(self, pointer: int | None) -> None:
        need(pointer, "devPtr")
        self.runtime.synchronize_device(self.runtime.current().device)
        self.memory.free(pointer or 0, "device")

    def aclrtMallocHost(self, pointer: Any, size: int) -> None:
        need(pointer, "hostPtr")
        if size == 0:
            raise refuse("size is 0")
        device = self.runtime.current().device.number
        pointer[0] = self.memory.allocate(device, size, kind="host").address

    def aclrtMallocHostWithCfg(self, pointer: Any, size: int, config: Any) -> None:
        _check_malloc_config(config)
        self.aclrtMallocHost(pointer, size)

    def aclrtFreeHost(self, pointer: int | None) -> None:
        need(pointer, "hostPtr")
        self.memory.free(pointer or 0, "host")

    def aclrtFreeHostWithDevSync(self, pointer: int | None) -> None:
        need(pointer, "hostPtr")
        self.runtime.synchronize_device(self.runtime.current().device)
        self.memory.free(pointer or 0, "host")

    # ---- host memory of the caller

    def aclrtHostRegister(self, pointer: int | None, size: int, kind: int, device_pointer: Any) -> None:
        need(device_pointer, "devPtr")
        if kind not in _REGISTER_TYPES:
            raise refuse(f"register type {kind} is not known")
        device_pointer[0] = self._register(pointer, size).address

    def aclrtHostRegisterV2(self, pointer: int | None, size: int, flags: int) -> None:
        self._register(pointer, size)

    def aclrtHostUnregister(self, pointer: int | None) -> None:
        need(pointer, "ptr")
        self.memory.unregister(pointer or 0)

    def aclrtHostGetDevicePointer(self, pointer: int | None, device_pointer: Any, flags: int) -> None:
        need(pointer, "pHost")
        need(device_pointer, "pDevice")
        block = self.memory.registered_at(pointer or 0, 1)
        if block is None:
            raise Failure(status.HOST_NOT_REGISTERED, f"host memory at {pointer or 0:#x} is not registered")
        device_pointer[0] = block.address + (pointer or 0) - block.pointer

    # ---- information

    def aclrtGetMemInfo(self, attribute: int, free: Any, total: Any) -> None:
        need(free, "free")
        need(total, "total")
        device = self.runtime.current().device.number
        newer = attribute >= _FIRST_NEUTRAL and self.config.release < (8, 5)
        if attribute not in list(aclrtMemAttr) or newer:
            raise Failure(status.RT_INVALID_MEMORY_TYPE, f"memory attribute {attribute} is not known")
        there = self._has_memory(attribute)
        free[0] = self.memory.free_bytes(device) if there else 0
        total[0] = self.config.memory_bytes if there else 0

    def aclrtGetMemUsageInfo(self, number: int, entries: Any, size: int, count: Any) -> None:
        self.runtime.device(number)
        need(entries, "memUsageInfo")
        need(count, "outputNum")
        if size < 1:
            raise refuse("inputNum is 0")
        entry = entries[0]
        entry.name = b"RUNTIME"
        entry.curMemSize, entry.memPeakSize = self.memory.usage(number)
        count[0] = 1

    def aclrtPointerGetAttributes(self, pointer: int | None, attributes: Any) -> None:
        need(pointer, "ptr")
        need(attributes, "attributes")
        block = self.memory.block_at(pointer or 0) or self.memory.registered_at(pointer or 0, 1)
        record = attributes.contents
        kind = block.kind if block is not None else "unregistered"
        record.location.type = {"host": 0, "device": 1, "registered": 0, "unregistered": 2}[kind]
        record.location.id = block.device if block is not None and kind == "device" else 0
        record.pageSize = (block.page_bytes or 4096) if block is not None else 0

    def aclrtCheckMemType(self, addresses: Any, size: int, kind: int, result: Any, reserved: int) -> None:
        raise unsupported("aclrtCheckMemType")

    # ---- set

    def aclrtMemset(self, pointer: int | None, limit: int, value: int, count: int) -> None:
        run, _ = self._set(pointer, limit, value, count)
        self.runtime.current()
        run()

    def aclrtMemsetAsync(self, pointer: int | None, limit: int, value: int, count: int, stream: int | None) -> None:
        run, poison = self._set(pointer, limit, value, count)
        target = self.runtime.stream(stream)
        if count:
            self.runtime.submit(target, Task("aclrtMemsetAsync", run, poison))

    # ---- inside

    def _allocate(self, pointer: Any, size: int, policy: int, padding: int) -> None:
        need(pointer, "devPtr")
        if size == 0:
            raise refuse("size is 0")
        device = self.runtime.current().device.number
        base = policy & 0xFF
        soc = self.config.soc_name
        if (base in _P2P and re.match(r"Ascend310(B|\d*$)", soc)) or (base in _GIANT and not _is_a2(soc)):
            raise unsupported(f"allocation policy {policy} on {soc}")
        if soc.startswith("Ascend950"):
            padding = 0
        block: Block | None = None
        if base in _GIANT:
            block = self.memory.allocate(device, size, padding=0, page_bytes=_GIANT_PAGE_BYTES)
        elif base in _HUGE_ONLY:
            block = self.memory.allocate(device, size, padding=padding, page_bytes=HUGE_PAGE_BYTES)
        elif base not in _NORMAL_ONLY and size > _HUGE_FROM_BYTES:
            try:
                block = self.memory.allocate(device, size, padding=padding, page_bytes=HUGE_PAGE_BYTES)
            except Failure:
                block = None  # huge pages first, ordinary pages after
        if block is None:
            block = self.memory.allocate(device, size, padding=padding)
        pointer[0] = block.address

    def _register(self, pointer: int | None, size: int) -> Block:
        need(pointer, "ptr")
        if size == 0:
            raise refuse("size is 0")
        address = pointer or 0
        if address % 4096:
            raise Failure(status.RT_PARAM_INVALID, f"host memory at {address:#x} is not aligned to 4096 bytes")
        if self.memory.in_device_range(address) or self.memory.in_host_range(address):
            raise Failure(status.RT_PARAM_INVALID, f"{address:#x} is memory of the runtime's own")
        return self.memory.register(address, size, self.runtime.current().device.number)

    def _check_cached(self, pointer: int | None, size: int) -> None:
        need(pointer, "devPtr")
        if size == 0:
            raise refuse("size is 0")
        if self.memory.block_at(pointer or 0) is None:
            raise Failure(status.RT_PARAM_INVALID, f"{pointer or 0:#x} is not live device memory")

    def _has_memory(self, attribute: int) -> bool:
        """Whether the chip has the kind of memory an attribute asks for; a chip without HBM may answer with its DDR."""
        soc = self.config.soc_name
        if attribute in _GIANT_ATTRIBUTES:
            return _is_a2(soc)
        if attribute >= _FIRST_NEUTRAL:
            return True
        has_hbm = bool(re.match(r"Ascend(910|950)", soc))
        if attribute in _DDR_ATTRIBUTES:
            return not has_hbm
        return has_hbm or bool(re.match(r"Ascend310[PB]", soc)) or self.config.release >= (9, 0)

    def _set(
        self, pointer: int | None, limit: int, value: int, count: int
    ) -> tuple[Callable[[], None], Callable[[], None]]:
        need(pointer, "devPtr")
        if count == 0 and self.config.release < (9, 1):
            raise Failure(status.RT_PARAM_INVALID, "count is 0")
        if count > limit:
            raise Failure(status.RT_PARAM_INVALID, f"count {count} is more than the maximum {limit}")
        address = pointer or 0
        self._bytes_at(address, count)

        def run() -> None:
            ctypes.memset(self._bytes_at(address, count), value & 0xFF, count)

        def poison() -> None:
            block = self.memory.block_at(address)
            if block is not None:
                self.memory.poison(self._bytes_at(address, count), count)

        return run, poison

    def _bytes_at(self, address: int, count: int) -> int:
        block = self.memory.block_at(address) or self.memory.registered_at(address, count)
        if block is None:
            raise Failure(status.RT_PARAM_INVALID, f"{address:#x} is not live memory of the runtime's")
        offset = address - (block.address if block.address <= address else block.pointer)
        if offset + count > block.size_bytes:
            raise Failure(
                status.RT_PARAM_INVALID, f"{count} bytes at {address:#x} overrun an allocation of {block.size_bytes}"
            )
        return block.pointer + offset


def _is_a2(soc: str) -> bool:
    return bool(re.match(r"Ascend910(B|_93)", soc))


def _check_malloc_config(config: Any) -> None:
    if not config:
        return
    record = config.contents
    if record.numAttrs and not record.attrs:
        raise refuse("attrs is NULL")
    for index in range(record.numAttrs):
        if record.attrs[index].attr not in list(aclrtMallocAttrType):
            raise refuse(f"allocation attribute {record.attrs[index].attr} is not known")
