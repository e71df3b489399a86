"""The option --devices: what is written, what it means, and what it does not go together with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

MOST: Final = 64
"""Devices that one supervisor drives at the most."""

LAST_PORT: Final = 0xFFFF

BESIDE: Final = "--device: got {} beside --devices, expected one of the two: leave one out"


def numbers(parts: Sequence[str]) -> tuple[int, ...]:
    """The numbers of a list of numbers and ranges, such as ("0-2", "5"), in order; ValueError for another or one twice.

    No number is above 65535.
    """
    found: list[int] = []
    for part in parts:
        first, dash, last = part.partition("-")
        if not (first.isascii() and first.isdigit()) or (dash and not (last.isascii() and last.isdigit())):
            raise ValueError(part)
        low, high = int(first), int(last or first)
        if not low <= high <= 0xFFFF:
            raise ValueError(part)
        found += range(low, high + 1)
        if len(found) > 0x10000:
            raise ValueError(part)
    if len(set(found)) < len(found):
        raise ValueError(",".join(parts))
    return tuple(sorted(found))


def problems(devices: object, device: object, worker_port: object, others: Sequence[object]) -> Iterator[str]:
    """What is wrong with the options of several devices; `others` are the ports of the server's other options."""
    if not isinstance(devices, tuple) or not isinstance(worker_port, int):
        return
    if not devices:
        if worker_port:
            yield f"--worker-port: got {worker_port}, expected --devices beside it: one process has --port"
        return
    try:
        found = numbers(devices)
    except (ValueError, AttributeError):
        found = ()
    if not 0 < len(found) <= MOST:
        yield (
            f"--devices: got {','.join(map(str, devices))!r}, expected numbers and ranges from 0 to {LAST_PORT}, each "
            f"device once, at most {MOST}: such as 0-7 or 0,2,4-5"
        )
    if device:
        yield BESIDE.format(device)
    ports = {worker_port + number for number in found} if worker_port else set()
    if ports and (max(ports) > LAST_PORT or ports.intersection(others)):
        yield (
            f"--worker-port: got {worker_port}, which gives workers the ports {min(ports)} to {max(ports)}, expected "
            f"ports up to {LAST_PORT} that are not --port's, --metrics-port's or --health-port's"
        )
