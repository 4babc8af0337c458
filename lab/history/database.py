"""Which database it is, and its tables brought up to date."""

from __future__ import annotations

import re
import sqlite3
from pathlib import Path
from urllib.parse import quote, quote_plus

import sqlalchemy as sa
from sqlalchemy.engine import URL, Connection, Engine, make_url
from sqlalchemy.exc import OperationalError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from lab.base import paths
from lab.base.errors import UsageError
from lab.results.run_folder import visible_line

SETTING = "XENLAB_HISTORY_URL"
BUSY_TIMEOUT = 30.0  # seconds to wait for another writer
PATIENCE = 60.0  # seconds to wait for a connection of a server that has none left
STATEMENT_LIMIT = 120  # seconds a PostgreSQL server may take over one statement


def url_of_file(path: Path) -> URL:
    """A database in a file, whose name may hold ``?`` and ``%``."""
    return URL.create("sqlite", database=str(path))


def url_of(text: str) -> URL:
    """The database that the setting names; empty: the file in the state folder.

    :raises UsageError: none that is known.
    """
    if not text:
        return url_of_file(paths.state() / "history.sqlite")
    try:
        url = make_url(text)
    except (SQLAlchemyError, ValueError):  # their words may hold parts of a password
        raise UsageError(f"{SETTING} is not a URL; use postgresql://USER:PASSWORD@HOST/DATABASE") from None
    backend = url.get_backend_name()
    if backend not in ("postgresql", "sqlite"):
        raise UsageError(f"{SETTING}: must be postgresql or sqlite, not {visible_line(backend)}")
    if "@" in f"{url.host}{url.database}" and backend == "postgresql":
        raise UsageError(f"{SETTING}: what is not a letter or digit in a password must be percent-encoded (@ is %40)")
    if backend == "sqlite":
        folder = Path(url.database or ".").parent
        if not folder.is_dir():
            raise UsageError(f"{SETTING}: {visible_line(str(folder))}: there is no such folder")
        return url.set(drivername="sqlite")
    import psycopg.conninfo  # which most do not need, as they have SQLite

    try:
        psycopg.conninfo.make_conninfo(**{key: value for key, value in url.query.items() if isinstance(value, str)})
    except psycopg.Error as error:
        raise UsageError(f"{SETTING}: {visible_line(str(error))}") from None
    return url.set(drivername="postgresql+psycopg")


def described(url: URL) -> str:
    """Where it is, without what could be secret."""
    if url.get_backend_name() == "sqlite":
        return visible_line(url.database or ":memory:")
    host = url.host or url.query.get("host") or "localhost"
    return visible_line(f"postgresql {host}{f':{url.port}' if url.port else ''}/{url.database or ''}")


def has_no_connection_left(error: OperationalError) -> bool:
    """Whether the server refused since all its connections are in use: it may have one in a moment.

    Source: PostgreSQL, appendix A, too_many_connections. libpq gives no code for a connection that was not made, so
    the server's words have to do; in another language than English they are not known, and it is not asked again.
    """
    return getattr(error.orig, "sqlstate", None) == "53300" or bool(_FULL.search(str(error.orig)))


_FULL = re.compile(r"too many (clients|connections)|remaining connection slots")


def secrets(url: URL) -> list[str]:
    """What of it no message may hold, in each form it could be written in."""
    secrets = [str(url.password or ""), *(str(v) for k, v in url.query.items() if "pass" in k)]
    return [form for secret in secrets if secret for form in (secret, quote(secret), quote_plus(secret))]


def engine_of(url: URL) -> Engine:
    """A connection each time, and none kept: commands are short."""
    if url.get_backend_name() == "postgresql":
        return sa.create_engine(_limited(url), poolclass=NullPool, hide_parameters=True)
    engine = sa.create_engine(url, poolclass=NullPool, connect_args={"timeout": BUSY_TIMEOUT}, hide_parameters=True)
    # SQLite's driver would begin on its own, and late: two writers could then both have read before they write.

    @sa.event.listens_for(engine, "connect")
    def connected(connection: sqlite3.Connection, record: object) -> None:
        connection.isolation_level = None

    @sa.event.listens_for(engine, "begin")
    def begun(connection: Connection) -> None:
        writes = connection.get_execution_options().get("xenlab_writes")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


def _limited(url: URL) -> URL:
    """With our limits in front of what the URL says: of two options the server takes the last."""
    own = url.query.get("options", ())
    options = [f"-c statement_timeout={STATEMENT_LIMIT}s", *((own,) if isinstance(own, str) else own)]
    return url.set(query={"connect_timeout": "10"} | dict(url.query) | {"options": " ".join(options)})


def version(connection: Connection) -> str:
    """The newest migration that was applied; empty before any."""
    if not sa.inspect(connection).has_table("alembic_version"):
        return ""
    return str(connection.scalar(sa.text("SELECT version_num FROM alembic_version")) or "")


def migrate(connection: Connection, where: str) -> None:
    """Bring the tables up to date.

    :raises UsageError: a newer xenlab made them.
    """
    from alembic import command
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.attributes["connection"] = connection
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    if (there := version(connection)) not in known | {""}:
        raise UsageError(f"history {where}: a newer xenlab made it (its tables are at {visible_line(there)!r})")
    command.upgrade(config, "head")
