"""The file of principals, tokens and quotas, without a server."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from aclserve.errors import PermissionDenied, ResourceExhausted, Unauthenticated
from aclserve_server import cli
from aclserve_server.access.directory import Directory, FileError, entry, make_token
from aclserve_server.access.groups import METHODS
from aclserve_server.access.principal import ANYONE, CURRENT, GROUPS, OPEN, Principal, Quotas, scoped

TOKEN = make_token()
DIGEST = hashlib.sha256(TOKEN.encode()).hexdigest()


def directory(tmp_path: Path, text: str) -> Directory:
    path = tmp_path / "principals.toml"
    path.write_text(text)
    return Directory(path)


def test_a_token_s_entry_holds_no_token_and_reads_back(tmp_path: Path) -> None:
    text = entry("camera-7", TOKEN, ["infer", "memory"])
    assert TOKEN not in text
    found = directory(tmp_path, text).by_authorization(f"bearer  {TOKEN} ")
    assert (found.name, found.groups, found.quotas) == ("camera-7", {"infer", "memory"}, Quotas())
    assert make_token() != make_token()
    assert len(TOKEN) >= 43


@pytest.mark.parametrize(
    "shown", ["", "Bearer", "Bearer ", f"Basic {TOKEN}", TOKEN, f"Bearer {TOKEN}x", b"Bearer x", 7]
)
def test_what_is_no_known_token(tmp_path: Path, shown: Any) -> None:
    with pytest.raises(Unauthenticated) as caught:
        directory(tmp_path, entry("a", TOKEN, [])).by_authorization(shown)
    assert caught.value.reason == "TOKEN_UNKNOWN"
    assert TOKEN not in str(caught.value)


def test_certificates(tmp_path: Path) -> None:
    found = directory(tmp_path, '[principals.a]\ncertificates = ["CN=a", "URI=spiffe://x/a"]\n')
    assert found.by_certificate(["CN=other", "URI=spiffe://x/a"]).name == "a"
    for names, reason in (([], "TOKEN_MISSING"), (["DNS=a"], "CERTIFICATE_UNKNOWN")):
        with pytest.raises(Unauthenticated) as caught:
            found.by_certificate(names)
        assert caught.value.reason == reason


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[principals.a", "no TOML"),
        ("other = 1", "and nothing else"),
        ("principals = 1", "expected tables"),
        ("[principals]\na = 1", "expected a table"),
        ('[principals."a b"]', "no principal's name"),
        ("[principals.a]\nmax_stream = 1", "'max_stream' is unknown; expected tokens"),
        ("[principals.a]\ntokens = 1", "tokens: expected a list"),
        (f'[principals.a]\ntokens = ["{TOKEN}"]', "tokens: entry 1 cannot be used; expected sha256:HEX"),
        ('[principals.a]\ncertificates = ["a"]', "expected CN=, URI= or DNS="),
        ('[principals.a]\ngroups = ["root"]', "expected infer, memory, admin"),
        ("[principals.a]\nmax_streams = -1", "max_streams: got -1"),
        ("[principals.a]\nmax_streams = true", "max_streams: got True"),
        ("[principals.a]\nmax_items = 1.5", "max_items: got 1.5"),
        ("[principals.a]\nmax_requests_per_s = inf", "max_requests_per_s: got inf"),
        ("[principals.a]\nmax_requests_per_s = 0", "grant no groups"),
        (entry("a", TOKEN, []) + entry("b", TOKEN, []), "'a' and 'b' have one of their digests in common"),
    ],
)
def test_a_file_that_cannot_be_used(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(FileError) as caught:
        directory(tmp_path, text)
    assert words in str(caught.value)
    assert TOKEN not in str(caught.value)


def test_a_change_is_followed_and_a_broken_one_is_not(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    found = directory(tmp_path, entry("a", TOKEN, ["infer"]))
    path, header = tmp_path / "principals.toml", f"Bearer {TOKEN}"
    principal = found.by_authorization(header)
    principal.take_items(2)
    assert not found.check()
    path.write_text(f'[principals.a]\ntokens = ["{TOKEN}"]')
    assert not found.check()
    assert not found.check()
    assert caplog.text.count("stays as it was") == 1
    assert TOKEN not in caplog.text
    path.unlink()
    assert not found.check()
    assert found.by_authorization(header) is principal
    path.write_text(entry("a", TOKEN, ["infer", "admin"]) + "max_items = 3\n")
    assert found.check()
    assert found.by_authorization(header) is principal
    assert (principal.items, principal.groups) == (2, {"infer", "admin"})
    with pytest.raises(ResourceExhausted):
        principal.take_items(2)
    path.write_text(entry("b", TOKEN, []))
    assert found.check()
    assert found.names == ("b",)
    with pytest.raises(Unauthenticated):
        principal.take_items(1)


def test_the_rate_allows_one_second_at_once_and_then_refills() -> None:
    principal = Principal("a", quotas=Quotas(max_requests_per_s=2.0))
    for now, allowed in ((10.0, True), (10.0, True), (10.0, False), (10.4, False), (10.5, True), (99.0, True)):
        if allowed:
            principal.take_request(now)
        else:
            with pytest.raises(ResourceExhausted) as caught:
                principal.take_request(now)
            assert caught.value.reason == "QUOTA_EXCEEDED"
            assert caught.value.retry_delay == pytest.approx(10.5 - now)
    principal.take_request(99.0)
    with pytest.raises(ResourceExhausted):
        principal.take_request(99.0)


@pytest.mark.parametrize("take", ["take_stream", "take_items", "take_lease"])
def test_counted_quotas(take: str) -> None:
    principal = Principal("a", quotas=Quotas(max_streams=2, max_items=2, max_leases=2))
    arguments = () if take == "take_stream" else (1,)
    for _ in range(2):
        getattr(principal, take)(*arguments)
    with pytest.raises(ResourceExhausted) as caught:
        getattr(principal, take)(*arguments)
    assert caught.value.retry_delay
    assert (principal.streams, principal.items, principal.leases).count(2) == 1


def test_groups() -> None:
    principal = Principal("a", frozenset({"infer"}))
    principal.check_group("infer")
    principal.check_group(ANYONE)
    with pytest.raises(PermissionDenied, match="it has infer"):
        principal.check_group("admin")
    assert {group for methods in METHODS.values() for group in methods.values()} <= {*GROUPS, ANYONE, OPEN}


def test_what_has_no_owner_is_the_caller_s() -> None:
    assert (scoped(""), scoped("lease")) == ("", "lease")
    token = CURRENT.set(Principal("a"))
    try:
        assert (scoped(""), scoped("lease")) == ("@a", "lease")
    finally:
        CURRENT.reset(token)


def test_the_command_makes_what_the_server_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["token", "ops", "--group", "admin", "--group", "infer"]) == 0
    shown = capsys.readouterr()
    token = shown.err.split()[-1]
    assert token not in shown.out
    found = directory(tmp_path, shown.out).by_authorization(f"Bearer {token}")
    assert (found.name, found.groups) == ("ops", {"admin", "infer"})
    assert cli.main(["token", "two words"]) == cli.EXIT_USAGE
