"""A real recorder process for tests, and a wire for it to read."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading

from lab.base.paths import CHECKOUT
from lab.base.wait import wait_until
from lab.console.client import Console
from lab.console.config import RecorderConfig


class Wire:
    """The far end of a console: a TCP server that speaks to whoever is connected."""

    def __init__(self, port: int = 0) -> None:
        self._server = socket.create_server(("127.0.0.1", port))
        self.port: int = self._server.getsockname()[1]
        self.received = b""
        self.replies: dict[bytes, bytes] = {}  # what is typed -> what is printed
        self._links: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def say(self, data: bytes) -> None:
        wait_until(lambda: self._links, 10.0, "somebody reads the console", interval=0.01)
        self._links[-1].sendall(data)

    def drop(self) -> None:
        links, self._links = self._links, []
        for link in links:
            with contextlib.suppress(OSError):  # whoever read it may be gone already
                link.shutdown(socket.SHUT_RDWR)
            link.close()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)  # or a thread that waits in accept takes one more
        self._server.close()
        self.drop()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                link, _ = self._server.accept()
                self._links.append(link)
                threading.Thread(target=self._take, args=(link,), daemon=True).start()

    def _take(self, link: socket.socket) -> None:
        with contextlib.suppress(OSError), link:
            while data := link.recv(4096):
                self.received += data
                for typed, printed in self.replies.items():
                    if typed in data:
                        link.sendall(printed)
        with contextlib.suppress(ValueError):  # or what is said next goes to whoever is gone
            self._links.remove(link)


class Recording:
    """A recorder process, which can be started again."""

    def __init__(
        self, config: RecorderConfig, environment: dict[str, str] | None = None, module: str = "recorder"
    ) -> None:
        self.config, self._module = config, f"lab.console.{module}"
        self.ready = config.directory / f"{config.board}.ready"
        self.log = config.directory / f"{config.board}.jsonl"
        self._environment = {**os.environ, "PYTHONPATH": str(CHECKOUT), **(environment or {})}
        self.process: subprocess.Popen[bytes]

    def start(self) -> None:
        self.ready.unlink(missing_ok=True)
        path = self.config.directory / "recorder.json"
        self.config.write(path)
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", self._module, "--config", str(path)],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=self._environment,
        )
        process = self.process
        try:
            wait_until(lambda: self.ready.exists() or process.poll() is not None, 15.0, "ready", interval=0.02)
            assert process.poll() is None, process.communicate()[1].decode()
        except BaseException:
            if process.poll() is None:
                process.kill()
                process.communicate()
            raise

    def stop(self, how: signal.Signals = signal.SIGTERM) -> str:
        if self.process.poll() is None:
            self.process.send_signal(how)
        try:
            return self.process.communicate(timeout=20.0)[1].decode()
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.communicate()
            raise

    def console(self) -> Console:
        spec = self.config.console
        return Console(self.config.board, "127.0.0.1", spec.serve_port, spec.lines_port)

    def records(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in self.log.read_bytes().splitlines()]
