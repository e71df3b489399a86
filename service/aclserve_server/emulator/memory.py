"""The address space: allocations, registered host memory, capacity, and the way from an address to its bytes.

Every address a caller passes is looked up here. A device address is only ever a key: its bytes are found through the
block it lies in, so in run mode `host`, where device addresses fault, the emulator works on the same bytes elsewhere.
"""

from __future__ import annotations

import ctypes
import threading
from bisect import bisect_right, insort
from ctypes import PYFUNCTYPE, c_size_t, c_void_p, cast
from dataclasses import dataclass, field

from aclserve_server.emulator import status
from aclserve_server.emulator.arena import Arena
from aclserve_server.emulator.config import EmulatorConfig
from aclserve_server.emulator.faults import Failure
from aclserve_server.emulator.pages import PAGE_BYTES, POISON, Region, align_up

ALIGNMENT = 64
HUGE_PAGE_BYTES = 2 << 20
_LARGE_COPY_BYTES = 256 << 10

# Small copies keep the interpreter lock: giving it up costs more than the copy. Large ones release it.
_copy_small = PYFUNCTYPE(c_void_p, c_void_p, c_void_p, c_size_t)(cast(ctypes.memmove, c_void_p).value or 0)


def copy_bytes(destination: int, source: int, length: int) -> None:
    """Move bytes between two addresses of this process."""
    if length >= _LARGE_COPY_BYTES:
        ctypes.memmove(destination, source, length)
    elif length:
        _copy_small(destination, source, length)


@dataclass(slots=True)
class Block:
    """One allocation. A task may touch `usable_bytes` from `address`; `charged_bytes` is what it costs its device."""

    address: int
    size_bytes: int
    usable_bytes: int
    extent_bytes: int
    charged_bytes: int
    pointer: int
    device: int
    kind: str  # "device", "host", "registered"
    page_bytes: int = 0  # of huge pages, 0 for ordinary ones
    live: bool = True
    holders: list[str] = field(default_factory=list)  # models that work in this memory


class AddressSpace:
    """All emulated memory. Any thread; the lock guards the bookkeeping, never a copy."""

    def __init__(self, config: EmulatorConfig) -> None:
        self._config = config
        self.lock = threading.Lock()
        device_bytes = 2 * align_up(config.memory_bytes, HUGE_PAGE_BYTES) * max(config.device_count, 1)
        self._device = Region(device_bytes, apart=not config.unified)
        self._device_arena = Arena(self._device.base, self._device.size)
        self._host = self._device if config.unified else Region(2 * config.host_memory_bytes, apart=False)
        self._host_arena = self._device_arena if config.unified else Arena(self._host.base, self._host.size)
        self._blocks: dict[int, Block] = {}
        self._order: list[int] = []
        self._registered: dict[int, Block] = {}
        self._charged = [0] * config.device_count
        self._peak = [0] * config.device_count
        self._host_charged = 0

    # ---- allocation

    def allocate(
        self, device: int, size: int, *, padding: int = 32, page_bytes: int = 0, kind: str = "device"
    ) -> Block:
        """Fresh, poisoned memory of a device, or pinned host memory; 207001 when there is none left."""
        on_device = kind == "device" or self._config.unified
        usable = align_up(size, 32) + padding
        charged = align_up(usable, page_bytes) if page_bytes else usable
        extent = align_up(usable, ALIGNMENT)
        alignment = PAGE_BYTES if extent >= 16 * PAGE_BYTES else ALIGNMENT
        with self.lock:
            free = self.free_bytes(device) if on_device else self._config.host_memory_bytes - self._host_charged
            region, arena = (self._device, self._device_arena) if on_device else (self._host, self._host_arena)
            address = arena.allocate(extent, alignment) if charged <= free else None
            if address is None:
                where = f"device {device}" if on_device else "the host"
                raise Failure(status.RT_MEMORY_ALLOCATION, f"out of memory: {size} bytes asked, {free} free on {where}")
            region.reach(address + extent)
            pointer = address + region.delta
            block = Block(address, size, usable, extent, charged, pointer, device, kind, page_bytes)
            self._charge(block, charged)
            self._blocks[address] = block
            insort(self._order, address)
            return block

    def free(self, address: int, kind: str) -> None:
        """Give an allocation back; refused for an interior, foreign, freed or held address."""
        with self.lock:
            block = self._blocks.get(address)
            if block is None or block.kind != kind:
                raise self._bad_free(address, kind, block)
            if block.holders:
                raise Failure(
                    status.RT_MEMORY_FREE,
                    f"memory at {address:#x} is in use by {', '.join(block.holders)}; unload first",
                )
            self._drop(block)

    def register(self, pointer: int, size: int, device: int) -> Block:
        """Make host memory of the caller usable by the device; the block's address is what the device calls it."""
        with self.lock:
            end = pointer + size
            if any(b.pointer < end and pointer < b.pointer + b.size_bytes for b in self._registered.values()):
                raise Failure(status.HOST_REGISTERED, f"host memory at {pointer:#x} is registered already")
            extent = align_up(size, ALIGNMENT)
            address = pointer
            if not self._config.unified:
                found = self._device_arena.allocate(extent, PAGE_BYTES)
                if found is None:
                    raise Failure(status.RT_MEMORY_ALLOCATION, "no device addresses left for registered host memory")
                address = found
            block = Block(address, size, size, extent, 0, pointer, device, "registered")
            self._registered[pointer] = block
            if address != pointer:
                self._blocks[address] = block
                insort(self._order, address)
            return block

    def unregister(self, pointer: int) -> None:
        """Undo `register`; the memory stays the caller's."""
        with self.lock:
            block = self._registered.pop(pointer, None)
            if block is None:
                raise Failure(status.HOST_NOT_REGISTERED, f"host memory at {pointer:#x} is not registered")
            block.live = False
            if block.address != block.pointer:
                del self._blocks[block.address]
                self._order.remove(block.address)
                self._device_arena.release(block.address, block.extent_bytes)

    # ---- capacity

    def reserve(self, device: int, size: int) -> None:
        """Charge a device for memory that has no address of its own (a model's weights and work space)."""
        with self.lock:
            free = self.free_bytes(device)
            if size > free:
                raise Failure(
                    status.RT_MEMORY_ALLOCATION,
                    f"out of memory: a model needs {size} bytes, {free} free on device {device}",
                )
            self._charged[device] += size
            self._peak[device] = max(self._peak[device], self._charged[device])

    def unreserve(self, device: int, size: int) -> None:
        """Undo `reserve`."""
        with self.lock:
            self._charged[device] -= size

    def free_bytes(self, device: int) -> int:
        """What is left of a device's memory."""
        return self._config.memory_bytes - self._charged[device]

    def usage(self, device: int) -> tuple[int, int]:
        """Bytes in use on a device, now and at most."""
        return self._charged[device], self._peak[device]

    # ---- lookup

    def block_at(self, address: int) -> Block | None:
        """The live block an address lies in."""
        block = self._blocks.get(address)
        if block is not None:
            return block
        with self.lock:
            index = bisect_right(self._order, address) - 1
            if index < 0:
                return None
            block = self._blocks[self._order[index]]
            return block if address < block.address + block.usable_bytes else None

    def usable_at(self, address: int) -> Block | None:
        """The live memory that a device may use under this address: its own, or registered host memory."""
        return self.block_at(address) or (self.registered_at(address, 1) if self._config.unified else None)

    def registered_at(self, pointer: int, length: int) -> Block | None:
        """The registered block that holds a range of the caller's host memory."""
        with self.lock:
            for block in self._registered.values():
                if block.pointer <= pointer and pointer + length <= block.pointer + block.size_bytes:
                    return block
        return None

    def in_device_range(self, address: int) -> bool:
        """Whether an address belongs to device memory, allocated or not."""
        return self._device.holds(address)

    def in_host_range(self, address: int) -> bool:
        """Whether an address belongs to the emulator's pinned host memory, allocated or not."""
        return self._host.holds(address)

    def blocks(self) -> list[Block]:
        """All live allocations and registrations."""
        with self.lock:
            return [block for block in self._blocks.values() if block.kind != "registered"] + list(
                self._registered.values()
            )

    def poison(self, pointer: int, length: int) -> None:
        """Fill bytes with poison: what a failed task leaves."""
        if length > 0:
            ctypes.memset(pointer, POISON, length)

    def close(self) -> None:
        """Give all addresses back. Memory the caller has not freed stays readable, so that no stale view crashes."""
        owned = [block for block in self._blocks.values() if block.kind != "registered"]
        self._device.close(keep_mapped=bool(owned))
        if self._host is not self._device:
            self._host.close(keep_mapped=any(block.kind == "host" for block in owned))
        self._blocks.clear()
        self._order.clear()
        self._registered.clear()

    def _charge(self, block: Block, amount: int) -> None:
        if block.kind == "device" or self._config.unified:
            self._charged[block.device] += amount
            self._peak[block.device] = max(self._peak[block.device], self._charged[block.device])
        else:
            self._host_charged += amount

    def _drop(self, block: Block) -> None:
        del self._blocks[block.address]
        self._order.pop(bisect_right(self._order, block.address) - 1)
        block.live = False
        self._charge(block, -block.charged_bytes)
        on_device = block.kind == "device" or self._config.unified
        region, arena = (self._device, self._device_arena) if on_device else (self._host, self._host_arena)
        free_start, free_end = arena.release(block.address, block.extent_bytes)
        free_end = min(free_end, region.base + region.reached_bytes)
        region.give_back(block.address, block.address + block.extent_bytes, free_start, free_end)

    def _bad_free(self, address: int, kind: str, block: Block | None) -> Failure:
        if kind == "host":
            return Failure(status.RT_PARAM_INVALID, f"{address:#x} is not pinned host memory of this process")
        if block is not None:
            return Failure(status.RT_PARAM_INVALID, f"{address:#x} is {block.kind} memory, not from aclrtMalloc")
        if self._device.holds(address):
            return Failure(status.RT_DRV_INTERNAL_ERROR, f"{address:#x} is freed already, or inside an allocation")
        return Failure(status.RT_PARAM_INVALID, f"{address:#x} is not a device address")
