"""The classification extension: the best classes of an output, as texts."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import grpc
import ml_dtypes
import numpy as np
import pytest
from onnx import TensorProto

from aclserve_server.engine.items import OutputTensor
from aclserve_server.kserve import inference_pb2 as pb
from aclserve_server.rpc.v2.classification import classify
from aclserve_server.rpc.v2.wire_out import BytesTensor
from rpc.v2.v2_server import V2, v2
from rpc.v2.v2_stream import V2Stream, leaves_nothing
from serving import elementwise, put_model

LABELS = ("ant", "bee", "", "dog: big")
INVALID = grpc.StatusCode.INVALID_ARGUMENT


def texts(raw: bytes) -> list[str]:
    """The elements of a BYTES tensor."""
    found, at = [], 0
    while at < len(raw):
        (length,) = struct.unpack_from("<I", raw, at)
        found.append(raw[at + 4 : at + 4 + length].decode())
        at += 4 + length
    assert at == len(raw)
    return found


def classified(values: Any, k: int, labels: tuple[str, ...] = (), *, batched: bool = False) -> BytesTensor:
    array = np.asarray(values)
    output = OutputTensor("scores", array.dtype, array.shape, memoryview(array.tobytes()))
    return classify(output, k, labels, batched=batched)


def best(values: Any, k: int, labels: tuple[str, ...] = (), *, batched: bool = False) -> list[str]:
    data = classified(values, k, labels, batched=batched).data
    assert isinstance(data, bytes)
    return texts(data)


def test_the_highest_come_first() -> None:
    values = np.array([0.25, 3, -1, 2.5], np.float32)
    assert best(values, 2) == ["3.000000:1", "2.500000:3"]
    assert best(values, 4) == ["3.000000:1", "2.500000:3", "0.250000:0", "-1.000000:2"]


def test_labels_are_added_where_there_are_some() -> None:
    values = np.array([1, 4, 3, 2, 5], np.float32)
    expected = ["5.000000:4", "4.000000:1:bee", "3.000000:2:", "2.000000:3:dog: big", "1.000000:0:ant"]
    assert best(values, 5, LABELS) == expected


def test_among_equal_values_the_lower_index_is_first() -> None:
    assert best(np.array([1, 2, 2, 1, 2], np.float32), 4) == ["2.000000:1", "2.000000:2", "2.000000:4", "1.000000:0"]
    assert best(np.array([1, 2, 2, 1, 2], np.int32), 4) == ["2:1", "2:2", "2:4", "1:0"]
    assert best(np.array([False, True, True]), 3) == ["1:1", "1:2", "0:0"]


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.uint32, np.uint64])
def test_integers_keep_their_order_at_the_edges(dtype: Any) -> None:
    """Where doubles do not tell neighbours apart, and where a minus does not fit."""
    info = np.iinfo(dtype)
    values = np.array([info.max - 1, info.min, info.max, info.min + 1], dtype)
    assert best(values, 4) == [f"{info.max}:2", f"{info.max - 1}:0", f"{info.min + 1}:3", f"{info.min}:1"]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ml_dtypes.bfloat16])
def test_floats_of_all_widths(dtype: Any) -> None:
    values = np.array([0.5, np.nan, np.inf, -np.inf, -0.25], dtype)
    assert best(values, 5) == ["inf:2", "0.500000:0", "-0.250000:4", "-inf:3", "nan:1"]


def test_more_than_there_are() -> None:
    tensor = classified(np.array([1, 2], np.int32), 1000)
    assert tensor.shape == (2,)
    assert texts(bytes(tensor.data or b"")) == ["2:1", "1:0"]


@pytest.mark.parametrize(
    ("shape", "batched", "expected"),
    [
        ((3, 5), True, (3, 2)),
        ((3, 5), False, (2,)),
        ((3, 5, 1, 1), True, (3, 2)),
        ((1,), False, (1,)),
        ((3,), True, (3, 1)),
        ((), False, (1,)),
        ((0, 5), True, (0, 2)),
        ((2, 0), True, (2, 0)),
        ((0,), False, (0,)),
    ],
)
def test_shapes(shape: tuple[int, ...], batched: bool, expected: tuple[int, ...]) -> None:
    tensor = classified(np.arange(np.prod(shape), dtype=np.float32).reshape(shape), 2, batched=batched)
    assert tensor.shape == expected
    assert len(texts(bytes(tensor.data or b""))) == np.prod(expected)


def test_rows_are_classified_each_for_itself() -> None:
    values = np.array([[1, 2, 3], [9, 8, 7]], np.int32)
    assert best(values, 2, LABELS, batched=True) == ["3:2:", "2:1:bee", "9:0:ant", "8:1:bee"]


# Through a server.


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[V2]:
    root = tmp_path_factory.mktemp("models")
    labelled = 'output [ { name: "y" label_filename: "names.txt" } ]\n'
    put_model(root, "batched", elementwise(), labelled)
    put_model(root, "single", elementwise("Identity", (1, 4)), "max_batch_size: 0\n" + labelled)
    put_model(root, "unnamed", elementwise("Identity", ("rows", 4), TensorProto.INT64))
    for name in ("batched", "single"):
        (root / name / "names.txt").write_text("ant\nbee\n\ndog: big\n")
    with v2(root) as up:
        yield up


@pytest.fixture(autouse=True)
def unchanged(served: V2) -> Iterator[None]:
    with leaves_nothing(served):
        yield


def request(model: str, values: Any, k: int, datatype: str = "FP32") -> Any:
    made = pb.ModelInferRequest(model_name=model, id="7")
    made.inputs.add(name="x", datatype=datatype, shape=values.shape)
    made.raw_input_contents.append(values.tobytes())
    made.outputs.add(name="y").parameters["classification"].int64_param = k
    return made


def shown(response: Any) -> tuple[list[int], list[str]]:
    (output,) = response.outputs
    assert (output.name, output.datatype) == ("y", "BYTES")
    return list(output.shape), texts(response.raw_output_contents[0])


VALUES = np.array([[1, 4, 3, 2]], np.float32)


def test_a_model_of_rows(served: V2) -> None:
    both = np.concatenate([VALUES, -VALUES])
    expected = [2, 2], ["4.000000:1:bee", "3.000000:2:", "-1.000000:0:ant", "-2.000000:3:dog: big"]
    assert shown(served.call("ModelInfer", request("batched", both, 2))) == expected
    stream = V2Stream(served)
    stream.send(request("batched", both, 2), request("batched", VALUES, 1))
    first, second = stream.finish()
    assert shown(first.infer_response) == expected
    assert shown(second.infer_response) == ([1, 1], ["4.000000:1:bee"])


def test_a_model_without_rows(served: V2) -> None:
    found = shown(served.call("ModelInfer", request("single", VALUES, 99)))
    assert found == ([4], ["4.000000:1:bee", "3.000000:2:", "2.000000:3:dog: big", "1.000000:0:ant"])


def test_integers_without_labels(served: V2) -> None:
    values = np.array([[2**62 + 1, 2**62, -(2**63), 2**62 + 2]], np.int64)
    found = shown(served.call("ModelInfer", request("unnamed", values, 3, "INT64")))
    assert found == ([1, 3], [f"{2**62 + 2}:3", f"{2**62 + 1}:0", f"{2**62}:1"])


def test_no_rows(served: V2) -> None:
    assert shown(served.call("ModelInfer", request("batched", VALUES[:0], 2))) == ([0, 2], [])


@pytest.mark.parametrize("k", [0, -1])
def test_a_number_of_classes_that_is_none(served: V2, k: int) -> None:
    assert "classification" in served.refused("ModelInfer", request("batched", VALUES, k), INVALID, "PARAMETER_INVALID")


def test_classes_do_not_go_into_shared_memory(served: V2) -> None:
    made = request("batched", VALUES, 1)
    made.outputs[0].parameters["shared_memory_region"].string_param = "any"
    made.outputs[0].parameters["shared_memory_byte_size"].int64_param = 64
    assert "'y'" in served.refused("ModelInfer", made, INVALID, "CLASSIFICATION_INTO_REGION")
    stream = V2Stream(served)
    stream.send(made, request("batched", VALUES, 1))
    refused, good = stream.finish()
    assert refused.error_message.startswith("[request id: 7] ")
    assert shown(good.infer_response) == ([1, 1], ["4.000000:1:bee"])


def test_an_output_that_is_not_there(served: V2) -> None:
    made = request("batched", VALUES, 1)
    made.outputs[0].name = "z"
    served.refused("ModelInfer", made, INVALID, "OUTPUT_UNKNOWN")
