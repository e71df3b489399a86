"""The guard's own rules: what it refuses at the start, and who counts as local."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import grpc.aio
import pytest

from aclserve.v1 import model_pb2
from aclserve_server.rpc.guard import Guard, check_complete, is_local
from rpc.memory_server import refused, serving


@pytest.mark.parametrize(
    ("peer", "local"),
    [
        ("ipv4:127.0.0.1:5000", True),
        ("ipv4:127.1.2.3:5000", True),
        ("ipv6:[::1]:5000", True),
        ("ipv6:%5B::1%5D:5000", True),
        ("ipv6:%5B::ffff:127.0.0.1%5D:5000", True),
        ("unix:", True),
        ("unix:/run/a.sock", True),
        ("ipv4:10.0.0.1:5000", False),
        ("ipv4:12.7.0.1:127", False),
        ("ipv6:[fe80::1]:1", False),
        ("ipv6:%5B::ffff:10.0.0.1%5D:5000", False),
        ("ipv6:[::127]:127", False),
        ("vsock:127.0.0.1:1", False),
        ("", False),
    ],
)
def test_who_is_local(peer: str, local: bool) -> None:
    assert is_local(peer) is local


async def echo(request: bytes, context: Any) -> bytes:
    return request


def synchronous(request: bytes, context: Any) -> bytes:
    return request


def generic(service: str, **handlers: Any) -> Any:
    made = {name: grpc.unary_unary_rpc_method_handler(handler) for name, handler in handlers.items()}
    return grpc.method_handlers_generic_handler(service, made)


class Server:
    """What a guard needs of a server."""

    def add_generic_rpc_handlers(self, handlers: Any) -> None:
        pass


def guard(methods: Any, **options: Any) -> Guard:
    server: Any = Server()
    return Guard(server, methods=methods, **options)


def test_a_service_or_method_without_a_group_is_refused_at_the_start() -> None:
    made = guard({"t.T": {"Known": "infer", "Odd": "friends"}})
    with pytest.raises(RuntimeError, match=r"t\.U is in no table"):
        made.add_generic_rpc_handlers([generic("t.U", Known=echo)])
    for name in ("Unknown", "Odd"):
        handlers = {name: grpc.unary_unary_rpc_method_handler(echo)}
        with pytest.raises(RuntimeError, match=f"t.T/{name} needs"):
            made.add_registered_method_handlers("t.T", handlers)
    assert made.paths == set()


def test_a_handler_that_is_not_async_cannot_be_guarded() -> None:
    with pytest.raises(RuntimeError, match="not async"):
        guard({"t.T": {"Call": "admin"}}).add_generic_rpc_handlers([generic("t.T", Call=synchronous)])


def test_a_descriptor_s_method_must_be_served() -> None:
    service = model_pb2.DESCRIPTOR.services_by_name["ModelService"]
    with pytest.raises(RuntimeError, match="ModelService/ListModels has no handler"):
        check_complete([service], frozenset())


def test_administration_is_for_this_host_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    methods = {"t.T": {"Admin": "admin", "Infer": "infer"}}

    async def main() -> None:
        for remote_admin, local, admitted in ((False, True, True), (False, False, False), (True, False, True)):
            monkeypatch.setattr("aclserve_server.rpc.guard.is_local", lambda peer, local=local: local)
            handlers = generic("t.T", Admin=echo, Infer=echo)
            async with serving(
                lambda server, handlers=handlers: server.add_generic_rpc_handlers((handlers,)),
                methods=methods,
                remote_admin=remote_admin,
            ) as channel:
                assert await channel.unary_unary("/t.T/Infer")(b"1", timeout=60) == b"1"
                call = channel.unary_unary("/t.T/Admin")(b"1", timeout=60)
                if admitted:
                    assert await call == b"1"
                else:
                    await refused(call, grpc.StatusCode.PERMISSION_DENIED, "GROUP_MISSING")

    asyncio.run(main())
