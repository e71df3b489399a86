"""Failures of the device at every place where AscendCL is called: the right status, no leak, no hang, and on it goes.

A sample of the product that `make chaos` tries: see `product`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from aclserve_server.acl.codes import Category
from chaos import life, product


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return life.put_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def loop() -> Iterator[life.Loop]:
    made = life.Loop()
    yield made
    made.close()


@pytest.mark.slow
def test_a_sample_of_all_failures(root: Path, loop: life.Loop, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)
    sites = product.sites(loop, root)
    assert len(sites) > 150
    injected = 0
    for case in product.sample(sites):
        site = case.site
        outcome = life.live(
            loop, root, site.phase, site.function, case.code, nth=case.nth, task=site.task, mode=site.mode
        )
        life.check(outcome, site.phase, site.function, case.code, task=site.task)
        injected += outcome.injected
    assert injected > 90


def test_every_class_has_a_representative() -> None:
    assert set(life.REPRESENTATIVES) == set(Category) - {Category.OK}
    for category, code in life.REPRESENTATIVES.items():
        assert life.lookup(code).category is category
