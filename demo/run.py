"""Recognises the held-out digits through the service: many streams, answers checked, times shown, a picture drawn.

Starts a server of its own on the emulated device and stops it at the end, or uses the one at --target.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from aclserve.errors import AclserveError
from aclserve_client import AsyncClient, Item, Result
from demo.report import Answers, draw, write_text

ROOT = Path(__file__).resolve().parents[1]
DIGITS = ROOT / "demo" / "digits"
MODEL = "digits"
WORST_ACCURACY = 0.95
START_S = 60.0
STOP_S = 30.0


class DemoError(Exception):
    """The demonstration cannot go on; the message says why."""


@asynccontextmanager
async def server(console: Console, repository: Path = ROOT / "models") -> AsyncIterator[str]:
    """A server on the emulated device and free ports; gives its gRPC address, then stops it as an operator would."""
    options = {
        "--acl-library": "emulator",
        "--model-repository": str(repository),
        "--port": "0",
        "--metrics-port": "0",
        "--log-level": "warning",
    }
    command = [
        str(Path(sys.executable).parent / "aclserve"),
        "serve",
        *(word for pair in options.items() for word in pair),
    ]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    try:
        line = (await asyncio.wait_for(process.stdout.readline(), START_S)).decode().strip()
        facts = dict(word.split("=", 1) for word in line.split()[1:])
        if not line.startswith("ready ") or "grpc" not in facts:
            raise DemoError(f"the server did not start; it said {line!r}")
        console.print(f"server      {line}", markup=False, soft_wrap=True)
        yield facts["grpc"]
        process.send_signal(signal.SIGTERM)
        status = await asyncio.wait_for(process.wait(), STOP_S)
        if status != 0:
            raise DemoError(f"the server stopped with status {status}, expected 0")
        console.print("server      stopped, status 0")
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def run_stream(
    client: AsyncClient,
    images: NDArray[Any],
    order: list[int],
    arguments: argparse.Namespace,
    note: Callable[[int, Result, float], None],
) -> None:
    """Streams the images that `order` names, one an item; `note` is told of each image, its result and its seconds."""
    sent: list[float] = []

    def items() -> Iterator[Item]:
        for position, image in enumerate(order):
            sent.append(time.perf_counter())
            yield Item({"image": images[image : image + 1]}, id=str(position))

    async with client.stream(MODEL, max_pending=arguments.window) as stream:
        async for result in stream.map(items(), pack=arguments.pack):
            position = int(result.id)
            note(order[position], result, time.perf_counter() - sent[position])


async def recognise(
    address: str, arguments: argparse.Namespace, images: NDArray[Any], console: Console
) -> tuple[Answers, float]:
    """Sends the whole set several times, split over the streams. Returns the answers and the seconds it took."""
    answers = Answers()
    columns = (TextColumn("streaming  "), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    order = list(range(len(images))) * arguments.rounds
    async with AsyncClient(address) as client:
        await run_stream(client, images, order[: len(images)], arguments, Answers().add)  # warms up, and is not counted
        with Progress(*columns, console=console) as progress:
            bar = progress.add_task("", total=len(order))

            def note(image: int, result: Result, latency_s: float) -> None:
                answers.add(image, result, latency_s)
                progress.advance(bar)

            begin = time.perf_counter()
            async with asyncio.TaskGroup() as group:
                for stream in range(arguments.streams):
                    part = order[stream :: arguments.streams]
                    group.create_task(run_stream(client, images, part, arguments, note))
            return answers, time.perf_counter() - begin


def check(answers: Answers, truth: NDArray[Any], expected: int) -> None:
    """Raises `DemoError` unless every item was answered once, without errors, and well."""
    if answers.errors:
        raise DemoError(f"{len(answers.errors)} items failed; the first: {answers.errors[0]}")
    if len(answers.labels) != expected:
        raise DemoError(f"got {len(answers.labels)} answers, expected {expected}")
    if (accuracy := answers.accuracy(truth)) < WORST_ACCURACY:
        raise DemoError(f"got {accuracy:.1%} right, expected at least {WORST_ACCURACY:.0%}")


async def run(arguments: argparse.Namespace, console: Console) -> None:
    images = np.load(DIGITS / "heldout_images.npy").astype(np.float32)
    truth = np.load(DIGITS / "heldout_labels.npy")
    where = nullcontext(arguments.target) if arguments.target else server(console)
    async with where as address:
        answers, elapsed_s = await recognise(address, arguments, images, console)
    check(answers, truth, len(images) * arguments.rounds)
    write_text(console, answers, truth, elapsed_s)
    draw(arguments.out, answers, images, truth)
    console.print(f"picture     {arguments.out}", markup=False, soft_wrap=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--target", metavar="HOST:PORT", help="a server that runs already, with the model `digits`")
    parser.add_argument("--rounds", type=int, default=40, help="how often the set is sent")
    parser.add_argument("--streams", type=int, default=8, help="streams at the same time")
    parser.add_argument("--window", type=int, default=32, help="items of a stream on their way at the same time")
    parser.add_argument("--pack", type=int, default=8, help="most items in one message")
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "demo.png", help="where to write the picture")
    console = Console()
    try:
        asyncio.run(run(parser.parse_args(), console))
    except (DemoError, AclserveError, OSError, TimeoutError) as error:
        console.print(f"failed      {error}", style="red", markup=False, soft_wrap=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
