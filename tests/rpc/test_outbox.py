"""What leaves a stream together: one message is one list, for parsers that do not merge."""

from __future__ import annotations

import pytest

from aclserve.v1 import model_pb2 as pb
from aclserve_server.engine.frames import Frame
from aclserve_server.engine.items import Result
from aclserve_server.rpc.outbox import JOINED_BYTES, joined
from aclserve_server.rpc.varint import read_length
from aclserve_server.rpc.wire_out import assemble_results

NOTICE = pb.StreamInferResponse(window=pb.StreamWindow(max_pending_items=3)).SerializeToString()


def results(*ids: str) -> bytes:
    (message,) = assemble_results([Result(item_id) for item_id in ids])
    return message


def ids(message: bytes) -> list[str]:
    """The ids in a message that is a single ResultList from end to end."""
    length, begin = read_length(message, 1)
    assert message[0] == 0x12
    assert begin + length == len(message)
    return [result.id for result in pb.StreamInferResponse.FromString(message).results.results]


@pytest.mark.parametrize("count", [1, 2, 40, 400])
def test_results_in_a_row_are_one_list(count: int) -> None:
    ((owners, message),) = joined([([], results(f"{number}", f"{number}b")) for number in range(count)])
    assert owners == []
    assert ids(message) == [name for number in range(count) for name in (f"{number}", f"{number}b")]


def test_notices_stay_alone_and_in_their_place() -> None:
    outbox: list[tuple[list[Frame] | None, bytes]] = [
        ([], results("a")),
        ([], results("b")),
        (None, NOTICE),
        ([], results("c")),
    ]
    first, notice, last = joined(outbox)
    assert ids(first[1]) == ["a", "b"]
    assert notice == (None, NOTICE)
    assert ids(last[1]) == ["c"]


def test_a_message_stays_within_its_size() -> None:
    name = "x" * 1000
    messages = [message for _, message in joined([([], results(name)) for _ in range(200)])]
    assert sum(len(ids(message)) for message in messages) == 200
    assert len(messages) > 1
    assert all(len(message) <= JOINED_BYTES for message in messages)
