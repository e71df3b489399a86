"""The inference client for gRPC of the kserve package: models, types, forms, errors, readiness."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aclserve_server.rpc.v2.datatypes import SERVED
from compat.worker import DIFFERENCE, TOTAL, Worker, one_row, outputs_of, pair, request
from e2e.cases import copy_model, model_files, plain_cases, string_cases
from e2e.raw import wait_until
from rpc.v2.v2_server import V2, v2
from rpc.v2.v2_stream import held, leaves_nothing, sessions, waiting
from serving import elementwise, put_model, rows

TYPES = [name for name in SERVED if name != "BF16"]
"""The package has no BF16."""


@pytest.fixture(scope="module")
def repository(shared: Path, tmp_path_factory: pytest.TempPathFactory, two_outputs: Any) -> Path:
    root = tmp_path_factory.mktemp("models")
    for model in model_files():
        copy_model(root, model)
    put_model(root, "plain", elementwise(), "version_policy { all {} }\n")
    put_model(root, "plain", elementwise("Neg"), version=3)
    put_model(root, "two", two_outputs)
    return root


@pytest.fixture(scope="module")
def served(repository: Path) -> Iterator[V2]:
    with v2(repository) as up:
        yield up


@pytest.fixture(scope="module")
def client(served: V2, kserve: Worker) -> Worker:
    kserve.do("connect", at=served.up.address)
    return kserve


CASES = [
    case
    for case in plain_cases()
    if not any(array.dtype.name == "bfloat16" for array in (*case.inputs.values(), *case.outputs.values()))
]


def infer(client: Worker, *requests: dict[str, Any], binary: bool = True, **options: Any) -> Any:
    return client.do("infer", requests=list(requests), binary=binary, **options)


def test_versions_of_what_is_tested(client: Worker) -> None:
    assert client.do("versions")["kserve"] == "0.21.0"


def test_cases_raw(client: Worker) -> None:
    answers = infer(client, *(request(case.model, case.inputs, request_id=str(case)) for case in CASES))
    for case, answer in zip(CASES, answers, strict=True):
        case.check(outputs_of(answer))
        assert (answer["id"], answer["model"], answer["version"]) == (str(case), case.model, "1")


def test_cases_typed(client: Worker) -> None:
    """FP16 has no typed form; what is small enough is sent element by element."""
    small = [
        case
        for case in CASES
        if all(array.dtype != np.float16 and array.size < 10_000 for array in case.inputs.values())
    ]
    assert len(small) >= min(len(CASES), 40)
    answers = infer(client, *(request(case.model, case.inputs) for case in small), binary=False)
    for case, answer in zip(small, answers, strict=True):
        case.check(outputs_of(answer))


def test_outputs_and_versions(client: Worker) -> None:
    answers = infer(client, pair(), pair(outputs=[{"name": "difference"}]), one_row(1), one_row(1, model_version="3"))
    both = outputs_of(answers[0])
    assert list(both) == ["total", "difference"]
    assert np.array_equal(both["total"], TOTAL)
    assert np.array_equal(both["difference"], DIFFERENCE)
    assert list(outputs_of(answers[1])) == ["difference"]
    assert [answer["version"] for answer in answers[2:]] == ["1", "3"]
    assert [outputs_of(answer)["y"][0, 0] for answer in answers[2:]] == [4, -4]


@pytest.mark.parametrize(
    ("fields", "status", "word"),
    [
        ({"model_name": "absent"}, "NOT_FOUND", "'absent'"),
        ({"model_version": "2"}, "NOT_FOUND", "2"),
        ({"model_version": "x"}, "INVALID_ARGUMENT", "'x'"),
        ({"outputs": [{"name": "q"}]}, "INVALID_ARGUMENT", "'q'"),
        ({"parameters": {"mode": "fast"}}, "INVALID_ARGUMENT", "'mode'"),
    ],
)
def test_errors(client: Worker, fields: dict[str, Any], status: str, word: str) -> None:
    told, good = infer(client, {**one_row(1), **fields}, one_row(2))
    assert told["status"] == f"StatusCode.{status}"
    assert word in told["message"]
    assert np.array_equal(outputs_of(good)["y"], rows(2, 1))


def test_readiness(client: Worker, served: V2, tmp_path: Path) -> None:
    """A server with models that it could not load at its start is not ready, as Triton is not."""
    assert client.do("ask", method="is_server_live") is True
    assert client.do("ask", method="is_server_ready") is False
    put_model(tmp_path, "plain", elementwise())
    with v2(tmp_path) as other:
        client.do("connect", at=other.up.address)
        assert client.do("ask", method="is_server_ready") is True
    client.do("connect", at=served.up.address)
    assert client.do("ask", method="is_model_ready", model_name="plain") is True
    for case in string_cases():
        assert client.do("ask", method="is_model_ready", model_name=case.model) is False
    absent = client.do("ask", method="is_model_ready", model_name="absent")
    assert absent is False or absent["status"] == "StatusCode.NOT_FOUND"


def test_many_at_once(client: Worker) -> None:
    answers = infer(client, *(one_row(at) for at in range(300)))
    assert [answer["id"] for answer in answers] == [str(at) for at in range(300)]
    for at, answer in enumerate(answers):
        assert np.array_equal(outputs_of(answer)["y"], rows(at, 1))


def test_a_deadline_and_a_cancellation_free_what_waits(client: Worker, served: V2) -> None:
    with leaves_nothing(served):
        with held(served):
            (late,) = infer(client, one_row(1), timeout=0.3, retries=0)
            assert late["status"] in ("StatusCode.DEADLINE_EXCEEDED", "StatusCode.UNAVAILABLE")
            assert client.do("cancel", request=one_row(2), seconds=0.3) is True
            wait_until(lambda: not sessions(served), "the calls have ended")
            assert waiting(served) == 0
        (answer,) = infer(client, one_row(3))
        assert np.array_equal(outputs_of(answer)["y"], rows(3, 1))
