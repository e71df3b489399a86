"""Whether a model fits the device's memory, and whether it gave back what it took. Runs on the blocking thread.

All memory of this process is allocated and freed on that thread, so what is free before and after a call there tells
what the call took; other processes on the device can blur it.
"""

from __future__ import annotations

from aclserve.errors import ResourceExhausted, Unimplemented
from aclserve_server.acl.types import aclrtMemAttr
from aclserve_server.device.device import Device

_KINDS = (aclrtMemAttr.ACL_HBM_MEM, aclrtMemAttr.ACL_DDR_MEM)

TOLERANCE_BYTES = 64 << 10
"""So much may be missing after an unload without being called a leak."""


def free_bytes(device: Device) -> int | None:
    """Free device memory; None where the device cannot tell."""
    for kind in _KINDS:
        try:
            free, total = device.memory_info(kind)
        except Unimplemented:
            continue
        if total:
            return free
    return None


def check_fits(device: Device, work: int, weight: int, slots: int = 0) -> None:
    """Raises `ResourceExhausted`, reason MODEL_DOES_NOT_FIT, where so many bytes are not free; 0 is unknown or none."""
    free = free_bytes(device)
    needed = work + weight + slots
    if free is None or needed <= free:
        return
    parts = {"working memory": work, "weights": weight, "tensors of its slots": slots}
    told = ", ".join(f"{size} for {what}" for what, size in parts.items() if size)
    raise ResourceExhausted(
        f"the model does not fit: it needs {needed} bytes of device memory ({told}), {free} are free; unload another "
        "model, or give this one fewer instances, fewer slots or smaller gears",
        reason="MODEL_DOES_NOT_FIT",
        metadata={
            "needed_bytes": needed,
            "free_bytes": free,
            "work_bytes": work,
            "weight_bytes": weight,
            "slot_bytes": slots,
        },
    )


def missing_bytes(taken: int, known: int, freed: int) -> int:
    """What an unload did not give back; 0 where that is little.

    `taken` was measured when the model was loaded, `known` is the sum of what it is known to hold: the smaller one is
    expected, since a first load also fills pools that stay.
    """
    missing = min(taken, known) - freed
    return missing if missing > TOLERANCE_BYTES else 0
