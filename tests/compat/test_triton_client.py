"""What requests of tritonclient can be, beside cases of models: types, forms, errors, versions, streams."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from aclserve_server.rpc.v2.datatypes import DATATYPES, SERVED
from compat.worker import DIFFERENCE, TOTAL, WAYS, Worker, infer, one_row, outputs_of, pair, request
from e2e.raw import wait_until
from rpc.v2.v2_server import V2
from rpc.v2.v2_stream import held, leaves_nothing, received, sessions, waiting
from serving import rows

INVALID = "StatusCode.INVALID_ARGUMENT"
ABSENT = "StatusCode.NOT_FOUND"
UNAVAILABLE = "StatusCode.UNAVAILABLE"


@pytest.fixture(autouse=True)
def unchanged(served: V2, client: Worker) -> Iterator[None]:
    with leaves_nothing(served):
        yield


def test_versions_of_what_is_tested(client: Worker) -> None:
    assert client.do("versions")["tritonclient"] == "2.73.0"


# Types and forms.


def values_of(name: str) -> Any:
    """Values at the edges of a type."""
    dtype = DATATYPES[name].dtype
    if name == "BOOL":
        return np.array([[True, False], [False, True]])
    if name in ("FP16", "FP32", "FP64", "BF16"):
        return np.array([[0.5, -0.0, np.inf], [-np.inf, 3.140625, 1e-3]]).astype(dtype)
    info = np.iinfo(dtype)
    return np.array([[info.min, info.max], [1, info.max - 1]], dtype)


@pytest.mark.parametrize("way", WAYS)
def test_all_types(client: Worker, way: str) -> None:
    """Bit for bit, with rows, without, and with rows of no elements."""
    sent = []
    for name in SERVED:
        values = values_of(name)
        sent += [(name, values), (name, values[:0]), (name, np.zeros((2, 0), values.dtype))]
    answers = infer(client, *(request(f"of-{name}", {"x": values}) for name, values in sent), way=way)
    for (name, values), answer in zip(sent, answers, strict=True):
        got = outputs_of(answer)["y"]
        assert answer["outputs"]["y"]["datatype"] == name
        assert (got.dtype, got.shape) == (values.dtype, values.shape)
        assert got.tobytes() == values.tobytes(), name


TYPED = [name for name in SERVED if DATATYPES[name].contents]


@pytest.mark.parametrize("name", TYPED)
def test_typed_contents_in_raw_out(client: Worker, name: str) -> None:
    values = values_of(name)
    elements: list[Any] = values.flatten().tolist()
    if name.startswith("FP"):
        elements = ["Infinity" if one == np.inf else "-Infinity" if one == -np.inf else one for one in elements]
    inputs = [{"name": "x", "datatype": name, "shape": values.shape, "contents": {DATATYPES[name].contents: elements}}]
    answer = client.do("raw_infer", request={"model_name": f"of-{name}", "inputs": inputs})
    assert "contents" not in answer["outputs"][0]
    (raw,) = answer["raw_output_contents"]
    assert base64.b64decode(raw) == values.tobytes()


def raw_input(name: str = "x", **fields: Any) -> dict[str, Any]:
    return {"name": name, "datatype": "FP32", "shape": [1, 4], **fields}


RAW = base64.b64encode(rows(0, 1).tobytes()).decode()
CONTENTS = {"fp32_contents": [0, 1, 2, 3]}


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ({"inputs": [raw_input(contents=CONTENTS)], "raw_input_contents": [RAW]}, ("contents", "raw")),
        ({"inputs": [raw_input(contents={"int_contents": [1, 2, 3, 4]})]}, ("FP32", "int_contents")),
        ({"inputs": [raw_input(contents={"fp32_contents": [1, 2, 3]})]}, ("12", "16")),
        ({"inputs": [raw_input()], "raw_input_contents": [RAW[:16]]}, ("12", "16")),
        ({"inputs": [raw_input()]}, ("no data",)),
        ({"inputs": [raw_input()], "raw_input_contents": [RAW, RAW]}, ("2", "1")),
        ({"inputs": [raw_input(), raw_input()], "raw_input_contents": [RAW, RAW]}, ("'x'",)),
        ({"inputs": [raw_input("z")], "raw_input_contents": [RAW]}, ("'z'", "'x'")),
        ({"inputs": [raw_input(datatype="INT32")], "raw_input_contents": [RAW]}, ("int32", "float32")),
        ({"inputs": [raw_input(datatype="FLOAT")], "raw_input_contents": [RAW]}, ("FLOAT", "FP32")),
        ({"inputs": [raw_input(shape=[4])], "raw_input_contents": [RAW]}, ("[4]", "4]")),
        ({"inputs": [raw_input(shape=[-1, 4])], "raw_input_contents": [RAW]}, ("-1",)),
        ({"inputs": [raw_input(shape=[2**62, 4])], "raw_input_contents": [RAW]}, ("16",)),
        ({"inputs": [raw_input()], "raw_input_contents": [RAW], "outputs": [{"name": "q"}]}, ("'q'", "'y'")),
        (
            {"inputs": [raw_input()], "raw_input_contents": [RAW], "outputs": [{"name": "y"}, {"name": "y"}]},
            ("twice",),
        ),
        ({"inputs": []}, ("'x'",)),
    ],
)
def test_requests_that_are_wrong(client: Worker, message: dict[str, Any], words: tuple[str, ...]) -> None:
    told = client.do("raw_infer", request={"model_name": "plain", **message})
    assert told.get("status") == INVALID, told
    for word in words:
        assert word in told["message"]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("names", [["total"], ["difference"], ["difference", "total"], []])
def test_outputs_that_are_asked_for(client: Worker, way: str, names: list[str]) -> None:
    (answer,) = infer(client, pair(outputs=[{"name": name} for name in names]), way=way)
    got = outputs_of(answer)
    assert list(got) == (names or ["total", "difference"])
    for name, values in got.items():
        assert np.array_equal(values, {"total": TOTAL, "difference": DIFFERENCE}[name])


def test_classes(client: Worker) -> None:
    made = request("labelled", {"x": np.array([[1, 4, 4, 2], [9, 8, 7, 6]], np.float32)})
    made["outputs"] = [{"name": "y", "class_count": 3}]
    for way in WAYS:
        (answer,) = infer(client, made, way=way)
        told = answer["outputs"]["y"]
        assert (told["datatype"], told["shape"]) == ("BYTES", [2, 3])
        assert told["data"][:3] == ["4.000000:1:bee", "4.000000:2:", "2.000000:3:dog"]
        assert told["data"][3:] == ["9.000000:0:ant", "8.000000:1:bee", "7.000000:2:"]


# Errors, versions, parameters.


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("fields", "status", "word"),
    [
        ({"model_name": "absent"}, ABSENT, "'absent'"),
        ({"model_version": "2"}, ABSENT, "2"),
        ({"model_version": "x"}, INVALID, "'x'"),
        ({"model_version": "-1"}, INVALID, "'-1'"),
        ({"outputs": [{"name": "q"}]}, INVALID, "'q'"),
        ({"sequence_id": 7, "sequence_start": True}, "", "sequence"),
        ({"parameters": {"mode": "fast"}}, INVALID, "'mode'"),
    ],
)
def test_errors(client: Worker, way: str, fields: dict[str, Any], status: str, word: str) -> None:
    """A call has a status; in a stream there is the text, which names the request, and the next is answered."""
    answers = infer(client, {**one_row(7), **fields}, one_row(8), way=way)
    assert np.array_equal(outputs_of(answers[1])["y"], rows(8, 1))
    assert word in answers[0]["message"]
    if "stream" in way:
        assert answers[0]["status"] is None
        assert answers[0]["message"].startswith("[request id: 7] ")
    else:
        assert answers[0]["status"].startswith(status or "StatusCode.")


@pytest.mark.parametrize("way", WAYS)
def test_versions(client: Worker, way: str) -> None:
    answers = infer(client, *(one_row(1, model_version=version) for version in ("", "1", "3")), way=way)
    assert [answer["version"] for answer in answers] == ["3", "1", "3"]
    assert [outputs_of(answer)["y"][0, 0] for answer in answers] == [-4, 4, -4]


def test_priority_and_timeout(client: Worker) -> None:
    answers = infer(client, one_row(1, priority=1), one_row(2, priority=5, timeout=60_000_000))
    assert [outputs_of(answer)["y"][0, 0] for answer in answers] == [4, 8]


def test_a_timeout_in_the_queue(client: Worker, served: V2) -> None:
    with held(served):
        client.do("begin", name="first", way="async", requests=[pair()])
        wait_until(lambda: sessions(served) == 1, "the device is busy")
        (late,) = infer(client, pair(timeout=1000))
        assert late["status"] == UNAVAILABLE
    (answer,) = client.do("finish", name="first", count=1)
    assert np.array_equal(outputs_of(answer)["total"], TOTAL)


def test_a_timeout_of_the_client(client: Worker, served: V2) -> None:
    with held(served):
        (late,) = infer(client, pair(client_timeout=0.3))
        assert late["status"] in ("StatusCode.DEADLINE_EXCEEDED", UNAVAILABLE)
        wait_until(lambda: not sessions(served), "the call has ended")
        assert waiting(served, "two") == 0


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_compressed_requests(client: Worker, algorithm: str) -> None:
    (answer,) = infer(client, one_row(3, compression_algorithm=algorithm))
    assert np.array_equal(outputs_of(answer)["y"], rows(3, 1))


# Streams.


def test_a_thousand_requests_with_a_bad_one_in_the_middle(client: Worker) -> None:
    answers = client.do("stream_rows", model="labelled", name="x", count=1000, bad=500)
    text, nothing = answers.pop(500)
    assert text.startswith("[request id: 500] ")
    assert nothing is None
    assert answers == [[str(at), at] for at in range(1000) if at != 500]


@pytest.mark.parametrize("way", ["stream", "aio_stream"])
def test_errors_end_a_stream_that_asks_for_it(client: Worker, way: str) -> None:
    requests = [one_row(0), one_row(1), one_row(2, outputs=[{"name": "q"}]), one_row(3)]
    answers = client.do("infer", way=way, requests=requests, headers={"triton_grpc_error": "true"})
    assert [answer["id"] for answer in answers[:2]] == ["0", "1"]
    assert [answer["status"] for answer in answers[2:]] == [INVALID]
    again = client.do("infer", way=way, requests=[one_row(4)])
    assert [answer["id"] for answer in again] == ["4"]


def test_an_empty_final_response_is_for_models_that_answer_several_times(client: Worker) -> None:
    """Models here answer once: who asks for it gets the one answer, which is final."""
    answers = infer(client, *(one_row(at, enable_empty_final_response=True) for at in range(3)), way="stream")
    assert [(answer["id"], answer["final"]) for answer in answers] == [(str(at), True) for at in range(3)]


def test_the_end_of_a_stream_waits_for_what_is_in_flight(client: Worker, served: V2) -> None:
    with held(served):
        client.do("begin", name="s", way="stream", requests=[one_row(at) for at in range(20)])
        wait_until(lambda: received(served) == 20, "all have come")
    answers = client.do("finish", name="s", count=20)
    assert [answer["id"] for answer in answers] == [str(at) for at in range(20)]


@pytest.mark.parametrize("way", ["async", "stream"])
def test_a_cancellation_frees_what_waits(client: Worker, served: V2, way: str) -> None:
    before = served.up.emulator.counters.executions
    with held(served):
        client.do("begin", name="c", way=way, requests=[pair(request_id=str(at)) for at in range(10)])
        wait_until(lambda: sessions(served) == (1 if way == "stream" else 10), "all have come")
        wait_until(lambda: waiting(served, "two") > 0 or way == "async", "requests wait")
        answers = client.do("cancel", name="c")
        assert {answer["status"] for answer in answers} == {"StatusCode.CANCELLED"}
        wait_until(lambda: not sessions(served), "the calls have ended")
        assert waiting(served, "two") == 0
    (answer,) = infer(client, pair())
    assert np.array_equal(outputs_of(answer)["total"], TOTAL)
    assert served.up.emulator.counters.executions - before <= 4  # what was on the device, and the last


@pytest.mark.parametrize("way", ["stream", "aio_stream"])
def test_a_stream_over_several_models(client: Worker, way: str) -> None:
    requests = [one_row(at, ("plain", "labelled")[at % 2]) for at in range(40)]
    requests.insert(20, pair(request_id="two"))
    answers = client.do("infer", way=way, requests=requests)
    two = answers.pop(20)
    assert (two["id"], list(outputs_of(two))) == ("two", ["total", "difference"])
    for at, answer in enumerate(answers):
        assert (answer["id"], answer["model"]) == (str(at), ("plain", "labelled")[at % 2])
        assert np.array_equal(outputs_of(answer)["y"], rows(at, 1))
