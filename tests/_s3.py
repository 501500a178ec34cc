"""An S3 service on loopback for tests, and a road to it that can be closed.

Run as a program it is the service: a process of its own, which says its address.
"""

from __future__ import annotations

import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from urllib.parse import urlsplit

KEYS = {
    "AWS_ACCESS_KEY_ID": "AKIDEXAMPLE",
    "AWS_SECRET_ACCESS_KEY": "s3cr3t-s3cr3t",
    "AWS_EC2_METADATA_DISABLED": "true",
}


@contextmanager
def service() -> Iterator[str]:
    """The service's URL; it ends with the block."""
    environment = {**os.environ, **KEYS}
    with subprocess.Popen(
        [sys.executable, __file__],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
        text=True,
    ) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.kill()


def let_in(url: str, actions: str) -> None:
    """How many requests the service answers before it looks at who asks."""
    request = urllib.request.Request(
        f"{url}/moto-api/reset-auth",
        data=actions.encode(),
        headers={"Content-Type": "text/plain"},
    )
    with urllib.request.urlopen(request):
        pass


class Road:
    """Passes connections on to the service: or closes, or resets them, or says 503."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._there = (parts.hostname, parts.port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.state = "open"
        self.refused = 0
        self.reopen_after: int | None = None
        """So many refusals, then it is open again."""
        self.heads: list[bytes] = []
        """What requests began with."""
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(
                    target=self._serve, args=(client,), daemon=True
                ).start()

    def _serve(self, client: socket.socket) -> None:
        with closing(client), suppress(OSError):
            # One request for each connection, so that each meets the state.
            head = b""
            while b"\r\n\r\n" not in head:
                piece = client.recv(65536)
                if not piece:
                    return
                head += piece
            if self.state != "open":
                self.refused += 1
                if self.refused == self.reopen_after:
                    self.state = "open"
                    return
                if self.state == "503":
                    client.sendall(
                        b"HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\n"
                        b"Connection: close\r\n\r\n"
                    )
                elif self.state == "reset":
                    linger = struct.pack("ii", 1, 0)
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                return
            self.heads.append(head)
            head = head.replace(b"\r\n", b"\r\nconnection: close\r\n", 1)
            with closing(socket.create_connection(self._there)) as server:
                server.sendall(head)
                back = threading.Thread(
                    target=_pump, args=(client, server), daemon=True
                )
                back.start()
                _pump(server, client)


def _pump(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while piece := source.recv(65536):
            target.sendall(piece)


if __name__ == "__main__":
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    print("http://{}:{}".format(*server.get_host_and_port()), flush=True)
    signal.pause()
