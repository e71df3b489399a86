"""The smallest change that makes a refused tensor fit, in words for who sees the model for the first time. Pure.

A wanted shape is a tuple of sizes; -1 stands for any size, as axis 0 does where it counts rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

Shape = tuple[int, ...]

_ORDERS = {(0, 3, 1, 2): ("NHWC", "NCHW"), (0, 2, 3, 1): ("NCHW", "NHWC")}
"""How to transpose an image batch -> the order it has, the order it gets."""

_CHANNELS = {
    (4, 3): "leave the alpha channel out",
    (3, 4): "add an alpha channel",
    (1, 3): "repeat the grey channel three times",
    (3, 1): "convert the colours to grey",
    (4, 1): "convert the colours to grey",
}
"""(channels given, channels wanted) -> how one becomes the other."""

_MOST_CHANNELS = 4
_WIDTHS = {1: "uint8, int8 or bool", 2: "float16, bfloat16 or int16", 4: "float32 or int32", 8: "float64 or int64"}


class Fix(NamedTuple):
    """What to do to a tensor. A lower `effort` changes less of the data."""

    effort: int
    text: str


def shape_fix(got: Shape, wanted: Shape, layout: str = "ND") -> Fix:
    """What makes a tensor of shape `got` fit `wanted`, which it does not. `layout` is "NCHW", "NHWC" or no help."""
    if any(dim < 0 for dim in got):
        return Fix(0, "a size is 0 or more: state those of the data")
    return (
        _ones(got, wanted)
        or _transposed(got, wanted, layout)
        or _split(got, wanted)
        or _reshaped(got, wanted)
        or _resized(got, wanted, layout)
    )


def nearest(got: Shape, shapes: Iterable[Shape], layout: str = "ND") -> tuple[Shape, Fix]:
    """Of several wanted shapes, the one that takes the least, and what to do; one that loses no data goes before."""

    def trouble(shape: Shape) -> tuple[int, bool, int, Shape]:
        effort = shape_fix(got, shape, layout).effort
        if len(shape) != len(got):
            return effort, False, 0, shape
        pairs = list(zip(got, shape, strict=True))
        return effort, any(has > want for has, want in pairs), sum(abs(has - want) for has, want in pairs), shape

    best = min(shapes, key=trouble)
    return best, shape_fix(got, best, layout)


def dtype_fix(got: np.dtype[Any], wanted: np.dtype[Any]) -> str:
    """How elements of type `got` become `wanted`."""
    module = "ml_dtypes" if str(wanted) == "bfloat16" else "np"
    name = "bool_" if wanted.kind == "b" else wanted
    convert = f"convert it to {wanted}, in numpy with array.astype({module}.{name})"
    if got.kind == "f" and wanted.kind in "iu":
        return f"round its values to whole numbers and {convert}"
    if got.kind in "iu" and wanted.kind in "iu":
        return f"{convert}; its values must fit"
    if got == np.uint8 and wanted.kind not in "iub":
        return f"{convert}, and scale the values as the model was trained"
    return convert


def size_fix(shape: Shape, dtype: np.dtype[Any], got_bytes: int) -> str:
    """What to do about a number of bytes that is not that of the shape."""
    count, row_bytes = math.prod(shape), math.prod(shape[1:]) * dtype.itemsize
    if got_bytes == 0:
        return f"no bytes came with it: send its {count} elements, or the shape of an empty tensor"
    ways = []
    if count and got_bytes % count == 0 and got_bytes // count in _WIDTHS:
        width = got_bytes // count
        ways.append(f"the elements may be of {width} bytes each ({_WIDTHS[width]}): convert them to {dtype}")
    if shape and row_bytes and got_bytes % row_bytes == 0:
        ways.append(f"or state shape {_text((got_bytes // row_bytes, *shape[1:]))}, which these bytes fill")
    if ways:
        return "; ".join(ways).removeprefix("or ")
    elements, rest = divmod(got_bytes, dtype.itemsize)
    if rest:
        return f"they end within an element of {dtype.itemsize} bytes: send the whole array, in numpy array.tobytes()"
    return f"they are {elements} elements and the shape has {count}: send all of them, or state the shape they have"


def _fits(got: Shape, wanted: Shape) -> bool:
    return len(got) == len(wanted) and all(want in (-1, has) for has, want in zip(got, wanted, strict=True))


def _ones(got: Shape, wanted: Shape) -> Fix | None:
    """Axes of 1 too many or too few: the same bytes under another shape."""
    if wanted and wanted[0] in (-1, 1) and _fits(got, wanted[1:]):
        return Fix(1, f"add a leading batch axis: send {_text((1, *got))}")
    if got and got[0] == 1 and _fits(got[1:], wanted):
        return Fix(1, f"leave the leading axis out: send {_text(got[1:])}")
    rest = [dim for dim in got if dim != 1]
    free = len(rest) - sum(want not in (-1, 1) for want in wanted)
    target = []
    for want in wanted:
        if want == 1 or (want == -1 and free < 1):
            target.append(1)
        elif rest and want in (-1, rest[0]):
            target.append(rest.pop(0))
            free -= want == -1
        else:
            return None
    return None if rest else Fix(1, f"reshape it, the bytes stay as they are: send {_text(target)}")


def _transposed(got: Shape, wanted: Shape, layout: str) -> Fix | None:
    """The same axes in another order, maybe without the one of the batch."""
    if len(got) + 1 == len(wanted) and wanted[0] in (-1, 1):
        whole = _transposed((1, *got), wanted, layout)
        return whole and Fix(whole.effort, f"add a leading batch axis; {whole.text}")
    order = _order(got, wanted)
    if order is None:
        return None
    target = tuple(got[axis] for axis in order)
    said = "the axes are in another order"
    if order in _ORDERS:
        has, gets = _ORDERS[order]
        if layout == gets or target[gets.index("C")] <= _MOST_CHANNELS:
            said += f", {has} was given and {gets} is expected"
    return Fix(2, f"{said}: transpose them with {order} and send {_text(target)}")


def _order(got: Shape, wanted: Shape) -> tuple[int, ...] | None:
    """Which axis of `got` goes to each place of `wanted`, those of an image batch before others; None if none fit."""
    if len(got) != len(wanted):
        return None
    for order in _ORDERS:
        if len(got) == len(order) and _fits(tuple(got[axis] for axis in order), wanted):
            return order
    left = [axis for axis in range(len(got)) if wanted[axis] != -1]
    chosen: list[int] = []
    for place, want in enumerate(wanted):
        axis = place if want == -1 else next((axis for axis in left if got[axis] == want), None)
        if axis is None:
            return None
        chosen.append(axis)
        if want != -1:
            left.remove(axis)
    return tuple(chosen)


def _split(got: Shape, wanted: Shape) -> Fix | None:
    """Too many or too few along axis 0, all else as wanted."""
    if got and -1 not in wanted[:1] and _fits(got[1:], wanted):
        return Fix(3, f"the model takes one at a time: send {got[0]} items of {_text(got[1:])}")
    if not wanted or wanted[0] < 1:
        return None
    count, rest = wanted[0], wanted[1:]
    if _fits(got, rest):
        return Fix(3, f"the model takes {count} at a time: stack {count} of them and send {_text((count, *got))}")
    if len(got) < 2 or not _fits(got[1:], rest):
        return None
    if got[0] > count:
        change = f"send it in {-(-got[0] // count)} items of {_text((count, *got[1:]))}"
        if got[0] % count:
            change += ", the last one padded"
    else:
        change = f"pad axis 0 with zeros, send {_text((count, *got[1:]))} and use only {got[0]} of what comes back"
    return Fix(4, f"the model takes {count} at a time: {change}")


def _reshaped(got: Shape, wanted: Shape) -> Fix | None:
    """As many elements under another shape."""
    elements, known, free = math.prod(got), math.prod(dim for dim in wanted if dim != -1), wanted.count(-1)
    if not elements or not known or free > 1 or elements % known or (free and len(got) == len(wanted)):
        return None
    if not free and elements != known:
        return None
    return Fix(3, f"reshape it: send {_text([elements // known if dim == -1 else dim for dim in wanted])}")


def _resized(got: Shape, wanted: Shape, layout: str) -> Fix:
    """Other sizes: the data itself must change."""
    if len(got) != len(wanted):
        axes = "1 axis" if len(wanted) == 1 else f"{len(wanted)} axes"
        return Fix(6, f"send {axes} of the model's sizes, not {len(got)}")
    wrong = [axis for axis, (has, want) in enumerate(zip(got, wanted, strict=True)) if want not in (-1, has)]
    target = _text([has if want == -1 else want for has, want in zip(got, wanted, strict=True)])
    if len(wrong) == 1:
        axis = wrong[0]
        change = (got[axis], wanted[axis])
        if len(got) == 4 and axis == (3 if layout == "NHWC" else 1) and change in _CHANNELS:
            return Fix(5, f"{_CHANNELS[change]}: send {target}")
        said = f"axis {axis} is {change[0]} and must be {change[1]}"
    else:
        said = f"axes {_list(wrong)} are {_list(got[axis] for axis in wrong)}"
        said += f" and must be {_list(wanted[axis] for axis in wrong)}"
    return Fix(5, f"{said}: resize, crop or pad the data and send {target}")


def _list(values: Iterable[int]) -> str:
    *first, last = map(str, values)
    return f"{', '.join(first)} and {last}"


def _text(shape: Sequence[int]) -> str:
    return str(list(shape))
