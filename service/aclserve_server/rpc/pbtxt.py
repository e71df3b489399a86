"""A walk over protobuf text format by its tokens: which fields does a message not have, and where do the others stand?

protobuf's parser either refuses unknown fields or skips them without a word, stumbling over some that are right (an
empty list); and it keeps no lines. `TextFields` finds the unknown ones, makes a copy of the text with blanks in their
place, for the strict parser to read, and remembers lines. What is wrong in known fields is left for that parser to say.
"""

from __future__ import annotations

import re
from collections.abc import Container
from typing import Any, NamedTuple

MAX_DEPTH = 64

_TOKEN = re.compile(
    r"""(?P<skip>\s+|\#[^\n]*)
    |(?P<string>"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*')
    |(?P<mark>[{}<>\[\]:,;])
    |(?P<word>[^\s{}<>\[\]:,;"'\#]+)
    |(?P<bad>.)""",
    re.VERBOSE,
)
_NAME = re.compile(r"[A-Za-z_]\w*|\[.*\]")
_ENDS = {"{": "}", "<": ">"}


class TextError(ValueError):
    """Text that is no text format; `line` counts from 1."""

    def __init__(self, line: int, problem: str) -> None:
        super().__init__(problem)
        self.line = line


class _Token(NamedTuple):
    kind: str
    text: str
    line: int
    start: int
    end: int


class TextFields:
    """The fields of a text, for a message type: those of `read`, by their full names, and no others (None: all it has).

    `known` is the text with blanks in place of unknown fields, its lines unmoved. `unknown` has the paths of unknown
    fields in order, each once, such as `input.reshape`. Raises TextError for a string or an unknown field that does
    not end.
    """

    def __init__(self, text: str, message: Any, read: Container[str] | None = None) -> None:
        self._read = read
        self._tokens = _tokens(text)
        self._next = 0
        self._lines: dict[str, int] = {}
        self._texts: dict[str, str] = {}
        self._counts: dict[str, int] = {}
        self._unknown: dict[str, None] = {}
        self._spans: list[tuple[int, int]] = []
        self._fields(message, "", "", "", 0)
        self.unknown = tuple(self._unknown)
        self.known = _blanked(text, self._spans)

    def line(self, place: str) -> int | None:
        """Where a field stands, messages counted from 0 (`input[1].dims`); None for one that is not there."""
        return self._lines.get(place)

    def map_line(self, field: str, key: str) -> int | None:
        """Where the last entry of a map field with that key stands."""
        places = [f"{field}[{index}]" for index in range(self._counts.get(field, 0))]
        found = [self._lines[place] for place in places if self._texts.get(f"{place}.key", "")[1:-1] == key]
        return found[-1] if found else None

    def _peek(self) -> str:
        return self._tokens[self._next].text if self._next < len(self._tokens) else ""

    def _take(self) -> _Token | None:
        if self._next == len(self._tokens):
            return None
        self._next += 1
        return self._tokens[self._next - 1]

    def _fields(self, message: Any, path: str, place: str, end: str, depth: int) -> None:
        """The fields of a known message, up to `end`; gives up at what is no field, which the parser will name."""
        while (token := self._take()) is not None and token.text != end:
            if token.text in (",", ";"):
                continue
            name = self._whole_name(token)
            if not _NAME.fullmatch(name) or depth > MAX_DEPTH:
                self._next = len(self._tokens)
                return
            field = message.fields_by_name.get(name)
            if field is not None and self._read is not None and field.full_name not in self._read:
                field = None
            if self._peek() == ":":
                self._take()
            if field is None:
                self._unknown[path + name] = None
                self._skip_value(token, 0)
                if self._peek() in (",", ";"):
                    self._take()
                self._spans.append((token.start, self._tokens[self._next - 1].end))
            else:
                self._lines.setdefault(place + name, token.line)
                self._value(field.message_type, path + name, place + name, depth)

    def _whole_name(self, token: _Token) -> str:
        """A field's name; that of an extension is in brackets."""
        name = token.text
        while name.startswith("[") and not name.endswith("]"):
            part = self._take()
            if part is None:
                break
            name += part.text
        return name

    def _value(self, message: Any, path: str, place: str, depth: int) -> None:
        """The value of a known field."""
        token = self._take()
        if token is None or depth > MAX_DEPTH:
            self._next = len(self._tokens)
            return
        if token.text in _ENDS and message is not None:
            count = self._counts.get(place, 0)
            self._counts[place] = count + 1
            inside = f"{place}[{count}]"
            self._lines[inside] = token.line
            self._fields(message, f"{path}.", f"{inside}.", _ENDS[token.text], depth + 1)
        elif token.text == "[":
            while self._peek() not in ("]", ""):
                if self._peek() == ",":
                    self._take()
                else:
                    self._value(message, path, place, depth + 1)
            self._take()
        else:
            self._texts[place] = token.text
            self._skip_scalar(token)

    def _skip_scalar(self, token: _Token) -> None:
        """The rest of a scalar: a number after its sign, further pieces of a string."""
        if token.text == "-":
            self._take()
        while token.kind == "string" and self._next < len(self._tokens) and self._tokens[self._next].kind == "string":
            self._take()

    def _skip_value(self, owner: _Token, depth: int) -> None:
        """The value of an unknown field, or of a field within one."""
        token = self._take()
        if token is None:
            raise TextError(owner.line, f"nothing after {owner.text!r}; expected a value")
        if depth > MAX_DEPTH:
            raise TextError(token.line, f"blocks are nested too deeply; expected at most {MAX_DEPTH}")
        if token.text in _ENDS:
            self._skip_fields(token, depth)
        elif token.text == "[":
            while self._peek() != "]":
                if self._peek() == ",":
                    self._take()
                elif not self._peek():
                    raise TextError(token.line, "a list without an end; expected ']'")
                else:
                    self._skip_value(token, depth + 1)
            self._take()
        elif token.kind == "mark":
            raise TextError(token.line, f"{token.text!r} after {owner.text!r}; expected a value")
        else:
            self._skip_scalar(token)

    def _skip_fields(self, opening: _Token, depth: int) -> None:
        end = _ENDS[opening.text]
        while (token := self._take()) is not None:
            if token.text == end:
                return
            if token.text in (",", ";"):
                continue
            if not _NAME.fullmatch(self._whole_name(token)):
                raise TextError(token.line, f"{token.text!r} found; expected a field's name or {end!r}")
            if self._peek() == ":":
                self._take()
            self._skip_value(token, depth + 1)
        raise TextError(opening.line, f"a block without an end; expected {end!r}")


def _tokens(text: str) -> list[_Token]:
    found: list[_Token] = []
    line = 1
    for match in _TOKEN.finditer(text):
        kind = str(match.lastgroup)
        if kind == "bad":
            raise TextError(line, f"{match[0]} begins a string that does not end in its line")
        if kind != "skip":
            found.append(_Token(kind, match[0], line, match.start(), match.end()))
        line += match[0].count("\n")
    return found


def _blanked(text: str, spans: list[tuple[int, int]]) -> str:
    """The text with blanks in the spans; ends of lines stay."""
    parts: list[str] = []
    position = 0
    for start, end in spans:
        parts += [text[position:start], re.sub(r"[^\n]", " ", text[start:end])]
        position = end
    return "".join([*parts, text[position:]])
