"""Clients that know nothing but the protoset of `make protoset`: grpcurl and ghz (Go), and grpc-java.

The libraries of Go and Java take answers of up to 4 MiB by themselves. What is larger ends the call there, and nothing
else.
"""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import onnx
import pytest
from google.protobuf import json_format
from google.protobuf.message import Message
from onnx import TensorProto, helper, numpy_helper

from aclserve.v1 import model_pb2, tensor_pb2
from aclserve_server.kserve import inference_pb2 as pb
from compat.go_tools import ghz_or_skip, grpcurl_or_skip, unavailable
from e2e.raw import wait_until
from rpc.v2.v2_server import V2, v2
from rpc.v2.v2_stream import leaves_nothing
from serving import elementwise, put_model

SERVICE = "inference.GRPCInferenceService"
NATIVE = "aclserve.v1.ModelService"
LIMIT = 4 << 20
"""What grpc-go and grpc-java take unless they are told otherwise, in bytes."""

COLUMNS = 300_000
FITS, EXCEEDS = 3, 4
"""Rows of COLUMNS floats whose answer the clients take by themselves, and do not."""

LONG = 1 << 21
"""Elements of a row that is larger than LIMIT on its own."""

EXHAUSTED = "RESOURCE_EXHAUSTED"
RUN_S = 60
BUILD_S = 420
TOOLS = Path(__file__).resolve().parents[2] / ".tools"
POM = Path(__file__).resolve().parent / "java" / "pom.xml"

M = TypeVar("M", bound=Message)
Call = Callable[..., tuple[str, list[Any]]]
"""A method, its kind of answer, its messages, and `limit`; gives the status code and the answers."""


def wide() -> onnx.ModelProto:
    """y = x + (0, 1, 2, ...): a small request, a large answer."""
    steps = numpy_helper.from_array(np.arange(COLUMNS, dtype=np.float32).reshape(1, COLUMNS), "steps")
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", 1])
    made = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", COLUMNS])
    graph = helper.make_graph([helper.make_node("Add", ["x", "steps"], ["y"])], "wide", [given], [made], [steps])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def long() -> onnx.ModelProto:
    """y = the sum of a row of x: a large request, a small answer."""
    axes = numpy_helper.from_array(np.array([1], np.int64), "axes")
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", LONG])
    made = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", 1])
    graph = helper.make_graph([helper.make_node("ReduceSum", ["x", "axes"], ["y"])], "long", [given], [made], [axes])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.fixture(scope="module")
def protoset(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `make protoset` makes."""
    python = root / ".venv-proto" / "bin" / "python"
    if not python.is_file():
        unavailable("needs the environment of the generators: make proto")
    out = tmp_path_factory.mktemp("out") / "aclserve.protoset"
    subprocess.run([python, root / "tools" / "protoset.py", out], check=True, timeout=RUN_S)
    return out


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[V2]:
    root = tmp_path_factory.mktemp("models")
    put_model(root, "relu", elementwise("Relu"))
    put_model(root, "wide", wide(), "max_batch_size: 8\n")
    put_model(root, "long", long(), "max_batch_size: 1\n")
    with v2(root) as up:
        yield up


@pytest.fixture(autouse=True)
def unchanged(served: V2) -> Iterator[None]:
    with leaves_nothing(served):
        yield


# The clients.


def json_of(message: Message) -> str:
    return json_format.MessageToJson(message, preserving_proto_field_name=True, indent=None)


def answers(text: str, kind: type[M]) -> list[M]:
    """The messages of a call, which grpcurl prints as JSON texts one after the other."""
    decoder, found = json.JSONDecoder(), []
    while text := text.strip():
        message, end = decoder.raw_decode(text)
        found.append(json_format.ParseDict(message, kind()))
        text = text[end:]
    return found


def run(command: Sequence[str | Path], given: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, input=given, capture_output=True, text=True, check=False, timeout=RUN_S)


@pytest.fixture
def go(served: V2, protoset: Path) -> Call:
    """grpcurl. Where it fails its exit status is 64 and the code."""
    program = grpcurl_or_skip()

    def call(method: str, kind: type[Message], messages: Sequence[Message], limit: int = 0) -> tuple[str, list[Any]]:
        options = ["-plaintext", "-protoset", str(protoset), "-max-time", "20", "-d", "@"]
        options += ["-max-msg-sz", str(limit)] if limit else []
        done = run([program, *options, served.up.address, method], "\n".join(map(json_of, messages)))
        code = {0: "OK", 67: "INVALID_ARGUMENT", 69: "NOT_FOUND", 72: EXHAUSTED}.get(done.returncode, done.stderr)
        return code, answers(done.stdout, kind)

    return call


@pytest.fixture(scope="module")
def classes() -> str:
    """The class path of java/Calls.java, compiled, and of what it needs."""
    maven = shutil.which("mvn")
    if maven is None or shutil.which("javac") is None:
        pytest.skip("needs mvn and javac, to build java/Calls.java")
    done = subprocess.run(
        [maven, "-q", "-B", "-ntp", "-f", POM, "compile", "dependency:build-classpath"],
        capture_output=True,
        text=True,
        check=False,
        timeout=BUILD_S,
    )
    if done.returncode:
        unavailable(done.stdout + done.stderr)
    built = TOOLS / "compat" / "java"
    return f"{built / 'classes'}:{(built / 'classpath').read_text()}"


@pytest.fixture
def java(served: V2, protoset: Path, classes: str) -> Call:
    """grpc-java, with messages made by descriptors alone."""

    def call(method: str, kind: type[Message], messages: Sequence[Message], limit: int = 0) -> tuple[str, list[Any]]:
        texts = [base64.b64encode(message.SerializeToString()).decode() for message in messages]
        quick = ["-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Xshare:auto"]
        command = [
            "java",
            *quick,
            "-cp",
            classes,
            "Calls",
            protoset,
            served.up.address,
            *([str(limit)] if limit else []),
        ]
        done = run(command, "\t".join([method, *texts]) + "\n")
        assert done.returncode == 0, done.stderr
        code, _, *found = done.stdout.rstrip("\n").split("\t")
        return code, [kind.FromString(base64.b64decode(text)) for text in found]

    return call


@pytest.fixture(params=["go", "java"])
def client(request: pytest.FixtureRequest) -> Call:
    found: Call = request.getfixturevalue(request.param)
    return found


# Requests.


def v2_request(model: str, values: Any, identity: str = "") -> pb.ModelInferRequest:
    array = np.asarray(values, np.float32)
    tensor = pb.ModelInferRequest.InferInputTensor(name="x", datatype="FP32", shape=array.shape)
    return pb.ModelInferRequest(model_name=model, id=identity, inputs=[tensor], raw_input_contents=[array.tobytes()])


def array_of(answer: Any) -> Any:
    (output,), (raw,) = answer.outputs, answer.raw_output_contents
    return np.frombuffer(raw, np.float32).reshape(output.shape)


def column(count: int) -> Any:
    return np.arange(count, dtype=np.float32).reshape(count, 1)


def expected(count: int) -> Any:
    return column(count) + np.arange(COLUMNS, dtype=np.float32)


# What they do.


def test_calls(client: Call) -> None:
    request = v2_request("relu", [[-1, 2, -3, 4]], "seven")
    code, (answer,) = client(f"{SERVICE}/ModelInfer", pb.ModelInferResponse, [request])
    assert (code, answer.id, answer.model_name, answer.model_version) == ("OK", "seven", "relu", "1")
    assert array_of(answer).tolist() == [[0, 2, 0, 4]]
    typed = v2_request("relu", [[-1, 2, -3, 4]])
    typed.raw_input_contents.pop()
    typed.inputs[0].contents.fp32_contents.extend([-1, 2, -3, 4])
    code, (answer,) = client(f"{SERVICE}/ModelInfer", pb.ModelInferResponse, [typed])
    assert (code, array_of(answer).tolist()) == ("OK", [[0, 2, 0, 4]])
    code, found = client(f"{SERVICE}/ModelInfer", pb.ModelInferResponse, [v2_request("nothing", [[1]])])
    assert (code, found) == ("NOT_FOUND", [])


def test_a_stream_with_a_bad_request_in_it(client: Call) -> None:
    requests = [v2_request("relu", [[at, -1, 0, 0]], str(at)) for at in range(5)]
    requests[2].inputs[0].datatype = "INT32"
    code, found = client(f"{SERVICE}/ModelStreamInfer", pb.ModelStreamInferResponse, requests)
    assert (code, len(found)) == ("OK", 5)
    assert "[request id: 2]" in found.pop(2).error_message
    assert [array_of(one.infer_response)[0, 0] for one in found] == [0, 1, 3, 4]


def test_a_large_answer(client: Call) -> None:
    """Up to the client's limit it comes; above it that client ends the call, unless it was told to take more."""
    code, (answer,) = client(f"{SERVICE}/ModelInfer", pb.ModelInferResponse, [v2_request("wide", column(FITS))])
    assert code == "OK"
    assert np.array_equal(array_of(answer), expected(FITS))
    request = v2_request("wide", column(EXCEEDS))
    assert EXCEEDS * COLUMNS * 4 > LIMIT
    assert client(f"{SERVICE}/ModelInfer", pb.ModelInferResponse, [request]) == (EXHAUSTED, [])
    code, (answer,) = client(f"{SERVICE}/ModelInfer", pb.ModelInferResponse, [request], limit=2 * LIMIT)
    assert code == "OK"
    assert np.array_equal(array_of(answer), expected(EXCEEDS))


def test_a_large_answer_ends_the_stream_of_its_client(client: Call) -> None:
    requests = [v2_request("wide", column(count)) for count in (1, FITS, EXCEEDS, 1)]
    code, found = client(f"{SERVICE}/ModelStreamInfer", pb.ModelStreamInferResponse, requests)
    assert code == EXHAUSTED
    assert [one.infer_response.outputs[0].shape[0] for one in found] == [1, FITS]
    code, found = client(f"{SERVICE}/ModelStreamInfer", pb.ModelStreamInferResponse, requests, limit=2 * LIMIT)
    assert (code, len(found)) == ("OK", 4)


def test_results_that_travel_together_stay_below_the_limit(client: Call) -> None:
    """Results that are ready at once share messages, of which none is too large for a client that knows no kit."""
    tensors = [
        tensor_pb2.Tensor(
            name="x", data_type=tensor_pb2.DATA_TYPE_FLOAT32, shape=[1, 1], data=column(8)[at : at + 1].tobytes()
        )
        for at in range(8)
    ]
    items = [model_pb2.InferItem(id=str(at), inputs=[tensor]) for at, tensor in enumerate(tensors)]
    messages = [
        model_pb2.StreamInferRequest(config=model_pb2.StreamConfig(model="wide")),
        model_pb2.StreamInferRequest(items=model_pb2.ItemList(items=items)),
    ]
    code, found = client(f"{NATIVE}/StreamInfer", model_pb2.StreamInferResponse, messages)
    assert code == "OK"
    results = {result.id: result for message in found for result in message.results.results}
    for at in range(8):
        (tensor,) = results[str(at)].outputs.tensors
        assert np.array_equal(np.frombuffer(tensor.data, np.float32), expected(8)[at])


def test_a_large_request(client: Call) -> None:
    """The server takes what these clients would not."""
    code, (answer,) = client(f"{SERVICE}/ModelInfer", pb.ModelInferResponse, [v2_request("long", np.ones((1, LONG)))])
    assert (code, array_of(answer).tolist()) == ("OK", [[LONG]])


def test_load_by_ghz(served: V2, protoset: Path) -> None:
    """Every call counted by its code, and every session gone."""
    program = ghz_or_skip()
    statistics = served.up.server.engine.find("wide", 0).statistics

    def report(count: int, *options: str) -> dict[str, int]:
        raw = base64.b64encode(column(count).tobytes()).decode()
        inputs = [{"name": "x", "datatype": "FP32", "shape": [count, 1]}]
        data = json.dumps({"model_name": "wide", "inputs": inputs, "raw_input_contents": [raw]})
        load = ["--total=12", "--concurrency=3", "--format=json", f"--protoset={protoset}", f"--data={data}", *options]
        done = run([program, "--insecure", f"--call={SERVICE}.ModelInfer", *load, served.up.address], "")
        assert done.returncode == 0, done.stderr
        found: dict[str, int] = json.loads(done.stdout)["statusCodeDistribution"]
        return found

    before = statistics.success.count
    assert report(FITS) == {"OK": 12}
    assert report(EXCEEDS, f"--max-recv-message-size={LIMIT}") == {"ResourceExhausted": 12}
    assert report(EXCEEDS) == {"OK": 12}
    wait_until(lambda: statistics.success.count - before == 36, "the model has answered all of them")
