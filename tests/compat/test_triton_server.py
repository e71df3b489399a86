"""What tritonclient can ask of the server and its models, and the repository's life by its calls."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from compat.worker import WAYS, Worker, call, infer, one_row, outputs_of, pair
from serving import elementwise

INVALID = "StatusCode.INVALID_ARGUMENT"
ABSENT = "StatusCode.NOT_FOUND"
UNAVAILABLE = "StatusCode.UNAVAILABLE"


def test_what_the_server_tells(client: Worker) -> None:
    assert call(client, "is_server_live") is True
    assert call(client, "is_server_ready") is True
    told = call(client, "get_server_metadata")
    assert told["name"]
    for extension in (
        "model_repository",
        "model_configuration",
        "statistics",
        "classification",
        "system_shared_memory",
    ):
        assert extension in told["extensions"], told


def test_what_a_model_tells(client: Worker) -> None:
    metadata = call(client, "get_model_metadata", model_name="plain")
    assert sorted(metadata["versions"]) == ["1", "3"]
    assert metadata["inputs"] == [{"name": "x", "datatype": "FP32", "shape": ["-1", "4"]}]
    config = call(client, "get_model_config", model_name="plain", model_version="1")["config"]
    assert config["max_batch_size"] > 0
    assert config["input"] == [{"name": "x", "data_type": "TYPE_FP32", "dims": ["4"]}]
    assert call(client, "get_model_metadata", model_name="absent")["status"] == ABSENT


def test_statistics_grow_by_request(client: Worker) -> None:
    """As perf_analyzer counts: between two looks."""

    def look() -> Any:
        (told,) = call(client, "get_inference_statistics", model_name="two")["model_stats"]
        return told

    infer(client, pair())
    before = look()
    for way in WAYS:
        infer(client, pair(), way=way)
    after = look()
    for name in ("success", "queue", "compute_input", "compute_infer", "compute_output"):
        grown = int(after["inference_stats"][name]["count"]) - int(before["inference_stats"][name]["count"])
        assert grown == len(WAYS), name
    assert int(after["inference_count"]) - int(before["inference_count"]) == 2 * len(WAYS)


def test_settings(client: Worker) -> None:
    assert "trace_level" in call(client, "get_trace_settings")["settings"]
    assert "log_verbose_level" in call(client, "get_log_settings")["settings"]


def state(client: Worker, name: str) -> Any:
    index = call(client, "get_model_repository_index")["models"]
    return {
        one.get("version", ""): (one.get("state", ""), one.get("reason", "")) for one in index if one["name"] == name
    }


def test_the_life_of_a_model(client: Worker, repository: Path) -> None:
    """Unload, load, reload, a reload that fails, and a load from bytes that the client sends."""
    row = one_row(1, "changing", model_version="")
    file = repository / "changing" / "1" / "model.onnx"
    good = file.read_bytes()
    assert state(client, "changing") == {"1": ("READY", "")}
    assert call(client, "unload_model", model_name="changing") is None
    assert call(client, "is_model_ready", model_name="changing") is False
    assert state(client, "changing") == {"1": ("UNAVAILABLE", "unloaded")}
    assert infer(client, row)[0]["status"] in (UNAVAILABLE, ABSENT)

    assert client.do("load", name="changing") is None
    assert state(client, "changing") == {"1": ("READY", "")}
    file.write_bytes(elementwise("Neg").SerializeToString())
    assert client.do("load", name="changing") is None
    assert outputs_of(infer(client, row)[0])["y"][0, 0] == -4

    file.write_bytes(b"no model")
    told = client.do("load", name="changing")
    assert told["status"].startswith("StatusCode.")
    assert outputs_of(infer(client, row)[0])["y"][0, 0] == -4  # the version before serves on
    assert call(client, "is_model_ready", model_name="changing") is True

    file.write_bytes(good)
    content = base64.b64encode(elementwise("Abs").SerializeToString()).decode()
    config = json.dumps({"max_batch_size": 4})
    assert client.do("load", name="changing", config=config, files={"file:7/model.onnx": content}) is None
    (answer,) = infer(client, row)
    assert (answer["version"], outputs_of(answer)["y"][0, 0]) == ("7", 4)
    assert call(client, "unload_model", model_name="changing") is None
    assert client.do("load", name="changing") is None
    assert state(client, "changing")["1"] == ("READY", "")


@pytest.mark.parametrize("name", ["absent", "", " ", "../plain", "a/b"])
def test_loads_that_are_refused(client: Worker, name: str) -> None:
    told = client.do("load", name=name)
    assert told["status"] in (ABSENT, INVALID), told
    told = call(client, "unload_model", model_name=name)
    assert told is None or told["status"] in (ABSENT, INVALID), told
