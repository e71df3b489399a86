"""Server memory held by the synchronous client."""

from __future__ import annotations

import logging
import threading
from types import TracebackType
from typing import Any, Self

from numpy.typing import NDArray

from aclserve.errors import AclserveError, FailedPrecondition, NotFound
from aclserve_client import data, verbs
from aclserve_client.calls import CLOSING_TIMEOUT_S, Caller
from aclserve_client.options import DEFAULT, Timeout
from aclserve_client.verbs import RENEWALS_PER_TTL, Source, SourceLike, buffer_id

logger = logging.getLogger(__name__)


class Lease:
    """Server memory held by this client, renewed by a background thread until the `with` block ends, then freed.

    If this process dies, the server frees it after the time to live.
    """

    def __init__(self, caller: Caller, ttl: float | None, timeout: Timeout) -> None:
        self._caller = caller
        self._ttl = ttl
        self._timeout = timeout
        self._info: data.LeaseInfo | None = None
        self._stop = threading.Event()
        self._keeper = threading.Thread(target=self._keep_alive, name="aclserve-lease-keepalive", daemon=True)

    def __enter__(self) -> Self:
        self._info = self._caller.run(verbs.create_lease(self._ttl), self._timeout)
        self._keeper.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._keeper.join()
        self._release(self._timeout, logging.WARNING)

    def _end(self, *, release: bool) -> None:
        """Ends it without waiting for long: releases the lease if the server answers at once, or lets it expire."""
        self._stop.set()
        if release:
            self._release(CLOSING_TIMEOUT_S, logging.DEBUG)

    def _release(self, timeout: Timeout, level: int) -> None:
        try:
            self._caller.run(verbs.release_lease(), timeout, self.id)
        except AclserveError as failure:
            logger.log(level, "the lease could not be released, it will expire: %s", failure)

    def _keep_alive(self) -> None:
        interval = self._opened.ttl_s / RENEWALS_PER_TTL
        while not self._stop.wait(interval):
            try:
                self.renew(timeout=interval)
            except NotFound as gone:
                logger.warning("the lease is gone: %s", gone)
                return
            except AclserveError as failure:
                logger.info("the lease was not renewed, trying again: %s", failure)

    @property
    def _opened(self) -> data.LeaseInfo:
        if self._info is None:
            raise FailedPrecondition("the lease is not open; use it in `with`", reason="LEASE_NOT_OPEN")
        return self._info

    @property
    def id(self) -> str:
        """The lease's secret id."""
        return self._opened.id

    def renew(self, *, timeout: Timeout = DEFAULT) -> data.LeaseInfo:
        """Starts the time to live anew, and tells what the lease holds."""
        return self._caller.run(verbs.renew_lease(), timeout, self.id)

    def allocate(
        self,
        size_bytes: int,
        space: data.MemorySpace | str = data.MemorySpace.DEVICE,
        policy: data.AllocationPolicy | str = data.AllocationPolicy.UNSPECIFIED,
        *,
        timeout: Timeout = DEFAULT,
    ) -> data.BufferInfo:
        """Allocates a buffer. Its contents are undefined."""
        return self._caller.run(verbs.allocate(size_bytes, space, policy), timeout, self.id)

    def free(self, buffer: data.BufferInfo | str, *, timeout: Timeout = DEFAULT) -> None:
        """Frees a buffer; the memory stays until no inference uses it."""
        self._caller.run(verbs.free(buffer_id(buffer)), timeout, self.id)

    def buffers(self, *, timeout: Timeout = DEFAULT) -> list[data.BufferInfo]:
        """The lease's buffers."""
        return self._caller.run(verbs.buffers(), timeout, self.id)

    def set(
        self,
        buffer: data.BufferInfo | str,
        value: int,
        *,
        offset_bytes: int = 0,
        length_bytes: int = 0,
        timeout: Timeout = DEFAULT,
    ) -> None:
        """Sets every byte of a range to `value`, 0 to 255. Length 0 means to the end."""
        self._caller.run(verbs.set_memory(buffer_id(buffer), value, offset_bytes, length_bytes), timeout, self.id)

    def copy(
        self,
        source: data.BufferInfo | str,
        destination: data.BufferInfo | str,
        length_bytes: int,
        *,
        source_offset_bytes: int = 0,
        destination_offset_bytes: int = 0,
        timeout: Timeout = DEFAULT,
    ) -> None:
        """Copies between two buffers of the lease, host and device in any direction."""
        ids = buffer_id(source), buffer_id(destination)
        steps = verbs.copy(*ids, length_bytes, source_offset_bytes, destination_offset_bytes)
        self._caller.run(steps, timeout, self.id)

    def write(
        self, buffer: data.BufferInfo | str, content: SourceLike, *, offset_bytes: int = 0, timeout: Timeout = DEFAULT
    ) -> None:
        """Writes an array's elements (row-major), bytes, or a file's content into a buffer, under a checksum."""
        source = Source(content, self._caller.options.chunk_bytes)
        steps = verbs.write(buffer_id(buffer), source, source.checksum(), offset_bytes)
        self._caller.run(steps, timeout, self.id)

    def read(
        self,
        buffer: data.BufferInfo | str,
        *,
        offset_bytes: int = 0,
        length_bytes: int = 0,
        timeout: Timeout = DEFAULT,
    ) -> bytes:
        """Reads a range, under a checksum. Length 0 means to the end."""
        return self._caller.run(verbs.read(buffer_id(buffer), offset_bytes, length_bytes), timeout, self.id)

    def read_array(
        self,
        buffer: data.BufferInfo | data.BufferRef | str,
        shape: tuple[int, ...],
        dtype: str,
        *,
        offset_bytes: int = 0,
        timeout: Timeout = DEFAULT,
    ) -> NDArray[Any]:
        """Reads a tensor, as a read-only array."""
        return self._caller.run(verbs.read_array(buffer_id(buffer), shape, dtype, offset_bytes), timeout, self.id)

    def upload(self, source: SourceLike, *, timeout: Timeout = DEFAULT) -> str:
        """Uploads a model file (its bytes or its path) for `Client.load`; returns the upload's id."""
        file = Source(source, self._caller.options.chunk_bytes)
        return self._caller.run(verbs.upload(file, file.checksum()), timeout, self.id)


def lease_id(lease: Lease | str | None) -> str:
    """The id to show, or "" for none."""
    return lease.id if isinstance(lease, Lease) else lease or ""
