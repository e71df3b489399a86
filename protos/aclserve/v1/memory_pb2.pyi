from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class MemorySpace(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    MEMORY_SPACE_UNSPECIFIED: _ClassVar[MemorySpace]
    MEMORY_SPACE_HOST: _ClassVar[MemorySpace]
    MEMORY_SPACE_DEVICE: _ClassVar[MemorySpace]

class AllocationPolicy(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ALLOCATION_POLICY_UNSPECIFIED: _ClassVar[AllocationPolicy]
    ALLOCATION_POLICY_HUGE_FIRST: _ClassVar[AllocationPolicy]
    ALLOCATION_POLICY_HUGE_ONLY: _ClassVar[AllocationPolicy]
    ALLOCATION_POLICY_NORMAL_ONLY: _ClassVar[AllocationPolicy]
    ALLOCATION_POLICY_HUGE_FIRST_P2P: _ClassVar[AllocationPolicy]
    ALLOCATION_POLICY_HUGE_ONLY_P2P: _ClassVar[AllocationPolicy]
    ALLOCATION_POLICY_NORMAL_ONLY_P2P: _ClassVar[AllocationPolicy]
    ALLOCATION_POLICY_HUGE1G_ONLY: _ClassVar[AllocationPolicy]
    ALLOCATION_POLICY_HUGE1G_ONLY_P2P: _ClassVar[AllocationPolicy]

class MemoryAttribute(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    MEMORY_ATTRIBUTE_UNSPECIFIED: _ClassVar[MemoryAttribute]
    MEMORY_ATTRIBUTE_DDR: _ClassVar[MemoryAttribute]
    MEMORY_ATTRIBUTE_HBM: _ClassVar[MemoryAttribute]
    MEMORY_ATTRIBUTE_DDR_HUGE: _ClassVar[MemoryAttribute]
    MEMORY_ATTRIBUTE_DDR_NORMAL: _ClassVar[MemoryAttribute]
    MEMORY_ATTRIBUTE_HBM_HUGE: _ClassVar[MemoryAttribute]
    MEMORY_ATTRIBUTE_HBM_NORMAL: _ClassVar[MemoryAttribute]
    MEMORY_ATTRIBUTE_DDR_P2P_HUGE: _ClassVar[MemoryAttribute]
    MEMORY_ATTRIBUTE_DDR_P2P_NORMAL: _ClassVar[MemoryAttribute]
    MEMORY_ATTRIBUTE_HBM_P2P_HUGE: _ClassVar[MemoryAttribute]
    MEMORY_ATTRIBUTE_HBM_P2P_NORMAL: _ClassVar[MemoryAttribute]
    MEMORY_ATTRIBUTE_HBM_HUGE1G: _ClassVar[MemoryAttribute]
    MEMORY_ATTRIBUTE_HBM_P2P_HUGE1G: _ClassVar[MemoryAttribute]
    MEMORY_ATTRIBUTE_NORMAL: _ClassVar[MemoryAttribute]
    MEMORY_ATTRIBUTE_HUGE: _ClassVar[MemoryAttribute]
    MEMORY_ATTRIBUTE_HUGE1G: _ClassVar[MemoryAttribute]
    MEMORY_ATTRIBUTE_P2P_NORMAL: _ClassVar[MemoryAttribute]
    MEMORY_ATTRIBUTE_P2P_HUGE: _ClassVar[MemoryAttribute]
    MEMORY_ATTRIBUTE_P2P_HUGE1G: _ClassVar[MemoryAttribute]
MEMORY_SPACE_UNSPECIFIED: MemorySpace
MEMORY_SPACE_HOST: MemorySpace
MEMORY_SPACE_DEVICE: MemorySpace
ALLOCATION_POLICY_UNSPECIFIED: AllocationPolicy
ALLOCATION_POLICY_HUGE_FIRST: AllocationPolicy
ALLOCATION_POLICY_HUGE_ONLY: AllocationPolicy
ALLOCATION_POLICY_NORMAL_ONLY: AllocationPolicy
ALLOCATION_POLICY_HUGE_FIRST_P2P: AllocationPolicy
ALLOCATION_POLICY_HUGE_ONLY_P2P: AllocationPolicy
ALLOCATION_POLICY_NORMAL_ONLY_P2P: AllocationPolicy
ALLOCATION_POLICY_HUGE1G_ONLY: AllocationPolicy
ALLOCATION_POLICY_HUGE1G_ONLY_P2P: AllocationPolicy
MEMORY_ATTRIBUTE_UNSPECIFIED: MemoryAttribute
MEMORY_ATTRIBUTE_DDR: MemoryAttribute
MEMORY_ATTRIBUTE_HBM: MemoryAttribute
MEMORY_ATTRIBUTE_DDR_HUGE: MemoryAttribute
MEMORY_ATTRIBUTE_DDR_NORMAL: MemoryAttribute
MEMORY_ATTRIBUTE_HBM_HUGE: MemoryAttribute
MEMORY_ATTRIBUTE_HBM_NORMAL: MemoryAttribute
MEMORY_ATTRIBUTE_DDR_P2P_HUGE: MemoryAttribute
MEMORY_ATTRIBUTE_DDR_P2P_NORMAL: MemoryAttribute
MEMORY_ATTRIBUTE_HBM_P2P_HUGE: MemoryAttribute
MEMORY_ATTRIBUTE_HBM_P2P_NORMAL: MemoryAttribute
MEMORY_ATTRIBUTE_HBM_HUGE1G: MemoryAttribute
MEMORY_ATTRIBUTE_HBM_P2P_HUGE1G: MemoryAttribute
MEMORY_ATTRIBUTE_NORMAL: MemoryAttribute
MEMORY_ATTRIBUTE_HUGE: MemoryAttribute
MEMORY_ATTRIBUTE_HUGE1G: MemoryAttribute
MEMORY_ATTRIBUTE_P2P_NORMAL: MemoryAttribute
MEMORY_ATTRIBUTE_P2P_HUGE: MemoryAttribute
MEMORY_ATTRIBUTE_P2P_HUGE1G: MemoryAttribute

class Buffer(_message.Message):
    __slots__ = ("id", "space", "size_bytes", "policy", "pins")
    ID_FIELD_NUMBER: _ClassVar[int]
    SPACE_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    PINS_FIELD_NUMBER: _ClassVar[int]
    id: str
    space: MemorySpace
    size_bytes: int
    policy: AllocationPolicy
    pins: int
    def __init__(self, id: _Optional[str] = ..., space: _Optional[_Union[MemorySpace, str]] = ..., size_bytes: _Optional[int] = ..., policy: _Optional[_Union[AllocationPolicy, str]] = ..., pins: _Optional[int] = ...) -> None: ...

class Lease(_message.Message):
    __slots__ = ("id", "ttl", "remaining", "device_bytes", "device_quota_bytes", "host_bytes", "host_quota_bytes")
    ID_FIELD_NUMBER: _ClassVar[int]
    TTL_FIELD_NUMBER: _ClassVar[int]
    REMAINING_FIELD_NUMBER: _ClassVar[int]
    DEVICE_BYTES_FIELD_NUMBER: _ClassVar[int]
    DEVICE_QUOTA_BYTES_FIELD_NUMBER: _ClassVar[int]
    HOST_BYTES_FIELD_NUMBER: _ClassVar[int]
    HOST_QUOTA_BYTES_FIELD_NUMBER: _ClassVar[int]
    id: str
    ttl: _duration_pb2.Duration
    remaining: _duration_pb2.Duration
    device_bytes: int
    device_quota_bytes: int
    host_bytes: int
    host_quota_bytes: int
    def __init__(self, id: _Optional[str] = ..., ttl: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., remaining: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., device_bytes: _Optional[int] = ..., device_quota_bytes: _Optional[int] = ..., host_bytes: _Optional[int] = ..., host_quota_bytes: _Optional[int] = ...) -> None: ...

class CreateLeaseRequest(_message.Message):
    __slots__ = ("ttl",)
    TTL_FIELD_NUMBER: _ClassVar[int]
    ttl: _duration_pb2.Duration
    def __init__(self, ttl: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class CreateLeaseResponse(_message.Message):
    __slots__ = ("lease",)
    LEASE_FIELD_NUMBER: _ClassVar[int]
    lease: Lease
    def __init__(self, lease: _Optional[_Union[Lease, _Mapping]] = ...) -> None: ...

class RenewLeaseRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class RenewLeaseResponse(_message.Message):
    __slots__ = ("lease",)
    LEASE_FIELD_NUMBER: _ClassVar[int]
    lease: Lease
    def __init__(self, lease: _Optional[_Union[Lease, _Mapping]] = ...) -> None: ...

class KeepLeaseAliveRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class KeepLeaseAliveResponse(_message.Message):
    __slots__ = ("lease",)
    LEASE_FIELD_NUMBER: _ClassVar[int]
    lease: Lease
    def __init__(self, lease: _Optional[_Union[Lease, _Mapping]] = ...) -> None: ...

class ReleaseLeaseRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ReleaseLeaseResponse(_message.Message):
    __slots__ = ("buffers_freed",)
    BUFFERS_FREED_FIELD_NUMBER: _ClassVar[int]
    buffers_freed: int
    def __init__(self, buffers_freed: _Optional[int] = ...) -> None: ...

class AllocateBufferRequest(_message.Message):
    __slots__ = ("space", "size_bytes", "policy")
    SPACE_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    space: MemorySpace
    size_bytes: int
    policy: AllocationPolicy
    def __init__(self, space: _Optional[_Union[MemorySpace, str]] = ..., size_bytes: _Optional[int] = ..., policy: _Optional[_Union[AllocationPolicy, str]] = ...) -> None: ...

class AllocateBufferResponse(_message.Message):
    __slots__ = ("buffer",)
    BUFFER_FIELD_NUMBER: _ClassVar[int]
    buffer: Buffer
    def __init__(self, buffer: _Optional[_Union[Buffer, _Mapping]] = ...) -> None: ...

class FreeBufferRequest(_message.Message):
    __slots__ = ("buffer_id",)
    BUFFER_ID_FIELD_NUMBER: _ClassVar[int]
    buffer_id: str
    def __init__(self, buffer_id: _Optional[str] = ...) -> None: ...

class FreeBufferResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListBuffersRequest(_message.Message):
    __slots__ = ("page_size", "page_token")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListBuffersResponse(_message.Message):
    __slots__ = ("buffers", "next_page_token")
    BUFFERS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    buffers: _containers.RepeatedCompositeFieldContainer[Buffer]
    next_page_token: str
    def __init__(self, buffers: _Optional[_Iterable[_Union[Buffer, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class SetMemoryRequest(_message.Message):
    __slots__ = ("buffer_id", "offset_bytes", "length_bytes", "value")
    BUFFER_ID_FIELD_NUMBER: _ClassVar[int]
    OFFSET_BYTES_FIELD_NUMBER: _ClassVar[int]
    LENGTH_BYTES_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    buffer_id: str
    offset_bytes: int
    length_bytes: int
    value: int
    def __init__(self, buffer_id: _Optional[str] = ..., offset_bytes: _Optional[int] = ..., length_bytes: _Optional[int] = ..., value: _Optional[int] = ...) -> None: ...

class SetMemoryResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class CopyMemoryRequest(_message.Message):
    __slots__ = ("source_buffer_id", "source_offset_bytes", "destination_buffer_id", "destination_offset_bytes", "length_bytes")
    SOURCE_BUFFER_ID_FIELD_NUMBER: _ClassVar[int]
    SOURCE_OFFSET_BYTES_FIELD_NUMBER: _ClassVar[int]
    DESTINATION_BUFFER_ID_FIELD_NUMBER: _ClassVar[int]
    DESTINATION_OFFSET_BYTES_FIELD_NUMBER: _ClassVar[int]
    LENGTH_BYTES_FIELD_NUMBER: _ClassVar[int]
    source_buffer_id: str
    source_offset_bytes: int
    destination_buffer_id: str
    destination_offset_bytes: int
    length_bytes: int
    def __init__(self, source_buffer_id: _Optional[str] = ..., source_offset_bytes: _Optional[int] = ..., destination_buffer_id: _Optional[str] = ..., destination_offset_bytes: _Optional[int] = ..., length_bytes: _Optional[int] = ...) -> None: ...

class CopyMemoryResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class WriteBufferRequest(_message.Message):
    __slots__ = ("header", "data")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    header: WriteBufferHeader
    data: bytes
    def __init__(self, header: _Optional[_Union[WriteBufferHeader, _Mapping]] = ..., data: _Optional[bytes] = ...) -> None: ...

class WriteBufferHeader(_message.Message):
    __slots__ = ("buffer_id", "offset_bytes", "length_bytes", "crc32c")
    BUFFER_ID_FIELD_NUMBER: _ClassVar[int]
    OFFSET_BYTES_FIELD_NUMBER: _ClassVar[int]
    LENGTH_BYTES_FIELD_NUMBER: _ClassVar[int]
    CRC32C_FIELD_NUMBER: _ClassVar[int]
    buffer_id: str
    offset_bytes: int
    length_bytes: int
    crc32c: int
    def __init__(self, buffer_id: _Optional[str] = ..., offset_bytes: _Optional[int] = ..., length_bytes: _Optional[int] = ..., crc32c: _Optional[int] = ...) -> None: ...

class WriteBufferResponse(_message.Message):
    __slots__ = ("crc32c",)
    CRC32C_FIELD_NUMBER: _ClassVar[int]
    crc32c: int
    def __init__(self, crc32c: _Optional[int] = ...) -> None: ...

class ReadBufferRequest(_message.Message):
    __slots__ = ("buffer_id", "offset_bytes", "length_bytes")
    BUFFER_ID_FIELD_NUMBER: _ClassVar[int]
    OFFSET_BYTES_FIELD_NUMBER: _ClassVar[int]
    LENGTH_BYTES_FIELD_NUMBER: _ClassVar[int]
    buffer_id: str
    offset_bytes: int
    length_bytes: int
    def __init__(self, buffer_id: _Optional[str] = ..., offset_bytes: _Optional[int] = ..., length_bytes: _Optional[int] = ...) -> None: ...

class ReadBufferResponse(_message.Message):
    __slots__ = ("data", "crc32c")
    DATA_FIELD_NUMBER: _ClassVar[int]
    CRC32C_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    crc32c: int
    def __init__(self, data: _Optional[bytes] = ..., crc32c: _Optional[int] = ...) -> None: ...

class QueryMemoryRequest(_message.Message):
    __slots__ = ("attributes",)
    ATTRIBUTES_FIELD_NUMBER: _ClassVar[int]
    attributes: _containers.RepeatedScalarFieldContainer[MemoryAttribute]
    def __init__(self, attributes: _Optional[_Iterable[_Union[MemoryAttribute, str]]] = ...) -> None: ...

class QueryMemoryResponse(_message.Message):
    __slots__ = ("usage",)
    USAGE_FIELD_NUMBER: _ClassVar[int]
    usage: _containers.RepeatedCompositeFieldContainer[MemoryUsage]
    def __init__(self, usage: _Optional[_Iterable[_Union[MemoryUsage, _Mapping]]] = ...) -> None: ...

class MemoryUsage(_message.Message):
    __slots__ = ("attribute", "free_bytes", "total_bytes")
    ATTRIBUTE_FIELD_NUMBER: _ClassVar[int]
    FREE_BYTES_FIELD_NUMBER: _ClassVar[int]
    TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    attribute: MemoryAttribute
    free_bytes: int
    total_bytes: int
    def __init__(self, attribute: _Optional[_Union[MemoryAttribute, str]] = ..., free_bytes: _Optional[int] = ..., total_bytes: _Optional[int] = ...) -> None: ...

class Region(_message.Message):
    __slots__ = ("id", "key", "offset_bytes", "size_bytes", "pins")
    ID_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    OFFSET_BYTES_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    PINS_FIELD_NUMBER: _ClassVar[int]
    id: str
    key: str
    offset_bytes: int
    size_bytes: int
    pins: int
    def __init__(self, id: _Optional[str] = ..., key: _Optional[str] = ..., offset_bytes: _Optional[int] = ..., size_bytes: _Optional[int] = ..., pins: _Optional[int] = ...) -> None: ...

class RegisterRegionRequest(_message.Message):
    __slots__ = ("key", "offset_bytes", "size_bytes", "probe")
    KEY_FIELD_NUMBER: _ClassVar[int]
    OFFSET_BYTES_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    PROBE_FIELD_NUMBER: _ClassVar[int]
    key: str
    offset_bytes: int
    size_bytes: int
    probe: bytes
    def __init__(self, key: _Optional[str] = ..., offset_bytes: _Optional[int] = ..., size_bytes: _Optional[int] = ..., probe: _Optional[bytes] = ...) -> None: ...

class RegisterRegionResponse(_message.Message):
    __slots__ = ("region",)
    REGION_FIELD_NUMBER: _ClassVar[int]
    region: Region
    def __init__(self, region: _Optional[_Union[Region, _Mapping]] = ...) -> None: ...

class UnregisterRegionRequest(_message.Message):
    __slots__ = ("region_id",)
    REGION_ID_FIELD_NUMBER: _ClassVar[int]
    region_id: str
    def __init__(self, region_id: _Optional[str] = ...) -> None: ...

class UnregisterRegionResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListRegionsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListRegionsResponse(_message.Message):
    __slots__ = ("regions",)
    REGIONS_FIELD_NUMBER: _ClassVar[int]
    regions: _containers.RepeatedCompositeFieldContainer[Region]
    def __init__(self, regions: _Optional[_Iterable[_Union[Region, _Mapping]]] = ...) -> None: ...
