"""Where the numbers come from: the engine's models, the device's resources, and samples of the device."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from functools import partial

from aclserve_server.device.buffers import Buffer
from aclserve_server.device.device import Device
from aclserve_server.engine.devices import DeviceDirectory
from aclserve_server.engine.engine import Engine, State
from aclserve_server.engine.runner import Runner
from aclserve_server.metrics.service import Handles, Served, ServerMetrics

logger = logging.getLogger(__name__)

SAMPLE_INTERVAL_S = 5.0
"""How often the device is asked for its memory and its use: both are calls into AscendCL."""

_KINDS = ("model", "buffer", "event", "stream")


def served(engine: Engine) -> Iterator[Served]:
    """The model versions that serve now. On the event loop."""
    for record in engine.records():
        if record.runner is not None and record.state is State.READY:
            yield Served(record.name, record.version, partial(_queue_rows, record.runner), record.statistics)


def handles(device: Device) -> Handles:
    """What is held of AscendCL; any thread may ask."""
    owned = {kind: device.children.of(kind) for kind in _KINDS}
    sizes = {"device": 0, "host": 0}
    for buffer in owned["buffer"]:
        if isinstance(buffer, Buffer) and not buffer.closed:
            sizes[buffer.space] += buffer.size_bytes
    return Handles({kind: len(alive) for kind, alive in owned.items()}, sizes)


async def sample_device(metrics: ServerMetrics, devices: DeviceDirectory) -> None:
    """Samples the device until it is cancelled, on the thread for calls that block: a long load delays a sample.

    While the device cannot tell, nothing is shown; the first failure in a row is logged.
    """
    failing = False
    while True:
        try:
            (device,) = await devices.list_devices()
        except Exception as error:
            metrics.sample_device(None)
            if not failing:
                logger.warning("the device does not tell its memory: %s", error)
            failing = True
        else:
            metrics.sample_device(device)
            failing = False
        await asyncio.sleep(SAMPLE_INTERVAL_S)


def _queue_rows(runner: Runner) -> int:
    return runner.queue_rows
