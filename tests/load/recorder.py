"""What ghz receives: a gRPC proxy that passes every call on and keeps the inference answers.

ghz keeps only the status and the duration of a call (the log of its `debug` option is a sample). Through the proxy its
calls are the same calls, with its half-close and its ids; times measured by ghz through it are longer, the timings in
the answers are the server's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc

from aclserve.v1 import model_pb2 as pb

INFER = "/aclserve.v1.ModelService/Infer"
STREAM_INFER = "/aclserve.v1.ModelService/StreamInfer"

_OPTIONS = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1), ("grpc.so_reuseport", 0)]
_CALLS = 256
_STOP_S = 5.0


@dataclass
class Call:
    """One inference call. `code` is the name of its status, empty while it has not ended.

    `results` holds the answers of the items; `after_half_close` counts those that came after the client's half-close;
    `in_order` tells whether a stream's messages were ready, results, summary.
    """

    method: str
    code: str = ""
    message: str = ""
    half_closed: bool = False
    after_half_close: int = 0
    results: list[pb.InferResult] = field(default_factory=list)
    ready: int = 0
    summary: pb.StreamSummary | None = None
    in_order: bool = True

    def receive(self, message: bytes) -> None:
        """Notes one answer of the server."""
        if self.method == INFER:
            answer = pb.InferResponse.FromString(message)
            results = [pb.InferResult(id=answer.id, outputs=answer.outputs, timing=answer.timing)]
        else:
            response = pb.StreamInferResponse.FromString(message)
            self.in_order &= self.summary is None and (response.WhichOneof("response") == "ready") == (not self.ready)
            self.ready += response.HasField("ready")
            if response.HasField("summary"):
                self.summary = response.summary
            results = list(response.results.results)
        self.results.extend(results)
        if self.half_closed:
            self.after_half_close += len(results)


class _Proxy(grpc.GenericRpcHandler):
    """Passes all methods of a channel's server on, message by message; unary ones are streams of one message."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._channel = channel
        self.calls: list[Call] = []

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any]:
        method = details.method
        # Calls of asyncio's kind would lose the status of a stream that the server ends while the client still sends.
        return grpc.stream_stream_rpc_method_handler(lambda requests, context: self._forward(method, requests, context))

    def _forward(self, method: str, requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        kept = Call(method)
        if inference := method in (INFER, STREAM_INFER):
            self.calls.append(kept)
        begin: Any = self._channel.stream_stream(method)
        call = begin(_until_half_close(requests, kept), timeout=context.time_remaining())
        context.add_callback(call.cancel)
        try:
            for message in call:
                if inference:
                    kept.receive(message)
                yield message
        except grpc.RpcError:
            kept.code, kept.message = call.code().name, call.details()
            context.set_trailing_metadata(tuple(call.trailing_metadata() or ()))
            context.abort(call.code(), kept.message)
        kept.code = "OK"


def _until_half_close(requests: Iterator[bytes], kept: Call) -> Iterator[bytes]:
    yield from requests
    kept.half_closed = True


@contextmanager
def recording(target: str) -> Iterator[tuple[str, Callable[[], list[Call]]]]:
    """A proxy for a server, on threads of its own: its address, and a function that returns the calls so far."""
    with ThreadPoolExecutor(_CALLS) as threads, grpc.insecure_channel(target, options=_OPTIONS) as channel:
        proxy = _Proxy(channel)
        server = grpc.server(threads, handlers=[proxy], options=_OPTIONS)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        try:
            yield f"127.0.0.1:{port}", lambda: list(proxy.calls)
        finally:
            server.stop(_STOP_S).wait()
