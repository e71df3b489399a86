"""Copies: direction, bounds and liveness are checked at the call, and again when an asynchronous copy runs."""

from __future__ import annotations

from dataclasses import dataclass

from aclserve_server.acl.types import aclrtMemcpyKind
from aclserve_server.emulator import status
from aclserve_server.emulator.calls import Calls, need, refuse
from aclserve_server.emulator.entities import Stream, Task
from aclserve_server.emulator.faults import Failure
from aclserve_server.emulator.memory import ALIGNMENT, Block, copy_bytes

_SIDES = {
    aclrtMemcpyKind.ACL_MEMCPY_HOST_TO_HOST: ("host", "host"),
    aclrtMemcpyKind.ACL_MEMCPY_HOST_TO_DEVICE: ("host", "device"),
    aclrtMemcpyKind.ACL_MEMCPY_DEVICE_TO_HOST: ("device", "host"),
    aclrtMemcpyKind.ACL_MEMCPY_DEVICE_TO_DEVICE: ("device", "device"),
    aclrtMemcpyKind.ACL_MEMCPY_HOST_TO_BUF_TO_DEVICE: ("host", "device"),
}
_KINDS = (*_SIDES, aclrtMemcpyKind.ACL_MEMCPY_DEFAULT)
_MAX_WIDTH, _MAX_HEIGHT = 5_000_000, 5 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class _End:
    """One side of a copy: where its bytes are, and in what memory. A null block is pageable host memory."""

    pointer: int
    side: str
    block: Block | None


@dataclass(frozen=True, slots=True)
class _Copy:
    """Rows of bytes from one place to another; a plain copy is one row."""

    destination: int
    source: int
    width: int
    kind: int
    height: int = 1
    destination_pitch: int = 0
    source_pitch: int = 0

    @property
    def destination_span(self) -> int:
        """Bytes from the first to the last byte written."""
        return (self.height - 1) * self.destination_pitch + self.width

    @property
    def source_span(self) -> int:
        """Bytes from the first to the last byte read."""
        return (self.height - 1) * self.source_pitch + self.width


class CopyCalls(Calls):
    """acl/acl_rt.h: aclrtMemcpy, aclrtMemcpyAsync, aclrtMemcpy2d and their kin."""

    def aclrtMemcpy(self, dst: int | None, limit: int, src: int | None, count: int, kind: int) -> None:
        if self._nothing_to_do(dst, limit, src, count, kind):
            return
        self.runtime.current()
        self._perform(_Copy(dst or 0, src or 0, count, kind))

    def aclrtMemcpyAsync(
        self, dst: int | None, limit: int, src: int | None, count: int, kind: int, stream: int | None
    ) -> None:
        if self._nothing_to_do(dst, limit, src, count, kind):
            return
        self._submit("aclrtMemcpyAsync", _Copy(dst or 0, src or 0, count, kind), self.runtime.stream(stream))

    def aclrtMemcpyAsyncWithCondition(
        self, dst: int | None, limit: int, src: int | None, count: int, kind: int, stream: int | None
    ) -> None:
        if self._nothing_to_do(dst, limit, src, count, kind):
            return
        copy = _Copy(dst or 0, src or 0, count, kind)
        self._submit("aclrtMemcpyAsyncWithCondition", copy, self.runtime.stream(stream))

    def aclrtMemcpy2d(
        self, dst: int | None, dpitch: int, src: int | None, spitch: int, width: int, height: int, kind: int
    ) -> None:
        copy = self._rows(dst, dpitch, src, spitch, width, height, kind, (1, 2))
        self.runtime.current()
        if copy is not None:
            self._perform(copy)

    def aclrtMemcpy2dAsync(
        self,
        dst: int | None,
        dpitch: int,
        src: int | None,
        spitch: int,
        width: int,
        height: int,
        kind: int,
        stream: int | None,
    ) -> None:
        far = self.config.soc_name.startswith(("Ascend910B", "Ascend910_93", "Ascend950"))
        copy = self._rows(dst, dpitch, src, spitch, width, height, kind, (1, 2, 3) if far else (1, 2))
        target = self.runtime.stream(stream)
        if copy is not None:
            self._submit("aclrtMemcpy2dAsync", copy, target)

    # ---- checks

    def _nothing_to_do(self, dst: int | None, limit: int, src: int | None, count: int, kind: int) -> bool:
        newest = self.config.release >= (9, 1)
        if count == 0 and newest:
            return True
        need(dst, "dst")
        need(src, "src")
        if kind not in _KINDS:
            raise refuse(f"copy kind {kind} is not known")
        if count == 0 or limit == 0 or count > limit:
            raise Failure(status.RT_PARAM_INVALID, f"count is {count}, destMax is {limit}")
        return dst == src

    def _rows(
        self,
        dst: int | None,
        dpitch: int,
        src: int | None,
        spitch: int,
        width: int,
        height: int,
        kind: int,
        kinds: tuple[int, ...],
    ) -> _Copy | None:
        need(dst, "dst")
        need(src, "src")
        if kind not in kinds and not (kind == aclrtMemcpyKind.ACL_MEMCPY_DEFAULT and self.config.release >= (9, 0)):
            raise refuse(f"copy kind {kind} is not for rows")
        if width > dpitch or width > spitch or width > _MAX_WIDTH or height > _MAX_HEIGHT:
            raise refuse(f"width {width} and height {height} do not fit pitches {dpitch} and {spitch} or the limits")
        if width == 0 or height == 0:
            if self.config.release < (9, 1):
                raise Failure(status.RT_PARAM_INVALID, "width or height is 0")
            return None
        return _Copy(dst or 0, src or 0, width, kind, height, dpitch, spitch)

    def _ends(self, copy: _Copy, bad: int) -> tuple[_End, _End]:
        destination = self._end("destination", copy.destination, copy.destination_span, bad)
        source = self._end("source", copy.source, copy.source_span, bad)
        self._check_direction(copy.kind, source, destination)
        self._check_devices(source, destination)
        return destination, source

    def _end(self, what: str, address: int, length: int, bad: int) -> _End:
        block = self.memory.block_at(address)
        if block is not None:
            offset = address - block.address
            if offset + length > block.size_bytes:
                raise Failure(
                    bad, f"{what}: {length} bytes at {address:#x} overrun an allocation of {block.size_bytes}"
                )
            return _End(block.pointer + offset, "device" if block.kind != "host" else "host", block)
        if self.memory.in_device_range(address) or self.memory.in_host_range(address):
            raise Failure(bad, f"{what}: {address:#x} is not live memory: freed, or never allocated")
        return _End(address, "host", self.memory.registered_at(address, length))

    def _check_direction(self, kind: int, source: _End, destination: _End) -> None:
        if kind == aclrtMemcpyKind.ACL_MEMCPY_DEFAULT or self.config.unified or self.config.release > (8, 1):
            return
        if _SIDES[aclrtMemcpyKind(kind)] != (source.side, destination.side):
            raise Failure(
                status.RT_PARAM_INVALID,
                f"kind {aclrtMemcpyKind(kind).name} does not fit a copy from {source.side} to {destination.side}",
            )

    def _check_devices(self, source: _End, destination: _End) -> None:
        if source.block is None or destination.block is None or source.block.device == destination.block.device:
            return
        if source.side == destination.side == "device":
            one, other = source.block.device, destination.block.device
            devices = self.runtime.devices
            if other not in devices[one].peers and one not in devices[other].peers:
                raise Failure(status.RT_PARAM_INVALID, f"no peer access between devices {one} and {other}")

    # ---- doing it

    def _submit(self, function: str, copy: _Copy, stream: Stream) -> None:
        destination, source = self._ends(copy, status.RT_PARAM_INVALID)
        host_only = source.side == destination.side == "host"
        if host_only and not self.config.unified and self.config.release >= (9, 0):
            raise Failure(status.RT_FEATURE_NOT_SUPPORT, "asynchronous copies within host memory are not supported")
        pageable = source.block is None or destination.block is None
        if self.config.release <= (8, 1):
            if pageable:
                raise Failure(
                    status.RT_PARAM_INVALID,
                    "an asynchronous copy needs host memory from aclrtMallocHost: others are unpredictable",
                )
            if copy.destination % ALIGNMENT or copy.source % ALIGNMENT:
                raise Failure(
                    status.RT_ADDR_UNALIGNED, f"an asynchronous copy needs addresses aligned to {ALIGNMENT} bytes"
                )
        elif pageable:
            self.runtime.synchronize(stream)
            self._perform(copy)
            return
        self.runtime.submit(stream, Task(function, lambda: self._perform(copy), lambda: self._poison(copy)))

    def _perform(self, copy: _Copy) -> None:
        destination, source = self._ends(copy, status.RT_SYS_DMA)
        if copy.height == 1:
            copy_bytes(destination.pointer, source.pointer, copy.width)
        else:
            for row in range(copy.height):
                copy_bytes(
                    destination.pointer + row * copy.destination_pitch,
                    source.pointer + row * copy.source_pitch,
                    copy.width,
                )
        sides = (source.side, destination.side)
        if self.config.unified and copy.kind in _SIDES:
            sides = _SIDES[aclrtMemcpyKind(copy.kind)]
        self.machine.counters.count_copy(f"{sides[0]}_to_{sides[1]}", copy.width * copy.height)

    def _poison(self, copy: _Copy) -> None:
        try:
            destination = self._end("destination", copy.destination, copy.destination_span, status.RT_SYS_DMA)
        except Failure:
            return
        for row in range(copy.height):
            self.memory.poison(destination.pointer + row * copy.destination_pitch, copy.width)
