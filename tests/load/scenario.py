"""The scenario files of this folder: ghz configurations with one more key, `aclserve`, which ghz passes over.

    messages    how many messages of items each stream sends: those of `data` after the first, again and again
    server      options and latency of the emulated device's server, as `server.py` takes them
    codes       names of the statuses that calls may end with
    outcomes    names of the statuses that items may have; DROPPED for one that the stream's frame policy gave up
    thresholds  what the emulated device's server must reach, see `checks.py`

ghz sends `data` once in each stream and then half-closes. With `stream-call-count` it would begin again at the first
message, which is the configuration, so the messages are written out instead.
"""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
KEY = "aclserve"

_SHORT_MESSAGES = 10
_SHORT_ROUNDS = 2


@dataclass(frozen=True)
class Scenario:
    """One scenario. `calls` are made, each with `items` items."""

    name: str
    ghz: dict[str, Any]
    server: dict[str, Any]
    codes: frozenset[str]
    outcomes: frozenset[str]
    thresholds: dict[str, float]

    @property
    def streams(self) -> bool:
        """Whether each call is a stream."""
        return isinstance(self.ghz["data"], list)

    @property
    def calls(self) -> int:
        return int(self.ghz["total"])

    @property
    def items(self) -> int:
        """Items of one call."""
        if not self.streams:
            return 1
        return sum(len(message["items"]["items"]) for message in self.ghz["data"] if "items" in message)


def names() -> list[str]:
    """The names of all scenarios."""
    return sorted(path.stem for path in FOLDER.glob("*.json"))


def load(name: str, *, short: bool = False) -> Scenario:
    """Reads a scenario and writes its messages out; `short` makes fewer and shorter calls of it."""
    ghz = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    ours = ghz.pop(KEY)
    messages = ours.get("messages", 0)
    if short:
        ghz["total"] = min(ghz["total"], ghz["concurrency"] * _SHORT_ROUNDS)
        messages = min(messages, _SHORT_MESSAGES)
    if isinstance(ghz["data"], list):
        config, *rest = ghz["data"]
        ghz["data"] = [config, *itertools.islice(itertools.cycle(rest), messages)]
    return Scenario(
        name,
        {"name": name, **ghz},
        ours.get("server", {}),
        frozenset(ours["codes"]),
        frozenset(ours["outcomes"]),
        ours["thresholds"],
    )
