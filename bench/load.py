"""One bounded load on a running server, from a process of its own; prints one JSON object.

    python bench/load.py ADDRESS MODEL --mode stream --streams 8 --window 8 --pack 1 --seconds 3

Messages are made beforehand. `items` counts answers within the window of time, after a warm-up.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np

from aclserve.tensors import tensor_from_array
from aclserve.v1 import model_pb2 as pb

SHAPES = {"cnn_small": (3, 64, 64), "resnet50": (3, 224, 224), "identity": (16,)}
_OPTIONS = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


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


def item(model: str, number: int) -> pb.InferItem:
    image = np.random.default_rng(number).random((1, *SHAPES[model]), np.float32)
    return pb.InferItem(inputs=[tensor_from_array("INPUT", image)])


async def stream(channel: grpc.aio.Channel, arguments: argparse.Namespace, tally: Tally) -> None:
    call: Any = channel.stream_stream("/aclserve.v1.ModelService/StreamInfer")()
    config = pb.StreamConfig(model=arguments.model)
    await call.write(pb.StreamInferRequest(config=config).SerializeToString())
    payloads = [
        pb.StreamInferRequest(
            items=pb.ItemList(items=[item(arguments.model, number * 64 + k) for k in range(arguments.pack)])
        ).SerializeToString()
        for number in range(8)
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
    call: Any = channel.unary_unary("/aclserve.v1.ModelService/Infer")
    payload = pb.InferRequest(model=arguments.model, inputs=item(arguments.model, 1).inputs).SerializeToString()
    while time.monotonic() < tally.end:
        sent = time.monotonic()
        response = pb.InferResponse.FromString(await call(payload))
        tally.count([pb.InferResult(timing=response.timing)], sent)


async def run(arguments: argparse.Namespace) -> Tally:
    now = time.monotonic()
    tally = Tally(now + arguments.warmup, now + arguments.warmup + arguments.seconds)
    print(json.dumps({"begin": tally.begin, "end": tally.end}), flush=True)
    one = stream if arguments.mode == "stream" else unary
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
    parser.add_argument("--streams", type=int, default=8, help="streams, or unary calls at once")
    parser.add_argument("--window", type=int, default=8, help="messages in flight on each stream")
    parser.add_argument("--pack", type=int, default=1, help="items in a message")
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--warmup", type=float, default=1.0)
    tally = asyncio.run(run(parser.parse_args()))
    latencies = np.array(tally.latencies or [0.0]) * 1e3
    print(
        json.dumps(
            {
                "items": tally.items,
                "messages": tally.messages,
                "errors": tally.errors,
                "rows_per_batch": float(np.mean(1.0 / np.array(tally.rows or [1]))) ** -1,
                "p50_ms": float(np.percentile(latencies, 50)),
                "p99_ms": float(np.percentile(latencies, 99)),
            }
        )
    )


if __name__ == "__main__":
    main()
