"""Loads and unloads against the device's memory: what does not fit, what does not come back, and a thousand of both."""

from __future__ import annotations

import gc
import random
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from aclserve.errors import AclserveError, ResourceExhausted
from aclserve_client import Client
from aclserve_server.emulator import EmulatorConfig
from aclserve_server.engine.engine import LoadOptions, State
from aclserve_server.rpc.model_config import parse_model_config
from e2e.changing import CODE, adding, answer, put, states
from serving import Serving, put_model, serving


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "models"


WIDE = 300_000
"""Elements of a row; the largest gear has 32 rows in and 32 rows out."""


@pytest.mark.parametrize(
    ("instances", "part", "size"),
    [(40, "work_bytes", 40 * 2 * 32 * WIDE * 4), (1, "slot_bytes", 2 * 2 * 32 * WIDE * 4)],
)
def test_a_model_that_does_not_fit_is_refused_with_the_numbers(
    root: Path, instances: int, part: str, size: int
) -> None:
    put_model(root, "big", adding(1, width=WIDE), f"instance_group {{ count: {instances} }}")
    put(root, "small", 1)
    with serving(root, emulator=EmulatorConfig(memory_bytes=100 << 20)) as up, Client(up.address) as client:
        state, reason = states(up.server.engine)["big", 1]
        assert state is State.UNAVAILABLE
        assert "the model does not fit: it needs" in reason
        with pytest.raises(ResourceExhausted) as refused:
            client.load("big")
        error = refused.value
        assert error.reason == "MODEL_DOES_NOT_FIT"
        assert int(error.metadata["needed_bytes"]) > int(error.metadata["free_bytes"]) > 0
        assert size <= int(error.metadata[part]) <= size + 64  # and what selects a gear
        assert answer(client, "small") == 1


def test_bytes_that_do_not_come_back_are_told(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    put_model(root, "m", adding(1, width=WIDE), "max_batch_size: 1")
    put(root, "small", 1)

    def life() -> None:
        with serving(root) as up, Client(up.address) as client:

            def leaked(model: str) -> float | None:
                return up.server.registry.get_sample_value("aclserve_leaked_bytes_total", {"model": model})

            client.unload("small")
            client.unload("m")
            client.load("m")
            assert (leaked("small"), leaked("m")) == (None, None)
            up.emulator.faults.fail_call("aclrtFree", CODE)
            with pytest.raises(AclserveError):
                client.unload("m")
            assert states(up.server.engine)["m", 1] == (State.UNLOADED, "unloaded")
            assert (leaked("m") or 0) >= WIDE * 4
            assert "did not come back" in caplog.text
            client.load("m")
            assert client.infer("m", {"x": np.zeros((1, WIDE), np.float32)}).outputs["y"][0, 0] == 1

    with pytest.raises(AssertionError, match="live after the server stopped"):
        life()


@pytest.mark.parametrize(("run_mode", "kept"), [("device", 0), ("host", 1)])
def test_an_upload_is_charged_as_long_as_the_device_may_read_it(root: Path, run_mode: str, kept: int) -> None:
    """Where host and device are apart a model is loaded from the upload's own bytes, which stay the lease's."""
    put(root, "m", 1)
    with serving(root, emulator=EmulatorConfig(run_mode=run_mode)) as up, Client(up.address) as client:
        content = adding(5).SerializeToString()
        with client.lease() as lease:
            upload = lease.upload(content)
            client.load("up", upload=upload, lease=lease)
            assert up.server.memory.use().host_bytes == len(content)
        assert up.server.memory.use().host_bytes == kept * len(content)
        assert answer(client, "up") == 5
        client.unload("up")
        assert up.server.memory.use().host_bytes == 0
        with client.lease() as lease, pytest.raises(AclserveError):
            client.load("bad", upload=lease.upload(b"no model"), lease=lease)
        assert up.server.memory.use().host_bytes == 0


# Many.

TIMES = 1000
SETTLED = 100
"""Changes after which everything that is made once has been made."""

CALLS = ("aclmdlLoadFromFile", "aclmdlCreateDataset", "aclrtMalloc", "aclmdlQuerySize", "aclmdlExecute")


def test_a_thousand_loads_and_unloads_with_failures_leave_nothing(root: Path) -> None:
    """Loads, reloads, unloads and failures of every kind, in an order of dice; afterwards all is as it was."""
    put(root, "m", 1)
    put(root, "other", 5)
    config = parse_model_config("max_batch_size: 4", "m")
    broken = parse_model_config('input { name: "z" }', "m")
    files = {"1/model.onnx": adding(3).SerializeToString()}
    dice = random.Random(7)
    outcomes = {"done": 0, "failed": 0}

    async def change(up: Serving) -> None:
        engine = up.server.engine
        plan = up.emulator.faults
        kind = dice.randrange(8)
        if kind < 3:
            plan.fail_call(dice.choice(CALLS), CODE, dice.randint(1, 4))
        options = {
            3: LoadOptions(config=broken),
            4: LoadOptions(config=config),
            5: LoadOptions(config=config, files=files),
        }.get(kind, LoadOptions())
        try:
            if kind == 7:
                await engine.unload_all("m")
            else:
                await engine.load_all("m", options)
            outcomes["done"] += 1
        except AclserveError:
            outcomes["failed"] += 1
        plan.clear()

    async def changes(up: Serving, times: int) -> None:
        for _ in range(times):
            await change(up)

    with serving(root, model_control_mode="explicit", load_model=("other",)) as up, Client(up.address) as client:

        def look() -> tuple[dict[str, int], int, int]:
            """What is live on the device, objects and bytes of Python, with `m` loaded from disk and idle."""
            up.run(up.server.engine.load_all("m", LoadOptions()))
            assert (answer(client), answer(client, "other")) == (1, 5)
            gc.collect()
            return dict(up.emulator.ledger()), len(gc.get_objects()), tracemalloc.get_traced_memory()[0]

        up.loop.call_soon_threadsafe(tracemalloc.start)
        up.run(changes(up, SETTLED))
        live, objects, size_bytes = look()
        for _ in range(SETTLED, TIMES, SETTLED):
            up.run(changes(up, SETTLED))
        live_after, objects_after, size_after = look()
        assert live_after == live
        assert objects_after - objects < 500
        assert size_after - size_bytes < 64 << 10
        tracemalloc.stop()
        assert min(outcomes.values()) > TIMES // 10, outcomes
        assert states(up.server.engine) == {("m", 1): (State.READY, ""), ("other", 1): (State.READY, "")}
