"""What a configuration says of a model's tensors, held against the model itself.

Names, types and sizes that contradict each other are an error that says both sides. A `reshape` changes what clients
see: the same bytes under another shape.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from aclserve.errors import FailedPrecondition
from aclserve_server.device.description import Gear, ModelDescription, TensorInfo
from aclserve_server.engine.model_config import ModelConfig, TensorConfig

Shape = tuple[int, ...]


def check_tensors(description: ModelDescription, config: ModelConfig) -> None:
    """Raises `FailedPrecondition`, reason MODEL_CONFIG_INVALID, where configuration and model contradict each other."""
    for kind, stated, infos in (
        ("input", config.inputs, description.inputs),
        ("output", config.outputs, description.outputs),
    ):
        known = {info.name: index for index, info in enumerate(infos)}
        for tensor in stated:
            if tensor.name not in known:
                names = ", ".join(repr(name) for name in known)
                raise _contradiction(f"names the {kind} {tensor.name!r}; the model's {kind}s are {names}")
            index = known[tensor.name]
            gears = [
                (gear.input_shapes if kind == "input" else gear.output_shapes)[index] for gear in description.gears
            ]
            _check(kind, tensor, infos[index], gears, config.max_batch_size)


def reshaped(description: ModelDescription, config: ModelConfig) -> ModelDescription:
    """The description as clients see it, where the configuration gives tensors another shape; checked before."""
    inputs = _client_shapes(config.inputs)
    outputs = _client_shapes(config.outputs)
    if not inputs and not outputs:
        return description
    batch = 1 if config.max_batch_size else 0
    for info in description.outputs:
        if info.name in outputs and info.channel_block:
            raise _contradiction(f"has a reshape of {info.name!r}; that output lies in a private layout on the device")

    def shapes(infos: Sequence[TensorInfo], before: tuple[Shape, ...], wanted: dict[str, Shape]) -> tuple[Shape, ...]:
        return tuple(
            (*shape[:batch], *wanted[info.name]) if info.name in wanted else shape
            for info, shape in zip(infos, before, strict=True)
        )

    def renewed(infos: tuple[TensorInfo, ...], wanted: dict[str, Shape]) -> tuple[TensorInfo, ...]:
        new = shapes(infos, tuple(info.shape for info in infos), wanted)
        return tuple(replace(info, shape=shape) for info, shape in zip(infos, new, strict=True))

    gears = tuple(
        Gear(
            gear.kind,
            gear.values,
            shapes(description.inputs, gear.input_shapes, inputs),
            shapes(description.outputs, gear.output_shapes, outputs),
        )
        for gear in description.gears
    )
    return replace(
        description,
        inputs=renewed(description.inputs, inputs),
        outputs=renewed(description.outputs, outputs),
        gears=gears,
    )


def _client_shapes(tensors: Sequence[TensorConfig]) -> dict[str, Shape]:
    return {tensor.name: tensor.dims or () for tensor in tensors if tensor.reshape is not None}


def _check(kind: str, stated: TensorConfig, info: TensorInfo, gears: list[Shape], rows: int | None) -> None:
    what = f"{kind} {stated.name!r}"
    if stated.dtype is not None and stated.dtype != info.dtype:
        raise _contradiction(f"says {what} has type {stated.dtype}; the model has {info.dtype}")
    dims = stated.dims if stated.reshape is None else stated.reshape
    if dims is None:
        return
    shape = whole = _chosen(info.shape, gears)
    if rows or (rows is None and len(dims) == len(shape) - 1):
        if len(dims) != len(shape) - 1:
            raise _contradiction(
                f"says {what} has dims {_shown(dims)} beside the batch axis; the model has the shape {_shown(shape)}"
            )
        shape, gears = shape[1:], [gear[1:] for gear in gears]
    fits = len(dims) == len(shape) and all(
        _may_be(want, have, {gear[axis] for gear in gears})
        for axis, (want, have) in enumerate(zip(dims, shape, strict=True))
    )
    if not fits:
        beside = " beside the batch axis" if len(shape) < len(whole) else ""
        raise _contradiction(f"says {what} has dims {_shown(dims)}{beside}; the model has the shape {_shown(whole)}")


def _chosen(shape: Shape, gears: list[Shape]) -> Shape:
    """A tensor's shape with -1 where its gears differ: an output's own shape is that of the largest."""
    sizes = [{gear[axis] for gear in gears} for axis in range(len(shape))]
    return tuple(-1 if len(found) > 1 else size for size, found in zip(shape, sizes, strict=True))


def _may_be(want: int, have: int, compiled: set[int]) -> bool:
    """Whether the configuration's size of an axis goes with the model's; -1 is any on either side."""
    if have >= 0:
        return want == have
    return want == -1 or not compiled or want in compiled


def _shown(shape: Sequence[int]) -> str:
    return "[" + ", ".join("any" if size < 0 else str(size) for size in shape) + "]"


def _contradiction(words: str) -> FailedPrecondition:
    return FailedPrecondition(f"the configuration {words}; make the two agree", reason="MODEL_CONFIG_INVALID")
