"""Options of a client, its channel's arguments, deadlines and the rule for retries. No network here."""

from __future__ import annotations

import ipaddress
import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import Literal

import grpc

from aclserve.errors import InvalidArgument
from aclserve_client.retries import ServiceConfig

DEFAULT_ADDRESS = "127.0.0.1:8001"

SCHEMES = ("unix:", "unix-abstract:", "vsock:", "dns:", "ipv4:", "ipv6:", "xds:")
"""What begins a target of gRPC that is no plain host:port."""

_HOST_PORT = re.compile(r"(\[[^\[\]/\s]+\]|[^\[\]:/\s]+):(\d{1,5})")


class Default(Enum):
    """The type of `DEFAULT`."""

    DEFAULT = "the client's Options.timeout"

    def __repr__(self) -> str:
        return "DEFAULT"


DEFAULT = Default.DEFAULT
"""As a timeout: `Options.timeout`."""

Timeout = float | None | Default
"""Seconds; None for no limit; `DEFAULT` for `Options.timeout`."""

SharedMemory = bool | Literal["auto"]
"""Whether large tensors go through memory shared with a server on the same host; see `Options`."""


@dataclass(frozen=True)
class Options:
    """How a client behaves. All times are seconds.

    timeout: the deadline of a call that names none; None for no limit. A stream as a whole has none, but becomes ready
        within it.
    max_message_bytes: the largest message sent or taken.
    retry_attempts: attempts at a read in all, the first one included. Only reads are tried again, only when the server
        is unavailable, and only within the call's deadline. (A client with several addresses also takes a call that no
        server has looked at to the next address.)
    retry_backoff: the wait before the second attempt, doubled each time and varied by a fifth, where the server does
        not name one (`RetryInfo` or `grpc-retry-pushback-ms`).
    service_config: a gRPC service config (JSON). Its `retryPolicy` counts for the methods that it names, instead of
        retry_attempts and retry_backoff, and its `retryThrottling` for all calls; gRPC follows the rest of it. Give
        a policy to methods only that may be executed twice.
    resume_attempts: how often a stream with `resume=True` is opened again in a row, without an answer in between.
    resume_timeout: how long such a stream may be without a server; None for no limit. The first time it becomes ready
        within `timeout`, as any stream. The waits in between begin with `retry_backoff` and double up to 5 s, where the
        server does not name one.
    keepalive_time: how often a connection in use that is silent is probed. Servers that are not told otherwise close a
        connection that is probed more than every 300 s.
    keepalive_timeout: how long a probe may take before the connection counts as broken.
    chunk_bytes: the size of a chunk when writing a buffer or uploading a model.
    pack_items, pack_bytes: the most waiting items of a stream that travel in one message, and their size (a larger item
        travels alone).
    max_unread_results: the results that a stream keeps for a caller who sends without reading.
    shared_memory: whether large tensors go through POSIX shared memory instead of messages, to a server on the same
        host that was started with --system-shared-memory. "auto": where that is possible; otherwise they travel in
        messages, which is logged once. True: where it is not possible, calls and streams raise why. Arrays are copied
        into the memory, and outputs out of it, once each; results are ordinary arrays. Calls and streams with a
        `lease` of their own do not use it.
    shared_memory_bytes: the memory of each stream, and of all calls of `infer` together. It is taken step by step as it
        is needed. An item that finds no room travels in a message.
    shared_memory_min_bytes: smaller tensors travel in messages, which is as fast.
    credentials: for TLS, as `aclserve_client.tls` or grpc makes them; None for plain text.
    token: shown with every call, as `authorization: Bearer TOKEN`. Without TLS it only goes to this host.
    metadata: sent with every call.
    """

    timeout: float | None = 30.0
    max_message_bytes: int = 65 << 20
    retry_attempts: int = 3
    retry_backoff: float = 0.1
    service_config: str = ""
    resume_attempts: int = 30
    resume_timeout: float | None = 120.0
    keepalive_time: float = 330.0
    keepalive_timeout: float = 20.0
    chunk_bytes: int = 1 << 20
    pack_items: int = 32
    pack_bytes: int = 1 << 20
    max_unread_results: int = 1024
    shared_memory: SharedMemory = False
    shared_memory_bytes: int = 64 << 20
    shared_memory_min_bytes: int = 64 << 10
    credentials: grpc.ChannelCredentials | None = None
    token: str = field(default="", repr=False)
    metadata: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        sizes = [
            *("max_message_bytes", "chunk_bytes", "pack_bytes", "pack_items"),
            *("retry_attempts", "resume_attempts", "max_unread_results"),
            *("shared_memory_bytes", "shared_memory_min_bytes"),
        ]
        wrong = [f"{name} must be 1 or more, got {getattr(self, name)}" for name in sizes if getattr(self, name) < 1]
        for name in ("timeout", "resume_timeout", "keepalive_time", "keepalive_timeout"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                wrong.append(f"{name} must be above 0 s, got {value}")
        if self.retry_backoff < 0:
            wrong.append(f"retry_backoff must be 0 s or more, got {self.retry_backoff}")
        if self.shared_memory not in (True, False, "auto"):
            wrong.append(f'shared_memory must be True, False or "auto", got {self.shared_memory!r}')
        if self.token and not (self.token.isascii() and self.token.isprintable() and " " not in self.token):
            wrong.append("token must be printable ASCII without blanks")
        if wrong:
            raise InvalidArgument("; ".join(wrong), reason="OPTIONS_INVALID")
        ServiceConfig(self.service_config)

    def seconds(self, timeout: Timeout) -> float | None:
        """The timeout of a call in seconds, or None for no limit."""
        return self.timeout if isinstance(timeout, Default) else timeout

    def sharing(self, mode: SharedMemory | None) -> SharedMemory:
        """The mode of a stream that names one or none."""
        return self.shared_memory if mode is None else replace(self, shared_memory=mode).shared_memory

    def channel_arguments(self) -> list[tuple[str, int | str]]:
        """gRPC's channel arguments. Connections are not shared between clients; gRPC itself does not retry."""
        config = [("grpc.service_config", self.service_config)] if self.service_config else []
        return [
            *config,
            ("grpc.max_send_message_length", self.max_message_bytes),
            ("grpc.max_receive_message_length", self.max_message_bytes),
            ("grpc.keepalive_time_ms", int(self.keepalive_time * 1000)),
            ("grpc.keepalive_timeout_ms", int(self.keepalive_timeout * 1000)),
            ("grpc.keepalive_permit_without_calls", 0),
            ("grpc.enable_retries", 0),
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 2000),
        ]


def tls(
    ca: str | Path | None = None, cert: str | Path | None = None, key: str | Path | None = None
) -> grpc.ChannelCredentials:
    """Credentials for `Options`, from files in PEM: the authorities to trust (None: the system's), and the client's own
    certificate with its key, where the server asks for one. Raises `InvalidArgument`, reason OPTIONS_INVALID.
    """
    if (cert is None) != (key is None):
        raise InvalidArgument("a client certificate needs its key; give both or none", reason="OPTIONS_INVALID")
    try:
        roots, own_key, own = (None if path is None else Path(path).read_bytes() for path in (ca, key, cert))
    except OSError as error:
        raise InvalidArgument(
            f"a file of TLS cannot be read: {error.filename}: {error.strerror}; name a file in PEM",
            reason="OPTIONS_INVALID",
        ) from error
    return grpc.ssl_channel_credentials(roots, own_key, own)


def is_local(address: str) -> bool:
    """Whether what is sent to an address stays on this host: the loopback, or a Unix domain socket."""
    if address.startswith(("unix:", "unix-abstract:")):
        return True
    host = address.rpartition(":")[0].strip("[]")
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def addresses_of(address: str | Iterable[str]) -> tuple[str, ...]:
    """The addresses in "host:port,host:port" or in several texts, each once. A path of unix: has no commas in it.

    Another of gRPC's own, such as dns:///host:port, goes as well. Raises `InvalidArgument`, reason ADDRESS_INVALID,
    when there is none, or a host lacks its port: gRPC's own guess, 443, is seldom meant.
    """
    texts = [address] if isinstance(address, str) else address
    found = dict.fromkeys(part.strip() for text in texts for part in text.split(","))
    found.pop("", None)
    if not found:
        raise InvalidArgument("no address; say host:port or unix:path, or several of them", reason="ADDRESS_INVALID")
    for one in found:
        plain = _HOST_PORT.fullmatch(one)
        if not one.startswith(SCHEMES) and (plain is None or int(plain[2]) > 0xFFFF):
            raise InvalidArgument(
                f"got the address {one!r}, expected host:port (of IPv6 [host]:port) or unix:path",
                reason="ADDRESS_INVALID",
            )
    return tuple(found)


class Deadline:
    """The point in time when a call, with all its attempts and pages, must be over."""

    def __init__(self, timeout: float | None, clock: Callable[[], float] = time.monotonic) -> None:
        self.timeout = timeout
        self._clock = clock
        self._end = None if timeout is None else clock() + timeout

    def remaining(self) -> float | None:
        """Seconds left, 0 or more; None for no limit."""
        return None if self._end is None else max(0.0, self._end - self._clock())
