"""The synchronous client. What the verbs do is in `verbs`; here is only their form."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Self

from aclserve_client import data, share_verbs, verbs
from aclserve_client.calls import Caller
from aclserve_client.diagnosis import Diagnosis
from aclserve_client.lease import Lease, lease_id
from aclserve_client.options import DEFAULT, DEFAULT_ADDRESS, Options, SharedMemory, Timeout
from aclserve_client.stream_data import FramePolicy, Priority, StreamPreset, StreamsReport
from aclserve_client.sync_stream import Stream
from aclserve_client.verbs import SourceLike


class Client:
    """A connection to an aclserve server. Thread-safe. Use it in `with`, or call `close`.

    An address is "host:port", or a Unix domain socket: "unix:relative/path", "unix:/absolute/path" or
    "unix-abstract:name". Several addresses ("host:port,host:port", or several texts) are servers that stand in for each
    other: one is in use until it is unavailable, then the next. What a lease holds stays on the server that gave it.

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

    def diagnosis(self, *, timeout: Timeout = DEFAULT) -> Diagnosis:
        """What the server finds out about itself and its machine. Needs the group `admin`."""
        return self._caller.run(verbs.diagnosis(), timeout)

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
        caller = self._caller
        steps = share_verbs.infer(item) if lease else caller.sharing.infer(item, caller.endpoint().address)
        return caller.run(steps, timeout, lease_id(lease))

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
        shared_memory: SharedMemory | None = None,
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

        `shared_memory` is for this stream instead of `Options.shared_memory`.
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
        sharing = False if lease else options.sharing(shared_memory)
        return Stream(self._caller, state, lease_id(lease), options.seconds(timeout), sharing)

    def watch_streams(self, interval: float = 1.0, *, timeout: Timeout = None) -> Iterator[StreamsReport]:
        """What the server's streams and models do, every `interval` seconds (at least 0.1), until it is given up."""
        return self._caller.watch(verbs.watch_streams(interval), timeout)

    def lease(self, ttl: float | None = None, *, timeout: Timeout = DEFAULT) -> Lease:
        """A lease on server memory; use it in `with`. `ttl` in seconds, None for the server's own choice."""
        return Lease(self._caller, ttl, timeout)
