"""Certificates that openssl makes, and what a new connection is shown."""

from __future__ import annotations

import socket
import ssl
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

TIMEOUT_S = 30


@dataclass(frozen=True)
class Files:
    """Certificates of one authority."""

    folder: Path

    def make(self, name: str, extra: str = "subjectAltName=IP:127.0.0.1") -> None:
        command = f"openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN={name}"
        command += f" -keyout {name}.key -out {name}.pem"
        if name != "ca":
            command += f" -CA ca.pem -CAkey ca.key -addext basicConstraints=critical,CA:FALSE -addext {extra}"
        subprocess.run(command.split(), check=True, capture_output=True, cwd=self.folder, timeout=60)

    def path(self, name: str) -> str:
        return str(self.folder / name)

    def read(self, name: str) -> bytes:
        return (self.folder / name).read_bytes()

    def credentials(self, client: str = "") -> grpc.ChannelCredentials:
        if client:
            return grpc.ssl_channel_credentials(
                self.read("ca.pem"), self.read(f"{client}.key"), self.read(f"{client}.pem")
            )
        return grpc.ssl_channel_credentials(self.read("ca.pem"))


def peer_name(address: str, files: Files) -> str:
    """Whose certificate a new connection sees."""
    context = ssl.create_default_context(cafile=files.path("ca.pem"))
    context.set_alpn_protocols(["h2"])
    host, port = address.split(":")
    with (
        socket.create_connection((host, int(port)), TIMEOUT_S) as plain,
        context.wrap_socket(plain, server_hostname=host) as secure,
    ):
        subject: Any = secure.getpeercert()
        return str(dict(part[0] for part in subject["subject"])["commonName"])
