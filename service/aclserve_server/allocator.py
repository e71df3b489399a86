"""The C allocator's thresholds, and the interpreter's collector and switch interval: set once, when models are loaded.

glibc maps every block of 128 KiB or more anew and gives it back when it is freed, so that each multi-megabyte message
pays for its page faults: about half of the CPU time of a 6 MB request. With higher thresholds such blocks are kept
and reused. The price is resident memory: up to the trim threshold may stay with the process after a burst.

Not before the models are loaded: ONNX Runtime's weights and activations ran several percent slower from the heap
(ResNet-50 on the emulated device, side by side: 1.08 against 1.01 times the library alone).
"""

from __future__ import annotations

import ctypes
import gc
import sys

_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3

MMAP_THRESHOLDS_BYTES = (1 << 30, 32 << 20)
"""Blocks below this size come from the heap: the first value that this glibc takes (older ones take 32 MiB at most)."""

TRIM_THRESHOLD_BYTES = 256 << 20
"""So much free memory at the heap's end is kept."""


COLLECT_AFTER = 20_000
"""New containers, freed ones deducted, after which Python looks for cycles (700 by itself)."""


def calm_collector() -> None:
    """Keeps Python's collector away from what lives as long as the server, and from each batch's short-lived objects.

    Items, tickets and results hold no cycles, so nothing waits for it; small tensors were about 5 % dearer without.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(COLLECT_AFTER, 20, 20)


SWITCH_INTERVAL_S = 0.0005
"""How long a thread keeps the interpreter when others want it (5 ms by itself): a device thread that comes back from a
long call has the next batch to start, and the event loop seldom lets go by itself."""


def share_interpreter() -> None:
    """Lets device threads in sooner while the event loop is busy."""
    sys.setswitchinterval(SWITCH_INTERVAL_S)


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
