"""The C allocator's thresholds, set once, when the models of the repository are loaded.

glibc maps every block of 128 KiB or more anew and gives it back when it is freed, so that each multi-megabyte message
pays for its page faults: about half of the CPU time of a 6 MB request. With higher thresholds such blocks are kept
and reused. The price is resident memory: up to the trim threshold may stay with the process after a burst.

Not before the models are loaded: ONNX Runtime's weights and activations ran up to a third slower from the heap
(ResNet-50 on the emulated device, side by side).
"""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3

MMAP_THRESHOLDS_BYTES = (1 << 30, 32 << 20)
"""Blocks below this size come from the heap: the first value that this glibc takes (older ones take 32 MiB at most)."""

TRIM_THRESHOLD_BYTES = 256 << 20
"""So much free memory at the heap's end is kept."""


def tune() -> bool:
    """Sets the thresholds; False where the C library is not glibc and nothing was done."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:
        return False
    mallopt.argtypes = [ctypes.c_int, ctypes.c_int]
    mallopt.restype = ctypes.c_int
    mapped = any(mallopt(_M_MMAP_THRESHOLD, size) for size in MMAP_THRESHOLDS_BYTES)
    return mapped and bool(mallopt(_M_TRIM_THRESHOLD, TRIM_THRESHOLD_BYTES))
