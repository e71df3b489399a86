"""Model files: gears by default and by metadata, what is refused and how it says so, sharing."""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import byref, c_uint32
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from aclserve_server.acl import types as acl
from aclserve_server.acl.errors import AclError
from aclserve_server.emulator import Emulator, bake
from contract.driving import Driver, Slot
from contract.models import doubled, image, model, product, tensor, weighted
from emulator.conftest import Factory, bind, start


def batches(slot: Slot) -> list[int]:
    batch = acl.aclmdlBatch()
    slot.library.aclmdlGetDynamicBatch(slot.desc, byref(batch))
    return list(batch.batch[: batch.batchCount])


DEFAULT_GEARS = [*range(1, 16), *range(16, 33, 2)]


def refusal(driver: Driver, data: bytes) -> AclError:
    with pytest.raises(AclError) as caught:
        driver.load(data)
    return caught.value


def test_default_gears_fit_the_budget(make_emulator: Factory) -> None:
    for budget, expected in ((1 << 30, DEFAULT_GEARS), (24 * 4, [1, 2, 3, 4]), (24 * 4 - 1, [1, 2, 3]), (1, [1])):
        driver = start(bind(make_emulator(slot_budget_bytes=budget)))
        assert batches(Slot(driver, driver.load(doubled(["N", 3])))) == expected


def test_unnamed_and_differing_symbols_are_a_batch_when_a_trial_agrees(driver: Driver) -> None:
    node = helper.make_node("Add", ["x", "x"], ["y"])
    named = model([node], [tensor("x", ["in", 3])], [tensor("y", ["out", 3])])
    assert batches(Slot(driver, driver.load(named))) == DEFAULT_GEARS
    halves = helper.make_node("Reshape", ["x", "to"], ["y"])
    to = numpy_helper.from_array(np.array([-1, 2], np.int64), "to")
    other = model([halves], [tensor("x", ["in", 4])], [tensor("y", ["out", 2])], [to])
    slot = Slot(driver, driver.load(other))
    assert batches(slot) == []
    assert slot.dims(0, output=True) == (-1, 2)  # of unknown shape: its first dim is not the batch


def test_axes_other_than_the_first_are_of_unknown_shape(driver: Driver) -> None:
    for data in (doubled(["N", "M"]), doubled([2, "M"])):
        slot = Slot(driver, driver.load(data))
        assert not slot.has_gears
        assert slot.input_sizes == [0]


def test_inputs_with_defaults_are_no_inputs(driver: Driver) -> None:
    weights = numpy_helper.from_array(np.ones((3, 3), np.float32), "w")
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    data = model([node], [tensor("x", [2, 3]), tensor("w", [3, 3])], [tensor("y", [2, 3])], [weights])
    assert len(Slot(driver, driver.load(data)).input_sizes) == 1


DTYPES = [
    (TensorProto.BOOL, np.bool_, 12),
    (TensorProto.INT8, np.int8, 2),
    (TensorProto.INT16, np.int16, 6),
    (TensorProto.INT32, np.int32, 3),
    (TensorProto.INT64, np.int64, 9),
    (TensorProto.UINT8, np.uint8, 4),
    (TensorProto.UINT16, np.uint16, 7),
    (TensorProto.UINT32, np.uint32, 8),
    (TensorProto.UINT64, np.uint64, 10),
    (TensorProto.FLOAT16, np.float16, 1),
    (TensorProto.BFLOAT16, ml_dtypes.bfloat16, 27),
    (TensorProto.FLOAT, np.float32, 0),
    (TensorProto.DOUBLE, np.float64, 11),
]


@pytest.mark.parametrize(("kind", "dtype", "code"), DTYPES)
@pytest.mark.parametrize("dims", [(3,), (), (0, 2), (2, 0)])
def test_dtypes_scalars_and_empty_tensors(
    driver: Driver, kind: int, dtype: Any, code: int, dims: Sequence[int]
) -> None:
    node = helper.make_node("Identity", ["x"], ["y"])
    slot = Slot(driver, driver.load(model([node], [tensor("x", dims, kind)], [tensor("y", dims, kind)])))
    assert slot.library.aclmdlGetOutputDataType(slot.desc, 0) == code
    x = np.arange(int(np.prod(dims))).reshape(dims).astype(dtype)
    slot.feed(0, x)
    slot.execute()
    np.testing.assert_array_equal(slot.read(0, dtype, dims), x)


def test_refused_types_are_named(driver: Driver) -> None:
    node = helper.make_node("Identity", ["x"], ["y"])
    for kind, name in ((TensorProto.STRING, "string"), (TensorProto.COMPLEX64, "complex64")):
        error = refusal(driver, model([node], [tensor("x", [2], kind)], [tensor("y", [2], kind)]))
        assert (error.code, "'x'" in error.text, name in error.text) == (145022, True, True)
    sequence = helper.make_tensor_sequence_value_info("parts", TensorProto.FLOAT, None)
    split = helper.make_node("SplitToSequence", ["x"], ["parts"])
    error = refusal(driver, model([split], [tensor("x", [4])], [sequence]))
    assert error.code == 145022
    assert "'parts' is a sequence" in error.text
    mapping = helper.make_value_info(
        "words", helper.make_map_type_proto(TensorProto.INT64, helper.make_tensor_type_proto(1, None))
    )
    error = refusal(driver, model([node], [tensor("x", [4])], [mapping]))
    assert "'words' is a map" in error.text


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"not a model", "cannot be decoded"),
        (b"\x08\x08", "no graph"),
        (b"IMOD" + bytes(20), "cut short"),
        (doubled([2, 3])[:-30], ""),
        (model([helper.make_node("NoSuchOperator", ["x"], ["y"])], [tensor("x", [1])], [tensor("y", [1])]), "NoSuch"),
        (bake(doubled([2, 3]), dynamic_batch_size=(1, 2)), "symbolic"),
        (bake(doubled(["N", 3]), dynamic_batch_size=(2, 2)), "twice"),
        (bake(doubled(["N", 3]), dynamic_batch_size=(0,)), "positive"),
        (bake(doubled(["N", 3]), dynamic_batch_size=range(1, 200)), "1 to 128"),
        (bake(doubled(["N", 3]), dynamic_image_size=((2, 2),)), "NCHW"),
        (bake(product(), dynamic_dims=((1, 2),)), "symbolic dims"),
        (bake(product(), dynamic_dims=((1, 2, 3),)), "gears"),
        (bake(product(), dynamic_dims=((1, 2, 2, 5),)), "fixed dim"),
    ],
)
def test_refused_files(driver: Driver, data: bytes, reason: str) -> None:
    error = refusal(driver, data)
    assert error.code == 545001
    assert reason in error.text


def onnx_entry(key: str, value: str) -> bytes:
    made = onnx.ModelProto()
    entry = made.metadata_props.add()
    entry.key, entry.value = key, value
    return made.SerializeToString()


def test_bake_appends_metadata() -> None:
    baked = onnx.ModelProto.FromString(bake(doubled(["N", 3]), dynamic_batch_size=(1, 200)))
    assert {entry.key: entry.value for entry in baked.metadata_props} == {"ascend.dynamic_batch_size": "1,200"}
    assert baked.graph == onnx.ModelProto.FromString(doubled(["N", 3])).graph
    baked = onnx.ModelProto.FromString(bake(image(), dynamic_image_size=((1, 2), (3, 4))))
    assert baked.metadata_props[0].value == "1,2;3,4"
    twice = bake(bake(doubled(["N", 3]), dynamic_batch_size=(1,)), dynamic_batch_size=(5,))
    assert twice.endswith(b"5")
    assert bake(doubled([1])) == doubled([1])
    with pytest.raises(ValueError, match="one kind"):
        bake(image(), dynamic_batch_size=(1,), dynamic_image_size=((1, 2),))


def test_the_last_metadata_wins(driver: Driver) -> None:
    twice = bake(bake(doubled(["N", 3]), dynamic_batch_size=(1,)), dynamic_batch_size=(5, 7))
    assert batches(Slot(driver, driver.load(twice))) == [5, 7]
    bad = doubled(["N", 3]) + onnx_entry("ascend.dynamic_batch_size", "one")
    assert "expected numbers" in refusal(driver, bad).text


def test_loads_of_one_content_share_a_program(emulator: Emulator, driver: Driver) -> None:
    slots = [Slot(driver, driver.load(weighted())) for _ in range(3)]
    models = emulator._machine.models
    assert len({id(models.get(slot.model_id).program) for slot in slots}) == 1
    assert len({slot.model_id for slot in slots}) == 3


def test_weights_beside_the_file(driver: Driver, tmp_path: Path) -> None:
    made = onnx.ModelProto.FromString(weighted())
    onnx.save_model(made, tmp_path / "model.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    assert (tmp_path / "weights.bin").stat().st_size == 36
    number = c_uint32()
    driver.library.aclmdlLoadFromFile(str(tmp_path / "model.onnx").encode(), byref(number))
    slot = Slot(driver, number.value)
    slot.feed(0, np.ones((2, 3), np.float32))
    slot.execute()
    assert slot.read(0, np.float32, (2, 3)).tolist() == [[3.0] * 3] * 2
    outside = onnx.ModelProto.FromString((tmp_path / "model.onnx").read_bytes())
    for entry in outside.graph.initializer[0].external_data:
        if entry.key == "location":
            entry.value = "../weights.bin"
    assert "outside" in refusal(driver, outside.SerializeToString()).text


def test_a_static_model_that_cannot_keep_its_word_fails_when_it_runs(driver: Driver) -> None:
    """The file promises one index, the values give three: the device finds out."""
    node = helper.make_node("NonZero", ["x"], ["y"])
    data = model([node], [tensor("x", [3])], [tensor("y", [1, 1], TensorProto.INT64)])
    slot = Slot(driver, driver.load(data))
    slot.feed(0, np.ones(3, np.float32))
    with pytest.raises(AclError) as caught:
        slot.execute()
    assert caught.value.code == 507011
    assert slot.read(0, "u1", (8,)).tolist() == [0xA5] * 8
    slot.feed(0, np.array([0, 0, 1], np.float32))
    slot.execute()
    assert slot.read(0, np.int64, (1, 1)).tolist() == [[2]]
