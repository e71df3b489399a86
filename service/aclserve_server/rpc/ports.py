"""Where the server listens, and TLS: certificates are read again for every new connection once their files change."""

from __future__ import annotations

import logging
import ssl
from copy import copy
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from aclserve_server.rpc.guard import Guard
from aclserve_server.rpc.health import Health

log = logging.getLogger(__name__)

MAX_METADATA_BYTES = 16 << 10
"""Metadata of one call."""

MAX_CONNECTION_CALLS = 4096
"""Calls of one connection at a time; a client's further ones wait in the client."""

MAX_PENDING_CALLS = 4 * MAX_CONNECTION_CALLS
"""Calls of all connections that have come and are not begun; from here on gRPC cancels more and more of them, without a
word, and from twice as many all. Its own default, 1000, would hit one client with many calls."""

KEEPALIVE_S, KEEPALIVE_TIMEOUT_S = 60.0, 20.0
"""A peer that is silent for so long is asked whether it is there, and given up when it does not answer in time: so a
client that lost its power or its network holds streams and quotas no longer than both together."""

HANDSHAKE_S = 20.0
"""How long a new connection may take to say what it is."""

_PROBE_MESSAGE_BYTES = 64 << 10


def make_server(
    max_message_bytes: int,
    *,
    shares: bool = False,
    keepalive_s: float = KEEPALIVE_S,
    keepalive_timeout_s: float = KEEPALIVE_TIMEOUT_S,
    handshake_s: float = HANDSHAKE_S,
) -> grpc.aio.Server:
    """A gRPC server with the limits that concern all calls; it listens nowhere yet.

    `shares`: its ports may be other processes' of this user too, among whom the system distributes connections.
    """
    return grpc.aio.server(
        options=[
            ("grpc.max_receive_message_length", max_message_bytes),
            ("grpc.max_send_message_length", -1),
            ("grpc.max_metadata_size", MAX_METADATA_BYTES),
            ("grpc.absolute_max_metadata_size", MAX_METADATA_BYTES),
            ("grpc.max_concurrent_streams", MAX_CONNECTION_CALLS),
            ("grpc.server.max_pending_requests", MAX_PENDING_CALLS),
            ("grpc.server.max_pending_requests_hard_limit", 2 * MAX_PENDING_CALLS),
            ("grpc.so_reuseport", int(shares)),
            ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
            ("grpc.keepalive_time_ms", int(keepalive_s * 1e3)),
            ("grpc.keepalive_timeout_ms", int(keepalive_timeout_s * 1e3)),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.max_pings_without_data", 0),
            ("grpc.http2.ping_timeout_ms", int(keepalive_timeout_s * 1e3)),
            ("grpc.server_handshake_timeout_ms", int(handshake_s * 1e3)),
        ]
    )


def open_port(server: grpc.aio.Server, flag: str, host: str, port: int, tls: Certificates | None = None) -> int:
    """Makes a server listen, before its start; the port. Raises OSError with words for the operator."""
    place = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        if tls is None:
            return server.add_insecure_port(place)
        return server.add_secure_port(place, tls.credentials())
    except RuntimeError as error:
        raise OSError(f"{flag}: cannot listen on {place}; is it in use? 0 picks a free one") from error


def open_socket(server: grpc.aio.Server, path: Path) -> None:
    """The same for a unix domain socket, which needs no TLS."""
    try:
        server.add_insecure_port(f"unix:{path}")
    except RuntimeError as error:
        raise OSError(f"--unix-socket: cannot listen on {path}; may this user write there?") from error


async def serve_probes(health: Health, host: str, port: int) -> tuple[grpc.aio.Server, int]:
    """A server of health alone, without TLS and token, that is started, and its port."""
    server = make_server(_PROBE_MESSAGE_BYTES)
    guard: Any = Guard(server, open_only=True)
    health.add_to_server(guard)
    port = open_port(server, "--health-port", host, port)
    await server.start()
    return server, port


class Certificates:
    """The files of TLS. What they hold is checked before it is used; a change that cannot be used changes nothing.

    gRPC asks for every handshake, on threads of its own, one at a time.
    """

    def __init__(self, cert: str, key: str, client_ca: str = "") -> None:
        """Reads the files; raises OSError with words for the operator. With `client_ca` a client must have one."""
        self._cert, self._key, self._client_ca = Path(cert), Path(key), Path(client_ca) if client_ca else None
        self._seen = self._identity()
        self._first = self._read()

    def credentials(self) -> grpc.ServerCredentials:
        """For one port: each has to see a change by itself."""
        own = copy(self)
        make: Any = grpc.dynamic_ssl_server_credentials
        credentials: grpc.ServerCredentials = make(own._first, own._changed, own._client_ca is not None)
        return credentials

    def _changed(self) -> Any:
        """The configuration when the files have changed since, otherwise None."""
        seen = self._identity()
        if seen == self._seen:
            return None
        self._seen = seen
        try:
            configuration = self._read()
        except OSError as error:
            log.warning("the certificates stay as they were: %s", error)
            return None
        log.info("read the certificates again")
        return configuration

    def _read(self) -> Any:
        checked = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            checked.load_cert_chain(self._cert, self._key, password="")
            if self._client_ca is not None:
                checked.load_verify_locations(self._client_ca)
            chain, key = self._cert.read_bytes(), self._key.read_bytes()
            roots = None if self._client_ca is None else self._client_ca.read_bytes()
        except (OSError, ValueError) as error:
            what = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
            raise OSError(
                f"--tls-cert, --tls-key, --tls-client-ca: cannot use {self._cert}, {self._key}"
                f"{'' if self._client_ca is None else f', {self._client_ca}'} ({what}); expected PEM files, the key "
                "that of the first certificate and without a password"
            ) from error
        return grpc.ssl_server_certificate_configuration([(key, chain)], roots)

    def _identity(self) -> object:
        """Which files they are; None for one that is not there."""
        found = []
        for path in (self._cert, self._key, self._client_ca):
            try:
                facts = None if path is None else path.stat()
            except OSError:
                facts = None
            found.append(facts and (facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns))
        return found
