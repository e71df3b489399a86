"""Inputs that the server makes by itself: zeros, and seeded random values. Kept, because load tests repeat them."""

from __future__ import annotations

from typing import Any

import numpy as np

from aclserve.errors import InvalidArgument
from aclserve_server.engine.items import Fill

MAX_BYTES = 64 << 20
_KEPT = 8


class Fills:
    """The made inputs of one model, the last few of them kept."""

    def __init__(self) -> None:
        self._made: dict[tuple[int, int, str], memoryview] = {}

    def get(self, fill: Fill, dtype: np.dtype[Any], size_bytes: int) -> memoryview:
        """The bytes; equal fills give the same ones. `InvalidArgument`, reason FILL_TOO_LARGE, beyond 64 MiB."""
        if size_bytes > MAX_BYTES:
            raise InvalidArgument(
                f"the server was asked to make an input of {size_bytes} bytes; the most is {MAX_BYTES}",
                reason="FILL_TOO_LARGE",
                metadata={"got_bytes": size_bytes, "max_bytes": MAX_BYTES},
            )
        key = (fill.seed if fill.random else -1, size_bytes, dtype.str if fill.random else "")
        made = self._made.get(key)
        if made is None:
            if len(self._made) >= _KEPT:
                self._made.clear()
            content = random_bytes(dtype, size_bytes, fill.seed) if fill.random else bytes(size_bytes)
            made = self._made[key] = memoryview(content)
        return made


def random_bytes(dtype: np.dtype[Any], size_bytes: int, seed: int) -> bytes:
    """Seeded random elements: floats in [0, 1), integers in [0, 100), booleans."""
    generator = np.random.default_rng(seed)
    count = size_bytes // dtype.itemsize
    if dtype.kind == "b":
        return generator.integers(0, 2, count).astype(dtype).tobytes()
    if dtype.kind in "iu":
        return generator.integers(0, 100, count).astype(dtype).tobytes()
    return generator.random(count, np.float32).astype(dtype).tobytes()
