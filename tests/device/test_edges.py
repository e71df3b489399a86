"""What the emulated device does not do, through functions of the test's own: AIPP, private formats, an old CANN."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto

from aclserve.errors import InvalidArgument, Unimplemented
from aclserve_server.acl.abi import PROTOTYPES
from aclserve_server.acl.errors import AclError, Unsupported
from aclserve_server.acl.library import Library
from aclserve_server.acl.types import aclAippInputFormat, aclFormat, aclmdlIODims
from aclserve_server.device import formats
from aclserve_server.device.aipp import AippParameters
from aclserve_server.device.device import Device
from aclserve_server.device.runtime import Runtime
from aclserve_server.emulator import Emulator, bake
from device import onnx_models
from device.helpers import Bound


@contextmanager
def altered(emulator: Emulator, **functions: Callable[..., Any] | None) -> Iterator[Device]:
    """A device of a library with some functions replaced, or absent where None is given."""
    addresses = dict(emulator.addresses())
    kept = []
    for name, function in functions.items():
        if function is None:
            del addresses[name]
            continue
        row = PROTOTYPES[name]
        made = ctypes.CFUNCTYPE(row.result, *row.arguments)(function)
        kept.append(made)
        addresses[name] = ctypes.cast(made, ctypes.c_void_p).value or 0
    with Runtime.open(Library.from_addresses("altered", addresses)) as runtime, Device.open(runtime, 0) as device:
        yield device
    kept.clear()


def answers_dims(*dims: int) -> Callable[..., int]:
    def get_dims(description: Any, index: int, out: Any) -> int:
        target: aclmdlIODims = out.contents
        target.dimCount = len(dims)
        target.dims[: len(dims)] = dims
        return 0

    return get_dims


def test_static_aipp_shows_the_image(emulator: Emulator) -> None:
    def aipp_type(model_id: int, index: int, kind: Any, attached: Any) -> int:
        kind[0], attached[0] = 1, 0xFFFFFFFF
        return 0

    replaced = {
        "aclmdlGetAippType": aipp_type,
        "aclmdlGetInputDimsV2": answers_dims(1, 4, 4, 3),
        "aclmdlGetInputSizeByIndex": lambda description, index: 48,
    }
    with altered(emulator, **replaced) as device, device.load_model(onnx_models.doubled([1, 3, 4, 4])) as model:
        (info,) = model.description.inputs
    assert (info.dtype, info.format, info.shape, info.size_bytes) == (np.uint8, "NHWC", (1, 4, 4, 3), 48)


@pytest.mark.parametrize("code", [145015, 100038])
def test_no_aipp_in_old_and_new_words(emulator: Emulator, code: int) -> None:
    with (
        altered(emulator, aclmdlGetAippType=lambda *arguments: code) as device,
        device.load_model(onnx_models.doubled([2, 3])) as model,
    ):
        assert model.description.inputs[0].dtype == np.float32


def test_dynamic_aipp_input_is_hidden(emulator: Emulator, library: Library) -> None:
    names = [ctypes.create_string_buffer(name) for name in (b"ascend_dynamic_aipp_data", b"b")]
    replaced = {"aclmdlGetInputNameByIndex": lambda description, index: ctypes.addressof(names[index])}
    node = onnx_models.helper.make_node("MatMul", ["a", "b"], ["c"])
    value = onnx_models.value
    data = onnx_models.graph([node], [value("a", [2, 3]), value("b", [3, 4])], [value("c", [2, 4])])
    with altered(emulator, **replaced) as device, device.load_model(data) as model:
        found = model.description
        assert [info.name for info in found.inputs] == ["b"]
        assert found.aipp_inputs == found.hidden_inputs == ((0, 24),)
        assert found.input_indices == (1,)
        assert found.input_count == 2
        with Bound(model) as bound:
            bound.input_set.update(0, bound.inputs[0].address, 23)
            with pytest.raises(InvalidArgument, match="input 0 has 23 bytes"):
                model.execute(bound.input_set, bound.output_set)


@pytest.mark.parametrize("which", ["aclmdlGetOutputFormat", "aclmdlGetInputFormat"])
def test_private_formats_are_refused_and_unloaded(emulator: Emulator, which: str) -> None:
    replaced = {which: lambda description, index: int(aclFormat.ACL_FORMAT_FRACTAL_NZ)}
    with altered(emulator, **replaced) as device:
        with pytest.raises(Unimplemented, match="FRACTAL_NZ") as caught:
            device.load_model(onnx_models.doubled([2, 3]))
        assert caught.value.reason == "FORMAT_UNSUPPORTED"
        assert emulator.ledger()["models"] == 0


def test_nc1hwc0_output_is_shown_as_nchw(emulator: Emulator) -> None:
    replaced = {"aclmdlGetOutputFormat": lambda description, index: int(aclFormat.ACL_FORMAT_NC1HWC0)}
    stored = (1, 2, 3, 5, 16)
    x = np.arange(np.prod(stored), dtype=np.float16).reshape(stored)
    with (
        altered(emulator, **replaced) as device,
        device.load_model(onnx_models.identity(TensorProto.FLOAT16, stored)) as model,
        Bound(model) as bound,
    ):
        (info,) = model.description.outputs
        assert (info.format, info.shape, info.size_bytes, info.channel_block) == ("NCHW", (1, 32, 3, 5), x.nbytes, 16)
        assert model.description.gears[0].output_shapes == ((1, 32, 3, 5),)
        (raw,) = bound.run([x])
        shown = formats.nchw_from_nc1hwc0(memoryview(raw.tobytes()), info.dtype, info.shape, info.channel_block)
        np.testing.assert_array_equal(shown[0, 17], x[0, 1, :, :, 1])


def test_unserved_data_type_is_refused_by_name(emulator: Emulator) -> None:
    with (
        altered(emulator, aclmdlGetOutputDataType=lambda description, index: 16) as device,
        pytest.raises(Unimplemented, match=r"'y'.*COMPLEX64"),
    ):
        device.load_model(onnx_models.doubled([2, 3]))
    assert emulator.ledger()["models"] == 0


def test_gear_with_an_open_output_shape_is_refused(emulator: Emulator) -> None:
    data = bake(onnx_models.rows(), dynamic_batch_size=(1, 2))
    with (
        altered(emulator, aclmdlGetCurOutputDims=answers_dims(-1, 3)) as device,
        pytest.raises(Unimplemented, match=r"\[-1, 3\] with gear \[1\]") as caught,
    ):
        device.load_model(data)
    assert caught.value.reason == "MODEL_SHAPE_UNSUPPORTED"


def test_output_without_a_size_gets_room_for_its_largest_gear(emulator: Emulator) -> None:
    data = bake(onnx_models.rows(), dynamic_batch_size=(1, 4))
    with (
        altered(emulator, aclmdlGetOutputSizeByIndex=lambda description, index: 0) as device,
        device.load_model(data) as model,
    ):
        assert [info.size_bytes for info in model.description.outputs] == [48, 16]


def test_old_cann_degrades_clearly(emulator: Emulator) -> None:
    absent = ("aclrtGetDeviceUtilizationRate", "aclrtStreamQuery", "aclsysGetCANNVersion", "aclFinalizeReference")
    with altered(emulator, **dict.fromkeys(absent)) as device:
        assert device.utilization() is None
        assert device.runtime.cann_version() == ""
        with Runtime.open(device.library):
            pass
        with device.create_stream() as stream:
            with pytest.raises(Unsupported, match="aclrtStreamQuery"):
                stream.query()
            stream.synchronize()


def test_aipp_parameters(device: Device) -> None:
    with pytest.raises(InvalidArgument, match="not 0"):
        AippParameters.create(device.library, 0)
    with AippParameters.create(device.library, 2) as aipp:
        aipp.set_input_format(aclAippInputFormat.ACL_RGB888_U8)
        aipp.set_source_size(640, 480)
        aipp.set_colour_conversion((256, 0, 359, 256, -88, -183, 256, 454, 0), input_bias=(0, 128, 128))
        aipp.set_red_blue_swap(True)
        aipp.set_alpha_swap(False)
        for image in range(2):
            aipp.set_crop(image, 0, 0, 224, 224)
            aipp.set_scale(image, (224, 224), (112, 112))
            aipp.set_padding(image, 0, 0, 0, 0)
            aipp.set_mean(image, (104, 117, 123))
            aipp.set_minimum(image, (0.0,))
            aipp.set_reciprocal_variance(image, (0.5, 0.5, 0.5))
        for channels in ((), (1, 2, 3, 4, 5)):
            with pytest.raises(InvalidArgument, match="1 to 4 channels"):
                aipp.set_mean(0, channels)
        with pytest.raises(InvalidArgument, match="9 matrix"):
            aipp.set_colour_conversion((1, 2, 3))
        with device.load_model(onnx_models.doubled([2, 3])) as model, Bound(model) as bound:
            for apply in (aipp.apply, aipp.apply_to_input):
                with pytest.raises(AclError):
                    apply(model, bound.input_set, 0)
