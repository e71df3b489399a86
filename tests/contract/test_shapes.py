"""Contract section 14: gears, and models of unknown shape."""

from __future__ import annotations

from ctypes import byref, c_size_t
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

from aclserve_server.acl import types as acl
from aclserve_server.emulator import bake
from contract.driving import Driver, Slot
from contract.models import doubled, image, model, positions, product, tensor
from contract.subject import Subject, fails

ALL = 2**64 - 1


@pytest.fixture
def driver(driver: Driver, subject: Subject) -> Driver:
    subject.only_emulated()
    return driver


def floats(*shape: int) -> NDArray[np.float32]:
    return np.arange(int(np.prod(shape)), dtype=np.float32).reshape(shape)


def set_dims(slot: Slot, *values: int) -> None:
    dims = acl.aclmdlIODims()
    dims.dimCount = len(values)
    dims.dims[: len(values)] = values
    slot.library.aclmdlSetInputDynamicDims(slot.model_id, slot.inputs, slot.gear_index, byref(dims))


def test_batch_gears(driver: Driver) -> None:
    """14a.1, 14a.2, 14a.7, 14a.8"""
    library = driver.library
    slot = Slot(driver, driver.load(bake(doubled(["N", 3]), dynamic_batch_size=(8, 1, 4))))
    batch = acl.aclmdlBatch()
    library.aclmdlGetDynamicBatch(slot.desc, byref(batch))
    assert list(batch.batch[: batch.batchCount]) == [1, 4, 8]
    assert slot.input_sizes == [96, 8]
    assert slot.output_sizes == [96]
    assert slot.dims(0) == (-1, 3)
    assert library.aclmdlGetInputNameByIndex(slot.desc, 1) == acl.ACL_DYNAMIC_TENSOR_NAME
    assert slot.current_dims(0) == (8, 3)  # the largest before one is set
    for rows in (4, 1, 8):
        slot.set_batch(rows)
        assert slot.current_dims(0) == (rows, 3)
        slot.feed(0, floats(rows, 3))
        slot.execute()
        np.testing.assert_array_equal(slot.read(0, np.float32, (rows, 3)), 2 * floats(rows, 3))


def test_the_gear_stays_in_the_dataset(driver: Driver, subject: Subject) -> None:
    """14a.3: two datasets of one model keep their own gears while their executions overlap other work."""
    emulator = subject.only_emulated()
    number = driver.load(bake(doubled(["N", 3]), dynamic_batch_size=(2, 4)))
    slots, stream = [Slot(driver, number), Slot(driver, number)], driver.stream()
    for slot, rows in zip(slots, (2, 4), strict=True):
        slot.feed(0, floats(4, 3))
        slot.set_batch(rows)
    emulator.hold()
    for slot in (*slots, *slots):
        slot.submit(stream)
    emulator.release()
    driver.library.aclrtSynchronizeStream(stream)
    np.testing.assert_array_equal(slots[0].read(0, np.float32, (2, 3)), 2 * floats(4, 3)[:2])
    assert slots[0].read(0, "u1", (48,))[24:].tolist() == [0xA5] * 24
    np.testing.assert_array_equal(slots[1].read(0, np.float32, (4, 3)), 2 * floats(4, 3))
    assert emulator.counters.executed_rows == 12
    assert emulator.counters.bindings_made == 2


def test_no_gear_set(driver: Driver) -> None:
    """14a.6: the host does not check; here the device fails."""
    slot = Slot(driver, driver.load(doubled(["N", 3])))
    stream = driver.stream()
    slot.submit(stream)
    with fails(507011):
        driver.library.aclrtSynchronizeStream(stream)


def test_gear_arguments(driver: Driver) -> None:
    """14a.4, 14a.9"""
    library = driver.library
    slot = Slot(driver, driver.load(doubled(["N", 3])))
    with fails(100000):
        slot.set_batch(0)
    with fails(100000):
        library.aclmdlSetDynamicBatchSize(slot.model_id, slot.inputs, 7, 1)
    with fails(145013):
        library.aclmdlSetDynamicHWSize(slot.model_id, slot.inputs, slot.gear_index, 4, 4)
    buffer = library.aclmdlGetDatasetBuffer(slot.inputs, slot.gear_index)
    library.aclUpdateDataBuffer(buffer, None, 8)
    with fails(100000):
        slot.set_batch(1)
    library.aclUpdateDataBuffer(buffer, slot.input_places[slot.gear_index], 4)  # room for a 4-byte number is enough
    slot.set_batch(1)
    slot.feed(0, floats(1, 3))
    slot.execute()
    np.testing.assert_array_equal(slot.read(0, np.float32, (1, 3)), 2 * floats(1, 3))


def test_image_gears(driver: Driver) -> None:
    """14a.2, 14a.7"""
    library = driver.library
    slot = Slot(driver, driver.load(bake(image(), dynamic_image_size=((8, 6), (2, 4)))))
    sizes = acl.aclmdlHW()
    library.aclmdlGetDynamicHW(slot.desc, ALL, byref(sizes))
    assert [tuple(pair) for pair in sizes.hw[: sizes.hwCount]] == [(2, 4), (8, 6)]
    assert slot.dims(0) == (1, 2, -1, -1)
    assert slot.input_sizes == [2 * 8 * 6 * 4, 16]
    for height, width in ((2, 4), (8, 6)):
        library.aclmdlSetDynamicHWSize(slot.model_id, slot.inputs, slot.gear_index, height, width)
        assert [slot.current_dims(0), slot.current_dims(1)] == [(1, 2, height, width), (1, 2, 1, 1)]
        pixels = floats(1, 2, height, width)
        slot.feed(0, pixels)
        slot.execute()
        np.testing.assert_array_equal(slot.read(0, np.float32, pixels.shape), 2 * pixels)
        means = pixels.mean(axis=(2, 3), keepdims=True)
        np.testing.assert_allclose(slot.read(1, np.float32, (1, 2, 1, 1)), means, rtol=1e-5)
    with fails(145013):
        library.aclmdlSetDynamicHWSize(slot.model_id, slot.inputs, slot.gear_index, 6, 8)


@pytest.mark.parametrize("rows", [((2, 3, 3), (5, 6, 6)), ((5, 6, 6, 4), (2, 3, 3, 4))])
def test_dims_gears(driver: Driver, rows: Any) -> None:
    """14a.5, 14a.7: the dims of all inputs in a row."""
    library = driver.library
    slot = Slot(driver, driver.load(bake(product(), dynamic_dims=rows)))
    count, dims = c_size_t(), (acl.aclmdlIODims * 2)()
    library.aclmdlGetInputDynamicGearCount(slot.desc, ALL, byref(count))
    assert count.value == 2
    library.aclmdlGetInputDynamicDims(slot.desc, ALL, dims, 2)
    found = [tuple(entry.dims[: entry.dimCount]) for entry in dims]
    assert found == [(2, 3, 3, 4), (5, 6, 6, 4)]
    for m, k, _, _ in found:
        set_dims(slot, m, k, k, 4)
        assert slot.current_dims(0) == (m, 4)
        a, b = floats(m, k), floats(k, 4)
        slot.feed(0, a)
        slot.feed(1, b)
        slot.execute()
        np.testing.assert_allclose(slot.read(0, np.float32, (m, 4)), a @ b)
    with fails(145013):
        set_dims(slot, 2, 3, 3, 5)
    with fails(145012):
        set_dims(slot, 2, 3, 3)
    with fails(100000):
        library.aclmdlGetInputDynamicDims(slot.desc, ALL, dims, 1)
    with fails(100000):
        library.aclmdlGetInputDynamicGearCount(slot.desc, 0, byref(count))


def test_unknown_output_shape(driver: Driver) -> None:
    """14b.3, 14b.4"""
    library = driver.library
    slot = Slot(driver, driver.load(positions()))
    assert slot.dims(0, output=True) == (1, -1)
    assert slot.output_sizes == [0]
    buffer = library.aclmdlGetDatasetBuffer(slot.outputs, 0)
    library.aclrtFree(slot.output_places[0])
    for x, wanted in (([1, 0, 1, 1, 0, 0], [0, 2, 3]), ([0] * 6, []), ([1] * 6, list(range(6)))):
        library.aclUpdateDataBuffer(buffer, None, 0)
        slot.feed(0, np.array(x, np.float32))
        slot.execute()
        desc = library.aclmdlGetDatasetTensorDesc(slot.outputs, 0)
        shape = [library.aclGetTensorDescDim(desc, axis) for axis in range(2)]
        assert shape == [1, len(wanted)]
        slot.output_places[0] = library.aclGetDataBufferAddr(buffer)
        assert library.aclGetDataBufferSizeV2(buffer) == 8 * len(wanted)
        assert slot.read(0, np.int64, shape).tolist() == [wanted]
        library.aclrtFree(slot.output_places[0])
    slot.output_places[0] = driver.malloc(64)
    library.aclUpdateDataBuffer(buffer, slot.output_places[0], 47)
    with fails(145000):
        slot.execute()
    library.aclUpdateDataBuffer(buffer, slot.output_places[0], 48)
    stream = driver.stream()
    slot.submit(stream)  # memory of the caller: asynchronous is possible
    library.aclrtSynchronizeStream(stream)
    assert slot.read(0, np.int64, (1, 6)).tolist() == [list(range(6))]


def test_unknown_input_shape(driver: Driver) -> None:
    """14b.1, 14b.2"""
    library = driver.library
    slot = Slot(driver, driver.load(product()))
    assert (slot.dims(0), slot.dims(1), slot.input_sizes) == ((-1, -1), (-1, 4), [0, 0])
    with fails(145000):
        slot.execute()
    for shape in ((2, 3, 4), (2, -1), (2,)):
        slot.set_input_shape(0, 0, shape)
        slot.set_input_shape(1, 0, (3, 4))
        with fails(100000):
            slot.execute()
    with fails(100000):
        slot.set_input_shape(9, 0, (1,))
    a, b = floats(2, 3), floats(3, 4)
    slot.set_input_shape(0, 0, a.shape)
    slot.set_input_shape(1, 0, b.shape)
    slot.feed(0, a)
    slot.feed(1, b)
    slot.execute()
    np.testing.assert_allclose(slot.read(0, np.float32, (2, 4)), a @ b)
    slot.set_input_shape(1, 0, (30, 4))
    with fails(145000):  # its buffer is too short for that
        slot.execute()
    library.aclmdlSetDatasetTensorDesc(slot.inputs, None, 1)
    assert not library.aclmdlGetDatasetTensorDesc(slot.inputs, 1)


def test_unknown_rank(driver: Driver) -> None:
    node = helper.make_node("Reshape", ["x", "shape"], ["y"])
    inputs = [tensor("x", [4]), tensor("shape", ["rank"], TensorProto.INT64)]
    slot = Slot(driver, driver.load(model([node], inputs, [tensor("y", None)])))
    assert slot.dims(0, output=True) == (acl.ACL_UNKNOWN_RANK,)
    slot.feed(0, floats(4))
    for shape in ((2, 2), (1, 4, 1), (4,)):
        slot.set_input_shape(1, 9, (len(shape),))
        slot.feed(1, np.array(shape, np.int64))
        slot.execute()
        desc = driver.library.aclmdlGetDatasetTensorDesc(slot.outputs, 0)
        count = driver.library.aclGetTensorDescNumDims(desc)
        assert tuple(driver.library.aclGetTensorDescDim(desc, axis) for axis in range(count)) == shape
        np.testing.assert_array_equal(slot.read(0, np.float32, shape), floats(4).reshape(shape))
