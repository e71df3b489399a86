"""The v2 scanner against the generated classes: the same messages are taken, with the same contents, and no others."""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aclserve_server.rpc.v2.wire_templates import REQUESTS
from rpc.v2 import v2_messages as wire
from rpc.v2.v2_messages import check

EXAMPLES = int(os.environ.get("ACLSERVE_TEST_EXAMPLES", "150"))

often = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize="ACLSERVE_TEST_EXAMPLES" not in os.environ,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@pytest.fixture(autouse=True)
def _no_templates() -> None:
    REQUESTS.clear()


@often
@given(wire.requests())
def test_any_encoding(message: bytes) -> None:
    check(message)


@often
@given(wire.requests(), st.data())
def test_a_repeat_is_read_as_the_first(message: bytes, data: st.DataObject) -> None:
    """Fields that templates know vary, and so does anything else by a byte."""
    for _ in range(3):
        check(message)
    for _ in range(3):
        if message:
            place = data.draw(st.integers(0, len(message) - 1))
            changed = bytes([data.draw(st.integers(0, 255))])
            check(message[:place] + changed + message[place + 1 :])
    check(message)


@often
@given(wire.requests(), st.data())
def test_cut_off_and_mutated_bytes(message: bytes, data: st.DataObject) -> None:
    check(message[: data.draw(st.integers(0, len(message)))])
    spot = data.draw(st.integers(0, len(message)))
    check(message[:spot] + data.draw(st.binary(max_size=4)) + message[spot + data.draw(st.integers(0, 3)) :])
    check(data.draw(st.binary(max_size=60)))


def test_enough_examples_are_read_and_enough_are_refused() -> None:
    outcomes: list[str] = []

    @often
    @given(wire.requests())
    def collect(message: bytes) -> None:
        outcomes.append(check(message))

    collect()
    assert outcomes.count("read") > len(outcomes) // 8
    assert outcomes.count("refused") > len(outcomes) // 8
