"""Log lines on standard error, as text or as one JSON object a line, and their change at run time.

Everything goes through Python's `logging`. A call that has more to tell gives it as `extra={"fields": {...}}`: text
lines show it in the message that goes with it, JSON lines as keys of their own. Keys of every JSON line: `time` (UTC,
RFC 3339, milliseconds), `level` (debug, info, warning, error), `logger`, `message`; `error` holds a traceback. A worker
of one of several devices tells its device in each line: text before the logger's name, JSON as `device`.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Final, TextIO

FORMATS: Final = ("text", "json")
LEVELS: Final = ("debug", "info", "warning", "error")

_TEXT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
_TEXT_OF_DEVICE = "%(asctime)s %(levelname)s device %(device)d %(name)s: %(message)s"
_CHATTY = ("grpc", "asyncio")
"""Libraries whose lines at DEBUG, several for each call, are for their own makers."""

_RESERVED = frozenset({"time", "level", "device", "logger", "message", "error"})


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        told: dict[str, object] = {
            "time": _utc(record),
            "level": record.levelname.lower(),
            **({} if (device := _device_of(record)) is None else {"device": device}),
            "logger": record.name,
            "message": record.getMessage(),
        }
        fields = getattr(record, "fields", None)
        if isinstance(fields, dict):
            told |= {str(key): value for key, value in fields.items() if key not in _RESERVED}
        if record.exc_info:
            told["error"] = self.formatException(record.exc_info)
        return json.dumps(told, default=str, ensure_ascii=False)


class TextFormatter(logging.Formatter):
    """Text lines. With `iso` their times are those of JSON lines, else the host's local time."""

    def __init__(self, *, iso: bool = False) -> None:
        super().__init__(_TEXT)
        self.iso = iso
        self._of_device = logging.PercentStyle(_TEXT_OF_DEVICE)

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        return super().formatMessage(record) if _device_of(record) is None else self._of_device.format(record)

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: N802
        return _utc(record) if self.iso else super().formatTime(record, datefmt)


class _Filter(logging.Filter):
    """Hides single levels, and marks each record with the process's device, where it has one of several."""

    def __init__(self) -> None:
        super().__init__()
        self.muted: frozenset[str] = frozenset()
        self.device: int | None = None

    def filter(self, record: logging.LogRecord) -> bool:
        if self.device is not None:
            record.device = self.device
        return record.levelname.lower().replace("critical", "error") not in self.muted


class _Handler(logging.StreamHandler[TextIO]):
    """The process's one handler. Looks its stream up at every line, so that it survives a redirection."""

    def __init__(self) -> None:
        super().__init__(sys.stderr)
        self.kind = "text"
        self.hiding = _Filter()
        self.addFilter(self.hiding)

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


def configure(level: str, kind: str = "text") -> None:
    """Sends log lines of `level` and above to standard error. A handler that is there already stays (pytest's)."""
    if not _handlers():
        logging.getLogger().addHandler(_Handler())
    set_format(kind)
    set_level(level)
    for library in _CHATTY:
        logging.getLogger(library).setLevel(logging.INFO)


def set_level(level: str) -> None:
    """Changes the least severe level that is written: one of LEVELS. ValueError for another."""
    if level not in LEVELS:
        raise ValueError(f"got level {level!r}, expected one of {', '.join(LEVELS)}")
    logging.getLogger().setLevel(level.upper())


def level() -> str:
    """The least severe level that is written."""
    return logging.getLevelName(logging.getLogger().getEffectiveLevel()).lower()


def set_format(kind: str) -> None:
    """Changes the form of the lines: one of FORMATS. ValueError for another; nothing happens before `configure`."""
    if kind not in FORMATS:
        raise ValueError(f"got format {kind!r}, expected one of {', '.join(FORMATS)}")
    for handler in _handlers():
        handler.kind = kind
        handler.setFormatter(JsonFormatter() if kind == "json" else TextFormatter())


def format_kind() -> str:
    """The form of the lines; "text" before `configure`."""
    return next((handler.kind for handler in _handlers()), "text")


def set_device(device: int) -> None:
    """Has every line tell the device from now on. After `configure`."""
    for handler in _handlers():
        handler.hiding.device = device


def set_iso_times(iso: bool) -> None:
    """Changes how text lines show their times; JSON lines and other handlers stay as they are."""
    for handler in _handlers():
        if isinstance(handler.formatter, TextFormatter):
            handler.formatter.iso = iso


def iso_times() -> bool:
    """Whether text lines show their times as `set_iso_times` can make them."""
    return any(isinstance(one.formatter, TextFormatter) and one.formatter.iso for one in _handlers())


def mute(levels: Iterable[str]) -> None:
    """Hides these levels, and only these, whatever the least severe one is. ValueError for what is no level."""
    wanted = frozenset(levels)
    for unknown in sorted(wanted.difference(LEVELS)):
        raise ValueError(f"got level {unknown!r}, expected one of {', '.join(LEVELS)}")
    for handler in _handlers():
        handler.hiding.muted = wanted


def muted() -> frozenset[str]:
    """The levels that `mute` hides."""
    return next((handler.hiding.muted for handler in _handlers()), frozenset())


def _handlers() -> list[_Handler]:
    return [handler for handler in logging.getLogger().handlers if isinstance(handler, _Handler)]


def _device_of(record: logging.LogRecord) -> int | None:
    device: int | None = getattr(record, "device", None)
    return device


def _utc(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
