"""A configuration's tensors against the model's: what agrees, what contradicts, and what clients see of a reshape."""

from __future__ import annotations

import numpy as np
import pytest

from aclserve.errors import FailedPrecondition, ResourceExhausted
from aclserve_server.device.description import Gear, ModelDescription, TensorInfo
from aclserve_server.engine import room
from aclserve_server.engine.checks import check_tensors, reshaped
from aclserve_server.engine.slots import slot_bytes
from aclserve_server.rpc.model_config import parse_model_config

FLOAT = np.dtype(np.float32)


def described(
    shape: tuple[int, ...], *gears: tuple[int, ...], kind: str = "batch", unknown: bool = False, block: int = 0
) -> ModelDescription:
    """A model from `x` to `y` of equal shapes."""
    info = TensorInfo("x", FLOAT, "ND", shape, 64)
    made = () if unknown else tuple(Gear(kind, gear[:1], (gear,), (gear,)) for gear in gears or [shape])  # type: ignore[arg-type]
    largest = made[-1].output_shapes[0] if made else shape  # as AscendCL describes outputs
    out = TensorInfo("y", FLOAT, "ND", largest, 64, block)
    return ModelDescription((info,), (out,), made, None, unknown, 0, 0)


ROWS = described((-1, 3, 4), (1, 3, 4), (8, 3, 4))
STATIC = described((2, 3, 4), kind="static")
IMAGES = described((1, 3, -1, -1), (1, 3, 8, 8), (1, 3, 16, 16), kind="height_width")
FREE = described((-1, 5), unknown=True)


@pytest.mark.parametrize(
    ("model", "text"),
    [
        (ROWS, ""),
        (ROWS, 'max_batch_size: 8 input { name: "x" data_type: TYPE_FP32 dims: [ 3, 4 ] } output { name: "y" }'),
        (ROWS, 'input { name: "x" dims: [ 3, 4 ] }'),
        (ROWS, 'input { name: "x" dims: [ -1, 3, 4 ] }'),
        (ROWS, 'max_batch_size: 0 input { name: "x" dims: [ 8, 3, 4 ] }'),
        (ROWS, 'max_batch_size: 0 output { name: "y" dims: [ -1, 3, 4 ] }'),
        (ROWS, 'output { name: "y" dims: [ 3, 4 ] }'),
        (IMAGES, 'output { name: "y" dims: [ 1, 3, -1, -1 ] }'),
        (STATIC, 'input { name: "x" dims: [ 2, 3, 4 ] }'),
        (STATIC, 'max_batch_size: 2 output { name: "y" dims: [ 3, 4 ] }'),
        (STATIC, 'max_batch_size: 2 output { name: "y" dims: 12 reshape { shape: [ 3, 4 ] } }'),
        (IMAGES, 'input { name: "x" dims: [ 1, 3, -1, -1 ] }'),
        (IMAGES, 'input { name: "x" dims: [ 1, 3, 16, 16 ] }'),
        (FREE, 'max_batch_size: 4 input { name: "x" dims: 5 }'),
        (FREE, 'input { name: "x" dims: [ 7, 5 ] }'),
    ],
)
def test_what_agrees(model: ModelDescription, text: str) -> None:
    check_tensors(model, parse_model_config(text, "m"))


@pytest.mark.parametrize(
    ("model", "text", "words"),
    [
        (ROWS, 'input { name: "z" }', "names the input 'z'; the model's inputs are 'x'"),
        (ROWS, 'output { name: "x" }', "names the output 'x'; the model's outputs are 'y'"),
        (ROWS, 'input { name: "x" data_type: TYPE_INT8 }', "input 'x' has type int8; the model has float32"),
        (ROWS, 'max_batch_size: 8 input { name: "x" dims: [ 3, 5 ] }',
         "dims [3, 5] beside the batch axis; the model has the shape [any, 3, 4]"),
        (ROWS, 'max_batch_size: 8 input { name: "x" dims: [ -1, 3, 4 ] }', "dims [any, 3, 4] beside the batch axis"),
        (ROWS, 'max_batch_size: 0 input { name: "x" dims: [ 3, 4 ] }',
         "dims [3, 4]; the model has the shape [any, 3, 4]"),
        (ROWS, 'max_batch_size: 0 input { name: "x" dims: [ 7, 3, 4 ] }', "dims [7, 3, 4]"),
        (STATIC, 'input { name: "x" dims: [ 2, 3, -1 ] }', "dims [2, 3, any]; the model has the shape [2, 3, 4]"),
        (STATIC, 'output { name: "y" dims: [ 24 ] reshape { shape: [ 4, 6 ] } }', "dims [4, 6]"),
        (IMAGES, 'input { name: "x" dims: [ 1, 3, 9, 9 ] }', "dims [1, 3, 9, 9]"),
        (FREE, 'input { name: "x" dims: [ -1, 6 ] }', "[any, 6]; the model has the shape [any, 5]"),
    ],
)  # fmt: skip
def test_what_contradicts_says_both_sides(model: ModelDescription, text: str, words: str) -> None:
    with pytest.raises(FailedPrecondition) as caught:
        check_tensors(model, parse_model_config(text, "m"))
    assert caught.value.reason == "MODEL_CONFIG_INVALID"
    assert words in caught.value.message


def test_clients_see_the_shape_before_the_reshape() -> None:
    text = 'max_batch_size: 8 input { name: "x" dims: [ 12 ] reshape { shape: [ 3, 4 ] } }'
    seen = reshaped(ROWS, parse_model_config(text, "m"))
    assert seen.inputs[0].shape == (-1, 12)
    assert seen.outputs[0].shape == (8, 3, 4)
    assert [gear.input_shapes for gear in seen.gears] == [((1, 12),), ((8, 12),)]
    assert [gear.values for gear in seen.gears] == [gear.values for gear in ROWS.gears]
    assert slot_bytes(seen) == slot_bytes(ROWS) == 2 * 8 * 12 * 4
    whole = reshaped(STATIC, parse_model_config('output { name: "y" dims: 24 reshape { shape: [ 2, 3, 4 ] } }', "m"))
    assert (whole.outputs[0].shape, whole.gears[0].output_shapes) == ((24,), ((24,),))
    assert reshaped(ROWS, parse_model_config("", "m")) is ROWS
    free = reshaped(FREE, parse_model_config('input { name: "x" dims: 5 reshape { shape: [ 1, 5 ] } }', "m"))
    assert (free.inputs[0].shape, free.outputs[0].shape) == ((5,), FREE.outputs[0].shape)


def test_an_output_in_a_private_layout_has_no_reshape() -> None:
    model = described((2, 8), kind="static", block=16)
    text = 'output { name: "y" dims: 16 reshape { shape: [ 2, 8 ] } }'
    with pytest.raises(FailedPrecondition, match="private layout"):
        reshaped(model, parse_model_config(text, "m"))


class Memory:
    """A device of which only the free memory matters."""

    def __init__(self, free: int, total: int = 1 << 30) -> None:
        self.answer = free, total

    def memory_info(self, kind: object) -> tuple[int, int]:
        return self.answer


def test_what_does_not_fit_is_refused_with_the_numbers() -> None:
    device = Memory(1000)
    room.check_fits(device, 500, 300, 200)  # type: ignore[arg-type]
    with pytest.raises(ResourceExhausted) as refused:
        room.check_fits(device, 500, 0, 501)  # type: ignore[arg-type]
    error = refused.value
    assert error.reason == "MODEL_DOES_NOT_FIT"
    assert "needs 1001 bytes of device memory (500 for working memory, 501 for tensors of its slots)" in error.message
    assert "1000 are free" in error.message
    assert (error.metadata["needed_bytes"], error.metadata["free_bytes"]) == ("1001", "1000")
    room.check_fits(Memory(0, 0), 1, 1, 1)  # type: ignore[arg-type]
    assert room.free_bytes(Memory(0, 0)) is None  # type: ignore[arg-type]


def test_what_an_unload_must_give_back() -> None:
    mib = 1 << 20
    assert room.missing_bytes(taken=4 * mib, known=4 * mib, freed=4 * mib) == 0
    assert room.missing_bytes(taken=9 * mib, known=4 * mib, freed=4 * mib) == 0, "a first load fills pools that stay"
    assert room.missing_bytes(taken=4 * mib, known=4 * mib, freed=mib) == 3 * mib
    assert room.missing_bytes(taken=4 * mib, known=4 * mib, freed=4 * mib - 100) == 0
    assert room.missing_bytes(taken=4 * mib, known=4 * mib, freed=9 * mib) == 0
    assert room.missing_bytes(taken=4 * mib, known=0, freed=0) == 0, "it is not known what it holds"
