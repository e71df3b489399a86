"""grpc.health.v1 over a real server: states, watchers, listing, shutdown."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pb2
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2

from aclserve_server.rpc import health as module
from aclserve_server.rpc.guard import Guard
from aclserve_server.rpc.health import Health, model_service

SERVING = module.CheckResponse.SERVING
NOT_SERVING = module.CheckResponse.NOT_SERVING
SERVICE_UNKNOWN = module.CheckResponse.SERVICE_UNKNOWN


class Client:
    """A raw client: no generated stub in between."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._channel = channel

    async def check(self, service: str) -> int:
        call = self._channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=module.CheckRequest.SerializeToString,
            response_deserializer=module.CheckResponse.FromString,
        )
        return int((await call(module.CheckRequest(service=service))).status)

    async def list(self) -> dict[str, int]:
        call = self._channel.unary_unary(
            "/grpc.health.v1.Health/List",
            request_serializer=module.ListRequest.SerializeToString,
            response_deserializer=module.ListResponse.FromString,
        )
        return {name: answer.status for name, answer in (await call(module.ListRequest())).statuses.items()}

    def watch(self, service: str) -> Any:
        call = self._channel.unary_stream(
            "/grpc.health.v1.Health/Watch",
            request_serializer=module.CheckRequest.SerializeToString,
            response_deserializer=module.CheckResponse.FromString,
        )
        return call(module.CheckRequest(service=service))


@asynccontextmanager
async def served(health: Health) -> AsyncIterator[Client]:
    server = grpc.aio.server()
    guard: Any = Guard(server)
    health.add_to_server(guard)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield Client(channel)
    finally:
        await server.stop(None)


def run(scenario: Callable[[Health, Client], Awaitable[None]]) -> None:
    async def main() -> None:
        health = Health()
        async with served(health) as client:
            await asyncio.wait_for(scenario(health, client), 30)

    asyncio.run(main())


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - the server has no event to wait for
        await asyncio.sleep(0)


async def code_of(call: Awaitable[Any]) -> grpc.StatusCode:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code()


def test_check_answers_every_kind_of_name() -> None:
    async def scenario(health: Health, client: Client) -> None:
        assert await client.check("") == NOT_SERVING
        health.set("", True)
        health.set("aclserve.v1.ModelService", True)
        health.set(model_service("digits"), False)
        assert await client.check("") == SERVING
        assert await client.check("aclserve.v1.ModelService") == SERVING
        assert await client.check("model:digits") == NOT_SERVING
        assert await code_of(client.check("model:none")) is grpc.StatusCode.NOT_FOUND
        health.remove("model:digits")
        health.remove("model:never there")
        assert await code_of(client.check("model:digits")) is grpc.StatusCode.NOT_FOUND
        health.remove("")
        assert await client.check("") == NOT_SERVING

    run(scenario)


def test_list_shows_all_names() -> None:
    async def scenario(health: Health, client: Client) -> None:
        health.set("", True)
        health.set("model:one", True)
        health.set("model:zwei é", False)
        assert await client.list() == {"": SERVING, "model:one": SERVING, "model:zwei é": NOT_SERVING}

    run(scenario)


def test_list_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_LISTED", 3)

    async def scenario(health: Health, client: Client) -> None:
        health.set("a", True)
        health.set("b", True)
        assert len(await client.list()) == 3
        health.set("c", True)
        assert await code_of(client.list()) is grpc.StatusCode.RESOURCE_EXHAUSTED

    run(scenario)


def test_watch_follows_a_name_from_unknown_to_removed() -> None:
    async def scenario(health: Health, client: Client) -> None:
        call = client.watch("model:digits")
        seen = [(await call.read()).status]
        for change in (True, False, None):
            if change is None:
                health.remove("model:digits")
            else:
                health.set("model:digits", change)
            seen.append((await call.read()).status)
        assert seen == [SERVICE_UNKNOWN, SERVING, NOT_SERVING, SERVICE_UNKNOWN]
        health.set("model:other", True)
        health.set("model:digits", True)
        health.set("model:digits", True)
        assert (await call.read()).status == SERVING
        health.set("model:digits", False)
        assert (await call.read()).status == NOT_SERVING
        call.cancel()
        await until(lambda: health.watchers == 0)

    run(scenario)


def test_a_watcher_that_does_not_read_costs_one_state() -> None:
    async def scenario(health: Health, client: Client) -> None:
        call = client.watch("")
        await until(lambda: health.watchers == 1)
        for turn in range(1001):
            health.set("", turn % 2 == 0)
        status = None
        reads = 0
        while status != SERVING:
            status = (await call.read()).status
            reads += 1
        assert reads <= 3
        call.cancel()

    run(scenario)


def test_watchers_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_WATCHERS", 2)

    async def scenario(health: Health, client: Client) -> None:
        calls = [client.watch("a"), client.watch("b")]
        for call in calls:
            await call.read()
        assert await code_of(client.watch("c").read()) is grpc.StatusCode.RESOURCE_EXHAUSTED
        calls[0].cancel()
        await until(lambda: health.watchers == 1)
        again = client.watch("c")
        assert (await again.read()).status == SERVICE_UNKNOWN
        for call in (calls[1], again):
            call.cancel()

    run(scenario)


def test_draining_tells_watchers_and_shutdown_ends_them() -> None:
    async def scenario(health: Health, client: Client) -> None:
        health.set("", True)
        health.set("model:digits", True)
        calls = [client.watch(""), client.watch("model:digits"), client.watch("model:none")]
        assert [(await call.read()).status for call in calls] == [SERVING, SERVING, SERVICE_UNKNOWN]
        health.drain()
        assert [(await call.read()).status for call in calls[:2]] == [NOT_SERVING, NOT_SERVING]
        health.set("", True)
        assert await client.check("") == NOT_SERVING
        late = client.watch("")
        assert (await late.read()).status == NOT_SERVING
        assert health.watchers == 4
        health.shutdown()
        for call in (*calls, late):
            assert await call.read() is grpc.aio.EOF
            assert await call.code() is grpc.StatusCode.OK
        assert health.watchers == 0
        assert await client.check("") == NOT_SERVING
        assert await code_of(client.watch("").read()) is grpc.StatusCode.UNAVAILABLE

    run(scenario)


def test_shutdown_without_drain_still_sends_the_last_state() -> None:
    async def scenario(health: Health, client: Client) -> None:
        health.set("", True)
        call = client.watch("")
        assert (await call.read()).status == SERVING
        health.shutdown()
        assert (await call.read()).status == NOT_SERVING
        assert await call.read() is grpc.aio.EOF

    run(scenario)


def test_list_is_added_where_the_installed_stubs_lack_it() -> None:
    old = descriptor_pb2.FileDescriptorProto()
    health_pb2.DESCRIPTOR.CopyToProto(old)
    kept = [message for message in old.message_type if not message.name.startswith("HealthList")]
    del old.message_type[:]
    old.message_type.extend(kept)
    methods = [method for method in old.service[0].method if method.name != "List"]
    del old.service[0].method[:]
    old.service[0].method.extend(methods)
    pool = DescriptorPool()
    pool.Add(old)

    file = module._with_list(pool.FindFileByName(old.name))

    assert set(file.services_by_name["Health"].methods_by_name) == {"Check", "Watch", "List"}
    response = GetMessageClass(file.message_types_by_name["HealthListResponse"])()
    response.statuses["model:x"].status = SERVING
    decoded = module.ListResponse.FromString(response.SerializeToString())
    assert {name: answer.status for name, answer in decoded.statuses.items()} == {"model:x": SERVING}
    assert module._with_list(file) is file
