"""How to call a model by hand, as the server tells it."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass

_ADDRESS = "localhost:8001"
"""How a server names itself."""


@dataclass(frozen=True)
class ModelUsage:
    """Text to copy: shell commands, and programs whose inputs are zeros of the model's types and shapes.

    The server is named `localhost:8001`; `at` names another. All are empty where the server is too old to tell them.
    """

    grpcurl: str = ""
    ghz: str = ""
    python: str = ""
    python_v2: str = ""

    def at(self, address: str) -> ModelUsage:
        """The same for the server at "host:port" or "unix:path"."""
        shell = shlex.quote(address)
        literal = json.dumps(address, ensure_ascii=False)[1:-1]
        return ModelUsage(
            _replaced(self.grpcurl, shell),
            _replaced(self.ghz, shell),
            _replaced(self.python, literal),
            _replaced(self.python_v2, literal),
        )


def _replaced(text: str, address: str) -> str:
    return address.join(text.rsplit(_ADDRESS, 1))
