"""What a worker and its supervisor tell each other, over a pair of sockets: one JSON object a line.

The worker: `alive` every `ALIVE_S` from its event loop; `ready` with the `library` it uses; `health` with all `names`
and whether they serve, at every change; `page` with the `text` that its /metrics would show (null where it cannot be
told), when it is asked. The supervisor: `metrics` asks for that page. The end of the connection is the end of the other
side.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from typing import Any

ALIVE_S = 1.0
MAX_LINE_BYTES = 64 << 20

_CROWDED_BYTES = 1 << 20
"""What may wait for the other side to be read; it does not read when more does."""

Message = dict[str, Any]


class Link:
    """One end. All methods belong to the event loop's thread."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def open(cls, end: socket.socket) -> Link:
        """Takes a connected socket over."""
        return cls(*await asyncio.open_unix_connection(sock=end, limit=MAX_LINE_BYTES))

    @property
    def is_crowded(self) -> bool:
        """Whether the other side does not read."""
        return self._writer.transport.get_write_buffer_size() > _CROWDED_BYTES

    def tell(self, event: str, **facts: Any) -> None:
        """Sends a message when the other side takes it; never waits. After its end nothing is sent."""
        if not self._writer.is_closing():
            self._writer.write(json.dumps({"event": event, **facts}).encode() + b"\n")

    async def messages(self) -> AsyncIterator[Message]:
        """What the other side tells, until its end."""
        while True:
            try:
                line = await self._reader.readline()
            except (ConnectionError, ValueError):  # ValueError: a line beyond the limit, after which there is no next
                return
            if not line.endswith(b"\n"):
                return
            message: Message = json.loads(line)
            yield message

    def close(self) -> None:
        """Ends the connection."""
        self._writer.close()
