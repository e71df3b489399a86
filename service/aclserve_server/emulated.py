"""The emulated device as the options want it: what it is like, and how models are compiled for it."""

from __future__ import annotations

from collections.abc import Callable

from aclserve_server.config import Config
from aclserve_server.emulator import EmulatorConfig, bake, default_batches
from aclserve_server.engine.model_config import ModelConfig


def emulator_config(config: Config) -> EmulatorConfig:
    """The emulated machine; it has as many devices as --device needs."""
    return EmulatorConfig(
        run_mode=config.emulator_run_mode,
        memory_bytes=config.emulator_memory_bytes,
        intra_op_threads=config.emulator_threads,
        profile=config.emulator_profile,
        slot_budget_bytes=config.slot_budget_bytes,
        device_count=config.device + 1,
    )


def bake_gears(read: Callable[[], bytes], config: ModelConfig) -> bytes | None:
    """Compiles a configuration's gears into a model for the emulated device, as `atc` does for an NPU."""
    rows = config.max_batch_size or 0
    if config.has_gears:
        rows = 0
    elif not rows or rows in default_batches():
        return None
    return bake(
        read(),
        dynamic_batch_size=config.dynamic_batch_size,
        dynamic_image_size=config.dynamic_image_size,
        dynamic_dims=config.dynamic_dims,
        max_batch_size=rows,
    )
