"""Streams with `resume=True` and clients with several addresses, over real sockets, both kinds."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter

import numpy as np
import pytest

import aclserve_client as ac
from aclserve import errors
from aclserve_client.options import addresses_of

QUICK = ac.Options(retry_backoff=0.01, resume_timeout=30.0)


def row(value):
    return {"x": np.full((1, 3), value, np.float32)}


def value_of(result):
    return result.raise_for_error().outputs["y"][0, 0] / 2


@pytest.fixture(params=["sync", "async"])
def kind(request):
    return request.param


def stream_all(kind, address, count, options=QUICK, **settings):
    """Maps so many rows over one stream with resume=True; the results, and the stream."""
    if kind == "sync":
        with ac.Client(address, options) as client, client.stream("echo", resume=True, **settings) as stream:
            return list(stream.map(map(row, range(count)), pack=3)), stream

    async def main():
        async with (
            ac.AsyncClient(address, options) as client,
            client.stream("echo", resume=True, **settings) as stream,
        ):
            return [result async for result in stream.map(map(row, range(count)), pack=3)], stream

    return asyncio.run(asyncio.wait_for(main(), 60))


def check(results, stream, count):
    """Each item has one answer, its own."""
    assert sorted(value_of(result) for result in results) == list(range(count))
    assert all(value_of(result) == int(result.id) for result in results)
    assert stream.summary == ac.StreamSummary(count, count, 0)


def test_a_server_going_away_hands_over_to_the_next_address(kind, make_server):
    first, second = make_server(), make_server()
    first.accept_items = 10
    results, stream = stream_all(kind, [first.address, second.address], 40, order="submission")
    check(results, stream, 40)
    assert [result.id for result in results] == [str(number) for number in range(40)]
    assert stream.resumptions == 1
    assert first.answered == [str(number) for number in range(10)]  # what it accepted it answered
    assert second.answered == [str(number) for number in range(10, 40)]
    assert [config.order for config in second.configs] == [2]


def test_a_broken_stream_goes_on_at_the_same_address(kind, server):
    server.break_after = 7
    results, stream = stream_all(kind, server.address, 30, order="submission")
    check(results, stream, 30)
    assert [result.id for result in results] == [str(number) for number in range(30)]
    assert stream.resumptions == 1
    assert max(Counter(server.answered).values()) <= 2  # an answer that was lost was made twice


def test_a_server_that_dies_is_replaced(kind, make_server):
    first, second = make_server(), make_server()
    closing = threading.Thread(target=lambda: (_wait_for(lambda: len(first.answered) >= 5), first.close()))
    closing.start()
    results, stream = stream_all(kind, f"{first.address},{second.address}", 3000)
    closing.join(20)
    check(results, stream, 3000)
    assert stream.resumptions == 1


def _wait_for(condition):
    while not condition():
        threading.Event().wait(0.001)


def test_the_first_server_may_be_missing(kind, server):
    results, stream = stream_all(kind, ["127.0.0.1:1", server.address], 5)
    check(results, stream, 5)
    assert stream.resumptions == 0


def test_a_server_that_does_not_answer_is_left(kind, make_server):
    first, second = make_server(), make_server()
    first.silent = True
    options = ac.Options(retry_backoff=0.01, timeout=0.2)
    results, stream = stream_all(kind, [first.address, second.address], 5, options)
    check(results, stream, 5)


def test_attempts_are_bounded(kind):
    options = ac.Options(retry_backoff=0.001, resume_attempts=3)
    with pytest.raises(ac.Unavailable) as caught:
        stream_all(kind, "127.0.0.1:1", 5, options)
    assert caught.value.reason == "CONNECTION_FAILED"
    assert caught.value.__notes__ == ["the stream was lost 4 times in a row and is given up"]


def test_the_streams_deadline_holds_across_servers(kind, server):
    server.faults.plan["StreamInfer"] = [errors.Unavailable("later", reason="BUSY", retry_delay=50)] * 30
    with pytest.raises(ac.Unavailable, match="later"):  # the server's wish is beyond the deadline: no use to wait
        stream_all(kind, server.address, 5, timeout=40)


def test_errors_that_another_attempt_does_not_mend_are_raised(kind, server):
    server.faults.plan["StreamInfer"] = [errors.NotFound("no such model", reason="MODEL_NOT_FOUND")] * 30
    with pytest.raises(ac.NotFound):
        stream_all(kind, server.address, 10)
    assert server.configs == []


def test_a_client_that_is_closed_does_not_resume(kind, server):
    server.gate.clear()
    if kind == "sync":
        client = ac.Client(server.address, QUICK)
        with client.stream("echo", resume=True) as stream:
            stream.send(row(1))
            client.close()
            with pytest.raises(ac.FailedPrecondition, match="client is closed"):
                next(stream.results())
    else:

        async def main():
            client = ac.AsyncClient(server.address, QUICK)
            async with client.stream("echo", resume=True) as stream:
                await stream.send(row(1))
                await client.close()
                with pytest.raises(ac.Cancelled):  # grpc.aio cancels what is under way
                    await anext(stream.results())

        asyncio.run(asyncio.wait_for(main(), 60))
    assert len(server.configs) == 1


def test_a_stream_that_waits_for_its_next_attempt_can_be_left(kind, server):
    patient = ac.Options(retry_backoff=60.0, resume_timeout=None)
    server.break_after = 0
    if kind == "sync":
        with ac.Client(server.address, patient) as client, client.stream("echo", resume=True) as stream:
            server.breaks_with = errors.Unavailable("later", reason="BUSY", retry_delay=60)
            stream.send(row(1))
            raised = []
            reader = threading.Thread(target=lambda: raised.append(_error_of(stream.results())))
            reader.start()
            _wait_for(lambda: stream._state.lost)
        reader.join(20)
        assert [type(error) for error in raised] == [ac.Cancelled]
    else:

        async def main():
            async with ac.AsyncClient(server.address, patient) as client, client.stream("echo", resume=True) as stream:
                await stream.send(row(1))
                await asyncio.to_thread(_wait_for, lambda: stream._state.lost)
            with pytest.raises(ac.Cancelled):
                await anext(stream.results())

        server.breaks_with = errors.Unavailable("later", reason="BUSY", retry_delay=60)
        asyncio.run(asyncio.wait_for(main(), 60))


def _error_of(results):
    try:
        next(results)
    except ac.AclserveError as error:
        return error


def test_leases_and_buffers_are_refused(server):
    with ac.Client(server.address) as client, client.lease() as lease:
        with pytest.raises(ac.InvalidArgument, match="no lease") as caught:
            client.stream("echo", resume=True, lease=lease)
        assert caught.value.reason == "NOT_RESUMABLE"
        with client.stream("echo", resume=True) as stream, pytest.raises(ac.InvalidArgument, match="no buffers"):
            stream.send({"x": lease.allocate(12).ref((1, 3), "float32")})


def test_addresses():
    assert addresses_of("a:1, b:2,a:1") == ("a:1", "b:2")
    assert addresses_of(["a:1", "b:2,c:3"]) == ("a:1", "b:2", "c:3")
    whole = (
        "unix:/run/a.sock",
        "unix-abstract:a",
        "dns:///a.b:1",
        "[::1]:8001",
        "[fe80::1%eth0]:8001",
        "10.0.0.1:8001",
    )
    assert addresses_of(",".join(whole)) == whole
    for wrong in (
        "",
        " , ",
        [],
        "foo",
        "a:1,b",
        "::1",
        "[::1]",
        ":8001",
        "a:port",
        "http://a:1",
        "a:123456",
        "a:65536",
    ):
        with pytest.raises(ac.InvalidArgument) as caught:
            addresses_of(wrong)
        assert caught.value.reason == "ADDRESS_INVALID"


def call(kind, addresses, work, options=QUICK):
    """The result of `work(client)`, which returns what an asynchronous client has to be awaited for."""
    if kind == "sync":
        with ac.Client(addresses, options) as client:
            return [step(client) for step in work]

    async def main():
        async with ac.AsyncClient(addresses, options) as client:
            return [await step(client) for step in work]

    return asyncio.run(asyncio.wait_for(main(), 60))


def test_calls_that_no_server_looked_at_go_to_the_next_address(kind, make_server):
    first, second = make_server(), make_server()
    first.faults.plan["Infer"] = [errors.Unavailable("bye", reason="SERVER_GOING_AWAY")]
    infer = lambda client: client.infer("echo", row(1))  # noqa: E731
    models = lambda client: client.models()  # noqa: E731
    for addresses in ((first.address, second.address), ("127.0.0.1:1", second.address)):
        result, found = call(kind, addresses, [infer, models])
        assert value_of(result) == 1
        assert len(found) == 3
    assert first.faults.calls == ["Infer"]
    first.faults.plan["Infer"] = [errors.Unavailable("half done", reason="WORKER_RESTARTING")]
    with pytest.raises(ac.Unavailable):
        call(kind, (first.address, second.address), [infer])


def test_all_addresses_are_tried_once(kind, make_server):
    servers = [make_server() for _ in range(3)]
    for server in servers:
        server.faults.plan["Infer"] = [errors.Unavailable("bye", reason="SERVER_GOING_AWAY")] * 5
    with pytest.raises(ac.Unavailable):
        call(kind, [server.address for server in servers], [lambda client: client.infer("echo", row(1))])
    assert [server.faults.calls for server in servers] == [["Infer"]] * 3


def test_what_a_lease_holds_stays_where_it_is(make_server):
    first, second = make_server(), make_server()
    with ac.Client([first.address, second.address], QUICK) as client, client.lease() as lease:
        buffer = lease.allocate(12)
        first.faults.plan["GetServerInfo"] = [errors.Unavailable("bye", reason="SERVER_GOING_AWAY")]
        client.server_info()
        assert second.faults.calls == ["GetServerInfo"]
        lease.write(buffer, np.ones(3, np.float32))
        item = {"x": buffer.ref((1, 3), "float32")}
        assert client.infer("echo", item, lease=lease).outputs["y"].tolist() == [[2, 2, 2]]
        with client.stream("echo", lease=lease) as stream:
            (result,) = stream.map([item])
            assert result.outputs["y"].tolist() == [[2, 2, 2]]
        client.infer("echo", row(1))
        assert second.faults.calls == ["GetServerInfo", "Infer"]
    assert first.leases == {}
    assert client._caller._homes == {}
