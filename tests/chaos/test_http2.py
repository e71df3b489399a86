"""Connections that break HTTP/2's rules, or keep them in order to do harm, hurt nobody but themselves."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import ExitStack

import grpc
import psutil
import pytest
from grpc_health.v1 import health_pb2

from aclserve.v1 import model_pb2
from chaos import http2
from e2e.raw import Raw, array_of, leaves_nothing, on_loop, tensor, wait_until
from serving import Serving, elementwise, put_model, rows, serving

GROWTH_BYTES = 64 << 20
"""What an attack may cost the process in memory, the client's own side included."""

MORE_BYTES = {"rapid_reset": 128 << 20}
"""Thousands of calls that begin and end are objects for the moment: 30 to 70 MB were seen."""


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    root = tmp_path_factory.mktemp("models")
    put_model(root, "one", elementwise())
    with serving(root) as up:
        yield up


@pytest.fixture(scope="module")
def raw(service: Serving) -> Iterator[Raw]:
    with Raw(service.address) as connected:
        yield connected


def serves(raw: Raw) -> None:
    """Another connection is served as ever."""
    answer = raw.infer(model_pb2.InferRequest(model="one", inputs=[tensor("x", rows(3, 1))]))
    assert array_of(answer.outputs.tensors[0]).tolist() == rows(3, 1).tolist()
    check = raw.channel.unary_unary(
        "/grpc.health.v1.Health/Check",
        health_pb2.HealthCheckRequest.SerializeToString,
        health_pb2.HealthCheckResponse.FromString,
    )
    assert check(health_pb2.HealthCheckRequest(), timeout=30).status == health_pb2.HealthCheckResponse.SERVING


@pytest.mark.parametrize("name", http2.ATTACKS)
def test_an_attack_hurts_nobody_else(service: Serving, raw: Raw, caplog: pytest.LogCaptureFixture, name: str) -> None:
    """Served meanwhile and afterwards; when the connections are gone, so is all that they held."""
    serves(raw)
    process = psutil.Process()
    with leaves_nothing(service, raw, caplog):
        descriptors, resident = process.num_fds(), process.memory_info().rss
        port = int(service.address.rpartition(":")[2])
        with ExitStack() as connections:
            for number in range(4):
                sock = http2.attack(port, name, random.Random(f"{name} {number}"))
                assert sock is not None
                connections.enter_context(sock)
                serves(raw)
            assert process.memory_info().rss - resident < MORE_BYTES.get(name, GROWTH_BYTES)
        wait_until(lambda: process.num_fds() <= descriptors, "the connections are gone")
        wait_until(lambda: not on_loop(service, lambda: service.server.calls.streams), "no stream is left")
        wait_until(lambda: not on_loop(service, lambda: service.server.health.watchers), "nobody watches")
        serves(raw)


def test_one_client_may_have_many_calls_at_a_time(raw: Raw) -> None:
    """gRPC would cancel some of more than a thousand that wait to be begun, and tell nobody why."""
    request = model_pb2.InferRequest(model="one", inputs=[tensor("x", rows(1, 1))])
    calls = [raw.models.Infer.future(request, timeout=60) for _ in range(3000)]
    assert {call.code() for call in calls} == {grpc.StatusCode.OK}
