"""Retries follow gRPC's service config and the server's push-back: by themselves, over the wire, and as gRPC does."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

import aclserve_client as ac
from aclserve.v1 import device_pb2
from aclserve_client.retries import NEVER, Budget, Retry, ServiceConfig, pushback_of, reads_policy

UNAVAILABLE = ac.Unavailable("x", reason="X")
LATER = ac.Unavailable("x", reason="X", retry_delay=3)
INFO = "/aclserve.v1.DeviceService/GetServerInfo"
POLICY = {
    "maxAttempts": 4,
    "initialBackoff": "0.01s",
    "maxBackoff": "0.02s",
    "backoffMultiplier": 2,
    "retryableStatusCodes": ["UNAVAILABLE", "RESOURCE_EXHAUSTED"],
}


def steady():
    return 0.5


def config(*names, throttling=None, **changes):
    methods = [{"name": list(names) or [{}], "retryPolicy": {**POLICY, **changes}}]
    found = {"methodConfig": methods}
    return json.dumps(found if throttling is None else {**found, "retryThrottling": throttling})


def test_reads_back_off_and_fit_into_the_deadline():
    retry = Retry(reads_policy(4, 0.1), jitter=steady)
    assert [retry.delay_after(UNAVAILABLE, None) for _ in range(4)] == [0.1, 0.2, 0.4, None]
    assert Retry(reads_policy(3, 0.1)).delay_after(LATER, 2.9) is None
    assert Retry(reads_policy(3, 0.1)).delay_after(LATER, 3.1) == 3
    assert Retry(reads_policy(3, 0.1)).delay_after(ac.Internal("x", reason="X"), None) is None
    assert Retry(NEVER).delay_after(UNAVAILABLE, None) is None


def test_waits_vary_by_a_fifth_and_have_a_bound():
    for value, factor in ((0.0, 0.8), (1.0, 1.2)):
        retry = Retry(ServiceConfig(config()).policy(INFO), jitter=lambda value=value: value)
        waits = [retry.delay_after(UNAVAILABLE, None) for _ in range(3)]
        assert waits == pytest.approx([0.01 * factor, 0.02 * factor, 0.02 * factor])


def test_the_server_s_push_back_goes_first_and_the_backoff_begins_anew():
    retry = Retry(reads_policy(9, 0.1), jitter=steady)
    assert [retry.delay_after(UNAVAILABLE, None) for _ in range(2)] == [0.1, 0.2]
    assert retry.delay_after(LATER, None, 7.0) == 7.0
    assert retry.delay_after(UNAVAILABLE, None) == 0.1
    assert retry.delay_after(UNAVAILABLE, None, -1.0) is None


@pytest.mark.parametrize(
    ("value", "seconds"), [("250", 0.25), (b"0", 0.0), ("-1", -1.0), ("soon", -1.0), ("1e3", -1.0), ("", -1.0)]
)
def test_push_back_in_trailing_metadata(value, seconds):
    assert pushback_of((("other", "1"), ("grpc-retry-pushback-ms", value))) == seconds
    assert pushback_of((("other", "1"),)) is None
    assert pushback_of(None) is None


def test_the_most_special_name_counts():
    service, method = {"service": "aclserve.v1.DeviceService"}, {"service": "s", "method": "M"}
    text = json.dumps(
        {
            "methodConfig": [
                {"name": [{}], "retryPolicy": {**POLICY, "maxAttempts": 2}},
                {"name": [service], "retryPolicy": {**POLICY, "maxAttempts": 3}},
                {"name": [{**service, "method": "ListDevices"}, method]},
            ]
        }
    )
    found = ServiceConfig(text)
    assert found.policy(INFO).attempts == 3
    assert found.policy("/s/M") is found.policy("/aclserve.v1.DeviceService/ListDevices") is None
    assert found.policy("/s/N").attempts == 2
    assert ServiceConfig("").policy(INFO) is None
    assert ServiceConfig(config(maxAttempts=50)).policy(INFO).attempts == 5


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        config(maxAttempts=1),
        config(initialBackoff="1"),
        config(maxBackoff="0s"),
        config(backoffMultiplier=0),
        config(retryableStatusCodes=[]),
        config(retryableStatusCodes=["NONE_SUCH"]),
        config(throttling={"maxTokens": 0, "tokenRatio": 1}),
        '{"methodConfig": [{"name": [{}], "retryPolicy": {}}]}',
    ],
)
def test_a_service_config_that_is_none_is_refused(text):
    with pytest.raises(ac.InvalidArgument, match="no gRPC service config") as caught:
        ac.Options(service_config=text)
    assert caught.value.reason == "OPTIONS_INVALID"


def test_a_budget_stops_retries_where_most_calls_fail():
    budget = Budget(4, 0.5)
    assert [budget.failed() for _ in range(3)] == [True, False, False]
    for _ in range(4):
        budget.succeeded()
    assert budget.failed() is False
    for _ in range(100):
        budget.succeeded()
    assert [budget.failed() for _ in range(2)] == [True, False]


class Scripted(grpc.GenericRpcHandler):
    """A server whose only call fails as it is told: (code, push-back or None), then answers."""

    def __init__(self):
        self.script = []
        self.calls = 0
        self._lock = threading.Lock()

    def service(self, details):
        def answer(request, context):
            with self._lock:
                self.calls += 1
                told = self.script.pop(0) if self.script else None
            if told is not None:
                code, pushback = told
                if pushback is not None:
                    context.set_trailing_metadata((("grpc-retry-pushback-ms", pushback),))
                context.abort(code, "scripted")
            return device_pb2.GetServerInfoResponse(version="1").SerializeToString()

        return grpc.unary_unary_rpc_method_handler(answer)


@pytest.fixture(scope="module")
def scripted():
    handler = Scripted()
    server = grpc.server(ThreadPoolExecutor(4))
    server.add_generic_rpc_handlers((handler,))
    handler.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    yield handler
    server.stop(0).wait()


def by_grpc(address, text):
    """How gRPC's own retries, in C, fare with a service config."""
    options = [("grpc.service_config", text), ("grpc.enable_retries", 1), ("grpc.use_local_subchannel_pool", 1)]
    with grpc.insecure_channel(address, options) as channel:
        call = channel.unary_unary(INFO)
        try:
            call(b"", timeout=20)
        except grpc.RpcError as error:
            return error.code().name
        return "OK"


def by_client(address, text):
    with ac.Client(address, ac.Options(timeout=20, service_config=text)) as client:
        try:
            client.server_info()
        except ac.AclserveError as error:
            return error.code_name
        return "OK"


GONE, FULL, BROKEN = grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.INTERNAL


@pytest.mark.parametrize(
    ("script", "calls", "ended"),
    [
        ([], 1, "OK"),
        ([(GONE, None)] * 3, 4, "OK"),
        ([(GONE, None)] * 9, 4, "UNAVAILABLE"),
        ([(FULL, "5"), (GONE, "1")], 3, "OK"),
        ([(BROKEN, None)], 1, "INTERNAL"),
        ([(GONE, "-1")], 1, "UNAVAILABLE"),
        ([(GONE, "soon")], 1, "UNAVAILABLE"),
        ([(GONE, None), (FULL, "-1")], 2, "RESOURCE_EXHAUSTED"),
    ],
)
def test_the_client_tries_as_often_as_grpc_itself(scripted, script, calls, ended):
    for way in (by_grpc, by_client):
        scripted.script, scripted.calls = list(script), 0
        assert (way(scripted.address, config()), scripted.calls) == (ended, calls), way.__name__


def test_throttling_as_in_grpc(scripted):
    throttling = {"maxTokens": 2, "tokenRatio": 0.1}
    for way in (by_grpc, by_client):
        scripted.script, scripted.calls = [(GONE, None)] * 4, 0
        assert (way(scripted.address, config(throttling=throttling)), scripted.calls) == ("UNAVAILABLE", 1)


def test_what_changes_something_is_tried_again_only_if_the_config_says_so(server):
    text = config({"service": "aclserve.v1.MemoryService", "method": "CreateLease"})
    for given, calls in (("", 1), (text, 2)):
        server.faults.calls.clear()
        server.faults.plan["CreateLease"] = [ac.Unavailable("x", reason="X", retry_delay=0.001)]
        with ac.Client(server.address, ac.Options(service_config=given, retry_backoff=0.001)) as client:
            try:
                with client.lease():
                    pass
            except ac.Unavailable:
                assert not given
        assert server.faults.calls.count("CreateLease") == calls
