"""Contract section 12: loading models, and the memory they take."""

from __future__ import annotations

import ctypes
from ctypes import byref, c_size_t, c_uint32
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aclserve_server.acl import types as acl
from contract.driving import Driver, Slot
from contract.models import doubled, weighted
from contract.subject import Subject, fails

X = np.arange(6, dtype=np.float32).reshape(2, 3)
WEIGHT_BYTES, WORK_BYTES = 36, 48


@pytest.fixture
def path(subject: Subject, tmp_path: Path) -> bytes:
    """A file with a model of 36 bytes of weights."""
    subject.only_emulated()
    file = tmp_path / "weighted.onnx"
    file.write_bytes(weighted())
    return str(file).encode()


def free_bytes(driver: Driver) -> int:
    free, total = c_size_t(), c_size_t()
    driver.library.aclrtGetMemInfo(0, byref(free), byref(total))
    return free.value


def check_product(slot: Slot) -> None:
    slot.feed(0, X)
    slot.execute()
    np.testing.assert_allclose(slot.read(0, np.float32, (2, 3)), X @ np.ones((3, 3), np.float32))


def test_sizes_and_memory(driver: Driver, path: bytes) -> None:
    """12.3"""
    library = driver.library
    work, weight = c_size_t(), c_size_t()
    library.aclmdlQuerySize(path, byref(work), byref(weight))
    assert (work.value, weight.value) == (WORK_BYTES, WEIGHT_BYTES)
    data = Path(path.decode()).read_bytes()
    library.aclmdlQuerySizeFromMem(data, len(data), byref(work), byref(weight))
    assert (work.value, weight.value) == (WORK_BYTES, WEIGHT_BYTES)
    before, model_id = free_bytes(driver), c_uint32()
    library.aclmdlLoadFromFile(path, byref(model_id))
    assert before - free_bytes(driver) == WORK_BYTES + WEIGHT_BYTES
    library.aclmdlUnload(model_id.value)
    assert free_bytes(driver) == before


def test_memory_of_the_caller(driver: Driver, path: bytes) -> None:
    """12.3: weights may be shared by loads of one model; the memory must live until the last unload."""
    library = driver.library
    before = free_bytes(driver)
    weights, works = driver.malloc(WEIGHT_BYTES, 2), [driver.malloc(WORK_BYTES, 2) for _ in range(2)]
    taken = before - free_bytes(driver)
    ids = []
    for work in works:
        model_id = c_uint32()
        library.aclmdlLoadFromFileWithMem(path, byref(model_id), work, WORK_BYTES, weights, WEIGHT_BYTES)
        ids.append(model_id.value)
    assert before - free_bytes(driver) == taken
    slots = [Slot(driver, number) for number in ids]
    for slot in slots:
        check_product(slot)
    with fails(207002):
        library.aclrtFree(weights)
    for slot in slots:
        slot.close()
    for address in (weights, *works):
        library.aclrtFree(address)
    assert free_bytes(driver) == before


def test_unfit_memory_of_the_caller(driver: Driver, path: bytes) -> None:
    library, model_id, host = driver.library, c_uint32(), ctypes.create_string_buffer(64)
    memory = driver.malloc(256)
    for address, size in ((memory, 35), (memory + 8, 64), (memory + 256, 64), (ctypes.addressof(host), 64)):
        with fails(145000):
            library.aclmdlLoadFromFileWithMem(path, byref(model_id), None, 0, address, size)


def test_models_that_share_work_memory_may_not_overlap(driver: Driver, subject: Subject, path: bytes) -> None:
    """12.3"""
    library = driver.library
    work, slots = driver.malloc(WORK_BYTES), []
    for _ in range(2):
        model_id = c_uint32()
        library.aclmdlLoadFromFileWithMem(path, byref(model_id), work, WORK_BYTES, None, 0)
        slots.append(Slot(driver, model_id.value))
    streams = [driver.stream(), driver.stream()]
    subject.only_emulated().hold()
    for slot, stream in zip(slots, streams, strict=True):
        slot.submit(stream)
    subject.only_emulated().release()
    for stream in streams:
        with fails(507011):
            library.aclrtSynchronizeStream(stream)


@pytest.mark.parametrize("from_file", [True, False])
def test_load_with_options(driver: Driver, path: bytes, from_file: bool) -> None:
    """12.4"""
    library, model_id = driver.library, c_uint32()
    attr = acl.aclmdlConfigAttr
    config = library.aclmdlCreateConfigHandle()

    def set_option(attribute: int, value: Any) -> None:
        library.aclmdlSetConfigOpt(config, attribute, ctypes.addressof(value), ctypes.sizeof(value))

    with fails(100000):
        library.aclmdlLoadWithConfig(config, byref(model_id))
    kind = acl.ACL_MDL_LOAD_FROM_FILE_WITH_MEM if from_file else acl.ACL_MDL_LOAD_FROM_MEM_WITH_MEM
    set_option(attr.ACL_MDL_LOAD_TYPE_SIZET, c_size_t(kind))
    with fails(100000):
        library.aclmdlLoadWithConfig(config, byref(model_id))
    data = Path(path.decode()).read_bytes()
    place = ctypes.create_string_buffer(data, len(data))
    address = ctypes.addressof(place)
    if driver.unified:
        address = driver.malloc(len(data))
        driver.upload(address, data)
    name = ctypes.c_char_p(path)
    weights = driver.malloc(WEIGHT_BYTES)
    if from_file:
        set_option(attr.ACL_MDL_PATH_PTR, name)
    else:
        set_option(attr.ACL_MDL_MEM_ADDR_PTR, ctypes.c_void_p(address))
        set_option(attr.ACL_MDL_MEM_SIZET, c_size_t(len(data)))
    set_option(attr.ACL_MDL_WEIGHT_ADDR_PTR, ctypes.c_void_p(weights))
    set_option(attr.ACL_MDL_WEIGHT_SIZET, c_size_t(WEIGHT_BYTES))
    with fails(100000):
        library.aclmdlSetConfigOpt(config, attr.ACL_MDL_WEIGHT_SIZET, ctypes.addressof(place), 3)
    library.aclmdlLoadWithConfig(config, byref(model_id))
    library.aclmdlDestroyConfigHandle(config)
    check_product(Slot(driver, model_id.value))
    with fails(207002):
        library.aclrtFree(weights)


def test_model_memory_is_of_the_run_modes_kind(driver: Driver, subject: Subject) -> None:
    """12.2: host memory on a PCIe host, device memory where there is one memory."""
    subject.only_emulated()
    library, data, model_id = driver.library, doubled([2, 3]), c_uint32()
    device = driver.malloc(len(data))
    driver.upload(device, data)
    right, wrong = (device, data) if driver.unified else (data, device)
    library.aclmdlLoadFromMem(right, len(data), byref(model_id))
    with fails(145007):
        library.aclmdlLoadFromMem(wrong, len(data), byref(model_id))
    with fails(100000):
        library.aclmdlLoadFromMem(right, 0, byref(model_id))
    with fails(145007):
        library.aclmdlLoadFromMem(device, len(data) + 1, byref(model_id))


def test_description_without_loading(driver: Driver, path: bytes) -> None:
    """12.9"""
    library, desc, dims = driver.library, driver.library.aclmdlCreateDesc(), acl.aclmdlIODims()
    library.aclmdlGetDescFromFile(desc, path)
    library.aclmdlGetOutputDims(desc, 0, byref(dims))
    assert tuple(dims.dims[: dims.dimCount]) == (2, 3)
    data = Path(path.decode()).read_bytes()
    library.aclmdlGetDescFromMem(desc, data, len(data))
    assert library.aclmdlGetNumInputs(desc) == 1
