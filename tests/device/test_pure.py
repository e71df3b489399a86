"""What needs no device: formats, dtypes, gear shapes, error classes."""

from __future__ import annotations

import numpy as np
import pytest

from aclserve.errors import (
    AclserveError,
    Internal,
    InvalidArgument,
    ResourceExhausted,
    Unavailable,
    Unimplemented,
)
from aclserve_server.acl.codes import CODES, Category, lookup
from aclserve_server.acl.errors import AclError, Unsupported
from aclserve_server.acl.types import aclDataType, aclFormat
from aclserve_server.device import dtypes, formats
from aclserve_server.device.describe import gear_input_shapes
from aclserve_server.device.description import HiddenInput, ModelDescription, TensorInfo
from aclserve_server.device.faults import classify, is_device_fatal


@pytest.mark.parametrize(
    ("call", "code", "kind", "reason"),
    [
        ("aclrtMemcpy", 107000, Internal, "DEVICE_ERROR"),
        ("aclmdlExecute", 145000, Internal, "DEVICE_ERROR"),
        ("aclmdlExecute", 500002, Internal, "DEVICE_ERROR"),
        ("aclmdlLoadFromFile", 145002, InvalidArgument, "MODEL_INVALID"),
        ("aclmdlLoadFromMem", 145006, InvalidArgument, "MODEL_INVALID"),
        ("aclmdlLoadFromFileWithMem", 545001, InvalidArgument, "MODEL_INVALID"),
        ("aclmdlQuerySize", 145002, InvalidArgument, "MODEL_INVALID"),
        ("aclmdlLoadFromMem", 100013, InvalidArgument, "MODEL_INVALID"),
        ("aclmdlLoadFromMem", 145001, Internal, "DEVICE_ERROR"),
        ("aclmdlUnload", 545009, Internal, "DEVICE_ERROR"),
        ("aclmdlLoadFromMem", 207001, ResourceExhausted, "DEVICE_OUT_OF_MEMORY"),
        ("aclmdlLoadFromMem", 545602, Unavailable, "DEVICE_BUSY"),
        ("aclrtMalloc", 207001, ResourceExhausted, "DEVICE_OUT_OF_MEMORY"),
        ("aclrtCreateStream", 207008, ResourceExhausted, "DEVICE_RESOURCE_EXHAUSTED"),
        ("aclrtSynchronizeStream", 507046, Unavailable, "DEVICE_BUSY"),
        ("aclrtSynchronizeStream", 507011, Unavailable, "DEVICE_LOST"),
        ("aclrtMalloc", 207000, Unimplemented, "DEVICE_UNSUPPORTED"),
        ("aclrtSynchronizeStream", 123456, Internal, "DEVICE_ERROR"),
    ],
)
def test_classify(call: str, code: int, kind: type[AclserveError], reason: str) -> None:
    error = classify(AclError(call, code, "/secret/path 0x7fff0000", "hint with /path"))
    assert type(error) is kind
    assert error.reason == reason
    action = lookup(code).action
    named = {"acl_call": call, "acl_code": str(code), "acl_name": AclError(call, code).name}
    assert error.metadata == (named | {"acl_hint": action} if action else named)
    assert "secret" not in str(error)
    assert "hint" not in str(error)
    assert AclError(call, code).meaning.rstrip(".") in error.message
    assert (error.retry_delay is not None) == (kind in (ResourceExhausted, Unavailable))


def test_classify_knows_every_code() -> None:
    for row in CODES.values():
        if row.category is not Category.OK:
            error = AclError("aclrtMalloc", row.value)
            assert classify(error).reason
            assert is_device_fatal(error) == (row.category is Category.DEVICE_FATAL)


def test_classify_missing_function() -> None:
    error = classify(Unsupported("aclrtStreamQuery", "7.0"))
    assert isinstance(error, Unimplemented)
    assert error.reason == "ACL_FUNCTION_MISSING"


def test_dtypes_round_trip_and_refuse_by_name() -> None:
    assert len(dtypes.DTYPES) == 13
    for value, dtype in dtypes.DTYPES.items():
        assert dtypes.numpy_dtype(value, "x") == dtype
        assert dtypes.acl_data_type(dtype) == value
    with pytest.raises(Unimplemented, match=r"'text'.*STRING"):
        dtypes.numpy_dtype(aclDataType.ACL_STRING, "text")
    with pytest.raises(Unimplemented, match="data type 999"):
        dtypes.numpy_dtype(999, "x")
    with pytest.raises(Unimplemented, match="complex64"):
        dtypes.acl_data_type(np.dtype(np.complex64))


def test_formats_refuse_private_ones_by_name() -> None:
    assert formats.plain_format(aclFormat.ACL_FORMAT_NHWC, "x") == "NHWC"
    assert formats.plain_format(aclFormat.ACL_FORMAT_UNDEFINED, "x") == "ND"
    assert formats.output_format(aclFormat.ACL_FORMAT_NC1HWC0, "y") == "NCHW"
    for private in (aclFormat.ACL_FORMAT_FRACTAL_NZ, aclFormat.ACL_FORMAT_NDC1HWC0, aclFormat.ACL_FORMAT_FRACTAL_Z):
        with pytest.raises(Unimplemented, match=f"'y'.*{formats.format_name(private)}"):
            formats.output_format(private, "y")
    with pytest.raises(Unimplemented, match=r"'x'.*NC1HWC0"):
        formats.plain_format(aclFormat.ACL_FORMAT_NC1HWC0, "x")
    with pytest.raises(Unimplemented, match="format 77"):
        formats.plain_format(77, "x")


@pytest.mark.parametrize("channels", [1, 15, 16, 17, 32])
def test_nc1hwc0_becomes_nchw(channels: int) -> None:
    shape = (2, channels, 3, 5)
    plain = np.arange(np.prod(shape), dtype=np.float16).reshape(shape)
    blocks = -(-channels // 16)
    padded = np.zeros((2, blocks * 16, 3, 5), np.float16)
    padded[:, :channels] = plain
    stored = np.ascontiguousarray(padded.reshape(2, blocks, 16, 3, 5).transpose(0, 1, 3, 4, 2))
    block = formats.channel_block(shape, stored.nbytes, 2, "y")
    assert block == 16
    assert formats.storage_shape(shape, block) == stored.shape
    back = formats.nchw_from_nc1hwc0(memoryview(stored.tobytes() + b"slack"), np.dtype(np.float16), shape, block)
    np.testing.assert_array_equal(back, plain)


def test_nc1hwc0_dims_of_five_axes() -> None:
    assert formats.channel_block((1, 2, 7, 7, 16), 0, 2, "y") == 16
    assert formats.visible_shape((1, 2, 7, 7, 16), 16) == (1, 32, 7, 7)
    assert formats.visible_shape((1, 30, 7, 7), 16) == (1, 30, 7, 7)
    with pytest.raises(Unimplemented, match="channel block"):
        formats.channel_block((1, 30, 7, 7), 12345, 2, "y")


@pytest.mark.parametrize(
    ("kind", "values", "shapes", "expected"),
    [
        ("batch", (4,), [(-1, 3), (7, 2), (-1,)], ((4, 3), (7, 2), (4,))),
        ("height_width", (8, 9), [(1, 3, -1, -1), (2, 2)], ((1, 3, 8, 9), (2, 2))),
        ("height_width", (8, 9), [(1, -1, -1, 3)], ((1, 8, 9, 3),)),
        ("dims", (4, 8, 8, 2), [(-1, 8), (8, -1)], ((4, 8), (8, 2))),
        ("dims", (5,), [(), (-1,)], ((), (5,))),
    ],
)
def test_gear_input_shapes(
    kind: str, values: tuple[int, ...], shapes: list[tuple[int, ...]], expected: tuple[tuple[int, ...], ...]
) -> None:
    assert gear_input_shapes(kind, values, shapes) == expected


def test_description_places_visible_inputs_around_hidden_ones() -> None:
    info = TensorInfo("x", np.dtype(np.float32), "ND", (1,), 4)
    description = ModelDescription(
        inputs=(info, info),
        outputs=(info,),
        gears=(),
        gear_input=HiddenInput(3, 8),
        unknown_shape=False,
        work_bytes=0,
        weight_bytes=0,
        aipp_inputs=(HiddenInput(1, 96),),
    )
    assert description.input_count == 4
    assert description.input_indices == (0, 2)
    assert description.hidden_inputs == ((1, 96), (3, 8))
