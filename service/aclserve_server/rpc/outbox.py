"""What leaves a stream: messages, and which items are not pending any more when one is written."""

from __future__ import annotations

from aclserve_server.engine.frames import Frame
from aclserve_server.rpc.varint import read_length
from aclserve_server.rpc.wire_out import varint

JOINED_BYTES = 64 << 10
"""Messages below this size that are ready together are joined."""

Message = tuple[list[Frame] | None, bytes]
"""A message, and the frames that are not pending any more when it is written; None for a notice."""


def joined(outbox: list[Message]) -> list[Message]:
    """Joins small results in a row; notices stay alone."""
    if len(outbox) == 1:
        return outbox
    joined: list[Message] = []
    run: list[bytes] = []
    frames: list[Frame] = []
    size = 0
    for owners, message in outbox:
        if run and (owners is None or size + len(message) > JOINED_BYTES):
            joined.append((frames, _one_list(run)))
            run, frames, size = [], [], 0
        if owners is not None:
            run.append(message)
            frames += owners
            size += len(message)
        else:
            joined.append((owners, message))
    if run:
        joined.append((frames, _one_list(run)))
    return joined


def _one_list(messages: list[bytes]) -> bytes:
    """The results of messages that hold nothing else, in one list.

    Messages written one after the other would parse as their merge, but not everywhere: protobuf.js before 8 keeps the
    last list only.
    """
    if len(messages) == 1:
        return messages[0]
    bodies = [message[read_length(message, 1)[1] :] for message in messages]
    return b"\x12" + varint(sum(map(len, bodies))) + b"".join(bodies)
