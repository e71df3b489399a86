from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class RunMode(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    RUN_MODE_UNSPECIFIED: _ClassVar[RunMode]
    RUN_MODE_DEVICE: _ClassVar[RunMode]
    RUN_MODE_HOST: _ClassVar[RunMode]

class FindingLevel(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FINDING_LEVEL_UNSPECIFIED: _ClassVar[FindingLevel]
    FINDING_LEVEL_OK: _ClassVar[FindingLevel]
    FINDING_LEVEL_NOTE: _ClassVar[FindingLevel]
    FINDING_LEVEL_WARNING: _ClassVar[FindingLevel]
    FINDING_LEVEL_ERROR: _ClassVar[FindingLevel]

class SettingSource(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SETTING_SOURCE_UNSPECIFIED: _ClassVar[SettingSource]
    SETTING_SOURCE_DEFAULT: _ClassVar[SettingSource]
    SETTING_SOURCE_ENVIRONMENT: _ClassVar[SettingSource]
    SETTING_SOURCE_FLAG: _ClassVar[SettingSource]
RUN_MODE_UNSPECIFIED: RunMode
RUN_MODE_DEVICE: RunMode
RUN_MODE_HOST: RunMode
FINDING_LEVEL_UNSPECIFIED: FindingLevel
FINDING_LEVEL_OK: FindingLevel
FINDING_LEVEL_NOTE: FindingLevel
FINDING_LEVEL_WARNING: FindingLevel
FINDING_LEVEL_ERROR: FindingLevel
SETTING_SOURCE_UNSPECIFIED: SettingSource
SETTING_SOURCE_DEFAULT: SettingSource
SETTING_SOURCE_ENVIRONMENT: SettingSource
SETTING_SOURCE_FLAG: SettingSource

class ListDevicesRequest(_message.Message):
    __slots__ = ("page_size", "page_token")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListDevicesResponse(_message.Message):
    __slots__ = ("devices", "next_page_token")
    DEVICES_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    devices: _containers.RepeatedCompositeFieldContainer[Device]
    next_page_token: str
    def __init__(self, devices: _Optional[_Iterable[_Union[Device, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class Device(_message.Message):
    __slots__ = ("id", "soc_name", "run_mode", "emulated", "memory", "utilization_percent")
    ID_FIELD_NUMBER: _ClassVar[int]
    SOC_NAME_FIELD_NUMBER: _ClassVar[int]
    RUN_MODE_FIELD_NUMBER: _ClassVar[int]
    EMULATED_FIELD_NUMBER: _ClassVar[int]
    MEMORY_FIELD_NUMBER: _ClassVar[int]
    UTILIZATION_PERCENT_FIELD_NUMBER: _ClassVar[int]
    id: int
    soc_name: str
    run_mode: RunMode
    emulated: bool
    memory: _containers.RepeatedCompositeFieldContainer[DeviceMemory]
    utilization_percent: int
    def __init__(self, id: _Optional[int] = ..., soc_name: _Optional[str] = ..., run_mode: _Optional[_Union[RunMode, str]] = ..., emulated: bool = ..., memory: _Optional[_Iterable[_Union[DeviceMemory, _Mapping]]] = ..., utilization_percent: _Optional[int] = ...) -> None: ...

class DeviceMemory(_message.Message):
    __slots__ = ("kind", "free_bytes", "total_bytes")
    KIND_FIELD_NUMBER: _ClassVar[int]
    FREE_BYTES_FIELD_NUMBER: _ClassVar[int]
    TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    kind: str
    free_bytes: int
    total_bytes: int
    def __init__(self, kind: _Optional[str] = ..., free_bytes: _Optional[int] = ..., total_bytes: _Optional[int] = ...) -> None: ...

class GetServerInfoRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetServerInfoResponse(_message.Message):
    __slots__ = ("version", "acl_version", "features", "limits", "uptime", "caller")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    ACL_VERSION_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    UPTIME_FIELD_NUMBER: _ClassVar[int]
    CALLER_FIELD_NUMBER: _ClassVar[int]
    version: str
    acl_version: str
    features: _containers.RepeatedScalarFieldContainer[str]
    limits: Limits
    uptime: _duration_pb2.Duration
    caller: Caller
    def __init__(self, version: _Optional[str] = ..., acl_version: _Optional[str] = ..., features: _Optional[_Iterable[str]] = ..., limits: _Optional[_Union[Limits, _Mapping]] = ..., uptime: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., caller: _Optional[_Union[Caller, _Mapping]] = ...) -> None: ...

class Caller(_message.Message):
    __slots__ = ("principal", "groups", "max_streams", "max_items", "max_leases", "max_device_bytes", "max_host_bytes", "max_requests_per_s")
    PRINCIPAL_FIELD_NUMBER: _ClassVar[int]
    GROUPS_FIELD_NUMBER: _ClassVar[int]
    MAX_STREAMS_FIELD_NUMBER: _ClassVar[int]
    MAX_ITEMS_FIELD_NUMBER: _ClassVar[int]
    MAX_LEASES_FIELD_NUMBER: _ClassVar[int]
    MAX_DEVICE_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_HOST_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_REQUESTS_PER_S_FIELD_NUMBER: _ClassVar[int]
    principal: str
    groups: _containers.RepeatedScalarFieldContainer[str]
    max_streams: int
    max_items: int
    max_leases: int
    max_device_bytes: int
    max_host_bytes: int
    max_requests_per_s: float
    def __init__(self, principal: _Optional[str] = ..., groups: _Optional[_Iterable[str]] = ..., max_streams: _Optional[int] = ..., max_items: _Optional[int] = ..., max_leases: _Optional[int] = ..., max_device_bytes: _Optional[int] = ..., max_host_bytes: _Optional[int] = ..., max_requests_per_s: _Optional[float] = ...) -> None: ...

class Limits(_message.Message):
    __slots__ = ("max_message_bytes", "max_queue_rows", "max_stream_items", "max_leases", "max_lease_device_bytes", "max_lease_host_bytes", "max_lease_ttl", "max_upload_bytes", "max_stream_bytes", "max_regions", "max_lease_buffers", "max_metadata_bytes", "max_connection_calls", "max_item_id_bytes", "max_item_inputs", "max_item_outputs", "max_dimensions", "max_text_bytes", "max_fill_bytes", "max_page_size", "max_region_name_bytes", "max_config_bytes", "max_load_parameters", "max_health_watchers", "min_lease_ttl")
    MAX_MESSAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_QUEUE_ROWS_FIELD_NUMBER: _ClassVar[int]
    MAX_STREAM_ITEMS_FIELD_NUMBER: _ClassVar[int]
    MAX_LEASES_FIELD_NUMBER: _ClassVar[int]
    MAX_LEASE_DEVICE_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_LEASE_HOST_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_LEASE_TTL_FIELD_NUMBER: _ClassVar[int]
    MAX_UPLOAD_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_STREAM_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_REGIONS_FIELD_NUMBER: _ClassVar[int]
    MAX_LEASE_BUFFERS_FIELD_NUMBER: _ClassVar[int]
    MAX_METADATA_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_CONNECTION_CALLS_FIELD_NUMBER: _ClassVar[int]
    MAX_ITEM_ID_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_ITEM_INPUTS_FIELD_NUMBER: _ClassVar[int]
    MAX_ITEM_OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    MAX_DIMENSIONS_FIELD_NUMBER: _ClassVar[int]
    MAX_TEXT_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_FILL_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    MAX_REGION_NAME_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_CONFIG_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_LOAD_PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    MAX_HEALTH_WATCHERS_FIELD_NUMBER: _ClassVar[int]
    MIN_LEASE_TTL_FIELD_NUMBER: _ClassVar[int]
    max_message_bytes: int
    max_queue_rows: int
    max_stream_items: int
    max_leases: int
    max_lease_device_bytes: int
    max_lease_host_bytes: int
    max_lease_ttl: _duration_pb2.Duration
    max_upload_bytes: int
    max_stream_bytes: int
    max_regions: int
    max_lease_buffers: int
    max_metadata_bytes: int
    max_connection_calls: int
    max_item_id_bytes: int
    max_item_inputs: int
    max_item_outputs: int
    max_dimensions: int
    max_text_bytes: int
    max_fill_bytes: int
    max_page_size: int
    max_region_name_bytes: int
    max_config_bytes: int
    max_load_parameters: int
    max_health_watchers: int
    min_lease_ttl: _duration_pb2.Duration
    def __init__(self, max_message_bytes: _Optional[int] = ..., max_queue_rows: _Optional[int] = ..., max_stream_items: _Optional[int] = ..., max_leases: _Optional[int] = ..., max_lease_device_bytes: _Optional[int] = ..., max_lease_host_bytes: _Optional[int] = ..., max_lease_ttl: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., max_upload_bytes: _Optional[int] = ..., max_stream_bytes: _Optional[int] = ..., max_regions: _Optional[int] = ..., max_lease_buffers: _Optional[int] = ..., max_metadata_bytes: _Optional[int] = ..., max_connection_calls: _Optional[int] = ..., max_item_id_bytes: _Optional[int] = ..., max_item_inputs: _Optional[int] = ..., max_item_outputs: _Optional[int] = ..., max_dimensions: _Optional[int] = ..., max_text_bytes: _Optional[int] = ..., max_fill_bytes: _Optional[int] = ..., max_page_size: _Optional[int] = ..., max_region_name_bytes: _Optional[int] = ..., max_config_bytes: _Optional[int] = ..., max_load_parameters: _Optional[int] = ..., max_health_watchers: _Optional[int] = ..., min_lease_ttl: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class GetDiagnosisRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetDiagnosisResponse(_message.Message):
    __slots__ = ("version", "findings", "settings")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    FINDINGS_FIELD_NUMBER: _ClassVar[int]
    SETTINGS_FIELD_NUMBER: _ClassVar[int]
    version: str
    findings: _containers.RepeatedCompositeFieldContainer[Finding]
    settings: _containers.RepeatedCompositeFieldContainer[Setting]
    def __init__(self, version: _Optional[str] = ..., findings: _Optional[_Iterable[_Union[Finding, _Mapping]]] = ..., settings: _Optional[_Iterable[_Union[Setting, _Mapping]]] = ...) -> None: ...

class Finding(_message.Message):
    __slots__ = ("level", "check", "text", "fix")
    LEVEL_FIELD_NUMBER: _ClassVar[int]
    CHECK_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    FIX_FIELD_NUMBER: _ClassVar[int]
    level: FindingLevel
    check: str
    text: str
    fix: str
    def __init__(self, level: _Optional[_Union[FindingLevel, str]] = ..., check: _Optional[str] = ..., text: _Optional[str] = ..., fix: _Optional[str] = ...) -> None: ...

class Setting(_message.Message):
    __slots__ = ("name", "value", "source")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    name: str
    value: str
    source: SettingSource
    def __init__(self, name: _Optional[str] = ..., value: _Optional[str] = ..., source: _Optional[_Union[SettingSource, str]] = ...) -> None: ...
