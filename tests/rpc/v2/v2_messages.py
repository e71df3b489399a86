"""ModelInferRequest messages in any encoding, and what generated classes and codec make of them."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError
from hypothesis import strategies as st

from aclserve.errors import InvalidArgument
from aclserve_server.kserve import inference_pb2 as pb
from aclserve_server.rpc.v2.datatypes import DATATYPES, SERVED
from aclserve_server.rpc.v2.wire_in import V2Item, scan_model_infer_request
from rpc.wire_messages import delimited, message, nested, number, packed, padded, string, tag, values

REGION, SIZE, OFFSET = "shared_memory_region", "shared_memory_byte_size", "shared_memory_offset"
REQUEST_KEYS = (
    "timeout",
    "priority",
    "triton_enable_empty_final_response",
    "sequence_id",
    "sequence_start",
    "sequence_end",
)
TENSOR_KEYS = (REGION, SIZE, OFFSET, "binary_data", "binary_data_size")
OTHER_KEYS = ("headers", "binary_data_output", "triton_other", "mode", "", "classification", *TENSOR_KEYS)

VARINTS = {1: "bool_contents", 2: "int_contents", 3: "int64_contents", 4: "uint_contents", 5: "uint64_contents"}


def text(field: int, *usual: str) -> st.SearchStrategy[bytes]:
    """A string field, mostly with one of the usual values."""
    chosen = st.sampled_from(usual).flatmap(lambda value: delimited(field, value.encode()))
    return st.one_of(chosen, chosen, chosen, string(field))


@st.composite
def fixed(draw: st.DrawFn, field: int, wire: int) -> bytes:
    size = 8 if wire == 1 else 4
    return draw(tag(field, wire)) + draw(st.binary(min_size=size, max_size=size))


def parameter_values() -> st.SearchStrategy[bytes]:
    few = st.integers(0, 3)
    return message(
        {1: (0,), 2: (0,), 3: (2,), 4: (1,), 5: (0,)},
        st.one_of(
            few.flatmap(lambda value: number(1, value)),
            few.flatmap(lambda value: number(2, value)),
            few.flatmap(lambda value: number(2, value)),
            number(2),
            text(3, "r0", "", "5"),
            fixed(4, 1),
            number(5),
        ),
        most=2,
    )


def parameters(field: int, *keys: str) -> st.SearchStrategy[bytes]:
    return nested(field, message({1: (2,), 2: (2,)}, text(1, *keys), nested(2, parameter_values()), most=3))


def regions(field: int) -> st.SearchStrategy[bytes]:
    """The parameters of a range, as a client states them."""

    def entry(key: str, value: pb.InferParameter) -> bytes:
        made = pb.ModelInferRequest(parameters={key: value}).SerializeToString()
        return bytes([field << 3 | 2]) + made[1:]

    def all_of(name: str, size: int, offset: int) -> bytes:
        return (
            entry(REGION, pb.InferParameter(string_param=name))
            + entry(SIZE, pb.InferParameter(int64_param=size))
            + (entry(OFFSET, pb.InferParameter(int64_param=offset)) if offset else b"")
        )

    return st.builds(all_of, st.sampled_from(["r0", "r1"]), st.integers(1, 99), st.integers(0, 9))


@st.composite
def packed_fixed(draw: st.DrawFn, field: int, size: int) -> bytes:
    count = draw(st.integers(0, 4))
    odd = draw(st.integers(0, 40)) == 0
    return draw(delimited(field, draw(st.binary(min_size=count * size + odd, max_size=count * size + odd))))


@st.composite
def long_packed(draw: st.DrawFn, field: int) -> bytes:
    """More values than are read one by one."""
    raw = b"".join(draw(padded(draw(values()), 10)) for _ in range(draw(st.integers(1, 20))))
    return draw(delimited(field, raw))


def contents() -> st.SearchStrategy[bytes]:
    known = dict.fromkeys(range(1, 6), (0, 2)) | {6: (2, 5), 7: (1, 2), 8: (2,)}

    def of_one(field: int) -> st.SearchStrategy[bytes]:
        if field == 6:
            one = st.one_of(packed_fixed(6, 4), fixed(6, 5))
        elif field == 7:
            one = st.one_of(packed_fixed(7, 8), fixed(7, 1))
        elif field == 8:
            one = st.binary(max_size=4).flatmap(lambda raw: delimited(8, raw))
        else:
            one = st.one_of(packed(field), long_packed(field), number(field))
        return message(known, one, one, most=3)

    return st.integers(1, 8).flatmap(of_one)


@st.composite
def typed_tensor(draw: st.DrawFn) -> bytes:
    """An input whose contents fit its datatype."""
    row = DATATYPES[draw(st.sampled_from([name for name in SERVED if DATATYPES[name].contents]))]
    made = pb.ModelInferRequest.InferInputTensor(name="x", datatype=row.name, shape=[1, draw(st.integers(0, 3))])
    field = pb.InferTensorContents.DESCRIPTOR.fields_by_name[row.contents]
    kind = np.dtype({1: "?", 2: "i4", 3: "i8", 4: "u4", 5: "u8", 6: "f4", 7: "f8"}[field.number])
    raw = draw(st.lists(st.binary(min_size=kind.itemsize, max_size=kind.itemsize), max_size=5))
    elements = np.frombuffer(b"".join(raw), "u1" if field.number == 1 else kind)
    getattr(made.contents, row.contents).extend((elements & 1).astype("?").tolist() if field.number == 1 else elements)
    return made.SerializeToString()


def tensors() -> st.SearchStrategy[bytes]:
    known = {1: (2,), 2: (2,), 3: (0, 2), 4: (2,), 5: (2,)}
    datatype = text(2, *SERVED)
    shape = st.one_of(packed(3), st.integers(0, 4).flatmap(lambda dim: number(3, dim)), number(3))
    name = text(1, "x", "y")
    return st.one_of(
        message(known, name, datatype, shape, most=5),
        message(known, name, datatype, shape, regions(4), most=5),
        message(known, name, datatype, shape, nested(5, contents()), most=6),
        message(known, name, datatype, shape, parameters(4, *TENSOR_KEYS), nested(5, contents()), most=6),
        st.builds(lambda *parts: b"".join(parts), name, datatype, packed(3)),
        st.builds(lambda *parts: b"".join(parts), name, datatype, packed(3), regions(4)),
        typed_tensor(),
    )


def outputs() -> st.SearchStrategy[bytes]:
    keys = ("classification", *TENSOR_KEYS)
    known = {1: (2,), 2: (2,)}
    return st.one_of(
        message(known, text(1, "a", "b"), most=2),
        message(known, text(1, "a", "b"), regions(2), most=3),
        message(known, text(1, "a", "b"), parameters(2, *keys), most=4),
    )


def requests() -> st.SearchStrategy[bytes]:
    """A ModelInferRequest in any encoding."""
    raw = st.binary(max_size=20).flatmap(lambda data: delimited(7, data))
    known = dict.fromkeys(range(1, 8), (2,))
    keys = st.one_of(parameters(4, *REQUEST_KEYS), parameters(4, *REQUEST_KEYS), parameters(4, *OTHER_KEYS))
    head = (text(1, "m"), text(2, "", "1", "007", "x", "-1", "0"), string(3))
    return st.one_of(
        message(known, *head, nested(5, tensors()), nested(6, outputs()), raw, most=9),
        message(known, *head, keys, nested(5, tensors()), nested(5, tensors()), nested(6, outputs()), raw, raw, most=9),
        message(known, head[0], nested(5, tensors()), raw, most=3),
        message(known, head[0], nested(5, typed_tensor()), most=3),
    )


def scanned(item: V2Item) -> dict[str, Any]:
    """What the codec made of a request, comparable."""
    for tensor in item.inputs:
        assert (tensor.data is None) == (tensor.region is not None)
        assert tensor.data is None or tensor.data.readonly
    assert item.id == item.client_id
    return {
        "id": item.client_id,
        "model": item.model,
        "version": item.version,
        "timeout": item.timeout_s,
        "priority": item.priority,
        "empty_final": item.empty_final,
        "inputs": [
            (tensor.name, tensor.dtype, tensor.shape, None if tensor.data is None else bytes(tensor.data), _at(tensor))
            for tensor in item.inputs
        ],
        "outputs": [(output.name, _at(output)) for output in item.outputs],
        "top_k": item.top_k or {},
    }


def _at(placed: Any) -> tuple[str, int, int] | None:
    region = placed.region
    return None if region is None else (region.name, region.offset_bytes, region.length_bytes)


def parsed_request(request: pb.ModelInferRequest, wrong: set[str]) -> dict[str, Any]:
    """The same from the generated classes' reading; puts the reasons to refuse it into `wrong`."""
    inputs = []
    raw = list(request.raw_input_contents)
    for tensor in request.inputs:
        row = DATATYPES.get(tensor.datatype)
        place = _range(tensor.parameters, wrong, "input")
        if row is None or row.name == "BYTES":
            wrong.add("DATA_TYPE_UNSUPPORTED")
            row = DATATYPES["BOOL"]
        if not tensor.name:
            wrong.add("INPUT_UNNAMED")
        if place is not None and place[2] == 0 and 0 not in tensor.shape:
            wrong.add("SHARED_MEMORY_INCOMPLETE")
        data: bytes | None = None
        if place is not None or REGION in tensor.parameters:
            if tensor.HasField("contents"):
                wrong.add("INPUT_DATA_AMBIGUOUS")
        elif tensor.HasField("contents"):
            if request.raw_input_contents:
                wrong.add("INPUT_DATA_AMBIGUOUS")
            data = _typed(tensor.contents, row, wrong)
        elif raw:
            data = raw.pop(0)
        elif request.raw_input_contents or 0 not in tensor.shape:
            wrong.add("INPUT_DATA_MISSING")
        else:
            data = b""
        inputs.append((tensor.name, row.dtype, tuple(tensor.shape), data, place))
    if raw:
        wrong.add("RAW_CONTENTS_LEFT_OVER")
    top_k: dict[str, int] = {}
    outputs = []
    for output in request.outputs:
        place = _range(output.parameters, wrong, "output")
        if place is not None and place[2] == 0:
            wrong.add("SHARED_MEMORY_INCOMPLETE")
        if "classification" in output.parameters:
            classes = _number(output.parameters["classification"], wrong)
            if classes:
                top_k[output.name] = classes
            else:
                wrong.add("PARAMETER_INVALID")
        outputs.append((output.name, place))
    if request.model_version and not re.fullmatch("[0-9]+", request.model_version):
        wrong.add("VERSION_INVALID")
    version = 0 if wrong & {"VERSION_INVALID"} else int(request.model_version or "0")
    if (request.model_version and version == 0) or version >= 1 << 63:
        wrong.add("VERSION_INVALID")
    if any(len(tensor.shape) > 32 for tensor in request.inputs):
        wrong.add("TOO_MANY_DIMENSIONS")
    options = _options(request.parameters, wrong)
    return {
        "id": request.id,
        "model": request.model_name,
        "version": version,
        **options,
        "inputs": inputs,
        "outputs": outputs,
        "top_k": top_k,
    }


def _typed(contents: Any, row: Any, wrong: set[str]) -> bytes:
    """The generated classes' elements, converted one by one."""
    for field, _ in contents.ListFields():
        if field.name != row.contents:
            wrong.add("CONTENTS_MISMATCH")
    if not row.contents or row.name == "BYTES":
        return b""
    elements = list(getattr(contents, row.contents))
    if row.contents in ("fp32_contents", "fp64_contents"):
        copy = pb.InferTensorContents()
        getattr(copy, row.contents).extend(elements)
        packed_field = copy.SerializeToString()
        return packed_field[len(packed_field) - len(elements) * row.dtype.itemsize :] if elements else b""
    bits = row.dtype.itemsize * 8
    return b"".join((int(value) & (1 << bits) - 1).to_bytes(bits // 8, "little") for value in elements)


def _kind(value: pb.InferParameter) -> str:
    return value.WhichOneof("parameter_choice") or "nothing"


def _number(value: pb.InferParameter, wrong: set[str], kinds: tuple[str, ...] = ("int64_param",)) -> int:
    if _kind(value) not in kinds:
        wrong.add("PARAMETER_TYPE_MISMATCH")
        return 0
    got = int(getattr(value, _kind(value)))
    if got < 0:
        wrong.add("PARAMETER_INVALID")
    return max(got, 0)


def _range(found: Any, wrong: set[str], what: str) -> tuple[str, int, int] | None:
    known = {*TENSOR_KEYS, *(("classification",) if what == "output" else ())}
    if set(found) - known:
        wrong.add("PARAMETER_UNKNOWN")
    if REGION not in found:
        if SIZE in found or OFFSET in found:
            wrong.add("SHARED_MEMORY_INCOMPLETE")
        return None
    if _kind(found[REGION]) != "string_param":
        wrong.add("PARAMETER_TYPE_MISMATCH")
        return None
    if not found[REGION].string_param or SIZE not in found:
        wrong.add("SHARED_MEMORY_INCOMPLETE")
    size = _number(found[SIZE], wrong) if SIZE in found else 0
    offset = _number(found[OFFSET], wrong) if OFFSET in found else 0
    return found[REGION].string_param, offset, size


def _options(found: Any, wrong: set[str]) -> dict[str, Any]:
    timeout, priority, empty_final = None, 0, False
    for key, value in found.items():
        if key == "timeout":
            timeout = _number(value, wrong) / 1e6 or None
        elif key == "priority":
            level = _number(value, wrong, ("int64_param", "uint64_param"))
            priority = {0: 0, 1: 3, 2: 2}.get(level, 1)
        elif key in ("triton_enable_empty_final_response", "sequence_start", "sequence_end"):
            if _kind(value) != "bool_param":
                wrong.add("PARAMETER_TYPE_MISMATCH")
            elif key.startswith("triton"):
                empty_final = value.bool_param
            elif value.bool_param:
                wrong.add("SEQUENCES_UNSUPPORTED")
        elif key == "sequence_id":
            if _kind(value) not in ("int64_param", "string_param"):
                wrong.add("PARAMETER_TYPE_MISMATCH")
            elif getattr(value, _kind(value)):
                wrong.add("SEQUENCES_UNSUPPORTED")
        elif key in ("headers", "binary_data_output") or key.startswith("triton_"):
            wrong.add("PARAMETER_RESERVED")
        else:
            wrong.add("PARAMETER_UNKNOWN")
    return {"timeout": timeout, "priority": priority, "empty_final": empty_final}


def check(message: bytes) -> str:
    """Codec and generated class agree on a message; tells what they agree on."""
    outcome = outcome_of(message)
    assert outcome in ("read", "refused", "MALFORMED_MESSAGE", "INVALID_UTF8")
    return outcome


def outcome_of(message: bytes) -> str:
    try:
        parsed = pb.ModelInferRequest.FromString(message)
    except DecodeError:
        try:
            item = scan_model_infer_request(message)
        except InvalidArgument as error:
            return error.reason
        assert item.error is not None
        return item.error.reason
    item = scan_model_infer_request(message)
    wrong: set[str] = set()
    expected = parsed_request(parsed, wrong)
    if item.error is None:
        assert not wrong
        assert scanned(item) == expected
        return "read"
    assert item.error.reason in wrong
    assert (item.client_id, item.model) == (parsed.id, parsed.model_name)
    return "refused"
