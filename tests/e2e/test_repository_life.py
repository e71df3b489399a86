"""Models that come, change and go while they are used: reloads, the three control modes, what serves meanwhile."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aclserve.errors import (
    AclserveError,
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
)
from aclserve_client import Client
from aclserve_server.config import Config
from aclserve_server.emulator import Emulator, EmulatorConfig
from aclserve_server.engine.engine import LoadOptions, State
from aclserve_server.engine.following import Follower
from aclserve_server.rpc.model_config import parse_model_config
from aclserve_server.server import Server
from e2e.changing import CODE, adding, answer, put, states, wait_until
from serving import Serving, serving


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "models"


@pytest.fixture
def explicit(root: Path) -> Iterator[Serving]:
    """A server that leaves loading to clients and has loaded `m`, which adds 1."""
    put(root, "m", 1)
    with serving(root, model_control_mode="explicit", load_model=("m",)) as up:
        yield up


@pytest.fixture
def client(explicit: Serving) -> Iterator[Client]:
    with Client(explicit.address) as connected:
        yield connected


def load_all(up: Serving, name: str = "m", options: LoadOptions | None = None) -> None:
    up.run(up.server.engine.load_all(name, options or LoadOptions()))


# Reloads.


def test_a_reload_takes_the_place_of_what_serves(explicit: Serving, client: Client, root: Path) -> None:
    engine = explicit.server.engine
    before = engine.find("m", 0)
    live = dict(explicit.emulator.ledger())
    put(root, "m", 2)
    load_all(explicit)
    assert answer(client) == 2
    after = engine.find("m", 0)
    assert after is not before
    assert after.runner is not None
    assert after.runner.version == 1
    assert (before.state, before.runner, before.prepared) == (State.UNLOADED, None, None)
    assert explicit.emulator.ledger() == live


def test_items_in_flight_finish_on_the_old_version(explicit: Serving, client: Client, root: Path) -> None:
    engine = explicit.server.engine
    submitted = explicit.emulator.counters.calls["aclmdlExecuteAsync"]
    record = engine.find("m", 0)
    put(root, "m", 2, config="max_batch_size: 1")
    explicit.emulator.hold()
    with ThreadPoolExecutor(3) as pool:
        try:
            old = pool.submit(answer, client)
            wait_until(lambda: explicit.emulator.counters.calls["aclmdlExecuteAsync"] == submitted + 1)
            waiting = pool.submit(answer, client)
            wait_until(lambda: engine.queue_rows("m") == 1)
            loading = pool.submit(load_all, explicit)
            wait_until(lambda: engine.find("m", 0) is not record)
            assert record.state is State.UNLOADING
            assert not loading.done()
        finally:
            explicit.emulator.release()
        assert (old.result(60), waiting.result(60)) == (1, 1)
        loading.result(60)
    assert answer(client) == 2


def test_a_stream_sees_no_gap_while_its_model_is_loaded_anew_again_and_again(
    explicit: Serving, client: Client, root: Path
) -> None:
    """Every item is answered, by the version that served when it came: what is added never goes back."""
    last, stop = 8, threading.Event()

    def items() -> Iterator[dict[str, np.ndarray[Any, np.dtype[np.float32]]]]:
        while not stop.is_set():
            yield {"x": np.zeros((1, 4), np.float32)}

    def reload() -> None:
        for value in range(2, last + 1):
            put(root, "m", value)
            load_all(explicit)
        assert answer(client) == last
        stop.set()

    live = dict(explicit.emulator.ledger())
    with ThreadPoolExecutor(1) as pool, client.stream("m", order="submission", timeout=120) as stream:
        reloading = pool.submit(reload)
        try:
            seen = [float(result.raise_for_error().outputs["y"][0, 0]) for result in stream.map(items())]
        finally:
            stop.set()
        reloading.result(60)
    assert seen == sorted(seen)
    assert (seen[0], len(set(seen)) > 2) == (1, True)
    assert explicit.emulator.ledger() == live


@pytest.mark.parametrize("fault", ["file", "config", "contradiction", "device", "slot", "warm-up", "labels"])
def test_a_reload_that_fails_leaves_the_old_one(explicit: Serving, client: Client, root: Path, fault: str) -> None:
    live = dict(explicit.emulator.ledger())
    put(root, "m", 2)
    configs = {
        "config": "max_batch_size: many",
        "contradiction": 'input { name: "z" }',
        "warm-up": 'model_warmup { inputs { key: "z" value { data_type: TYPE_FP32 dims: 4 zero_data: true } } }',
        "labels": 'output { name: "y" label_filename: "none.txt" }',
    }
    if fault in configs:
        (root / "m" / "config.pbtxt").write_text(configs[fault])
    elif fault == "file":
        (root / "m" / "1" / "model.onnx").write_bytes(adding(2).SerializeToString()[:-20])
    else:
        explicit.emulator.faults.fail_call("aclmdlLoadFromFile" if fault == "device" else "aclmdlCreateDataset", CODE)
    with pytest.raises(AclserveError):
        load_all(explicit)
    assert answer(client) == 1
    ((state, reason),) = states(explicit.server.engine).values()
    assert state is State.READY
    assert "could not be loaded anew: " in reason
    assert str(root) not in reason
    assert explicit.emulator.ledger() == live
    put(root, "m", 3, config="")
    load_all(explicit)
    assert answer(client) == 3
    assert states(explicit.server.engine)["m", 1] == (State.READY, "")


def test_all_new_versions_or_none(explicit: Serving, client: Client, root: Path) -> None:
    put(root, "m", 2, config="version_policy { all { } }")
    put(root, "m", 20, version=2)
    (root / "m" / "3").mkdir()
    (root / "m" / "3" / "model.onnx").write_bytes(b"no model")
    with pytest.raises(InvalidArgument):
        load_all(explicit)
    assert (answer(client), answer(client, version=1)) == (1, 1)
    (root / "m" / "3" / "model.onnx").unlink()
    with pytest.raises(FailedPrecondition, match="version 3 holds neither"):
        load_all(explicit)
    (root / "m" / "3").rmdir()
    load_all(explicit)
    assert (answer(client), answer(client, version=1), answer(client, version=2)) == (20, 2, 20)
    put(root, "m", 2, config="version_policy { specific { versions: 1 } }")
    load_all(explicit)
    assert answer(client) == 2
    with pytest.raises(FailedPrecondition, match="version 2 is unloaded; load it first"):
        answer(client, version=2)
    assert states(explicit.server.engine)["m", 2] == (State.UNLOADED, "unloaded")


# Control modes.


def test_explicit_starts_with_what_is_named_and_leaves_the_rest_to_clients(root: Path) -> None:
    for name, value in (("a", 1), ("b", 2), ("c", 3)):
        put(root, name, value)
    with serving(root, model_control_mode="explicit", load_model=("b",)) as up, Client(up.address) as client:
        engine = up.server.engine
        assert states(engine) == {
            ("a", 1): (State.UNLOADED, ""),
            ("b", 1): (State.READY, ""),
            ("c", 1): (State.UNLOADED, ""),
        }
        assert engine.all_ready
        load_all(up, "a")
        client.load("c")
        assert [answer(client, name) for name in "abc"] == [1, 2, 3]
        up.run(engine.unload_all("a"))
        up.run(engine.unload_all("a"))
        assert engine.all_ready, "a model unloaded on purpose does not count"
        with pytest.raises(FailedPrecondition, match="load it first"):
            answer(client, "a")
        with pytest.raises(NotFound, match="there is no model 'd'"):
            load_all(up, "d")
        with pytest.raises(NotFound, match="there is no model 'd'"):
            up.run(engine.unload_all("d"))
        for name in ("", "../a", "a\n", " "):
            with pytest.raises(InvalidArgument):
                load_all(up, name)
        put(root, "d", 4)
        up.run(engine.refresh())
        assert states(engine)["d", 1] == (State.UNLOADED, "")
        (root / "d" / "1" / "model.onnx").write_bytes(b"no model")
        with pytest.raises(InvalidArgument):
            load_all(up, "d")
        failed = states(engine)["d", 1]
        assert failed[0] is State.UNAVAILABLE
        assert not engine.all_ready
        up.run(engine.refresh())
        assert states(engine)["d", 1] == failed, "why it failed is kept"
        put(root, "d", 4)
        load_all(up, "d")
        assert states(engine)["d", 1] == (State.READY, "")
        assert engine.all_ready


def test_explicit_may_start_with_everything(root: Path) -> None:
    put(root, "a", 1)
    put(root, "b", 2)
    with serving(root, model_control_mode="explicit", load_model=("*",)) as up:
        assert {state for state, _ in states(up.server.engine).values()} == {State.READY}


def test_a_model_to_load_that_is_not_there_keeps_the_server_from_starting(root: Path) -> None:
    put(root, "a", 1)
    device = Emulator(EmulatorConfig())

    async def start() -> None:
        config = Config(
            acl_library="emulator",
            model_repository=root,
            port=0,
            metrics_port=0,
            model_control_mode="explicit",
            load_model=("typo",),
        )
        await Server(config, device).start()

    with pytest.raises(ValueError, match="--load-model: there is no model 'typo' in the repository; there are: a"):
        asyncio.run(start())
    device.close()


@pytest.mark.parametrize("mode", ["none", "poll"])
def test_other_modes_refuse_the_calls_of_explicit(root: Path, mode: str) -> None:
    put(root, "m", 1)
    with serving(root, model_control_mode=mode) as up, Client(up.address) as client:
        for call in (up.server.engine.load_all("m", LoadOptions()), up.server.engine.unload_all("m")):
            with pytest.raises(FailedPrecondition, match="load / unload is not allowed") as refused:
                up.run(call)
            assert refused.value.reason == "MODEL_CONTROL_REFUSED"
        if mode == "none":
            client.unload("m")
            client.load("m")
        else:
            with pytest.raises(FailedPrecondition, match="follows the repository"):
                client.unload("m")
        client.upload_and_load("up", adding(5).SerializeToString())
        assert answer(client, "up") == 5
        client.unload("up")
        assert answer(client) == 1


def test_what_is_loaded_cannot_be_loaded_again_by_the_native_call(
    explicit: Serving, client: Client, root: Path
) -> None:
    for version in (0, 1):
        with pytest.raises(AlreadyExists, match="is ready; unload it first"):
            client.load("m", version)
    put(root, "m", 2, version=2)
    client.load("m")
    assert (answer(client), answer(client, version=1)) == (2, 1)


# Following the repository.


def test_polling_follows_added_changed_and_removed_models(root: Path) -> None:
    put(root, "m", 1)
    put(root, "gone", 7)
    with serving(root, model_control_mode="poll", repository_poll_s=86400.0) as up, Client(up.address) as client:
        engine = up.server.engine
        follower = Follower(engine, up.run(engine.scan()))

        def look() -> bool:
            return up.run(follower.look())

        assert look()
        kept = engine.find("m", 0)
        put(root, "new", 3)
        (root / "gone" / "1" / "model.onnx").unlink()
        (root / "gone" / "1").rmdir()
        (root / "gone").rmdir()
        assert not look(), "what changes is looked at twice"
        assert answer(client, "gone") == 7
        assert look()
        assert answer(client, "new") == 3
        with pytest.raises(NotFound):
            answer(client, "gone")
        assert engine.find("m", 0) is kept, "what did not change is left alone"
        put(root, "m", 2, version=2)
        assert (look(), look()) == (False, True)
        assert answer(client) == 2
        assert states(engine)["m", 1][0] is State.UNLOADED
        (root / "m" / "config.pbtxt").write_text("max_batch_size: 2\nversion_policy { all { } }")
        assert (look(), look()) == (False, True)
        assert (answer(client, version=1), answer(client, version=2)) == (1, 2)
        assert client.describe("m").max_rows == 2
        second = engine.find("m", 2)
        put(root, "m", 11, version=1)
        assert (look(), look()) == (False, True)
        assert answer(client, version=1) == 11
        assert engine.find("m", 2) is second


def test_polling_keeps_what_serves_while_its_file_is_written(root: Path) -> None:
    put(root, "m", 1)
    content = adding(2).SerializeToString()
    with serving(root, model_control_mode="poll", repository_poll_s=86400.0) as up, Client(up.address) as client:
        engine = up.server.engine
        follower = Follower(engine, up.run(engine.scan()))
        record = engine.find("m", 0)
        file = root / "m" / "1" / "model.onnx"
        for size in (0, 10, 60, len(content) // 2):
            file.write_bytes(content[:size])
            assert not up.run(follower.look())
            assert engine.find("m", 0) is record
        up.run(follower.look())
        assert engine.find("m", 0) is record, "even one that stays half written takes nothing away"
        assert "could not be loaded anew" in record.reason
        assert answer(client) == 1
        (root / "m" / "config.pbtxt").write_text("max_batch")
        up.run(follower.look())
        up.run(follower.look())
        assert answer(client) == 1
        (root / "m" / "config.pbtxt").unlink()
        file.write_bytes(content)
        up.run(follower.look())
        up.run(follower.look())
        assert answer(client) == 2
        moved = root.rename(root.with_name("away"))
        assert up.run(follower.look())
        assert answer(client) == 2, "a repository that cannot be read takes nothing away"
        moved.rename(root)
        assert up.run(follower.look())
        assert answer(client) == 2


def test_the_server_looks_by_itself(root: Path) -> None:
    put(root, "m", 1)
    with serving(root, model_control_mode="poll", repository_poll_s=0.1) as up, Client(up.address) as client:
        put(root, "m", 2)
        wait_until(lambda: answer(client) == 2)


def test_an_upload_is_not_touched_by_the_repository(root: Path) -> None:
    put(root, "m", 1)
    with serving(root, model_control_mode="poll", repository_poll_s=86400.0) as up, Client(up.address) as client:
        follower = Follower(up.server.engine, up.run(up.server.engine.scan()))
        client.upload_and_load("up", adding(5).SerializeToString())
        put(root, "up", 6)
        up.run(follower.look())
        up.run(follower.look())
        assert answer(client, "up") == 5


# Configuration and files that come with the call.


def test_a_configuration_that_comes_with_the_call(explicit: Serving, client: Client) -> None:
    config = parse_model_config("max_batch_size: 2", "m")
    load_all(explicit, options=LoadOptions(config=config))
    assert client.describe("m").max_rows == 2
    load_all(explicit)
    assert client.describe("m").max_rows == 32


def test_files_that_come_with_the_call(explicit: Serving, client: Client, root: Path) -> None:
    config = parse_model_config("version_policy { all { } }", "m")
    files = {"3/model.onnx": adding(3).SerializeToString(), "4/model.onnx": adding(4).SerializeToString()}
    load_all(explicit, options=LoadOptions(config=config, files=files))
    assert (answer(client, version=3), answer(client)) == (3, 4)
    with pytest.raises(FailedPrecondition, match="version 1 is unloaded"):
        answer(client, version=1)
    with pytest.raises(InvalidArgument, match="without its configuration"):
        load_all(explicit, options=LoadOptions(files=files))
    with pytest.raises(InvalidArgument, match="not a file that can be given"):
        load_all(explicit, options=LoadOptions(config=config, files={"../1/model.onnx": b""}))
    load_all(explicit, "nowhere", LoadOptions(config=parse_model_config("", "nowhere"), files=files))
    assert answer(client, "nowhere") == 4
    explicit.run(explicit.server.engine.unload_all("nowhere"))
    assert not [name for name, _ in states(explicit.server.engine) if name == "nowhere"]
    load_all(explicit)
    assert answer(client) == 1
    assert sorted(states(explicit.server.engine)) == [("m", 1)]
