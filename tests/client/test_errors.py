"""Statuses and item errors become the classes of aclserve.errors: every category, on the wire and without."""

from __future__ import annotations

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

import aclserve_client as ac
from aclserve import errors
from aclserve.v1 import model_pb2
from aclserve_client.errors import CallContext, error_from_item, error_from_rpc
from client.echo_errors import CODES, details_of

CATEGORIES = errors.AclserveError.__subclasses__()
CONTEXT = CallContext("host:1", 2.5)


class Call(grpc.RpcError):
    """What grpc raises, as far as the client looks at it."""

    def __init__(self, code, details, metadata=()):
        self.code = lambda: code
        self.details = lambda: details
        self.trailing_metadata = lambda: metadata


@pytest.mark.parametrize("category", CATEGORIES, ids=lambda cls: cls.code_name)
def test_every_category_comes_back_over_the_wire(server, category):
    server.faults.plan["UnloadModel"] = [
        category("the message", reason="THE_REASON", metadata={"acl_code": 507011, "size_bytes": 3}, retry_delay=1.5)
    ]
    with ac.Client(server.address) as client, pytest.raises(category) as caught:
        client.unload("echo")
    error = caught.value
    assert type(error) is category
    assert (error.message, error.reason, error.retry_delay) == ("the message", "THE_REASON", 1.5)
    assert error.metadata == {"acl_code": "507011", "size_bytes": "3"}
    assert isinstance(error.__cause__, grpc.RpcError)


@pytest.mark.parametrize("category", CATEGORIES, ids=lambda cls: cls.code_name)
def test_every_category_of_an_item(category):
    item = model_pb2.ItemError(
        code=category.code,
        reason="R",
        message="m",
        metadata={"a": "1"},
        retry_delay=Duration(seconds=1, nanos=500_000_000),
    )
    error = error_from_item(item)
    assert type(error) is category
    assert (error.reason, error.message, error.metadata, error.retry_delay) == ("R", "m", {"a": "1"}, 1.5)
    item.ClearField("retry_delay")
    assert error_from_item(item).retry_delay is None


@pytest.mark.parametrize("code", [code for number, code in CODES.items() if number], ids=lambda code: code.name)
def test_every_status_code_is_mapped_without_details(code):
    error = error_from_rpc(Call(code, "what happened"), CONTEXT)
    assert isinstance(error, errors.AclserveError)
    assert error.code == (code.value[0] if type(error) is not errors.AclserveError else 2)
    assert error.reason.isupper()
    assert error.message


def test_the_classes_are_re_exported():
    for category in [errors.AclserveError, *CATEGORIES]:
        assert getattr(ac, category.__name__) is category
        assert category.__name__ in ac.__all__


@pytest.mark.parametrize(
    ("code", "details", "kind", "reason", "part"),
    [
        (
            grpc.StatusCode.UNAVAILABLE,
            "failed to connect to all addresses; last error: Connection refused",
            ac.Unavailable,
            "CONNECTION_FAILED",
            "aclserve serve",
        ),
        (grpc.StatusCode.UNAVAILABLE, "DNS resolution failed for x", ac.Unavailable, "CONNECTION_FAILED", "host:1"),
        (grpc.StatusCode.UNAVAILABLE, "Socket closed", ac.Unavailable, "CONNECTION_LOST", "Socket closed"),
        (grpc.StatusCode.INTERNAL, "Internal error from Core", ac.Unavailable, "CONNECTION_LOST", "reason is lost"),
        (grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded", ac.DeadlineExceeded, "DEADLINE_EXCEEDED", "2.5 s"),
        (
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            "Sent message larger than max (9 vs. 8)",
            ac.ResourceExhausted,
            "MESSAGE_TOO_LARGE",
            "max_message_bytes",
        ),
        (grpc.StatusCode.UNIMPLEMENTED, "Method not found!", ac.Unimplemented, "UNIMPLEMENTED", "Method not found!"),
        (grpc.StatusCode.ABORTED, "", ac.AclserveError, "UNKNOWN", "host:1"),
    ],
)
def test_what_the_channel_says_becomes_helpful(code, details, kind, reason, part):
    error = error_from_rpc(Call(code, details), CONTEXT)
    assert (type(error), error.reason) == (kind, reason)
    assert part in error.message


def test_details_that_do_not_fit_are_left_out():
    detailed = errors.NotFound("m", reason="R", metadata={"a": 1}, retry_delay=2)
    of_a_proxy = (("grpc-status-details-bin", details_of(detailed, domain="proxy.example")),)
    error = error_from_rpc(Call(grpc.StatusCode.NOT_FOUND, "m", of_a_proxy), CONTEXT)
    assert (error.reason, error.metadata, error.retry_delay) == ("NOT_FOUND", {}, 2)
    for wrong in (b"\xff\xff", details_of(errors.Internal("m", reason="R"))):
        error = error_from_rpc(Call(grpc.StatusCode.NOT_FOUND, "text", (("grpc-status-details-bin", wrong),)), CONTEXT)
        assert (type(error), error.reason, error.message) == (ac.NotFound, "NOT_FOUND", "text")


def test_long_texts_are_cut_to_one_line():
    error = error_from_rpc(Call(grpc.StatusCode.INTERNAL, "a\nb " + "c" * 1000), CONTEXT)
    assert error.message.startswith("a b ccc")
    assert len(error.message) < 310
