"""Readiness, and the repository's index through the life of a model: load, reload, failed load, unload."""

from __future__ import annotations

import json
import logging
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import json_format

from aclserve_server.kserve import inference_pb2 as pb
from rpc.v2.v2_server import V2, outputs_of, request_of, v2
from serving import elementwise, put_model, rows

INVALID = grpc.StatusCode.INVALID_ARGUMENT
ONNX = elementwise("Neg").SerializeToString()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    put_model(tmp_path, "plain", elementwise())
    put_model(tmp_path, "other", elementwise("Neg"))
    (tmp_path / "empty").mkdir()
    return tmp_path


@pytest.fixture
def served(repository: Path) -> Iterator[V2]:
    with v2(repository, model_control_mode="explicit") as up:
        yield up


def is_ready(served: V2, name: str, version: str = "") -> bool:
    return bool(served.call("ModelReady", pb.ModelReadyRequest(name=name, version=version)).ready)


def server_is_ready(served: V2) -> bool:
    assert served.call("ServerLive", pb.ServerLiveRequest()).live
    return bool(served.call("ServerReady", pb.ServerReadyRequest()).ready)


def break_model(repository: Path, name: str) -> None:
    (repository / name / "1" / "model.onnx").write_bytes(b"no model")


def test_states_through_a_model_s_life(served: V2, repository: Path) -> None:
    assert served.index()["plain", "1"] == ("", "")
    assert served.index(ready=True) == {}
    assert server_is_ready(served)
    assert not is_ready(served, "plain")

    served.load("plain")
    assert served.index()["plain", "1"] == ("READY", "")
    assert served.index(ready=True) == {("plain", "1"): ("READY", "")}
    assert is_ready(served, "plain")
    assert (outputs_of(served.infer()) == rows(0, 1)).all()

    put_model(repository, "spare", elementwise("Neg"))
    (repository / "spare" / "1" / "model.onnx").rename(repository / "plain" / "1" / "model.onnx")
    served.load("plain")
    assert served.index()["plain", "1"] == ("READY", "")
    assert (outputs_of(served.infer()) == -rows(0, 1)).all()

    served.unload("plain")
    state, reason = served.index()["plain", "1"]
    assert (state, reason) == ("UNAVAILABLE", "unloaded")
    assert not is_ready(served, "plain")
    assert server_is_ready(served), "a model unloaded on purpose does not count"
    with pytest.raises(grpc.RpcError) as caught:
        served.infer()
    error: Any = caught.value
    assert error.code() is grpc.StatusCode.UNAVAILABLE


def test_a_load_under_way_is_told_and_holds_up_nobody(served: V2) -> None:
    served.up.emulator.hold()
    try:
        answer = served.stub.RepositoryModelLoad.future(pb.RepositoryModelLoadRequest(model_name="plain"), timeout=60)
        for _ in range(6000):
            if served.index()["plain", "1"][0] == "LOADING":
                break
            threading.Event().wait(0.01)
        assert served.index()["plain", "1"] == ("LOADING", "")
        assert served.index(ready=True) == {}
        assert not is_ready(served, "plain")
        assert not server_is_ready(served)
    finally:
        served.up.emulator.release()
    answer.result()
    assert served.index()["plain", "1"] == ("READY", "")
    assert server_is_ready(served)


def test_an_unload_under_way_is_told_and_answers_what_is_accepted(served: V2) -> None:
    served.load("plain")
    served.up.emulator.hold()
    try:
        answer = served.stub.ModelInfer.future(request_of("plain"), timeout=60)
        for _ in range(6000):
            if len(served.up.server.calls):
                break
            threading.Event().wait(0.01)
        unload = served.stub.RepositoryModelUnload.future(
            pb.RepositoryModelUnloadRequest(model_name="plain"), timeout=60
        )
        for _ in range(6000):
            if served.index()["plain", "1"][0] == "UNLOADING":
                break
            threading.Event().wait(0.01)
        assert served.index()["plain", "1"] == ("UNLOADING", "")
        assert not is_ready(served, "plain")
        assert server_is_ready(served)
    finally:
        served.up.emulator.release()
    assert (outputs_of(answer.result()) == rows(0, 1)).all()
    unload.result()
    assert served.index()["plain", "1"] == ("UNAVAILABLE", "unloaded")


def test_the_index_follows_the_disk(served: V2, repository: Path) -> None:
    put_model(repository, "late", elementwise())
    assert served.index()["late", "1"] == ("", "")
    served.load("late", "{}", **{"file:3/model.onnx": ONNX})
    assert served.index()["late", "3"] == ("READY", "")
    served.unload("late")
    assert {key: state for key, (state, _) in served.index().items() if key[0] == "late"} == {("late", "1"): ""}
    shutil.rmtree(repository / "late")
    assert ("late", "1") not in served.index()
    served.load("plain")
    repository.rename(repository.with_name("away"))
    try:
        assert served.index()["plain", "1"] == ("READY", "")
    finally:
        repository.with_name("away").rename(repository)


def test_a_failed_load_is_told_and_makes_the_server_not_ready(served: V2, repository: Path) -> None:
    break_model(repository, "plain")
    request = pb.RepositoryModelLoadRequest(model_name="plain")
    text = served.refused("RepositoryModelLoad", request, INVALID, "MODEL_INVALID")
    state, reason = served.index()["plain", "1"]
    assert state == "UNAVAILABLE"
    assert reason
    assert reason in text
    assert not server_is_ready(served)
    assert str(repository) not in text + reason
    served.load("other")
    assert is_ready(served, "other")
    assert not server_is_ready(served)
    put_model(repository, "spare", elementwise())
    (repository / "spare" / "1" / "model.onnx").rename(repository / "plain" / "1" / "model.onnx")
    served.load("plain")
    assert server_is_ready(served)


def test_a_failed_reload_leaves_the_old_one_serving(served: V2, repository: Path) -> None:
    served.load("plain")
    break_model(repository, "plain")
    request = pb.RepositoryModelLoadRequest(model_name="plain")
    served.refused("RepositoryModelLoad", request, INVALID, "MODEL_INVALID")
    state, reason = served.index()["plain", "1"]
    assert state == "READY"
    assert reason
    assert (outputs_of(served.infer()) == rows(0, 1)).all()
    assert server_is_ready(served)


def test_a_load_takes_all_versions_of_the_policy_and_an_unload_all_that_are_ready(repository: Path) -> None:
    put_model(repository, "many", elementwise(), "version_policy { latest { num_versions: 2 } }\n", version=1)
    for version in (2, 10):
        put_model(repository, "many", elementwise(), version=version)
    with v2(repository, model_control_mode="explicit") as served:
        served.load("many")
        assert set(served.index(ready=True)) == {("many", "2"), ("many", "10")}
        assert [is_ready(served, "many", version) for version in ("1", "2", "10")] == [False, True, True]
        assert server_is_ready(served)
        assert served.infer("many").model_version == "10"
        assert served.infer("many", version="2").model_version == "2"
        with pytest.raises(grpc.RpcError) as caught:
            served.infer("many", version="1")
        error: Any = caught.value
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        served.unload("many")
        assert served.index(ready=True) == {}


def test_a_repository_that_is_named_is_refused(served: V2) -> None:
    for method, request in (
        ("RepositoryIndex", pb.RepositoryIndexRequest(repository_name="main")),
        ("RepositoryModelLoad", pb.RepositoryModelLoadRequest(repository_name="main", model_name="plain")),
        ("RepositoryModelUnload", pb.RepositoryModelUnloadRequest(repository_name="main", model_name="plain")),
    ):
        served.refused(method, request, grpc.StatusCode.UNIMPLEMENTED, "REPOSITORY_UNKNOWN")


def test_names_that_are_no_model_s(served: V2) -> None:
    for name in ("", "  ", "\t"):
        for kind in ("Load", "Unload"):
            request = getattr(pb, f"RepositoryModel{kind}Request")(model_name=name)
            served.refused(f"RepositoryModel{kind}", request, INVALID, "MODEL_NAME_INVALID")
    for kind in ("Load", "Unload"):
        request = getattr(pb, f"RepositoryModel{kind}Request")(model_name="absent")
        served.refused(f"RepositoryModel{kind}", request, grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND")
    for name in ("../plain", "plain/1", "/etc", "x" * 5000):
        load = pb.RepositoryModelLoadRequest(model_name=name)
        served.refused("RepositoryModelLoad", load, INVALID, "MODEL_NAME_INVALID")
        unload = pb.RepositoryModelUnloadRequest(model_name=name)
        served.refused("RepositoryModelUnload", unload, grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND")


@pytest.mark.parametrize("mode", ["none", "poll"])
def test_other_control_modes_leave_it_to_the_server(repository: Path, mode: str) -> None:
    with v2(repository, model_control_mode=mode) as served:
        assert not server_is_ready(served), "the folder without a version is wanted, and not ready"
        for kind in ("Load", "Unload"):
            request = getattr(pb, f"RepositoryModel{kind}Request")(model_name="plain")
            text = served.refused(
                f"RepositoryModel{kind}", request, grpc.StatusCode.UNAVAILABLE, "MODEL_CONTROL_REFUSED"
            )
            assert "explicit" in text
        assert served.index()["plain", "1"] == ("READY", "")
        state, reason = served.index()["empty", ""]
        assert state == "UNAVAILABLE"
        assert "version" in reason


def test_a_load_with_another_configuration(served: V2) -> None:
    served.load("plain", '{"name": "plain", "max_batch_size": 2, "parameters": {"k": {"string_value": "v"}}}')
    told = served.call("ModelConfig", pb.ModelConfigRequest(name="plain")).config
    assert told.max_batch_size == 2
    assert told.parameters["k"].string_value == "v"
    served.load("plain", '{"maxBatchSize": 4}')
    assert served.call("ModelConfig", pb.ModelConfigRequest(name="plain")).config.max_batch_size == 4
    served.load("plain")
    assert served.call("ModelConfig", pb.ModelConfigRequest(name="plain")).config.max_batch_size > 4


def test_a_configuration_that_was_answered_can_be_given_back(served: V2, caplog: pytest.LogCaptureFixture) -> None:
    served.load("plain", '{"max_batch_size": 4, "dynamic_batching": {"max_queue_delay_microseconds": "100"}}')
    first = served.call("ModelConfig", pb.ModelConfigRequest(name="plain")).config
    caplog.clear()
    served.load("plain", json_format.MessageToJson(first, preserving_proto_field_name=True))
    assert served.call("ModelConfig", pb.ModelConfigRequest(name="plain")).config == first
    assert not [record.message for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_strict_server_refuses_them(repository: Path) -> None:
    with v2(repository, model_control_mode="explicit", strict_config=True) as served:
        parameters = {"config": pb.ModelRepositoryParameter(string_param='{"input": [{"name": "x", "colour": "red"}]}')}
        request = pb.RepositoryModelLoadRequest(model_name="plain", parameters=parameters)
        with pytest.raises(grpc.RpcError) as caught:
            served.call("RepositoryModelLoad", request)
        error: Any = caught.value
        assert "input.colour" in error.details()
        served.load("plain", "{}")


def test_fields_of_a_configuration_that_mean_nothing_here_are_named(
    served: V2, caplog: pytest.LogCaptureFixture
) -> None:
    config = {
        "optimization": {"cuda": {"graphs": True}},
        "input": [{"name": "x", "data_type": "TYPE_FP32", "dims": ["4"], "colour": "red"}],
        "dynamic_batching": {"preferred_batch_size": [2], "haste": 1},
        "model_warmup": [],
    }
    with caplog.at_level(logging.WARNING):
        served.load("plain", json.dumps(config))
    for path in ("optimization: ", "input.colour: ", "dynamic_batching.haste: "):
        assert path in caplog.text
    assert is_ready(served, "plain")


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ("", "Expecting value"),
        ("{", "Expecting"),
        ("[]", "expected an object"),
        ('{"max_batch_size": "many"}', "max_batch_size"),
        ('{"max_batch_size": -1}', "max_batch_size is -1"),
        ('{"name": "another"}', "'another'"),
        ('{"input": [{"name": "x", "data_type": "TYPE_FP31"}]}', "TYPE_FP31"),
        ('{"input": 7}', "input"),
        ('{"parameters": {"k": 7}}', "parameters"),
        ('{"parameters": [7]}', "parameters"),
        ("[" * 100_000, "nested too deeply"),
        ('{"x": ' * 50_000 + "1" + "}" * 50_000, "nested too deeply"),
        (" " * (1 << 21), "longer than"),
        ("{" + '"name": "\\ud800"' + "}", "name"),
    ],
    ids=range(14),
)
def test_configurations_that_cannot_be_used(served: V2, config: str, told: str) -> None:
    parameters = {"config": pb.ModelRepositoryParameter(string_param=config)}
    request = pb.RepositoryModelLoadRequest(model_name="plain", parameters=parameters)
    assert told in served.refused("RepositoryModelLoad", request, INVALID, "MODEL_CONFIG_INVALID")
    assert served.index()["plain", "1"] == ("", "")


def test_files_take_the_place_of_the_repository_s(served: V2) -> None:
    served.load("plain", "{}", **{"file:1/model.onnx": ONNX})
    assert (outputs_of(served.infer()) == -rows(0, 1)).all()
    served.load("plain", '{"version_policy": {"all": {}}}', **{"file:3/model.onnx": ONNX, "file:4/model.onnx": ONNX})
    assert {version for name, version in served.index(ready=True) if name == "plain"} == {"3", "4"}
    served.load("plain")
    assert (outputs_of(served.infer()) == rows(0, 1)).all()


@pytest.mark.parametrize(
    "key",
    [
        "file:",
        "file:model.onnx",
        "file:1/../../other/1/model.onnx",
        "file:1/..",
        "file:../1/model.onnx",
        "file:/etc/passwd",
        "file:0/model.onnx",
        "file:01/model.onnx",
        "file:-1/model.onnx",
        "file:x/model.onnx",
        "file:1/2/model.onnx",
        "file:1/model.py",
        "file:1/config.pbtxt",
        "file:config.pbtxt",
        "file:1/model.onnx\0",
        "file:" + "9" * 400 + "/model.onnx",
    ],
)
def test_files_that_cannot_be_given(served: V2, repository: Path, key: str) -> None:
    before = sorted(repository.rglob("*"))
    parameters = {
        "config": pb.ModelRepositoryParameter(string_param="{}"),
        key: pb.ModelRepositoryParameter(bytes_param=ONNX),
    }
    request = pb.RepositoryModelLoadRequest(model_name="plain", parameters=parameters)
    served.refused("RepositoryModelLoad", request, INVALID, "MODEL_FILE_INVALID")
    assert sorted(repository.rglob("*")) == before


def test_files_need_a_configuration_and_have_a_bound(repository: Path) -> None:
    with v2(repository, model_control_mode="explicit", max_upload_bytes=2 * len(ONNX)) as served:

        def refused(config: bool, reason: str, **files: bytes) -> str:
            parameters = {key: pb.ModelRepositoryParameter(bytes_param=content) for key, content in files.items()}
            if config:
                parameters["config"] = pb.ModelRepositoryParameter(string_param="{}")
            request = pb.RepositoryModelLoadRequest(model_name="plain", parameters=parameters)
            return served.refused("RepositoryModelLoad", request, INVALID, reason)

        refused(False, "MODEL_FILE_INVALID", **{"file:1/model.onnx": ONNX})
        files = {f"file:{version}/model.onnx": ONNX for version in (1, 2, 3)}
        text = refused(True, "FILES_TOO_LARGE", **files)
        assert str(3 * len(ONNX)) in text
        assert str(2 * len(ONNX)) in text
        refused(True, "PARAMETER_UNKNOWN", **{f"file:{version}/model.onnx": b"" for version in range(1, 70)})
        served.load("plain", "{}", **{"file:1/model.onnx": ONNX})


def test_parameters_that_are_not_there_or_of_another_type(served: V2) -> None:
    text = pb.ModelRepositoryParameter(string_param="{}")
    wrong = [
        ("Load", "colour", text, "PARAMETER_UNKNOWN"),
        ("Load", "config", pb.ModelRepositoryParameter(bytes_param=b"{}"), "PARAMETER_INVALID"),
        ("Load", "config", pb.ModelRepositoryParameter(), "PARAMETER_INVALID"),
        ("Load", "file:1/model.onnx", text, "PARAMETER_INVALID"),
        ("Unload", "colour", text, "PARAMETER_UNKNOWN"),
        ("Unload", "unload_dependents", text, "PARAMETER_INVALID"),
    ]
    served.load("plain")
    for kind, key, value, reason in wrong:
        request = getattr(pb, f"RepositoryModel{kind}Request")(model_name="plain", parameters={key: value})
        assert repr(key) in served.refused(f"RepositoryModel{kind}", request, INVALID, reason)
    assert is_ready(served, "plain")
    dependents = {"unload_dependents": pb.ModelRepositoryParameter(bool_param=True)}
    served.call("RepositoryModelUnload", pb.RepositoryModelUnloadRequest(model_name="plain", parameters=dependents))
    assert not is_ready(served, "plain")


def test_unloading_what_is_not_loaded(served: V2) -> None:
    served.unload("plain")
    served.load("plain")
    served.unload("plain")
    served.unload("plain")
    assert served.index()["plain", "1"] == ("UNAVAILABLE", "unloaded")


def test_a_server_that_drains_is_not_live(served: V2) -> None:
    async def going(away: bool) -> None:
        served.up.server.calls.going_away = away

    served.load("plain")
    served.up.run(going(True))
    try:
        for method in ("ServerLive", "ServerReady"):
            request = getattr(pb, f"{method}Request")()
            served.refused(method, request, grpc.StatusCode.UNAVAILABLE, "SERVER_GOING_AWAY")
        request = pb.ModelReadyRequest(name="plain")
        served.refused("ModelReady", request, grpc.StatusCode.UNAVAILABLE, "SERVER_GOING_AWAY")
    finally:
        served.up.run(going(False))
    assert server_is_ready(served)
