"""Model files on their way into the server, and the bookkeeping of every transfer that arrives in chunks."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Self

import google_crc32c
import numpy as np

from aclserve.errors import DataLoss, InvalidArgument
from aclserve_server.device.thread import DeviceThread
from aclserve_server.engine.holdings import Upload
from aclserve_server.engine.leases import Lease


class Transfer:
    """The progress of a transfer whose length, and maybe CRC32C, was announced. 1 byte or more."""

    __slots__ = ("_expected", "crc32c", "length_bytes", "received_bytes")

    def __init__(self, length_bytes: int, expected_crc32c: int | None) -> None:
        """Raises InvalidArgument, reason SIZE_IS_ZERO."""
        if length_bytes < 1:
            raise InvalidArgument("a transfer of 0 bytes was announced; expected 1 or more", reason="SIZE_IS_ZERO")
        self.length_bytes = length_bytes
        self.received_bytes = 0
        self.crc32c = 0
        self._expected = expected_crc32c

    def check(self, data: bytes) -> None:
        """Raises InvalidArgument, reason UPLOAD_TOO_LONG, when a chunk exceeds what was announced."""
        end = self.received_bytes + len(data)
        if end > self.length_bytes:
            raise InvalidArgument(
                f"{end} bytes arrived, {self.length_bytes} were announced in the header",
                reason="UPLOAD_TOO_LONG",
                metadata={"received_bytes": end, "expected_bytes": self.length_bytes},
            )

    def add(self, data: bytes) -> None:
        """Counts a checked chunk."""
        self.received_bytes += len(data)
        self.crc32c = google_crc32c.extend(self.crc32c, data)

    def finish(self) -> int:
        """The CRC32C of all bytes. Raises InvalidArgument (UPLOAD_TRUNCATED) and DataLoss (CHECKSUM_MISMATCH)."""
        if self.received_bytes < self.length_bytes:
            raise InvalidArgument(
                f"the stream ended after {self.received_bytes} bytes, {self.length_bytes} were announced in the header",
                reason="UPLOAD_TRUNCATED",
                metadata={"received_bytes": self.received_bytes, "expected_bytes": self.length_bytes},
            )
        if self._expected is not None and self._expected != self.crc32c:
            raise DataLoss(
                f"the bytes that arrived have CRC32C {self.crc32c:#010x}, the header announced {self._expected:#010x}: "
                "send them again",
                reason="CHECKSUM_MISMATCH",
                metadata={"crc32c": f"{self.crc32c:#010x}", "expected_crc32c": f"{self._expected:#010x}"},
            )
        return self.crc32c


class UploadWriter:
    """Fills one upload. Use it in `with`: what has not been finished at the end is discarded. Event loop only.

    Ended by its lease's end: `write` and `finish` then raise NotFound, reason LEASE_NOT_FOUND.
    """

    def __init__(
        self,
        lease: Lease,
        upload: Upload,
        transfer: Transfer,
        require_lease: Callable[[], object],
        blocking: DeviceThread,
    ) -> None:
        """`require_lease` raises when the lease is not valid any more."""
        self._lease = lease
        self._upload = upload
        self._transfer = transfer
        self._require_lease = require_lease
        self._blocking = blocking

    async def write(self, data: bytes) -> None:
        """Takes the next bytes. Raises InvalidArgument, reason UPLOAD_TOO_LONG."""
        self._require_lease()
        view, transfer = self._upload.data, self._transfer
        transfer.check(data)
        if data and view is not None:
            at = transfer.received_bytes

            def copy() -> None:
                view[at : at + len(data)] = data
                transfer.add(data)

            await self._blocking.run(copy)

    def finish(self) -> tuple[str, int]:
        """The upload's id and the CRC32C of its bytes. Raises as `Transfer.finish`, and then nothing is kept."""
        self._require_lease()
        crc32c = self._transfer.finish()
        self._upload.complete = True
        return self._upload.id, crc32c

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if not self._upload.complete and not self._upload.gone:
            del self._lease.uploads[self._upload.id]
            self._upload.drop()


class UploadPin:
    """A complete upload's bytes, kept until `release`; `data` must not be used afterwards."""

    __slots__ = ("_upload", "data")

    def __init__(self, upload: Upload) -> None:
        assert upload.data is not None
        upload.pins += 1
        self.data = upload.data.toreadonly()
        self._upload: Upload | None = upload

    def release(self) -> None:
        """The bytes are not used any more. Idempotent."""
        upload, self._upload = self._upload, None
        self.data = memoryview(b"")
        if upload is not None:
            upload.unpin()


def reserve(size_bytes: int) -> memoryview:
    """Writable memory of undefined content whose pages the system provides as they are written to."""
    return np.empty(size_bytes, np.uint8).data
