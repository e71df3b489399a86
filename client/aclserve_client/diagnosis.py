"""What a server finds out about itself, as values and from the wire."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal, cast

from aclserve.v1 import device_pb2

SettingSource = Literal["default", "environment", "flag", "unspecified"]


class FindingLevel(StrEnum):
    """How bad a finding is. An error keeps the server, or a model, from working."""

    UNSPECIFIED = "unspecified"
    OK = "ok"
    NOTE = "note"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True)
class Finding:
    """What one check found; `check` is its area and name. `fix` is empty where there is nothing to do."""

    level: FindingLevel
    check: str
    text: str
    fix: str


@dataclass(frozen=True)
class Setting:
    """One option of the server. `value` is None where it would name a place or an address of the server's machine."""

    name: str
    value: str | None
    source: SettingSource


@dataclass(frozen=True)
class Diagnosis:
    """All findings of a server, in the order of its checks, and its options."""

    version: str
    findings: tuple[Finding, ...]
    settings: tuple[Setting, ...]

    @property
    def healthy(self) -> bool:
        """Whether there is no error."""
        return all(finding.level is not FindingLevel.ERROR for finding in self.findings)


def diagnosis_from_wire(answer: device_pb2.GetDiagnosisResponse) -> Diagnosis:
    """A later server's levels and sources come as "unspecified"."""
    return Diagnosis(
        answer.version,
        tuple(Finding(_level(found.level), found.check, found.text, found.fix) for found in answer.findings),
        tuple(
            Setting(setting.name, setting.value if setting.HasField("value") else None, _source(setting.source))
            for setting in answer.settings
        ),
    )


def _level(number: int) -> FindingLevel:
    name = device_pb2.FindingLevel.Name(number) if number in device_pb2.FindingLevel.values() else ""
    word = name.removeprefix("FINDING_LEVEL_").lower()
    return FindingLevel(word) if word in list(FindingLevel) else FindingLevel.UNSPECIFIED


def _source(number: int) -> SettingSource:
    name = device_pb2.SettingSource.Name(number) if number in device_pb2.SettingSource.values() else ""
    return cast(SettingSource, name.removeprefix("SETTING_SOURCE_").lower() or "unspecified")
