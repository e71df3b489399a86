"""Every case of the shared data gives its expected output through the C table, in both run modes."""

from __future__ import annotations

import ctypes
import json
from ctypes import byref, c_uint32
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from aclserve_server.acl import types as acl
from aclserve_server.acl.errors import AclError
from aclserve_server.emulator import Emulator, bake
from contract.driving import Driver, Slot

pytestmark = pytest.mark.needs_shared

Array = NDArray[Any]
CODE = {
    "float32": 0, "float16": 1, "int8": 2, "int32": 3, "uint8": 4, "int16": 6, "uint16": 7, "uint32": 8,
    "int64": 9, "uint64": 10, "float64": 11, "bool": 12, "bfloat16": 27,
}  # fmt: skip


def read_tensor(path: Path) -> Array:
    if path.suffix == ".npy":
        return np.asarray(np.load(path))
    tensor = onnx.TensorProto.FromString(path.read_bytes())
    return np.asarray(numpy_helper.to_array(tensor))


def run_model(slot: Slot, inputs: dict[str, Array], dtypes: list[Any]) -> list[Array]:
    """Execute once and read every output with its real shape."""
    library, driver = slot.library, slot.driver
    names = [library.aclmdlGetInputNameByIndex(slot.desc, i) for i in range(len(slot.input_sizes))]
    for index, name in enumerate(names):
        if name == acl.ACL_DYNAMIC_TENSOR_NAME:
            continue
        array = inputs[name]
        assert library.aclmdlGetInputDataType(slot.desc, index) == CODE[array.dtype.name]
        if -1 in slot.dims(index) and not slot.has_gears:
            replace(slot, index, array.nbytes)
            slot.set_input_shape(index, CODE[array.dtype.name], array.shape)
        slot.feed(index, array)
    if slot.has_gears:
        slot.set_batch(next(iter(inputs.values())).shape[0])
        slot.execute()
        return [slot.read(i, dtype, slot.current_dims(i)) for i, dtype in enumerate(dtypes)]
    if all(-1 not in slot.dims(i, output=True) for i in range(len(dtypes))):
        slot.execute()
        return [slot.read(i, dtype, slot.current_dims(i)) for i, dtype in enumerate(dtypes)]
    for index in range(len(dtypes)):
        buffer = library.aclmdlGetDatasetBuffer(slot.outputs, index)
        library.aclrtFree(slot.output_places[index])
        library.aclUpdateDataBuffer(buffer, None, 0)
    slot.execute()
    answers = []
    for index, dtype in enumerate(dtypes):
        desc = library.aclmdlGetDatasetTensorDesc(slot.outputs, index)
        shape = tuple(library.aclGetTensorDescDim(desc, axis) for axis in range(library.aclGetTensorDescNumDims(desc)))
        buffer = library.aclmdlGetDatasetBuffer(slot.outputs, index)
        address, size = library.aclGetDataBufferAddr(buffer), library.aclGetDataBufferSizeV2(buffer)
        slot.output_places[index] = address
        assert size == int(np.prod(shape)) * np.dtype(dtype).itemsize
        answers.append(np.frombuffer(driver.download(address, size), dtype).reshape(shape))
    return answers


def replace(slot: Slot, index: int, size: int) -> None:
    """Give an input a buffer of the size its real shape needs."""
    library = slot.library
    library.aclrtFree(slot.input_places[index])
    slot.input_places[index] = slot.driver.malloc(max(size, 64))
    buffer = library.aclmdlGetDatasetBuffer(slot.inputs, index)
    library.aclUpdateDataBuffer(buffer, slot.input_places[index], max(size, 64))


def compare(got: Array, want: Array, rtol: float, atol: float) -> None:
    assert got.shape == want.shape
    assert got.dtype == want.dtype
    if want.dtype.kind == "f" or want.dtype.name == "bfloat16":
        np.testing.assert_allclose(got.astype(np.float64), want.astype(np.float64), rtol=rtol, atol=atol)
    else:
        np.testing.assert_array_equal(got, want)


def load_file(driver: Driver, path: Path) -> Slot:
    model_id = c_uint32()
    driver.library.aclmdlLoadFromFile(str(path).encode(), byref(model_id))
    return Slot(driver, model_id.value)


def settled(driver: Driver, emulator: Emulator) -> None:
    assert not any(emulator.ledger().values()), emulator.ledger()
    driver.library.aclrtResetDevice(0)
    driver.library.aclFinalize()
    assert not emulator.leaks


def test_model_cases(driver: Driver, emulator: Emulator, shared: Path) -> None:
    manifest = json.loads((shared / "data" / "manifest.json").read_text())
    ran = 0
    for model in manifest["models"]:
        folder = shared / "data" / "models" / model["name"]
        for case in model["cases"]:
            if case["kind"] != "plain" or case["inputs"][0]["shape"][:1] == [0]:
                continue
            inputs = {item["name"]: read_tensor(folder / item["file"]) for item in case["inputs"]}
            outputs = [read_tensor(folder / item["file"]) for item in case["outputs"]]
            path = folder / "model.onnx"
            rows = next(iter(inputs.values())).shape[:1]
            slot = load_file(driver, path)
            if slot.has_gears and rows[0] not in (1, 2, 4, 8, 16, 32):
                slot.close()
                slot = Slot(driver, driver.load(bake(path.read_bytes(), dynamic_batch_size=rows)))
            got = run_model(slot, inputs, [array.dtype for array in outputs])
            for answer, want in zip(got, outputs, strict=True):
                compare(answer, want, case["rtol"], case["atol"])
            slot.close()
            ran += 1
    assert ran >= 18
    settled(driver, emulator)


def test_stream_case_keeps_its_state_on_the_device(driver: Driver, emulator: Emulator, shared: Path) -> None:
    """silero_vad is of unknown shape; its state goes from output to input on the device."""
    manifest = json.loads((shared / "data" / "manifest.json").read_text())
    model = next(m for m in manifest["models"] if m["name"] == "silero_vad")
    case = next(c for c in model["cases"] if c["kind"] == "stream")
    folder = shared / "data" / "models" / "silero_vad"
    (steps,) = (read_tensor(folder / item["file"]) for item in case["step_inputs"] if item["name"] == "input")
    library = driver.library
    slot = load_file(driver, folder / "model.onnx")
    assert [slot.dims(index) for index in range(3)] == [(-1, -1), (2, -1, 128), ()]
    state = np.zeros((2, 1, 128), np.float32)
    places = [(slot.inputs, 0, steps[0].nbytes), (slot.inputs, 1, state.nbytes)]
    places += [(slot.outputs, 0, 4), (slot.outputs, 1, state.nbytes)]
    for dataset, index, size in places:
        buffer = library.aclmdlGetDatasetBuffer(dataset, index)
        library.aclrtFree(library.aclGetDataBufferAddr(buffer))
        library.aclUpdateDataBuffer(buffer, driver.malloc(size), size)
    for dataset, owner in ((slot.inputs, slot.input_places), (slot.outputs, slot.output_places)):
        buffers = [library.aclmdlGetDatasetBuffer(dataset, index) for index in range(len(owner))]
        owner[:] = [library.aclGetDataBufferAddr(buffer) for buffer in buffers]
    slot.set_input_shape(0, CODE["float32"], steps[0].shape)
    slot.set_input_shape(1, CODE["float32"], state.shape)
    slot.feed(1, state)
    slot.feed(2, np.array(16000, np.int64))
    emulator.counters.reset()
    found = []
    for step in range(case["steps"]):
        slot.feed(0, steps[step])
        slot.execute()
        found.append(slot.read(0, np.float32, (1, 1)))
        library.aclrtMemcpy(slot.input_places[1], state.nbytes, slot.output_places[1], state.nbytes, 3)
    wanted = {item["name"]: read_tensor(folder / item["file"]) for item in case["step_outputs"]}
    compare(np.stack(found), wanted["output"], case["rtol"], case["atol"])
    assert emulator.counters.copied_bytes["device_to_host"] == 4 * case["steps"]
    assert emulator.counters.copied_bytes["device_to_device"] == state.nbytes * case["steps"]
    slot.close()
    settled(driver, emulator)


def test_node_cases(driver: Driver, emulator: Emulator, shared: Path) -> None:
    manifest = json.loads((shared / "data" / "manifest.json").read_text())
    ran = refused = 0
    for case in manifest["node_cases"]:
        folder = shared / "data" / "node" / case["name"]
        model = onnx.load(folder / "model.onnx")
        values = [*model.graph.input, *model.graph.output]
        if any(value.type.tensor_type.elem_type == onnx.TensorProto.STRING for value in values):
            with pytest.raises(AclError) as caught:
                load_file(driver, folder / "model.onnx")
            assert caught.value.code == 145022
            assert "string" in caught.value.text
            refused += 1
            continue
        data = folder / "test_data_set_0"
        inputs = {v.name: read_tensor(data / f"input_{i}.pb") for i, v in enumerate(model.graph.input)}
        outputs = [read_tensor(data / f"output_{i}.pb") for i in range(len(model.graph.output))]
        slot = load_file(driver, folder / "model.onnx")
        got = run_model(slot, inputs, [array.dtype for array in outputs])
        for answer, want in zip(got, outputs, strict=True):
            compare(answer, want, case.get("rtol", 1e-3), case.get("atol", 1e-7))
        slot.close()
        ran += 1
    assert (ran, refused) == (38, 5)
    settled(driver, emulator)


def test_made_up_om_files_are_refused(driver: Driver, emulator: Emulator, shared: Path) -> None:
    for path in sorted((shared / "data" / "om").glob("*.om")):
        model_id = ctypes.c_uint32()
        with pytest.raises(AclError) as caught:
            driver.library.aclmdlLoadFromFile(str(path).encode(), byref(model_id))
        assert caught.value.code == 545001
        if path.name == "static_one_model.om":
            assert "NPU" in caught.value.text
            assert "ONNX" in caught.value.text
    settled(driver, emulator)
