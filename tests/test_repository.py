"""The files around the code fit the code: Dockerfile, docker-compose.yml, Makefile, README.md, pyproject.toml."""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from aclserve_client.cli import build_parser
from aclserve_server.config import ENVIRONMENT_PREFIX, Option, add_arguments, options, options_table

ROOT = Path(__file__).resolve().parents[1]

NPU_DEVICES = {"/dev/davinci0", "/dev/davinci_manager", "/dev/devmm_svm", "/dev/hisi_hdc"}
"""The device nodes of one card, as the CANN install guide's chapter on containers lists them."""

NPU_MOUNTS = {
    "/usr/local/dcmi",
    "/usr/local/bin/npu-smi",
    "/usr/local/Ascend/driver/lib64",
    "/usr/local/Ascend/driver/version.info",
    "/etc/ascend_install.info",
}
"""What of the host's driver a container needs, from the same chapter."""

WORK = {"install", "proto", "release-protos", "check", "fix", "test", "test-contract", "fuzz", "image", "clean"}
BENCHES = {"bench", "bench-peers", "bench-standing", "chaos", "chaos-devices", "soak", "overload", "plan-validate"}
DEPLOY = {"deploy-tools", "manifests", "replicas-chaos", "plan-docs"}
KITS = {"test-clients", "client-go", "client-node", "client-java", "client-rust", "client-cpp"}
USE = {"help", "serve", "demo", "demo-video", "load", "protoset", "perf-analyzer", "compat-tools"}
TARGETS = WORK | BENCHES | DEPLOY | KITS | USE


def check_serve_command(words: list[str]) -> dict[str, str]:
    """Asserts that `aclserve` takes the words; returns the options given, by name. Folders need not exist here."""
    assert words[0] == "serve"
    parser = argparse.ArgumentParser(allow_abbrev=False, exit_on_error=False)
    add_arguments(parser)
    given = {name: text for name, text in vars(parser.parse_args(words[1:])).items() if text is not None}
    for option in options():
        if option.name in given:
            check_value(option, given[option.name])
    return given


def check_value(option: Option, text: str) -> None:
    if option.kind is not Path:
        assert option.accepts(option.parse(text)), f"{option.flag} {text}"


def check_environment(environment: dict[str, str]) -> None:
    by_name = {option.environment: option for option in options()}
    for name, text in environment.items():
        if name.startswith(ENVIRONMENT_PREFIX):
            assert name in by_name, name
            check_value(by_name[name], text)


@pytest.fixture(scope="module")
def readme() -> str:
    return (ROOT / "README.md").read_text(encoding="utf-8")


def make(*words: str) -> str:
    """What make prints, free of the settings of a make that may have started these tests."""
    environ = {name: text for name, text in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")}
    command = ["make", *words]
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True, env=environ).stdout


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    text = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
    defaults = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)
    services: dict[str, Any] = yaml.safe_load(defaults)["services"]
    return services


class TestCompose:
    def test_the_plain_service_runs_on_the_emulated_device(self, services: dict[str, Any]) -> None:
        service = services["aclserve"]
        assert "profiles" not in service
        given = check_serve_command(service["command"])
        check_environment(service["environment"])
        assert service["environment"]["ACLSERVE_ACL_LIBRARY"] == "emulator"
        assert not {"devices", "entrypoint"} & service.keys()
        assert f"./models:{given['model_repository']}:ro" in service["volumes"]

    def test_the_card_s_service_has_its_nodes_and_mounts(self, services: dict[str, Any]) -> None:
        service = services["npu"]
        assert service["profiles"] == ["npu"]
        given = check_serve_command(service["command"])
        check_environment(service["environment"])
        assert "acl_library" not in given
        assert "ACLSERVE_ACL_LIBRARY" not in service["environment"]
        assert set(service["devices"]) == NPU_DEVICES
        mounts = {tuple(volume.split(":")) for volume in service["volumes"]}
        assert {(path, path, "ro") for path in NPU_MOUNTS} <= mounts
        assert ("./models", given["model_repository"], "ro") in mounts
        assert "cann" in service["build"]["args"]["BASE_IMAGE"]

    def test_the_card_s_service_sets_cann_s_environment_first(self, services: dict[str, Any], tmp_path: Path) -> None:
        shell, flag, script, name = services["npu"]["entrypoint"]
        assert (shell, flag) == ("bash", "-c")
        root, seen = tmp_path / "cann", tmp_path / "seen"
        root.mkdir()
        (root / "set_env.sh").write_text("export ASCEND_OPP_PATH=here\n")
        program = tmp_path / "aclserve"
        program.write_text(f'#!/bin/sh\necho "$ASCEND_OPP_PATH $@" > {seen}\n')
        program.chmod(0o755)
        local = script.replace("$$", "$").replace("/usr/local/Ascend", str(tmp_path))
        command = [shell, flag, local, name, "serve", "--device", "0"]
        subprocess.run(command, check=True, env={"PATH": f"{tmp_path}:/usr/bin:/bin"})
        assert seen.read_text() == "here serve --device 0\n"

    def test_ports_are_published_on_loopback_only(self, services: dict[str, Any]) -> None:
        for name in ("aclserve", "npu"):
            given = check_serve_command(services[name]["command"])
            ports = [f"127.0.0.1:{given[port]}:{given[port]}" for port in ("port", "metrics_port")]
            assert services[name]["ports"] == ports
            assert given["host"] == "0.0.0.0"

    def test_stopping_leaves_time_to_drain(self, services: dict[str, Any]) -> None:
        drain_s = next(option for option in options() if option.name == "drain_timeout_s").default
        for name in ("aclserve", "npu"):
            assert int(services[name]["stop_grace_period"].removesuffix("s")) > drain_s

    def test_load_waits_for_a_healthy_service(self, services: dict[str, Any]) -> None:
        service = services["load"]
        assert service["profiles"] == ["load"]
        assert service["depends_on"] == {"aclserve": {"condition": "service_healthy"}}
        assert service["image"] == services["aclserve"]["image"]
        assert service["entrypoint"] == ["aclctl"]
        given = build_parser().parse_args(service["command"])
        assert given.address == f"aclserve:{check_serve_command(services['aclserve']['command'])['port']}"
        assert (ROOT / "models" / given.model).is_dir()


def instructions() -> list[tuple[str, str]]:
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    lines = (line.strip() for line in text.splitlines())
    return [
        (line.split(" ", 1)[0], line.split(" ", 1)[1].strip()) for line in lines if line and not line.startswith("#")
    ]


class TestDockerfile:
    def test_base_image_is_an_argument(self) -> None:
        assert instructions()[:2] == [("ARG", "BASE_IMAGE=python:3.11-slim"), ("FROM", "${BASE_IMAGE}")]

    def test_the_user_is_not_root_and_in_the_driver_s_group(self) -> None:
        found = instructions()
        users = [rest for word, rest in found if word == "USER"]
        assert users[-1] == "aclserve"
        assert ("ARG", "DRIVER_GID=1000") in found
        runs = " ".join(rest for word, rest in found if word == "RUN")
        assert "groupadd --gid ${DRIVER_GID} HwHiAiUser" in runs
        assert re.search(r"useradd .*--gid \$\{DRIVER_GID\} .*aclserve", runs)

    def test_it_starts_the_server_as_the_server_understands_it(self, services: dict[str, Any]) -> None:
        found = dict(instructions())
        assert json.loads(found["ENTRYPOINT"]) == ["aclserve"]
        given = check_serve_command(json.loads(found["CMD"]))
        assert given == {"host": "0.0.0.0", "insecure": "on", "model_repository": "/models"}
        ports = {str(option.default) for option in options() if option.name in ("port", "metrics_port")}
        assert set(found["EXPOSE"].split()) == ports
        assert found["STOPSIGNAL"] == "SIGTERM"

    def test_the_health_check_asks_the_default_metrics_port(self) -> None:
        port = next(option.default for option in options() if option.name == "metrics_port")
        assert f"http://127.0.0.1:{port}/readyz" in dict(instructions())["HEALTHCHECK"]

    def test_what_it_copies_exists_and_is_not_ignored(self) -> None:
        kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
        copied = {word for name, rest in instructions() if name == "COPY" for word in rest.split()[:-1]}
        assert copied == kept
        assert all((ROOT / name).exists() for name in copied)

    def test_it_installs_what_pyproject_offers(self) -> None:
        extras = re.search(r"'\.\[(.+)\]'", " ".join(rest for word, rest in instructions() if word == "RUN"))
        assert extras
        offered = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        assert set(extras[1].split(",")) <= offered.keys()


class TestMakefile:
    def test_help_is_the_default_and_lists_every_target(self) -> None:
        shown = make()
        assert {line.split()[0] for line in shown.splitlines()} == TARGETS
        assert all(len(line.split()) > 1 for line in shown.splitlines())

    @pytest.mark.parametrize("target", sorted(TARGETS))
    def test_every_script_of_a_target_exists(self, target: str) -> None:
        shown = make("-n", target)
        scripts = re.findall(r"python (?:-m )?([a-z_./]+)", shown)
        for script in scripts:
            if "." in script or "/" in script:
                path = script if script.endswith(".py") else script.replace(".", "/") + ".py"
                assert (ROOT / path).is_file(), f"make {target}: {path}"

    def test_serve_starts_as_the_server_understands_it(self) -> None:
        shown = make("-n", "serve")
        command = next(line for line in shown.splitlines() if "aclserve serve" in line)
        assert check_serve_command(command.split()[1:])["acl_library"] == "emulator"

    def test_the_continuous_integration_checks_and_tests(self) -> None:
        path = ROOT / ".ci/run"
        assert path.stat().st_mode & 0o111
        lines = path.read_text().splitlines()
        assert lines[0] == "#!/usr/bin/env bash"
        assert lines[-2:] == ["make check", "make test"]
        assert "set -euo pipefail" in lines


class TestReadme:
    def test_the_options_table_is_the_generated_one(self, readme: str) -> None:
        assert options_table() in readme

    def test_the_first_commands(self, readme: str) -> None:
        block = re.search(r"```sh\n(.*?)```", readme, re.DOTALL)
        assert block
        assert block[1].splitlines() == ["make demo", "make test"]

    def test_every_block_says_how_it_is_tested(self, readme: str) -> None:
        blocks = re.findall(r"(?:<!-- (.+?) -->\n)?```(\w*)\n", re.sub(r"```\n(?=\n|$)", "", readme))
        assert blocks
        for mark, _ in blocks:
            assert fnmatch.fnmatch(mark, "run: *") or fnmatch.fnmatch(mark, "not run: ?*"), mark

    def test_every_make_target_it_names_exists(self, readme: str) -> None:
        assert set(re.findall(r"\bmake ([a-z-]+)\b", readme)) <= TARGETS

    def test_every_file_it_links_exists(self, readme: str) -> None:
        links = [link for link in re.findall(r"\]\(([^)]+)\)", readme) if "://" not in link]
        assert links
        assert all((ROOT / link).exists() for link in links)


def test_a_client_install_stays_small() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = {re.split(r"[<>=!;\[ ]", need)[0] for need in project["dependencies"]}
    assert names == {"grpcio", "protobuf", "numpy", "googleapis-common-protos"}
    assert project["scripts"].keys() == {"aclserve", "aclctl"}


def test_stubs_are_made_by_one_version_of_the_generator() -> None:
    made_by = {
        version
        for path in (ROOT / "protos").rglob("*_pb2_grpc.py")
        for version in re.findall(r"GRPC_GENERATED_VERSION = '(.+)'", path.read_text())
    }
    wanted = re.search(r"^GRPCIO_TOOLS := (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert wanted
    assert made_by == {wanted[1]}
