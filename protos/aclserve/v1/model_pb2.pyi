from aclserve.v1 import tensor_pb2 as _tensor_pb2
from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ModelState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    MODEL_STATE_UNSPECIFIED: _ClassVar[ModelState]
    MODEL_STATE_UNLOADED: _ClassVar[ModelState]
    MODEL_STATE_LOADING: _ClassVar[ModelState]
    MODEL_STATE_READY: _ClassVar[ModelState]
    MODEL_STATE_UNLOADING: _ClassVar[ModelState]
    MODEL_STATE_UNAVAILABLE: _ClassVar[ModelState]

class ExecutionMode(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    EXECUTION_MODE_UNSPECIFIED: _ClassVar[ExecutionMode]
    EXECUTION_MODE_ASYNCHRONOUS: _ClassVar[ExecutionMode]
    EXECUTION_MODE_SYNCHRONOUS: _ClassVar[ExecutionMode]

class MemoryOwner(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    MEMORY_OWNER_UNSPECIFIED: _ClassVar[MemoryOwner]
    MEMORY_OWNER_ASCENDCL: _ClassVar[MemoryOwner]
    MEMORY_OWNER_CALLER: _ClassVar[MemoryOwner]

class Batching(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    BATCHING_UNSPECIFIED: _ClassVar[Batching]
    BATCHING_ROWS: _ClassVar[Batching]
    BATCHING_NONE: _ClassVar[Batching]

class Priority(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PRIORITY_UNSPECIFIED: _ClassVar[Priority]
    PRIORITY_LOW: _ClassVar[Priority]
    PRIORITY_NORMAL: _ClassVar[Priority]
    PRIORITY_HIGH: _ClassVar[Priority]

class DropReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DROP_REASON_UNSPECIFIED: _ClassVar[DropReason]
    DROP_REASON_OLDEST: _ClassVar[DropReason]
    DROP_REASON_NEWEST: _ClassVar[DropReason]
    DROP_REASON_SUPERSEDED: _ClassVar[DropReason]
    DROP_REASON_TOO_OLD: _ClassVar[DropReason]

class ResultOrder(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    RESULT_ORDER_UNSPECIFIED: _ClassVar[ResultOrder]
    RESULT_ORDER_COMPLETION: _ClassVar[ResultOrder]
    RESULT_ORDER_SUBMISSION: _ClassVar[ResultOrder]

class FramePolicy(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FRAME_POLICY_UNSPECIFIED: _ClassVar[FramePolicy]
    FRAME_POLICY_WAIT: _ClassVar[FramePolicy]
    FRAME_POLICY_DROP_OLDEST: _ClassVar[FramePolicy]
    FRAME_POLICY_DROP_NEWEST: _ClassVar[FramePolicy]
    FRAME_POLICY_LATEST_ONLY: _ClassVar[FramePolicy]

class StreamPreset(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    STREAM_PRESET_UNSPECIFIED: _ClassVar[StreamPreset]
    STREAM_PRESET_FILE: _ClassVar[StreamPreset]
    STREAM_PRESET_LIVE: _ClassVar[StreamPreset]
MODEL_STATE_UNSPECIFIED: ModelState
MODEL_STATE_UNLOADED: ModelState
MODEL_STATE_LOADING: ModelState
MODEL_STATE_READY: ModelState
MODEL_STATE_UNLOADING: ModelState
MODEL_STATE_UNAVAILABLE: ModelState
EXECUTION_MODE_UNSPECIFIED: ExecutionMode
EXECUTION_MODE_ASYNCHRONOUS: ExecutionMode
EXECUTION_MODE_SYNCHRONOUS: ExecutionMode
MEMORY_OWNER_UNSPECIFIED: MemoryOwner
MEMORY_OWNER_ASCENDCL: MemoryOwner
MEMORY_OWNER_CALLER: MemoryOwner
BATCHING_UNSPECIFIED: Batching
BATCHING_ROWS: Batching
BATCHING_NONE: Batching
PRIORITY_UNSPECIFIED: Priority
PRIORITY_LOW: Priority
PRIORITY_NORMAL: Priority
PRIORITY_HIGH: Priority
DROP_REASON_UNSPECIFIED: DropReason
DROP_REASON_OLDEST: DropReason
DROP_REASON_NEWEST: DropReason
DROP_REASON_SUPERSEDED: DropReason
DROP_REASON_TOO_OLD: DropReason
RESULT_ORDER_UNSPECIFIED: ResultOrder
RESULT_ORDER_COMPLETION: ResultOrder
RESULT_ORDER_SUBMISSION: ResultOrder
FRAME_POLICY_UNSPECIFIED: FramePolicy
FRAME_POLICY_WAIT: FramePolicy
FRAME_POLICY_DROP_OLDEST: FramePolicy
FRAME_POLICY_DROP_NEWEST: FramePolicy
FRAME_POLICY_LATEST_ONLY: FramePolicy
STREAM_PRESET_UNSPECIFIED: StreamPreset
STREAM_PRESET_FILE: StreamPreset
STREAM_PRESET_LIVE: StreamPreset

class Model(_message.Message):
    __slots__ = ("name", "version", "state", "reason")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: int
    state: ModelState
    reason: str
    def __init__(self, name: _Optional[str] = ..., version: _Optional[int] = ..., state: _Optional[_Union[ModelState, str]] = ..., reason: _Optional[str] = ...) -> None: ...

class TensorSpec(_message.Message):
    __slots__ = ("name", "data_type", "shape", "format", "max_bytes")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DATA_TYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    MAX_BYTES_FIELD_NUMBER: _ClassVar[int]
    name: str
    data_type: _tensor_pb2.DataType
    shape: _containers.RepeatedScalarFieldContainer[int]
    format: str
    max_bytes: int
    def __init__(self, name: _Optional[str] = ..., data_type: _Optional[_Union[_tensor_pb2.DataType, str]] = ..., shape: _Optional[_Iterable[int]] = ..., format: _Optional[str] = ..., max_bytes: _Optional[int] = ...) -> None: ...

class Gear(_message.Message):
    __slots__ = ("kind", "values")
    KIND_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    kind: str
    values: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, kind: _Optional[str] = ..., values: _Optional[_Iterable[int]] = ...) -> None: ...

class ModelUsage(_message.Message):
    __slots__ = ("grpcurl", "ghz", "python", "python_v2")
    GRPCURL_FIELD_NUMBER: _ClassVar[int]
    GHZ_FIELD_NUMBER: _ClassVar[int]
    PYTHON_FIELD_NUMBER: _ClassVar[int]
    PYTHON_V2_FIELD_NUMBER: _ClassVar[int]
    grpcurl: str
    ghz: str
    python: str
    python_v2: str
    def __init__(self, grpcurl: _Optional[str] = ..., ghz: _Optional[str] = ..., python: _Optional[str] = ..., python_v2: _Optional[str] = ...) -> None: ...

class ModelDescription(_message.Message):
    __slots__ = ("model", "inputs", "outputs", "gears", "batching", "batching_reason", "max_rows", "execution_mode", "memory_owner", "max_queue_delay", "slots", "work_bytes", "weight_bytes", "sample_json", "parameters", "usage")
    class ParametersEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    MODEL_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    GEARS_FIELD_NUMBER: _ClassVar[int]
    BATCHING_FIELD_NUMBER: _ClassVar[int]
    BATCHING_REASON_FIELD_NUMBER: _ClassVar[int]
    MAX_ROWS_FIELD_NUMBER: _ClassVar[int]
    EXECUTION_MODE_FIELD_NUMBER: _ClassVar[int]
    MEMORY_OWNER_FIELD_NUMBER: _ClassVar[int]
    MAX_QUEUE_DELAY_FIELD_NUMBER: _ClassVar[int]
    SLOTS_FIELD_NUMBER: _ClassVar[int]
    WORK_BYTES_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_BYTES_FIELD_NUMBER: _ClassVar[int]
    SAMPLE_JSON_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    model: Model
    inputs: _containers.RepeatedCompositeFieldContainer[TensorSpec]
    outputs: _containers.RepeatedCompositeFieldContainer[TensorSpec]
    gears: _containers.RepeatedCompositeFieldContainer[Gear]
    batching: Batching
    batching_reason: str
    max_rows: int
    execution_mode: ExecutionMode
    memory_owner: MemoryOwner
    max_queue_delay: _duration_pb2.Duration
    slots: int
    work_bytes: int
    weight_bytes: int
    sample_json: str
    parameters: _containers.ScalarMap[str, str]
    usage: ModelUsage
    def __init__(self, model: _Optional[_Union[Model, _Mapping]] = ..., inputs: _Optional[_Iterable[_Union[TensorSpec, _Mapping]]] = ..., outputs: _Optional[_Iterable[_Union[TensorSpec, _Mapping]]] = ..., gears: _Optional[_Iterable[_Union[Gear, _Mapping]]] = ..., batching: _Optional[_Union[Batching, str]] = ..., batching_reason: _Optional[str] = ..., max_rows: _Optional[int] = ..., execution_mode: _Optional[_Union[ExecutionMode, str]] = ..., memory_owner: _Optional[_Union[MemoryOwner, str]] = ..., max_queue_delay: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., slots: _Optional[int] = ..., work_bytes: _Optional[int] = ..., weight_bytes: _Optional[int] = ..., sample_json: _Optional[str] = ..., parameters: _Optional[_Mapping[str, str]] = ..., usage: _Optional[_Union[ModelUsage, _Mapping]] = ...) -> None: ...

class ListModelsRequest(_message.Message):
    __slots__ = ("page_size", "page_token")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListModelsResponse(_message.Message):
    __slots__ = ("models", "next_page_token")
    MODELS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    models: _containers.RepeatedCompositeFieldContainer[Model]
    next_page_token: str
    def __init__(self, models: _Optional[_Iterable[_Union[Model, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class GetModelRequest(_message.Message):
    __slots__ = ("model", "version")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: int
    def __init__(self, model: _Optional[str] = ..., version: _Optional[int] = ...) -> None: ...

class GetModelResponse(_message.Message):
    __slots__ = ("description",)
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    description: ModelDescription
    def __init__(self, description: _Optional[_Union[ModelDescription, _Mapping]] = ...) -> None: ...

class ModelSource(_message.Message):
    __slots__ = ("repository", "upload_id")
    REPOSITORY_FIELD_NUMBER: _ClassVar[int]
    UPLOAD_ID_FIELD_NUMBER: _ClassVar[int]
    repository: RepositoryModel
    upload_id: str
    def __init__(self, repository: _Optional[_Union[RepositoryModel, _Mapping]] = ..., upload_id: _Optional[str] = ...) -> None: ...

class RepositoryModel(_message.Message):
    __slots__ = ("model", "version")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: int
    def __init__(self, model: _Optional[str] = ..., version: _Optional[int] = ...) -> None: ...

class QueryModelSizeRequest(_message.Message):
    __slots__ = ("source",)
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    source: ModelSource
    def __init__(self, source: _Optional[_Union[ModelSource, _Mapping]] = ...) -> None: ...

class QueryModelSizeResponse(_message.Message):
    __slots__ = ("work_bytes", "weight_bytes")
    WORK_BYTES_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_BYTES_FIELD_NUMBER: _ClassVar[int]
    work_bytes: int
    weight_bytes: int
    def __init__(self, work_bytes: _Optional[int] = ..., weight_bytes: _Optional[int] = ...) -> None: ...

class UploadModelRequest(_message.Message):
    __slots__ = ("header", "data")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    header: UploadModelHeader
    data: bytes
    def __init__(self, header: _Optional[_Union[UploadModelHeader, _Mapping]] = ..., data: _Optional[bytes] = ...) -> None: ...

class UploadModelHeader(_message.Message):
    __slots__ = ("size_bytes", "crc32c")
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    CRC32C_FIELD_NUMBER: _ClassVar[int]
    size_bytes: int
    crc32c: int
    def __init__(self, size_bytes: _Optional[int] = ..., crc32c: _Optional[int] = ...) -> None: ...

class UploadModelResponse(_message.Message):
    __slots__ = ("upload_id", "crc32c")
    UPLOAD_ID_FIELD_NUMBER: _ClassVar[int]
    CRC32C_FIELD_NUMBER: _ClassVar[int]
    upload_id: str
    crc32c: int
    def __init__(self, upload_id: _Optional[str] = ..., crc32c: _Optional[int] = ...) -> None: ...

class LoadModelRequest(_message.Message):
    __slots__ = ("source", "name", "execution_mode", "memory_owner", "work_buffer_id", "weight_buffer_id")
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    EXECUTION_MODE_FIELD_NUMBER: _ClassVar[int]
    MEMORY_OWNER_FIELD_NUMBER: _ClassVar[int]
    WORK_BUFFER_ID_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_BUFFER_ID_FIELD_NUMBER: _ClassVar[int]
    source: ModelSource
    name: str
    execution_mode: ExecutionMode
    memory_owner: MemoryOwner
    work_buffer_id: str
    weight_buffer_id: str
    def __init__(self, source: _Optional[_Union[ModelSource, _Mapping]] = ..., name: _Optional[str] = ..., execution_mode: _Optional[_Union[ExecutionMode, str]] = ..., memory_owner: _Optional[_Union[MemoryOwner, str]] = ..., work_buffer_id: _Optional[str] = ..., weight_buffer_id: _Optional[str] = ...) -> None: ...

class LoadModelResponse(_message.Message):
    __slots__ = ("description",)
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    description: ModelDescription
    def __init__(self, description: _Optional[_Union[ModelDescription, _Mapping]] = ...) -> None: ...

class UnloadModelRequest(_message.Message):
    __slots__ = ("model", "version")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: int
    def __init__(self, model: _Optional[str] = ..., version: _Optional[int] = ...) -> None: ...

class UnloadModelResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class OutputRequest(_message.Message):
    __slots__ = ("name", "buffer", "region")
    NAME_FIELD_NUMBER: _ClassVar[int]
    BUFFER_FIELD_NUMBER: _ClassVar[int]
    REGION_FIELD_NUMBER: _ClassVar[int]
    name: str
    buffer: _tensor_pb2.BufferSlice
    region: _tensor_pb2.RegionSlice
    def __init__(self, name: _Optional[str] = ..., buffer: _Optional[_Union[_tensor_pb2.BufferSlice, _Mapping]] = ..., region: _Optional[_Union[_tensor_pb2.RegionSlice, _Mapping]] = ...) -> None: ...

class InferRequest(_message.Message):
    __slots__ = ("id", "model", "inputs", "outputs", "timeout", "capture_time", "version", "priority")
    ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_FIELD_NUMBER: _ClassVar[int]
    CAPTURE_TIME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    id: str
    model: str
    inputs: _containers.RepeatedCompositeFieldContainer[_tensor_pb2.Tensor]
    outputs: _containers.RepeatedCompositeFieldContainer[OutputRequest]
    timeout: _duration_pb2.Duration
    capture_time: _timestamp_pb2.Timestamp
    version: int
    priority: Priority
    def __init__(self, id: _Optional[str] = ..., model: _Optional[str] = ..., inputs: _Optional[_Iterable[_Union[_tensor_pb2.Tensor, _Mapping]]] = ..., outputs: _Optional[_Iterable[_Union[OutputRequest, _Mapping]]] = ..., timeout: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., capture_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., version: _Optional[int] = ..., priority: _Optional[_Union[Priority, str]] = ...) -> None: ...

class InferResponse(_message.Message):
    __slots__ = ("id", "outputs", "timing", "capture_time")
    ID_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    TIMING_FIELD_NUMBER: _ClassVar[int]
    CAPTURE_TIME_FIELD_NUMBER: _ClassVar[int]
    id: str
    outputs: Outputs
    timing: Timing
    capture_time: _timestamp_pb2.Timestamp
    def __init__(self, id: _Optional[str] = ..., outputs: _Optional[_Union[Outputs, _Mapping]] = ..., timing: _Optional[_Union[Timing, _Mapping]] = ..., capture_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class InferItem(_message.Message):
    __slots__ = ("id", "model", "inputs", "outputs", "timeout", "capture_time", "version", "priority")
    ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_FIELD_NUMBER: _ClassVar[int]
    CAPTURE_TIME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    id: str
    model: str
    inputs: _containers.RepeatedCompositeFieldContainer[_tensor_pb2.Tensor]
    outputs: _containers.RepeatedCompositeFieldContainer[OutputRequest]
    timeout: _duration_pb2.Duration
    capture_time: _timestamp_pb2.Timestamp
    version: int
    priority: Priority
    def __init__(self, id: _Optional[str] = ..., model: _Optional[str] = ..., inputs: _Optional[_Iterable[_Union[_tensor_pb2.Tensor, _Mapping]]] = ..., outputs: _Optional[_Iterable[_Union[OutputRequest, _Mapping]]] = ..., timeout: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., capture_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., version: _Optional[int] = ..., priority: _Optional[_Union[Priority, str]] = ...) -> None: ...

class Outputs(_message.Message):
    __slots__ = ("tensors",)
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    tensors: _containers.RepeatedCompositeFieldContainer[_tensor_pb2.Tensor]
    def __init__(self, tensors: _Optional[_Iterable[_Union[_tensor_pb2.Tensor, _Mapping]]] = ...) -> None: ...

class Timing(_message.Message):
    __slots__ = ("wait_ns", "copy_in_ns", "execute_ns", "copy_out_ns", "total_ns", "batch_rows", "gear_rows", "position", "queue_rows")
    WAIT_NS_FIELD_NUMBER: _ClassVar[int]
    COPY_IN_NS_FIELD_NUMBER: _ClassVar[int]
    EXECUTE_NS_FIELD_NUMBER: _ClassVar[int]
    COPY_OUT_NS_FIELD_NUMBER: _ClassVar[int]
    TOTAL_NS_FIELD_NUMBER: _ClassVar[int]
    BATCH_ROWS_FIELD_NUMBER: _ClassVar[int]
    GEAR_ROWS_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    QUEUE_ROWS_FIELD_NUMBER: _ClassVar[int]
    wait_ns: int
    copy_in_ns: int
    execute_ns: int
    copy_out_ns: int
    total_ns: int
    batch_rows: int
    gear_rows: int
    position: int
    queue_rows: int
    def __init__(self, wait_ns: _Optional[int] = ..., copy_in_ns: _Optional[int] = ..., execute_ns: _Optional[int] = ..., copy_out_ns: _Optional[int] = ..., total_ns: _Optional[int] = ..., batch_rows: _Optional[int] = ..., gear_rows: _Optional[int] = ..., position: _Optional[int] = ..., queue_rows: _Optional[int] = ...) -> None: ...

class ItemError(_message.Message):
    __slots__ = ("code", "reason", "message", "metadata", "retry_delay")
    class MetadataEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    CODE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    RETRY_DELAY_FIELD_NUMBER: _ClassVar[int]
    code: int
    reason: str
    message: str
    metadata: _containers.ScalarMap[str, str]
    retry_delay: _duration_pb2.Duration
    def __init__(self, code: _Optional[int] = ..., reason: _Optional[str] = ..., message: _Optional[str] = ..., metadata: _Optional[_Mapping[str, str]] = ..., retry_delay: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class Dropped(_message.Message):
    __slots__ = ("reason", "age_ns")
    REASON_FIELD_NUMBER: _ClassVar[int]
    AGE_NS_FIELD_NUMBER: _ClassVar[int]
    reason: DropReason
    age_ns: int
    def __init__(self, reason: _Optional[_Union[DropReason, str]] = ..., age_ns: _Optional[int] = ...) -> None: ...

class InferResult(_message.Message):
    __slots__ = ("id", "outputs", "error", "dropped", "timing", "capture_time")
    ID_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    DROPPED_FIELD_NUMBER: _ClassVar[int]
    TIMING_FIELD_NUMBER: _ClassVar[int]
    CAPTURE_TIME_FIELD_NUMBER: _ClassVar[int]
    id: str
    outputs: Outputs
    error: ItemError
    dropped: Dropped
    timing: Timing
    capture_time: _timestamp_pb2.Timestamp
    def __init__(self, id: _Optional[str] = ..., outputs: _Optional[_Union[Outputs, _Mapping]] = ..., error: _Optional[_Union[ItemError, _Mapping]] = ..., dropped: _Optional[_Union[Dropped, _Mapping]] = ..., timing: _Optional[_Union[Timing, _Mapping]] = ..., capture_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class StreamInferRequest(_message.Message):
    __slots__ = ("config", "items", "cancel")
    CONFIG_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    CANCEL_FIELD_NUMBER: _ClassVar[int]
    config: StreamConfig
    items: ItemList
    cancel: CancelItems
    def __init__(self, config: _Optional[_Union[StreamConfig, _Mapping]] = ..., items: _Optional[_Union[ItemList, _Mapping]] = ..., cancel: _Optional[_Union[CancelItems, _Mapping]] = ...) -> None: ...

class StreamConfig(_message.Message):
    __slots__ = ("model", "order", "max_pending_items", "version", "policy", "max_pending_bytes", "max_age", "preset", "priority")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    ORDER_FIELD_NUMBER: _ClassVar[int]
    MAX_PENDING_ITEMS_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    MAX_PENDING_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_AGE_FIELD_NUMBER: _ClassVar[int]
    PRESET_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    model: str
    order: ResultOrder
    max_pending_items: int
    version: int
    policy: FramePolicy
    max_pending_bytes: int
    max_age: _duration_pb2.Duration
    preset: StreamPreset
    priority: Priority
    def __init__(self, model: _Optional[str] = ..., order: _Optional[_Union[ResultOrder, str]] = ..., max_pending_items: _Optional[int] = ..., version: _Optional[int] = ..., policy: _Optional[_Union[FramePolicy, str]] = ..., max_pending_bytes: _Optional[int] = ..., max_age: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., preset: _Optional[_Union[StreamPreset, str]] = ..., priority: _Optional[_Union[Priority, str]] = ...) -> None: ...

class ItemList(_message.Message):
    __slots__ = ("items",)
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    items: _containers.RepeatedCompositeFieldContainer[InferItem]
    def __init__(self, items: _Optional[_Iterable[_Union[InferItem, _Mapping]]] = ...) -> None: ...

class CancelItems(_message.Message):
    __slots__ = ("ids",)
    IDS_FIELD_NUMBER: _ClassVar[int]
    ids: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, ids: _Optional[_Iterable[str]] = ...) -> None: ...

class StreamInferResponse(_message.Message):
    __slots__ = ("ready", "results", "window", "going_away", "summary")
    READY_FIELD_NUMBER: _ClassVar[int]
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    WINDOW_FIELD_NUMBER: _ClassVar[int]
    GOING_AWAY_FIELD_NUMBER: _ClassVar[int]
    SUMMARY_FIELD_NUMBER: _ClassVar[int]
    ready: StreamReady
    results: ResultList
    window: StreamWindow
    going_away: GoingAway
    summary: StreamSummary
    def __init__(self, ready: _Optional[_Union[StreamReady, _Mapping]] = ..., results: _Optional[_Union[ResultList, _Mapping]] = ..., window: _Optional[_Union[StreamWindow, _Mapping]] = ..., going_away: _Optional[_Union[GoingAway, _Mapping]] = ..., summary: _Optional[_Union[StreamSummary, _Mapping]] = ...) -> None: ...

class StreamReady(_message.Message):
    __slots__ = ("order", "max_pending_items", "max_message_bytes", "policy", "max_pending_bytes", "max_age", "priority")
    ORDER_FIELD_NUMBER: _ClassVar[int]
    MAX_PENDING_ITEMS_FIELD_NUMBER: _ClassVar[int]
    MAX_MESSAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    MAX_PENDING_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_AGE_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    order: ResultOrder
    max_pending_items: int
    max_message_bytes: int
    policy: FramePolicy
    max_pending_bytes: int
    max_age: _duration_pb2.Duration
    priority: Priority
    def __init__(self, order: _Optional[_Union[ResultOrder, str]] = ..., max_pending_items: _Optional[int] = ..., max_message_bytes: _Optional[int] = ..., policy: _Optional[_Union[FramePolicy, str]] = ..., max_pending_bytes: _Optional[int] = ..., max_age: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., priority: _Optional[_Union[Priority, str]] = ...) -> None: ...

class StreamWindow(_message.Message):
    __slots__ = ("max_pending_items", "max_pending_bytes")
    MAX_PENDING_ITEMS_FIELD_NUMBER: _ClassVar[int]
    MAX_PENDING_BYTES_FIELD_NUMBER: _ClassVar[int]
    max_pending_items: int
    max_pending_bytes: int
    def __init__(self, max_pending_items: _Optional[int] = ..., max_pending_bytes: _Optional[int] = ...) -> None: ...

class ResultList(_message.Message):
    __slots__ = ("results",)
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    results: _containers.RepeatedCompositeFieldContainer[InferResult]
    def __init__(self, results: _Optional[_Iterable[_Union[InferResult, _Mapping]]] = ...) -> None: ...

class GoingAway(_message.Message):
    __slots__ = ("last_accepted_id",)
    LAST_ACCEPTED_ID_FIELD_NUMBER: _ClassVar[int]
    last_accepted_id: str
    def __init__(self, last_accepted_id: _Optional[str] = ...) -> None: ...

class StreamSummary(_message.Message):
    __slots__ = ("received_items", "succeeded_items", "failed_items", "dropped_items", "drops")
    class DropsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    RECEIVED_ITEMS_FIELD_NUMBER: _ClassVar[int]
    SUCCEEDED_ITEMS_FIELD_NUMBER: _ClassVar[int]
    FAILED_ITEMS_FIELD_NUMBER: _ClassVar[int]
    DROPPED_ITEMS_FIELD_NUMBER: _ClassVar[int]
    DROPS_FIELD_NUMBER: _ClassVar[int]
    received_items: int
    succeeded_items: int
    failed_items: int
    dropped_items: int
    drops: _containers.ScalarMap[str, int]
    def __init__(self, received_items: _Optional[int] = ..., succeeded_items: _Optional[int] = ..., failed_items: _Optional[int] = ..., dropped_items: _Optional[int] = ..., drops: _Optional[_Mapping[str, int]] = ...) -> None: ...

class WatchStreamsRequest(_message.Message):
    __slots__ = ("interval",)
    INTERVAL_FIELD_NUMBER: _ClassVar[int]
    interval: _duration_pb2.Duration
    def __init__(self, interval: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class WatchStreamsResponse(_message.Message):
    __slots__ = ("streams", "models")
    STREAMS_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    streams: _containers.RepeatedCompositeFieldContainer[StreamStatus]
    models: _containers.RepeatedCompositeFieldContainer[ModelStatus]
    def __init__(self, streams: _Optional[_Iterable[_Union[StreamStatus, _Mapping]]] = ..., models: _Optional[_Iterable[_Union[ModelStatus, _Mapping]]] = ...) -> None: ...

class StreamStatus(_message.Message):
    __slots__ = ("number", "model", "policy", "priority", "received_per_second", "answered_per_second", "pending_items", "pending_bytes", "max_pending_items", "oldest_age_ns", "received_items", "succeeded_items", "failed_items", "dropped_items", "drops", "p50_ns", "p99_ns")
    class DropsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    RECEIVED_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    ANSWERED_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    PENDING_ITEMS_FIELD_NUMBER: _ClassVar[int]
    PENDING_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_PENDING_ITEMS_FIELD_NUMBER: _ClassVar[int]
    OLDEST_AGE_NS_FIELD_NUMBER: _ClassVar[int]
    RECEIVED_ITEMS_FIELD_NUMBER: _ClassVar[int]
    SUCCEEDED_ITEMS_FIELD_NUMBER: _ClassVar[int]
    FAILED_ITEMS_FIELD_NUMBER: _ClassVar[int]
    DROPPED_ITEMS_FIELD_NUMBER: _ClassVar[int]
    DROPS_FIELD_NUMBER: _ClassVar[int]
    P50_NS_FIELD_NUMBER: _ClassVar[int]
    P99_NS_FIELD_NUMBER: _ClassVar[int]
    number: int
    model: str
    policy: FramePolicy
    priority: Priority
    received_per_second: float
    answered_per_second: float
    pending_items: int
    pending_bytes: int
    max_pending_items: int
    oldest_age_ns: int
    received_items: int
    succeeded_items: int
    failed_items: int
    dropped_items: int
    drops: _containers.ScalarMap[str, int]
    p50_ns: int
    p99_ns: int
    def __init__(self, number: _Optional[int] = ..., model: _Optional[str] = ..., policy: _Optional[_Union[FramePolicy, str]] = ..., priority: _Optional[_Union[Priority, str]] = ..., received_per_second: _Optional[float] = ..., answered_per_second: _Optional[float] = ..., pending_items: _Optional[int] = ..., pending_bytes: _Optional[int] = ..., max_pending_items: _Optional[int] = ..., oldest_age_ns: _Optional[int] = ..., received_items: _Optional[int] = ..., succeeded_items: _Optional[int] = ..., failed_items: _Optional[int] = ..., dropped_items: _Optional[int] = ..., drops: _Optional[_Mapping[str, int]] = ..., p50_ns: _Optional[int] = ..., p99_ns: _Optional[int] = ...) -> None: ...

class ModelStatus(_message.Message):
    __slots__ = ("name", "version", "queue_rows", "executions_per_second", "rows_per_second", "mean_batch_rows", "fill")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    QUEUE_ROWS_FIELD_NUMBER: _ClassVar[int]
    EXECUTIONS_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    ROWS_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    MEAN_BATCH_ROWS_FIELD_NUMBER: _ClassVar[int]
    FILL_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: int
    queue_rows: int
    executions_per_second: float
    rows_per_second: float
    mean_batch_rows: float
    fill: float
    def __init__(self, name: _Optional[str] = ..., version: _Optional[int] = ..., queue_rows: _Optional[int] = ..., executions_per_second: _Optional[float] = ..., rows_per_second: _Optional[float] = ..., mean_batch_rows: _Optional[float] = ..., fill: _Optional[float] = ...) -> None: ...
