"""Pages of the emulated memories: reserved address ranges whose unused bytes read as poison and cost nothing.

A range is mapped from one small file full of poison, privately: an untouched page is poison without owning memory, a
written page is a copy of its own, and giving a page back makes it poison again and returns its memory to the system.
"""

from __future__ import annotations

import ctypes
import os
from ctypes import c_int, c_long, c_size_t, c_void_p

POISON = 0xA5
PAGE_BYTES = 4096
_CHUNK_BYTES = 4 << 20
_PROT_NONE, _PROT_READ_WRITE = 0, 3
_MAP_PRIVATE, _MAP_FIXED, _MAP_ANONYMOUS, _MAP_NORESERVE = 0x02, 0x10, 0x20, 0x4000
_MADV_DONTNEED = 4
_FAILED = c_void_p(-1).value


class _System:
    """The four calls of the C library that Python's own mmap does not offer with fixed addresses."""

    def __init__(self) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self._mmap = libc.mmap
        self._mmap.restype = c_void_p
        self._mmap.argtypes = (c_void_p, c_size_t, c_int, c_int, c_int, c_long)
        self._munmap = libc.munmap
        self._munmap.argtypes = (c_void_p, c_size_t)
        self._madvise = libc.madvise
        self._madvise.argtypes = (c_void_p, c_size_t, c_int)

    def reserve(self, length: int) -> int:
        """An address range that faults when touched."""
        return self._map(None, length, _PROT_NONE, _MAP_PRIVATE | _MAP_ANONYMOUS | _MAP_NORESERVE, -1)

    def map_file(self, address: int, length: int, descriptor: int) -> None:
        """Readable and writable private pages of a file at a reserved address."""
        self._map(address, length, _PROT_READ_WRITE, _MAP_PRIVATE | _MAP_FIXED | _MAP_NORESERVE, descriptor)

    def discard(self, address: int, length: int) -> None:
        """Drop private copies of pages."""
        self._madvise(address, length, _MADV_DONTNEED)

    def unmap(self, address: int, length: int) -> None:
        """Give an address range back."""
        self._munmap(address, length)

    def _map(self, address: int | None, length: int, protection: int, flags: int, descriptor: int) -> int:
        result = self._mmap(address, length, protection, flags, descriptor, 0)
        if result is None or result == _FAILED:
            number = ctypes.get_errno()
            raise MemoryError(f"cannot reserve {length} bytes of address space: {os.strerror(number)}")
        return int(result)


class Region:
    """One memory: addresses from `base` for `size` bytes; their bytes lie `delta` further, which is 0 unless `apart`.

    Apart means that the addresses themselves fault when touched: what a device address does on a host with a PCIe card.
    Not thread-safe; the address space's lock guards it.
    """

    def __init__(self, size: int, apart: bool) -> None:
        self.size = align_up(size, _CHUNK_BYTES)
        self._system = _System()
        self._descriptor = os.memfd_create("aclserve-poison")
        os.write(self._descriptor, bytes([POISON]) * _CHUNK_BYTES)
        self._bytes = self._system.reserve(self.size)
        self.base = self._system.reserve(self.size) if apart else self._bytes
        self.delta = self._bytes - self.base
        self._reached = 0

    def reach(self, end: int) -> None:
        """Make every address below `end` usable."""
        while self.base + self._reached < end:
            self._system.map_file(self._bytes + self._reached, _CHUNK_BYTES, self._descriptor)
            self._reached += _CHUNK_BYTES

    def holds(self, address: int) -> bool:
        """Whether an address belongs to this memory, allocated or not."""
        return self.base <= address < self.base + self.size

    def give_back(self, start: int, end: int, free_start: int, free_end: int) -> None:
        """Poison `[start, end)`, which lies in the free range given, and return its whole free pages to the system."""
        first = max(align_up(free_start, PAGE_BYTES), start - start % PAGE_BYTES)
        last = min(free_end - free_end % PAGE_BYTES, align_up(end, PAGE_BYTES))
        if first >= last:
            ctypes.memset(start + self.delta, POISON, end - start)
            return
        self._system.discard(first + self.delta, last - first)
        if start < first:
            ctypes.memset(start + self.delta, POISON, first - start)
        if last < end:
            ctypes.memset(last + self.delta, POISON, end - last)

    @property
    def reached_bytes(self) -> int:
        """How far the memory is usable."""
        return self._reached

    def close(self, keep_mapped: bool) -> None:
        """Give the addresses back; `keep_mapped` leaves the bytes readable for whoever still holds a view of them."""
        os.close(self._descriptor)
        if self.base != self._bytes:
            self._system.unmap(self.base, self.size)
        if not keep_mapped:
            self._system.unmap(self._bytes, self.size)


def align_up(value: int, alignment: int) -> int:
    """The smallest multiple of `alignment` that is not below `value`."""
    return (value + alignment - 1) // alignment * alignment
