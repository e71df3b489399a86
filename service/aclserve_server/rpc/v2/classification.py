"""The classification extension: the best classes of an output instead of its values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from aclserve_server.engine.items import OutputTensor
from aclserve_server.rpc.v2.wire_out import BytesTensor


def classify(output: OutputTensor, k: int, labels: Sequence[str], *, batched: bool) -> BytesTensor:
    """The `k` highest values of each row (of the whole tensor for a model without a batch axis), best first.

    An element is "value:index", or "value:index:label" where the model has a label for it. Among equal values the
    lower index is first. `output` must have its data inline.
    """
    data = memoryview(b"") if output.data is None else output.data
    values = np.frombuffer(data, output.dtype)
    rows = output.shape[0] if batched else 1
    classes = math.prod(output.shape[1:]) if batched else values.size
    best = min(k, classes)
    table = values.reshape(rows, classes)
    texts: list[str] = []
    for row in table:
        order = _descending(row)[:best]
        texts += [_text(row[index], int(index), labels) for index in order]
    shape = (rows, best) if batched else (best,)
    return BytesTensor(output.name, shape, _elements(texts))


def _descending(row: np.ndarray[Any, np.dtype[Any]]) -> np.ndarray[Any, np.dtype[np.intp]]:
    """The places of the values, highest first, NaN last."""
    if row.dtype.kind in "biu":  # a float64 would not tell large ones apart
        return row.size - 1 - np.argsort(row[::-1], kind="stable")[::-1]
    return np.argsort(-row.astype(np.float64), kind="stable")


def _text(value: np.generic, index: int, labels: Sequence[str]) -> str:
    number = f"{int(value)}" if value.dtype.kind in "biu" else f"{float(value):f}"
    label = f":{labels[index]}" if index < len(labels) else ""
    return f"{number}:{index}{label}"


def _elements(texts: Sequence[str]) -> bytes:
    """Texts as the raw form has them: each with its length before it, four bytes, little-endian."""
    raw = [text.encode() for text in texts]
    return b"".join(len(element).to_bytes(4, "little") + element for element in raw)
