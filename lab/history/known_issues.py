"""What people have said of failures: a link to a bug tracker and a note, for as long as the failure is the same."""

from __future__ import annotations

import getpass
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pydantic
import sqlalchemy as sa

from lab.base.errors import UsageError
from lab.base.files import Strict, plain
from lab.history import records
from lab.history.schema import cases, known_issues, results, series
from lab.history.store import History
from lab.results.failures import digits_of, label_of
from lab.results.run_folder import visible_line


@dataclass(frozen=True, slots=True)
class KnownIssue:
    """A link that belongs to a failure. ``added`` in seconds since the epoch."""

    id: int
    failure: str  # its name: lab.results.failures.failure_key
    case: str  # the only case that it is said of; empty: all cases
    link: str
    note: str
    author: str
    added: float

    @property
    def is_safe_link(self) -> bool:
        """Whether a page may link to it."""
        return urlsplit(self.link).scheme in ("http", "https", "mailto")

    def line(self) -> str:
        """For the terminal."""
        where = f" in {self.case}" if self.case else ""
        note = f": {self.note}" if self.note else ""
        day = time.strftime("%Y-%m-%d", time.gmtime(self.added))
        return f"{digits_of(self.failure)}  {self.link}{note} ({self.author}, {day}): {label_of(self.failure)}{where}"


class KnownIssues:
    """All known issues, as they were when this was read."""

    def __init__(self, issues: Sequence[KnownIssue] = ()) -> None:
        self.all = tuple(issues)

    def of(self, failure: str, case: str) -> list[KnownIssue]:
        """Those of this failure in this case."""
        return [one for one in self.all if failure and one.failure == failure and one.case in ("", case)]

    def of_another(self, failure: str, case: str) -> list[KnownIssue]:
        """Those that were said of this case, but of another failure: the failure has changed."""
        return [one for one in self.all if failure and one.case == case and one.failure != failure]


def read(history: History) -> KnownIssues:
    """All of them, the oldest first."""
    wanted = sa.select(known_issues).order_by(known_issues.c.added, known_issues.c.id)
    with history.transaction(writes=False) as connection:
        rows = connection.execute(wanted).mappings().all()
    return KnownIssues([records.read(KnownIssue, row, case=row["case_name"]) for row in rows])


def add(history: History, what: str, link: str, note: str, author: str | None = None) -> KnownIssue:
    """Link a failure to a bug tracker.

    :param what: a failure's name, or how its digits begin. Or a case: then the link belongs to what the case ended with
        last, and to that case alone.
    :param author: default: the user.
    :raises UsageError: no such failure or case, several, or no link.
    """
    link = _checked(link)
    failure, case = _failure(history, what)
    issue = KnownIssue(0, failure, case, link, visible_line(note), visible_line(author or _user()), time.time())
    _write(history, [issue])
    return issue


def remove(history: History, what: str) -> list[KnownIssue]:
    """Forget the links of a failure, named by its digits, its link or a case; those that went.

    :raises UsageError: there is none.
    """
    there = read(history).all
    gone = [
        one
        for one in there
        if what in (one.failure, one.link, one.case) or (len(what) >= 4 and one.failure.startswith(what))
    ]
    if not gone:
        raise UsageError(f"no bug report is linked to {what!r}; `xenlab known list` shows those that are")
    with history.transaction(writes=True) as connection:
        connection.execute(known_issues.delete().where(known_issues.c.id.in_([one.id for one in gone])))
    return gone


def exported(history: History) -> str:
    """All of them as JSON, for :func:`imported`."""
    rows = [{key: value for key, value in asdict(one).items() if key != "id"} for one in read(history).all]
    return json.dumps({"known": rows}, indent=1, sort_keys=True) + "\n"


class _Entry(Strict):
    failure: str
    case: str
    link: str
    note: str
    author: str
    added: float


class _File(Strict):
    known: list[_Entry]


def imported(history: History, file: Path) -> int:
    """Take over what :func:`exported` wrote; how many were new.

    :raises UsageError: the file cannot be read, or is none.
    """
    try:
        content = _File.model_validate_json(file.read_bytes())
    except OSError as error:
        raise UsageError(f"{file}: {error.strerror or error}") from None
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        where = ": ".join(filter(None, (str(file), ".".join(str(part) for part in first["loc"]))))
        raise UsageError(f"{where}: {plain(first['msg'])}; want what `xenlab known export` writes") from None
    return _write(
        history,
        [
            KnownIssue(
                id=0,
                failure=visible_line(one.failure),
                case=visible_line(one.case),
                link=_checked(one.link),
                note=visible_line(one.note),
                author=visible_line(one.author),
                added=one.added,
            )
            for one in content.known
        ],
    )


def _write(history: History, issues: Sequence[KnownIssue]) -> int:
    """Those that are not there yet; a link that is there gets the new note."""
    new = 0
    with history.transaction(writes=True) as connection:
        for one in issues:
            values = {"failure": one.failure, "case_name": one.case, "link": one.link}
            mine = sa.and_(*(known_issues.c[name] == value for name, value in values.items()))
            said = {"note": one.note, "author": one.author, "added": one.added}
            if connection.scalar(sa.select(known_issues.c.id).where(mine)) is None:
                connection.execute(known_issues.insert().values({**values, **said}))
                new += 1
            else:
                connection.execute(known_issues.update().where(mine).values(said))
    return new


def _checked(link: str) -> str:
    link = visible_line(link.strip())
    if not link or urlsplit(link).scheme not in ("http", "https", "mailto"):
        raise UsageError(f"{link!r} is not a link; it must begin with https://, http:// or mailto:")
    return link


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return "unknown"


def _failure(history: History, what: str) -> tuple[str, str]:
    """The failure that a user names, and the case if they named one."""
    what = visible_line(what.strip())
    if what:
        digits = results.c.failure.startswith(what, autoescape=True)
        wanted = sa.select(results.c.failure).where(sa.text("failure <> ''"), digits).distinct().limit(5)
        with history.transaction(writes=False) as connection:
            fits = list(connection.scalars(wanted))
        if what in fits:
            return what, ""
        if len(fits) > 1:
            raise UsageError(f"{what!r}: several failures match: {'; '.join(fits)}")
        if fits:
            return fits[0], ""
    try:
        case = history.case(what)
    except UsageError as error:
        raise UsageError(f"{error}; and no failure of that name was seen") from None
    last = (
        sa.select(results.c.failure)
        .join_from(results, series)
        .join(cases)
        .where(cases.c.name == case, sa.text("failure <> ''"))
        .order_by(results.c.started.desc(), results.c.id.desc())
        .limit(1)
    )
    with history.transaction(writes=False) as connection:
        failure = connection.scalar(last)
    if failure is None:
        raise UsageError(f"{case} has never failed: there is nothing to link")
    return str(failure), case
