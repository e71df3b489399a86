"""The emulated device."""

from aclserve_server.emulator.config import EmulatorConfig, Latency, PlannedFault
from aclserve_server.emulator.gears import bake
from aclserve_server.emulator.library import Emulator

__all__ = ["Emulator", "EmulatorConfig", "Latency", "PlannedFault", "bake"]
