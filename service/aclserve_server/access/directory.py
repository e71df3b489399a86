"""The file of principals: hashed tokens, certificates, groups and quotas, read again whenever it changes.

    [principals.camera-7]
    tokens = ["sha256:<64 hexadecimal digits>"]
    certificates = ["CN=camera-7", "URI=spiffe://plant/camera-7", "DNS=camera-7.plant"]
    groups = ["infer"]
    max_streams = 4

A token is 32 random bytes, so one SHA-256 of it is enough: slow hashes and salt protect what people can guess. Who
reads the file cannot make a token from it. A token is found by its digest in a table; how long that takes tells
nothing, since nobody can choose digests.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re
import secrets
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

from aclserve.errors import Unauthenticated
from aclserve_server.access.principal import GROUPS, Principal, Quotas

log = logging.getLogger(__name__)

MAX_FILE_BYTES = 16 << 20
MAX_TOKEN_CHARACTERS = 512
POLL_S = 1.0
"""Time between two looks at the file."""

TOKEN_BYTES = 32
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@:/-]{0,127}")
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")
_CERTIFICATE = re.compile(r"(CN|URI|DNS)=(\S.{0,1022})")
_SCHEME = "bearer "
_LISTS = ("tokens", "certificates", "groups")


class FileError(Exception):
    """A file of principals that cannot be used, in words for the operator."""


def make_token() -> str:
    """A new token."""
    return secrets.token_urlsafe(TOKEN_BYTES)


def entry(name: str, token: str, groups: Iterable[str]) -> str:
    """What the file says of a principal with one token. Raises `FileError` for a name or a group that cannot be."""
    granted = ", ".join(f'"{group}"' for group in groups)
    text = f'[principals."{name}"]\ntokens = ["sha256:{_digest(token).hex()}"]\ngroups = [{granted}]\n'
    _check_name(name)
    _read(text)
    return text


class Directory:
    """The principals of a file. Event loop only; `check` reads the file again when it is another one."""

    def __init__(self, path: Path) -> None:
        """Reads the file; raises `FileError`."""
        self._path = path
        self._principals: dict[str, Principal] = {}
        self._by_digest: dict[bytes, Principal] = {}
        self._by_certificate: dict[str, Principal] = {}
        self.has_certificates = False
        self._seen: object = _identity(path)
        self._take(_load(path))

    @property
    def names(self) -> tuple[str, ...]:
        """The principals that are known."""
        return tuple(self._principals)

    def check(self) -> bool:
        """Reads the file again when it has changed: True. One that cannot be used is told of, once, and changes
        nothing.
        """
        seen = _identity(self._path)
        if seen == self._seen:
            return False
        self._seen = seen
        try:
            self._take(_load(self._path))
        except FileError as error:
            log.warning("the file of principals stays as it was: %s", error)
            return False
        log.info("read the file of principals again: %d principals", len(self._principals))
        return True

    async def follow(self) -> None:
        """Checks again and again, until it is cancelled."""
        while True:
            await asyncio.sleep(POLL_S)
            self.check()

    def by_authorization(self, value: object) -> Principal:
        """The principal of an `authorization` header; raises Unauthenticated, TOKEN_UNKNOWN."""
        if isinstance(value, str) and value[: len(_SCHEME)].lower() == _SCHEME:
            token = value[len(_SCHEME) :].strip()
            if len(token) <= MAX_TOKEN_CHARACTERS:
                found = self._by_digest.get(_digest(token))
                if found is not None:
                    return found
        raise Unauthenticated(
            "the server does not know this token; send `authorization: Bearer TOKEN` with one that it was given",
            reason="TOKEN_UNKNOWN",
        )

    def by_certificate(self, names: Iterable[str]) -> Principal:
        """The principal of a verified client certificate, by its names in the file's spelling.

        Raises Unauthenticated: CERTIFICATE_UNKNOWN, or TOKEN_MISSING without names.
        """
        shown = False
        for name in names:
            shown = True
            found = self._by_certificate.get(name)
            if found is not None:
                return found
        if shown and self.has_certificates:
            raise Unauthenticated(
                "the server knows no principal of this client certificate; send a token, or ask to be added",
                reason="CERTIFICATE_UNKNOWN",
            )
        raise token_missing()

    def _take(self, found: Mapping[str, _Entry]) -> None:
        kept: dict[str, Principal] = {}
        self._by_digest, self._by_certificate = {}, {}
        for name, one in found.items():
            principal = kept[name] = self._principals.get(name) or Principal(name)
            principal.groups, principal.quotas = one.groups, one.quotas
            self._by_digest.update(dict.fromkeys(one.digests, principal))
            self._by_certificate.update(dict.fromkeys(one.certificates, principal))
        for name, principal in self._principals.items():
            principal.known = name in kept
        self._principals = kept
        self.has_certificates = bool(self._by_certificate)


def open_directory(path: str) -> Directory:
    """The principals of a file; raises OSError with words for the operator."""
    try:
        return Directory(Path(path))
    except FileError as error:
        raise OSError(f"--principals: {error}") from error


def token_missing() -> Unauthenticated:
    """The answer to who shows nothing."""
    return Unauthenticated(
        "this server wants to know who calls: send the metadata `authorization: Bearer TOKEN`", reason="TOKEN_MISSING"
    )


class _Entry:
    """What the file says of one principal."""

    def __init__(self, name: str, values: Any) -> None:
        if not isinstance(values, dict):
            raise FileError(f"principal {name!r}: expected a table, [principals.{name}]")
        kinds = {field.name for field in fields(Quotas)}
        unknown = sorted(set(values) - kinds - set(_LISTS))
        if unknown:
            raise FileError(f"principal {name!r}: {unknown[0]!r} is unknown; expected {', '.join((*_LISTS, *kinds))}")
        self.digests = [bytes.fromhex(found) for found in _matches(name, values, "tokens", _DIGEST, "sha256:HEX", 1)]
        self.certificates = _matches(name, values, "certificates", _CERTIFICATE, "CN=, URI= or DNS=", 0)
        self.groups = frozenset(_matches(name, values, "groups", re.compile("|".join(GROUPS)), ", ".join(GROUPS), 0))
        quotas: dict[str, Any] = {key: _quota(name, key, values[key]) for key in kinds & set(values)}
        self.quotas = Quotas(**quotas)


def _load(path: Path) -> dict[str, _Entry]:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise FileError(f"{path} cannot be read: {error.strerror or error}") from error
    if len(data) > MAX_FILE_BYTES:
        raise FileError(f"{path} has more than {MAX_FILE_BYTES} bytes")
    try:
        return _read(data.decode())
    except (FileError, UnicodeDecodeError) as error:
        raise FileError(f"{path}: {error}") from error


def _read(text: str) -> dict[str, _Entry]:
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise FileError(f"no TOML: {error}") from error
    listed = document.pop("principals", {})
    if document or not isinstance(listed, dict):
        raise FileError("expected tables [principals.NAME], and nothing else")
    for name in listed:
        _check_name(name)
    found = {name: _Entry(name, values) for name, values in listed.items()}
    for what in ("digests", "certificates"):
        owners: dict[object, str] = {}
        for name, one in found.items():
            for key in getattr(one, what):
                if owners.setdefault(key, name) != name:
                    raise FileError(f"principals {owners[key]!r} and {name!r} have one of their {what} in common")
    return found


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise FileError(f"{name[:200]!r} is no principal's name; expected 1 to 128 of letters, digits and _.@:/-")


def _matches(name: str, values: Any, key: str, pattern: re.Pattern[str], expected: str, group: int) -> list[str]:
    listed = values.get(key, [])
    if not isinstance(listed, list):
        raise FileError(f"principal {name!r}: {key}: expected a list")
    found = []
    for position, text in enumerate(listed):
        match = pattern.fullmatch(text) if isinstance(text, str) else None
        if match is None:  # what stands there may be a token by mistake, and is not repeated
            raise FileError(f"principal {name!r}: {key}: entry {position + 1} cannot be used; expected {expected}")
        found.append(match[group])
    return found


def _quota(name: str, key: str, value: object) -> int | float:
    kinds = get_args(get_type_hints(Quotas)[key])
    fits = isinstance(value, int) or (float in kinds and isinstance(value, float))
    if isinstance(value, bool) or not fits or not 0 <= value < float("inf"):  # type: ignore[operator]
        raise FileError(f"principal {name!r}: {key}: got {value!r}, expected a number, 0 or more")
    if float in kinds and not value:
        raise FileError(f"principal {name!r}: {key}: got 0, expected more; to lock somebody out, grant no groups")
    return value  # type: ignore[return-value]


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()


def _identity(path: Path) -> object:
    """Which file it is; None where there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
