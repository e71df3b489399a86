"""config.pbtxt: what is read, what is reported, what is refused and where."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from google.protobuf import text_format

from aclserve_server.engine.model_config import (
    ConfigProblem,
    ModelConfig,
    QueuePolicy,
    TensorConfig,
    VersionPolicy,
    Warmup,
    WarmupInput,
)
from aclserve_server.kserve import model_config_pb2
from aclserve_server.rpc import model_config as module
from aclserve_server.rpc.model_config import model_config_from_message, parse_model_config, read_model_config
from aclserve_server.rpc.model_config_fields import READ_FIELDS

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
    model_operations: { op_library_filename: "a" }
    optimization { cuda { graphs: true } } cc_model_filenames { key: "a" value: "b" "c" }
    input { name: "x" format: FORMAT_NCHW optional: true }
    input { name: "y" optional: false }
    dynamic_batching { preserve_ordering: true priority_levels: - 3, }
    instance_group { count: 2 kind: KIND_GPU gpus: [ 0, 1 ] }
    model_repository_agents [ { name: "w" }, < name: "v" > ]
    optimization < graph { } >; [house.extra]: inf
    [type.googleapis.com/house.Any] { a: 'x' "y" b [ [ ], -1 ] } # } {
    parameters { key: "k" value { string_value: "v" other: 1.5e-3 } }
    max_batch_size: 4
    """
    config = parse_model_config(text, "digits")
    assert config.unknown == (
        "model_operations",
        "optimization",
        "cc_model_filenames",
        "input.format",
        "input.optional",
        "dynamic_batching.preserve_ordering",
        "dynamic_batching.priority_levels",
        "instance_group.kind",
        "instance_group.gpus",
        "model_repository_agents",
        "[house.extra]",
        "[type.googleapis.com/house.Any]",
        "parameters.value.other",
    )
    assert [text.partition(":")[0] for text in config.notes] == list(config.unknown)
    assert config.notes[1] == "optimization: the model runs as it was compiled"
    assert config.notes[-1].endswith("it is not known here and has no effect")
    assert (config.max_batch_size, config.instance_count, len(config.inputs)) == (4, 2, 2)
    assert config.parameters == {"k": "v"}


@pytest.mark.parametrize(
    ("text", "policy"),
    [
        ("", VersionPolicy(1)),
        ("version_policy { }", VersionPolicy(1)),
        ("version_policy: { latest { num_versions: 3 } }", VersionPolicy(3)),
        ("version_policy < all { } >", VersionPolicy(None)),
        ("version_policy { specific: { versions: [ 7, 3, 3 ] } }", VersionPolicy(None, (3, 7))),
    ],
)
def test_version_policies(text: str, policy: VersionPolicy) -> None:
    assert parse_model_config(text, "digits").version_policy == policy


def test_what_may_wait() -> None:
    text = """dynamic_batching { default_queue_policy {
        timeout_action: REJECT default_timeout_microseconds: 1500 allow_timeout_override: true max_queue_size: 4 } }"""
    config = parse_model_config(text, "digits")
    assert (config.queue_policy, config.unknown) == (QueuePolicy(4, 0.0015, True), ())
    delayed = parse_model_config(text.replace("REJECT", "DELAY"), "digits")
    assert delayed.notes == (
        "dynamic_batching.default_queue_policy.timeout_action: an item whose time is over is refused",
    )


def test_tensors_of_another_shape_labels_and_a_file_of_another_name() -> None:
    config = parse_model_config(
        """default_model_filename: "net.onnx"
        input { name: "x" dims: [ 2, 6 ] reshape { shape: [ 3, 4 ] } }
        output { name: "y" dims: 1 reshape { shape: [ ] } label_filename: "classes.txt" }""",
        "digits",
    )
    assert config.inputs == (TensorConfig("x", None, (2, 6), (3, 4)),)
    assert config.outputs == (TensorConfig("y", None, (1,), (), "classes.txt"),)
    assert (config.file, config.unknown) == ("net.onnx", ())


def test_samples_to_run_before_the_model_is_ready() -> None:
    config = parse_model_config(
        """model_warmup [ {
            name: "a" batch_size: 4 count: 2
            inputs { key: "x" value { data_type: TYPE_FP32 dims: [ 3, 2 ] zero_data: true } }
            inputs { key: "i" value: { data_type: TYPE_INT8 dims: 5 random_data: true } }
        }, { name: "b" inputs { key: "x" value { data_type: TYPE_FP32 input_data_file: "sample" } } } ]""",
        "digits",
    )
    small = WarmupInput("i", np.dtype(np.int8), (5,), "random")
    assert config.warmups == (
        Warmup("a", 4, 2, (small, WarmupInput("x", np.dtype(np.float32), (3, 2), "zero"))),
        Warmup("b", 1, 1, (WarmupInput("x", np.dtype(np.float32), (), "file", "sample"),)),
    )
    assert config.unknown == ()


def test_a_message_is_read_like_a_text() -> None:
    message = text_format.Parse(FULL, model_config_pb2.ModelConfig())
    assert model_config_from_message(message, "digits") == parse_model_config(FULL, "digits")
    message.input[0].optional = True
    message.input[1].optional = True
    message.instance_group[0].kind = model_config_pb2.ModelInstanceGroup.KIND_GPU
    message.cc_model_filenames["a"] = "b"
    message.response_cache.enable = True
    config = model_config_from_message(message, "digits")
    assert set(config.unknown) == {"input.optional", "instance_group.kind", "cc_model_filenames", "response_cache"}
    assert len(config.notes) == len(config.unknown) == 4
    message.max_batch_size = -1
    with pytest.raises(ConfigProblem, match="-1") as caught:
        model_config_from_message(message, "digits")
    assert caught.value.line is None


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("max_batch_size: many", 1, ["Couldn't parse integer", "many"]),
        ("\n\nmax_batch_size: 1\nmax_batch_size: 2", 4, ["max_batch_size"]),
        ("input {\n  name: 'x'\n", 2, ['Expected "}"']),
        ("name 'x'", 1, ["Expected"]),
        ("input {\n data_type: TYPE_FLOAT }", 2, ["TYPE_FLOAT", "expected one of TYPE_BOOL, TYPE_UINT8", "TYPE_BF16"]),
        ("name: 'other'", 1, ["'other'", "'digits'"]),
        ("\nplatform: 'tensorrt_plan'", 2, ["'tensorrt_plan'", "'onnxruntime_onnx' or 'ascend_om' or 'acl'"]),
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
        ("version_policy { latest {\nnum_versions: 0 } }", 1, ["num_versions is 0", "1 or more"]),
        ("version_policy {\nspecific { } }", 2, ["[]", "1 to 1024"]),
        ("version_policy { specific { versions: 0 } }", 1, ["[0]", "each 1 up"]),
        ("dynamic_batching { default_queue_policy {\ndefault_timeout_microseconds: 4000000000 } }", 2, ["one hour"]),
        ("\ndefault_model_filename: '../x'", 2, ["'../x'", "the name of a file"]),
        ("output { name: 'y'\nlabel_filename: '/etc/passwd' }", 2, ["'/etc/passwd'", "beside config.pbtxt"]),
        ("input { name: 'x' dims: [ 2, 3 ]\nreshape { shape: [ 5 ] } }", 2, ["[5]", "[2, 3]", "as many elements"]),
        ("input { name: 'x' dims: -1 reshape { shape: -1 } }", 1, ["none of -1"]),
        ("model_warmup { name: 'w' }", 1, ["'w' has no inputs"]),
        ("model_warmup { name: 'w'\ncount: 1001 }", 2, ["1001", "at most 1000"]),
        ("model_warmup { inputs { key: 'x' value { dims: 1 zero_data: true } } }", 1, ["no data_type that is served"]),
        ("model_warmup { inputs { key: 'x' value { data_type: TYPE_INT8 } } }", 1, ["has no data; expected zero_data"]),
        (
            "model_warmup { inputs { key: 'x' value { data_type: TYPE_INT8 dims: -1 zero_data: true } } }",
            1,
            ["sizes of 0 or more"],
        ),
        (
            "model_warmup { inputs { key: 'x' value { data_type: TYPE_INT8 input_data_file: '../x' } } }",
            1,
            ["'../x'", "folder warmup"],
        ),
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


def messages() -> set[str]:
    """The full names of all messages of the protocol, nested ones too."""

    def inside(message: Any) -> set[str]:
        return {message.full_name}.union(*map(inside, message.nested_types))

    return set().union(*map(inside, model_config_pb2.DESCRIPTOR.message_types_by_name.values()))


def has_field(name: str) -> bool:
    try:
        model_config_pb2.DESCRIPTOR.pool.FindFieldByName(name)
    except KeyError:
        return False
    return True


def test_numbers_and_names_are_those_of_the_protocol() -> None:
    numbers = {
        message.name: {field.name: field.number for field in message.fields}
        for message in model_config_pb2.DESCRIPTOR.message_types_by_name.values()
    }
    assert model_config_pb2.DESCRIPTOR.package == "inference"
    assert {field: numbers["ModelConfig"][field] for field in ("name", "max_batch_size", "input", "output")} == {
        "name": 1,
        "max_batch_size": 4,
        "input": 5,
        "output": 6,
    }
    assert {field.rpartition(".")[0] for field in READ_FIELDS} - messages() == set()
    assert all(has_field(name) for name in READ_FIELDS)
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
