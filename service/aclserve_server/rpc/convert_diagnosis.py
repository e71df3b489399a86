"""A diagnosis as DeviceService tells it."""

from __future__ import annotations

from aclserve.v1 import device_pb2 as pb
from aclserve_server.doctor.findings import Diagnosis, Level

_LEVELS = {
    Level.OK: pb.FINDING_LEVEL_OK,
    Level.NOTE: pb.FINDING_LEVEL_NOTE,
    Level.WARNING: pb.FINDING_LEVEL_WARNING,
    Level.ERROR: pb.FINDING_LEVEL_ERROR,
}
_SOURCES = {
    "default": pb.SETTING_SOURCE_DEFAULT,
    "environment": pb.SETTING_SOURCE_ENVIRONMENT,
    "flag": pb.SETTING_SOURCE_FLAG,
}


def diagnosis_to_proto(diagnosis: Diagnosis) -> pb.GetDiagnosisResponse:
    """The public reading of a diagnosis, as a message. Values that are hidden are unset."""
    return pb.GetDiagnosisResponse(
        version=diagnosis.version,
        findings=[
            pb.Finding(level=_LEVELS[finding.level], check=finding.check, text=finding.text, fix=finding.fix)
            for finding in diagnosis.findings
        ],
        settings=[
            pb.Setting(
                name=setting.name.replace("_", "-"),
                value=None if setting.hidden else setting.value,
                source=_SOURCES[setting.source],
            )
            for setting in diagnosis.settings
        ],
    )
