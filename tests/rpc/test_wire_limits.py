"""What the scanner refuses: a wrong item alone, bytes that are no protobuf as a whole, both in bounded time."""

from __future__ import annotations

import pytest
from google.protobuf.message import DecodeError

from aclserve.errors import InvalidArgument
from aclserve.v1 import model_pb2 as pb
from aclserve_server.engine.items import Item
from aclserve_server.rpc.varint import MAX_FIELDS
from aclserve_server.rpc.wire import scan_infer_request, scan_stream_request
from aclserve_server.rpc.wire_templates import ITEMS, MESSAGES, PER_LENGTH
from rpc.wire_messages import varint


@pytest.fixture(autouse=True)
def _no_templates() -> None:
    ITEMS.clear()
    MESSAGES.clear()


def item(**fields: object) -> pb.InferItem:
    made = pb.InferItem(**fields)
    made.inputs.add(name="x", data_type=12, shape=(1, 2), data=b"12345678")
    return made


def wrap(*items: bytes) -> bytes:
    """A StreamInferRequest of encoded items."""
    listed = b"".join(b"\x0a" + varint(len(one)) + one for one in items)
    return b"\x12" + varint(len(listed)) + listed


def scan_items(message: bytes) -> list[Item]:
    items = scan_stream_request(message)
    assert isinstance(items, list)
    return items


def reason_of(message: bytes) -> str:
    """The reason a unary request is refused for; a stream must give the same, by item."""
    with pytest.raises(InvalidArgument) as refused:
        scan_infer_request(message)
    good = item(id="good").SerializeToString()
    for _ in range(3):
        first, bad, last = scan_items(wrap(good, message, good))
        assert first.error is None
        assert last.error is None
        assert bad.error is not None
        assert bad.error.reason == refused.value.reason
        assert len(bad.id.encode()) <= 3 * 128
    return refused.value.reason


def with_tensor(**fields: object) -> bytes:
    made = pb.InferItem(id="bad")
    made.inputs.add(**fields)
    return made.SerializeToString()


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (with_tensor(name="x", shape=(1,), data=b"1"), "DATA_TYPE_UNSUPPORTED"),
        (with_tensor(name="x", data_type=99, data=b"1"), "DATA_TYPE_UNSUPPORTED"),
        (with_tensor(name="x", data_type=-1, data=b"1"), "DATA_TYPE_UNSUPPORTED"),
        (with_tensor(name="x", data_type=2, fill={}), "FILL_PATTERN_UNSPECIFIED"),
        (with_tensor(name="x", data_type=2, fill={"pattern": 3}), "FILL_PATTERN_UNSUPPORTED"),
        (with_tensor(name="x", data_type=2, shape=[1] * 33, data=b"1"), "TOO_MANY_DIMENSIONS"),
        (with_tensor(name="x", data_type=2, shape=[-1] * 33, data=b"1"), "TOO_MANY_DIMENSIONS"),
        (with_tensor(name="x", data_type=2, shape=[1] * 5000, data=b"1"), "TOO_MANY_DIMENSIONS"),
        (b"\x1a\x46\x10\x02" + b"\x18\x01" * 34, "TOO_MANY_DIMENSIONS"),
        (pb.InferItem(inputs=[{"data_type": 2}] * 257).SerializeToString(), "TOO_MANY_INPUTS"),
        (pb.InferItem(outputs=[{"name": "y"}] * 257).SerializeToString(), "TOO_MANY_OUTPUTS"),
        (item(id="i" * 129).SerializeToString(), "ITEM_ID_TOO_LONG"),
        (item(id="ü" * 65).SerializeToString(), "ITEM_ID_TOO_LONG"),
        (item(model="m" * 5000).SerializeToString(), "TEXT_TOO_LONG"),
        (b"\x0a\x02\xff\xfe", "INVALID_UTF8"),
        (b"\x0a\x80\x01" + b"\xff" * 128, "INVALID_UTF8"),
        (b"\x12\x03\xed\xa0\x80", "INVALID_UTF8"),
        (b"\x1a\x05\x0a\x01\xff\x10\x02", "INVALID_UTF8"),
        (b"\x1a\x09\x10\x02\x2a\x05\x0a\x01\xff\x10\x02", "INVALID_UTF8"),
    ],
)
def test_a_wrong_item_is_refused_by_its_reason_and_alone(message: bytes, reason: str) -> None:
    assert reason_of(message) == reason


def test_limits_are_inclusive() -> None:
    made = pb.InferItem(id="i" * 128)
    for _ in range(256):
        made.inputs.add(name="x", data_type=2, shape=[1] * 32, data=b"1")
    for _ in range(256):
        made.outputs.add(name="y")
    scanned = scan_infer_request(made.SerializeToString())
    assert len(scanned.inputs) == len(scanned.outputs) == 256
    assert scanned.inputs[255].shape == (1,) * 32


def test_the_message_names_the_input_and_stays_short() -> None:
    with pytest.raises(InvalidArgument, match="input 'left' has data type 99"):
        scan_infer_request(with_tensor(name="left", data_type=99))
    with pytest.raises(InvalidArgument) as refused:
        scan_infer_request(with_tensor(name="n" * 4000, data_type=99))
    assert len(refused.value.message) < 300


def test_a_refused_item_keeps_as_much_of_its_id_as_may_be_echoed() -> None:
    (bad,) = scan_items(wrap(item(id="ü" * 65).SerializeToString()))
    assert bad.id == "ü" * 64


@pytest.mark.parametrize("message", [b"", b"\x20\x01", b"\x22\x00", b"\x0b\x0c"])
def test_a_stream_message_of_none_of_its_kinds_is_refused(message: bytes) -> None:
    with pytest.raises(InvalidArgument) as refused:
        scan_stream_request(message)
    assert refused.value.reason == "REQUEST_EMPTY"


def test_an_empty_list_of_items_is_no_error() -> None:
    assert scan_items(b"\x12\x00") == []


def test_the_rare_messages_come_as_objects() -> None:
    config = pb.StreamConfig(model="m", order=2, max_pending_items=7, version=3)
    assert scan_stream_request(pb.StreamInferRequest(config=config).SerializeToString()) == config
    cancel = pb.CancelItems(ids=["a", "b"])
    assert scan_stream_request(pb.StreamInferRequest(cancel=cancel).SerializeToString()) == cancel


def test_messages_in_a_row_merge_as_protobuf_merges_them() -> None:
    first, second = (pb.StreamInferRequest(items=pb.ItemList(items=[item(id=name)])) for name in "ab")
    config = pb.StreamInferRequest(config=pb.StreamConfig(model="m")).SerializeToString()
    one, two = first.SerializeToString(), second.SerializeToString()
    assert [scanned.id for scanned in scan_items(one + two)] == ["a", "b"]
    assert [scanned.id for scanned in scan_items(one + config + two)] == ["b"]
    assert scan_stream_request(one + config) == pb.StreamConfig(model="m")


def test_items_that_a_later_member_replaces_must_still_be_text() -> None:
    bad = wrap(b"\x0a\x01\xff")
    with pytest.raises(InvalidArgument) as refused:
        scan_stream_request(bad + b"\x0a\x00")
    assert refused.value.reason == "INVALID_UTF8"


@pytest.mark.parametrize(
    "message",
    [
        b"\x80",
        b"\x0a",
        b"\x0a\x05abc",
        b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
        b"\x0a\xff\xff\xff\xff\x7f",
        b"\x38" + b"\xff" * 10 + b"\x01",
        b"\x00\x01",
        b"\x0e\x01",
        b"\x0c",
        b"\x43\x4c",
        b"\x43",
        b"\x41\x01",
        b"\x1a\x04\x1a\x02\x01\x80",
        b"\x1a\x04\x0a\x09ab\x12\x0a0123456789",
        b"\x1a\xcb\x02\x1a\xc8\x02" + b"\x80" * 328,
        b"\x1a\xcb\x02\x1a\xc8\x02" + b"\x01" * 100 + b"\xff" * 10 + b"\x01" * 218,
        b"\x2a\x02\x08\x80",
        b"\x43" * 101 + b"\x44" * 101,
    ],
)
def test_bytes_that_are_no_protobuf_are_refused_as_a_whole(message: bytes) -> None:
    for scan, whole in ((scan_infer_request, message), (scan_stream_request, wrap(message))):
        with pytest.raises(InvalidArgument) as refused:
            scan(whole)
        assert refused.value.reason == "MALFORMED_MESSAGE"


def test_every_truncation_of_a_known_message_is_refused_or_read_as_protobuf_reads_it() -> None:
    whole = wrap(item(id="abc", version=3, timeout={"nanos": 5}, capture_time={"seconds": 9}).SerializeToString())
    for _ in range(3):
        scan_items(whole)
    for end in range(1, len(whole)):
        with pytest.raises(InvalidArgument) as refused:
            scan_stream_request(whole[:end])
        assert refused.value.reason == "MALFORMED_MESSAGE"


def groups(depth: int) -> bytes:
    return b"\x5b" * depth + b"\x5c" * depth


@pytest.mark.parametrize("around", [0, 1, 2])
def test_groups_nest_as_deep_as_protobuf_lets_them(around: int) -> None:
    for depth, accepted in ((100 - around, True), (101 - around, False)):
        within = groups(depth)
        listed = (b"\x12\x00" + within, b"\x12" + varint(len(within)) + within, wrap(within))[around]
        if accepted:
            pb.StreamInferRequest.FromString(listed)
            scan_items(listed)
        else:
            with pytest.raises(DecodeError):
                pb.StreamInferRequest.FromString(listed)
            with pytest.raises(InvalidArgument):
                scan_stream_request(listed)


@pytest.mark.parametrize(
    "message",
    [
        b"\x40\x01" * (MAX_FIELDS + 1),
        b"\x12\x00" * (MAX_FIELDS + 1),
        wrap(*[b""] * (MAX_FIELDS + 1)),
        wrap(*[b"\x0a\x00"] * MAX_FIELDS),
        wrap(b"\x1a\x00" * (MAX_FIELDS + 1)),
        b"\x43" + b"\x08\x01" * (MAX_FIELDS + 1) + b"\x44",
    ],
)
def test_a_message_of_more_fields_than_anyone_needs_is_refused_before_it_costs_much(message: bytes) -> None:
    for _ in range(2):
        with pytest.raises(InvalidArgument) as refused:
            scan_stream_request(message)
        assert refused.value.reason == "MESSAGE_TOO_COMPLEX"


def test_items_as_clients_send_them_are_matched_not_walked(monkeypatch: pytest.MonkeyPatch) -> None:
    from aclserve_server.rpc import wire

    walked = []
    walk = wire._Scan.item
    monkeypatch.setattr(wire._Scan, "item", lambda *args: walked.append(1) or walk(*args))
    for number in range(100):
        made = item(
            id=f"{number:04}", model="m", timeout={"seconds": 1}, capture_time={"seconds": 1_790_000_000 + number}
        )
        made.inputs.add(name="b", data_type=2, buffer={"buffer_id": "b", "offset_bytes": 64 + number % 4})
        made.inputs.add(name="r", data_type=2, region={"region_id": "r", "offset_bytes": 640 + number % 4})
        made.outputs.add(name="y", region={"region_id": "r"})
        raw = made.SerializeToString()
        scan_items(wrap(raw))
        scan_items(wrap(raw, raw))
        scan_infer_request(raw)
    assert len(walked) <= 2 + 3  # seen, learned; then every new pair of slices once


def test_templates_are_bounded() -> None:
    for length in range(3000):
        message = with_tensor(name="x", data_type=2, shape=(length,), data=bytes(length))
        for _ in range(2):
            scan_infer_request(message)
    for name in range(100):
        for _ in range(3):
            scan_infer_request(with_tensor(name=f"{name:03}", data_type=2, shape=(5000,), data=bytes(5000)))
    templates = ITEMS._templates
    assert len(templates) <= 512
    assert max(map(len, templates.values())) <= PER_LENGTH
    scan_infer_request(with_tensor(name="n" * 4000, data_type=2, shape=(5000,), data=bytes(5000)))
    assert all(len(constant) <= 2048 for known in templates.values() for one in known for _, constant in one.constants)


def test_one_layout_is_learned_once() -> None:
    for number in range(1000):
        message = with_tensor(name="x", data_type=2, buffer={"buffer_id": f"{number:04}"})
        scan_infer_request(message)
    (templates,) = ITEMS._templates.values()
    assert len(templates) == 1
