"""Contract sections 12, 13 and 15: describing and executing models."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from ctypes import byref, c_size_t

import numpy as np
import pytest
from onnx import TensorProto, helper

from aclserve_server.acl import types as acl
from contract.driving import DEVICE_TO_HOST, HOST_TO_DEVICE, Driver, Slot
from contract.models import doubled, model, tensor
from contract.subject import Subject, fails

Make = Callable[..., Subject]
X = np.arange(6, dtype=np.float32).reshape(2, 3)


def test_model_belongs_to_its_context(driver: Driver, model_id: int) -> None:
    """12.5"""
    library, home, other = driver.library, driver.context(), acl.Context()
    slot = Slot(driver, model_id)
    library.aclrtCreateContext(byref(other), 0)
    with fails(107004):
        slot.execute()
    with fails(107004):
        library.aclmdlUnload(model_id)
    library.aclrtDestroyContext(other)
    library.aclrtSetCurrentContext(home)
    slot.execute()
    slot.close()


def test_unload_waits_for_nobody(driver: Driver, subject: Subject, model_id: int) -> None:
    """12.6: nobody may be executing it."""
    emulator, library, stream = subject.only_emulated(), driver.library, driver.stream()
    slot = Slot(driver, model_id)
    emulator.hold()
    slot.submit(stream)
    with fails(545009):
        library.aclmdlUnload(model_id)
    emulator.release()
    library.aclrtSynchronizeStream(stream)
    library.aclmdlUnload(model_id)
    with fails(145003):
        slot.execute()


def test_descriptions(driver: Driver, subject: Subject) -> None:
    """12.9 to 12.11"""
    subject.only_emulated()
    library, long = driver.library, "n" * 200
    node = helper.make_node("Cast", [long], ["y"], to=TensorProto.FLOAT16)
    data = model([node], [tensor(long, [1, 2, 3, 4])], [tensor("y", [1, 2, 3, 4], TensorProto.FLOAT16)])
    slot = Slot(driver, driver.load(data))
    desc, dims = slot.desc, acl.aclmdlIODims()
    assert (library.aclmdlGetInputNameByIndex(desc, 0), library.aclmdlGetOutputNameByIndex(desc, 0)) == (long, "y")
    assert (library.aclmdlGetInputDataType(desc, 0), library.aclmdlGetOutputDataType(desc, 0)) == (0, 1)
    assert (library.aclmdlGetInputFormat(desc, 0), library.aclmdlGetOutputSizeByIndex(desc, 0)) == (0, 48)
    library.aclmdlGetInputDims(desc, 0, byref(dims))
    assert dims.name.decode() == f"acl_modelId_{slot.model_id}_input_0"
    assert library.aclmdlGetTensorRealName(desc, dims.name) == long
    library.aclmdlGetInputDimsV2(desc, 0, byref(dims))
    assert tuple(dims.dims[: dims.dimCount]) == (1, 2, 3, 4) == slot.dims(0, output=True) == slot.current_dims(0)
    index = c_size_t(77)
    library.aclmdlGetOutputIndexByName(desc, b"y", byref(index))
    assert index.value == 0
    with fails(100000):
        library.aclmdlGetInputIndexByName(desc, b"y", byref(index))
    with fails(100000):
        library.aclmdlGetInputDims(desc, 1, byref(dims))
    assert library.aclmdlGetInputNameByIndex(desc, 1) in ("", None)
    assert library.aclmdlGetInputSizeByIndex(desc, 1) == 0
    assert library.aclmdlGetInputDataType(desc, 1) == library.aclmdlGetInputFormat(desc, 1) == -1
    library.aclmdlUnload(slot.model_id)
    assert library.aclmdlGetInputNameByIndex(desc, 0) == long
    empty = library.aclmdlCreateDesc()
    assert library.aclmdlGetNumInputs(empty) == library.aclmdlGetNumOutputs(empty) == 0


def test_datasets_and_buffers(driver: Driver) -> None:
    """13.1 to 13.3"""
    library, dataset = driver.library, driver.library.aclmdlCreateDataset()
    buffer = library.aclCreateDataBuffer(64, (1 << 32) + 5)
    assert (library.aclGetDataBufferSize(buffer), library.aclGetDataBufferSizeV2(buffer)) == (5, (1 << 32) + 5)
    library.aclUpdateDataBuffer(buffer, 128, 7)
    assert (library.aclGetDataBufferAddr(buffer), library.aclGetDataBufferSizeV2(buffer)) == (128, 7)
    assert library.aclGetDataBufferAddr(None) is None
    assert library.aclGetDataBufferSizeV2(None) == library.aclmdlGetDatasetNumBuffers(None) == 0
    library.aclmdlAddDatasetBuffer(dataset, buffer)
    assert library.aclmdlGetDatasetNumBuffers(dataset) == 1
    assert getattr(library.aclmdlGetDatasetBuffer(dataset, 0), "value", None) == getattr(buffer, "value", buffer)
    assert not library.aclmdlGetDatasetBuffer(dataset, 1)
    library.aclmdlDestroyDataset(dataset)
    assert library.aclGetDataBufferSizeV2(buffer) == 7  # destroying a dataset leaves its buffers
    library.aclDestroyDataBuffer(buffer)


def test_asynchronous_execution(subject: Subject, driver: Driver, model_id: int) -> None:
    """13.4, 13.10: inputs are read and outputs written when the task runs."""
    emulator, library, stream = subject.only_emulated(), driver.library, driver.stream()
    slot, host = Slot(driver, model_id), driver.malloc_host(24)
    emulator.hold()
    library.aclrtMemcpyAsync(slot.input_places[0], 24, host, 24, HOST_TO_DEVICE, stream)
    slot.submit(stream)
    library.aclrtMemcpyAsync(host, 24, slot.output_places[0], 24, DEVICE_TO_HOST, stream)
    assert slot.read(0, "u1", (24,)).tolist() == [0xA5] * 24
    ctypes.memmove(host, X.tobytes(), 24)
    emulator.release()
    library.aclrtSynchronizeStream(stream)
    np.testing.assert_array_equal(np.frombuffer(driver.host_bytes(host, 24), np.float32).reshape(2, 3), X + X)


def test_failed_execution_poisons_its_outputs(subject: Subject, driver: Driver, model_id: int) -> None:
    """3.4: also where an earlier execution had left a result."""
    emulator, library, stream = subject.only_emulated(), driver.library, driver.stream()
    slot = Slot(driver, model_id)
    slot.feed(0, X)
    slot.execute()
    emulator.faults.fail_task("aclmdlExecuteAsync", 507015)
    slot.submit(stream)
    with fails(507015):
        library.aclrtSynchronizeStream(stream)
    assert slot.read(0, "u1", (24,)).tolist() == [0xA5] * 24
    slot.submit(stream)
    library.aclrtSynchronizeStream(stream)
    np.testing.assert_array_equal(slot.read(0, np.float32, (2, 3)), X + X)


def test_one_model_id_on_two_streams_at_once(subject: Subject, driver: Driver, model_id: int) -> None:
    """13.8: both fail and both outputs are poison. In order (one stream, or an event) it is fine."""
    emulator, library = subject.only_emulated(), driver.library
    slots = [Slot(driver, model_id), Slot(driver, model_id)]
    streams, event = [driver.stream(), driver.stream()], driver.event()
    for slot in slots:
        slot.feed(0, X)
    emulator.hold()
    for slot, stream in zip(slots, streams, strict=True):
        slot.submit(stream)
    emulator.release()
    for slot, stream in zip(slots, streams, strict=True):
        with fails(507011):
            library.aclrtSynchronizeStream(stream)
        assert slot.read(0, "u1", (24,)).tolist() == [0xA5] * 24
    emulator.hold()
    slots[0].submit(streams[0])
    slots[0].submit(streams[0])
    library.aclrtRecordEvent(event, streams[0])
    library.aclrtStreamWaitEvent(streams[1], event)
    slots[1].submit(streams[1])
    emulator.release()
    for slot, stream in zip(slots, streams, strict=True):
        library.aclrtSynchronizeStream(stream)
        np.testing.assert_array_equal(slot.read(0, np.float32, (2, 3)), X + X)


def test_one_model_id_in_two_threads_at_once(subject: Subject, driver: Driver, model_id: int) -> None:
    """13.8: the same for a synchronous execution beside an asynchronous one."""
    emulator, library, stream, context = subject.only_emulated(), driver.library, driver.stream(), driver.context()
    one, other, codes = Slot(driver, model_id), Slot(driver, model_id), []
    emulator.hold()
    one.submit(stream)

    def execute() -> None:
        library.aclrtSetCurrentContext(context)
        codes.append(library.raw("aclmdlExecute")(model_id, other.inputs, other.outputs))

    thread = threading.Thread(target=execute)
    thread.start()
    while emulator.counters.calls["aclmdlExecute"] == 0:
        assert thread.is_alive()
    while emulator.pending_conflicts(model_id) < 2:
        assert thread.is_alive()
    emulator.release()
    thread.join()
    assert codes == [507011]
    with fails(507011):
        library.aclrtSynchronizeStream(stream)


def test_faults_of_buffers(make_subject: Make) -> None:
    """13.6, 8.4: host memory is not seen at the call, the device faults; pieces start at multiples of 64."""
    driver = make_subject().start()
    library, stream = driver.library, driver.stream()
    slot = Slot(driver, driver.load(doubled([2, 3])))
    buffer = library.aclmdlGetDatasetBuffer(slot.inputs, 0)
    freed = driver.malloc(64)
    library.aclrtFree(freed)
    plain = np.zeros(64, np.uint8)
    aligned = plain.ctypes.data + -plain.ctypes.data % 64
    for address in (freed, aligned):
        library.aclUpdateDataBuffer(buffer, address, 24)
        slot.submit(stream)
        with fails(507011):
            library.aclrtSynchronizeStream(stream)
    library.aclUpdateDataBuffer(buffer, slot.input_places[0] + 8, 24)
    with fails(107008):
        slot.submit(stream)
    library.aclUpdateDataBuffer(buffer, slot.output_places[0], 24)
    with fails(507011):
        slot.execute()


def test_destroyed_data_buffer(driver: Driver, model_id: int) -> None:
    """13.5"""
    slot = Slot(driver, model_id)
    driver.library.aclDestroyDataBuffer(driver.library.aclmdlGetDatasetBuffer(slot.inputs, 0))
    with fails(100000):
        slot.execute()


def test_outputs_left_to_the_library(driver: Driver, subject: Subject, model_id: int) -> None:
    """13.7: only in a synchronous execution; the caller frees the memory."""
    subject.only_emulated()
    library, slot = driver.library, Slot(driver, model_id)
    buffer = library.aclmdlGetDatasetBuffer(slot.outputs, 0)
    library.aclrtFree(slot.output_places[0])
    library.aclUpdateDataBuffer(buffer, None, 0)
    with fails(145000):
        slot.submit(driver.stream())
    slot.feed(0, X)
    slot.execute()
    slot.output_places[0] = library.aclGetDataBufferAddr(buffer)
    assert library.aclGetDataBufferSizeV2(buffer) == 24
    np.testing.assert_array_equal(slot.read(0, np.float32, (2, 3)), X + X)
    library.aclrtFree(slot.output_places[0])
    library.aclUpdateDataBuffer(buffer, None, 0)


def test_execution_with_options(driver: Driver, subject: Subject, model_id: int) -> None:
    """13.4: V2 runs on the stream given and has a time limit."""
    emulator, library, stream, slot = subject.only_emulated(), driver.library, driver.stream(), Slot(driver, model_id)
    config, limit = library.aclmdlCreateExecConfigHandle(), ctypes.c_int32(1)
    option = acl.aclmdlExecConfigAttr.ACL_MDL_STREAM_SYNC_TIMEOUT
    library.aclmdlSetExecConfigOpt(config, option, ctypes.addressof(limit), 4)
    slot.feed(0, X)
    emulator.hold()
    with fails(507046):
        library.aclmdlExecuteV2(model_id, slot.inputs, slot.outputs, stream, config)
    emulator.release()
    library.aclrtSynchronizeStream(stream)
    library.aclmdlExecuteV2(model_id, slot.inputs, slot.outputs, stream, None)
    library.aclmdlExecuteAsyncV2(model_id, slot.inputs, slot.outputs, stream, config)
    library.aclrtSynchronizeStream(stream)
    library.aclmdlDestroyExecConfigHandle(config)
    np.testing.assert_array_equal(slot.read(0, np.float32, (2, 3)), X + X)


def test_a_model_too_big_for_the_device(make_subject: Make) -> None:
    driver = make_subject(memory_bytes=1 << 20).start()
    with fails(207001):
        driver.load(doubled([1 << 10, 1 << 9]))


def test_tensor_descriptions(driver: Driver) -> None:
    library = driver.library
    dims = (ctypes.c_int64 * 3)(2, 3, 4)
    desc = library.aclCreateTensorDesc(acl.aclDataType.ACL_FLOAT16, 3, dims, acl.aclFormat.ACL_FORMAT_ND)
    assert (library.aclGetTensorDescNumDims(desc), library.aclGetTensorDescSize(desc)) == (3, 48)
    assert [library.aclGetTensorDescDim(desc, axis) for axis in range(4)] == [2, 3, 4, -1]
    assert (library.aclGetTensorDescType(desc), library.aclGetTensorDescFormat(desc)) == (1, 2)
    library.aclSetTensorDescName(desc, b"images")
    assert library.aclGetTensorDescName(desc) == "images"
    library.aclSetTensorShape(desc, 1, dims)
    assert library.aclGetTensorDescElementCount(desc) == 2
    size = ctypes.c_int64()
    library.aclGetTensorDescDimV2(desc, 0, byref(size))
    assert size.value == 2
    with fails(100000):
        library.aclGetTensorDescDimV2(desc, 1, byref(size))
    library.aclDestroyTensorDesc(desc)
    assert library.aclGetTensorDescNumDims(desc) == 0


def test_aipp_parameters(driver: Driver, subject: Subject, model_id: int) -> None:
    """15.3: the sets are real; no ONNX model has the stage."""
    subject.only_emulated()
    library, slot = driver.library, Slot(driver, model_id)
    with pytest.raises(Exception, match="aclmdlCreateAIPP"):
        library.aclmdlCreateAIPP(0)
    aipp = library.aclmdlCreateAIPP(2)
    library.aclmdlSetAIPPInputFormat(aipp, acl.aclAippInputFormat.ACL_YUV420SP_U8)
    library.aclmdlSetAIPPSrcImageSize(aipp, 224, 224)
    for width, height in ((225, 224), (224, 225), (0, 2), (5000, 2)):
        with fails(100000):
            library.aclmdlSetAIPPSrcImageSize(aipp, width, height)
    library.aclmdlSetAIPPDtcPixelMean(aipp, 1, 2, 3, 0, 1)
    with fails(100000):
        library.aclmdlSetAIPPDtcPixelMean(aipp, 1, 2, 3, 0, 2)
    with fails(145015):
        library.aclmdlSetInputAIPP(model_id, slot.inputs, 0, aipp)
    size = c_size_t()
    library.aclmdlGetAippDataSize(2, byref(size))
    assert size.value > 0
    library.aclmdlDestroyAIPP(aipp)
