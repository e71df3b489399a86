"""One bounded load on a running server, from a process of its own; prints one JSON object.

    python bench/load.py ADDRESS MODEL --mode stream --streams 8 --window 8 --pack 1 --seconds 3

`--api v2` speaks KServe v2 instead of the native API; `--shared-memory` passes inputs and outputs through a region.
Messages are made beforehand. `items` counts answers within the window of time, after a warm-up.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import time
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np
from google.protobuf import duration_pb2

from aclserve.tensors import tensor_from_array
from aclserve.v1 import memory_pb2, memory_pb2_grpc, tensor_pb2
from aclserve.v1 import model_pb2 as pb
from aclserve_client.shared_memory import SharedObject
from aclserve_server.kserve import inference_pb2

SHAPES = {
    "cnn_small": (3, 64, 64),
    "resnet50": (3, 224, 224),
    "identity": (16,),
    "identity_image": (224, 224, 3),
    "identity_frame": (1080, 1920, 3),
    "glance_frame": (1080, 1920, 3),
}
FRAMES = 64
"""Places in shared memory that a load rotates through, so that no cache holds them all."""

_OPTIONS = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
NATIVE, V2 = "/aclserve.v1.ModelService/", "/inference.GRPCInferenceService/"


@dataclass
class Tally:
    """What was answered between `begin` and `end` (seconds of the monotonic clock)."""

    begin: float
    end: float
    items: int = 0
    messages: int = 0
    errors: int = 0
    rows: list[int] = field(default_factory=list)
    latencies: list[float] = field(default_factory=list)

    def count(self, results: list[pb.InferResult], sent: float) -> None:
        now = time.monotonic()
        if self.begin <= now <= self.end:
            self.messages += 1
            for result in results:
                self.items += 1
                self.errors += result.HasField("error")
                self.rows.append(result.timing.batch_rows)
            self.latencies.append(now - sent)

    def count_one(self, error: str, sent: float) -> None:
        """An answer of the KServe v2 protocol, which does not tell of batches."""
        now = time.monotonic()
        if self.begin <= now <= self.end:
            self.messages += 1
            self.items += 1
            self.errors += bool(error)
            self.latencies.append(now - sent)


@dataclass(frozen=True)
class Share:
    """A region with places for the inputs and outputs of so many items, which load rotates through."""

    region_id: str
    lease: tuple[tuple[str, str], ...]
    stride_bytes: int

    def place(self, number: int, output: bool) -> tensor_pb2.RegionSlice:
        offset = (2 * number + output) * self.stride_bytes
        return tensor_pb2.RegionSlice(region_id=self.region_id, offset_bytes=offset)


@contextmanager
def shared(address: str, model: str, places: int) -> Iterator[Share]:
    """Shared memory that the server has opened, with an image in every input place."""
    image = image_of(model, 1)
    size = -(-image.nbytes // 4096) * 4096
    with closing(SharedObject(2 * size * places, sealed=True)) as memory_object:
        memory_object.reserve(memory_object.size_bytes)
        for number in range(places):
            memory_object.view(2 * number * size, image.shape, image.dtype)[:] = image
        with grpc.insecure_channel(address) as channel:
            memory = memory_pb2_grpc.MemoryServiceStub(channel)
            lease = memory.CreateLease(memory_pb2.CreateLeaseRequest(ttl=duration_pb2.Duration(seconds=300))).lease
            metadata = (("aclserve-lease", lease.id),)
            request = memory_pb2.RegisterRegionRequest(key=memory_object.key, size_bytes=2 * size * places)
            region = memory.RegisterRegion(request, metadata=metadata).region
            yield Share(region.id, metadata, size)
            memory.ReleaseLease(memory_pb2.ReleaseLeaseRequest(), metadata=metadata)


def image_of(model: str, number: int) -> np.ndarray[Any, Any]:
    random, shape = np.random.default_rng(number), (1, *SHAPES[model])
    if model in ("identity_image", "identity_frame", "glance_frame"):
        return random.integers(0, 256, shape, np.uint8)
    return random.random(shape, np.float32)


def item(model: str, number: int, share: Share | None = None) -> pb.InferItem:
    tensor = tensor_from_array("INPUT", image_of(model, number))
    if share is None:
        return pb.InferItem(inputs=[tensor])
    tensor.region.CopyFrom(share.place(number, False))
    if model == "glance_frame":  # its answer is small
        return pb.InferItem(inputs=[tensor])
    return pb.InferItem(inputs=[tensor], outputs=[pb.OutputRequest(name="OUTPUT", region=share.place(number, True))])


def v2_request(model: str, number: int) -> bytes:
    image = image_of(model, number)
    tensor = inference_pb2.ModelInferRequest.InferInputTensor(name="INPUT", shape=image.shape)
    tensor.datatype = "UINT8" if image.dtype == np.uint8 else "FP32"
    request = inference_pb2.ModelInferRequest(model_name=model, id=f"{number:08}", inputs=[tensor])
    request.raw_input_contents.append(image.tobytes())
    return request.SerializeToString()


async def v2_stream(channel: grpc.aio.Channel, arguments: argparse.Namespace, tally: Tally) -> None:
    call: Any = channel.stream_stream(V2 + "ModelStreamInfer")()
    payloads = [v2_request(arguments.model, number) for number in range(8)]
    room = asyncio.Semaphore(arguments.window)
    sent: deque[float] = deque()

    async def send() -> None:
        number = 0
        while time.monotonic() < tally.end:
            await room.acquire()
            sent.append(time.monotonic())
            await call.write(payloads[number % len(payloads)])
            number += 1
        await call.done_writing()

    async def receive() -> None:
        while (message := await call.read()) is not grpc.aio.EOF:
            answer = inference_pb2.ModelStreamInferResponse.FromString(message)
            tally.count_one(answer.error_message, sent.popleft())
            room.release()

    async with asyncio.TaskGroup() as group:
        group.create_task(send())
        group.create_task(receive())


async def v2_unary(channel: grpc.aio.Channel, arguments: argparse.Namespace, tally: Tally) -> None:
    call: Any = channel.unary_unary(V2 + "ModelInfer")
    payload = v2_request(arguments.model, 1)
    while time.monotonic() < tally.end:
        sent = time.monotonic()
        inference_pb2.ModelInferResponse.FromString(await call(payload))
        tally.count_one("", sent)


async def stream(channel: grpc.aio.Channel, arguments: argparse.Namespace, tally: Tally) -> None:
    share: Share | None = arguments.share
    call: Any = channel.stream_stream(NATIVE + "StreamInfer")(metadata=share.lease if share else None)
    config = pb.StreamConfig(model=arguments.model)
    await call.write(pb.StreamInferRequest(config=config).SerializeToString())
    payloads = [
        pb.StreamInferRequest(
            items=pb.ItemList(
                items=[item(arguments.model, number * arguments.pack + k, share) for k in range(arguments.pack)]
            )
        ).SerializeToString()
        for number in range(FRAMES // arguments.pack if share else 8)
    ]
    room = asyncio.Semaphore(arguments.window)
    sent: list[float] = []

    async def send() -> None:
        number = 0
        while time.monotonic() < tally.end:
            await room.acquire()
            sent.append(time.monotonic())
            await call.write(payloads[number % len(payloads)])
            number += 1
        await call.done_writing()

    async def receive() -> None:
        answered = 0
        while (message := await call.read()) is not grpc.aio.EOF:
            response = pb.StreamInferResponse.FromString(message)
            results = list(response.results.results)
            if results:
                tally.count(results, sent[answered // arguments.pack])
            before, answered = answered // arguments.pack, answered + len(results)
            for _ in range(answered // arguments.pack - before):
                room.release()

    async with asyncio.TaskGroup() as group:
        group.create_task(send())
        group.create_task(receive())


async def unary(channel: grpc.aio.Channel, arguments: argparse.Namespace, tally: Tally) -> None:
    call: Any = channel.unary_unary(NATIVE + "Infer")
    payload = pb.InferRequest(model=arguments.model, inputs=item(arguments.model, 1).inputs).SerializeToString()
    while time.monotonic() < tally.end:
        sent = time.monotonic()
        response = pb.InferResponse.FromString(await call(payload))
        tally.count([pb.InferResult(timing=response.timing)], sent)


CALLS = {
    ("native", "stream"): stream,
    ("native", "unary"): unary,
    ("v2", "stream"): v2_stream,
    ("v2", "unary"): v2_unary,
}


async def run(arguments: argparse.Namespace) -> Tally:
    now = time.monotonic()
    tally = Tally(now + arguments.warmup, now + arguments.warmup + arguments.seconds)
    print(json.dumps({"begin": tally.begin, "end": tally.end}), flush=True)
    one = CALLS[arguments.api, arguments.mode]
    channels = [
        grpc.aio.insecure_channel(arguments.address, [*_OPTIONS, ("grpc.use_local_subchannel_pool", 1)])
        for _ in range(min(4, arguments.streams))
    ]
    async with asyncio.TaskGroup() as group:
        for number in range(arguments.streams):
            group.create_task(one(channels[number % len(channels)], arguments, tally))
    for channel in channels:
        await channel.close()
    return tally


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("address")
    parser.add_argument("model", choices=SHAPES)
    parser.add_argument("--mode", choices=("stream", "unary"), default="stream")
    parser.add_argument("--api", choices=("native", "v2"), default="native")
    parser.add_argument("--shared-memory", action="store_true", help="one native stream only")
    parser.add_argument("--streams", type=int, default=8, help="streams, or unary calls at once")
    parser.add_argument("--window", type=int, default=8, help="messages in flight on each stream")
    parser.add_argument("--pack", type=int, default=1, help="items in a message")
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--warmup", type=float, default=1.0)
    arguments = parser.parse_args()
    arguments.share = None
    with ExitStack() as stack:
        if arguments.shared_memory:
            arguments.share = stack.enter_context(shared(arguments.address, arguments.model, FRAMES))
        tally = asyncio.run(run(arguments))
    latencies = np.array(tally.latencies or [0.0]) * 1e3
    print(
        json.dumps(
            {
                "items": tally.items,
                "messages": tally.messages,
                "errors": tally.errors,
                "rows_per_batch": float(np.mean(1.0 / np.array(tally.rows))) ** -1 if tally.rows else math.nan,
                "p50_ms": float(np.percentile(latencies, 50)),
                "p99_ms": float(np.percentile(latencies, 99)),
            }
        )
    )


if __name__ == "__main__":
    main()
