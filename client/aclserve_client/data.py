"""What the client takes and returns: small frozen values, never protobuf messages.

Times are seconds (`_s`) or nanoseconds (`_ns`), sizes are bytes (`_bytes`), dtypes are names such as "float32" or
"bfloat16".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from numpy.typing import NDArray

from aclserve.errors import AclserveError, Cancelled
from aclserve_client.stream_data import Dropped, Priority
from aclserve_client.usage import ModelUsage


class RunMode(StrEnum):
    """How host and device memory relate: one memory for both ("device"), or a card with its own ("host")."""

    UNSPECIFIED = "unspecified"
    DEVICE = "device"
    HOST = "host"


class ModelState(StrEnum):
    """The state of a model."""

    UNSPECIFIED = "unspecified"
    UNLOADED = "unloaded"
    LOADING = "loading"
    READY = "ready"
    UNLOADING = "unloading"
    UNAVAILABLE = "unavailable"


class ExecutionMode(StrEnum):
    """How a model is run; unspecified means asynchronous where the model can."""

    UNSPECIFIED = "unspecified"
    ASYNCHRONOUS = "asynchronous"
    SYNCHRONOUS = "synchronous"


class MemoryOwner(StrEnum):
    """Who manages a model's work and weight memory; unspecified means AscendCL."""

    UNSPECIFIED = "unspecified"
    ASCENDCL = "ascendcl"
    CALLER = "caller"


class Batching(StrEnum):
    """Whether rows of different items share an execution ("rows") or not ("none")."""

    UNSPECIFIED = "unspecified"
    ROWS = "rows"
    NONE = "none"


class ResultOrder(StrEnum):
    """In which order a stream's results come: as they complete, or as their items were sent."""

    UNSPECIFIED = "unspecified"
    COMPLETION = "completion"
    SUBMISSION = "submission"


class MemorySpace(StrEnum):
    """Where a buffer lies: page-locked memory of the server's host, or memory of the device."""

    UNSPECIFIED = "unspecified"
    HOST = "host"
    DEVICE = "device"


class AllocationPolicy(StrEnum):
    """AscendCL's policy for device memory, where unspecified means huge_first; host memory has none."""

    UNSPECIFIED = "unspecified"
    HUGE_FIRST = "huge_first"
    HUGE_ONLY = "huge_only"
    NORMAL_ONLY = "normal_only"
    HUGE_FIRST_P2P = "huge_first_p2p"
    HUGE_ONLY_P2P = "huge_only_p2p"
    NORMAL_ONLY_P2P = "normal_only_p2p"
    HUGE1G_ONLY = "huge1g_only"
    HUGE1G_ONLY_P2P = "huge1g_only_p2p"


class MemoryAttribute(StrEnum):
    """AscendCL's attribute of a memory query (aclrtMemAttr)."""

    UNSPECIFIED = "unspecified"
    DDR = "ddr"
    HBM = "hbm"
    DDR_HUGE = "ddr_huge"
    DDR_NORMAL = "ddr_normal"
    HBM_HUGE = "hbm_huge"
    HBM_NORMAL = "hbm_normal"
    DDR_P2P_HUGE = "ddr_p2p_huge"
    DDR_P2P_NORMAL = "ddr_p2p_normal"
    HBM_P2P_HUGE = "hbm_p2p_huge"
    HBM_P2P_NORMAL = "hbm_p2p_normal"
    HBM_HUGE1G = "hbm_huge1g"
    HBM_P2P_HUGE1G = "hbm_p2p_huge1g"
    NORMAL = "normal"
    HUGE = "huge"
    HUGE1G = "huge1g"
    P2P_NORMAL = "p2p_normal"
    P2P_HUGE = "p2p_huge"
    P2P_HUGE1G = "p2p_huge1g"


@dataclass(frozen=True)
class BufferRef:
    """Bytes in a buffer of a lease, as an input or as the place for an output.

    `shape` and `dtype` are not used for an output. `length_bytes` 0 means exactly as long as the tensor. The call that
    uses it needs `lease=`.
    """

    buffer_id: str
    shape: tuple[int, ...] = ()
    dtype: str = "uint8"
    offset_bytes: int = 0
    length_bytes: int = 0


@dataclass(frozen=True)
class Zeros:
    """An input that the server fills with zeros."""

    shape: tuple[int, ...]
    dtype: str = "float32"


@dataclass(frozen=True)
class Random:
    """An input that the server fills: floats in [0, 1), integers in [0, 100). Equal seeds give equal values."""

    shape: tuple[int, ...]
    dtype: str = "float32"
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Typed:
    """An array sent as `dtype`, which its numpy type does not tell: bfloat16 bits held in uint16."""

    array: NDArray[Any]
    dtype: str


Input = NDArray[Any] | BufferRef | Zeros | Random | Typed
"""One input of a model."""

Inputs = Mapping[str, Input]
"""Inputs by name. A model with one input also takes the name ""."""

OutputChoice = Mapping[str, BufferRef | None] | Sequence[str] | None
"""Which outputs to return: None for all; names; or names with the buffer to write the output into (None: send it)."""


@dataclass(frozen=True, eq=False)
class Item:
    """One item of a stream, where more than its inputs must be said. See `Stream.send` for the fields."""

    inputs: Inputs
    id: str = ""
    model: str = ""
    version: int = 0
    outputs: OutputChoice = None
    max_wait: float | None = None
    capture_time_ns: int | None = None
    priority: Priority | str = Priority.UNSPECIFIED


@dataclass(frozen=True)
class Timing:
    """Where the time of one item went on the server, and its place in the batch.

    `gear_rows` counts padding too, 0 where the model has no row gears; `position` is the item's first row in the batch;
    `queue_rows` waited for the model when the item arrived.
    """

    wait_ns: int = 0
    copy_in_ns: int = 0
    execute_ns: int = 0
    copy_out_ns: int = 0
    total_ns: int = 0
    batch_rows: int = 0
    gear_rows: int = 0
    position: int = 0
    queue_rows: int = 0


@dataclass(frozen=True, eq=False)
class Result:
    """The one answer to an item: `outputs` and `buffers`, or `error`, or `dropped`.

    `outputs` are read-only arrays by name; an output that was directed into a buffer is in `buffers` instead, with its
    shape. `timing` is None for an item that never reached a batch. `dropped` is what the stream's frame policy was
    asked to do, and no error.
    """

    id: str
    outputs: dict[str, NDArray[Any]] = field(default_factory=dict)
    buffers: dict[str, BufferRef] = field(default_factory=dict)
    timing: Timing | None = None
    error: AclserveError | None = None
    capture_time_ns: int | None = None
    dropped: Dropped | None = None

    def raise_for_error(self) -> Result:
        """The result itself, or its error raised; `Cancelled`, reason ITEM_DROPPED, for a dropped item."""
        if self.error is not None:
            raise self.error
        if self.dropped is not None:
            age, reason = self.dropped.age_ns, self.dropped.reason.value
            raise Cancelled(
                f"item {self.id!r} was dropped by the stream's frame policy after {age / 1e6:.1f} ms ({reason})",
                reason="ITEM_DROPPED",
                metadata={"drop_reason": reason, "age_ns": age},
            )
        return self


@dataclass(frozen=True)
class MemoryUsage:
    """Free and total memory of one kind; a kind the chip does not have shows 0 of 0."""

    kind: str
    free_bytes: int
    total_bytes: int


@dataclass(frozen=True)
class DeviceInfo:
    """One device of the server. `utilization_percent` is None where the device cannot tell."""

    id: int
    soc_name: str
    run_mode: RunMode
    emulated: bool
    memory: tuple[MemoryUsage, ...]
    utilization_percent: int | None


@dataclass(frozen=True)
class Limits:
    """What the server accepts at the most."""

    max_message_bytes: int
    max_queue_rows: int
    max_stream_items: int
    max_leases: int
    max_lease_device_bytes: int
    max_lease_host_bytes: int
    max_lease_ttl_s: float
    max_upload_bytes: int
    max_stream_bytes: int = 0
    max_regions: int = 0
    max_lease_buffers: int = 0
    max_metadata_bytes: int = 0
    max_connection_calls: int = 0
    max_item_id_bytes: int = 0
    max_item_inputs: int = 0
    max_item_outputs: int = 0
    max_dimensions: int = 0
    max_text_bytes: int = 0
    max_fill_bytes: int = 0
    max_page_size: int = 0
    max_region_name_bytes: int = 0
    max_config_bytes: int = 0
    max_load_parameters: int = 0
    max_health_watchers: int = 0
    min_lease_ttl_s: float = 0.0


@dataclass(frozen=True)
class ServerInfo:
    """The server's versions, abilities and limits. `acl_version` is empty where the library cannot tell.

    `principal` and `groups` are who this client is to the server and what it may call; empty without authentication.
    """

    version: str
    acl_version: str
    features: tuple[str, ...]
    limits: Limits
    uptime_s: float
    principal: str = ""
    groups: tuple[str, ...] = ()


@dataclass(frozen=True)
class ModelInfo:
    """A model, in short. `reason` tells why it is unavailable."""

    name: str
    version: int
    state: ModelState
    reason: str


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of a model. In `shape` -1 stands for what varies; `max_bytes` is 0 where it is not known."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    format: str
    max_bytes: int


@dataclass(frozen=True)
class Gear:
    """One compiled shape: `kind` is "batch", "height_width" or "dims"."""

    kind: str
    values: tuple[int, ...]


@dataclass(frozen=True)
class ModelDescription:
    """Everything about one loaded model. `max_rows` is for one item; `slots` counts preallocated datasets.

    `sample_json` is a request in protobuf's JSON form; `parameters` is what the model's configuration states under that
    name.
    """

    name: str
    version: int
    state: ModelState
    reason: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    gears: tuple[Gear, ...]
    batching: Batching
    batching_reason: str
    max_rows: int
    execution_mode: ExecutionMode
    memory_owner: MemoryOwner
    max_queue_delay_s: float
    slots: int
    work_bytes: int
    weight_bytes: int
    sample_json: str
    parameters: dict[str, str] = field(default_factory=dict)
    usage: ModelUsage = field(default_factory=ModelUsage)


@dataclass(frozen=True)
class ModelSize:
    """Device memory that a load would take."""

    work_bytes: int
    weight_bytes: int


@dataclass(frozen=True)
class LeaseInfo:
    """What a lease holds and may hold. The id is a secret: whoever shows it owns the lease."""

    id: str = field(repr=False)
    ttl_s: float
    remaining_s: float
    device_bytes: int
    device_quota_bytes: int
    host_bytes: int
    host_quota_bytes: int


@dataclass(frozen=True)
class BufferInfo:
    """One buffer of a lease. `pins` counts the inferences that use it now."""

    id: str
    space: MemorySpace
    size_bytes: int
    policy: AllocationPolicy
    pins: int = 0

    def ref(
        self, shape: tuple[int, ...] = (), dtype: str = "uint8", *, offset_bytes: int = 0, length_bytes: int = 0
    ) -> BufferRef:
        """This buffer, or a range of it, as an input of that shape, or as the place for an output."""
        return BufferRef(self.id, tuple(shape), dtype, offset_bytes, length_bytes)
