"""System shared memory of tritonclient's own making, and its calls for memory of CUDA devices."""

from __future__ import annotations

import base64
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compat.worker import DIFFERENCE, TOTAL, WAYS, Worker, call, infer, outputs_of, pair, tensor
from e2e.raw import wait_until
from rpc.v2.v2_server import V2
from rpc.v2.v2_stream import held, leaves_nothing
from serving import rows

INVALID = "StatusCode.INVALID_ARGUMENT"
ABSENT = "StatusCode.NOT_FOUND"
UNAVAILABLE = "StatusCode.UNAVAILABLE"


@pytest.fixture(autouse=True)
def unchanged(served: V2, client: Worker) -> Iterator[None]:
    with leaves_nothing(served):
        yield


KEY = f"/aclserve-compat-{uuid.uuid4().hex}"

pytestmark = pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="needs /dev/shm")


@pytest.fixture
def region(client: Worker) -> Iterator[str]:
    """A registered region of 256 bytes, of the client's own making."""
    client.do("shm_create", name="r", key=KEY, size=256)
    assert call(client, "register_system_shared_memory", name="r", key=KEY, byte_size=256) is None
    yield "r"
    call(client, "unregister_system_shared_memory")
    assert client.do("shm_destroy", name="r") == []


@pytest.mark.parametrize("way", WAYS)
def test_one_input_and_one_output_in_shared_memory(client: Worker, region: str, way: str) -> None:
    """The other input is the only raw one; the output in memory has an empty raw entry, which the script checks."""
    made = pair(outputs=[{"name": "total", "region": [region, 32, 64]}, {"name": "difference"}])
    client.do("shm_write", name=region, tensors=[tensor(rows(5, 2))], offset=32)
    made["inputs"][0]["region"] = [region, 32, 32]
    (answer,) = infer(client, made, way=way)
    assert answer["outputs"].pop("total") == {"datatype": "FP32", "shape": [2, 4], "data": None}
    assert np.array_equal(outputs_of(answer)["difference"], DIFFERENCE)
    told = client.do("shm_read", name=region, datatype="FP32", shape=[2, 4], offset=64)
    assert told == tensor(TOTAL)


def test_regions_are_listed_and_guarded(client: Worker, region: str) -> None:
    listed = call(client, "get_system_shared_memory_status")["regions"]
    assert listed == {"r": {"name": "r", "key": KEY, "byte_size": "256"}}
    twice = call(client, "register_system_shared_memory", name=region, key=KEY, byte_size=256)
    assert twice["status"] == "StatusCode.ALREADY_EXISTS"
    for offset, size in ((1, 256), (256, 1), (2**63, 2**63), (2**64 - 1, 256), (0, 0)):
        told = call(client, "register_system_shared_memory", name="n", key=KEY, byte_size=size, offset=offset)
        assert told["status"] == INVALID, (offset, size)
    absent = call(client, "register_system_shared_memory", name="n", key="/aclserve_none", byte_size=8)
    assert absent["status"] == ABSENT
    unknown = call(client, "get_system_shared_memory_status", region_name="n")
    assert unknown["status"] == ABSENT
    for _ in range(2):  # as perf_analyzer does before it begins
        assert call(client, "unregister_system_shared_memory") is None
        assert call(client, "unregister_cuda_shared_memory") is None
    assert call(client, "get_system_shared_memory_status") == {}


@pytest.mark.parametrize(
    ("where", "status"),
    [
        (["r", 32, 240], INVALID),
        (["r", 32, 2**62], INVALID),
        (["r", 16, 0], INVALID),
        (["absent", 32, 0], ABSENT),
    ],
)
def test_inputs_that_are_not_in_their_region(client: Worker, region: str, where: list[Any], status: str) -> None:
    made = pair()
    made["inputs"][0]["region"] = where
    (told,) = infer(client, made)
    assert told["status"] == status, told


def test_an_output_larger_than_its_place(client: Worker, region: str) -> None:
    (told,) = infer(client, pair(outputs=[{"name": "total", "region": [region, 24, 0]}]))
    assert told["status"] == "StatusCode.INTERNAL"
    assert "32" in told["message"]
    assert "24" in told["message"]


def test_a_region_in_use_stays(client: Worker, served: V2, region: str) -> None:
    made = pair(outputs=[{"name": "total", "region": [region, 32, 0]}])
    with held(served):
        client.do("begin", name="use", way="async", requests=[made])
        wait_until(lambda: served.up.server.regions.use().pins, "the region is in use")
        assert call(client, "unregister_system_shared_memory", name=region)["status"] == UNAVAILABLE
        assert call(client, "unregister_system_shared_memory")["status"] == UNAVAILABLE
    (answer,) = client.do("finish", name="use", count=1)
    assert answer["outputs"]["total"]["data"] is None
    assert client.do("shm_read", name=region, datatype="FP32", shape=[2, 4]) == tensor(TOTAL)


def test_memory_of_cuda_devices(client: Worker) -> None:
    assert call(client, "get_cuda_shared_memory_status") == {}
    handle = {"name": "g", "raw_handle": base64.b64encode(bytes(64)).decode(), "device_id": 0, "byte_size": 64}
    told = client.do("register_cuda", **handle)
    assert told["status"] == "StatusCode.UNIMPLEMENTED"
