"""A camera of the tests: answers one RTSP client and sends it H.264 in RTP packets on the same TCP connection.

PyAV makes the packets; they go through a UDP socket of this process, one picture at a time, so that none is lost.
"""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from typing import Any

import av
import numpy as np

SDP = """v=0
o=- 0 0 IN IP4 127.0.0.1
s=camera
c=IN IP4 127.0.0.1
t=0 0
m=video 0 RTP/AVP 96
a=rtpmap:96 H264/90000
a=fmtp:96 packetization-mode=1
a=control:track1
""".replace("\n", "\r\n")


def _datagrams() -> socket.socket:
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    made.bind(("127.0.0.1", 0))
    made.settimeout(30)
    return made


class Camera:
    """Serves `pictures` (uint8 RGB, 25 a second) to the first client; then says goodbye. Use it in `with`."""

    def __init__(self, pictures: list[np.ndarray[Any, Any]]) -> None:
        self.pictures = pictures
        self.requests: list[str] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(30)
        self.address = f"rtsp://127.0.0.1:{self._listener.getsockname()[1]}/live"
        self._thread = threading.Thread(target=self._serve, name="camera")

    def __enter__(self) -> Camera:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.join()
        self._listener.close()

    def _serve(self) -> None:
        connection, _ = self._listener.accept()
        connection.settimeout(30)
        with connection, connection.makefile("rb") as lines:
            while self._answer(connection, lines):
                pass
            self._play(connection)
            connection.shutdown(socket.SHUT_WR)
            with suppress(OSError):
                lines.read()  # what the client reports; closing before that would take back what it has not read

    def _answer(self, connection: socket.socket, lines: Any) -> bool:
        """Answers one request; False after PLAY."""
        method, *_ = lines.readline().decode().split()
        headers = {}
        while line := lines.readline().decode().strip():
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        self.requests.append(method)
        fields, body = {"CSeq": headers["cseq"], "Session": "1"}, ""
        if method == "OPTIONS":
            fields["Public"] = "OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN"
        elif method == "DESCRIBE":
            fields["Content-Type"], body = "application/sdp", SDP
        elif method == "SETUP":
            assert "RTP/AVP/TCP" in headers["transport"], headers
            fields["Transport"] = "RTP/AVP/TCP;unicast;interleaved=0-1"
        fields["Content-Length"] = str(len(body))
        head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        connection.sendall(f"RTSP/1.0 200 OK\r\n{head}\r\n{body}".encode())
        return method != "PLAY"

    def _play(self, connection: socket.socket) -> None:
        with _datagrams() as packets, _datagrams() as reports:
            port, report_port = packets.getsockname()[1], reports.getsockname()[1]
            with av.open(f"rtp://127.0.0.1:{port}?rtcpport={report_port}", "w", format="rtp") as container:
                stream: Any = container.add_stream(
                    "libx264", 25, options={"tune": "zerolatency", "preset": "ultrafast"}
                )
                stream.height, stream.width = self.pictures[0].shape[:2]
                stream.pix_fmt = "yuv420p"
                for picture in self.pictures:
                    for packet in stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")):
                        container.mux(packet)
                        self._relay(packets, connection)

    @staticmethod
    def _relay(packets: socket.socket, connection: socket.socket) -> None:
        """Sends on the packets of one picture; the last one has the marker bit."""
        last = False
        while not last:
            packet = packets.recv(65536)
            last = bool(packet[1] & 0x80)
            connection.sendall(b"$\0" + len(packet).to_bytes(2, "big") + packet)
