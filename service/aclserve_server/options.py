"""What an option is: its declaration as a dataclass field, and everything that is made from it.

A field made with `declare` says it all: name, type, default, unit, limits, help. The command line's flags, their
environment twins and a table in Markdown are made from the fields. A flag wins over its twin, the twin over the
default; a twin that is empty counts as unset.

Bytes may be written with a suffix: `64MiB`, `2GiB`, `4096`. A switch is on when its flag stands alone; its value may be
given, as `on` or `off`. A list is written with commas, or its flag given several times.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_origin, get_type_hints

ENVIRONMENT_PREFIX = "ACLSERVE_"

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
_SUFFIXES = {"": 1, "B": 1, "KIB": KIB, "MIB": MIB, "GIB": GIB}
_BYTES = re.compile(r"(\d+)\s*([A-Za-z]*)")
_NUMBER = re.compile(r"[+-]?\d+")
_SWITCH = {"on": True, "true": True, "1": True, "yes": True, "off": False, "false": False, "0": False, "no": False}


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
            for suffix, size in (("GiB", GIB), ("MiB", MIB), ("KiB", KIB)):
                if value and value % size == 0:
                    return f"{value // size}{suffix}"
        if isinstance(value, bool):
            return "on" if value else "off"
        if isinstance(value, tuple):
            return ",".join(map(str, value))
        return f"{value:g}" if isinstance(value, float) else str(value)

    def write(self, value: object) -> str:
        """The value as text that `parse` makes exactly this value of."""
        return str(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else self.show(value)

    def expected(self) -> str:
        """What a value must look like, in words."""
        if self.choices:
            return "one of " + ", ".join(self.choices)
        if self.kind is Path:
            return "an existing folder"
        if self.kind is bool:
            return "on or off"
        if self.kind in (str, tuple):
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
        if self.kind is bool:
            if text.strip().lower() not in _SWITCH:
                raise ValueError(text)
            return _SWITCH[text.strip().lower()]
        if self.kind is tuple:
            return tuple(part for part in map(str.strip, text.split(",")) if part)
        return self.kind(text)

    def accepts(self, value: object) -> bool:
        """Whether a value, of whatever type, may be this option's."""
        if isinstance(value, bool) or self.kind is bool:
            return self.kind is bool and isinstance(value, bool)
        if self.kind is tuple:
            return isinstance(value, tuple) and all(isinstance(part, str) for part in value)
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


def declare(
    default: object,
    text: str,
    *,
    metavar: str = "N",
    unit: str = "",
    minimum: float | None = None,
    maximum: float | None = None,
    choices: Sequence[str] = (),
) -> Any:
    """A field of a dataclass of options."""
    if unit == "bytes":
        metavar = "BYTES"
    facts = {"help": text, "metavar": metavar, "unit": unit, "minimum": minimum, "maximum": maximum}
    return dataclasses.field(default=default, metadata={**facts, "choices": tuple(choices)})


def options_of(cls: type) -> tuple[Option, ...]:
    """The options that a dataclass declares, in order."""
    hints: Mapping[str, Any] = get_type_hints(cls)
    return tuple(
        Option(
            name=field.name,
            kind=get_origin(hints[field.name]) or hints[field.name],
            default=field.default,
            **field.metadata,
        )
        for field in dataclasses.fields(cls)
    )


def read(
    options: Sequence[Option], namespace: argparse.Namespace, environ: Mapping[str, str]
) -> tuple[dict[str, Any], dict[str, str]]:
    """The values that flags and environment give, and the problems of those that cannot be used, by flag."""
    values: dict[str, Any] = {}
    problems: dict[str, str] = {}
    for option in options:
        source, text = option.flag, getattr(namespace, option.name, None)
        if text is None:
            source, text = option.environment, environ.get(option.environment) or None
        if text is None:
            continue
        if isinstance(text, list):
            text = ",".join(text)
        try:
            value = option.parse(text)
        except ValueError:
            value = None
        if option.accepts(value):
            values[option.name] = value
        else:
            problems[option.flag] = problem(source, text, option)
    return values, problems


def origins(options: Sequence[Option], namespace: argparse.Namespace, environ: Mapping[str, str]) -> dict[str, str]:
    """Where each option's value comes from, by name: "flag", "environment" or "default"."""
    found = {}
    for option in options:
        if getattr(namespace, option.name, None) is not None:
            found[option.name] = "flag"
        else:
            found[option.name] = "environment" if environ.get(option.environment) else "default"
    return found


def problem(source: str, got: str, option: Option) -> str:
    """What is wrong with a value, in one sentence: what was got, what is expected, what to do."""
    text = f"{source}: got {got!r}, expected {option.expected()}"
    if option.kind is Path:
        return f"{text}: create it, or name another with {option.flag}"
    return f"{text}: the default is {option.show(option.default)!r}"


def add_arguments(parser: argparse._ActionsContainer, options: Sequence[Option]) -> None:
    """Adds a flag for every option. Values stay text, which `read` parses: so all errors come together."""
    for option in options:
        facts = [f"default: {option.show(option.default)}"] if option.show(option.default) else []
        facts += [f"one of {', '.join(option.choices)}"] if option.choices else []
        facts += [f"in {option.unit}"] if option.unit else []
        shape: dict[str, Any] = {}
        if option.kind is bool:
            shape = {"nargs": "?", "const": "on"}
        elif option.kind is tuple:
            shape = {"action": "append"}
        parser.add_argument(
            option.flag,
            dest=option.name,
            metavar=option.metavar,
            default=None,
            help=f"{option.help} ({'; '.join([*facts, option.environment])})".replace("%", "%%"),
            **shape,
        )


def table(options: Sequence[Option]) -> str:
    """The options as a Markdown table, for README.md."""
    lines = ["| Option | Environment | Default | Unit | Meaning |", "|---|---|---|---|---|"]
    for option in options:
        default = f"`{option.show(option.default)}`" if option.show(option.default) else ""
        meaning = option.help[0].upper() + option.help[1:]
        if option.choices:
            meaning += " (" + ", ".join(f"`{choice}`" for choice in option.choices) + ")"
        cells = (f"`{option.flag}`", f"`{option.environment}`", default, option.unit, meaning)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"
