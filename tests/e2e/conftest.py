"""Every error that any of these tests makes a server of this process send is looked at, whatever the test is about."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from aclserve_server.rpc import status
from e2e.raw import PRIVATE

SENT = ("/../..", "/etc/passwd", "/etc/models/relu", "/etc/x", "<model>/1/")
"""What looks like a path of the server: names that tests send, and a place in words."""


@pytest.fixture(autouse=True)
def _errors_are_clean(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No path, address or internal name in any message or metadata."""
    unclean: list[str] = []
    cut = status._metadata

    def look(error: Any) -> dict[str, str]:
        shown = cut(error)
        for text in (error.message, *shown.values()):
            for own in SENT:
                text = text.replace(own, "")
            if PRIVATE.search(text) or not error.reason.isupper():
                unclean.append(f"{error.reason}: {text[:500]}")
        return shown

    monkeypatch.setattr(status, "_metadata", look)
    yield
    assert not unclean, unclean
