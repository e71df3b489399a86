"""Clients of every kind against a server that dies, hangs and fails, each holding every answer against what it sent."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import onnx
from grpc_health.v1 import health_pb2

from aclserve.errors import AclserveError
from aclserve_client import AsyncClient, Options
from chaos import http2
from chaos.keeper import ROOT, Keeper
from serving import elementwise, put_model, rows

FAULTS = {
    "aclrtMalloc": (0.01, 207001),
    "aclmdlExecuteAsync": (0.003, 207014),
    "aclmdlSetDynamicBatchSize": (0.0005, 500002),
    "aclrtMemcpy": (0.002, 107000),
    "aclrtSynchronizeStream": (0.0002, 507899),
    "aclrtLaunchCallback": (0.00003, 507015),
    "aclmdlLoadFromFile": (0.1, 545001),
}
"""Chance and code of each call's failures; the last but one loses the device."""

_KILLED = """
import sys
import numpy as np
from aclserve_client import Client
with Client(sys.argv[1]) as client, client.stream("relu") as stream:
    for number in range(100000):
        stream.send({"x": np.full((1 + number % 5, 4), number, np.float32)})
        if number == 16:
            print("sending", flush=True)
"""


class Storm:
    """All that happens to one server for some time. `counts` tells what, `problems` what must not happen."""

    def __init__(self, keeper: Keeper, repository: Path, seed: int) -> None:
        self.keeper = keeper
        self.repository = repository
        self.seed = seed
        self.address = f"127.0.0.1:{keeper.port}"
        self.counts: Counter[str] = Counter()
        self.problems: list[str] = []
        self.over = threading.Event()

    def run(self, seconds: float) -> None:
        """Blocks for so many seconds, and until all actors have come to an end."""
        actors = [self._garbage, self._client_killer, self._changes]
        threads = [threading.Thread(target=self._guard, args=(actor,)) for actor in actors]
        for thread in threads:
            thread.start()
        try:
            asyncio.run(self._clients(seconds))
        finally:
            self.over.set()
            for thread in threads:
                thread.join(60)
                if thread.is_alive():
                    self.problems.append("an actor hangs")

    def _guard(self, actor: Callable[[random.Random], None]) -> None:
        try:
            actor(random.Random(f"{self.seed} {actor.__name__}"))
        except Exception as error:
            self.problems.append(f"{actor.__name__}: {error!r}")

    async def _clients(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        options = Options(retry_attempts=1, timeout=20.0)
        async with (
            AsyncClient(self.address, options) as one,
            AsyncClient(self.address, options) as two,
            asyncio.TaskGroup() as group,
        ):
            for number in range(6):
                group.create_task(self._repeat(end, self._stream, one if number % 2 else two, number))
            for number in range(3):
                group.create_task(self._repeat(end, self._unary, one, 10 + number))
            for number in range(2):
                group.create_task(self._repeat(end, self._memory, two, 20 + number))
            group.create_task(self._repeat(end, self._health, one, 30))

    async def _repeat(
        self, end: float, act: Callable[..., Coroutine[Any, Any, None]], client: AsyncClient, number: int
    ) -> None:
        dice = random.Random(f"{self.seed} {number}")
        while time.monotonic() < end:
            try:
                async with asyncio.timeout(60):
                    await act(client, dice, number)
            except TimeoutError:
                self.problems.append(f"{act.__name__} did not end within a minute")
            except AclserveError as error:
                self.counts[f"refused {error.reason}"] += 1
                await asyncio.sleep(dice.uniform(0.01, 0.2))
            except AssertionError as error:
                self.problems.append(f"{act.__name__}: {error}"[:300])

    async def _stream(self, client: AsyncClient, dice: random.Random, number: int) -> None:
        """Items of mixed rows; some are taken back, some clients read slowly, some leave without a word."""
        sent: dict[str, tuple[int, int]] = {}
        accepted: set[str] = set()
        answered: set[str] = set()
        broken = ""
        leaves = dice.random() < 0.1
        async with client.stream("relu", max_pending=32) as stream:

            async def send() -> None:
                storm = dice.random() < 0.2
                try:
                    for index in range(dice.randint(1, 120)):
                        name = str(index)
                        sent[name] = (dice.randrange(1 << 20), dice.choice((1, 1, 2, 7, 32)))
                        await stream.send({"x": rows(*sent[name])}, id=name)
                        accepted.add(name)
                        if storm and dice.random() < 0.7:
                            await stream.cancel([name])
                    await stream.finish()
                except AclserveError:
                    pass  # the answers tell

            sending = asyncio.create_task(send())
            try:
                async for result in stream.results():
                    assert result.id in sent, f"an answer to what was never sent: {result.id!r}"
                    assert result.id not in answered, f"{result.id!r} is answered twice"
                    answered.add(result.id)
                    if result.error is not None:
                        self.counts[f"item {result.error.reason}"] += 1
                        unready = result.error.code_name == "UNAVAILABLE" and result.error.reason == "DEVICE_LOST"
                        assert not unready or result.error.retry_delay, "a loss without a retry delay"
                    else:
                        self.counts["item OK"] += 1
                        assert np.array_equal(result.outputs["y"], rows(*sent[result.id])), "a wrong answer"
                    if leaves and len(answered) > 5:
                        self.counts["left"] += 1
                        return
                    if dice.random() < 0.01:
                        await asyncio.sleep(0.1)
            except AclserveError as error:
                broken = error.reason
            finally:
                sending.cancel()
                await asyncio.gather(sending, return_exceptions=True)
        if broken:
            self.counts[f"stream {broken}"] += 1
        else:
            silent = len(accepted - answered)
            assert not silent, f"{silent} items without an answer in a stream that ended OK"

    async def _unary(self, client: AsyncClient, dice: random.Random, number: int) -> None:
        first, count = dice.randrange(1 << 20), dice.choice((1, 3, 8))
        result = await client.infer(dice.choice(("relu", "sync")), {"x": rows(first, count)})
        assert np.array_equal(result.outputs["y"], rows(first, count)), "a wrong answer"
        self.counts["call OK"] += 1

    async def _memory(self, client: AsyncClient, dice: random.Random, number: int) -> None:
        """What is read back is what was written, and nobody else's."""
        mine = np.frombuffer(dice.randbytes(4096), np.uint8)
        async with client.lease(ttl=5.0) as lease:
            buffer = await lease.allocate(4096)
            await lease.write(buffer, mine)
            assert bytes(await lease.read(buffer)) == mine.tobytes(), "a buffer holds what was not written to it"
            self.counts["buffer OK"] += 1

    async def _health(self, client: AsyncClient, dice: random.Random, number: int) -> None:
        """Whoever is told that the device is lost is not told afterwards, on the same connection, that all is well."""
        async with grpc.aio.insecure_channel(self.address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
            check = channel.unary_unary(
                "/grpc.health.v1.Health/Check",
                health_pb2.HealthCheckRequest.SerializeToString,
                health_pb2.HealthCheckResponse.FromString,
            )
            try:
                before = await check(health_pb2.HealthCheckRequest(), timeout=10)
            except grpc.aio.AioRpcError as error:
                self.counts[f"health {error.code().name}"] += 1
            else:
                self.counts[f"health {health_pb2.HealthCheckResponse.ServingStatus.Name(before.status)}"] += 1
        await asyncio.sleep(0.1)

    def _garbage(self, dice: random.Random) -> None:
        """Bytes that are no HTTP/2, frames that break its rules, messages that are none or too long."""
        with grpc.insecure_channel(self.address) as channel:
            call = channel.unary_unary("/aclserve.v1.ModelService/Infer")
            while not self.over.wait(dice.uniform(0.02, 0.2)):
                try:
                    if dice.random() < 0.5:
                        name = dice.choice(tuple(http2.ATTACKS))
                        attacker = http2.attack(self.keeper.port, name, dice)
                        if attacker is not None:
                            attacker.close()
                            self.counts[f"attack {name}"] += 1
                    else:
                        size = (65 << 20) if dice.random() < 0.02 else dice.randrange(200)
                        call(dice.randbytes(size), timeout=10)
                        self.problems.append("a message of random bytes was answered with OK")
                except grpc.RpcError as error:
                    self.counts[f"garbage {error.code().name}"] += 1  # type: ignore[attr-defined]

    def _client_killer(self, dice: random.Random) -> None:
        paths = os.pathsep.join(str(ROOT / name) for name in ("protos", "client"))
        while not self.over.wait(dice.uniform(1.0, 4.0)):
            with subprocess.Popen(
                [sys.executable, "-c", _KILLED, self.address],
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": paths},
            ) as process:
                assert process.stdout is not None
                process.stdout.readline()
                process.send_signal(signal.SIGKILL)
            self.counts["killed clients"] += 1

    def _changes(self, dice: random.Random) -> None:
        """The repository changes underneath: versions come, go and are broken. Nobody asks for that model."""
        number = 1
        while not self.over.wait(dice.uniform(0.3, 1.0)):
            number += 1
            folder = self.repository / "changing" / str(number)
            folder.mkdir(parents=True, exist_ok=True)
            if dice.random() < 0.3:
                (folder / "model.onnx").write_bytes(dice.randbytes(1000))
            else:
                onnx.save(elementwise("Relu"), str(folder / "model.onnx"))
            shutil.rmtree(self.repository / "changing" / str(number - 2), ignore_errors=True)
            self.counts["changes of the repository"] += 1


def make_repository(root: Path) -> Path:
    """The models of a storm."""
    put_model(root, "relu", elementwise("Relu"))
    put_model(root, "sync", elementwise(), 'parameters { key: "execution_mode" value { string_value: "sync" } }')
    put_model(root, "changing", elementwise("Relu"))
    return root
