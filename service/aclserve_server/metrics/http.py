"""The HTTP server of the metrics port: /metrics, /healthz, /readyz."""

from __future__ import annotations

import io
import logging
import socket
import sys
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from socketserver import ThreadingMixIn
from typing import Any, TextIO, cast
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer
from wsgiref.types import StartResponse, WSGIEnvironment

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector, generate_latest
from prometheus_client.exposition import make_wsgi_app

from aclserve_server.metrics.triton import plain_numbers

logger = logging.getLogger(__name__)

MAX_CONNECTIONS = 16
"""HTTP requests served at once; one more is answered 503 without a thread."""

REQUEST_TIMEOUT_S = 10.0
"""How long a read or write on a connection may wait."""

_POLL_S = 1.0
"""How often the listening thread looks up by itself: seldom, since it wakes an idle processor."""


def add_process(registry: CollectorRegistry) -> None:
    """Adds process, platform and garbage collector metrics unless the registry has them."""
    for collector in (ProcessCollector, PlatformCollector, GCCollector):
        try:
            collector(registry=registry)
        except ValueError:  # it has these already
            logger.debug("the registry has %s already", collector.__name__)


def page(registry: CollectorRegistry) -> str:
    """What /metrics shows, in Prometheus' text format."""
    return generate_latest(registry).decode()


def page_or_none(registry: CollectorRegistry) -> str | None:
    """The same for those who must go on without it where a collector fails, which is logged."""
    try:
        return page(registry)
    except Exception:
        logger.exception("the metrics cannot be collected")
        return None


class MetricsServer:
    """Serves /healthz (200 while the process lives), /readyz (200 or 503) and /metrics; HTTP/1.0, GET and HEAD only.

    Adds process, platform and garbage collector metrics to `registry` unless it has them, or `process` is False.
    `ready` is called on HTTP threads and must not block; an exception counts as not ready. `port` 0 picks a free one.
    """

    def __init__(
        self, host: str, port: int, registry: CollectorRegistry, ready: Callable[[], bool], *, process: bool = True
    ) -> None:
        self._host, self._port = host, port
        self._ready = ready
        if process:
            add_process(registry)
        self._metrics_app: Callable[..., Iterable[bytes]] = make_wsgi_app(registry)
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> int:
        """Binds, serves on a thread of its own and returns the port. Raises OSError, for the operator, if it cannot."""
        if self._server is not None:
            raise RuntimeError("the metrics server has been started already")
        try:
            self._server = _Server(self._host, self._port, self._application)
        except OSError as error:
            raise OSError(
                f"--metrics-port: cannot listen on {self._host}:{self._port} ({error.strerror or error}); "
                "0 picks a free one"
            ) from error
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(_POLL_S,), name="metrics-http", daemon=True
        )
        self._thread.start()
        return int(self._server.server_address[1])

    def close(self) -> None:
        """Stops serving, ends open connections and joins all threads. Closing twice, or before the start, is fine."""
        server, self._server = self._server, None
        thread, self._thread = self._thread, None
        if server is None or thread is None:
            return
        with suppress(OSError):  # where a listening socket cannot be shut down, the thread looks up within `_POLL_S`
            server.socket.shutdown(socket.SHUT_RDWR)
        server.shutdown()
        thread.join()
        server.end_connections()
        server.server_close()

    def __enter__(self) -> MetricsServer:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _application(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        if method not in ("GET", "HEAD"):
            return _answer(
                environ, start_response, "405 Method Not Allowed", "GET and HEAD only\n", ("Allow", "GET, HEAD")
            )
        if path == "/healthz":
            return _answer(environ, start_response, "200 OK", "ok\n")
        if path == "/readyz":
            if self._is_ready():
                return _answer(environ, start_response, "200 OK", "ready\n")
            return _answer(environ, start_response, "503 Service Unavailable", "not ready\n")
        if path == "/metrics":
            return self._metrics(environ, start_response)
        return _answer(environ, start_response, "404 Not Found", "there are /healthz, /readyz and /metrics\n")

    def _metrics(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        begun: list[tuple[str, list[tuple[str, str]]]] = []
        as_get = {**environ, "REQUEST_METHOD": "GET"}
        body = b"".join(self._metrics_app(as_get, lambda status, headers: begun.append((status, headers))))
        status, headers = begun[0]
        if "Content-Encoding" not in dict(headers):  # who asks for compression reads exponents
            body = plain_numbers(body)
        start_response(status, [*headers, ("Content-Length", str(len(body)))])
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [body]

    def _is_ready(self) -> bool:
        try:
            return self._ready()
        except Exception:
            logger.exception("the readiness check failed")
            return False


def _answer(
    environ: WSGIEnvironment, start_response: StartResponse, status: str, text: str, *headers: tuple[str, str]
) -> Iterable[bytes]:
    body = text.encode()
    fixed = [("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", str(len(body)))]
    start_response(status, [*fixed, ("Cache-Control", "no-store"), *headers])
    return [] if environ["REQUEST_METHOD"] == "HEAD" else [body]


class _ErrorLog(io.TextIOBase):
    """Where wsgiref writes its tracebacks."""

    def write(self, text: str) -> int:
        if text.strip():
            logger.error("the metrics page failed: %s", text.rstrip())
        return len(text)


class _Handler(WSGIRequestHandler):
    """One request per connection; logs to the module's logger instead of standard error."""

    timeout = REQUEST_TIMEOUT_S

    def get_stderr(self) -> TextIO:
        return cast(TextIO, _ErrorLog())

    def address_string(self) -> str:
        """The client's address as it is: no lookup of its name."""
        return str(self.client_address[0])

    def log_message(self, format: str, *args: Any) -> None:
        logger.debug("HTTP %s: %s", self.address_string(), format % args)


class _Server(ThreadingMixIn, WSGIServer):
    """A thread per request, at most `MAX_CONNECTIONS`; closing joins them."""

    daemon_threads = False
    block_on_close = True
    request_queue_size = 64

    def __init__(self, host: str, port: int, application: Any) -> None:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        self.address_family = family
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()  # guarded by _lock
        super().__init__((str(address[0]), int(address[1])), _Handler)
        self.set_app(application)

    def server_bind(self) -> None:
        """As the base does, without looking up the host's name, which may wait for a name server."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])
        self.setup_environ()

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            accepted = len(self._open) < MAX_CONNECTIONS
            if accepted:
                self._open.add(request)
        if accepted:
            super().process_request(request, client_address)
            return
        request.settimeout(0)
        try:
            request.send(b"HTTP/1.0 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n")
        except OSError as error:
            logger.debug("a refused HTTP connection ended: %s", error)
        self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            with self._lock:
                self._open.discard(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        error = sys.exc_info()[1]
        if isinstance(error, OSError):  # the client went away or was too slow
            logger.debug("an HTTP connection ended: %s", error)
        else:
            logger.exception("an HTTP request failed")

    def end_connections(self) -> None:
        """Shuts all open connections down, so that their threads end now."""
        with self._lock:
            connections = list(self._open)
        for connection in connections:
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue
