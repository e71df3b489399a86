"""The synchronous client. What the verbs do is in `verbs`; here is only their form."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Any, Self

from numpy.typing import NDArray

from aclserve.errors import AclserveError, FailedPrecondition, NotFound
from aclserve_client import data, verbs
from aclserve_client.calls import Caller
from aclserve_client.options import DEFAULT, DEFAULT_ADDRESS, Options, Timeout
from aclserve_client.stream_data import FramePolicy, Priority, StreamPreset, StreamsReport
from aclserve_client.sync_stream import Stream
from aclserve_client.verbs import RENEWALS_PER_TTL, Source, SourceLike, buffer_id

logger = logging.getLogger(__name__)


class Client:
    """A connection to an aclserve server. Thread-safe. Use it in `with`, or call `close`.

    Several addresses ("host:port,host:port", or several texts) are servers that stand in for each other: one is in use
    until it is unavailable, then the next. What a lease holds stays on the server that gave it.

    Nothing is connected before the first call. Every call takes a `timeout` in seconds, by default `Options.timeout`,
    and raises the errors of `aclserve.errors`, the same classes that the server raised.
    """

    def __init__(self, address: str | Iterable[str] = DEFAULT_ADDRESS, options: Options | None = None) -> None:
        self._caller = Caller(address, options or Options())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connection; calls under way fail."""
        self._caller.close()

    def devices(self, *, timeout: Timeout = DEFAULT) -> list[data.DeviceInfo]:
        """The server's devices."""
        return self._caller.run(verbs.devices(), timeout)

    def server_info(self, *, timeout: Timeout = DEFAULT) -> data.ServerInfo:
        """The server's versions, abilities and limits."""
        return self._caller.run(verbs.server_info(), timeout)

    def memory(
        self, attributes: Iterable[data.MemoryAttribute | str] = (), *, timeout: Timeout = DEFAULT
    ) -> list[data.MemoryUsage]:
        """Free and total memory of the device by attribute; without attributes, all that the device has."""
        return self._caller.run(verbs.memory(attributes), timeout)

    def models(self, *, timeout: Timeout = DEFAULT) -> list[data.ModelInfo]:
        """All models, loaded or not."""
        return self._caller.run(verbs.models(), timeout)

    def describe(self, model: str, version: int = 0, *, timeout: Timeout = DEFAULT) -> data.ModelDescription:
        """One loaded model. `version` 0 means the highest one that is ready."""
        return self._caller.run(verbs.describe(model, version), timeout)

    def query_model_size(
        self,
        model: str = "",
        version: int = 0,
        *,
        upload: str | None = None,
        lease: Lease | str | None = None,
        timeout: Timeout = DEFAULT,
    ) -> data.ModelSize:
        """The device memory that a load of that model, or of an upload of the lease, would take."""
        return self._caller.run(verbs.query_model_size(model, version, upload), timeout, lease_id(lease))

    def load(
        self,
        model: str,
        version: int = 0,
        *,
        upload: str | None = None,
        execution_mode: data.ExecutionMode | str = data.ExecutionMode.UNSPECIFIED,
        work_buffer: data.BufferInfo | None = None,
        weight_buffer: data.BufferInfo | None = None,
        lease: Lease | str | None = None,
        timeout: Timeout = DEFAULT,
    ) -> data.ModelDescription:
        """Loads a model of the repository, or an upload of the lease under the name `model`.

        With the two buffers of the lease, the model's memory is the caller's, pinned until the model is unloaded.
        """
        steps = verbs.load(model, version, upload, execution_mode, work_buffer, weight_buffer)
        return self._caller.run(steps, timeout, lease_id(lease))

    def upload_and_load(
        self,
        model: str,
        source: SourceLike,
        *,
        execution_mode: data.ExecutionMode | str = data.ExecutionMode.UNSPECIFIED,
        timeout: Timeout = DEFAULT,
    ) -> data.ModelDescription:
        """Uploads a model file (its bytes or its path) and loads it under the name `model`.

        `timeout` is for the upload and for the load, each.
        """
        with self.lease(timeout=timeout) as lease:
            upload = lease.upload(source, timeout=timeout)
            return self.load(model, upload=upload, execution_mode=execution_mode, lease=lease, timeout=timeout)

    def unload(self, model: str, version: int = 0, *, timeout: Timeout = DEFAULT) -> None:
        """Unloads a model, however it was loaded. What it has accepted is answered first."""
        self._caller.run(verbs.unload(model, version), timeout)

    def infer(
        self,
        model: str,
        inputs: data.Inputs,
        *,
        version: int = 0,
        outputs: data.OutputChoice = None,
        id: str = "",
        max_wait: float | None = None,
        capture_time_ns: int | None = None,
        priority: Priority | str = Priority.UNSPECIFIED,
        lease: Lease | str | None = None,
        timeout: Timeout = DEFAULT,
    ) -> data.Result:
        """Runs one item.

        For a model that batches, axis 0 of every input counts rows. `max_wait` bounds, in seconds, the wait for the
        execution to begin. Inputs or outputs in buffers need their `lease`.
        """
        item = data.Item(inputs, id, model, version, outputs, max_wait, capture_time_ns, priority)
        return self._caller.run(verbs.infer(item), timeout, lease_id(lease))

    def stream(
        self,
        model: str = "",
        version: int = 0,
        *,
        preset: StreamPreset | str = StreamPreset.UNSPECIFIED,
        policy: FramePolicy | str = FramePolicy.UNSPECIFIED,
        order: data.ResultOrder | str = data.ResultOrder.UNSPECIFIED,
        priority: Priority | str = Priority.UNSPECIFIED,
        max_pending: int = 0,
        max_pending_bytes: int = 0,
        max_age: float | None = None,
        resume: bool = False,
        lease: Lease | str | None = None,
        timeout: Timeout = None,
    ) -> Stream:
        """A stream of items; use it in `with`.

        `model` may be empty when every item names one. `preset` "file" or "live" chooses the settings that go together;
        `policy`, `order` and `max_age` (seconds) set beside it win. `max_pending` and `max_pending_bytes` bound what is
        sent and not answered; 0 means the server's limit. `timeout` is for the stream as a whole; it becomes ready
        within `Options.timeout`.

        With `resume=True` a stream whose server goes away or is lost is opened again, at the next of the client's
        addresses (at the same one where it has one), and the items that were not answered are sent again. Each item
        still gets one result, but one whose answer was lost may have run twice. What a server going away has accepted
        it answers first. `Options.resume_attempts` and `resume_timeout` bound the attempts; then the stream raises the
        last error. Items in buffers cannot be resumed. An item's own error is its answer, and is not tried again.
        """
        options = self._caller.options
        state = verbs.stream_state(
            options,
            model=model,
            version=version,
            preset=preset,
            policy=policy,
            order=order,
            priority=priority,
            max_pending=max_pending,
            max_pending_bytes=max_pending_bytes,
            max_age=max_age,
            resume=resume,
            lease=lease_id(lease),
        )
        return Stream(self._caller, state, lease_id(lease), options.seconds(timeout))

    def watch_streams(self, interval: float = 1.0, *, timeout: Timeout = None) -> Iterator[StreamsReport]:
        """What the server's streams and models do, every `interval` seconds (at least 0.1), until it is given up."""
        return self._caller.watch(verbs.watch_streams(interval), timeout)

    def lease(self, ttl: float | None = None, *, timeout: Timeout = DEFAULT) -> Lease:
        """A lease on server memory; use it in `with`. `ttl` in seconds, None for the server's own choice."""
        return Lease(self._caller, ttl, timeout)


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
        try:
            self._caller.run(verbs.release_lease(), self._timeout, self.id)
        except AclserveError as failure:
            logger.warning("the lease could not be released, it will expire: %s", failure)

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
