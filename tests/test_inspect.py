"""Reading model files without a device."""

from __future__ import annotations

import json
import random
import struct
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from aclserve_server.inspect import InspectError, OmFile, OnnxFile, describe_file, format_text


def om_bytes(
    tables: list[list[tuple[int, bytes]]],
    *,
    version: int = 0x20000000,
    model_type: int = 0,
    model_count: int | None = None,
    wide: bool = True,
    name: bytes = b"made",
    dynamic: int = 0,
    offset_error: int = 0,
    tail: bytes = b"",
) -> bytes:
    """An OM file from the layout's description: header, then per model a table and its partitions."""
    payload = b""
    for table in tables:
        head = struct.pack("<II", len(table), 0) if wide else struct.pack("<I", len(table))
        position = offset_error
        for kind, data in table:
            head += (
                struct.pack("<IIQQ", kind, 0, position, len(data))
                if wide
                else struct.pack("<III", kind, position, len(data))
            )
            position += len(data)
        payload += head + b"".join(data for _, data in table)
    payload += tail
    header = bytearray(256)
    header[:12] = b"IMOD" + struct.pack("<II", 256, version)
    struct.pack_into("<I", header, 76, len(payload))
    header[81], header[82] = 1, model_type
    header[84 : 84 + len(name)] = name
    if version == 0x10000000:
        header[156:167] = b"old version"
        header[176] = 3
    else:
        struct.pack_into("<I", header, 156, len(tables) if model_count is None else model_count)
        header[160:167] = b"CANN8.1"
        header[193] = dynamic
        if wide:
            struct.pack_into("<Q", header, 184, len(payload))
    return bytes(header) + payload


def om(tmp_path: Path, data: bytes) -> OmFile:
    path = tmp_path / "model.om"
    path.write_bytes(data)
    description = describe_file(path)
    assert description.format == "om"
    assert description.om is not None
    format_text(description)
    return description.om


def onnx_file(tmp_path: Path, model: Any) -> OnnxFile:
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    description = describe_file(path)
    assert description.format == "onnx"
    assert description.onnx is not None
    format_text(description)
    return description.onnx


def test_the_published_om_files_are_read_as_expected(shared: Path) -> None:
    folder = shared / "data" / "om"
    expected = json.loads((folder / "expected.json").read_text())["files"]
    assert len(expected) == 5
    for name, facts in expected.items():
        if not facts["ok"]:
            with pytest.raises(InspectError) as caught:
                describe_file(folder / name)
            assert str(folder) not in str(caught.value)
            continue
        description = describe_file(folder / name)
        found = description.om
        assert found is not None
        assert description.size_bytes == facts["bytes"]
        assert (found.name, found.model_count, found.model_type) == (
            facts["name"],
            facts["model_num"],
            facts["model_type"],
        )
        assert (int(found.dynamic), found.table_form) == (facts["dynamic"], facts["table"])
        shown = [[{"type": p.type, "size": p.size_bytes} for p in table] for table in found.tables]
        assert shown == facts["tables"]
        assert found.notes == ()


def test_what_is_wrong_with_the_published_om_files_is_said(shared: Path) -> None:
    folder = shared / "data" / "om"
    for name, words in {
        "cut_short.om": "cut short: its header states 5268 bytes after the header, the file has 4268",
        "wrong_magic.om": "not an OM file",
        "header_only_100_bytes.om": "has 100 bytes, the header alone 256",
    }.items():
        with pytest.raises(InspectError, match=words):
            describe_file(folder / name)


def test_a_wide_file_with_several_models_is_dynamic(tmp_path: Path) -> None:
    tables = [[(0, b"a" * 10), (3, b"b" * 5)], [(0, b"c"), (1, b"d" * 16)], [(99, b"e")]]
    found = om(tmp_path, om_bytes(tables, name=b"n" * 32))
    assert found.dynamic
    assert found.name == "n" * 32
    assert [[(p.name, p.size_bytes) for p in table] for table in found.tables] == [
        [("model definition", 10), ("TBE kernels", 5)],
        [("model definition", 1), ("weights", 16)],
        [("unknown", 1)],
    ]
    assert found.tables[0][0].offset_bytes == 256 + 8 + 48
    assert found.tables[2][0].offset_bytes + 1 == 256 + found.payload_bytes


def test_version_one_has_no_model_count(tmp_path: Path) -> None:
    found = om(tmp_path, om_bytes([[(0, b"abc")]], version=0x10000000, wide=False))
    assert (found.model_count, found.dynamic, found.table_form) == (1, False, "narrow")
    assert (found.platform_version, found.platform_type) == ("old version", 3)


def test_a_flow_model_has_one_wide_table(tmp_path: Path) -> None:
    found = om(
        tmp_path, om_bytes([[(0, b"x"), (6, b"y" * 3), *((7, b"z") for _ in range(200))]], model_type=3, model_count=7)
    )
    assert (len(found.tables), len(found.tables[0]), found.model_type_name) == (1, 202, "flow")


def test_dynamic_flag_newer_versions_and_notes(tmp_path: Path) -> None:
    found = om(tmp_path, om_bytes([[(0, b"abc")]], version=0x30000000, dynamic=1, offset_error=4, tail=b"zz", name=b""))
    assert found.dynamic
    assert found.header_version == 0x30000000
    assert found.notes == (
        "partition table 1 of 1: partition 1 states offset 4, but lies at 0",
        "2 bytes after the last partition",
    )


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"IMODV1.2" + b"\0" * 300, "IMOD image program"),
        (b"IMO", "not an OM file|cut short"),
        (om_bytes([[(0, b"abc")]])[:-1], "cut short"),
        (om_bytes([[(0, b"abc")]]) + b"x", "longer than it says"),
        (om_bytes([[(0, b"abc")]], model_count=0), "0 models"),
        (om_bytes([[(0, b"abc")]], model_count=1 << 31), "2147483648 models"),
        (om_bytes([[(0, b"abc")]], model_count=2), "cut short: partition table 2 of 2"),
        (om_bytes([[(0, b"abc")], [(0, b"d")]], tail=b"x"), "1 byte before the end"),
        (om_bytes([[(0, b"")] * 129]), "129 partitions"),
        (om_bytes([], model_count=1), "cut short: partition table 1 of 1"),
    ],
)
def test_damaged_om_files_are_refused(tmp_path: Path, data: bytes, words: str) -> None:
    with pytest.raises(InspectError, match=words):
        om(tmp_path, data)


def test_partition_sizes_that_overflow_are_refused(tmp_path: Path) -> None:
    data = bytearray(om_bytes([[(0, b"abc"), (1, b"def")]]))
    struct.pack_into("<Q", data, 256 + 8 + 24 + 16, (1 << 64) - 1)
    with pytest.raises(InspectError, match=r"partition 2 .weights, type 1.* past the end of the file"):
        om(tmp_path, bytes(data))
    struct.pack_into("<I", data, 256, 100)
    with pytest.raises(InspectError, match="partition table 1 of 1 with 100 partitions reaches past"):
        om(tmp_path, bytes(data))


def test_random_damage_never_escapes_as_another_error(tmp_path: Path) -> None:
    whole = om_bytes([[(0, b"a" * 40), (3, b"b" * 5)], [(0, b"c"), (1, b"d" * 16)]])
    generator = random.Random(7)
    outcomes = set()
    for _ in range(400):
        data = bytearray(whole)
        for _ in range(generator.randint(1, 6)):
            data[generator.randrange(4, len(data))] = generator.randrange(256)
        try:
            om(tmp_path, bytes(data))
            outcomes.add("read")
        except InspectError:
            outcomes.add("refused")
    assert outcomes == {"read", "refused"}


def test_the_published_models_are_read(shared: Path) -> None:
    folder = shared / "data" / "models"
    silero = describe_file(folder / "silero_vad" / "model.onnx").onnx
    assert silero is not None
    assert {(t.name, t.dtype) for t in silero.inputs} == {("input", "float32"), ("state", "float32"), ("sr", "int64")}
    shapes = {t.name: t.shape for t in silero.inputs}
    assert shapes["sr"] == ()
    assert shapes["state"] is not None
    assert (shapes["state"][0], shapes["state"][2]) == (2, 128)
    halves = describe_file(folder / "float16_to_bfloat16" / "model.onnx").onnx
    assert halves is not None
    assert [(t.dtype, t.shape) for t in (*halves.inputs, *halves.outputs)] == [
        ("float16", (1, 2, 2, 2)),
        ("bfloat16", (1, 2, 2, 2)),
    ]
    for path in sorted(folder.glob("*/model.onnx")):
        description = describe_file(path)
        assert description.onnx is not None
        assert description.onnx.inputs
        assert description.onnx.outputs
        assert json.loads(description.to_json())["onnx"]["ir_version"] == description.onnx.ir_version
        assert all(line == line.rstrip() and line.isprintable() for line in format_text(description).splitlines())
    face = describe_file(folder / "ultraface_rfb_320" / "model.onnx")
    assert face.onnx is not None
    assert face.size_bytes * 0.5 < face.onnx.constant_bytes < face.size_bytes


def made_model() -> Any:
    """A model with all that the reader shows, not one that runs."""
    weight = numpy_helper.from_array(np.zeros((3, 4), np.float32), "weight")
    far = TensorProto(name="far", data_type=TensorProto.INT64, dims=[5], data_location=TensorProto.EXTERNAL)
    far.external_data.add(key="location", value="elsewhere.bin")
    packed = TensorProto(name="packed", data_type=TensorProto.INT4, dims=[3])
    words = TensorProto(name="words", data_type=TensorProto.STRING, dims=[2], string_data=[b"ab", b"cde"])
    inner = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "body", [], [], initializer=[weight])
    nodes = [
        helper.make_node("If", ["c"], ["o"], then_branch=inner, else_branch=inner),
        helper.make_node("Constant", [], ["k"], value=helper.make_tensor("", TensorProto.FLOAT16, [4], [0.0] * 4)),
        helper.make_node("Special", ["a"], ["b"], domain="house"),
    ]
    unranked = helper.make_tensor_value_info("unranked", TensorProto.FLOAT8E5M2, None)
    sequence = helper.make_tensor_sequence_value_info("list", TensorProto.INT64, ["n"])
    graph = helper.make_graph(
        nodes,
        "all\x1b[31m of it",
        [
            helper.make_tensor_value_info("a", TensorProto.DOUBLE, ["batch", 3, None]),
            helper.make_tensor_value_info("weight", TensorProto.FLOAT, [3, 4]),
            unranked,
            sequence,
        ],
        [helper.make_tensor_value_info("o", TensorProto.STRING, [])],
        initializer=[weight, far, packed, words],
    )
    model = helper.make_model(graph, producer_name="test", opset_imports=[helper.make_opsetid("", 18)])
    model.opset_import.append(helper.make_opsetid("house", 1))
    helper.set_model_props(model, {"author": "x" * 500, "two": "lines\nhere"})
    return model


def test_everything_an_onnx_file_says(tmp_path: Path) -> None:
    found = onnx_file(tmp_path, made_model())
    assert found.opsets == {"ai.onnx": 18, "house": 1}
    assert [(t.name, t.dtype, t.shape) for t in found.inputs] == [
        ("a", "float64", ("batch", 3, None)),
        ("unranked", "float8e5m2", None),
        ("list", "sequence(tensor(int64))", None),
    ]
    assert [(t.name, t.dtype, t.shape) for t in found.outputs] == [("o", "string", ())]
    assert (found.node_count, found.operators) == (5, {"Relu": 2, "If": 1, "Constant": 1, "house.Special": 1})
    assert (found.constant_count, found.constant_bytes, found.external_bytes) == (7, 3 * 48 + 40 + 2 + 5 + 8, 40)
    assert found.metadata["two"] == "lines\nhere"
    text = format_text(describe_file(tmp_path / "model.onnx"))
    assert "a: float64 [batch, 3, ?]" in text
    assert "two = lines\\nhere" in text
    assert "all\\x1b[31m of it" in text
    assert max(map(len, text.splitlines())) < 230


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "empty"),
        (b"just text, no model at all\n", "not an ONNX file"),
        (b"\x00" * 100, "not an ONNX file"),
        (onnx.ModelProto(ir_version=8).SerializeToString(), "holds no graph"),
        (made_model().SerializeToString()[:-200], "not an ONNX file"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, data: bytes, words: str) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(data)
    with pytest.raises(InspectError, match=words) as caught:
        describe_file(path)
    assert str(tmp_path) not in str(caught.value)


def test_a_folder_and_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InspectError, match="a folder"):
        describe_file(tmp_path)
    with pytest.raises(FileNotFoundError):
        describe_file(tmp_path / "none.onnx")


def test_an_om_under_another_name_is_recognised(tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(om_bytes([[(0, b"abc")]]))
    description = describe_file(path)
    assert description.format == "om"
    fields = json.loads(description.to_json())
    assert fields["om"]["tables"] == [[{"type": 0, "name": "model definition", "offset_bytes": 288, "size_bytes": 3}]]
    assert "onnx" not in fields


def test_names_that_are_no_text_are_shown_all_the_same(tmp_path: Path) -> None:
    node = helper.make_node("Relu", ["in_x"], ["y"])
    inputs = [helper.make_tensor_value_info("in_x", TensorProto.FLOAT, ["rows"])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows"])]
    data = helper.make_model(helper.make_graph([node], "g", inputs, outputs)).SerializeToString()
    path = tmp_path / "model.onnx"
    path.write_bytes(data.replace(b"in_x", b"in\xffx").replace(b"Relu", b"Rel\xfe"))
    description = describe_file(path)
    assert json.loads(description.to_json())["onnx"]["inputs"][0]["name"] == "in\ufffdx"
    assert "Rel\ufffd" in format_text(description)
