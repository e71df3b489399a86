"""LogSettings and TraceSetting, which change at run time what this process writes and of which items it makes spans.

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
from aclserve_server.rpc.tracing import Sampling, Tracing

log = logging.getLogger(__name__)

Context = grpc.aio.ServicerContext[Any, Any]
_Settings = Mapping[str, Sequence[str]]

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
SETTABLE = ("trace_level", "trace_rate", "trace_count")
_COUNT = re.compile(r"[0-9]{1,18}", re.ASCII)
_RATE = re.compile(r"[1-9][0-9]{0,17}", re.ASCII)
_TRACE_KINDS: Mapping[str, tuple[Callable[[str], object], str]] = {
    "trace_level": (lambda value: value in TRACE_LEVELS, f"one or more of {', '.join(TRACE_LEVELS)}"),
    "trace_rate": (_RATE.fullmatch, "a whole number from 1: one of so many items"),
    "trace_count": (lambda value: value == "-1" or _COUNT.fullmatch(value), "a whole number from -1 (no limit)"),
    "log_frequency": (_COUNT.fullmatch, "a whole number from 0"),
    "trace_file": (lambda value: True, "text"),
    "trace_mode": (lambda value: value in ("triton", "opentelemetry"), "triton or opentelemetry"),
}
"""Setting -> whether a value of it is one, and what is expected."""


class SettingCalls:
    """`tracing` makes spans, None where the server was started without it."""

    def __init__(self, engine: Engine, tracing: Tracing | None) -> None:
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
        given = {key: _trace_values(key, list(setting.value)) for key, setting in request.settings.items()}
        tracing = self._tracing
        now = trace_settings(None if tracing is None else tracing.sampling)
        usual = trace_settings(None if tracing is None else Sampling())
        wanted = {key: given[key] or usual[key] if key in given else now[key] for key in now}
        changed = [key for key in now if set(wanted[key]) != set(now[key])]
        if changed:
            _check_changes(changed, wanted, now, request.model_name)
            tracing = _needed(tracing, changed[0])
            on, rate, count = "OFF" not in wanted["trace_level"], int(wanted["trace_rate"][0]), wanted["trace_count"][0]
            tracing.sampling.set(on=on, rate=rate, count=int(count))
            log.info("a client sets what is traced: %s", {key: wanted[key] for key in changed})
        shown = pb.TraceSettingResponse.SettingValue
        return pb.TraceSettingResponse(settings={key: shown(value=value) for key, value in wanted.items()})


def trace_settings(sampling: Sampling | None) -> dict[str, list[str]]:
    """What is in force; None where no spans are made at all."""
    shown = Sampling(on=False) if sampling is None else sampling
    return {
        "trace_level": ["TIMESTAMPS" if shown.on else "OFF"],
        "trace_rate": [str(shown.rate)],
        "trace_count": [str(shown.count)],
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


def _trace_values(key: str, values: list[str]) -> list[str]:
    """What was given of a setting, nothing to reset it; raises InvalidArgument where it is none."""
    kind = _TRACE_KINDS.get(key)
    if kind is None:
        raise _unknown(key, _TRACE_KINDS)
    is_right, expected = kind
    if not all(map(is_right, values)) or (len(values) > 1 and key != "trace_level"):
        raise _invalid(key, ", ".join(values), expected)
    if len(values) > 1 and "OFF" in values:
        raise _invalid(key, ", ".join(values), "OFF alone, or what to trace")
    return values


def _check_changes(changed: Sequence[str], wanted: _Settings, now: _Settings, model: str) -> None:
    """Raises Unimplemented for what cannot be changed here."""
    for key in changed:
        if key not in SETTABLE:
            raise _fixed(
                key, f"is {', '.join(now[key]) or 'nothing'}", "OpenTelemetry's own environment says where spans go"
            )
    if "TENSORS" in wanted["trace_level"]:
        raise _fixed("trace_level", "has TENSORS", "what tensors hold is never written; ask for TIMESTAMPS")
    if model:
        raise _fixed(changed[0], "is one for all models", "leave model_name empty")


def _needed(tracing: Tracing | None, key: str) -> Tracing:
    if tracing is None:
        raise _fixed(key, "has no effect, because no spans are made", "start the server with --tracing")
    return tracing


def _fixed(key: str, why: str, advice: str) -> Unimplemented:
    return Unimplemented(
        f"{key} {why} and cannot be set so at run time; {advice}",
        reason="SETTING_UNSUPPORTED",
        metadata={"setting": key},
    )


def _unknown(key: str, known: Mapping[str, object]) -> InvalidArgument:
    return InvalidArgument(f"there is no setting {key[:100]!r}; there are {', '.join(known)}", reason="SETTING_UNKNOWN")


def _invalid(key: str, got: str, expected: str) -> InvalidArgument:
    return InvalidArgument(
        f"{key} is {got[:100]!r}, expected {expected}", reason="SETTING_INVALID", metadata={"setting": key}
    )
