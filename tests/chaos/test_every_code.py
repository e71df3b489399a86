"""Every status code of AscendCL, as the failure of a call and of a task after its submission: what becomes of it."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator

import grpc
import pytest

from aclserve.v1 import model_pb2
from aclserve_server.acl.codes import Category, lookup
from aclserve_server.emulator import EmulatorConfig
from chaos import life, product
from e2e.raw import Raw, array_of, refused, tensor
from serving import Serving, rows, serving

SURVIVABLE = [code for code in life.ALL_CODES if lookup(code).category is not Category.DEVICE_FATAL]
FATAL = [code for code in life.ALL_CODES if lookup(code).category is Category.DEVICE_FATAL]

SITES = [
    ("relu", "aclmdlExecuteAsync", "call"),
    ("relu", "aclmdlExecuteAsync", "task"),
    ("relu", "aclrtMemcpyAsync", "call"),
    ("relu", "aclrtMemcpyAsync", "task"),
    ("relu", "aclrtSynchronizeStream", "call"),
    ("sync", "aclmdlExecute", "call"),
]
"""A model, and a call that each of its executions makes, on a card with memory of its own; or the task of that call."""


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    root = life.put_models(tmp_path_factory.mktemp("models"))
    with serving(root, emulator=EmulatorConfig(run_mode="host", memory_bytes=256 << 20)) as up:
        yield up


@pytest.fixture(scope="module")
def raw(service: Serving) -> Iterator[Raw]:
    with Raw(service.address) as connected:
        yield connected


def infer(raw: Raw, model: str) -> None:
    answer = raw.infer(model_pb2.InferRequest(model=model, inputs=[tensor("x", rows(1, 3))]))
    assert array_of(answer.outputs.tensors[0]).tolist() == rows(1, 3).tolist()


@pytest.mark.parametrize(("model", "function", "kind"), SITES)
def test_every_code_that_leaves_the_device_alive(
    service: Serving, raw: Raw, caplog: pytest.LogCaptureFixture, model: str, function: str, kind: str
) -> None:
    """The item is refused as the code's class demands, the next one is served, and nothing is left behind."""
    caplog.set_level(logging.CRITICAL)
    infer(raw, model)
    ledger = service.emulator.ledger()
    outcomes: Counter[grpc.StatusCode] = Counter()
    for code in SURVIVABLE:
        fail = service.emulator.faults.fail_task if kind == "task" else service.emulator.faults.fail_call
        fail(function, code)
        try:
            infer(raw, model)
        except grpc.RpcError:
            pass
        else:  # it was not accepted for the moment, and accepted the next time
            assert kind == "call", code
            assert lookup(code).category in (Category.TRANSIENT, Category.USAGE, Category.RESOURCE), code
            fail(function, code, times=2)
        if service.emulator.faults.is_clear():
            fail(function, code)
        refusal = refused(lambda: infer(raw, model))
        assert refusal.metadata["acl_code"] == str(code)
        life.check_refusal(refusal, code)
        outcomes[refusal.code] += 1
        assert service.emulator.faults.is_clear()
    infer(raw, model)
    assert service.emulator.ledger() == ledger
    assert not service.server.surrender.lost.is_set()
    assert sum(outcomes.values()) == len(SURVIVABLE) > 100


def test_every_code_is_treated_as_one_that_is_tried_at_every_site() -> None:
    """So that `make chaos ARGS='--codes behaviour'` stands for the whole product of codes and sites."""
    for function in ("aclmdlExecuteAsync", "aclmdlLoadFromFile", "aclrtMalloc"):
        tried = product.behaviours(function)
        assert {lookup(code).category for code in tried} == set(Category) - {Category.OK}
        assert len(tried) < 30
    assert len(FATAL) + len(SURVIVABLE) == len(life.ALL_CODES) > 150


def test_parts_of_the_faults_are_all_of_them_whatever_else_a_life_calls() -> None:
    quiet = [product.Site("host", "start", "aclrtMalloc", 3)]
    busy = [product.Site("host", "start", "aclrtMalloc", 4), product.Site("host", "start", "aclrtFree", 1)]
    shares = {case.code: case.share(4) for case in product.everything(quiet)}
    assert set(shares.values()) == set(range(4))
    again = {case.code: case.share(4) for case in product.everything(busy) if case.site.function == "aclrtMalloc"}
    assert again == shares
