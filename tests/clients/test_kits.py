"""The client kits of other languages against a live server: their own tests, and the accuracy of the Python client."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tools.clients import KITS, Kit, KitError, missing, python_accuracy, run_kit, serving


@pytest.fixture(scope="module")
def environ() -> Iterator[dict[str, str]]:
    with serving() as environ:
        yield environ


@pytest.fixture(scope="module")
def accuracy(environ: dict[str, str]) -> str:
    return python_accuracy(environ["ACLSERVE_ADDRESS"])


@pytest.mark.slow
@pytest.mark.parametrize("name", KITS)
def test_kit(name: str, request: pytest.FixtureRequest) -> None:
    if why := missing(KITS[name]):
        pytest.skip(f"{KITS[name].language}: {why}")
    run_kit(KITS[name], request.getfixturevalue("environ"), request.getfixturevalue("accuracy"))


ANSWER = "accuracy    97.4% of 500 answers"


@pytest.mark.parametrize(
    ("test", "example", "said"),
    [
        ("true", f"echo '{ANSWER}'; echo bye", None),
        ("echo the test; exit 3", f"echo '{ANSWER}'", "ended with 3:\nthe test"),
        ("true", "echo 'accuracy    97.2% of 500 answers'", "97.2%"),
        ("true", "echo nothing", "nothing"),
        ("true", f"echo '{ANSWER}'; exit 1", "ended with 1"),
    ],
)
def test_a_kit_that_does_not_do_well_is_told(test: str, example: str, said: str | None) -> None:
    kit = Kit("Shell", {}, test=test, example=example)
    if said is None:
        run_kit(kit, {}, ANSWER)
    else:
        with pytest.raises(KitError) as caught:
            run_kit(kit, {}, ANSWER)
        assert said in str(caught.value)


def test_a_toolchain_that_is_missing_or_too_old_is_told() -> None:
    assert missing(Kit("Shell", {"sh": ("echo v10.2", "9.3")}, "true", "true")) == ""
    assert "10.4 or newer" in missing(Kit("Shell", {"sh": ("echo v10.2", "10.4")}, "true", "true"))
    assert "no-such-program" in missing(Kit("Shell", {"no-such-program": ("", "")}, "true", "true"))
    assert missing(Kit("Shell", {}, "true", "true", missing="echo install that; exit 1")) == "install that"
