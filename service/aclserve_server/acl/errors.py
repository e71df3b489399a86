"""What goes wrong at the C boundary: a failed call, a function this CANN does not have, an unusable library."""

from __future__ import annotations

from aclserve_server.acl.codes import Category, lookup

NOT_SUPPORTED = 200001
NO_OBJECT = 500000

_SINCE = {
    "5.0": "in every CANN from 5.0 on",
    "6.2/6.3": "first in 6.2 or 6.3",
    "master-2026-08": "first after 9.2.0-beta.1",
}


def first_seen(since: str) -> str:
    """The words for the `since` of a prototype, for messages: "first in 8.5.0"."""
    return _SINCE.get(since, f"first in {since}")


class AclError(Exception):
    """A call into AscendCL failed.

    `call` is the C name, `code` the status (500000 where a constructor returned NULL, 200001 for `Unsupported`); `name`
    and `category` are its row in the status table. `text` is the runtime's own last message, read in the failing thread
    right after the call, or ""; it and `hint` may hold paths of the server, so neither ever reaches a client.
    """

    def __init__(self, call: str, code: int, text: str = "", hint: str = "") -> None:
        super().__init__(call, code, text, hint)
        row = lookup(code)
        self.call = call
        self.code = code
        self.text = text
        self.hint = hint
        self.name: str = row.name
        self.category: Category = row.category
        self.meaning: str = row.meaning

    def __str__(self) -> str:
        parts = [f"{self.call} failed with {self.code} ({self.name}): {self.meaning}", self.hint, self.text]
        return " | ".join(part for part in parts if part)


class Unsupported(AclError):
    """A function that the opened library does not export: this CANN is older than the function. Nothing was called."""

    def __init__(self, call: str, since: str) -> None:
        super().__init__(call, NOT_SUPPORTED)
        self.args = (call, since)
        self.since = since

    def __str__(self) -> str:
        return f"this CANN has no {self.call} ({first_seen(self.since)})"


class LibraryError(Exception):
    """AscendCL cannot be used on this machine as it is set up; the message says what was found and what to do."""
