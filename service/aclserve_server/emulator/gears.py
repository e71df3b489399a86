"""Gears: the fixed shapes a dynamic model is compiled for, as `atc` bakes them into a model file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from aclserve_server.acl.types import ACL_MAX_BATCH_NUM
from aclserve_server.emulator.tensors import volume

BATCH_KEY = "ascend.dynamic_batch_size"
IMAGE_KEY = "ascend.dynamic_image_size"
DIMS_KEY = "ascend.dynamic_dims"
ROWS_KEY = "aclserve.max_batch_size"
_DEFAULT_BATCHES = (*range(1, 16), *range(16, 33, 2))
"""Gears of a model whose batch axis is symbolic: so many that at most one row in seventeen is padding."""

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One input or output of a model file. A dim is None where the file has a symbol, named in `symbols`."""

    name: str
    element_type: int
    data_type: int
    item_bytes: int
    dims: tuple[int | None, ...]
    symbols: tuple[str, ...] = ()
    unknown_rank: bool = False

    @property
    def static(self) -> bool:
        """Whether every dim is a number."""
        return not self.unknown_rank and None not in self.dims

    @property
    def shape(self) -> Shape:
        """The dims as AscendCL shows them: -1 for an unknown one, a single -2 for an unknown rank."""
        return (-2,) if self.unknown_rank else tuple(-1 if size is None else size for size in self.dims)


@dataclass(frozen=True, slots=True)
class Gear:
    """One compiled shape. `values` selects it: (batch,), (height, width), or the dims of all inputs in a row."""

    values: tuple[int, ...]
    input_shapes: tuple[Shape, ...]
    output_shapes: tuple[Shape, ...]


@dataclass(frozen=True, slots=True)
class GearSet:
    """All gears of a model, in ascending order of their size. Kind is batch, height_width or dims."""

    kind: str
    gears: tuple[Gear, ...]
    by_values: Mapping[tuple[int, ...], Gear]

    @property
    def value_count(self) -> int:
        """How many numbers the gear input holds."""
        return len(self.gears[0].values)


Trial = Callable[[Sequence[Shape]], tuple[Shape, ...]]


class GearError(Exception):
    """The gears asked for do not fit the model; the message says why."""


def bake(
    model: bytes,
    *,
    dynamic_batch_size: Sequence[int] = (),
    dynamic_image_size: Sequence[tuple[int, int]] = (),
    dynamic_dims: Sequence[Sequence[int]] = (),
    max_batch_size: int = 0,
) -> bytes:
    """A model file with gears in its metadata: what `atc` does with the options of the same names. One kind at a time.

    `max_batch_size` is the largest of the gears that a model with a symbolic batch gets by itself.
    The entries are appended to the file; later entries of a protobuf message win, so baking twice takes the last.
    """
    kinds = {
        BATCH_KEY: ",".join(str(size) for size in dynamic_batch_size),
        IMAGE_KEY: ";".join(f"{height},{width}" for height, width in dynamic_image_size),
        DIMS_KEY: ";".join(",".join(str(size) for size in dims) for dims in dynamic_dims),
        ROWS_KEY: str(max_batch_size) if max_batch_size else "",
    }
    if sum(1 for text in kinds.values() if text) > 1:
        raise ValueError("a model has gears of one kind: batch sizes, image sizes or dims")
    tail = b"".join(_metadata_entry(key, text) for key, text in kinds.items() if text)
    return model + tail


def compile_gears(
    inputs: Sequence[TensorInfo], outputs: Sequence[TensorInfo], metadata: Mapping[str, str], budget: int, trial: Trial
) -> GearSet | None:
    """The gears of a model; None when it is static or of unknown shape.

    `trial` runs the model on zeros of the given input shapes and gives its output shapes. A batch gear's output
    shapes follow from the file; a trial settles those of the other kinds, and whether an output's symbol is the batch.
    """
    for key, kind in ((IMAGE_KEY, _image_gears), (DIMS_KEY, _dims_gears), (BATCH_KEY, _baked_batches)):
        if metadata.get(key):
            return _ordered(kind(inputs, _numbers(key, metadata[key]), trial))
    tensors = [*inputs, *outputs]
    if not inputs or not all(_symbolic_batch(tensor) for tensor in tensors):
        return None
    sizes = [size for size in _batches(metadata) if _slot_bytes(tensors, size) <= budget] or [1]
    gears = [Gear((size,), tuple(_at(t, size) for t in inputs), tuple(_at(t, size) for t in outputs)) for size in sizes]
    batch_symbols = {tensor.symbols[0] for tensor in inputs}
    named = len(batch_symbols) == 1 and "" not in batch_symbols
    if not (named and all(tensor.symbols[0] in batch_symbols for tensor in outputs)) and not _confirmed(gears, trial):
        return None
    return _ordered(("batch", gears))


def default_batches(max_rows: int = 0) -> list[int]:
    """The gears of a model whose batch axis is symbolic, up to `max_rows` where stated: above 32 eight a doubling."""
    if not max_rows:
        return list(_DEFAULT_BATCHES)
    sizes, step = set(_DEFAULT_BATCHES), 4
    while max(sizes) < max_rows and len(sizes) < ACL_MAX_BATCH_NUM - 8:
        top = max(sizes)
        sizes.update(range(top, 2 * top + 1, step))
        step *= 2
    return sorted({size for size in sizes if size < max_rows} | {min(max_rows, max(sizes))})


def _batches(metadata: Mapping[str, str]) -> list[int]:
    text = metadata.get(ROWS_KEY, "")
    return default_batches(int(text) if text.isdecimal() else 0)


def _confirmed(gears: Sequence[Gear], trial: Trial) -> bool:
    try:
        return all(trial(gear.input_shapes) == gear.output_shapes for gear in gears[:2])
    except Exception:  # the file's own operators refuse these shapes: not a batch axis
        return False


def _ordered(made: tuple[str, list[Gear]]) -> GearSet:
    kind, gears = made
    if not 1 <= len(gears) <= ACL_MAX_BATCH_NUM:
        raise GearError(f"{len(gears)} gears, a model has 1 to {ACL_MAX_BATCH_NUM}")
    by_values = {gear.values: gear for gear in gears}
    if len(by_values) != len(gears):
        raise GearError("a gear is listed twice")
    gears = sorted(gears, key=lambda gear: (sum(volume(shape) for shape in gear.input_shapes), gear.values))
    return GearSet(kind, tuple(gears), by_values)


def _baked_batches(inputs: Sequence[TensorInfo], rows: list[list[int]], trial: Trial) -> tuple[str, list[Gear]]:
    if len(rows) != 1:
        raise GearError("batch sizes are one list of numbers")
    if any(None in tensor.dims[1:] for tensor in inputs) or not any(None in tensor.dims for tensor in inputs):
        raise GearError("batch sizes need inputs whose first dim, and no other, is symbolic")
    gears = []
    for size in sorted(rows[0]):
        shapes = tuple(_at(tensor, size) for tensor in inputs)
        gears.append(Gear((size,), shapes, trial(shapes)))
    return "batch", gears


def _image_gears(inputs: Sequence[TensorInfo], rows: list[list[int]], trial: Trial) -> tuple[str, list[Gear]]:
    images = [t for t in inputs if len(t.dims) == 4 and t.dims[2] is None and t.dims[3] is None]
    if not images or any(None in tensor.dims[1:] for tensor in inputs if tensor not in images):
        raise GearError("image sizes need an input NCHW with symbolic height and width, and nothing else symbolic")
    gears = []
    for row in rows:
        if len(row) != 2:
            raise GearError("an image size is a height and a width")
        shapes = tuple((*_at(t, 1)[:2], *row) if t in images else _at(t, 1) for t in inputs)
        if any(size < 0 for shape in shapes for size in shape):
            raise GearError("image sizes need an input NCHW with symbolic height and width, and nothing else symbolic")
        gears.append(Gear(tuple(row), shapes, trial(shapes)))
    return "height_width", gears


def _dims_gears(inputs: Sequence[TensorInfo], rows: list[list[int]], trial: Trial) -> tuple[str, list[Gear]]:
    unknown = sum(tensor.dims.count(None) for tensor in inputs)
    gears = []
    all_dims = [size for tensor in inputs for size in tensor.dims]
    for row in rows:
        if len(row) == len(all_dims):
            if any(known not in (None, size) for known, size in zip(all_dims, row, strict=True)):
                raise GearError(f"the row of dims {row} changes a fixed dim of {all_dims}")
            row = [size for known, size in zip(all_dims, row, strict=True) if known is None]
        if len(row) != unknown:
            raise GearError(f"a row of dims has {len(row)} numbers, the inputs have {unknown} symbolic dims")
        values = iter(row)
        shapes = tuple(tuple(next(values) if size is None else size for size in t.dims) for t in inputs)
        gears.append(Gear(tuple(size for shape in shapes for size in shape), shapes, trial(shapes)))
    return "dims", gears


def _symbolic_batch(tensor: TensorInfo) -> bool:
    return not tensor.unknown_rank and bool(tensor.dims) and tensor.dims[0] is None and None not in tensor.dims[1:]


def _at(tensor: TensorInfo, batch: int) -> Shape:
    return tuple((batch if axis == 0 else -1) if size is None else size for axis, size in enumerate(tensor.dims))


def _slot_bytes(tensors: Sequence[TensorInfo], batch: int) -> int:
    return sum(volume(_at(tensor, batch)) * tensor.item_bytes for tensor in tensors)


def _numbers(key: str, text: str) -> list[list[int]]:
    try:
        rows = [[int(part) for part in row.split(",")] for row in text.split(";")]
    except ValueError:
        raise GearError(f"{key} is {text!r}, expected numbers") from None
    if any(size < 1 for row in rows for size in row):
        raise GearError(f"{key} is {text!r}, expected positive numbers")
    return rows


def _metadata_entry(key: str, value: str) -> bytes:
    entry = b"".join(_field(number, text.encode()) for number, text in ((1, key), (2, value)))
    return _field(14, entry)


def _field(number: int, payload: bytes) -> bytes:
    return bytes([number << 3 | 2]) + _varint(len(payload)) + payload


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
