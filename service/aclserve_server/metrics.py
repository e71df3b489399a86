"""What the service counts, and the HTTP server that shows it: /metrics, /healthz, /readyz.

Counting is per batch, not per item: `ServerMetrics.observe_batch` costs about 5 us (four histograms, four counters, no
lookup beyond two dictionaries), against 150-300 us for the cheapest message. Gauges cost nothing between scrapes: they
are read through callbacks, on the HTTP server's threads.
"""

from __future__ import annotations

import io
import logging
import socket
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from socketserver import ThreadingMixIn
from typing import Any, TextIO, cast
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer
from wsgiref.types import StartResponse, WSGIEnvironment

from prometheus_client import CollectorRegistry, Counter, GCCollector, Histogram, PlatformCollector, ProcessCollector
from prometheus_client.exposition import make_wsgi_app
from prometheus_client.metrics_core import GaugeMetricFamily
from prometheus_client.registry import Collector

logger = logging.getLogger(__name__)

MAX_CONNECTIONS = 16
"""HTTP requests served at once; one more is answered 503 without a thread."""

REQUEST_TIMEOUT_S = 10.0
"""How long a read or write on a connection may wait."""

_SECONDS = tuple(0.0001 * 2**step for step in range(18))
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class _ModelCounters:
    """The label children of one model, looked up once."""

    def __init__(self, metrics: ServerMetrics, model: str) -> None:
        self.batches = metrics._batches.labels(model)
        self.rows = metrics._rows.labels(model)
        self.padding = metrics._padding.labels(model)
        self.batch_rows = metrics._batch_rows.labels(model)
        self.wait = metrics._wait.labels(model)
        self.execute = metrics._execute.labels(model)
        self.total = metrics._total.labels(model)
        self.items: dict[str, Counter] = {}


class ServerMetrics(Collector):
    """The service's own metrics, registered in `registry`. All methods may be called from any thread.

    Model names become labels: pass names of known models only, never what a client sent.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"aclserve_{name}", text, labels, registry=registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"aclserve_{name}", text, ("model",), registry=registry, buckets=buckets)

        self._items = counter("items", "Items answered, by status code; OK, an error, or DROPPED.", "model", "code")
        self._batches = counter("batches", "Executions on the device.", "model")
        self._rows = counter("rows", "Rows executed, without padding.", "model")
        self._padding = counter("padding_rows", "Rows executed only to fill a gear.", "model")
        self._batch_rows = histogram("batch_rows", "Rows per execution, without padding.", _ROWS)
        self._wait = histogram("wait_seconds", "From receipt of a batch's oldest item to its submission.", _SECONDS)
        self._execute = histogram("execute_seconds", "Execution of a batch on the device.", _SECONDS)
        self._total = histogram("total_seconds", "From receipt of a batch's oldest item to its answer.", _SECONDS)
        self._models: dict[str, _ModelCounters] = {}
        self._queues: dict[str, Callable[[], int]] = {}
        self._streams: Callable[[], int] | None = None
        self._memory: Callable[[], Mapping[str, tuple[int, int]]] | None = None
        self._leases: Callable[[], tuple[int, int, int]] | None = None
        registry.register(self)

    def observe_batch(
        self,
        model: str,
        rows: int,
        *,
        wait_s: float,
        execute_s: float,
        total_s: float,
        items: int,
        padding_rows: int = 0,
        code: str = "OK",
    ) -> None:
        """Counts one execution of `items` items with `rows` rows; times in seconds, of the batch's oldest item.

        `code` is the outcome of the execution for all its items. Costs about 5 us; call it once per batch.
        """
        counters = self._counters(model)
        counters.batches.inc()
        counters.rows.inc(rows)
        if padding_rows:
            counters.padding.inc(padding_rows)
        counters.batch_rows.observe(rows)
        counters.wait.observe(wait_s)
        counters.execute.observe(execute_s)
        counters.total.observe(total_s)
        self._count(counters, model, code, items)

    def count_items(self, model: str, code: str, items: int = 1) -> None:
        """Counts items answered without an execution: refused, cancelled, late, or "DROPPED". About 0.5 us."""
        self._count(self._counters(model), model, code, items)

    def watch_queue(self, model: str, waiting_rows: Callable[[], int]) -> None:
        """Shows a model's rows waiting for a slot, until `forget_model`. No callback may block or call the device."""
        self._queues[model] = waiting_rows

    def watch_streams(self, streams: Callable[[], int]) -> None:
        """Shows the inference streams open now."""
        self._streams = streams

    def watch_device_memory(self, memory: Callable[[], Mapping[str, tuple[int, int]]]) -> None:
        """Shows device memory: attribute name (such as "ddr") -> (free, total) in bytes.

        The callback runs on a thread without a device context: it returns the last known values.
        """
        self._memory = memory

    def watch_leases(self, leases: Callable[[], tuple[int, int, int]]) -> None:
        """Shows what clients hold: (leases, buffers, bytes of the buffers)."""
        self._leases = leases

    def forget_model(self, model: str) -> None:
        """Stops showing an unloaded model's queue; its counters stay, because counters never go back."""
        self._queues.pop(model, None)

    def describe(self) -> Iterable[GaugeMetricFamily]:
        """The gauges without samples, so that registering reads nothing."""
        return [GaugeMetricFamily(name, text, labels=labels) for name, text, labels in _GAUGES]

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """The gauges now. One whose callback raises is left out and logged; the others are shown."""
        readers = (self._read_queues, self._read_streams, self._read_memory, self._read_leases)
        for reader in readers:
            try:
                families = list(reader())
            except Exception:
                logger.exception("a metrics callback failed")
                continue
            yield from families

    def _read_queues(self) -> Iterator[GaugeMetricFamily]:
        family = _gauge("aclserve_queue_rows")
        for model, waiting in list(self._queues.items()):
            family.add_metric([model], waiting())
        yield family

    def _read_streams(self) -> Iterator[GaugeMetricFamily]:
        if self._streams is not None:
            yield _filled("aclserve_streams", self._streams())

    def _read_memory(self) -> Iterator[GaugeMetricFamily]:
        if self._memory is not None:
            free, total = _gauge("aclserve_device_memory_free_bytes"), _gauge("aclserve_device_memory_total_bytes")
            for kind, (free_bytes, total_bytes) in self._memory().items():
                free.add_metric([kind], free_bytes)
                total.add_metric([kind], total_bytes)
            yield free
            yield total

    def _read_leases(self) -> Iterator[GaugeMetricFamily]:
        if self._leases is not None:
            leases, buffers, size_bytes = self._leases()
            yield _filled("aclserve_leases", leases)
            yield _filled("aclserve_buffers", buffers)
            yield _filled("aclserve_buffer_bytes", size_bytes)

    def _counters(self, model: str) -> _ModelCounters:
        counters = self._models.get(model)
        if counters is None:
            counters = self._models[model] = _ModelCounters(self, model)
        return counters

    def _count(self, counters: _ModelCounters, model: str, code: str, items: int) -> None:
        counter = counters.items.get(code)
        if counter is None:
            counter = counters.items[code] = self._items.labels(model, code)
        counter.inc(items)


_GAUGES: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("aclserve_queue_rows", "Rows waiting for a slot.", ("model",)),
    ("aclserve_streams", "Inference streams open.", ()),
    ("aclserve_device_memory_free_bytes", "Free device memory, by attribute.", ("kind",)),
    ("aclserve_device_memory_total_bytes", "Device memory, by attribute.", ("kind",)),
    ("aclserve_leases", "Memory leases alive.", ()),
    ("aclserve_buffers", "Buffers that clients hold.", ()),
    ("aclserve_buffer_bytes", "Bytes of the buffers that clients hold.", ()),
)
_GAUGE_TEXTS = {name: (text, labels) for name, text, labels in _GAUGES}


def _gauge(name: str) -> GaugeMetricFamily:
    text, labels = _GAUGE_TEXTS[name]
    return GaugeMetricFamily(name, text, labels=labels)


def _filled(name: str, value: float) -> GaugeMetricFamily:
    family = _gauge(name)
    family.add_metric([], value)
    return family


class MetricsServer:
    """Serves /healthz (200 while the process lives), /readyz (200 or 503) and /metrics; HTTP/1.0, GET and HEAD only.

    Adds process, platform and garbage collector metrics to `registry` unless it has them. `ready` is called on HTTP
    threads and must not block; an exception counts as not ready. `port` 0 picks a free one.
    """

    def __init__(self, host: str, port: int, registry: CollectorRegistry, ready: Callable[[], bool]) -> None:
        self._host, self._port = host, port
        self._ready = ready
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            try:
                collector(registry=registry)
            except ValueError:  # it has these already
                logger.debug("the registry has %s already", collector.__name__)
        self._metrics_app: Callable[..., Iterable[bytes]] = make_wsgi_app(registry)
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> int:
        """Binds, serves on a thread of its own and returns the port. Raises OSError where it cannot bind."""
        if self._server is not None:
            raise RuntimeError("the metrics server has been started already")
        self._server = _Server(self._host, self._port, self._application)
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.1,), name="metrics-http", daemon=True
        )
        self._thread.start()
        return int(self._server.server_address[1])

    def close(self) -> None:
        """Stops serving, ends open connections and joins all threads. Closing twice, or before the start, is fine."""
        server, self._server = self._server, None
        thread, self._thread = self._thread, None
        if server is None or thread is None:
            return
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
