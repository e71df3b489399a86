"""The one log line of a stream: its end, with totals."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class StreamEnd:
    """A stream that is over. `code` is OK, the error that ended it, or CANCELLED where the client went away.

    `model` is what its configuration names, "" for none; `drops` are by reason; `principal` is who called, None where
    nobody had to say so. Items that were neither answered nor dropped were still pending.
    """

    protocol: str
    number: int
    model: str
    code: str
    received_items: int
    succeeded_items: int
    failed_items: int
    drops: Mapping[str, int]
    input_bytes: int
    duration_s: float
    principal: str | None = None

    def tell(self) -> None:
        """Writes the line. Its JSON form has all the keys always, `drops` only the reasons that occurred."""
        dropped = sum(self.drops.values())
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(self.drops.items()))
        log.info(
            "stream %d of %s%s ended, %s, after %.3f s: "
            "%d received, %d succeeded, %d failed, %d dropped%s, %d input bytes",
            self.number,
            self.protocol,
            f" to {self.model}" if self.model else "",
            self.code,
            self.duration_s,
            self.received_items,
            self.succeeded_items,
            self.failed_items,
            dropped,
            f" ({reasons})" if reasons else "",
            self.input_bytes,
            extra={
                "fields": {
                    "event": "stream_end",
                    "protocol": self.protocol,
                    "stream": self.number,
                    "principal": self.principal,
                    "model": self.model,
                    "code": self.code,
                    "received_items": self.received_items,
                    "succeeded_items": self.succeeded_items,
                    "failed_items": self.failed_items,
                    "dropped_items": dropped,
                    "drops": dict(self.drops),
                    "input_bytes": self.input_bytes,
                    "duration_s": round(self.duration_s, 6),
                }
            },
        )
