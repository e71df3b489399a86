"""LogSettings, which changes at run time what this process writes, and TraceSetting.

A setting that would have no effect here is refused; reading, and setting what is in force already, always work.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import grpc.aio

from aclserve.errors import InvalidArgument, Unimplemented
from aclserve_server import logs
from aclserve_server.engine.engine import Engine
from aclserve_server.kserve import inference_pb2 as pb

log = logging.getLogger(__name__)

Context = grpc.aio.ServicerContext[Any, Any]

VERBOSE = "log_verbose_level"
SWITCHES: Mapping[str, str] = {"log_info": "info", "log_warning": "warning", "log_error": "error"}
"""Setting -> the level of Python's logging that it shows or hides; VERBOSE above 0 shows "debug"."""

FORMATS = ("default", "ISO8601")
"""How a line shows its time; JSON lines always have the second."""

_LOG_KINDS: Mapping[str, str] = {
    **dict.fromkeys(SWITCHES, "bool_param"),
    VERBOSE: "uint32_param",
    "log_format": "string_param",
    "log_file": "string_param",
}

TRACE_LEVELS = ("OFF", "TIMESTAMPS", "TENSORS")
_COUNT = re.compile(r"[0-9]{1,18}", re.ASCII)
_TRACE_KINDS: Mapping[str, tuple[Callable[[str], object], str]] = {
    "trace_level": (lambda value: value in TRACE_LEVELS, f"one or more of {', '.join(TRACE_LEVELS)}"),
    "trace_rate": (_COUNT.fullmatch, "a whole number from 0"),
    "trace_count": (lambda value: value == "-1" or _COUNT.fullmatch(value), "a whole number from -1 (no limit)"),
    "log_frequency": (_COUNT.fullmatch, "a whole number from 0"),
    "trace_file": (lambda value: True, "text"),
    "trace_mode": (lambda value: value in ("triton", "opentelemetry"), "triton or opentelemetry"),
}
"""Setting -> whether a value of it is one, and what is expected."""


class SettingCalls:
    """`tracing` tells whether spans are made, which is decided when the server starts."""

    def __init__(self, engine: Engine, *, tracing: bool) -> None:
        self._engine = engine
        self._tracing = tracing

    async def log_settings(self, request: pb.LogSettingsRequest, context: Context) -> pb.LogSettingsResponse:
        given = {key: _log_value(key, value) for key, value in request.settings.items()}
        now = log_settings()
        if given.get("log_file", now["log_file"]) != now["log_file"]:
            raise Unimplemented(
                "log_file is read only: lines go to standard error, for whatever runs the server to collect",
                reason="SETTING_READ_ONLY",
            )
        if given.items() - now.items():
            log.info("a client sets what is logged: %s", given)
        _change_logs({**now, **given})
        return pb.LogSettingsResponse(settings={key: _log_setting(key, value) for key, value in log_settings().items()})

    async def trace_setting(self, request: pb.TraceSettingRequest, context: Context) -> pb.TraceSettingResponse:
        if request.model_name:
            self._engine.find(request.model_name, 0)
        now = self._trace_settings()
        for key, setting in request.settings.items():
            _check_trace(key, list(setting.value), now)
        shown = pb.TraceSettingResponse.SettingValue
        return pb.TraceSettingResponse(settings={key: shown(value=value) for key, value in now.items()})

    def _trace_settings(self) -> dict[str, list[str]]:
        return {
            "trace_level": ["TIMESTAMPS" if self._tracing else "OFF"],
            "trace_rate": ["1"],
            "trace_count": ["-1"],
            "log_frequency": ["0"],
            "trace_file": [""],
            "trace_mode": ["opentelemetry"],
        }


def log_settings() -> dict[str, bool | int | str]:
    """What is in force."""
    least = logs.level()
    shown = set(logs.LEVELS[logs.LEVELS.index(least) if least in logs.LEVELS else 0 :]) - logs.muted()
    return {
        "log_file": "",
        **{key: level in shown for key, level in SWITCHES.items()},
        VERBOSE: int("debug" in shown),
        "log_format": FORMATS[logs.format_kind() == "json" or logs.iso_times()],
    }


def _change_logs(wanted: Mapping[str, bool | int | str]) -> None:
    iso = wanted["log_format"] == FORMATS[1]
    if not iso and logs.format_kind() == "json":
        raise Unimplemented(
            f"log_format {FORMATS[0]} is for text; this server writes JSON lines, whose times are ISO 8601: start it "
            "with --log-format text",
            reason="SETTING_UNSUPPORTED",
        )
    shown = {level for key, level in SWITCHES.items() if wanted[key]} | ({"debug"} if wanted[VERBOSE] else set())
    logs.set_level(next((level for level in logs.LEVELS if level in shown), logs.LEVELS[-1]))
    logs.mute(set(logs.LEVELS) - shown)
    logs.set_iso_times(iso)


def _log_value(key: str, value: pb.LogSettingsRequest.SettingValue) -> bool | int | str:
    """A setting that was given; raises InvalidArgument where it is none."""
    kind = _LOG_KINDS.get(key)
    if kind is None:
        raise _unknown(key, _LOG_KINDS)
    got = value.WhichOneof("parameter_choice")
    if got != kind:
        raise InvalidArgument(
            f"{key} was given as {got or 'nothing'}, expected {kind}",
            reason="SETTING_INVALID",
            metadata={"setting": key},
        )
    found: bool | int | str = getattr(value, kind)
    if key == "log_format" and found not in FORMATS:
        raise _invalid(key, str(found), " or ".join(FORMATS))
    return found


def _log_setting(key: str, value: bool | int | str) -> pb.LogSettingsResponse.SettingValue:
    setting = pb.LogSettingsResponse.SettingValue()
    setattr(setting, _LOG_KINDS[key], value)
    return setting


def _check_trace(key: str, values: Sequence[str], now: Mapping[str, Sequence[str]]) -> None:
    """Raises InvalidArgument for what is no setting, and Unimplemented for what cannot be changed here."""
    kind = _TRACE_KINDS.get(key)
    if kind is None:
        raise _unknown(key, _TRACE_KINDS)
    is_right, expected = kind
    if not all(map(is_right, values)) or (len(values) > 1 and key != "trace_level"):
        raise _invalid(key, ", ".join(values), expected)
    if values and set(values) != set(now[key]):
        raise Unimplemented(
            f"{key} is {', '.join(now[key]) or 'nothing'} and cannot be changed at run time; the server's option "
            "--tracing turns spans of all items on or off, and OpenTelemetry's own environment sets the rest",
            reason="SETTING_UNSUPPORTED",
            metadata={"setting": key},
        )


def _unknown(key: str, known: Mapping[str, object]) -> InvalidArgument:
    return InvalidArgument(f"there is no setting {key[:100]!r}; there are {', '.join(known)}", reason="SETTING_UNKNOWN")


def _invalid(key: str, got: str, expected: str) -> InvalidArgument:
    return InvalidArgument(
        f"{key} is {got[:100]!r}, expected {expected}", reason="SETTING_INVALID", metadata={"setting": key}
    )
