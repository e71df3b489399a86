"""Short versions of the soak, the overload and the storm of `make chaos`: they count, and tell nothing of time."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from chaos import keeper, overload, soak, storm


def test_a_short_soak(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)
    found = soak.soak(tmp_path, 8000)
    assert found.outcomes["WRONG"] == found.outcomes["UNANSWERED"] == 0
    assert found.outcomes["OK"] > 4000
    assert found.outcomes["DEVICE_ERROR"] > 0
    assert sum(found.outcomes.values()) == 8000
    assert not soak.grown(found), soak.grown(found)


def test_a_short_overload(tmp_path: Path) -> None:
    """Whatever is refused is told when to come back, and health is told all the while."""
    peak, over = overload.overload(tmp_path, 1.0)
    assert peak.served
    assert not peak.refused
    assert over.served
    assert set(over.refused) == {"QUEUE_FULL"}
    assert over.without_retry == 0
    assert over.health_s


@pytest.mark.slow
def test_a_short_storm(tmp_path: Path) -> None:
    repository = storm.make_repository(tmp_path / "models")
    flags = ("--device-timeout-s", "1", "--model-control-mode", "poll", "--repository-poll-s", "0.5")
    with keeper.Keeper({"fault_rates": storm.FAULTS}, repository, tmp_path / "log", *flags) as kept:
        blowing = storm.Storm(kept, repository, 5)
        blowing.run(5.0)
        kept.wait(keeper.START_S)
    assert not blowing.problems + kept.tally.problems
    assert blowing.counts["item OK"] > 100
    assert blowing.counts["call OK"] > 0
