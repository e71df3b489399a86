"""Three replicas behind a real Envoy: who gets what, what is tried again, and what is kept out."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

import aclserve_client as ac
from aclserve.errors import AclserveError, NotFound, PermissionDenied, Unavailable
from deploy.kills import kill_under_load
from deploy.site import NAMES, Envoy, Replica, up
from serving import elementwise, put_model, rows


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    put_model(root, "relu", elementwise("Relu"), "dynamic_batching {}\n")
    return root


@pytest.fixture(scope="module")
def replicas(envoy_binary: Path, repository: Path) -> Iterator[list[Replica]]:
    """Three, all up; a test that takes one down brings it up again."""
    found = [Replica(name, repository) for name in NAMES]
    with up(found):
        yield found


@pytest.fixture(scope="module")
def proxy(envoy_binary: Path, replicas: list[Replica], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Envoy]:
    """Envoy in front of them."""
    with Envoy(envoy_binary, tmp_path_factory.mktemp("envoy"), replicas) as running:
        yield running


@pytest.fixture
def client(proxy: Envoy) -> Iterator[ac.Client]:
    proxy.wait_for(*proxy.replicas)
    with proxy.client() as connected:
        yield connected


def infer(client: ac.Client) -> None:
    np.testing.assert_array_equal(client.infer("relu", {"x": rows(3, 2)}).outputs["y"], rows(3, 2))


def test_streams_go_to_the_replica_with_the_fewest(client: ac.Client, replicas: list[Replica]) -> None:
    with ExitStack() as open_streams:
        for number in range(9):
            stream = open_streams.enter_context(client.stream("relu"))
            stream.send({"x": rows(number, 1)})
            result = next(iter(stream.results()))
            np.testing.assert_array_equal(result.raise_for_error().outputs["y"], rows(number, 1))
        assert [replica.metric("aclserve_streams") for replica in replicas] == [3, 3, 3]


def test_what_shows_a_lease_reaches_the_replica_that_has_it(client: ac.Client, replicas: list[Replica]) -> None:
    """Each lease has a stream that stays, so the next lease is opened elsewhere."""
    with ExitStack() as held:
        leases = []
        for number in range(6):
            lease = held.enter_context(client.lease())
            leases.append(lease)
            stream = held.enter_context(client.stream("relu", lease=lease))
            given, taken = lease.allocate(64), lease.allocate(64)
            lease.write(given, rows(number, 2))
            reference = ac.BufferRef(given.id, (2, 4), "float32", length_bytes=32)
            out = {"y": ac.BufferRef(taken.id, (2, 4), "float32")}
            for _ in range(6):
                client.infer("relu", {"x": reference}, outputs=out, lease=lease)
                np.testing.assert_array_equal(lease.read_array(taken, (2, 4), "float32"), rows(number, 2))
                assert {buffer.id for buffer in lease.buffers()} == {given.id, taken.id}
            stream.send({"x": reference})
            result = next(iter(stream.results()))
            np.testing.assert_array_equal(result.raise_for_error().outputs["y"], rows(number, 2))
        assert [replica.metric("aclserve_leases") for replica in replicas] == [2, 2, 2]
        for replica in replicas:
            assert sum(lease.id.startswith(f"{replica.name}.") for lease in leases) == 2


def test_a_lease_of_nobody_goes_nowhere(client: ac.Client) -> None:
    with pytest.raises(Unavailable) as refused:
        client.infer("relu", {"x": rows(0, 1)}, lease="replica-9.secret")
    assert "try again" in str(refused.value)
    with client.lease() as lease, pytest.raises(NotFound) as unknown:
        client.infer("relu", {"x": ac.BufferRef("b", (1, 4), "float32")}, lease=lease.id + "x")
    assert unknown.value.reason == "LEASE_NOT_FOUND"


def test_a_dead_replica_is_left_out_and_taken_back(client: ac.Client, proxy: Envoy, replicas: list[Replica]) -> None:
    """No call is lost, since no server has seen those that went there; leases of others stay where they are."""
    with client.lease() as lease:
        buffer = lease.allocate(64)
        lease.write(buffer, rows(5, 2))
        dead = next(replica for replica in replicas if not lease.id.startswith(f"{replica.name}."))
        dead.kill()
        try:
            for _ in range(12):  # before Envoy knows, and after
                infer(client)
            proxy.wait_for(*(replica for replica in replicas if replica is not dead))
            infer(client)
            np.testing.assert_array_equal(lease.read_array(buffer, (2, 4), "float32"), rows(5, 2))
        finally:
            dead.start()
        proxy.wait_for(*replicas)
        np.testing.assert_array_equal(lease.read_array(buffer, (2, 4), "float32"), rows(5, 2))


def test_a_stopping_replica_finishes_its_streams_and_gets_no_new_ones(
    client: ac.Client, proxy: Envoy, replicas: list[Replica]
) -> None:
    """Its going away reaches the client through Envoy, which hands the rest to the others. No call is lost."""
    with ExitStack() as held:
        streams = [held.enter_context(client.stream("relu", resume=True)) for _ in range(3)]
        for number, stream in enumerate(streams):
            stream.send({"x": rows(number, 1)})
            next(iter(stream.results()))
        leaving = replicas[0]
        code: list[int] = []
        stopper = threading.Thread(target=lambda: code.append(leaving.stop()))
        stopper.start()
        try:
            for number, stream in enumerate(streams):
                stream.send({"x": rows(number, 1)})
                result = next(iter(stream.results()))
                np.testing.assert_array_equal(result.raise_for_error().outputs["y"], rows(number, 1))
            while stopper.is_alive():
                infer(client)
            assert code == [0]
            proxy.wait_for(*replicas[1:])
        finally:
            stopper.join(60)
            leaving.start()
    proxy.wait_for(*replicas)


def test_administration_is_refused(client: ac.Client) -> None:
    with pytest.raises(PermissionDenied) as refused:
        client.unload("relu")
    assert "make it there" in str(refused.value)
    with pytest.raises(AclserveError):
        next(client.watch_streams())


def test_health_passes_and_plain_text_does_not(proxy: Envoy) -> None:
    with grpc.secure_channel(proxy.address, proxy.credentials) as channel:
        answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=30)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    with ac.Client(proxy.address, ac.Options(timeout=5.0, retry_attempts=1)) as plain, pytest.raises(Unavailable):
        plain.models()


def test_an_envoy_that_drains_keeps_its_streams(envoy_binary: Path, replicas: list[Replica], tmp_path: Path) -> None:
    with Envoy(envoy_binary, tmp_path, replicas) as leaving, leaving.client() as client:
        with client.stream("relu") as stream:
            results = stream.results()
            for number in range(20):
                stream.send({"x": rows(number, 1)})
                np.testing.assert_array_equal(next(results).raise_for_error().outputs["y"], rows(number, 1))
                if number == 5:
                    leaving.drain()
            stream.finish()
            assert list(results) == []
        assert stream.summary is not None
        assert stream.summary.succeeded_items == 20


@pytest.mark.slow
def test_replicas_killed_under_streams_that_lose_nothing(proxy: Envoy) -> None:
    """A few kills of `make replicas-chaos`."""
    proxy.wait_for(*proxy.replicas)
    tally = kill_under_load(proxy, 8)
    assert tally.load is not None
    assert not tally.load.problems
    assert tally.kills == 8
    assert tally.cut >= 8
    assert sum(account.resumptions for account in tally.load.accounts) >= tally.cut
