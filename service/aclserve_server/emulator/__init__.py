"""An Ascend NPU for machines without one: the AscendCL table as C functions over ONNX Runtime.

Faithful: status codes and error text per thread; init and finalize with their counts; devices, the primary and
explicit contexts, one current context per thread; streams that run on their own threads in order, events, time-
outs, stop on failure, abort; callbacks served by a subscribed thread, host functions, the exception callback;
allocation policies, alignment, accounting and capacity; checks of bounds, liveness and direction in every copy;
host memory that is pinned, registered or pageable; models from file and memory, with memory of the library's or the
caller's; batch, image-size and dims gears with their extra input; models of unknown shape; asynchronous failures
that leave poison and are told at the next synchronise. In run mode `host` device addresses fault when the host
touches them; in run mode `device` there is one memory. Profiles `8.1`, `8.5` and `9.1` differ where the releases
do.

Stricter than a device: fresh and freed memory is poison (0xA5); use after free, overruns, double frees, unaligned
or overlapping model buffers, two unordered executions of one model id, a gear input without a gear, memory freed
under a loaded model and unloading a busy model are errors, not undefined. In profile 8.1 an asynchronous copy from
pageable memory or between unaligned addresses, and a copy kind that does not fit the addresses, are refused.
Finalize reports leaks.

Simplified: a model is an ONNX file (an OM is recognised and refused); symbolic first dims become gears of 1 to 32,
and metadata written by `bake` stands for the options of `atc`; weights and work space are charged to the device,
not placed in it; image-size and dims gears are compiled by running the model once on zeros; time is the host's own,
unless a latency is configured; all attributes of a kind of memory share one pool; every device of the machine is
the same.

Absent: AIPP stages (parameter sets exist, no model takes them), private tensor formats, queues, operators,
profiling, dump, repair of memory faults, external weights in device memory, `err_msg_mode` other than per thread.
"""

from aclserve_server.emulator.config import EmulatorConfig, Latency, PlannedFault
from aclserve_server.emulator.gears import bake, default_batches
from aclserve_server.emulator.library import Emulator

__all__ = ["Emulator", "EmulatorConfig", "Latency", "PlannedFault", "bake", "default_batches"]
