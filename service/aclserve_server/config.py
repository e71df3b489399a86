"""The server's options, each declared once.

A field of `Config` says it all: name, type, default, unit, limits, help. The command line's flags, their environment
twins and the table in README.md are made from the fields. A flag wins over its twin, the twin over the default; a twin
that is empty counts as unset. Values are checked when a `Config` is made; `ConfigError` lists every problem at once.

Bytes may be written with a suffix: `64MiB`, `2GiB`, `4096`.
"""

from __future__ import annotations

import argparse
import dataclasses
import ipaddress
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, get_type_hints

ENVIRONMENT_PREFIX = "ACLSERVE_"

EMULATOR = "emulator"
"""The value of `acl_library` that chooses the emulated device."""

_KIB, _MIB, _GIB = 1 << 10, 1 << 20, 1 << 30
_SUFFIXES = {"": 1, "B": 1, "KIB": _KIB, "MIB": _MIB, "GIB": _GIB}
_BYTES = re.compile(r"(\d+)\s*([A-Za-z]*)")
_MODELS = Path("models")
_NUMBER = re.compile(r"[+-]?\d+")


class ConfigError(Exception):
    """Options that cannot be used. `problems` has one sentence for each: what was got, what is expected, what to do."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


@dataclass(frozen=True)
class Option:
    """What a field of `Config` knows about itself. Limits are inclusive; None means no limit."""

    name: str
    kind: type
    default: Any
    help: str
    metavar: str
    unit: str
    minimum: float | None
    maximum: float | None
    choices: tuple[str, ...]

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def environment(self) -> str:
        return ENVIRONMENT_PREFIX + self.name.upper()

    def show(self, value: object) -> str:
        """The value as one would write it for the flag."""
        if self.unit == "bytes" and isinstance(value, int):
            for suffix, size in (("GiB", _GIB), ("MiB", _MIB), ("KiB", _KIB)):
                if value and value % size == 0:
                    return f"{value // size}{suffix}"
        return f"{value:g}" if isinstance(value, float) else str(value)

    def expected(self) -> str:
        """What a value must look like, in words."""
        if self.choices:
            return "one of " + ", ".join(self.choices)
        if self.kind is Path:
            return "an existing folder"
        if self.kind is str:
            return self.metavar
        noun = {int: "a whole number", float: "a number"}[self.kind] + (f" of {self.unit}" if self.unit else "")
        if self.minimum is not None and self.maximum is not None:
            return f"{noun} from {self.show(self.minimum)} to {self.show(self.maximum)}"
        return noun + (f", at least {self.show(self.minimum)}" if self.minimum is not None else "")

    def parse(self, text: str) -> Any:
        """The value that `text` stands for; ValueError when it is none."""
        if self.unit == "bytes":
            match = _BYTES.fullmatch(text.strip())
            if not match or match[2].upper() not in _SUFFIXES:
                raise ValueError(text)
            return int(match[1]) * _SUFFIXES[match[2].upper()]
        if self.kind is int:
            if not _NUMBER.fullmatch(text.strip()):
                raise ValueError(text)
            return int(text)
        return self.kind(text)

    def accepts(self, value: object) -> bool:
        """Whether a value, of whatever type, may be this option's."""
        if isinstance(value, bool):
            return False
        if self.kind in (int, float):
            fits = isinstance(value, (int, float)) if self.kind is float else isinstance(value, int)
            if not fits or not math.isfinite(value):  # type: ignore[arg-type]
                return False
            low = -math.inf if self.minimum is None else self.minimum
            high = math.inf if self.maximum is None else self.maximum
            return low <= value <= high  # type: ignore[operator]
        if self.kind is Path:
            return isinstance(value, Path) and value.is_dir()
        return isinstance(value, str) and (not self.choices or value in self.choices)


def _option(
    default: object,
    text: str,
    *,
    metavar: str = "N",
    unit: str = "",
    minimum: float | None = None,
    maximum: float | None = None,
    choices: Sequence[str] = (),
) -> Any:
    if unit == "bytes":
        metavar = "BYTES"
    facts = {"help": text, "metavar": metavar, "unit": unit, "minimum": minimum, "maximum": maximum}
    return dataclasses.field(default=default, metadata={**facts, "choices": tuple(choices)})


@dataclass(frozen=True)
class Config:
    """The options of one server process. Making one checks it and raises `ConfigError`."""

    acl_library: str = _option(
        "",
        "path of libascendcl.so, or `emulator` for the emulated device; empty looks where CANN is installed",
        metavar="emulator|PATH",
    )
    model_repository: Path = _option(  # noqa: RUF009 (makes a field)
        _MODELS, "folder of models, laid out as MODEL/VERSION/model.onnx or model.om", metavar="DIR"
    )
    host: str = _option("127.0.0.1", "address to listen on, for gRPC and for metrics", metavar="ADDRESS")
    port: int = _option(8001, "port of gRPC; 0 picks a free one", minimum=0, maximum=65535)
    metrics_port: int = _option(
        8002, "port of HTTP: /metrics, /healthz and /readyz; 0 picks a free one", minimum=0, maximum=65535
    )
    device: int = _option(0, "device to drive, as AscendCL counts them", minimum=0, maximum=65535)
    log_level: str = _option(
        "info", "least severe log lines to write", metavar="LEVEL", choices=("debug", "info", "warning", "error")
    )
    drain_timeout_s: float = _option(
        30.0, "longest time that accepted items get to finish at shutdown", unit="seconds", minimum=0, maximum=86400
    )

    max_message_bytes: int = _option(
        64 * _MIB, "largest gRPC message", unit="bytes", minimum=64 * _KIB, maximum=2 * _GIB - 1
    )
    max_queue_rows: int = _option(8192, "rows that may wait for one model", unit="rows", minimum=1, maximum=1 << 20)
    max_stream_items: int = _option(
        128, "items of one stream that are accepted and not yet answered", unit="items", minimum=1, maximum=1 << 16
    )
    max_stream_bytes: int = _option(
        256 * _MIB,
        "bytes of one stream's inline inputs that are accepted and not yet answered",
        unit="bytes",
        minimum=64 * _KIB,
    )
    max_stream_rows: int = _option(
        0, "rows that one stream gives to one execution at the most; 0 sets no bound", unit="rows", minimum=0
    )
    max_queue_delay_us: int = _option(
        0,
        "longest time a row waits for company",
        unit="microseconds",
        minimum=0,
        maximum=10_000_000,
    )
    slots: int = _option(2, "preallocated datasets for each model", minimum=1, maximum=16)
    slot_budget_bytes: int = _option(
        256 * _MIB, "largest dataset of a model whose rows share executions", unit="bytes", minimum=_KIB
    )
    pack_inline_bytes: int = _option(
        64 * _KIB,
        "rows up to this size are copied by the event loop, larger ones by the device thread",
        unit="bytes",
        minimum=0,
    )

    max_leases: int = _option(1024, "leases at the same time", minimum=1, maximum=1 << 20)
    max_lease_device_bytes: int = _option(1 * _GIB, "device memory that one lease may hold", unit="bytes", minimum=0)
    max_lease_host_bytes: int = _option(
        1 * _GIB, "host memory that one lease may hold, in buffers and uploads", unit="bytes", minimum=0
    )
    max_lease_ttl_s: float = _option(
        3600.0, "longest time to live of a lease", unit="seconds", minimum=1, maximum=31_536_000
    )
    max_upload_bytes: int = _option(1 * _GIB, "largest model upload", unit="bytes", minimum=1)

    emulator_run_mode: str = _option(
        "device",
        "run mode of the emulated device: `device` shares the host's memory, `host` has its own as a PCIe card does",
        metavar="MODE",
        choices=("device", "host"),
    )
    emulator_memory_bytes: int = _option(8 * _GIB, "memory of the emulated device", unit="bytes", minimum=_MIB)
    emulator_threads: int = _option(
        1, "threads that one execution of the emulated device uses", unit="threads", minimum=1, maximum=1024
    )
    emulator_profile: str = _option(
        "8.1", "CANN release whose behaviour is emulated", metavar="RELEASE", choices=("8.1", "8.5", "9.1")
    )

    def __post_init__(self) -> None:
        problems = [
            _problem(option.flag, option.show(getattr(self, option.name)), option)
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
        values: dict[str, Any] = {}
        problems: dict[str, str] = {}
        for option in options():
            source, text = option.flag, getattr(namespace, option.name, None)
            if text is None:
                source, text = option.environment, environ.get(option.environment) or None
            if text is None:
                continue
            try:
                value = option.parse(text)
            except ValueError:
                value = None
            if option.accepts(value):
                values[option.name] = value
            else:
                problems[option.flag] = _problem(source, text, option)
        try:
            config = cls(**values)
        except ConfigError as error:
            others = [problem for problem in error.problems if problem.partition(":")[0] not in problems]
            raise ConfigError([*problems.values(), *others]) from None
        if problems:
            raise ConfigError(list(problems.values()))
        return config


def _problem(source: str, got: str, option: Option) -> str:
    problem = f"{source}: got {got!r}, expected {option.expected()}"
    if option.kind is Path:
        return f"{problem}: create it, or name another with {option.flag}"
    return f"{problem}: the default is {option.show(option.default)!r}"


def _is_address(host: object) -> bool:
    if not isinstance(host, str):
        return False
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?", host) is not None
    return True


def options() -> tuple[Option, ...]:
    """All options in the order of the help and of README.md."""
    return _OPTIONS


def _read_options() -> tuple[Option, ...]:
    hints: Mapping[str, Callable[..., Any]] = get_type_hints(Config)
    return tuple(
        Option(name=field.name, kind=hints[field.name], default=field.default, **field.metadata)  # type: ignore[arg-type]
        for field in dataclasses.fields(Config)
    )


_OPTIONS = _read_options()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds a flag for every option. Values stay text, which `from_namespace` parses: so all errors come together."""
    for option in options():
        facts = [f"default: {option.show(option.default)}"] if option.show(option.default) else []
        facts += [f"one of {', '.join(option.choices)}"] if option.choices else []
        facts += [f"in {option.unit}"] if option.unit else []
        parser.add_argument(
            option.flag,
            dest=option.name,
            metavar=option.metavar,
            default=None,
            help=f"{option.help} ({'; '.join([*facts, option.environment])})".replace("%", "%%"),
        )


def options_table() -> str:
    """The options as a Markdown table, for README.md."""
    lines = ["| Option | Environment | Default | Unit | Meaning |", "|---|---|---|---|---|"]
    for option in options():
        default = f"`{option.show(option.default)}`" if option.show(option.default) else ""
        meaning = option.help[0].upper() + option.help[1:]
        if option.choices:
            meaning += " (" + ", ".join(f"`{choice}`" for choice in option.choices) + ")"
        cells = (f"`{option.flag}`", f"`{option.environment}`", default, option.unit, meaning)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"
