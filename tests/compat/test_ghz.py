"""ghz against both services, by reflection alone: calls and streams, every answer counted. Nothing looks at a clock.

The scenarios of tests/load put real load on the native service.
"""

from __future__ import annotations

import base64
import json
import shlex
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from compat.go_tools import ghz_or_skip, shell
from serving import Serving, elementwise, put_model, serving

V2 = "inference.GRPCInferenceService"
ACLSERVE = "aclserve.v1.ModelService"
RAW = base64.b64encode(np.ones((1, 4), np.float32).tobytes()).decode()
NATIVE_ITEM = {"inputs": [{"name": "x", "dataType": "DATA_TYPE_FLOAT32", "shape": [1, 4], "data": RAW}]}
V2_REQUEST = {
    "model_name": "relu",
    "inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4]}],
    "raw_input_contents": [RAW],
}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    ghz_or_skip()
    root = tmp_path_factory.mktemp("models")
    put_model(root, "relu", elementwise("Relu"))
    with serving(root) as up:
        yield up


def ghz(service: Serving, call: str, data: object, *options: str) -> dict[str, Any]:
    """ghz's report."""
    text = shlex.quote(json.dumps(data))
    command = f"ghz --insecure --call={call} {' '.join(options)} --format=json --data={text} {service.address}"
    return dict(json.loads(shell(command)))


def succeeded(service: Serving) -> int:
    """Items that the model has answered."""
    return service.server.engine.find("relu", 0).statistics.success.count


@pytest.mark.parametrize(
    ("call", "data"),
    [(f"{ACLSERVE}.Infer", {"model": "relu", **NATIVE_ITEM}), (f"{V2}.ModelInfer", V2_REQUEST)],
    ids=["native", "v2"],
)
def test_calls(call: str, data: dict[str, Any], service: Serving) -> None:
    before = succeeded(service)
    report = ghz(service, call, data, "--total=300 --concurrency=8 --connections=2")
    assert (report["count"], report["statusCodeDistribution"]) == (300, {"OK": 300})
    assert succeeded(service) - before == 300


@pytest.mark.parametrize(
    ("call", "data", "items"),
    [
        (
            f"{ACLSERVE}.StreamInfer",
            [{"config": {"model": "relu"}}, {"items": {"items": [NATIVE_ITEM, NATIVE_ITEM]}}],
            2,
        ),
        (f"{V2}.ModelStreamInfer", [V2_REQUEST, V2_REQUEST, V2_REQUEST], 3),
    ],
    ids=["native", "v2"],
)
def test_streams(call: str, data: list[Any], items: int, service: Serving) -> None:
    before = succeeded(service)
    report = ghz(service, call, data, "--total=20 --concurrency=4")
    assert report["statusCodeDistribution"] == {"OK": 20}
    assert succeeded(service) - before == 20 * items


@pytest.mark.parametrize(
    ("call", "data", "code"),
    [
        (f"{ACLSERVE}.Infer", {"model": "relu"}, "InvalidArgument"),
        (f"{V2}.ModelInfer", {"model_name": "nothing"}, "NotFound"),
    ],
    ids=["native", "v2"],
)
def test_refusals_are_counted_by_their_code(call: str, data: object, code: str, service: Serving) -> None:
    report = ghz(service, call, data, "--total=20 --concurrency=4")
    assert report["statusCodeDistribution"] == {code: 20}
