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

from aclserve_server import device_list
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

SUFFIXES = (".html", ".json")
"""What a profile's name may end in."""

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
    model_control_mode: str = declare(
        "none",
        "who decides what is loaded: `none` loads all models at the start, `poll` also follows the repository as it "
        "changes, `explicit` leaves it to clients",
        metavar="MODE",
        choices=("none", "poll", "explicit"),
    )
    load_model: tuple[str, ...] = declare(
        (), "model to load at the start in the mode `explicit`; `*` stands for all", metavar="MODEL"
    )
    repository_poll_s: float = declare(
        15.0, "time between two looks at the repository in the mode `poll`", unit="seconds", minimum=0.1, maximum=86400
    )
    strict_config: bool = declare(
        False, "a field of a config.pbtxt that has no meaning here keeps its model from being loaded", metavar="on|off"
    )
    host: str = declare("127.0.0.1", "address to listen on, for gRPC and for metrics", metavar="ADDRESS")
    port: int = declare(8001, "port of gRPC; 0 picks a free one", minimum=0, maximum=65535)
    metrics_port: int = declare(
        8002, "port of HTTP: /metrics, /healthz and /readyz; 0 picks a free one", minimum=0, maximum=65535
    )
    unix_socket: str = declare(
        "",
        "path of a unix domain socket for gRPC besides the port, for this user only (mode 0600); empty: none",
        metavar="PATH",
    )
    tls_cert: str = declare(
        "", "file of the server's certificate and its chain (PEM); with --tls-key: TLS on the port", metavar="FILE"
    )
    tls_key: str = declare("", "file of the certificate's private key (PEM)", metavar="FILE")
    tls_client_ca: str = declare(
        "", "file of the authorities (PEM) that clients' certificates must come from; empty: none asked", metavar="FILE"
    )
    principals: str = declare(
        "",
        "file that names who may call, by token or certificate, with groups and quotas; empty: no authentication",
        metavar="FILE",
    )
    insecure: bool = declare(
        False, "listen without TLS although --host is not the loopback: for networks that are private", metavar="on|off"
    )
    remote_admin: bool = declare(
        False, "without --principals: callers of other hosts, too, may load and unload models and change settings"
    )
    health_port: int = declare(
        0,
        "port for probes without TLS and token: grpc.health.v1 alone; 0: none, or with --devices a free one",
        minimum=0,
        maximum=65535,
    )
    replica: str = declare(
        "",
        "name of this server among its replicas, of letters, digits and `-`: the ids of its leases begin with it and a "
        "dot, so that a proxy can send what shows a lease to the server that has it",
        metavar="NAME",
    )
    device: int = declare(0, "device to drive, as AscendCL counts them", minimum=0, maximum=65535)
    devices: tuple[str, ...] = declare(
        (),
        "devices to drive in place of --device, each by a worker process under a supervisor: `0-7` or `0,2,4-5`",
        metavar="LIST",
    )
    worker_port: int = declare(
        0,
        "with --devices: the worker of device N listens for gRPC on this port plus N, and on --port, which all share; "
        "0 picks free ones",
        minimum=0,
        maximum=65535,
    )
    restart_limit: int = declare(
        5, "with --devices: restarts of a worker in a row after which it is given up", minimum=0, maximum=1_000_000
    )
    restart_backoff_s: float = declare(
        0.5,
        "with --devices: wait before a worker is restarted; it doubles with each restart in a row, up to 30 s",
        unit="seconds",
        minimum=0.01,
        maximum=30,
    )
    restart_reset_s: float = declare(
        60.0,
        "with --devices: time for which a worker must have served for its restarts to count anew",
        unit="seconds",
        minimum=0,
        maximum=86400,
    )
    log_level: str = declare(
        "info", "least severe log lines to write", metavar="LEVEL", choices=("debug", "info", "warning", "error")
    )
    log_format: str = declare("text", "form of the log lines", metavar="FORMAT", choices=("text", "json"))
    triton_metrics: bool = declare(
        False, "/metrics also shows what Triton's names stand for (`nv_inference_*`, `nv_gpu_*`)"
    )
    tracing: bool = declare(
        False,
        "a span for each item, sent by OTLP to where the environment's OTEL_EXPORTER_OTLP_ENDPOINT says "
        "(needs the extra `otel`)",
    )
    profile: str = declare(
        "",
        "file for a sampling profile of all threads, written at the stop: .html for a browser, .json for speedscope "
        "(needs the extra `profile`)",
        metavar="FILE",
    )
    device_timeout_s: float = declare(
        60.0,
        "time that a batch or a call on the device may take before the device counts as hung, and the server gives up "
        "and exits with code 69 for its supervisor to replace it; loads get ten times as long; 0 waits for ever",
        unit="seconds",
        minimum=0,
        maximum=86400,
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
    map_shared_memory: str = declare(
        "auto",
        "the device works in clients' shared memory where it lies, if that is sealed against shrinking; `auto`: on the "
        "emulated device only, since AscendCL's documentation does not say whether models may run on such memory",
        metavar="MODE",
        choices=("auto", "on", "off"),
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

    @property
    def device_numbers(self) -> tuple[int, ...]:
        """The devices of `devices`, in order; empty without."""
        return device_list.numbers(self.devices)

    def flags(self) -> list[str]:
        """The command line that `from_args` makes this of, whatever the environment's twins say elsewhere."""
        values = ((option, getattr(self, option.name)) for option in options())
        return [f"{option.flag}={option.write(value)}" for option, value in values if value != option.default]

    def _conflicts(self) -> Iterator[str]:
        if not _is_address(self.host):
            yield f"--host: got {self.host!r}, expected an IP address or a host name: give 127.0.0.1 or 0.0.0.0"
        if self.port == self.metrics_port != 0:
            yield f"--metrics-port: got {self.metrics_port}, expected another than --port's: 0 picks a free one"
        if isinstance(self.profile, str) and self.profile and Path(self.profile).suffix not in SUFFIXES:
            yield (
                f"--profile: got {self.profile!r}, expected a name that ends in {' or '.join(SUFFIXES)}: the first for "
                "a browser, the second for speedscope"
            )
        if isinstance(self.replica, str) and not re.fullmatch(r"[A-Za-z0-9-]{0,63}", self.replica):
            yield f"--replica: got {self.replica!r}, expected at most 63 letters, digits and `-`: a host's name will do"
        yield from self._exposures()
        others = (self.port, self.metrics_port, self.health_port)
        yield from device_list.problems(self.devices, self.device, self.worker_port, others)
        if self.load_model and self.model_control_mode != "explicit":
            yield (
                f"--load-model: got {self.load_model[0]!r} with --model-control-mode {self.model_control_mode}, "
                "expected explicit: the other modes load all models"
            )
        sizes = (self.max_upload_bytes, self.max_lease_host_bytes)
        if all(isinstance(size, int) for size in sizes) and sizes[0] > sizes[1]:
            yield (
                f"--max-upload-bytes: got {self.max_upload_bytes}, expected at most --max-lease-host-bytes "
                f"({self.max_lease_host_bytes}), because a lease holds its uploads: lower the one or raise the other"
            )

    def _exposures(self) -> Iterator[str]:
        """What would let strangers in, or keep everybody out."""
        if bool(self.tls_cert) != bool(self.tls_key):
            flag, other = ("--tls-cert", "--tls-key") if self.tls_cert else ("--tls-key", "--tls-cert")
            yield f"{flag}: got {self.tls_cert or self.tls_key!r}, expected {other} beside it: give both or none"
        if self.health_port and self.health_port in (self.port, self.metrics_port):
            yield f"--health-port: got {self.health_port}, expected another than --port's and --metrics-port's"
        if self.tls_client_ca and not self.tls_cert:
            yield f"--tls-client-ca: got {self.tls_client_ca!r}, expected --tls-cert and --tls-key beside it"
        if _is_address(self.host) and not (is_loopback(self.host) or self.tls_cert or self.insecure is not False):
            yield (
                f"--host: got {self.host!r} without TLS, expected the loopback: give --tls-cert and --tls-key, or say "
                "--insecure where the network is private"
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
        if values.get("devices") and "device" in values and not values["device"]:
            problems["--device"] = device_list.BESIDE.format(0)
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


def is_loopback(host: str) -> bool:
    """Whether only this host can reach an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


_OPTIONS = options_of(Config)


def options() -> tuple[Option, ...]:
    """All options in the order of the help and of README.md."""
    return _OPTIONS


def add_arguments(parser: argparse._ActionsContainer) -> None:
    """Adds a flag for every option; `Config.from_namespace` reads them."""
    add_options(parser, _OPTIONS)


def options_table() -> str:
    """The options as a Markdown table, for README.md."""
    return table(_OPTIONS)
