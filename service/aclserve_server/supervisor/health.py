"""One health out of all workers'. Pure.

""                 serves while one worker at least serves: the service can be used
`devices`          serves while all workers serve
`device:N`         serves while the worker of device N does
any other name     serves while one worker at least says that it does
"""

from __future__ import annotations

from collections.abc import Mapping

ALL = "devices"
OVERALL = ""

Names = Mapping[str, bool]
"""What a worker says of itself: its names, and whether they serve; "" is the whole worker."""


def name_of(device: int) -> str:
    """The name of one worker."""
    return f"device:{device}"


def serves(names: Names) -> bool:
    """Whether a worker serves."""
    return names.get(OVERALL, False)


def combine(workers: Mapping[int, Names]) -> dict[str, bool]:
    """What all say together; of a worker that does not serve nothing does, though its names stay known."""
    told = {name: False for names in workers.values() for name in names}
    for names in workers.values():
        if serves(names):
            told |= {name: True for name, serving in names.items() if serving}
    up = {name_of(device): serves(names) for device, names in workers.items()}
    return {**told, **up, ALL: bool(up) and all(up.values()), OVERALL: any(up.values())}


def down(names: Names) -> dict[str, bool]:
    """What is left of a worker whose process is gone: its names."""
    return dict.fromkeys(names, False)
