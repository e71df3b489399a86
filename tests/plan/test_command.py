"""`aclserve plan`: what it prints, draws and returns, and that docs/planning.md says the same."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest

from aclserve_server.cli import main
from aclserve_server.emulator import EmulatorConfig, Latency
from aclserve_server.plan.measure import Access, MeasureError, measure
from serving import elementwise, put_model, serving
from tools import planning

FLAGS = shlex.split("--set models.m.call_us=2000 --set traffic.t.model=m --set traffic.t.rate=100 --set duration_s=1.0")
DOCS = Path(__file__).resolve().parents[2] / "docs"
PLANS = sorted(path.relative_to(DOCS.parent).as_posix() for path in (DOCS / "plans").glob("*.toml"))


def test_flags_alone_make_a_plan(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "run", *FLAGS]) == 0
    first = capsys.readouterr().out
    assert "traffic  offered/s  answered/s" in first
    assert main(["plan", "run", *FLAGS]) == 0
    assert capsys.readouterr().out == first
    assert main(["plan", "run", *FLAGS, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["traffic"]["t"]["p50_ms"] >= 2.0
    assert len(found["busy"]["devices"]["each"]) == 1


def test_check_tells_a_missed_goal(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "run", *FLAGS, "--check", "--set", "goal.p99_ms=50"]) == 0
    assert "the goal is met" in capsys.readouterr().out
    assert main(["plan", "run", *FLAGS, "--check", "--set", "goal.p99_ms=1"]) == 3
    assert "goal missed: t: p99 is" in capsys.readouterr().out


def test_a_wrong_plan_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "run", *FLAGS, "--set", "fleet.hosts=0", "--set", "traffic.t.fsp=3"]) == 2
    told = capsys.readouterr().err.splitlines()
    assert [line.partition(":")[0] for line in told] == ["aclserve", "aclserve"]


@pytest.mark.parametrize(("name", "told"), [("one.txt", "ends in .png"), ("file/one.png", "cannot be written")])
def test_a_picture_that_cannot_be_drawn_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, told: str
) -> None:
    (tmp_path / "file").touch()
    assert main(["plan", "run", *FLAGS, "--picture", str(tmp_path / name)]) == 2
    said = capsys.readouterr()
    assert not said.out
    assert told in said.err


def test_pictures_are_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "run", *FLAGS, "--picture", str(tmp_path / "one.png")]) == 0
    plan = tmp_path / "sweeps.toml"
    sweep = '[[sweep]]\nkey = "traffic.t.rate"\nvalues = [10, 20]\n'
    plan.write_text('[models.m]\ncall_us = 2000\n[traffic.t]\nmodel = "m"\nrate = 1\n' + sweep + sweep)
    arguments = ["plan", "run", str(plan), "--set", "duration_s=1.0", "--picture", str(tmp_path / "two.png"), "--json"]
    assert main(arguments) == 0
    runs = json.loads(capsys.readouterr().out.partition("\n{")[2].join(["{", ""]))["sweeps"]
    assert [[each["value"] for each in sweep["runs"]] for sweep in runs] == [[10, 20], [10, 20]]
    for name in ("one.png", "two-1.png", "two-2.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    assert not (tmp_path / "two.png").exists()


@pytest.mark.parametrize("plan", PLANS)
def test_the_page_shows_what_the_plan_gives(plan: str) -> None:
    text = (DOCS / "planning.md").read_text(encoding="utf-8")
    shown = {found[2]: found[3] for found in planning.BLOCK.finditer(text)}
    assert shown[plan] == planning.run(plan)


def test_the_page_shows_all_keys() -> None:
    assert planning.keys_text() in (DOCS / "planning.md").read_text(encoding="utf-8")


def test_the_page_s_commands_run(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a copy of what they read; long plans shorter."""
    text = (root / "docs" / "planning.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"<!-- run: plan -->\n```sh\n(.*?)```", text, re.DOTALL)
    for name in ("docs", "models"):
        shutil.copytree(root / name, tmp_path / name)
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path)
    for line in block.splitlines():
        program, *arguments = shlex.split(line)
        assert program == ".venv/bin/aclserve"
        short = ["--set", "duration_s=0.2"] if arguments[1] == "run" else []
        assert main([*arguments, *short]) == 0, line
    assert (tmp_path / "out" / "policies.png").exists()
    costs = json.loads((tmp_path / "out" / "costs.json").read_text())
    assert costs["gears"][0] == 1


def test_costs_are_what_a_server_executed(tmp_path: Path) -> None:
    put_model(tmp_path, "relu", elementwise("Relu"), "max_batch_size: 4\ndynamic_batching {}\n")
    latency = Latency(task_us={"aclmdlExecuteAsync": 20_000.0}, row_us=5000.0)
    with serving(tmp_path, emulator=EmulatorConfig(latency=latency)) as served:
        access = Access(served.address)
        with pytest.raises(MeasureError, match="has executed nothing"):
            measure("relu", access, 0)
        asked = measure("relu", access, 2)
        read = measure("relu", access, 0)
        with pytest.raises(MeasureError, match="NOT_FOUND"):
            measure("absent", access, 1)
    assert asked["gears"] == [1, 2, 3, 4]
    assert asked["executions"] == {"1": 2, "2": 2, "3": 2, "4": 2}
    assert read["executions"] == {"1": 3, "2": 3, "3": 3, "4": 3}
    for rows in (1, 2, 3, 4):  # a sleep may take longer, never less
        assert asked["costs_us"][str(rows)] >= 20_000 + 5000 * rows


@pytest.mark.parametrize(
    ("access", "repeats", "options", "told"),
    [
        (Access("127.0.0.1:1"), 1, ["--device", "0"], "give one of them"),
        (Access(), 0, [], "has executed nothing"),
        (Access("127.0.0.1:1", token_file=Path("token")), 1, [], "in the clear"),
        (Access("127.0.0.1:1", tls_ca=Path("absent.pem")), 1, [], "absent.pem: No such file"),
        (Access("127.0.0.1:1"), 1, [], "no server answers at 127.0.0.1:1 without TLS within 0.2 s"),
    ],
)
def test_what_cannot_be_measured_is_told(
    access: Access, repeats: int, options: list[str], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aclserve_server.plan.measure.CONNECT_S", 0.2)
    with pytest.raises(MeasureError, match=told):
        measure("relu", access, repeats, options)
