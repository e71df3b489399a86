"""How gRPC waits for its sockets; to be chosen before gRPC is imported.

Its newer way (EventEngine) reads on threads of its own, and wakes one of them at each write. With Python above it that
costs a quarter of a small message: 127 us of CPU for one on a stream of a server that only echoes, against 94 us where
the thread that Python waits for reads by itself (grpcio 1.85.3, two cores, one run). gRPC keeps the older way behind a
switch, which a release to come may not know any more: it says so then, and goes the newer way.
"""

from __future__ import annotations

from collections.abc import MutableMapping

VARIABLE = "GRPC_EXPERIMENTS"
"""The environment's word on such switches. Whoever has set it is left alone."""

DIRECT = "-event_engine_listener"


def poll_directly(environ: MutableMapping[str, str]) -> None:
    """Has servers of this process, and of those that it starts, read their sockets the older way."""
    environ.setdefault(VARIABLE, DIRECT)
