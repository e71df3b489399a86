"""Memory and devices: engine objects <-> aclserve.v1 messages. Pure functions.

Conversions from a request refuse what the contract refuses: INVALID_ARGUMENT with reason MEMORY_SPACE_INVALID,
ALLOCATION_POLICY_INVALID, POLICY_NOT_APPLICABLE or MEMORY_ATTRIBUTE_INVALID.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from google.protobuf.duration_pb2 import Duration

from aclserve.errors import InvalidArgument
from aclserve.v1 import device_pb2, memory_pb2
from aclserve_server.acl.types import aclrtMemAttr, aclrtMemMallocPolicy
from aclserve_server.device.buffers import Space
from aclserve_server.engine.devices import AttributeUse, DeviceSnapshot
from aclserve_server.engine.holdings import BufferInfo
from aclserve_server.engine.leases import LeaseInfo
from aclserve_server.engine.regions import Region

_SPACES: Mapping[memory_pb2.MemorySpace, Space] = {
    memory_pb2.MEMORY_SPACE_HOST: "host",
    memory_pb2.MEMORY_SPACE_DEVICE: "device",
}
_SPACES_BACK = {space: value for value, space in _SPACES.items()}

_POLICIES: Mapping[memory_pb2.AllocationPolicy, aclrtMemMallocPolicy] = {
    memory_pb2.ALLOCATION_POLICY_HUGE_FIRST: aclrtMemMallocPolicy.ACL_MEM_MALLOC_HUGE_FIRST,
    memory_pb2.ALLOCATION_POLICY_HUGE_ONLY: aclrtMemMallocPolicy.ACL_MEM_MALLOC_HUGE_ONLY,
    memory_pb2.ALLOCATION_POLICY_NORMAL_ONLY: aclrtMemMallocPolicy.ACL_MEM_MALLOC_NORMAL_ONLY,
    memory_pb2.ALLOCATION_POLICY_HUGE_FIRST_P2P: aclrtMemMallocPolicy.ACL_MEM_MALLOC_HUGE_FIRST_P2P,
    memory_pb2.ALLOCATION_POLICY_HUGE_ONLY_P2P: aclrtMemMallocPolicy.ACL_MEM_MALLOC_HUGE_ONLY_P2P,
    memory_pb2.ALLOCATION_POLICY_NORMAL_ONLY_P2P: aclrtMemMallocPolicy.ACL_MEM_MALLOC_NORMAL_ONLY_P2P,
    memory_pb2.ALLOCATION_POLICY_HUGE1G_ONLY: aclrtMemMallocPolicy.ACL_MEM_MALLOC_HUGE1G_ONLY,
    memory_pb2.ALLOCATION_POLICY_HUGE1G_ONLY_P2P: aclrtMemMallocPolicy.ACL_MEM_MALLOC_HUGE1G_ONLY_P2P,
}
_POLICIES_BACK = {policy: value for value, policy in _POLICIES.items()}

_ATTRIBUTES: Mapping[memory_pb2.MemoryAttribute, aclrtMemAttr] = {
    memory_pb2.MEMORY_ATTRIBUTE_DDR: aclrtMemAttr.ACL_DDR_MEM,
    memory_pb2.MEMORY_ATTRIBUTE_HBM: aclrtMemAttr.ACL_HBM_MEM,
    memory_pb2.MEMORY_ATTRIBUTE_DDR_HUGE: aclrtMemAttr.ACL_DDR_MEM_HUGE,
    memory_pb2.MEMORY_ATTRIBUTE_DDR_NORMAL: aclrtMemAttr.ACL_DDR_MEM_NORMAL,
    memory_pb2.MEMORY_ATTRIBUTE_HBM_HUGE: aclrtMemAttr.ACL_HBM_MEM_HUGE,
    memory_pb2.MEMORY_ATTRIBUTE_HBM_NORMAL: aclrtMemAttr.ACL_HBM_MEM_NORMAL,
    memory_pb2.MEMORY_ATTRIBUTE_DDR_P2P_HUGE: aclrtMemAttr.ACL_DDR_MEM_P2P_HUGE,
    memory_pb2.MEMORY_ATTRIBUTE_DDR_P2P_NORMAL: aclrtMemAttr.ACL_DDR_MEM_P2P_NORMAL,
    memory_pb2.MEMORY_ATTRIBUTE_HBM_P2P_HUGE: aclrtMemAttr.ACL_HBM_MEM_P2P_HUGE,
    memory_pb2.MEMORY_ATTRIBUTE_HBM_P2P_NORMAL: aclrtMemAttr.ACL_HBM_MEM_P2P_NORMAL,
    memory_pb2.MEMORY_ATTRIBUTE_HBM_HUGE1G: aclrtMemAttr.ACL_HBM_MEM_HUGE1G,
    memory_pb2.MEMORY_ATTRIBUTE_HBM_P2P_HUGE1G: aclrtMemAttr.ACL_HBM_MEM_P2P_HUGE1G,
    memory_pb2.MEMORY_ATTRIBUTE_NORMAL: aclrtMemAttr.ACL_MEM_NORMAL,
    memory_pb2.MEMORY_ATTRIBUTE_HUGE: aclrtMemAttr.ACL_MEM_HUGE,
    memory_pb2.MEMORY_ATTRIBUTE_HUGE1G: aclrtMemAttr.ACL_MEM_HUGE1G,
    memory_pb2.MEMORY_ATTRIBUTE_P2P_NORMAL: aclrtMemAttr.ACL_MEM_P2P_NORMAL,
    memory_pb2.MEMORY_ATTRIBUTE_P2P_HUGE: aclrtMemAttr.ACL_MEM_P2P_HUGE,
    memory_pb2.MEMORY_ATTRIBUTE_P2P_HUGE1G: aclrtMemAttr.ACL_MEM_P2P_HUGE1G,
}
_ATTRIBUTES_BACK = {attribute: value for value, attribute in _ATTRIBUTES.items()}

_RUN_MODES = {"device": device_pb2.RUN_MODE_DEVICE, "host": device_pb2.RUN_MODE_HOST}


def seconds_from_proto(duration: Duration) -> float:
    """A Duration in seconds, exactly as good as a float can."""
    return duration.seconds + duration.nanos / 1e9


def seconds_to_proto(seconds: float) -> Duration:
    """Seconds as a Duration, to the nanosecond."""
    duration = Duration()
    duration.FromNanoseconds(round(seconds * 1e9))
    return duration


def allocation_from_proto(
    request: memory_pb2.AllocateBufferRequest,
) -> tuple[Space, int, aclrtMemMallocPolicy]:
    """Space, size in bytes, and policy (for host memory without meaning)."""
    space = _SPACES.get(request.space)
    if space is None:
        raise _unknown("space", request.space, memory_pb2.MemorySpace, "MEMORY_SPACE_INVALID")
    if request.policy == memory_pb2.ALLOCATION_POLICY_UNSPECIFIED:
        return space, request.size_bytes, aclrtMemMallocPolicy.ACL_MEM_MALLOC_HUGE_FIRST
    if space == "host":
        raise InvalidArgument(
            "host memory has no allocation policy: leave `policy` unset", reason="POLICY_NOT_APPLICABLE"
        )
    policy = _POLICIES.get(request.policy)
    if policy is None:
        raise _unknown("policy", request.policy, memory_pb2.AllocationPolicy, "ALLOCATION_POLICY_INVALID")
    return space, request.size_bytes, policy


def attributes_from_proto(attributes: Iterable[memory_pb2.MemoryAttribute]) -> list[aclrtMemAttr]:
    """AscendCL's attributes; UNSPECIFIED among them means all, which is an empty list."""
    wanted = list(attributes)
    if memory_pb2.MEMORY_ATTRIBUTE_UNSPECIFIED in wanted:
        return []
    for value in wanted:
        if value not in _ATTRIBUTES:
            raise _unknown("attributes", value, memory_pb2.MemoryAttribute, "MEMORY_ATTRIBUTE_INVALID")
    return [_ATTRIBUTES[value] for value in dict.fromkeys(wanted)]


def lease_to_proto(lease: LeaseInfo) -> memory_pb2.Lease:
    """One lease."""
    return memory_pb2.Lease(
        id=lease.id,
        ttl=seconds_to_proto(lease.ttl_s),
        remaining=seconds_to_proto(lease.remaining_s),
        device_bytes=lease.device_bytes,
        device_quota_bytes=lease.device_quota_bytes,
        host_bytes=lease.host_bytes,
        host_quota_bytes=lease.host_quota_bytes,
    )


def buffer_to_proto(buffer: BufferInfo) -> memory_pb2.Buffer:
    """One buffer."""
    policy = memory_pb2.ALLOCATION_POLICY_UNSPECIFIED if buffer.policy is None else _POLICIES_BACK[buffer.policy]
    return memory_pb2.Buffer(
        id=buffer.id,
        space=_SPACES_BACK[buffer.space],
        size_bytes=buffer.size_bytes,
        policy=policy,
        pins=buffer.pins,
    )


def region_to_proto(region: Region) -> memory_pb2.Region:
    """One region; its name is its id."""
    return memory_pb2.Region(
        id=region.name,
        key=region.key,
        offset_bytes=region.offset_bytes,
        size_bytes=region.size_bytes,
        pins=region.pins,
    )


def usage_to_proto(use: AttributeUse) -> memory_pb2.MemoryUsage:
    """Memory of one kind, by attribute."""
    return memory_pb2.MemoryUsage(
        attribute=_ATTRIBUTES_BACK[use.attribute], free_bytes=use.free_bytes, total_bytes=use.total_bytes
    )


def device_to_proto(device: DeviceSnapshot) -> device_pb2.Device:
    """One device."""
    return device_pb2.Device(
        id=device.id,
        soc_name=device.soc_name,
        run_mode=_RUN_MODES[device.run_mode],
        emulated=device.emulated,
        memory=[
            device_pb2.DeviceMemory(
                kind=memory_kind(use.attribute), free_bytes=use.free_bytes, total_bytes=use.total_bytes
            )
            for use in device.memory
        ],
        utilization_percent=device.utilization_percent,
    )


def memory_kind(attribute: aclrtMemAttr) -> str:
    """The name clients see: "DDR", "HBM_HUGE" and so on."""
    return memory_pb2.MemoryAttribute.Name(_ATTRIBUTES_BACK[attribute]).removeprefix("MEMORY_ATTRIBUTE_")


def _unknown(field: str, value: int, enum: Any, reason: str) -> InvalidArgument:
    names = ", ".join(name for name, number in enum.items() if number)
    got = enum.Name(value) if value in enum.values() else str(value)
    return InvalidArgument(f"{field} is {got}; expected one of {names}", reason=reason, metadata={"field": field})
