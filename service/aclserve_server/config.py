"""The server's options, each declared once, as `options` explains.

Values are checked when a `Config` is made; `ConfigError` lists every problem at once.
"""

from __future__ import annotations

import argparse
import ipaddress
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from aclserve_server.options import (
    ENVIRONMENT_PREFIX,
    GIB,
    KIB,
    MIB,
    ConfigError,
    Option,
    declare,
    options_of,
    problem,
    read,
    table,
)
from aclserve_server.options import add_arguments as add_options

__all__ = ["ENVIRONMENT_PREFIX", "Config", "ConfigError", "Option", "add_arguments", "options", "options_table"]

EMULATOR = "emulator"
"""The value of `acl_library` that chooses the emulated device."""

_MODELS = Path("models")


@dataclass(frozen=True)
class Config:
    """The options of one server process. Making one checks it and raises `ConfigError`."""

    acl_library: str = declare(
        "",
        "path of libascendcl.so, or `emulator` for the emulated device; empty looks where CANN is installed",
        metavar="emulator|PATH",
    )
    model_repository: Path = declare(  # noqa: RUF009 (makes a field)
        _MODELS, "folder of models, laid out as MODEL/VERSION/model.onnx or model.om", metavar="DIR"
    )
    host: str = declare("127.0.0.1", "address to listen on, for gRPC and for metrics", metavar="ADDRESS")
    port: int = declare(8001, "port of gRPC; 0 picks a free one", minimum=0, maximum=65535)
    metrics_port: int = declare(
        8002, "port of HTTP: /metrics, /healthz and /readyz; 0 picks a free one", minimum=0, maximum=65535
    )
    device: int = declare(0, "device to drive, as AscendCL counts them", minimum=0, maximum=65535)
    log_level: str = declare(
        "info", "least severe log lines to write", metavar="LEVEL", choices=("debug", "info", "warning", "error")
    )
    drain_timeout_s: float = declare(
        30.0, "longest time that accepted items get to finish at shutdown", unit="seconds", minimum=0, maximum=86400
    )

    max_message_bytes: int = declare(
        64 * MIB, "largest gRPC message", unit="bytes", minimum=64 * KIB, maximum=2 * GIB - 1
    )
    max_queue_rows: int = declare(8192, "rows that may wait for one model", unit="rows", minimum=1, maximum=1 << 20)
    max_stream_items: int = declare(
        128, "items of one stream that are accepted and not yet answered", unit="items", minimum=1, maximum=1 << 16
    )
    max_stream_bytes: int = declare(
        256 * MIB,
        "bytes of one stream's inline inputs that are accepted and not yet answered",
        unit="bytes",
        minimum=64 * KIB,
    )
    max_stream_rows: int = declare(
        0, "rows that one stream gives to one execution at the most; 0 sets no bound", unit="rows", minimum=0
    )
    max_queue_delay_us: int = declare(
        0,
        "longest time a row waits for company",
        unit="microseconds",
        minimum=0,
        maximum=10_000_000,
    )
    slots: int = declare(2, "preallocated datasets for each model", minimum=1, maximum=16)
    slot_budget_bytes: int = declare(
        256 * MIB, "largest dataset of a model whose rows share executions", unit="bytes", minimum=KIB
    )
    pack_inline_bytes: int = declare(
        64 * KIB,
        "rows up to this size are copied by the event loop, larger ones by the device thread",
        unit="bytes",
        minimum=0,
    )

    max_leases: int = declare(1024, "leases at the same time", minimum=1, maximum=1 << 20)
    max_lease_device_bytes: int = declare(1 * GIB, "device memory that one lease may hold", unit="bytes", minimum=0)
    max_lease_host_bytes: int = declare(
        1 * GIB, "host memory that one lease may hold, in buffers and uploads", unit="bytes", minimum=0
    )
    max_lease_ttl_s: float = declare(
        3600.0, "longest time to live of a lease", unit="seconds", minimum=1, maximum=31_536_000
    )
    max_upload_bytes: int = declare(1 * GIB, "largest model upload", unit="bytes", minimum=1)
    system_shared_memory: bool = declare(
        False,
        "clients of this host may register POSIX shared memory for inputs and outputs; they can name any object that "
        "the server's user may open",
        metavar="on|off",
    )
    max_regions: int = declare(
        256, "shared-memory regions that one owner may have registered at a time", minimum=1, maximum=1 << 16
    )

    emulator_run_mode: str = declare(
        "device",
        "run mode of the emulated device: `device` shares the host's memory, `host` has its own as a PCIe card does",
        metavar="MODE",
        choices=("device", "host"),
    )
    emulator_memory_bytes: int = declare(8 * GIB, "memory of the emulated device", unit="bytes", minimum=MIB)
    emulator_threads: int = declare(
        1, "threads that one execution of the emulated device uses", unit="threads", minimum=1, maximum=1024
    )
    emulator_profile: str = declare(
        "8.1", "CANN release whose behaviour is emulated", metavar="RELEASE", choices=("8.1", "8.5", "9.1")
    )

    def __post_init__(self) -> None:
        problems = [
            problem(option.flag, option.show(getattr(self, option.name)), option)
            for option in options()
            if not option.accepts(getattr(self, option.name))
        ]
        problems += self._conflicts()
        if problems:
            raise ConfigError(problems)

    @property
    def emulated(self) -> bool:
        """Whether the emulated device was asked for."""
        return self.acl_library == EMULATOR

    def _conflicts(self) -> Iterator[str]:
        if not _is_address(self.host):
            yield f"--host: got {self.host!r}, expected an IP address or a host name: give 127.0.0.1 or 0.0.0.0"
        if self.port == self.metrics_port != 0:
            yield f"--metrics-port: got {self.metrics_port}, expected another than --port's: 0 picks a free one"
        sizes = (self.max_upload_bytes, self.max_lease_host_bytes)
        if all(isinstance(size, int) for size in sizes) and sizes[0] > sizes[1]:
            yield (
                f"--max-upload-bytes: got {self.max_upload_bytes}, expected at most --max-lease-host-bytes "
                f"({self.max_lease_host_bytes}), because a lease holds its uploads: lower the one or raise the other"
            )

    @classmethod
    def from_args(cls, argv: Sequence[str], environ: Mapping[str, str]) -> Self:
        """The options of a command line (without the program's name) and an environment.

        Raises `ConfigError`; an unknown flag or `--help` ends in argparse's own SystemExit.
        """
        parser = argparse.ArgumentParser(prog="aclserve serve", allow_abbrev=False)
        add_arguments(parser)
        return cls.from_namespace(parser.parse_args(argv), environ)

    @classmethod
    def from_namespace(cls, namespace: argparse.Namespace, environ: Mapping[str, str]) -> Self:
        """The same for a parser that `add_arguments` was applied to; what else the namespace holds is ignored."""
        values, problems = read(options(), namespace, environ)
        try:
            config = cls(**values)
        except ConfigError as error:
            others = [text for text in error.problems if text.partition(":")[0] not in problems]
            raise ConfigError([*problems.values(), *others]) from None
        if problems:
            raise ConfigError(list(problems.values()))
        return config


def _is_address(host: object) -> bool:
    if not isinstance(host, str):
        return False
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?", host) is not None
    return True


_OPTIONS = options_of(Config)


def options() -> tuple[Option, ...]:
    """All options in the order of the help and of README.md."""
    return _OPTIONS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds a flag for every option; `Config.from_namespace` reads them."""
    add_options(parser, _OPTIONS)


def options_table() -> str:
    """The options as a Markdown table, for README.md."""
    return table(_OPTIONS)
