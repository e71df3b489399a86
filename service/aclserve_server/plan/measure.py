"""Measures how long a model's executions take, gear by gear, as a server itself tells it.

The times are those of KServe v2's ModelStatistics: of a batch from its submission to its end, without the wait before
it. So they hold for the device that the server drives, whichever that is.
"""

from __future__ import annotations

import subprocess
import sys
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from google.protobuf import json_format

from aclserve.v1 import model_pb2, model_pb2_grpc
from aclserve_server.kserve import inference_pb2, inference_pb2_grpc

CALL_S = 60.0
CONNECT_S = 5.0
STOP_S = 60.0


class MeasureError(Exception):
    """What cannot be measured, in words: what was got, what is expected, what to do."""


@dataclass(frozen=True)
class Access:
    """Where a server is and how to get in; no address: one is started."""

    address: str = ""
    tls_ca: Path | None = None
    token_file: Path | None = None


def measure(model: str, access: Access, repeats: int, options: Sequence[str] = ()) -> dict[str, Any]:
    """The costs of a model as `costs` of a plan reads them.

    Asks the server for `repeats` executions of each gear, and with 0 reads what it has done since the model was loaded.
    `options` are for the server that is started where `access` names none.
    """
    if access.address:
        if options:
            raise MeasureError("options of a server were given, but --address names one that runs; give one of them")
        return _measure(model, access, repeats)
    if not repeats:
        raise MeasureError("a server that is just started has executed nothing; give --repeats, or --address")
    with _started(options) as address:
        return _measure(model, Access(address), repeats)


def _measure(model: str, access: Access, repeats: int) -> dict[str, Any]:
    try:
        metadata = _metadata(access)
        with _channel(access) as channel:
            _connect(channel, access)
            return _Measurement(channel, model, metadata).run(repeats)
    except grpc.RpcError as error:
        code, told = error.code(), error.details()
        raise MeasureError(f"the server answers {code.name}: {told}") from error
    except OSError as error:
        raise MeasureError(f"{error.filename}: {error.strerror}; name a file that can be read") from error
    except UnicodeDecodeError as error:
        raise MeasureError(f"{access.token_file}: it is not UTF-8 text; name the file of a token") from error


class _Measurement:
    """One model of one server."""

    def __init__(self, channel: grpc.Channel, model: str, metadata: Sequence[tuple[str, str]]) -> None:
        self._models = model_pb2_grpc.ModelServiceStub(channel)
        self._v2 = inference_pb2_grpc.GRPCInferenceServiceStub(channel)  # type: ignore[no-untyped-call]
        self._model = model
        self._call = {"timeout": CALL_S, "metadata": metadata, "wait_for_ready": True}

    def run(self, repeats: int) -> dict[str, Any]:
        described = self._models.GetModel(model_pb2.GetModelRequest(model=self._model), **self._call).description
        compiled = {int(gear.values[0]) for gear in described.gears if gear.kind == "batch"}
        gears = sorted({gear for gear in compiled if gear < described.max_rows} | {described.max_rows})
        before: Mapping[int, tuple[int, int]] = {}
        if repeats:
            for gear in gears:  # the first execution of a gear may be unlike all others
                self._infer(described, gear)
            before = self._sizes()
            for gear in gears:
                for _ in range(repeats):
                    self._infer(described, gear)
        spent: dict[int, list[int]] = {}
        for rows, (count, ns) in self._sizes().items():
            known = before.get(rows, (0, 0))
            sums = spent.setdefault(gears[min(bisect_left(gears, rows), len(gears) - 1)], [0, 0])
            sums[0] += count - known[0]
            sums[1] += ns - known[1]
        found = {gear: sums for gear, sums in sorted(spent.items()) if sums[0]}
        if not found:
            raise MeasureError(f"the server has executed nothing of {self._model!r} yet; give --repeats")
        return {
            "model": self._model,
            "gears": gears,
            "costs_us": {str(gear): round(ns / count / 1e3, 3) for gear, (count, ns) in found.items()},
            "executions": {str(gear): count for gear, (count, _) in found.items()},
        }

    def _infer(self, described: model_pb2.ModelDescription, rows: int) -> None:
        request = json_format.Parse(described.sample_json, model_pb2.InferRequest())
        if described.max_rows > 1:
            for tensor in request.inputs:
                tensor.shape[0] = rows
        self._models.Infer(request, **self._call)

    def _sizes(self) -> dict[int, tuple[int, int]]:
        """Executions so far by rows: how many, and nanoseconds."""
        request = inference_pb2.ModelStatisticsRequest(name=self._model)
        sizes: dict[int, tuple[int, int]] = {}
        for model in self._v2.ModelStatistics(request, **self._call).model_stats:
            for batch in model.batch_stats:
                count, ns = sizes.get(batch.batch_size, (0, 0))
                spent = batch.compute_infer.ns + batch.compute_output.ns
                sizes[batch.batch_size] = (count + batch.compute_infer.count, ns + spent)
        return sizes


def _channel(access: Access) -> grpc.Channel:
    if access.tls_ca is None:
        return grpc.insecure_channel(access.address)
    return grpc.secure_channel(access.address, grpc.ssl_channel_credentials(access.tls_ca.read_bytes()))


def _connect(channel: grpc.Channel, access: Access) -> None:
    """Waits for the connection, since calls wait for a server that is busy."""
    try:
        grpc.channel_ready_future(channel).result(CONNECT_S)
    except grpc.FutureTimeoutError as error:
        way = "without TLS" if access.tls_ca is None else f"with the authorities of {access.tls_ca}"
        raise MeasureError(
            f"no server answers at {access.address} {way} within {CONNECT_S:g} s; expected HOST:PORT of one that runs"
        ) from error


def _metadata(access: Access) -> list[tuple[str, str]]:
    if access.token_file is None:
        return []
    if access.tls_ca is None:
        raise MeasureError("a token would travel in the clear; give --tls-ca with it")
    return [("authorization", f"Bearer {access.token_file.read_text(encoding='utf-8').strip()}")]


@contextmanager
def _started(options: Sequence[str]) -> Iterator[str]:
    """A server with these options and free ports; its address."""
    command = [sys.executable, "-m", "aclserve_server", "serve", *options, "--port", "0", "--metrics-port", "0"]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as process:  # noqa: S603
        try:
            assert process.stdout is not None
            words = process.stdout.readline().split()
            if words[:1] != ["ready"]:
                raise MeasureError("the server that was to be measured did not start; what it said stands above")
            yield dict(word.split("=", 1) for word in words[1:])["grpc"]
        finally:
            process.terminate()
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
