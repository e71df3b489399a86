"""What a refused tensor's sender is told to do, and that doing it helps."""

from __future__ import annotations

import math
import re
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aclserve_server.engine.advice import dtype_fix, nearest, shape_fix, size_fix

IMAGE = (1, 3, 224, 224)
IMAGES = (-1, 3, 224, 224)


@pytest.mark.parametrize(
    ("got", "wanted", "said"),
    [
        ((3, 224, 224), IMAGE, "add a leading batch axis: send [1, 3, 224, 224]"),
        ((3, 224, 224), IMAGES, "add a leading batch axis: send [1, 3, 224, 224]"),
        ((), (1,), "add a leading batch axis: send [1]"),
        ((1, 4), (4,), "leave the leading axis out: send [4]"),
        ((1,), (), "leave the leading axis out: send []"),
        ((1, 28, 28), (1, 1, 28, 28), "add a leading batch axis: send [1, 1, 28, 28]"),
        ((28, 28), (1, 1, 28, 28), "reshape it, the bytes stay as they are: send [1, 1, 28, 28]"),
        ((1, 28, 28, 1), (-1, 1, 28, 28), "reshape it, the bytes stay as they are: send [1, 1, 28, 28]"),
        (
            (1, 224, 224, 3),
            IMAGE,
            "the axes are in another order, NHWC was given and NCHW is expected: "
            "transpose them with (0, 3, 1, 2) and send [1, 3, 224, 224]",
        ),
        ((8, 224, 224, 3), IMAGES, "transpose them with (0, 3, 1, 2) and send [8, 3, 224, 224]"),
        ((1, 3, 32, 48), (1, 32, 48, 3), "NCHW was given and NHWC is expected: transpose them with (0, 2, 3, 1)"),
        (
            (224, 224, 3),
            IMAGES,
            "add a leading batch axis; the axes are in another order, NHWC was given and NCHW is expected: "
            "transpose them with (0, 3, 1, 2) and send [1, 3, 224, 224]",
        ),
        (
            (1, 3, 640, 480),
            (1, 3, 480, 640),
            "the axes are in another order: transpose them with (0, 1, 3, 2) and send [1, 3, 480, 640]",
        ),
        ((3, 2), (2, 3), "the axes are in another order: transpose them with (1, 0) and send [2, 3]"),
        ((784,), (1, 28, 28), "reshape it: send [1, 28, 28]"),
        ((8,), (-1, 4), "reshape it: send [2, 4]"),
        ((2, 3, 4), (-1, 4), "reshape it: send [6, 4]"),
        ((8, 3), (3,), "the model takes one at a time: send 8 items of [3]"),
        ((3,), (4, 3), "the model takes 4 at a time: stack 4 of them and send [4, 3]"),
        ((8, 3), (4, 3), "the model takes 4 at a time: send it in 2 items of [4, 3]"),
        ((6, 3), (4, 3), "send it in 2 items of [4, 3], the last one padded"),
        ((1, 3), (4, 3), "pad axis 0 with zeros, send [4, 3] and use only 1 of what comes back"),
        ((2, 4, 9, 9), (2, 3, 9, 9), "leave the alpha channel out: send [2, 3, 9, 9]"),
        ((2, 1, 9, 9), (-1, 3, 9, 9), "repeat the grey channel three times: send [2, 3, 9, 9]"),
        ((2, 5), (-1, 4), "axis 1 is 5 and must be 4: resize, crop or pad the data and send [2, 4]"),
        ((1, 3, 200, 300), IMAGE, "axes 2 and 3 are 200 and 300 and must be 224 and 224: resize, crop or pad the data"),
        ((5,), (1, 28, 28), "send 3 axes of the model's sizes, not 1"),
        ((), (-1, 4), "send 2 axes of the model's sizes, not 0"),
        ((2, 3), (7,), "send 1 axis of the model's sizes, not 2"),
        ((-1, 4), (-1, 4), "a size is 0 or more: state those of the data"),
        ((0, 5), (-1, 4), "axis 1 is 5 and must be 4"),
    ],
)
def test_a_wrong_shape_is_told_what_makes_it_fit(got: tuple[int, ...], wanted: tuple[int, ...], said: str) -> None:
    assert said in shape_fix(got, wanted).text


def test_the_layout_tells_what_the_sizes_do_not() -> None:
    got, wanted = (1, 32, 48, 64), (1, 64, 32, 48)
    assert "NHWC was given" not in shape_fix(got, wanted).text
    assert "NHWC was given and NCHW is expected" in shape_fix(got, wanted, "NCHW").text
    assert shape_fix((1, 9, 9, 4), (1, 9, 9, 3), "NHWC").text == "leave the alpha channel out: send [1, 9, 9, 3]"


@pytest.mark.parametrize(
    ("got", "best"),
    [
        ((1, 3, 9, 9), (1, 3, 16, 16)),  # padding loses nothing
        ((1, 3, 40, 40), (1, 3, 32, 32)),
        ((3, 32, 32), (1, 3, 32, 32)),
        ((1, 16, 16, 3), (1, 3, 16, 16)),
    ],
)
def test_of_several_shapes_the_nearest_is_named(got: tuple[int, ...], best: tuple[int, ...]) -> None:
    shapes = [(1, 3, 8, 8), (1, 3, 16, 16), (1, 3, 32, 32)]
    shape, fix = nearest(got, shapes)
    assert shape == best
    assert f"send {list(best)}" in fix.text


@pytest.mark.parametrize(
    ("got", "wanted", "said"),
    [
        ("float64", "float32", "convert it to float32, in numpy with array.astype(np.float32)"),
        ("float32", "float16", "array.astype(np.float16)"),
        ("float32", "bool", "array.astype(np.bool_)"),
        ("uint8", "float32", "array.astype(np.float32), and scale the values as the model was trained"),
        ("float32", "uint8", "round its values to whole numbers and convert it to uint8"),
        ("int64", "int32", "array.astype(np.int32); its values must fit"),
        ("float32", ml_dtypes.bfloat16, "array.astype(ml_dtypes.bfloat16)"),
    ],
)
def test_a_wrong_type_is_told_how_to_convert(got: Any, wanted: Any, said: str) -> None:
    text = dtype_fix(np.dtype(got), np.dtype(wanted))
    assert said in text
    code = re.search(r"array\.astype\([\w.]+\)", text)
    assert code is not None
    names = {"array": np.zeros(2, got), "np": np, "ml_dtypes": ml_dtypes}
    assert eval(code.group(), names).dtype == np.dtype(wanted)


@pytest.mark.parametrize(
    ("shape", "got_bytes", "said"),
    [
        ((2, 4), 0, "no bytes came with it: send its 8 elements"),
        ((2, 4), 64, "of 8 bytes each (float64 or int64): convert them to float32; or state shape [4, 4]"),
        ((2, 4), 16, "of 2 bytes each (float16, bfloat16 or int16): convert them to float32; or state shape [1, 4]"),
        ((2, 4), 8, "the elements may be of 1 bytes each"),
        ((1, 4), 48, "state shape [3, 4], which these bytes fill"),
        ((0, 4), 16, "state shape [1, 4], which these bytes fill"),
        ((2, 4), 20, "they are 5 elements and the shape has 8"),
        ((2, 4), 31, "they end within an element of 4 bytes: send the whole array, in numpy array.tobytes()"),
        ((), 8, "of 8 bytes each"),
        ((0,), 4, "state shape [1]"),
    ],
)
def test_a_wrong_number_of_bytes_is_told_what_it_may_be(shape: tuple[int, ...], got_bytes: int, said: str) -> None:
    assert said in size_fix(shape, np.dtype(np.float32), got_bytes)


sizes = st.integers(0, 5)
shapes = st.lists(sizes, max_size=5).map(tuple)


@given(shapes, st.lists(st.one_of(st.just(-1), sizes), max_size=5).map(tuple))
def test_what_is_named_fits_and_what_keeps_the_bytes_keeps_their_number(
    got: tuple[int, ...], wanted: tuple[int, ...]
) -> None:
    fix = shape_fix(got, wanted)
    named = re.search(r"\[([\d, ]*)\]", fix.text)
    if named is None:
        assert fix.effort == 6
        return
    target = tuple(int(dim) for dim in named.group(1).split(",") if dim)
    assert len(target) == len(wanted)
    assert all(want in (-1, has) for has, want in zip(target, wanted, strict=True))
    if fix.effort <= 2 or fix.text.startswith("reshape"):
        assert math.prod(target) == math.prod(got)


@given(shapes, st.integers(0, 200), st.sampled_from(["bool", "float16", "float32", "int64"]))
def test_any_number_of_bytes_is_told_something(shape: tuple[int, ...], got_bytes: int, dtype: str) -> None:
    assert size_fix(shape, np.dtype(dtype), got_bytes)
