"""`make bench-standing`: what the service costs when little happens, and whether it grows.

Start to ready, resident memory and CPU with idle streams, with the shipped model; then a million items, with the
resident memory after every hundred thousand.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from typing import Any

import grpc
import numpy as np
import psutil

from aclserve.tensors import tensor_from_array
from aclserve.v1 import model_pb2 as pb
from bench.server import ROOT, machine, serving, table

STREAM = "/aclserve.v1.ModelService/StreamInfer"
MIB = 1 << 20
STREAMS = 8
PACK = 8


async def opened(channel: grpc.aio.Channel, model: str) -> Any:
    """A stream that is configured."""
    call: Any = channel.stream_stream(STREAM)()
    await call.write(pb.StreamInferRequest(config=pb.StreamConfig(model=model)).SerializeToString())
    await call.read()
    return call


async def idle(address: str, model: str, streams: int, process: psutil.Process, seconds: float) -> float:
    """The share of one core that the server uses while `streams` streams are open and nothing is sent."""
    async with grpc.aio.insecure_channel(address) as channel:
        calls = [await opened(channel, model) for _ in range(streams)]
        await asyncio.sleep(1)
        before = sum(process.cpu_times()[:2])
        await asyncio.sleep(seconds)
        used = sum(process.cpu_times()[:2]) - before
        for call in calls:
            await call.done_writing()
            await call.read()
    return used / seconds


async def load(address: str, model: str, items: int, image: np.ndarray[Any, Any]) -> None:
    """Sends items on a few streams, several in a message, and waits for all answers."""
    item = pb.InferItem(inputs=[tensor_from_array("", image)])
    message = pb.StreamInferRequest(items=pb.ItemList(items=[item] * PACK)).SerializeToString()

    async def one(channel: grpc.aio.Channel) -> None:
        call = await opened(channel, model)
        room = asyncio.Semaphore(8)
        count = items // STREAMS // PACK

        async def send() -> None:
            for _ in range(count):
                await room.acquire()
                await call.write(message)
            await call.done_writing()

        async with asyncio.TaskGroup() as group:
            group.create_task(send())
            answered = 0
            while (response := await call.read()) is not grpc.aio.EOF:
                results = pb.StreamInferResponse.FromString(response).results.results
                for result in results:
                    if result.HasField("error"):
                        raise RuntimeError(result.error.message)
                before, answered = answered // PACK, answered + len(results)
                for _ in range(answered // PACK - before):
                    room.release()
            if answered != count * PACK:
                raise RuntimeError(f"{answered} answers to {count * PACK} items")

    async with grpc.aio.insecure_channel(address) as channel, asyncio.TaskGroup() as group:
        for _ in range(STREAMS):
            group.create_task(one(channel))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--idle-streams", type=int, default=100)
    parser.add_argument("--idle-seconds", type=float, default=20.0)
    parser.add_argument("--starts", type=int, default=5)
    arguments = parser.parse_args()
    repository = ROOT / "models"
    starts = []
    for _ in range(arguments.starts):
        begin = time.monotonic()
        with serving(repository):
            starts.append(time.monotonic() - begin)
    step = 100_000
    grown: list[int] = []
    image = np.zeros((1, 8, 8), np.float32)
    with serving(repository) as server:
        process = psutil.Process(server.pid)
        time.sleep(1)
        resident = process.memory_info().rss
        share = asyncio.run(idle(server.address, "digits", arguments.idle_streams, process, arguments.idle_seconds))
        for done in range(0, arguments.items, step):
            asyncio.run(load(server.address, "digits", min(step, arguments.items - done), image))
            grown.append(process.memory_info().rss)
            print(f"{done + step} items: {grown[-1] / MIB:.1f} MiB", file=sys.stderr)
    rows = [
        ["start to ready, s, median", f"{sorted(starts)[len(starts) // 2]:.2f}"],
        ["resident memory, idle, MiB", f"{resident / MIB:.0f}"],
        [f"CPU with {arguments.idle_streams} idle streams, % of a core", f"{100 * share:.2f}"],
        [f"resident memory after {step} items, MiB", f"{grown[0] / MIB:.1f}"],
        [f"growth from there to {arguments.items} items, MiB", f"{(grown[-1] - grown[0]) / MIB:+.1f}"],
    ]
    print(machine() + "\n")
    print(table(["shipped model", "measured"], rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
