"""The repository on disk: which versions there are, which are served, what tells that they changed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from aclserve.errors import InvalidArgument
from aclserve_server.engine.model_config import ModelConfig, VersionPolicy
from aclserve_server.engine.repository import Repository, choose, given_files
from aclserve_server.rpc.model_config import read_model_config


def repository(root: Path, *, strict: bool = False) -> Repository:
    return Repository(root, read_model_config, strict)


def put(root: Path, name: str, *versions: str, config: str | None = None, file: str = "model.onnx") -> None:
    for version in versions:
        (root / name / version).mkdir(parents=True)
        (root / name / version / file).write_bytes(b"model")
    if config is not None:
        (root / name).mkdir(exist_ok=True)
        (root / name / "config.pbtxt").write_text(config)


def found(root: Path, name: str) -> dict[int, tuple[bool, str]]:
    """Version -> whether it is served, and its problem."""
    return {entry.version: (entry.chosen, entry.problem) for entry in repository(root).scan(name)}


def test_versions_are_whole_numbers_from_1_without_a_leading_zero(tmp_path: Path) -> None:
    put(tmp_path, "m", "1", "12", "3", "0", "03", "-1", "1a", "warmup")
    (tmp_path / "m" / "7").write_text("a file")
    assert found(tmp_path, "m") == {1: (False, ""), 3: (False, ""), 12: (True, "")}


@pytest.mark.parametrize(
    ("policy", "chosen"),
    [
        ("", {9}),
        ("version_policy { latest { num_versions: 2 } }", {5, 9}),
        ("version_policy { latest { num_versions: 7 } }", {2, 5, 9}),
        ("version_policy { all { } }", {2, 5, 9}),
        ("version_policy { specific { versions: [ 5, 2 ] } }", {2, 5}),
    ],
)
def test_version_policies(tmp_path: Path, policy: str, chosen: set[int]) -> None:
    put(tmp_path, "m", "2", "5", "9", config=policy)
    assert {version for version, (is_chosen, _) in found(tmp_path, "m").items() if is_chosen} == chosen


def test_a_version_that_the_policy_names_and_nobody_has_put_there_is_told(tmp_path: Path) -> None:
    put(tmp_path, "m", "2", config="version_policy { specific { versions: [ 2, 4 ] } }")
    assert found(tmp_path, "m") == {
        2: (True, ""),
        4: (True, "its version_policy names version 4, which is not there"),
    }
    assert choose([], VersionPolicy(None)) == set()


def test_the_file_may_have_another_name(tmp_path: Path) -> None:
    put(tmp_path, "m", "1", config='default_model_filename: "net.bin"', file="net.bin")
    put(tmp_path, "other", "1", config='default_model_filename: "net.bin"')
    (entry,) = repository(tmp_path).scan("m")
    assert entry.file == tmp_path / "m" / "1" / "net.bin"
    assert found(tmp_path, "other")[1][1] == "version 1 holds no net.bin"


@pytest.mark.parametrize("what", ["model.onnx", "config.pbtxt", "classes.txt"])
def test_links_that_lead_out_are_refused(tmp_path: Path, what: str) -> None:
    root = tmp_path / "root"
    put(root, "m", "1", config='output { name: "y" label_filename: "classes.txt" }')
    (tmp_path / "secret").write_text("max_batch_size: 3\n")
    path = root / "m" / ("1/model.onnx" if what == "model.onnx" else what)
    path.unlink(missing_ok=True)
    path.symlink_to(tmp_path / "secret")
    if what == "classes.txt":
        with pytest.raises(ValueError, match="there is no file"):
            repository(root).beside("m", what)
    else:
        assert "link that leads out" in found(root, "m")[1][1]


def test_strict_takes_a_field_without_a_meaning_for_a_problem(tmp_path: Path) -> None:
    put(tmp_path, "m", "1", config="optimization { }\ninstance_group { kind: KIND_CPU }")
    put(tmp_path, "plain", "1", config="max_batch_size: 1")
    assert [entry.problem for entry in repository(tmp_path).scan()] == ["", ""]
    loose, strict = repository(tmp_path, strict=True).scan()
    assert "--strict-config" in loose.problem
    assert "optimization: the model runs as it was compiled; instance_group.kind:" in loose.problem
    assert strict.problem == ""


def test_a_stamp_changes_with_every_file_that_matters_and_no_other(tmp_path: Path) -> None:
    config = """output { name: "y" label_filename: "classes.txt" }
        model_warmup { inputs { key: "x" value { data_type: TYPE_INT8 dims: 1 input_data_file: "one" } } }"""
    put(tmp_path, "m", "1", "2", config=config)

    def stamps() -> dict[int, object]:
        return {entry.version: entry.stamp for entry in repository(tmp_path).scan("m")}

    before = stamps()
    assert stamps() == before
    (tmp_path / "m" / "notes.txt").write_text("nobody reads this")
    assert stamps() == before
    (tmp_path / "m" / "2" / "model.onnx").write_bytes(b"a longer model")
    after = stamps()
    assert (after[1] == before[1], after[2] == before[2]) == (True, False)
    (tmp_path / "m" / "1" / "model.onnx.data").write_bytes(b"weights")
    assert stamps()[1] != after[1]
    (tmp_path / "m" / "warmup").mkdir()
    for path in ("classes.txt", "warmup/one", "config.pbtxt"):
        before = stamps()
        (tmp_path / "m" / path).write_text("changed" if path != "config.pbtxt" else config + "# changed")
        assert all(stamps()[version] != before[version] for version in (1, 2)), path
    before = stamps()
    same = tmp_path / "m" / "1" / "model.onnx"
    times = same.stat()
    (tmp_path / "new").write_bytes(same.read_bytes())
    os.utime(tmp_path / "new", ns=(times.st_atime_ns, times.st_mtime_ns))
    (tmp_path / "new").rename(same)
    assert stamps()[1] != before[1], "another file of the same size and time"


def test_a_folder_that_cannot_be_read_is_one_model_s_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, "bad", "1")
    put(tmp_path, "good", "1")
    iterdir = Path.iterdir

    def refuse(path: Path) -> object:
        if path.name == "bad":
            raise PermissionError(13, "Permission denied")
        return iterdir(path)

    monkeypatch.setattr(Path, "iterdir", refuse)
    assert found(tmp_path, "bad") == {0: (True, "its folder cannot be read: Permission denied")}
    assert found(tmp_path, "good") == {1: (True, "")}


@pytest.mark.parametrize(
    "path",
    ["model.onnx", "1/../model.onnx", "../1/model.onnx", "/1/model.onnx", "1//model.onnx", "01/model.onnx", "",
     "0/model.onnx", "1/model.txt", "1/config.pbtxt", "1/model.onnx/", "1/", "-1/model.onnx", "1/model.onnx\0"],
)  # fmt: skip
def test_files_that_nobody_may_give(path: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        given_files("m", ModelConfig("m"), {path: b""})
    assert refused.value.reason == "MODEL_FILE_INVALID"
    assert "<version>/model.om or <version>/model.onnx" in refused.value.message


def test_files_that_come_with_a_call_follow_the_policy() -> None:
    files = {"1/model.onnx": b"one", "3/model.onnx": b"three", "2/model.om": b"two"}
    assert given_files("m", ModelConfig("m"), files) == {3: b"three"}
    every = ModelConfig("m", version_policy=VersionPolicy(None))
    assert given_files("m", every, files) == {1: b"one", 2: b"two", 3: b"three"}
    named = ModelConfig("m", version_policy=VersionPolicy(None, (4,)))
    with pytest.raises(InvalidArgument, match="names version 4"):
        given_files("m", named, files)
    other = ModelConfig("m", file="net.bin")
    assert given_files("m", other, {"1/net.bin": b"net"}) == {1: b"net"}
    with pytest.raises(InvalidArgument, match="one for a version"):
        given_files("m", ModelConfig("m"), {"1/model.onnx": b"", "1/model.om": b""})
