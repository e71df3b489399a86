"""What the doctor says: findings, each with its level and its fix, and the settings with where each value comes from.

A text has two readings. On the server's own host it is shown whole. To an admin who asks over the network it is shown
without what names that machine: whoever writes a text puts such parts in with `private`, with a noun to stand for them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from enum import StrEnum

MAX_TEXT = 1024
"""Characters of a text, in either reading."""

_BEGIN, _MIDDLE, _END = "\ue000", "\ue001", "\ue002"
_MARKS = re.compile(f"[{_BEGIN}{_MIDDLE}{_END}]")
_PRIVATE = re.compile(f"{_BEGIN}([^{_MIDDLE}]*){_MIDDLE}([^{_END}]*){_END}")
_PLACES = re.compile(r"0x[0-9a-fA-F]+|(?<![\w.<>/])(?:/[^\s/'\",;:)]+){2,}/?")
_CONTROLS = re.compile(r"[\x00-\x1f\x7f]+")

FIXED_PLACES = ("/dev/", "/usr/local/Ascend/driver/", "/etc/ascend_install.info", "/etc/security/")
"""Where every machine has the same: these places are in this program's texts and say nothing of the machine."""


class Level(StrEnum):
    """How bad it is. An error keeps the server, or a model, from working; a warning will at some time; a note may."""

    OK = "ok"
    NOTE = "note"
    WARNING = "warning"
    ERROR = "error"


def private(value: object, noun: str) -> str:
    """A part of a text that only the server's own host is told; elsewhere the noun stands for it."""
    return f"{_BEGIN}{noun}{_MIDDLE}{_MARKS.sub('', _CONTROLS.sub(' ', str(value)))}{_END}"


def local(text: str) -> str:
    """The whole text, for the server's own host."""
    return _cut(_PRIVATE.sub(lambda match: match[2], text))


def public(text: str) -> str:
    """The text without what is private. What looks like a place of the machine all the same is left out, too."""

    def place(match: re.Match[str]) -> str:
        return match[0] if match[0].startswith(FIXED_PLACES) else "..."

    return _cut(_PLACES.sub(place, _PRIVATE.sub(lambda match: match[1], text)))


def _cut(text: str) -> str:
    return text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 3] + "..."


@dataclass(frozen=True, slots=True)
class Finding:
    """One finding. `check` is its area and a name, such as "nodes.permission"; texts may have private parts."""

    check: str
    level: Level
    text: str
    fix: str = ""


def ok(check: str, text: str) -> Finding:
    return Finding(check, Level.OK, text)


def note(check: str, text: str, fix: str = "") -> Finding:
    return Finding(check, Level.NOTE, text, fix)


def warning(check: str, text: str, fix: str) -> Finding:
    return Finding(check, Level.WARNING, text, fix)


def error(check: str, text: str, fix: str) -> Finding:
    return Finding(check, Level.ERROR, text, fix)


@dataclass(frozen=True, slots=True)
class Setting:
    """One option in force: its name, its value as for the flag, and "flag", "environment" or "default".

    `hidden`: the value names a place or an address of the machine.
    """

    name: str
    value: str
    source: str
    hidden: bool = False


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """All findings in the order of the checks, and all settings. `read` before showing it."""

    version: str
    findings: tuple[Finding, ...]
    settings: tuple[Setting, ...]

    @property
    def healthy(self) -> bool:
        """Whether there is no error."""
        return all(finding.level is not Level.ERROR for finding in self.findings)

    def count(self, level: Level) -> int:
        return sum(finding.level is level for finding in self.findings)

    def read(self, *, publicly: bool) -> Diagnosis:
        """One of the two readings, with plain texts."""
        words = public if publicly else local
        findings = (Finding(f.check, f.level, words(f.text), words(f.fix)) for f in self.findings)
        settings = (replace(s, value="" if publicly and s.hidden else s.value) for s in self.settings)
        return Diagnosis(self.version, tuple(findings), tuple(settings))

    def to_json(self) -> str:
        """One JSON document. Of a reading."""
        document = {
            "version": self.version,
            "healthy": self.healthy,
            "counts": {level.value: self.count(level) for level in Level},
            "findings": [
                {"check": f.check, "level": f.level.value, "text": f.text, **({"fix": f.fix} if f.fix else {})}
                for f in self.findings
            ],
            "settings": [{"name": s.name, "value": s.value, "source": s.source} for s in self.settings],
        }
        return json.dumps(document, indent=2)

    def to_text(self) -> str:
        """For people: a line for each finding with its fix below it, the settings that were given, and the sum."""
        return "\n".join([*self._finding_lines(), "", *self._setting_lines(), "", self._sum()])

    def _finding_lines(self) -> Iterator[str]:
        width = max((len(f.check) for f in self.findings), default=0)
        for finding in self.findings:
            yield f"{finding.level.value:<8} {finding.check:<{width}}  {finding.text}"
            if finding.fix:
                yield f"{'':<8} {'':<{width}}  fix: {finding.fix}"

    def _setting_lines(self) -> Iterator[str]:
        width = max((len(s.name) for s in self.settings), default=0)
        for setting in self.settings:
            shown = setting.value or '""'
            yield f"{setting.source:<12} --{setting.name.replace('_', '-'):<{width}} {shown}"

    def _sum(self) -> str:
        counts = ", ".join(f"{self.count(level)} {level.value}" for level in reversed(Level))
        return f"{counts}: {'nothing keeps the server from working' if self.healthy else 'there are errors to fix'}"


def plural(count: int, noun: str) -> str:
    """ "1 file", "2 files"."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def size(size_bytes: int) -> str:
    """ "64.0 MiB"."""
    for unit, factor in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if size_bytes >= factor:
            return f"{size_bytes / factor:.1f} {unit}"
    return plural(size_bytes, "byte")


def listed(values: Iterable[object], most: int = 10) -> str:
    """ "a, b and 3 more"."""
    texts = list(map(str, values))
    more = len(texts) - most
    return ", ".join(texts[:most]) + (f" and {more} more" if more > 0 else "")
