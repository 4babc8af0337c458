"""A PostgreSQL server for tests: on a unix socket in a folder of its own, ended by its own process."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psycopg

from lab.base.wait import wait_until

PASSWORD = "geh eim/%"
QUOTED = "geh%20eim%2F%25"
START_LIMIT = 60.0  # seconds


@dataclass
class Server:
    """Where it listens; databases are made one by one."""

    socket: Path
    made: int = 0

    def connect(self, database: str = "postgres") -> psycopg.Connection:
        return psycopg.connect(
            host=str(self.socket),
            user="xenlab",
            password=PASSWORD,
            dbname=database,
            autocommit=True,
            connect_timeout=10,
        )

    def url(self, *, password: str = QUOTED, database: str = "") -> str:
        """Of a database that is empty to its user, unless one is named: each has a schema, which costs no files."""
        if database:
            return f"postgresql://xenlab:{password}@/{database}?host={self.socket}"
        self.made += 1
        user = f"test{self.made}"
        with self.connect() as connection:
            connection.execute(f"CREATE ROLE {user} LOGIN PASSWORD '{PASSWORD}'")
            connection.execute(f"CREATE SCHEMA AUTHORIZATION {user}")
        return f"postgresql://{user}:{password}@/postgres?host={self.socket}"


def binaries() -> Path | None:
    """Debian's folder of the newest server there is."""
    found = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/postgres")]
    return max(found, key=lambda path: int(path.parent.name), default=None)


@contextmanager
def serve(programs: Path) -> Iterator[Server]:
    """A server with the user ``xenlab``. It refuses to run as root, so then it is nobody's."""
    folder = Path(tempfile.mkdtemp(prefix="xenlab-pg-", dir="/tmp"))  # a socket's path is short, tmp_path is not
    words: list[str] = []
    if os.geteuid() == 0:
        nobody = pwd.getpwnam("nobody")
        os.chown(folder, nobody.pw_uid, nobody.pw_gid)
        words = ["setpriv", f"--reuid={nobody.pw_uid}", f"--regid={nobody.pw_gid}", "--clear-groups"]
    environment = {"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8", "HOME": str(folder)}
    secret = folder / "secret"
    secret.write_text(PASSWORD)
    data = ["-D", str(folder / "data")]
    try:
        made = subprocess.run(
            [
                *words,
                str(programs / "initdb"),
                *data,
                "-U",
                "xenlab",
                "-A",
                "scram-sha-256",
                f"--pwfile={secret}",
                "-N",
            ],
            env=environment,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=START_LIMIT,
            check=False,
        )
        assert made.returncode == 0, made.stdout + made.stderr
        settings = ["-c", "listen_addresses=", "-c", "fsync=off", "-c", "max_connections=20"]
        with open(folder / "log", "wb") as log:
            process = subprocess.Popen(
                [*words, str(programs / "postgres"), *data, "-k", str(folder), *settings],
                env=environment,
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            server = Server(folder)

            def answers() -> bool:
                assert process.poll() is None, (folder / "log").read_text()
                with suppress(psycopg.OperationalError):
                    server.connect().close()
                    return True
                return False

            wait_until(answers, START_LIMIT, "PostgreSQL answers")
            yield server
        finally:
            process.send_signal(signal.SIGQUIT)  # at once: what it holds is thrown away
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
