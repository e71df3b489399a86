"""Bytes between Python and clients' buffers, chunk by chunk.

A reader or writer holds nothing between its chunks: it looks its buffer up again for each, so that a stalled client
keeps no memory alive, and a buffer that was freed in between ends the transfer with BUFFER_NOT_FOUND.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

import google_crc32c

from aclserve_server.device.buffers import Buffer
from aclserve_server.device.device import Device
from aclserve_server.engine.holdings import ClientBuffer
from aclserve_server.engine.uploads import Transfer

T = TypeVar("T")

CHUNK_BYTES = 1 << 20
"""The largest chunk that is read, and the size of the staging memory."""


class RunPinned(Protocol):
    """Runs a function on the blocking thread while the buffers are pinned."""

    async def __call__(self, buffers: Sequence[ClientBuffer], function: Callable[[], T]) -> T: ...


class Staging:
    """Moves bytes into and out of any buffer; page-locked memory in between where the host cannot touch the device's.

    Blocking thread only: its order is what guards the memory.
    """

    def __init__(self, device: Device) -> None:
        self._device = device
        self._buffer: Buffer | None = None

    def open(self) -> None:
        """Allocates the page-locked memory; none is needed where host and device share one memory."""
        if self._device.run_mode == "host":
            self._buffer = self._device.allocate_host(CHUNK_BYTES)

    def close(self) -> None:
        """Idempotent."""
        if self._buffer is not None:
            self._buffer.close()
            self._buffer = None

    def write(self, buffer: Buffer, offset_bytes: int, data: bytes) -> None:
        """Copies `data`, of any length, into a range that lies inside the buffer."""
        if buffer.host_accessible:
            buffer.view()[offset_bytes : offset_bytes + len(data)] = data
            return
        staging, source = self._require(), memoryview(data)
        for at in range(0, len(data), CHUNK_BYTES):
            piece = source[at : at + CHUNK_BYTES]
            staging.view()[: len(piece)] = piece
            self._device.copy(buffer, offset_bytes + at, staging, 0, len(piece))

    def read(self, buffer: Buffer, offset_bytes: int, length_bytes: int) -> bytes:
        """Copies out a range of at most CHUNK_BYTES."""
        if buffer.host_accessible:
            return bytes(buffer.view()[offset_bytes : offset_bytes + length_bytes])
        staging = self._require()
        self._device.copy(staging, 0, buffer, offset_bytes, length_bytes)
        return bytes(staging.view()[:length_bytes])

    def _require(self) -> Buffer:
        if self._buffer is None:
            raise RuntimeError("the memory manager was not started, or is closed")
        return self._buffer


class BufferWriter:
    """Writes one range of a buffer, in order."""

    def __init__(
        self,
        run_pinned: RunPinned,
        staging: Staging,
        find: Callable[[], ClientBuffer],
        offset_bytes: int,
        transfer: Transfer,
    ) -> None:
        """`find` returns the buffer or raises why it is not there any more."""
        self._run_pinned = run_pinned
        self._staging = staging
        self._find = find
        self._offset = offset_bytes
        self._transfer = transfer

    async def write(self, data: bytes) -> None:
        """Takes the next bytes. Raises InvalidArgument, reason UPLOAD_TOO_LONG."""
        buffer, transfer = self._find(), self._transfer
        transfer.check(data)
        if data:
            at = self._offset + transfer.received_bytes

            def copy() -> None:
                self._staging.write(buffer.memory, at, data)
                transfer.add(data)

            await self._run_pinned([buffer], copy)

    def finish(self) -> int:
        """The CRC32C of what was written. Raises as `Transfer.finish`."""
        return self._transfer.finish()


class BufferReader:
    """Reads one range of a buffer, in order; `crc32c` is that of all bytes read so far."""

    def __init__(
        self,
        run_pinned: RunPinned,
        staging: Staging,
        find: Callable[[], ClientBuffer],
        offset_bytes: int,
        length_bytes: int,
    ) -> None:
        """`find` returns the buffer or raises why it is not there any more."""
        self.remaining_bytes = length_bytes
        self.crc32c = 0
        self._run_pinned = run_pinned
        self._staging = staging
        self._find = find
        self._offset = offset_bytes

    async def read(self) -> bytes:
        """The next bytes, at most CHUNK_BYTES; none at the end."""
        buffer, offset = self._find(), self._offset
        length = min(self.remaining_bytes, CHUNK_BYTES)
        if not length:
            return b""
        data = await self._run_pinned([buffer], lambda: self._staging.read(buffer.memory, offset, length))
        self._offset += length
        self.remaining_bytes -= length
        self.crc32c = google_crc32c.extend(self.crc32c, data)
        return data
