"""Whether a model's rows depend on each other: asked once, when it is loaded.

Batching rows of different clients is right only where a row's answer does not change with its company. Seeded rows
are run together, then each alone beside other padding; the answers must agree within rounding.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from aclserve_server.acl.errors import AclError
from aclserve_server.device.device import Device
from aclserve_server.device.model import Model
from aclserve_server.engine.contract import RowContract
from aclserve_server.engine.slots import Slot

_ROWS = 3
_SEED = 20


def mixes_rows(device: Device, model: Model, contract: RowContract, slot: Slot) -> str:
    """Why rows may not share an execution, or "" where they may. Runs on an ACL thread, before the slot is in use."""
    count = min(_ROWS, contract.max_rows)
    if contract.max_rows == 1:
        return ""
    generator = np.random.default_rng(_SEED)
    rows = [_random(generator, (count, *shape), info.dtype) for shape, info in zip(
        contract.row_shapes, contract.inputs, strict=True)]  # fmt: skip
    try:
        together = _run(device, model, contract, slot, rows, np.random.default_rng(_SEED + 1))
        for row in range(count):
            alone = _run(device, model, contract, slot, [part[row : row + 1] for part in rows], generator)
            for index, (one, all_of_them) in enumerate(zip(alone, together, strict=True)):
                if not _agree(one[0], all_of_them[row]):
                    name = contract.outputs[index].name
                    return f"output {name!r} of a row changes with the rows beside it"
    except AclError as error:
        return f"the check of the rows' independence failed with {error.name}"
    finally:
        for port in slot.inputs:
            port.view[:] = bytes(len(port.view))
    return ""


def _random(generator: np.random.Generator, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    if dtype.kind == "b":
        return generator.integers(0, 2, shape).astype(dtype)
    if dtype.kind in "iu":
        return generator.integers(0, 8, shape).astype(dtype)
    return generator.standard_normal(shape, np.float32).astype(dtype)


def _run(
    device: Device,
    model: Model,
    contract: RowContract,
    slot: Slot,
    parts: list[NDArray[Any]],
    padding: np.random.Generator,
) -> list[NDArray[Any]]:
    """Runs rows in the smallest gear that holds them, padded with random ones; returns the rows' outputs."""
    rows = len(parts[0])
    gear_rows, gear = contract.gear_for(rows)
    for port, part, shape in zip(slot.inputs, parts, contract.row_shapes, strict=True):
        filler = _random(padding, (gear_rows - rows, *shape), part.dtype)
        content = np.concatenate([part, filler]).tobytes()
        port.view[: len(content)] = content
        if port.staging is not None and content:
            device.copy(port.device, 0, port.staging, 0, len(content))
    model.set_gear(slot.input_set, gear)
    model.execute(slot.input_set, slot.output_set)
    outputs = []
    for port, shape, row_bytes in zip(slot.outputs, contract.output_row_shapes, contract.output_row_bytes, strict=True):
        used = rows * row_bytes
        if port.staging is not None and used:
            device.copy(port.staging, 0, port.device, 0, used)
        outputs.append(np.frombuffer(bytes(port.view[:used]), port.info.dtype).reshape(rows, *shape))
    return outputs


def _agree(one: NDArray[Any], other: NDArray[Any]) -> bool:
    if one.dtype.kind in "biu":
        return bool(np.array_equal(one, other))
    short = one.dtype.itemsize < 4
    left, right = one.astype(np.float64), other.astype(np.float64)
    scale = float(np.max(np.abs(right), initial=0.0, where=np.isfinite(right)))
    relative = 2e-2 if short else 1e-3
    return bool(np.allclose(left, right, rtol=relative, atol=relative * scale * 0.1, equal_nan=True))
