"""DeviceService on the wire, and the paging that all lists share."""

from __future__ import annotations

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aclserve.errors import InvalidArgument
from aclserve.v1 import device_pb2 as pb
from aclserve_server.acl.types import aclrtMemAttr
from aclserve_server.rpc.paging import MAX_PAGE_SIZE, page
from rpc.memory_server import INFO, Wire, refused, run


@pytest.mark.parametrize(("run_mode", "expected"), [("host", pb.RUN_MODE_HOST), ("device", pb.RUN_MODE_DEVICE)])
def test_the_device_is_listed_with_the_memory_it_has(run_mode: str, expected: int) -> None:
    async def test(wire: Wire) -> None:
        wire.device.memory[aclrtMemAttr.ACL_HBM_MEM_P2P_HUGE1G] = (0, 5)
        answer = await wire.devices.ListDevices(pb.ListDevicesRequest())
        (device,) = answer.devices
        assert (device.id, device.soc_name, device.run_mode, device.emulated) == (0, "Fake910", expected, True)
        assert [(kind.kind, kind.free_bytes, kind.total_bytes) for kind in device.memory] == [
            ("HBM", 60, 100),
            ("HBM_P2P_HUGE1G", 0, 5),
        ]
        assert device.utilization_percent == 7
        assert answer.next_page_token == ""
        wire.device.utilization = lambda: None
        (device,) = (await wire.devices.ListDevices(pb.ListDevicesRequest())).devices
        assert not device.HasField("utilization_percent")
        await refused(
            wire.devices.ListDevices(pb.ListDevicesRequest(page_token="bad")),
            grpc.StatusCode.INVALID_ARGUMENT,
            "PAGE_TOKEN_INVALID",
        )

    run(test, run_mode)


def test_the_server_tells_about_itself() -> None:
    async def test(wire: Wire) -> None:
        answer = await wire.devices.GetServerInfo(pb.GetServerInfoRequest())
        assert (answer.version, answer.acl_version, list(answer.features)) == ("1.2.3", "1.14.0", ["reflection"])
        assert answer.uptime.ToNanoseconds() == 12_500_000_000
        limits, memory = answer.limits, INFO.memory
        assert limits.max_message_bytes == INFO.max_message_bytes
        assert limits.max_queue_rows == INFO.max_queue_rows
        assert limits.max_stream_items == INFO.max_stream_items
        assert limits.max_leases == memory.max_leases
        assert limits.max_lease_device_bytes == memory.max_lease_device_bytes
        assert limits.max_lease_host_bytes == memory.max_lease_host_bytes
        assert limits.max_lease_ttl.seconds == memory.max_ttl_s
        assert limits.max_upload_bytes == memory.max_upload_bytes
        assert limits.max_stream_bytes == INFO.max_stream_bytes
        assert limits.max_regions == INFO.max_regions
        assert not answer.HasField("caller")
        assert all(field.name for field, _ in limits.ListFields())
        assert len(limits.ListFields()) == len(pb.Limits.DESCRIPTOR.fields)

    run(test)


def test_a_diagnosis_is_told_without_what_is_hidden() -> None:
    async def test(wire: Wire) -> None:
        answer = await wire.devices.GetDiagnosis(pb.GetDiagnosisRequest())
        assert answer.version == "1.2.3"
        assert [(found.level, found.check, found.text, found.fix) for found in answer.findings] == [
            (pb.FINDING_LEVEL_OK, "area.ok", "text ok", ""),
            (pb.FINDING_LEVEL_NOTE, "area.note", "text note", "fix"),
            (pb.FINDING_LEVEL_WARNING, "area.warning", "text warning", "fix"),
            (pb.FINDING_LEVEL_ERROR, "area.error", "text error", "fix"),
        ]
        assert [(s.name, s.HasField("value"), s.value, s.source) for s in answer.settings] == [
            ("max-queue-rows", True, "7", pb.SETTING_SOURCE_FLAG),
            ("host", False, "", pb.SETTING_SOURCE_ENVIRONMENT),
            ("unix-socket", True, "", pb.SETTING_SOURCE_DEFAULT),
        ]

    run(test)


KEYS = st.one_of(st.sets(st.text(max_size=8), max_size=30), st.sets(st.integers(), max_size=30)).map(sorted)


@given(KEYS, st.integers(0, 12))
def test_pages_cover_a_list_once_and_in_order(keys: list[str], size: int) -> None:
    seen: list[str] = []
    token = ""
    while True:
        shown, token = page(keys, size, token)
        seen += shown
        assert len(shown) <= (size or 100)
        if not token:
            break
        assert shown
    assert seen == keys


def test_page_sizes() -> None:
    keys = list(range(2500))
    assert len(page(keys, 0, "")[0]) == 100
    assert len(page(keys, 1 << 31, "")[0]) == MAX_PAGE_SIZE
    assert page(keys[:100], 0, "")[1] == ""


@given(st.text(max_size=40), st.booleans())
def test_no_token_but_a_given_one_is_taken(token: str, numbers: bool) -> None:
    keys: list[int] | list[str] = [1, 2, 3] if numbers else ["a", "b", "c"]
    given_tokens = {page(keys, size, "")[1] for size in (1, 2)}  # type: ignore[type-var]
    if token and token not in given_tokens:
        with pytest.raises(InvalidArgument, match="PAGE_TOKEN_INVALID"):
            page(keys, 1, token)  # type: ignore[type-var]


def test_damaged_tokens_and_those_of_other_lists_are_refused() -> None:
    keys = [f"key-{number}" for number in range(5)]
    token = page(keys, 2, "")[1]
    assert page(keys, 2, token)[0] == keys[2:4]
    for at in range(len(token)):
        for other in "Aa0_":
            damaged = token[:at] + other + token[at + 1 :]
            if damaged != token:
                with pytest.raises(InvalidArgument):
                    page(keys, 2, damaged)
    with pytest.raises(InvalidArgument):
        page([1, 2, 3], 1, token)
    assert page([], 1, token) == ([], "")
