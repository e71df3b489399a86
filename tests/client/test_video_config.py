"""What a model's parameters say of its pictures and outputs."""

from __future__ import annotations

import numpy as np
import pytest

from aclserve.errors import InvalidArgument
from aclserve_client import Batching, ExecutionMode, MemoryOwner, ModelDescription, ModelState, TensorSpec
from aclserve_client.video_config import KEYS, VideoConfig, parameters_text, video_config
from aclserve_client.video_detect import prepare


def description(
    shape=(1, 3, 240, 320), dtype="float32", outputs=("scores", "boxes"), inputs=("input",), **facts
) -> ModelDescription:
    return ModelDescription(
        name="model",
        version=1,
        state=ModelState.READY,
        reason="",
        inputs=tuple(TensorSpec(name, dtype, shape, "ND", 0) for name in inputs),
        outputs=tuple(TensorSpec(name, "float32", (1, 4420, 2), "ND", 0) for name in outputs),
        gears=(),
        batching=Batching.NONE,
        batching_reason="",
        max_rows=1,
        execution_mode=ExecutionMode.ASYNCHRONOUS,
        memory_owner=MemoryOwner.ASCENDCL,
        max_queue_delay_s=0.0,
        slots=2,
        work_bytes=0,
        weight_bytes=0,
        sample_json="",
        parameters={"execution_mode": "async", **{f"video.{key}": value for key, value in facts.items()}},
    )


def test_the_shape_tells_size_layout_and_colour():
    assert video_config(description()) == VideoConfig("input", 320, 240)
    last = video_config(description((-1, 224, 200, 3), "uint8"))
    assert (last.width, last.height, last.layout, last.dtype, last.shape) == (
        200,
        224,
        "NHWC",
        "uint8",
        (1, 224, 200, 3),
    )
    grey = video_config(description((1, 28, 30)))
    assert (grey.colour, grey.shape, grey.batched) == ("GREY", (1, 28, 30), False)


def test_facts_fill_in_what_varies_and_state_the_numbers():
    config = video_config(
        description((1, 3, -1, -1), width="64", height="32", colour="BGR", mean="1, 2, 3", scale="1/255", fit="crop")
    )
    assert config.shape == (1, 3, 32, 64)
    assert (config.colour, config.mean, config.scale, config.fit) == ("BGR", (1.0, 2.0, 3.0), (1 / 255,), "crop")


def test_decoders_have_defaults_of_their_own():
    faces = video_config(description(decoder="ultraface", threshold="0.5"))
    assert (faces.labels, faces.threshold, faces.top) == (("face",), 0.5, 100)
    assert (faces.scores, faces.boxes) == ("scores", "boxes")
    named = video_config(description(outputs=("y",), decoder="classes", labels="tabby, cat\ntiger", softmax="true"))
    assert (named.labels, named.scores, named.top, named.threshold) == (("tabby, cat", "tiger"), "y", 5, 0.0)
    assert named.softmax


@pytest.mark.parametrize(
    ("described", "said"),
    [
        (description(colour="YUV"), "video.colour is 'YUV'; expected RGB, BGR, GREY"),
        (description(widht="3"), "video.widht is not known"),
        (description(width="300"), "has the shape (1, 3, 240, 320), but the facts say (1, 3, 240, 300)"),
        (description((1, 3, -1, 320)), "video.height must be stated"),
        (description(height="-4"), "video.height is -4"),
        (description((1, 8, 8, 8)), "video.layout must be stated"),
        (description(layout="NHWC"), "has the shape"),
        (description(mean="1,2"), "video.mean has 2 numbers; expected 1 or 3"),
        (description(scale="1/0"), "video.scale is '1/0'"),
        (description(threshold="1.5"), "video.threshold is '1.5'"),
        (description(top="many"), "video.top is 'many'"),
        (description(decoder="yolo"), "video.decoder is 'yolo'; expected none, ultraface, classes"),
        (
            description(decoder="ultraface", outputs=("scores", "b")),
            "video.boxes is 'boxes'; its outputs are scores, b",
        ),
        (description(decoder="classes"), "video.output is 'output'; its outputs are scores, boxes"),
        (description(inputs=("a", "b")), "must name one of its inputs: a, b"),
        (description(inputs=("a", "b"), input="a"), "expected one picture"),
        (description((1, 10)), "expected one picture"),
        (description(dtype="bfloat16"), "takes bfloat16"),
        (description(dtype="bool"), "takes bool"),
    ],
)
def test_what_does_not_fit_is_told(described, said):
    with pytest.raises(InvalidArgument) as refused:
        video_config(described)
    assert refused.value.reason == "VIDEO_CONFIG_INVALID"
    assert said in refused.value.message


def test_a_type_that_is_not_the_inputs_is_told():
    model = description()
    model.parameters["video.dtype"] = "float16"
    with pytest.raises(InvalidArgument, match=r"video\.dtype is float16, but input input takes float32"):
        video_config(model)


def test_every_key_is_documented():
    from aclserve_client import video_config as module

    for key in KEYS:
        assert f"    video.{key} " in module.__doc__, key


def test_text_for_a_configuration_is_read_back():
    from aclserve_server.rpc.model_config import parse_model_config

    facts = {"mean": 127, "scale": "1/128", "labels": 'a "b"\nc, d\\e'}
    config = parse_model_config(parameters_text(facts), "model")
    assert config.parameters == {f"video.{key}": str(value) for key, value in facts.items()}


IMAGE = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)


def same_size(**fields) -> VideoConfig:
    return VideoConfig("x", 6, 4, **fields)


def test_layouts_and_colours():
    rgb = prepare(IMAGE, same_size())
    assert (rgb.shape, rgb.dtype, rgb.flags.c_contiguous) == ((1, 3, 4, 6), np.float32, True)
    np.testing.assert_array_equal(rgb[0], IMAGE.transpose(2, 0, 1))
    np.testing.assert_array_equal(prepare(IMAGE, same_size(colour="BGR"))[0, 0], IMAGE[:, :, 2])
    np.testing.assert_array_equal(prepare(IMAGE, same_size(layout="NHWC", batched=False)), IMAGE)
    grey = prepare(np.full((4, 6, 3), (10, 100, 200), np.uint8), same_size(colour="GREY"))
    np.testing.assert_array_equal(grey, np.full((1, 1, 4, 6), 84, np.float32))


def test_numbers_are_by_channel_in_the_models_order():
    config = same_size(colour="BGR", mean=(1.0, 2.0, 3.0), scale=(1.0, 0.5, 2.0), dtype="float16")
    made = prepare(IMAGE, config)
    assert made.dtype == np.float16
    np.testing.assert_array_equal(made[0, 0], IMAGE[:, :, 2] - 1.0)
    np.testing.assert_array_equal(made[0, 1], (IMAGE[:, :, 1] - 2.0) * 0.5)
    np.testing.assert_array_equal(made[0, 2], (IMAGE[:, :, 0] - 3.0) * 2.0)


def test_integers_are_rounded_and_stay_in_range():
    made = prepare(IMAGE, same_size(mean=(10.0,), scale=(4.0,), dtype="uint8"))
    np.testing.assert_array_equal(made[0], np.clip((IMAGE.transpose(2, 0, 1) - 10.0) * 4, 0, 255))


def test_crop_takes_the_centre():
    image = np.zeros((4, 12, 3), np.uint8)
    image[:, 4:8] = 200
    config = VideoConfig("x", 4, 4, fit="crop", resize="nearest")
    assert config.region(12, 4) == (4.0, 0.0, 8.0, 4.0)
    assert (prepare(image, config) == 200).all()
    assert config.region(4, 12) == (0.0, 4.0, 4.0, 8.0)
