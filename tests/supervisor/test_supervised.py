"""`aclserve serve --devices`: real processes on emulated devices, killed, hung, broken and restarted under load."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import grpc
import psutil
import pytest

from aclserve.v1 import device_pb2, model_pb2
from aclserve_server.cli import EXIT_DEVICE_LOST
from aclserve_server.supervisor.ports import Ports
from aclserve_server.supervisor.supervisor import EXIT_NO_WORKERS
from e2e.raw import Raw, array_of, refused, tensor
from e2e.test_process import COMMAND, environment
from e2e.test_process import run as command
from e2e.test_resume import Load
from serving import elementwise, put_model, rows
from supervisor.site import Site, launch, site, wait_for

QUICK = ("--restart-backoff-s=0.05", "--restart-limit=2", "--drain-timeout-s=20")


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    put_model(root, "one", elementwise(), "dynamic_batching {}\n")
    return root


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Iterator[Site]:
    """Two workers, of devices 1 and 3, that nobody harms."""
    folder = tmp_path_factory.mktemp("pair")
    with site(folder, repository, "--devices=1,3", f"--unix-socket={folder}/s", "--log-format=json") as up:
        yield up
        assert up.end() == 0
        assert up.process.stdout is not None
        assert up.process.stdout.read() == ""
        assert not list(folder.glob("s*"))
        check_log(up.log)


def check_log(log: Path) -> None:
    text = log.read_text()
    assert "Traceback" not in text, text
    assert "Warning" not in text, text


def infer(address: str, first: int = 1, count: int = 1) -> None:
    with Raw(address) as raw:
        answer = raw.infer(model_pb2.InferRequest(model="one", inputs=[tensor("x", rows(first, count))]))
        assert (array_of(answer.outputs.tensors[0]) == rows(first, count)).all()


def device_behind(address: str) -> int:
    """The device of whoever answers a new connection."""
    with grpc.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        method = channel.unary_unary(
            "/aclserve.v1.DeviceService/ListDevices",
            device_pb2.ListDevicesRequest.SerializeToString,
            device_pb2.ListDevicesResponse.FromString,
        )
        (device,) = method(device_pb2.ListDevicesRequest(), timeout=20, wait_for_ready=True).devices
        return int(device.id)


# Two workers at peace.


def test_the_ready_line_names_every_place(pair: Site) -> None:
    assert set(pair.places) == {
        *("grpc", "metrics", "health", "devices", "acl"),
        *("grpc.1", "grpc.3", "unix.1", "unix.3"),
    }
    assert (pair.places["devices"], pair.places["acl"]) == ("1,3", "emulator")
    assert len({pair.places[name] for name in ("grpc", "metrics", "health", "grpc.1", "grpc.3")}) == 5
    for device, address in pair.own.items():
        assert device_behind(address) == device
        assert device_behind(f"unix:{pair.places[f'unix.{device}']}") == device
        assert oct(Path(pair.places[f"unix.{device}"]).stat().st_mode & 0o777) == "0o600"


def test_the_shared_port_reaches_all_workers(pair: Site) -> None:
    """The chance that a fair system sends 64 connections to one of two is 2^-63."""
    found = Counter(device_behind(pair.places["grpc"]) for _ in range(64))
    assert set(found) == {1, 3}, found


def test_health_is_that_of_all(pair: Site) -> None:
    names = ("", "devices", "device:1", "device:3", "model:one", "aclserve.v1.ModelService")
    assert pair.health(*names) == dict.fromkeys(names, True)
    assert pair.get("/readyz") == (200, "ready\n")
    assert pair.get("/healthz")[0] == 200


def test_metrics_add_up(pair: Site) -> None:
    """What each worker was sent stands beside its device; nothing is counted twice or lost."""
    labels = {"model": "one", "version": "1"}
    before = {device: pair.metric("aclserve_rows_total", device=device, **labels) for device in pair.own}
    for device, address in pair.own.items():
        for _ in range(2):
            infer(address, count=device)
    after = pair.metrics()
    for device in pair.own:
        assert pair.metric("aclserve_rows_total", device=device, **labels) - before[device] == 2 * device
        assert pair.metric("aclserve_worker_up", device=device) == 1
        assert pair.metric("process_resident_memory_bytes", device=device) > 0
    assert pair.metric("process_resident_memory_bytes") > 0  # the supervisor's own
    mine = {name for name, given in after if "device" not in dict(given)}
    assert all(name.startswith(("process_", "python_")) for name in mine), mine


def test_workers_are_fresh_interpreters_with_groups_of_their_own(pair: Site) -> None:
    pids = pair.pids()
    assert set(pids) == {1, 3}
    for device, pid in pids.items():
        words = psutil.Process(pid).cmdline()
        assert f"--device={device}" in words
        assert "tests.supervisor.worker" in words
        assert os.getpgid(pid) == pid


def test_a_worker_s_log_lines_carry_its_device(pair: Site) -> None:
    lines = [json.loads(line) for line in pair.log.read_text().splitlines()]
    ready = [line for line in lines if line["message"].startswith("model one version 1 is ready")]
    assert sorted(line["device"] for line in ready) == [1, 3]
    assert all("device" not in line for line in lines if line["logger"].startswith("aclserve_server.supervisor"))


def test_a_port_that_another_supervisor_holds_is_refused(pair: Site, repository: Path) -> None:
    """Though both would share it."""
    shared, own = (int(place.rpartition(":")[2]) for place in (pair.places["grpc"], pair.own[3]))
    for flag, given in (("--port", (shared, 0)), ("--port", (own, 0)), ("--worker-port", (0, own - 5))):
        port = own if flag == "--worker-port" else given[0]
        with pytest.raises(OSError, match=rf"{flag}: cannot listen on 127\.0\.0\.1:{port} .*; is it in use\?"):
            Ports("127.0.0.1", *given, (5,))
    flags = (f"--model-repository={repository}", "--devices=5", "--metrics-port=0", f"--port={shared}")
    done = command("serve", "--acl-library=emulator", *flags)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"aclserve: --port: cannot listen on 127.0.0.1:{shared}")


def test_the_command_of_the_docs(root: Path) -> None:
    """It is run as it stands there, with free ports, and its line looks as the page shows it."""
    text = (root / "docs" / "operations.md").read_text()
    found = re.search(r"<!-- run: tests/supervisor/test_supervised.py -->\n```sh\n\.venv/bin/aclserve (.*)\n```", text)
    shown = re.search(r"^    (ready .*)$", text, re.MULTILINE)
    assert found
    assert shown
    environ = environment(ACLSERVE_PORT="0", ACLSERVE_METRICS_PORT="0")
    command = [COMMAND, *found[1].split()]
    with subprocess.Popen(command, cwd=root, env=environ, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    assert re.sub(r":\d+", "", line) == re.sub(r":\d+", "", shown[1]) + "\n"


# Workers that do not stay.


def test_a_crash_loop_is_given_up_and_told_and_tried_again_at_a_wish(repository: Path, tmp_path: Path) -> None:
    with site(tmp_path, repository, "--devices=0-1", *QUICK) as up:
        up.fails(d1=7)
        os.kill(up.pids()[1], signal.SIGKILL)
        wait_for(lambda: up.metric("aclserve_worker_given_up", device=1) == 1, "the worker is given up")
        assert up.metric("aclserve_worker_exits_total", device=1, code=-9) == 1
        assert up.metric("aclserve_worker_exits_total", device=1, code=7) == 2
        assert up.metric("aclserve_worker_restarts_total", device=1) == 2
        assert up.metric("aclserve_worker_up", device=1) == 0
        expected = {"": True, "devices": False, "device:0": True, "device:1": False, "model:one": True}
        assert up.health(*expected) == expected
        assert up.get("/readyz")[0] == 200
        assert up.metric("aclserve_rows_total", device=0, model="one", version="1") == 0
        assert not [labels for _, labels in up.metrics() if ("device", "1") in labels and ("model", "one") in labels]
        assert [device_behind(up.places["grpc"]) for _ in range(8)] == [0] * 8
        assert "the worker of device 1 ended with exit code 7 and is given up after 2 restarts" in up.log.read_text()
        up.fails()
        before = up.pids()[0]
        up.process.send_signal(signal.SIGHUP)
        wait_for(lambda: up.serves("devices") and up.pids().get(0, before) != before, "both serve again")
        assert device_behind(up.own[1]) == 1
        assert up.end() == 0
        check_log(up.log)


def test_no_worker_is_left(repository: Path, tmp_path: Path) -> None:
    plan, log = tmp_path / "plan.json", tmp_path / "log"
    plan.write_text(json.dumps({"0": 3, "1": 3}))
    with launch(repository, plan, log, "--devices=0-1", *QUICK) as process:
        assert process.wait(60) == EXIT_NO_WORKERS
        assert process.stdout is not None
        assert process.stdout.read() == ""
    assert log.read_text().count("is given up after 2 restarts in a row") == 2
    assert "no worker is left" in log.read_text()


def test_one_that_fails_from_the_start_does_not_keep_the_other_from_serving(repository: Path, tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text(json.dumps({"0": 3}))
    with site(tmp_path, repository, "--devices=0-1", "--restart-backoff-s=20") as up:
        assert not up.serves("device:0")
        assert up.serves("device:1")
        infer(up.places["grpc"])
        assert up.end(signal.SIGINT) == 0


def test_a_lost_device_and_a_hung_worker_are_replaced_and_none_outlives_the_supervisor(
    repository: Path, tmp_path: Path
) -> None:
    with site(tmp_path, repository, "--devices=0-1", "--device-timeout-s=1", *QUICK) as up:
        pids = up.pids()
        os.kill(pids[1], signal.SIGSTOP)
        os.kill(pids[0], signal.SIGUSR1)
        assert refused(lambda: infer(up.own[0])).reason == "DEVICE_LOST"
        wait_for(lambda: up.metric("aclserve_worker_exits_total", device=0, code=EXIT_DEVICE_LOST) == 1, "it ends")
        wait_for(lambda: up.metric("aclserve_worker_exits_total", device=1, code=-9) == 1, "the hung one is killed")
        wait_for(lambda: up.serves("devices"), "both serve again")
        for address in up.own.values():
            infer(address)
        assert up.pids().keys() == {0, 1}
        assert not set(up.pids().values()) & set(pids.values())
        workers = [psutil.Process(pid) for pid in up.pids().values()]
        assert up.end(signal.SIGKILL) == -signal.SIGKILL
        assert psutil.wait_procs(workers, timeout=60)[1] == []


# Under load.


def check_load(load: Load, up: Site) -> None:
    assert load.check(in_order=True) > 0
    assert up.end() == 0
    check_log(up.log)


def test_workers_killed_under_load(repository: Path, tmp_path: Path) -> None:
    """Streams with resume=True account for every item, by each worker's own port and by the shared one."""
    with site(tmp_path, repository, "--devices=0-1", "--restart-backoff-s=0.05") as up:
        by_own, by_shared = Load(list(up.own.values())), Load([up.places["grpc"]])
        with by_own.running(1, 1, order="submission"), by_shared.running(1, 2, order="submission"):
            progress(by_own, by_shared, what="all streams have results")
            for device in (0, 1):
                os.kill(up.pids()[device], signal.SIGKILL)
                wait_for(lambda: not up.serves("devices"), "it is seen")
                assert up.serves("")
                progress(by_own, by_shared, what=f"all streams have results without device {device}")
                wait_for(lambda: up.serves("devices"), "it is back")
        assert sum(by_own.resumptions) >= 2
        assert sum(by_shared.resumptions) >= 1
        assert by_own.check(in_order=True) > 0
        assert by_shared.check(in_order=True) > 0
        assert up.end() == 0
        check_log(up.log)


def progress(by_own: Load, by_shared: Load, what: str) -> None:
    by_own.wait_for_progress(2, what)
    by_shared.wait_for_progress(3, what)


def test_a_rolling_restart_under_load_loses_nothing(repository: Path, tmp_path: Path) -> None:
    """One worker at a time is down, the service always serves, and what was accepted is answered, once."""
    with site(tmp_path, repository, "--devices=0-1", *QUICK) as up:
        before = up.pids()
        load = Load(list(up.own.values()))
        with load.running(1, 2, order="submission"):
            load.wait_for_progress(3, "all streams have results")
            up.process.send_signal(signal.SIGHUP)
            seen: set[tuple[int, ...]] = set()

            def is_over() -> bool:
                assert up.serves("")
                now = up.metrics()
                seen.add(tuple(n for n in (0, 1) if not now["aclserve_worker_up", frozenset({("device", str(n))})]))
                return "the rolling restart is over" in up.log.read_text()

            wait_for(is_over, "all are restarted")
            load.wait_for_progress(3, "all streams have results")
        assert seen - {()} == {(0,), (1,)}
        assert not set(up.pids().values()) & set(before.values())
        for device in (0, 1):
            assert up.metric("aclserve_worker_exits_total", device=device, code=0) == 1
        assert sum(load.resumptions) >= 2
        assert load.check(in_order=True) > 0
        assert up.end() == 0
        check_log(up.log)
