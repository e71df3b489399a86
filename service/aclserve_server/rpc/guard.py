"""The guard at the door: every call of every service passes it.

It stands in for the gRPC server while services register, and wraps each handler once: who calls, whether they may, how
much, then the call, and its errors as statuses. (An interceptor would cost a coroutine for each call.) What a call
needs is in `access.groups`; without authentication only what is administration needs something, which is to come from
this host, and all other calls are wrapped without a check.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import aclosing
from typing import Any
from urllib.parse import unquote

import grpc
import grpc.aio
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message import DecodeError

from aclserve.errors import InvalidArgument, PermissionDenied
from aclserve_server.access.directory import Directory, token_missing
from aclserve_server.access.groups import METHODS
from aclserve_server.access.principal import ADMIN, ANYONE, CURRENT, GROUPS, OPEN, Principal
from aclserve_server.rpc.status import CodeOf, abort, code_of_category

Context = grpc.aio.ServicerContext[Any, Any]

Enter = Callable[[Context], Principal | None]
"""Lets a call in and says whose it is, None where that is not asked; raises what stands against it."""

AUTHORIZATION = "authorization"


class Guard:
    """Takes the place of a server where services register. Registration comes before the server's start."""

    def __init__(
        self,
        server: grpc.aio.Server,
        codes: Mapping[str, CodeOf] | None = None,
        *,
        directory: Directory | None = None,
        remote_admin: bool = False,
        open_only: bool = False,
        methods: Mapping[str, Mapping[str, str]] = METHODS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`codes` has the services, by full name, whose clients expect other codes than those of the categories.

        `directory` has the principals; None: no authentication. `remote_admin`: without it, callers of other hosts may
        administrate too. `open_only`: all calls that are not open are left out. `methods` is as `access.groups` has it.
        """
        self._codes = dict(codes or {})
        self._directory = directory
        self._remote_admin = remote_admin
        self._open_only = open_only
        self._methods = methods
        self._clock = clock
        self._handlers = _Handlers()
        server.add_generic_rpc_handlers((self._handlers,))

    def add_generic_rpc_handlers(self, handlers: Iterable[Any]) -> None:
        """As the server's. Raises RuntimeError for a service that no group table has."""
        for handler in handlers:
            service = handler.service_name()
            for method in self._methods_of(service):
                path = f"/{service}/{method}"
                found = handler.service(_Details(path))
                if found is not None:
                    self._add(service, method, found)

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Any]) -> None:
        """As the server's. Raises RuntimeError for a method that no group table has."""
        for method, handler in handlers.items():
            self._add(service, method, handler)

    @property
    def paths(self) -> frozenset[str]:
        """The methods that are served, as "/service/method"."""
        return frozenset(self._handlers.by_path)

    def _methods_of(self, service: str) -> Mapping[str, str]:
        if service not in self._methods:
            raise RuntimeError(f"service {service} is in no table of groups; add it to access.groups")
        return self._methods[service]

    def _add(self, service: str, method: str, handler: Any) -> None:
        group = self._methods_of(service).get(method)
        if group not in (*GROUPS, ANYONE, OPEN):
            raise RuntimeError(f"{service}/{method} needs the group {group}; add it to access.groups")
        if group == OPEN or not self._open_only:
            code_of = self._codes.get(service, code_of_category)
            self._handlers.by_path[f"/{service}/{method}"] = _guarded(handler, self._enter(group), code_of)

    def _enter(self, group: str) -> Enter | None:
        if group == OPEN:
            return None
        if self._directory is None:
            return _only_local if group == ADMIN and not self._remote_admin else None
        clock, identify = self._clock, _identifier(self._directory)

        def enter(context: Context) -> Principal:
            principal = identify(context)
            principal.take_request(clock())
            principal.check_group(group)
            CURRENT.set(principal)
            return principal

        return enter


def check_complete(services: Iterable[ServiceDescriptor], served: frozenset[str]) -> None:
    """Raises RuntimeError when a method of these services is in no table of groups, or is not served."""
    for service in services:
        for method in service.methods:
            if method.name not in METHODS.get(service.full_name, {}):
                raise RuntimeError(f"{service.full_name}/{method.name} is in no table of groups; add it")
            if f"/{service.full_name}/{method.name}" not in served:
                raise RuntimeError(f"{service.full_name}/{method.name} has no handler")


def is_local(peer: str) -> bool:
    """Whether a peer, as gRPC names it, is on this host by what the system says: loopback, or a unix socket."""
    kind, _, rest = peer.partition(":")
    if kind in ("unix", "unix-abstract"):
        return True
    host = unquote(rest).rpartition(":")[0].strip("[]").removeprefix("::ffff:")
    return (kind == "ipv4" or kind == "ipv6") and (host == "::1" or host.startswith("127."))


class _Handlers(grpc.GenericRpcHandler):
    """All handlers of a server by path, so that finding one takes one look."""

    def __init__(self) -> None:
        self.by_path: dict[str, Any] = {}

    def service(self, handler_call_details: Any) -> Any:
        return self.by_path.get(handler_call_details.method)


class _Details:
    """What a generic handler is asked for."""

    invocation_metadata = ()

    def __init__(self, method: str) -> None:
        self.method = method


def _identifier(directory: Directory) -> Callable[[Context], Principal]:
    def identify(context: Context) -> Principal:
        for key, value in context.invocation_metadata() or ():
            if key == AUTHORIZATION:
                return directory.by_authorization(value)
        if not directory.has_certificates:
            raise token_missing()
        return directory.by_certificate(_certificate_names(context))

    return identify


def _certificate_names(context: Context) -> Iterator[str]:
    """The names in the client's certificate, which TLS has verified; none where there is none."""
    facts: Any = context.auth_context()
    if facts.get("transport_security_type") != [b"ssl"]:
        return
    for kind, key in (("CN", "x509_common_name"), ("URI", "peer_uri"), ("DNS", "peer_dns")):
        for name in facts.get(key, ()):
            yield f"{kind}={name.decode('utf-8', 'replace')}"


def _only_local(context: Context) -> None:
    if not is_local(context.peer()):
        raise PermissionDenied(
            "this call administrates the server, which callers of other hosts may not; call from its own host, or "
            "start it with --principals or with --remote-admin",
            reason="GROUP_MISSING",
            metadata={"group": ADMIN},
        )


def _guarded(handler: Any, enter: Enter | None, code_of: CodeOf) -> Any:
    """The same handler, of any of the four kinds; requests are parsed inside, so that broken ones are told as such."""
    if handler.request_streaming:
        behaviour = handler.stream_stream if handler.response_streaming else handler.stream_unary
    else:
        behaviour = handler.unary_stream if handler.response_streaming else handler.unary_unary
    streams = handler.request_streaming or handler.response_streaming
    parse = _parser(handler)
    if inspect.isasyncgenfunction(behaviour):
        wrapped: Callable[..., Any] = _guarded_generator(behaviour, parse, enter, code_of)
    elif not inspect.iscoroutinefunction(behaviour):
        if enter is not None:
            raise RuntimeError("a handler that is not async cannot be guarded; make it `async def`")
        return handler
    elif streams and enter is not None:
        wrapped = _guarded_stream(behaviour, parse, enter, code_of)
    else:
        wrapped = _guarded_call(behaviour, parse, enter, code_of)
    make = {
        (False, False): grpc.unary_unary_rpc_method_handler,
        (False, True): grpc.unary_stream_rpc_method_handler,
        (True, False): grpc.stream_unary_rpc_method_handler,
        (True, True): grpc.stream_stream_rpc_method_handler,
    }[handler.request_streaming, handler.response_streaming]
    return make(wrapped, None, handler.response_serializer)


def _parser(handler: Any) -> Callable[[Any], Any] | None:
    """From what gRPC hands over without a deserializer (bytes, or an iterator of them) to what the handler expects.

    None: as it is.
    """
    deserialize = handler.request_deserializer
    if deserialize is None:
        return None

    def parse(message: bytes) -> Any:
        try:
            return deserialize(message)
        except DecodeError:
            raise InvalidArgument(
                f"the request's {len(message)} bytes are not a protobuf message of this call",
                reason="MALFORMED_MESSAGE",
            ) from None

    return (lambda requests: _Parsed(requests, parse)) if handler.request_streaming else parse


class _Parsed(AsyncIterator[Any]):
    """The messages of an iterator of bytes."""

    def __init__(self, requests: AsyncIterator[bytes], parse: Callable[[bytes], Any]) -> None:
        self._requests = aiter(requests)
        self._parse = parse

    async def __anext__(self) -> Any:
        return self._parse(await anext(self._requests))


def _guarded_call(
    behaviour: Callable[..., Awaitable[Any]],
    parse: Callable[[Any], Any] | None,
    enter: Enter | None,
    code_of: CodeOf,
) -> Callable[..., Awaitable[Any]]:
    """For unary calls, and for calls of any kind that nothing is checked of."""

    async def bare(request: Any, context: Context) -> Any:
        try:
            return await behaviour(request, context)
        except Exception as error:
            await abort(context, error, code_of)

    async def guarded(request: Any, context: Context) -> Any:
        try:
            if enter is not None:
                enter(context)
            return await behaviour(request if parse is None else parse(request), context)
        except Exception as error:
            await abort(context, error, code_of)

    return bare if enter is None and parse is None else guarded


def _guarded_stream(
    behaviour: Callable[..., Awaitable[Any]],
    parse: Callable[[Any], Any] | None,
    enter: Enter,
    code_of: CodeOf,
) -> Callable[..., Awaitable[Any]]:
    async def guarded(request: Any, context: Context) -> Any:
        try:
            principal = enter(context)
            if principal is not None:
                principal.take_stream()
            try:
                return await behaviour(request if parse is None else parse(request), context)
            finally:
                if principal is not None:
                    principal.streams -= 1
        except Exception as error:
            await abort(context, error, code_of)

    return guarded


def _guarded_generator(
    behaviour: Callable[..., Any],
    parse: Callable[[Any], Any] | None,
    enter: Enter | None,
    code_of: CodeOf,
) -> Callable[..., AsyncIterator[Any]]:
    async def guarded(request: Any, context: Context) -> AsyncIterator[Any]:
        try:
            principal = None if enter is None else enter(context)
            if principal is not None:
                principal.take_stream()
            try:
                async with aclosing(behaviour(request if parse is None else parse(request), context)) as responses:
                    async for response in responses:
                        yield response
            finally:
                if principal is not None:
                    principal.streams -= 1
        except Exception as error:
            await abort(context, error, code_of)

    return guarded
