"""Errors on the wire, for all four kinds of handlers."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable
from typing import Any

import grpc
import grpc.aio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aclserve import errors
from aclserve_server.acl.errors import AclError
from aclserve_server.rpc.status import (
    MAX_MESSAGE_BYTES,
    MAX_METADATA_BYTES,
    RETRY,
    to_item_error_fields,
    to_status,
)
from rpc.memory_server import details_of, info_of, retry_delay_of, serving

CLASSES = errors.AclserveError.__subclasses__()
KINDS = (
    "unary_unary",
    "unary_stream",
    "stream_unary",
    "stream_stream",
    "unary_stream_written",
    "stream_stream_written",
)

METHODS = {"t.T": dict.fromkeys((*KINDS, "synchronous", "aborting"), "infer")}


class Thrower:
    """Handlers of all kinds that answer once, or raise."""

    def __init__(self) -> None:
        self.error: BaseException | None = None
        self.ended = asyncio.Event()
        self.waiting = asyncio.Event()
        self.wait = False

    async def act(self) -> bytes:
        if self.wait:
            self.waiting.set()
            try:
                await asyncio.Event().wait()
            finally:
                self.ended.set()
        if self.error is not None:
            raise self.error
        return b"answer"

    async def unary_unary(self, request: bytes, context: Any) -> bytes:
        return await self.act()

    async def unary_stream(self, request: bytes, context: Any) -> AsyncIterator[bytes]:
        yield b"first"
        yield await self.act()

    async def stream_unary(self, requests: AsyncIterator[bytes], context: Any) -> bytes:
        async for _ in requests:
            pass
        return await self.act()

    async def stream_stream(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        async for _ in requests:
            yield await self.act()

    async def unary_stream_written(self, request: bytes, context: Any) -> None:
        await context.write(await self.act())

    async def stream_stream_written(self, requests: AsyncIterator[bytes], context: Any) -> None:
        async for _ in requests:
            await context.write(await self.act())

    def synchronous(self, request: bytes, context: Any) -> bytes:
        return b"synchronous"

    async def aborting(self, request: bytes, context: Any) -> bytes:
        async with asyncio.TaskGroup() as group:
            group.create_task(context.abort(grpc.StatusCode.ABORTED, "as the handler wants it"))
        return b""

    def add(self, server: grpc.aio.Server) -> None:
        def upper(data: bytes) -> bytes:
            return data.upper()

        handlers: dict[str, Any] = {
            name: getattr(grpc, f"{name.removesuffix('_written')}_rpc_method_handler")(
                getattr(self, name), response_serializer=upper
            )
            for name in KINDS
        }
        handlers["synchronous"] = grpc.unary_unary_rpc_method_handler(self.synchronous)
        handlers["aborting"] = grpc.unary_unary_rpc_method_handler(self.aborting)
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("t.T", handlers),))


def begin(channel: grpc.aio.Channel, name: str) -> Any:
    """Starts a call with one message, whatever its kind."""
    kind = name.removesuffix("_written") if name in KINDS else "unary_unary"
    method: Any = getattr(channel, kind)(f"/t.T/{name}")
    argument: Any = iter([b"request"]) if kind.startswith("stream") else b"request"
    return method(argument, timeout=60)


async def answers(started: Any) -> list[bytes]:
    """All that a call answers."""
    if isinstance(started, Awaitable):
        return [await started]
    return [answer async for answer in started]


async def call(channel: grpc.aio.Channel, name: str) -> list[bytes]:
    return await answers(begin(channel, name))


def run(test: Any) -> None:
    async def main() -> None:
        thrower = Thrower()
        async with serving(thrower.add, methods=METHODS) as channel:
            await test(thrower, channel)

    asyncio.run(main())


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_answers_and_fails(kind: str) -> None:
    async def test(thrower: Thrower, channel: grpc.aio.Channel) -> None:
        assert (await call(channel, kind))[-1] == b"ANSWER"
        thrower.error = errors.NotFound("no such thing", reason="THING_NOT_FOUND", metadata={"size_bytes": 5})
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(channel, kind)
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        status = details_of(caught.value)
        assert status.message == "no such thing"
        assert (info_of(status).reason, dict(info_of(status).metadata)) == ("THING_NOT_FOUND", {"size_bytes": "5"})
        assert retry_delay_of(status) is None

    run(test)


@pytest.mark.parametrize("kind", KINDS)
def test_what_another_server_can_do_says_so_to_proxies(kind: str) -> None:
    async def test(thrower: Thrower, channel: grpc.aio.Channel) -> None:
        lost = AclError("aclmdlExecuteAsync", 507901)
        for error in (*(cls("m", reason="R", retry_delay=1.0) for cls in CLASSES), ValueError(), lost):
            thrower.error = error
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call(channel, kind)
            shown = dict(caught.value.trailing_metadata() or ()).get(RETRY[0])
            elsewhere = isinstance(error, errors.Unavailable) or error is lost
            assert shown == (RETRY[1] if elsewhere else None), error

    run(test)


@pytest.mark.parametrize("kind", KINDS)
def test_an_unforeseen_error_stays_inside(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    async def test(thrower: Thrower, channel: grpc.aio.Channel) -> None:
        thrower.error = ValueError("secret at /home/someone")
        with caplog.at_level(logging.ERROR), pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(channel, kind)
        assert caught.value.code() is grpc.StatusCode.INTERNAL
        status = details_of(caught.value)
        assert info_of(status).reason == "INTERNAL_ERROR"
        assert b"secret" not in status.SerializeToString()
        assert "secret" in caplog.text
        assert "Traceback" in caplog.text

    run(test)


@pytest.mark.parametrize("kind", KINDS)
def test_cancelling_the_call_cancels_the_handler(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    async def test(thrower: Thrower, channel: grpc.aio.Channel) -> None:
        thrower.wait = True
        started = begin(channel, kind)
        reading = asyncio.ensure_future(answers(started))
        await thrower.waiting.wait()
        assert started.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        await asyncio.wait_for(thrower.ended.wait(), 60)

    with caplog.at_level(logging.WARNING):
        run(test)
    assert not caplog.records


def test_what_is_not_ours_is_left_alone() -> None:
    async def test(thrower: Thrower, channel: grpc.aio.Channel) -> None:
        assert await call(channel, "synchronous") == [b"synchronous"]
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(channel, "aborting")
        assert (caught.value.code(), caught.value.details()) == (grpc.StatusCode.ABORTED, "as the handler wants it")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(channel, "absent")
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED

    run(test)


def test_every_class_has_its_code() -> None:
    async def test(thrower: Thrower, channel: grpc.aio.Channel) -> None:
        for kind in (*CLASSES, errors.AclserveError):
            thrower.error = kind("text", reason="REASON", retry_delay=0.25)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call(channel, "unary_unary")
            assert caught.value.code().name == kind.code_name
            assert retry_delay_of(details_of(caught.value)) == 0.25

    run(test)


def test_the_largest_error_fits_into_the_trailing_metadata() -> None:
    async def test(thrower: Thrower, channel: grpc.aio.Channel) -> None:
        metadata = {f"key_{number}" * 20: "é" * 1000 for number in range(100)}
        thrower.error = errors.Internal("é" * 100_000, reason="REASON", metadata=metadata, retry_delay=1)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(channel, "unary_unary")
        assert caught.value.code() is grpc.StatusCode.INTERNAL
        assert info_of(details_of(caught.value)).reason == "REASON"

    run(test)


def test_device_errors_are_classified_and_tell_no_text() -> None:
    status = to_status(AclError("aclrtMalloc", 207001, "driver said /secret"))
    info = info_of(status)
    assert (status.code, info.reason) == (errors.ResourceExhausted.code, "DEVICE_OUT_OF_MEMORY")
    assert (info.metadata["acl_call"], info.metadata["acl_code"]) == ("aclrtMalloc", "207001")
    assert b"secret" not in status.SerializeToString()
    assert retry_delay_of(status) is not None


def test_groups_are_looked_into() -> None:
    inner = ExceptionGroup("inner", [errors.DataLoss("lost", reason="CHECKSUM_MISMATCH")])
    group = ExceptionGroup("outer", [ValueError("other"), inner])
    assert to_item_error_fields(group)[:2] == (errors.DataLoss.code, "CHECKSUM_MISMATCH")
    device = ExceptionGroup("outer", [AclError("aclrtMalloc", 207001)])
    assert to_item_error_fields(device)[1] == "DEVICE_OUT_OF_MEMORY"
    assert to_item_error_fields(ExceptionGroup("outer", [ValueError("other")]))[1] == "INTERNAL_ERROR"


def test_item_errors_carry_the_same_fields() -> None:
    error = errors.ResourceExhausted("full", reason="QUEUE_FULL", metadata={"rows": 3}, retry_delay=0.5)
    assert to_item_error_fields(error) == (8, "QUEUE_FULL", "full", {"rows": "3"}, 0.5)
    assert to_item_error_fields(errors.NotFound("none", reason="X"))[4] is None


@given(st.text(max_size=3000), st.dictionaries(st.text(max_size=300), st.text(max_size=3000), max_size=50))
def test_whatever_is_said_is_bounded_and_valid(message: str, metadata: dict[str, str]) -> None:
    code, reason, text, shown, _ = to_item_error_fields(
        errors.InvalidArgument(message, reason="REASON", metadata=metadata)
    )
    assert (code, reason) == (3, "REASON")
    assert len(text.encode()) <= MAX_MESSAGE_BYTES
    assert text == message or len(message.encode("utf-8", "replace")) > MAX_MESSAGE_BYTES or "?" in text
    assert sum(len(key.encode()) + len(value.encode()) for key, value in shown.items()) <= MAX_METADATA_BYTES
    assert (
        len(to_status(errors.InvalidArgument(message, reason="REASON", metadata=metadata)).SerializeToString()) < 4096
    )
