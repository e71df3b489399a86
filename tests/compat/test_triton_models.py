"""The published cases of real models and operators through tritonclient, in each of its ways."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from compat.worker import Worker, array_of, outputs_of, request
from e2e.cases import assert_close, copy_model, model_files, plain_cases, stream_case, string_cases
from rpc.v2.v2_server import V2, v2
from rpc.v2.v2_stream import leaves_nothing

WAYS = ("sync", "async", "aio", "stream", "aio_stream")
CASES = plain_cases()
STRINGS = string_cases()


@pytest.fixture(scope="module")
def served(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[V2]:
    root = tmp_path_factory.mktemp("models")
    for model in model_files():
        copy_model(root, model)
    with v2(root, system_shared_memory=True) as up:
        yield up


@pytest.fixture(scope="module")
def client(served: V2, triton: Worker) -> Iterator[Worker]:
    triton.do("connect", at=served.up.address)
    triton.do("infer", way="sync", requests=[request(case.model, case.inputs) for case in CASES])  # all have run once
    yield triton
    triton.do("close")


@pytest.fixture(autouse=True)
def unchanged(served: V2, client: Worker) -> Iterator[None]:
    with leaves_nothing(served):
        yield


def test_all_cases_are_here() -> None:
    if CASES:
        assert (len(CASES), len(STRINGS)) == (60, 5)


@pytest.mark.parametrize("way", WAYS)
def test_cases(client: Worker, way: str) -> None:
    """Streams carry all models, one after another, and answer in that order."""
    requests = [request(case.model, case.inputs, request_id=str(case)) for case in CASES]
    answers = client.do("infer", way=way, requests=requests)
    assert len(answers) == len(CASES)
    for case, answer in zip(CASES, answers, strict=True):
        case.check(outputs_of(answer))
        assert (answer["id"], answer["model"], answer["version"]) == (str(case), case.model, "1")
        assert answer["final"] == ("stream" in way)


@pytest.mark.parametrize("way", ["sync", "stream"])
def test_each_output_alone(client: Worker, way: str) -> None:
    """Cases with several outputs, asked for one of them at a time, and for all in reverse."""
    asked: list[tuple[Any, list[str]]] = []
    for case in CASES:
        names = list(case.outputs)
        if len(names) > 1:
            asked += [(case, [name]) for name in names] + [(case, names[::-1])]
    assert len(asked) > 10
    requests = [
        request(case.model, case.inputs, outputs=[{"name": name} for name in names], request_id=str(at))
        for at, (case, names) in enumerate(asked)
    ]
    answers = client.do("infer", way=way, requests=requests)
    for (case, names), answer in zip(asked, answers, strict=True):
        got = outputs_of(answer)
        assert list(got) == names
        for name in names:
            assert_close(got[name], case.outputs[name], case.rtol, case.atol, f"{case}: {name}")


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="needs /dev/shm")
def test_cases_through_shared_memory(client: Worker) -> None:
    """Inputs and outputs lie in two objects that the client made, behind one another."""
    cases = [case for case in CASES if case.model != "data_dependent_shape"]
    cases = [case for case in cases if all(array.size for array in (*case.inputs.values(), *case.outputs.values()))]
    assert len(cases) > 50
    largest = max(sum(array.nbytes for array in (*case.inputs.values(), *case.outputs.values())) for case in cases)
    for name in ("in", "out"):
        key = f"/aclserve-compat-{uuid.uuid4().hex}"
        client.do("shm_create", name=name, key=key, size=largest)
        client.do("call", method="register_system_shared_memory", name=name, key=key, byte_size=largest)
    try:
        for case in cases:
            at = 0
            made = request(case.model, case.inputs, outputs=[])
            for tensor in made["inputs"]:
                array = case.inputs[tensor["name"]]
                elements = {**tensor, "shape": [array.size]}  # the client's function does not take scalars
                client.do("shm_write", name="in", tensors=[elements], offset=at)
                tensor["region"] = ["in", array.nbytes, at]
                at += array.nbytes
            at = 0
            for name, array in case.outputs.items():
                made["outputs"].append({"name": name, "region": ["out", array.nbytes, at]})
                at += array.nbytes
            (answer,) = client.do("infer", way="sync", requests=[made])
            assert "status" not in answer, (case, answer)
            at, got = 0, {}
            for name, array in case.outputs.items():
                told = answer["outputs"][name]
                assert told["shape"] == list(array.shape), case
                place = {"datatype": told["datatype"], "shape": told["shape"], "offset": at}
                got[name] = array_of(client.do("shm_read", name="out", **place))
                at += array.nbytes
            case.check(got)
    finally:
        client.do("call", method="unregister_system_shared_memory")
        for name in ("in", "out"):
            left = client.do("shm_destroy", name=name)
    assert left == []


def test_state_that_the_client_carries(client: Worker) -> None:
    case = stream_case("silero_vad")
    ((source, target),) = case.carry.items()
    state = case.initial_state[target]
    for step in range(case.steps):
        inputs = {name: values[step] for name, values in case.step_inputs.items()}
        made = request(case.model, {**inputs, **case.constant_inputs, target: state}, request_id=str(step))
        (answer,) = client.do("infer", way="sync", requests=[made])
        outputs = outputs_of(answer)
        state = outputs[source]
        for name, values in case.step_outputs.items():
            assert_close(outputs[name], values[step], case.rtol, case.atol, f"step {step}: {name}")
    assert_close(state, case.final_state[source], case.rtol, case.atol, f"final {source}")


def test_models_with_strings_say_why_they_are_not_served(client: Worker) -> None:
    index = client.do("call", method="get_model_repository_index")["models"]
    states = {one["name"]: (one["state"], one.get("reason", "")) for one in index}
    assert set(states) == set(model_files())
    for case in STRINGS:
        state, reason = states.pop(case.model)
        assert state == "UNAVAILABLE"
        assert "string" in reason
        (answer,) = client.do("infer", way="sync", requests=[request(case.model, {})])
        assert answer["status"] == "StatusCode.UNAVAILABLE"
        assert "string" in answer["message"]
    assert set(states.values()) == {("READY", "")}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("elements", [[], [""], ["YQ==", "", "YsO8Yw=="]])
def test_strings_are_refused(client: Worker, way: str, elements: list[str]) -> None:
    made = request("dynamic_axes_sum", {}, request_id="s")
    made["inputs"] = [{"name": "input_vectors", "datatype": "BYTES", "shape": [len(elements)], "data": elements}]
    (answer,) = client.do("infer", way=way, requests=[made])
    assert answer["status"] == (None if "stream" in way else "StatusCode.INVALID_ARGUMENT")
    assert "holds no strings" in answer["message"]
    assert "FP32" in answer["message"]


def test_metadata_and_configuration_of_all_models(client: Worker) -> None:
    """What perf_analyzer looks up before it begins, for every model; and every one is ready."""
    for model in model_files():
        if model in {case.model for case in STRINGS}:
            assert client.do("call", method="is_model_ready", model_name=model) is False
            continue
        assert client.do("call", method="is_model_ready", model_name=model) is True
        metadata = client.do("call", method="get_model_metadata", model_name=model)
        assert metadata["name"] == model
        assert metadata["versions"] == ["1"]
        config = client.do("call", method="get_model_config", model_name=model)["config"]
        assert [one["name"] for one in config["input"]] == [one["name"] for one in metadata["inputs"]]
        assert [one["name"] for one in config["output"]] == [one["name"] for one in metadata["outputs"]]
        (statistics,) = client.do("call", method="get_inference_statistics", model_name=model)["model_stats"]
        assert (statistics["name"], statistics["version"]) == (model, "1")
