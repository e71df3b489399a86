"""Options: parsing, precedence, limits, all errors together, and what is derived from the declarations."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import pytest

from aclserve_server.config import Config, ConfigError, Option, add_arguments, options, options_table

OTHER = {
    "acl_library": "emulator",
    "model_control_mode": "explicit",
    "load_model": "digits,*",
    "repository_poll_s": "2.5",
    "strict_config": "on",
    "host": "::1",
    "port": "0",
    "metrics_port": "9000",
    "unix_socket": "aclserve.sock",
    "tls_cert": "server.pem",
    "tls_key": "server.key",
    "tls_client_ca": "clients.pem",
    "principals": "principals.toml",
    "insecure": "on",
    "remote_admin": "on",
    "health_port": "9003",
    "replica": "replica-2",
    "device": "3",
    "devices": "0-2,5",
    "worker_port": "9100",
    "restart_limit": "2",
    "restart_backoff_s": "0.25",
    "restart_reset_s": "90",
    "log_level": "debug",
    "log_format": "json",
    "triton_metrics": "on",
    "tracing": "on",
    "profile": "profile.html",
    "device_timeout_s": "2.5",
    "drain_timeout_s": "1.5",
    "max_message_bytes": "1MiB",
    "max_queue_rows": "5",
    "max_stream_items": "6",
    "max_stream_bytes": "131072",
    "max_stream_rows": "3",
    "max_queue_delay_us": "700",
    "slots": "4",
    "slot_budget_bytes": "2kib",
    "pack_inline_bytes": "0",
    "max_leases": "9",
    "max_lease_device_bytes": "10",
    "max_lease_host_bytes": "2GiB",
    "max_lease_ttl_s": "12",
    "max_upload_bytes": "2147483648",
    "system_shared_memory": "on",
    "map_shared_memory": "off",
    "max_regions": "7",
    "emulator_run_mode": "host",
    "emulator_memory_bytes": "1 GiB",
    "emulator_threads": "2",
    "emulator_profile": "9.1",
}
"""A value other than the default for every option but the model repository."""


@pytest.fixture
def repository(tmp_path: Path) -> list[str]:
    return ["--model-repository", str(tmp_path)]


def by_name(name: str) -> Option:
    return next(option for option in options() if option.name == name)


def expected(name: str) -> object:
    special = {"1MiB": 1 << 20, "2kib": 2048, "2GiB": 2 << 30, "1 GiB": 1 << 30, "on": True, "off": False}
    text, kind = OTHER[name], by_name(name).kind
    if kind is str:
        return text
    if kind is tuple:
        return tuple(text.split(","))
    return special[text] if text in special else kind(text)


def test_defaults(repository: list[str], tmp_path: Path) -> None:
    config = Config.from_args(repository, {})
    assert config == Config(model_repository=tmp_path)
    assert (config.acl_library, config.host, config.port, config.metrics_port) == ("", "127.0.0.1", 8001, 8002)
    assert not config.emulated


def test_every_option_has_another_value_here() -> None:
    assert {option.name for option in options()} == {*OTHER, "model_repository"}


@pytest.mark.parametrize("name", OTHER)
def test_flag_and_environment(name: str, repository: list[str]) -> None:
    option = by_name(name)
    # An upload must fit into a lease, and only clients' own control knows models to load at the start.
    needs = {
        "tls_cert": "--tls-key=k",
        "tls_key": "--tls-cert=c",
        "tls_client_ca": "--tls-cert=c --tls-key=k",
        "max_upload_bytes": "--max-lease-host-bytes=4GiB",
        "load_model": "--model-control-mode=explicit",
        "worker_port": "--devices=0-2",
    }
    base = [*repository, *needs[name].split()] if name in needs else repository
    by_flag = Config.from_args([*base, option.flag, OTHER[name]], {})
    by_environment = Config.from_args(base, {option.environment: OTHER[name]})
    assert getattr(by_flag, name) == expected(name) != option.default
    assert by_flag == by_environment
    assert type(getattr(by_flag, name)) is option.kind


def test_flag_wins_over_environment_and_empty_twin_is_unset(repository: list[str]) -> None:
    environ = {"ACLSERVE_PORT": "1000", "ACLSERVE_METRICS_PORT": "", "ACLSERVE_DEVICE": "2"}
    config = Config.from_args([*repository, "--port", "2000"], environ)
    assert (config.port, config.metrics_port, config.device) == (2000, 8002, 2)


def test_emulated(repository: list[str]) -> None:
    assert Config.from_args([*repository, "--acl-library", "emulator"], {}).emulated


def test_all_problems_come_together(tmp_path: Path) -> None:
    arguments = ["--port", "x", "--slots", "99", "--host", "a b", "--model-repository", str(tmp_path / "none")]
    environ = {"ACLSERVE_DEVICE": "-1", "ACLSERVE_MAX_UPLOAD_BYTES": "3TB", "ACLSERVE_EMULATOR_PROFILE": "7"}
    with pytest.raises(ConfigError) as caught:
        Config.from_args(arguments, environ)
    assert list(caught.value.problems) == [
        f"--model-repository: got {str(tmp_path / 'none')!r}, expected an existing folder: create it, or name another "
        "with --model-repository",
        "--port: got 'x', expected a whole number from 0 to 65535: the default is '8001'",
        "ACLSERVE_DEVICE: got '-1', expected a whole number from 0 to 65535: the default is '0'",
        "--slots: got '99', expected a whole number from 1 to 16: the default is '2'",
        "ACLSERVE_MAX_UPLOAD_BYTES: got '3TB', expected a whole number of bytes, at least 1: the default is '1GiB'",
        "ACLSERVE_EMULATOR_PROFILE: got '7', expected one of 8.1, 8.5, 9.1: the default is '8.1'",
        "--host: got 'a b', expected an IP address or a host name: give 127.0.0.1 or 0.0.0.0",
    ]
    assert str(caught.value).splitlines() == list(caught.value.problems)


def test_conflicts(repository: list[str]) -> None:
    arguments = [*repository, "--port", "9", "--metrics-port", "9", "--max-lease-host-bytes", "4MiB"]
    with pytest.raises(ConfigError) as caught:
        Config.from_args(arguments, {})
    assert [problem.partition(":")[0] for problem in caught.value.problems] == ["--metrics-port", "--max-upload-bytes"]


def test_two_free_ports_do_not_conflict(repository: list[str]) -> None:
    config = Config.from_args([*repository, "--port", "0", "--metrics-port", "0"], {})
    assert (config.port, config.metrics_port) == (0, 0)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("port", "1e3"),
        ("port", "65536"),
        ("port", "1_000"),
        ("drain_timeout_s", "nan"),
        ("drain_timeout_s", "inf"),
        ("drain_timeout_s", "-1"),
        ("max_message_bytes", "2GiB"),
        ("max_message_bytes", "-1"),
        ("max_message_bytes", "64M"),
        ("log_level", "INFO"),
    ],
)
def test_refused(name: str, value: str, repository: list[str]) -> None:
    with pytest.raises(ConfigError, match=f"^{by_name(name).flag}: got '{value}', expected "):
        Config.from_args([*repository, by_name(name).flag, value], {})


def test_made_in_code_is_checked_too(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--slots: got '0'"):
        Config(model_repository=tmp_path, slots=0)
    with pytest.raises(ConfigError, match="--port: got 'on'"):
        Config(model_repository=tmp_path, port=True)
    with pytest.raises(ConfigError, match=r"--max-upload-bytes: got '1\.5'"):
        Config(model_repository=tmp_path, max_upload_bytes=1.5)  # type: ignore[arg-type]


def test_frozen(tmp_path: Path) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config(model_repository=tmp_path).port = 1  # type: ignore[misc]


def test_abbreviated_and_unknown_flags_are_refused(repository: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--por", "1"], ["--ports", "1"]):
        with pytest.raises(SystemExit):
            Config.from_args([*repository, *arguments], {})
    assert "unrecognized arguments" in capsys.readouterr().err


def test_units_are_in_the_names() -> None:
    suffixes = {
        "bytes": "_bytes",
        "rows": "_rows",
        "items": "_items",
        "microseconds": "_us",
        "seconds": "_s",
        "threads": "_threads",
    }
    for option in options():
        assert not option.unit or option.name.endswith(suffixes[option.unit]), option.name


def test_a_shown_default_parses_to_itself(tmp_path: Path) -> None:
    for option in options():
        assert option.parse(option.show(option.default)) == option.default


def test_help_and_table_name_every_option() -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    words = parser.format_help().split()
    table = options_table().splitlines()
    assert len(table) == 2 + len(options())
    for option, line in zip(options(), table[2:], strict=True):
        assert option.flag in words
        assert option.environment in " ".join(words)
        assert line.startswith(f"| `{option.flag}` | `{option.environment}` | ")
        assert line.replace("\\|", "").count("|") == 6


def test_a_switch_needs_no_value_and_takes_one(repository: list[str]) -> None:
    flag = "--system-shared-memory"
    assert Config.from_args([*repository, flag], {}).system_shared_memory
    assert not Config.from_args(
        [*repository, flag, "off"], {"ACLSERVE_SYSTEM_SHARED_MEMORY": "on"}
    ).system_shared_memory
    with pytest.raises(ConfigError, match="got 'perhaps', expected on or off"):
        Config.from_args([*repository, flag, "perhaps"], {})


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.1.2.3", "server.plant"])
def test_a_public_address_needs_tls_or_a_word(host: str, repository: list[str]) -> None:
    with pytest.raises(ConfigError, match=f"^--host: got '{host}' without TLS, expected the loopback"):
        Config.from_args([*repository, "--host", host], {})
    for more in (["--insecure"], ["--tls-cert=c", "--tls-key=k"]):
        assert Config.from_args([*repository, "--host", host, *more], {}).host == host


@pytest.mark.parametrize("name", ["a.b", "a b", "\u00e4", "x" * 64, "-\n"])
def test_a_replica_has_a_simple_name(name: str, repository: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"^--replica: got "):
        Config.from_args([*repository, f"--replica={name}"], {})
    assert Config.from_args([*repository, "--replica", "x" * 63], {}).replica == "x" * 63


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_the_loopback_needs_none(host: str, repository: list[str]) -> None:
    assert Config.from_args([*repository, "--host", host], {}).host == host


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--tls-cert=c"], "--tls-cert"),
        (["--tls-key=k"], "--tls-key"),
        (["--tls-client-ca=a"], "--tls-client-ca"),
        (["--health-port=9", "--port=9"], "--health-port"),
    ],
)
def test_tls_files_and_ports_go_together(flags: list[str], named: str, repository: list[str]) -> None:
    with pytest.raises(ConfigError, match=f"^{named}: got "):
        Config.from_args([*repository, *flags], {})


def test_flags_make_the_same_again(repository: list[str], tmp_path: Path) -> None:
    together = {name: text for name, text in OTHER.items() if name not in ("device", "devices", "worker_port")}
    config = Config.from_args([*repository, *(f"{by_name(name).flag}={text}" for name, text in together.items())], {})
    config = dataclasses.replace(config, drain_timeout_s=1 / 3, max_lease_device_bytes=1025)
    assert Config.from_args(config.flags(), {"ACLSERVE_DEVICES": ""}) == config
    assert Config(model_repository=tmp_path).flags() == [f"--model-repository={tmp_path}"]


@pytest.mark.parametrize(
    ("text", "found"),
    [("0-3", (0, 1, 2, 3)), ("5", (5,)), ("4-5,0,2-2", (0, 2, 4, 5)), ("65535", (65535,)), ("0-63", tuple(range(64)))],
)
def test_devices(text: str, found: tuple[int, ...], repository: list[str]) -> None:
    assert Config.from_args([*repository, "--devices", text], {}).device_numbers == found


@pytest.mark.parametrize("text", ["0-64", "3-1", "0,0", "1-3,2", "a", "-1", "1-", "0x1", "65536", "²", "0-9999999999"])
def test_devices_refused(text: str, repository: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"^--devices: got .*, expected numbers and ranges"):
        Config.from_args([*repository, f"--devices={text},7"], {})


@pytest.mark.parametrize("number", ["0", "3"])
@pytest.mark.parametrize("twin", [False, True])
def test_device_and_devices_do_not_go_together(number: str, twin: bool, repository: list[str]) -> None:
    flags, environ = (["--device", number], {}) if not twin else ([], {"ACLSERVE_DEVICE": number})
    with pytest.raises(ConfigError, match=f"^--device: got {number} beside --devices") as caught:
        Config.from_args([*repository, "--devices", "0-1", *flags], environ)
    assert len(caught.value.problems) == 1


@pytest.mark.parametrize(
    "flags",
    [
        ["--worker-port=9000"],
        ["--devices=0-3", "--worker-port=65533"],
        ["--devices=0-3", "--worker-port=7998"],
        ["--devices=2,3", "--worker-port=9000", "--health-port=9003"],
    ],
)
def test_workers_ports_must_fit(flags: list[str], repository: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"^--worker-port: got "):
        Config.from_args([*repository, *flags], {})
    assert Config.from_args([*repository, "--devices=3-9", "--worker-port=8000"], {}).worker_port == 8000
