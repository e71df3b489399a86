"""config.pbtxt: what is read, what is reported, what is refused and where."""

from __future__ import annotations

import random
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from google.protobuf import text_format

from aclserve_server.engine.model_config import ConfigProblem, ModelConfig, TensorConfig
from aclserve_server.kserve import model_config_pb2
from aclserve_server.rpc import model_config as module
from aclserve_server.rpc.model_config import parse_model_config, read_model_config

FULL = """
# a comment with { and "
name: "digits"
platform: "onnxruntime_onnx" backend: 'onnxruntime'
max_batch_size: 32
input [
  { name: "image", data_type: TYPE_FP32, dims: [ 1, 28, -1 ] },
  { name: "scale" data_type: TYPE_BF16 }
]
output { name: "scores" dims: 10; }
dynamic_batching {
  preferred_batch_size: [ 16, 8, 16 ]
  max_queue_delay_microseconds: 1500
}
instance_group [ { count: 2 }, { } ]
parameters { key: "execution_mode" value: { string_value: "sync" } }
parameters: < key: "dynamic_batch_size" value < string_value: "1, 2,"
   "32" > >
parameters { key: "note" value { string_value: "kept" } }
"""


def problem(text: str) -> ConfigProblem:
    with pytest.raises(ConfigProblem) as caught:
        parse_model_config(text, "digits")
    return caught.value


def test_every_field_is_read() -> None:
    config = parse_model_config(FULL, "digits")
    assert config == ModelConfig(
        name="digits",
        backend="onnxruntime",
        max_batch_size=32,
        inputs=(
            TensorConfig("image", np.dtype(np.float32), (1, 28, -1)),
            TensorConfig("scale", np.dtype(ml_dtypes.bfloat16), None),
        ),
        outputs=(TensorConfig("scores", None, (10,)),),
        dynamic_batching=True,
        preferred_batch_sizes=(8, 16),
        max_queue_delay_us=1500,
        instance_count=3,
        execution_mode="sync",
        dynamic_batch_size=(1, 2, 32),
        parameters={"dynamic_batch_size": "1, 2,32", "execution_mode": "sync", "note": "kept"},
        unknown=(),
    )
    assert config.has_gears


def test_an_empty_file_states_nothing() -> None:
    config = parse_model_config("", "digits")
    assert config == ModelConfig(name="digits")
    assert config.max_batch_size is None
    assert config.max_queue_delay_us is None
    assert not config.has_gears


def test_zero_is_not_absent() -> None:
    config = parse_model_config("max_batch_size: 0 dynamic_batching { max_queue_delay_microseconds: 0 }", "digits")
    assert (config.max_batch_size, config.max_queue_delay_us, config.dynamic_batching) == (0, 0, True)
    empty = parse_model_config("dynamic_batching { }", "digits")
    assert (empty.dynamic_batching, empty.max_queue_delay_us, empty.preferred_batch_sizes) == (True, None, ())


def test_gears_of_every_kind() -> None:
    def gears(key: str, value: str) -> ModelConfig:
        return parse_model_config(f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}', "digits")

    assert gears("dynamic_batch_size", "8,4").dynamic_batch_size == (8, 4)
    assert gears("dynamic_image_size", "224,224; 448,320").dynamic_image_size == ((224, 224), (448, 320))
    assert gears("dynamic_dims", "1,16,3;1,32,3").dynamic_dims == ((1, 16, 3), (1, 32, 3))
    assert gears("dynamic_dims", "7").dynamic_dims == ((7,),)


def test_fields_without_a_meaning_here_are_named_once() -> None:
    text = """
    version_policy: { latest { num_versions: 1 } }
    optimization { cuda { graphs: true } } default_model_filename: "a" "b"
    input { name: "x" reshape { shape: [ ] } optional: true }
    input { name: "y" optional: false }
    dynamic_batching { preserve_ordering: true priority_levels: - 3, }
    instance_group { count: 2 kind: KIND_GPU gpus: [ 0, 1 ] }
    model_warmup [ { name: "w" }, < name: "v" > ]
    version_policy < all { } >; [house.extra]: inf
    [type.googleapis.com/house.Any] { a: 'x' "y" b [ [ ], -1 ] } # } {
    parameters { key: "k" value { string_value: "v" other: 1.5e-3 } }
    max_batch_size: 4
    """
    config = parse_model_config(text, "digits")
    assert config.unknown == (
        "version_policy",
        "optimization",
        "default_model_filename",
        "input.reshape",
        "input.optional",
        "dynamic_batching.preserve_ordering",
        "dynamic_batching.priority_levels",
        "instance_group.kind",
        "instance_group.gpus",
        "model_warmup",
        "[house.extra]",
        "[type.googleapis.com/house.Any]",
        "parameters.value.other",
    )
    assert (config.max_batch_size, config.instance_count, len(config.inputs)) == (4, 2, 2)
    assert config.parameters == {"k": "v"}


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("max_batch_size: many", 1, ["Couldn't parse integer", "many"]),
        ("\n\nmax_batch_size: 1\nmax_batch_size: 2", 4, ["max_batch_size"]),
        ("input {\n  name: 'x'\n", 2, ['Expected "}"']),
        ("name 'x'", 1, ["Expected"]),
        ("input {\n data_type: TYPE_FLOAT }", 2, ["TYPE_FLOAT", "expected one of TYPE_BOOL, TYPE_UINT8", "TYPE_BF16"]),
        ("name: 'other'", 1, ["'other'", "'digits'"]),
        ("\nplatform: 'tensorrt_plan'", 2, ["'tensorrt_plan'", "'onnxruntime_onnx' or 'acl'"]),
        ("backend: 'python'", 1, ["'python'", "'onnxruntime' or 'acl'"]),
        ("\nmax_batch_size: -1", 2, ["-1", "0 (no batching) or more"]),
        ("max_batch_size: 3000000000", 1, ["3000000000"]),
        ("input { name: 'x' }\ninput { dims: 1 }", 2, ["without a name"]),
        ("output [\n{ name: 'x' },\n{ name: 'x' } ]", 3, ["'x' is there twice"]),
        ("input {\nname: 'x'\ndata_type: TYPE_STRING }", 3, ["TYPE_STRING is not served"]),
        ("input { name: 'x'\ndims: [ 1,\n-2 ] }", 2, ["-2", "-1 (any)"]),
        ("max_batch_size: 4 dynamic_batching {\n preferred_batch_size: [ 4, 8 ] }", 2, ["of 8", "which is 4"]),
        ("dynamic_batching { preferred_batch_size: 0 }", 1, ["of 0", "expected 1 or more"]),
        ("dynamic_batching {\nmax_queue_delay_microseconds: 3600000001 }", 2, ["3600000001", "one hour"]),
        ("dynamic_batching { max_queue_delay_microseconds: -1 }", 1, ["-1"]),
        ("instance_group { count: 1 }\ninstance_group { count: -1 }", 2, ["-1", "1 to 256"]),
        ("instance_group { count: 257 }", 1, ["257"]),
        ("name: 'digits'\nbackend: 'acl", 2, ["' begins a string that does not end"]),
        ("other {\n more [ 1, 2\n", 2, ["a list without an end"]),
        ("\nother {\n more: 1 >", 3, ["'>' found; expected a field's name or '}'"]),
        ("other {\n more { x: 1 }", 1, ["a block without an end; expected '}'"]),
        ("other { more: }", 1, ["'}' after 'more'; expected a value"]),
        ("\nother:", 2, ["nothing after 'other'"]),
        ("other: 1 }", 1, ["}"]),
        ("other: 1 ''", 1, ["''"]),
        ("input { name: 'x' >", 1, [">"]),
    ],
)
def test_what_is_wrong_and_where(text: str, line: int, words: list[str]) -> None:
    error = problem(text)
    assert error.line == line
    for word in words:
        assert word in error.problem
    assert str(error) == f"line {line}: {error.problem}"


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("execution_mode", "later", 'expected "async" or "sync"'),
        ("dynamic_batch_size", "", "different rows from 1"),
        ("dynamic_batch_size", "1,2,2", "different rows from 1"),
        ("dynamic_batch_size", "0,1", "different rows from 1"),
        ("dynamic_batch_size", "-1", "different rows from 1"),
        ("dynamic_batch_size", "1;2", "different rows from 1"),
        ("dynamic_batch_size", "99999999999999999999", "different rows from 1"),
        ("dynamic_batch_size", ",".join(map(str, range(1, 130))), "at most 128"),
        ("dynamic_image_size", "224", "height,width pairs"),
        ("dynamic_image_size", "224,224;", "height,width pairs"),
        ("dynamic_image_size", "1,2,3", "height,width pairs"),
        ("dynamic_dims", "1,2;3", "lists of one length"),
        ("dynamic_dims", "1,x", "lists of one length"),
    ],
)
def test_parameters_that_cannot_be_used(key: str, value: str, words: str) -> None:
    error = problem(
        f'\nparameters {{ key: "other" }}\nparameters {{ key: "{key}" value {{ string_value: "{value}" }} }}'
    )
    assert error.line == 3
    assert key in error.problem
    assert words in error.problem


def test_two_kinds_of_gears_are_refused() -> None:
    lines = [
        f'parameters {{ key: "{key}" value {{ string_value: "1,1" }} }}'
        for key in ("dynamic_dims", "dynamic_image_size")
    ]
    error = problem("\n".join(lines))
    assert (error.line, "at most one kind of gears" in error.problem) == (2, True)


def test_the_file_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "config.pbtxt"
    path.write_text("max_batch_size: 8\n")
    assert read_model_config(path, "digits").max_batch_size == 8
    path.write_bytes(b"name: 'digits'\n\xff\xfe")
    with pytest.raises(ConfigProblem, match="line 2: not UTF-8"):
        read_model_config(path, "digits")
    monkeypatch.setattr(module, "MAX_FILE_BYTES", 10)
    with pytest.raises(ConfigProblem, match="longer than 10 bytes"):
        read_model_config(path, "digits")
    with pytest.raises(ConfigProblem, match="cannot be read") as caught:
        read_model_config(tmp_path / "none.pbtxt", "digits")
    assert str(tmp_path) not in str(caught.value)


def test_deep_nesting_and_random_damage_end_in_the_one_error() -> None:
    assert "nested too deeply" in problem("a {" * 100_000).problem
    assert "nested too deeply" in problem("a: " + "[" * 100_000).problem
    assert problem("input {" * 100_000).line == 1
    assert problem("input: " + "[" * 100_000).line == 1
    assert parse_model_config("a {" * 50 + "}" * 50, "digits").unknown == ("a",)
    generator = random.Random(3)
    outcomes = set()
    for _ in range(500):
        text = list(FULL)
        for _ in range(generator.randint(1, 4)):
            place = generator.randrange(len(text))
            text[place] = generator.choice(["", "{", "}", "[", "]", '"', ":", "9", "-", "\n", text[place] * 2])
        try:
            parse_model_config("".join(text), "digits")
            outcomes.add("read")
        except ConfigProblem:
            outcomes.add("refused")
    assert outcomes == {"read", "refused"}


def test_numbers_and_names_are_those_of_the_protocol() -> None:
    numbers = {
        message.name: {field.name: field.number for field in message.fields}
        for message in model_config_pb2.DESCRIPTOR.message_types_by_name.values()
    }
    assert model_config_pb2.DESCRIPTOR.package == "inference"
    assert numbers["ModelConfig"] == {
        "name": 1,
        "platform": 2,
        "max_batch_size": 4,
        "input": 5,
        "output": 6,
        "instance_group": 7,
        "dynamic_batching": 11,
        "parameters": 14,
        "backend": 17,
    }
    assert numbers["ModelInput"] == {"name": 1, "data_type": 2, "dims": 4}
    assert numbers["ModelOutput"] == {"name": 1, "data_type": 2, "dims": 3}
    assert numbers["ModelInstanceGroup"] == {"count": 2}
    assert numbers["ModelDynamicBatching"] == {"preferred_batch_size": 1, "max_queue_delay_microseconds": 2}
    assert set(module.DTYPES) == set(model_config_pb2.DataType.values()) - {
        model_config_pb2.TYPE_INVALID,
        model_config_pb2.TYPE_STRING,
    }


def test_what_protobuf_writes_is_read_back() -> None:
    message = model_config_pb2.ModelConfig(name="digits", max_batch_size=3)
    message.input.add(name='quo"te\n', data_type=model_config_pb2.TYPE_INT64, dims=[4])
    message.parameters["dynamic_dims"].string_value = "1,2"
    for short in (False, True):
        config = parse_model_config(text_format.MessageToString(message, as_one_line=short), "digits")
        assert config.inputs == (TensorConfig('quo"te\n', np.dtype(np.int64), (4,)),)
        assert (config.max_batch_size, config.dynamic_dims, config.unknown) == (3, ((1, 2),), ())
