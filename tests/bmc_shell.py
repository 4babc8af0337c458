"""A BMC's command line behind SSH (asyncssh), from which a word leads to a serial line. Run by test_ssh_console.py.

Arguments: port, host key, the line's device. The environment has the user's password as PASSWORD, and as WORD what
must be typed to get at the line; none: the session is the line, as on port 2200 of OpenBMC. With OLD the BMC is one
of 2012, and offers nothing that OpenSSH still uses by itself. TAKEN is the answer to the word where the line is not to
be had; its prompt follows. It says each attempt to log in on its standard output.
"""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Any

import asyncssh


class Server(asyncssh.SSHServer):
    def __init__(self, device: str) -> None:
        self._device = device

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        self._connection = conn

    def begin_auth(self, username: str) -> bool:
        return True

    def password_auth_supported(self) -> bool:
        return True

    def validate_password(self, username: str, password: str) -> bool:
        sys.stdout.write(f"login {username}\n")
        sys.stdout.flush()
        return (username, password) == ("lab", os.environ["PASSWORD"])

    def session_requested(self) -> tuple[asyncssh.SSHServerChannel[bytes], Session]:
        return self._connection.create_server_channel(encoding=None), Session(self._device)


class Session(asyncssh.SSHServerSession[bytes]):
    def __init__(self, device: str) -> None:
        self._device, self._line, self._typed = device, -1, b""

    def connection_made(self, chan: asyncssh.SSHServerChannel[bytes]) -> None:
        self._chan = chan

    def pty_requested(self, *_: object) -> bool:
        return True

    def shell_requested(self) -> bool:
        return True

    def session_started(self) -> None:
        if os.environ.get("WORD"):
            self._chan.write(b"BMC> ")
        else:
            self._enter()

    def data_received(self, data: bytes, datatype: asyncssh.DataType) -> None:
        if self._line >= 0:
            os.write(self._line, data)
            return
        self._typed += data
        if self._typed != os.environ["WORD"].encode() + b"\r":
            return
        if taken := os.environ.get("TAKEN"):
            self._chan.write(f"\r\n{taken}\r\n</>hpiLO-> ".encode())
        else:
            self._enter()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._line >= 0:
            asyncio.get_running_loop().remove_reader(self._line)
            os.close(self._line)

    def _enter(self) -> None:
        self._line = os.open(self._device, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
        asyncio.get_running_loop().add_reader(self._line, lambda: self._chan.write(os.read(self._line, 65536)))


# As an iLO 3 or an iDRAC 6 has them.
OLD: dict[str, Any] = {
    "kex_algs": ["diffie-hellman-group14-sha1"],
    "encryption_algs": ["aes128-cbc"],
    "mac_algs": ["hmac-sha1"],
    "signature_algs": ["ssh-rsa"],
}


async def main(port: int, key: str, device: str) -> None:
    server = await asyncssh.listen(
        "127.0.0.1",
        port,
        server_factory=lambda: Server(device),
        server_host_keys=[key],
        line_editor=False,
        **(OLD if os.environ.get("OLD") else {}),
    )
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    await server.wait_closed()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), sys.argv[2], sys.argv[3]))
