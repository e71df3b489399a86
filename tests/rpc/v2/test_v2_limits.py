"""What the v2 scanner makes of requests that break a rule, and of those at a limit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from aclserve.errors import InvalidArgument
from aclserve_server.device.description import Gear, ModelDescription, TensorInfo
from aclserve_server.engine.contract import ShapeContract
from aclserve_server.engine.items import Result
from aclserve_server.kserve import inference_pb2 as pb
from aclserve_server.rpc.v2 import wire_contents
from aclserve_server.rpc.v2.wire_in import V2Item, scan_model_infer_request
from aclserve_server.rpc.v2.wire_templates import PER_LENGTH, REQUESTS
from aclserve_server.rpc.varint import MAX_FIELDS
from rpc.wire_messages import varint


@pytest.fixture(autouse=True)
def _no_templates() -> None:
    REQUESTS.clear()


def request(**fields: Any) -> pb.ModelInferRequest:
    made = pb.ModelInferRequest(model_name="m", id="7", **fields)
    made.inputs.add(name="x", datatype="FP32", shape=[1, 2])
    return made


def raw(**fields: Any) -> pb.ModelInferRequest:
    made = request(**fields)
    made.raw_input_contents.append(b"12345678")
    return made


def scan(message: pb.ModelInferRequest) -> V2Item:
    return scan_model_infer_request(message.SerializeToString())


def refused(message: pb.ModelInferRequest) -> tuple[str, str]:
    """Reason and text; a request is refused as often as it comes, and still tells who it is."""
    for _ in range(3):
        item = scan(message)
        assert item.error is not None
        assert isinstance(item.error, InvalidArgument)
        assert (item.client_id, item.model) == ("7", "m")
    return item.error.reason, str(item.error)


def parameter(kind: str, value: Any) -> pb.InferParameter:
    return pb.InferParameter(**{f"{kind}_param": value})


@pytest.mark.parametrize("version", ["x", "-1", "0", "1.0", " 1", "1 ", "+1", "\u0661", "9" * 30, "0x1"])
def test_versions_that_are_none(version: str) -> None:
    reason, text = refused(raw(model_version=version))
    assert reason == "VERSION_INVALID"
    assert "whole number of 1 or more" in text


@pytest.mark.parametrize(("version", "number"), [("", 0), ("1", 1), ("007", 7), (str(2**63 - 1), 2**63 - 1)])
def test_versions(version: str, number: int) -> None:
    item = scan(raw(model_version=version))
    assert (item.version, item.error) == (number, None)


@pytest.mark.parametrize(
    ("key", "kind", "value", "reason", "words"),
    [
        ("timeout", "string", "5", "PARAMETER_TYPE_MISMATCH", "'timeout' is of type string; expected int64"),
        ("timeout", "int64", -1, "PARAMETER_INVALID", "'timeout' is -1; expected 0 or more"),
        ("priority", "int64", -2, "PARAMETER_INVALID", "'priority' is -2"),
        ("priority", "double", 1.0, "PARAMETER_TYPE_MISMATCH", "expected int64 (int64_param) or uint64"),
        ("sequence_id", "bool", True, "PARAMETER_TYPE_MISMATCH", "expected int64 (int64_param) or string"),
        ("sequence_id", "int64", 9, "SEQUENCES_UNSUPPORTED", "'sequence_id' is '9'"),
        ("sequence_start", "bool", True, "SEQUENCES_UNSUPPORTED", "'sequence_start' is true"),
        ("sequence_end", "int64", 1, "PARAMETER_TYPE_MISMATCH", "'sequence_end' is of type int64; expected bool"),
        ("triton_enable_empty_final_response", "int64", 1, "PARAMETER_TYPE_MISMATCH", "expected bool"),
        ("triton_other", "bool", True, "PARAMETER_RESERVED", "'triton_other'"),
        ("headers", "string", "x", "PARAMETER_RESERVED", "'headers' is reserved"),
        ("binary_data_output", "bool", True, "PARAMETER_RESERVED", "reserved"),
        ("mode", "string", "x", "PARAMETER_UNKNOWN", "'mode' is unknown"),
        ("k" * 300, "string", "x", "PARAMETER_UNKNOWN", "k" * 97 + "..."),
    ],
)
def test_parameters_of_a_request(key: str, kind: str, value: Any, reason: str, words: str) -> None:
    got, text = refused(raw(parameters={key: parameter(kind, value)}))
    assert got == reason
    assert words in text


def test_a_parameter_without_a_value() -> None:
    reason, text = refused(raw(parameters={"timeout": pb.InferParameter()}))
    assert (reason, "of type nothing" in text) == ("PARAMETER_TYPE_MISMATCH", True)


@pytest.mark.parametrize(
    ("kind", "value", "priority"),
    [("int64", 0, 0), ("uint64", 1, 3), ("int64", 2, 2), ("int64", 3, 1), ("uint64", 99, 1)],
)
def test_priorities(kind: str, value: int, priority: int) -> None:
    item = scan(raw(parameters={"priority": parameter(kind, value)}))
    assert (item.error, item.priority) == (None, priority)


def test_what_clients_send_to_say_nothing() -> None:
    nothing = {
        "timeout": parameter("int64", 0),
        "sequence_id": parameter("int64", 0),
        "sequence_start": parameter("bool", False),
        "sequence_end": parameter("bool", False),
        "triton_enable_empty_final_response": parameter("bool", True),
    }
    for sequence_id in (parameter("int64", 0), parameter("string", "")):
        item = scan(raw(parameters={**nothing, "sequence_id": sequence_id}))
        assert (item.error, item.timeout_s, item.priority, item.empty_final) == (None, None, 0, True)
    made = raw()
    made.inputs[0].parameters["binary_data_size"].int64_param = 8
    made.outputs.add(name="y").parameters["binary_data"].bool_param = True
    assert scan(made).error is None


REGION = {"shared_memory_region": parameter("string", "r"), "shared_memory_byte_size": parameter("int64", 8)}


@pytest.mark.parametrize(
    ("changed", "reason", "words"),
    [
        ({"shared_memory_region": None}, "SHARED_MEMORY_INCOMPLETE", "without 'shared_memory_region'"),
        ({"shared_memory_byte_size": None}, "SHARED_MEMORY_INCOMPLETE", "without 'shared_memory_byte_size'"),
        ({"shared_memory_byte_size": parameter("int64", 0)}, "SHARED_MEMORY_INCOMPLETE", "0; expected the bytes"),
        ({"shared_memory_byte_size": parameter("int64", -8)}, "PARAMETER_INVALID", "is -8"),
        ({"shared_memory_byte_size": parameter("uint64", 8)}, "PARAMETER_TYPE_MISMATCH", "expected int64"),
        ({"shared_memory_offset": parameter("int64", -1)}, "PARAMETER_INVALID", "'shared_memory_offset' is -1"),
        ({"shared_memory_offset": parameter("string", "1")}, "PARAMETER_TYPE_MISMATCH", "expected int64"),
        ({"shared_memory_region": parameter("int64", 1)}, "PARAMETER_TYPE_MISMATCH", "expected string"),
        ({"shared_memory_region": parameter("string", "")}, "SHARED_MEMORY_INCOMPLETE", "empty"),
        ({"content_type": parameter("string", "np")}, "PARAMETER_UNKNOWN", "'content_type'"),
    ],
)
@pytest.mark.parametrize("where", ["input", "output"])
def test_parameters_of_regions(changed: dict[str, Any], reason: str, words: str, where: str) -> None:
    made = request() if where == "input" else raw()
    owner = made.inputs[0] if where == "input" else made.outputs.add(name="y")
    for key, value in {**REGION, **changed}.items():
        if value is not None:
            owner.parameters[key].CopyFrom(value)
    got, text = refused(made)
    assert got == reason
    assert words in text


def in_region(made: pb.ModelInferRequest, index: int, offset: int = 0) -> pb.ModelInferRequest:
    for key, value in REGION.items():
        made.inputs[index].parameters[key].CopyFrom(value)
    made.inputs[index].parameters["shared_memory_offset"].int64_param = offset
    return made


def test_inputs_in_shared_memory_take_no_raw_entry() -> None:
    made = in_region(request(), 0)
    made.inputs.add(name="y", datatype="UINT8", shape=[2])
    made.inputs.add(name="z", datatype="UINT8", shape=[1])
    made.raw_input_contents.extend([b"ab", b"c"])
    item = scan(made)
    assert item.error is None
    assert [None if tensor.data is None else bytes(tensor.data) for tensor in item.inputs] == [None, b"ab", b"c"]
    made.raw_input_contents.append(b"d")
    assert refused(made)[0] == "RAW_CONTENTS_LEFT_OVER"


def test_rotating_regions_are_read_by_a_template() -> None:
    offsets = [offset for _ in range(3) for offset in range(1, 100)]
    items = [scan(in_region(request(), 0, offset)) for offset in offsets]
    regions = [item.inputs[0].region for item in items]
    assert [region and region.offset_bytes for region in regions] == offsets
    assert len({id(region) for region in regions}) == len(regions)
    message = in_region(request(), 0, 5).SerializeToString()
    assert REQUESTS.match(message, memoryview(message)) is not None


def test_requests_do_not_share_where_their_outputs_go() -> None:
    made = raw()
    output = made.outputs.add(name="y")
    for key, value in REGION.items():
        output.parameters[key].CopyFrom(value)
    items = [scan(made) for _ in range(5)]
    assert len({id(item.outputs[0]) for item in items}) == 5
    items[1].outputs[0].region = None
    assert all(item.outputs[0].region is not None for item in (*items[2:], scan(made)))


def test_data_that_is_ambiguous_or_missing() -> None:
    both = raw()
    both.inputs[0].contents.fp32_contents.extend([1, 2])
    assert refused(both)[0] == "INPUT_DATA_AMBIGUOUS"
    both = in_region(request(), 0)
    both.inputs[0].contents.SetInParent()
    assert refused(both)[0] == "INPUT_DATA_AMBIGUOUS"
    reason, text = refused(request())
    assert reason == "INPUT_DATA_MISSING"
    assert "input 'x' has no data; send it raw, in contents or in shared memory" in text
    short = raw()
    short.inputs.add(name="y", datatype="FP32", shape=[0])
    reason, text = refused(short)
    assert (reason, "1 raw_input_contents" in text) == ("INPUT_DATA_MISSING", True)


def test_no_elements_need_no_data() -> None:
    made = pb.ModelInferRequest(model_name="m")
    made.inputs.add(name="x", datatype="FP32", shape=[0, 4])
    for _ in range(3):
        item = scan(made)
        assert (item.error, item.inputs[0].data) == (None, memoryview(b""))
    made.inputs[0].contents.SetInParent()
    item = scan(made)
    assert (item.error, item.inputs[0].data) == (None, memoryview(b""))


@pytest.mark.parametrize(
    ("datatype", "field", "values", "words"),
    [
        ("FP32", "fp64_contents", [1.0], "FP32 goes into fp32_contents"),
        ("FP16", "fp32_contents", [1.0], "FP16 is sent raw only"),
        ("BF16", "bytes_contents", [b"ab"], "BF16 is sent raw only"),
        ("UINT8", "int_contents", [1], "elements in int_contents; UINT8 goes into uint_contents"),
    ],
)
def test_typed_contents_of_another_type(datatype: str, field: str, values: list[Any], words: str) -> None:
    made = request()
    made.inputs[0].datatype = datatype
    getattr(made.inputs[0].contents, field).extend(values)
    reason, text = refused(made)
    assert reason == "CONTENTS_MISMATCH"
    assert words in text


@pytest.mark.parametrize("datatype", ["BOOL", "INT8", "UINT16", "INT32", "UINT32", "INT64", "UINT64"])
def test_many_typed_elements(datatype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """More than one chunk, of values of all lengths."""
    monkeypatch.setattr(wire_contents, "_CHUNK_BYTES", 64)
    dtype = wire_contents.DATATYPES[datatype].dtype
    random = np.random.default_rng(5)
    bits = random.integers(0, 65, 1000)
    values = [int(random.integers(0, 2**63)) >> (63 - min(int(bit), 63)) for bit in bits]
    array = np.array(values, np.uint64)
    expected = (array != 0) if datatype == "BOOL" else array.astype(f"u{dtype.itemsize}").view(dtype)
    made = request()
    made.inputs[0].datatype = datatype
    getattr(made.inputs[0].contents, wire_contents.DATATYPES[datatype].contents).extend(expected.tolist())
    item = scan(made)
    assert item.error is None
    assert item.inputs[0].data == expected.tobytes()


def test_packed_elements_are_taken_where_they_lie() -> None:
    made = request()
    made.inputs[0].contents.fp32_contents.extend([1, 2])
    message = made.SerializeToString()
    for _ in range(3):
        data = scan_model_infer_request(message).inputs[0].data
        assert data is not None
        assert data.obj is message
    message = raw().SerializeToString()
    for _ in range(3):
        data = scan_model_infer_request(message).inputs[0].data
        assert data is not None
        assert data.obj is message


def test_names_and_datatypes() -> None:
    made = raw()
    made.inputs[0].datatype = "FLOAT"
    reason, text = refused(made)
    assert reason == "DATA_TYPE_UNSUPPORTED"
    assert "'FLOAT'; expected one of BOOL, UINT8" in text
    made.inputs[0].datatype, made.inputs[0].name = "FP32", ""
    assert refused(made)[0] == "INPUT_UNNAMED"


def test_classification_must_be_positive() -> None:
    made = raw()
    output = made.outputs.add(name="y")
    for value, reason in ((0, "PARAMETER_INVALID"), (-1, "PARAMETER_INVALID")):
        output.parameters["classification"].int64_param = value
        assert refused(made)[0] == reason
    output.parameters["classification"].bool_param = True
    assert refused(made)[0] == "PARAMETER_TYPE_MISMATCH"
    output.parameters["classification"].int64_param = 5
    assert scan(made).top_k == {"y": 5}


def test_limits() -> None:
    made = raw()
    made.inputs[0].shape[:] = [1] * 33
    assert refused(made)[0] == "TOO_MANY_DIMENSIONS"
    made.inputs[0].shape[:] = [1] * 400
    assert refused(made)[0] == "TOO_MANY_DIMENSIONS"
    made = raw()
    for _ in range(256):
        made.inputs.add().CopyFrom(made.inputs[0])
        made.raw_input_contents.append(b"12345678")
    assert refused(made)[0] == "TOO_MANY_INPUTS"
    made = raw()
    for _ in range(257):
        made.outputs.add(name="y")
    assert refused(made)[0] == "TOO_MANY_OUTPUTS"
    made = pb.ModelInferRequest(model_name="m", id="7" * 5000)
    assert scan(made).error is not None


@pytest.mark.parametrize("field", [b"\x3a\x00", b"\x2a\x00", b"\x32\x00", b"\x22\x00", b"\x40\x01"])
def test_more_fields_than_any_client_sends(field: bytes) -> None:
    with pytest.raises(InvalidArgument) as caught:
        scan_model_infer_request(field * (MAX_FIELDS + 1))
    assert caught.value.reason == "MESSAGE_TOO_COMPLEX"


def test_more_unpacked_elements_than_are_read() -> None:
    contents = b"\x35abcd" * (MAX_FIELDS + 1)
    tensor = b"\x2a" + varint(len(contents)) + contents
    with pytest.raises(InvalidArgument) as caught:
        scan_model_infer_request(b"\x2a" + varint(len(tensor)) + tensor)
    assert caught.value.reason == "MESSAGE_TOO_COMPLEX"


def test_templates_are_bounded_and_few_for_one_length() -> None:
    for number in range(200):
        scan(raw(model_version=f"{number + 100}"))
    message = raw(model_version="100").SerializeToString()
    assert len(REQUESTS._templates[len(message)]) <= PER_LENGTH
    big = raw()
    big.inputs[0].parameters["binary_data"].string_param = "k" * 3000
    for _ in range(4):
        assert scan(big).error is None
    message = big.SerializeToString()
    assert REQUESTS.match(message, memoryview(message)) is None


@pytest.mark.parametrize(
    ("inputs", "outputs", "reason"),
    [
        (["x"], ["y"], None),
        (["x", "x"], [], "INPUT_DUPLICATE"),
        (["z"], [], "INPUT_UNKNOWN"),
        ([], [], "INPUT_MISSING"),
        (["x"], ["y", "y"], "OUTPUT_DUPLICATE"),
        (["x"], ["z"], "OUTPUT_UNKNOWN"),
    ],
)
def test_names_are_judged_by_the_models_contract(inputs: list[str], outputs: list[str], reason: str | None) -> None:
    tensors = tuple((TensorInfo(name, np.dtype(np.float32), "ND", (1, 2), 0),) for name in ("x", "y"))
    gear = Gear("static", (), ((1, 2),), ((1, 2),))
    contract = ShapeContract(ModelDescription(*tensors, (gear,), None, False, 0, 0), no_memory, no_memory)
    made = pb.ModelInferRequest(model_name="m")
    for name in inputs:
        made.inputs.add(name=name, datatype="FP32", shape=[1, 2])
        made.raw_input_contents.append(b"12345678")
    for name in outputs:
        made.outputs.add(name=name)
    for _ in range(3):
        item = scan(made)
        assert item.error is None
        if reason is None:
            assert contract.admit(item, Nowhere(), 0.0).parts[0].data == b"12345678"
        else:
            with pytest.raises(InvalidArgument) as caught:
                contract.admit(item, Nowhere(), 0.0)
            assert caught.value.reason == reason


class Nowhere:
    def deliver(self, results: list[Result]) -> None:
        raise AssertionError("nothing is delivered at admission")


def no_memory(*arguments: Any, **options: Any) -> Any:
    raise AssertionError("nothing here is in a client's memory")


def test_an_id_that_is_no_text_in_a_known_layout() -> None:
    message = raw().SerializeToString()
    for _ in range(3):
        scan_model_infer_request(message)
    item = scan_model_infer_request(message.replace(b"\x1a\x017", b"\x1a\x01\xff"))
    assert item.error is not None
    assert item.error.reason == "INVALID_UTF8"
