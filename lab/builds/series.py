"""Reads a patch series as developers have it: an mbox, a folder of patches, or a range of commits."""

from __future__ import annotations

import email
import email.policy
import errno
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

from lab.base.errors import UsageError
from lab.builds.command import CommandError, run

GIT_LIMIT = 120.0  # seconds
MOST = 100  # patches: each may become a build
_NUMBERED = re.compile(r"\[[^\]]*\bPATCH\b[^\]]*?\b(\d+)/(\d+)[^\]]*\]", re.IGNORECASE)
_RANGE = re.compile(r"(?<![./])\.\.(?!/)")  # no `..` of a path
_TAGS = re.compile(r"^(?:\[[^\]]*\]\s*)+")
_FILE = re.compile(r"^(?:diff --git |--- |\+\+\+ )[^/\s]+/([^/\s]+)", re.MULTILINE)  # of a path, after -p1
_DIFF = re.compile(r"^(?:diff --git |--- \S)", re.MULTILINE)
# The user's name and settings are not needed to read, and must not change what is read.
_QUIET = {"GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_TERMINAL_PROMPT": "0"}


@dataclass(frozen=True, slots=True)
class Patch:
    """One patch: a diff for ``patch -p1``, and the subject of its mail or commit without ``[PATCH 2/3]``."""

    file: Path
    subject: str
    touches: frozenset[str] = frozenset()  # of each file, the first part of its path: xen, tools, Config.mk


@dataclass(frozen=True, slots=True)
class Series:
    """Patches in the order in which they apply. ``subject``: that of a cover letter, else of the first patch."""

    patches: tuple[Patch, ...]
    subject: str
    repository: Path | None = None  # of a range of commits: where they are
    base: str = ""  # of a range of commits: the commit that it stands on


def read(given: str, into: Path) -> Series:
    """Read a series, and write its patches to the new folder ``into`` as ``0001.patch`` and so on.

    :param given: the path of an mbox or of a folder; or a range of commits (``A..B``) of the repository here, or of one
        elsewhere, ``DIR:A..B``.
    :raises UsageError: it is none of these, or holds no patches, or the same number twice.
    """
    into.mkdir(parents=True)
    path = Path(given).expanduser()
    try:
        if path.is_dir():
            files = sorted(one for one in path.iterdir() if one.is_file() and not one.name.startswith("."))
            return _of_mails([one.read_bytes() for one in files], given, into)
        if path.is_file():
            return _of_mails(_split(path), given, into)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.ENAMETOOLONG):
            raise
        raise UsageError(f"{given}: {error.strerror}") from None
    if _RANGE.search(given):
        return _of_range(given, into)
    hint = "; `b4 am` makes an mbox of a message id" if "@" in given else ""
    raise UsageError(f"{given}: no mbox or folder is there, and it is no range of commits (A..B){hint}")


def _split(mbox: Path) -> list[bytes]:
    with tempfile.TemporaryDirectory(prefix="xenlab-mbox-") as scratch:
        try:
            run(["git", "mailsplit", "--keep-cr", f"-o{scratch}", "--", str(mbox.resolve())], timeout=GIT_LIMIT)
        except CommandError:
            return [mbox.read_bytes()]  # a plain diff
        return [one.read_bytes() for one in sorted(Path(scratch).iterdir())]


def _of_range(given: str, into: Path) -> Series:
    where, colon, commits = given.rpartition(":")
    repository = Path(where if colon else ".").expanduser().resolve()
    since, _, until = commits.partition("..")
    until = until.lstrip(".")

    def git(*words: str) -> str:
        try:
            return run(["git", "-C", str(repository), *words], timeout=GIT_LIMIT, environment=_QUIET).strip()
        except CommandError as error:
            raise UsageError(f"{given}: {repository}: {error.cause or error.what}") from None

    ends = [f"{one or 'HEAD'}^{{commit}}" for one in (since, until)]
    first, last = (git("rev-parse", "--verify", "--quiet", "--end-of-options", one) for one in ends)
    base = git("merge-base", first, last)
    if merges := git("rev-list", "--merges", f"{base}..{last}").split():
        raise UsageError(f"{given}: {merges[0][:12]} is a merge; a series is a row of single commits")
    words = ["format-patch", "--quiet", "--no-cover-letter", "--no-signature", "--no-renames", "--no-attach"]
    words += ["--src-prefix=a/", "--dst-prefix=b/"]  # whatever the clone's own settings say
    with tempfile.TemporaryDirectory(prefix="xenlab-range-") as scratch:
        git(*words, f"-o{scratch}", f"{base}..{last}")
        found = _of_mails([one.read_bytes() for one in sorted(Path(scratch).iterdir())], given, into)
    return Series(found.patches, found.subject, repository, base)


def _of_mails(mails: list[bytes], given: str, into: Path) -> Series:
    """Mails, or plain diffs, in the order of their numbers where all have one, else as they come."""
    cover, numbered = "", list[tuple[int, str, str]]()  # number or 0, subject, diff
    for place, mail in enumerate(mails, 1):
        try:
            subject, text = _opened(mail)
        except (LookupError, ValueError, TypeError, AttributeError) as error:  # Python's parser at broken headers
            raise UsageError(f"{given}: the headers of mail {place} cannot be read: {error!r}") from None
        number = _NUMBERED.search(subject)
        if number and int(number[1]) == 0:
            cover = cover or _TAGS.sub("", subject)
        elif _DIFF.search(text) and not subject.lower().startswith("re:"):
            numbered.append((int(number[1]) if number else 0, subject, text))
    if not numbered:
        raise UsageError(f"{given}: no patch in it")
    if len(numbered) > MOST:
        raise UsageError(f"{given}: {len(numbered)} patches; at most {MOST} can be tried")
    if all(number for number, _, _ in numbered):
        numbered.sort(key=lambda one: one[0])
        for one, other in zip(numbered, numbered[1:], strict=False):
            if one[0] == other[0]:
                raise UsageError(
                    f"{given}: two patches are number {one[0]}: {one[1]!r}, {other[1]!r}; keep one version"
                )
    patches = []
    for place, (_, subject, text) in enumerate(numbered, 1):
        file = into / f"{place:04}.patch"
        file.write_text(text, encoding="utf-8", errors="surrogateescape", newline="")
        touches = frozenset(_FILE.findall(text))
        patches.append(Patch(file, _TAGS.sub("", subject) or f"patch {place}", touches))
    return Series(tuple(patches), cover or patches[0].subject)


def _opened(mail: bytes) -> tuple[str, str]:
    """Subject and text of a mail, decoded; a plain diff is its own text."""
    message = email.message_from_bytes(mail, policy=email.policy.default.clone(max_line_length=None))
    if not message["subject"]:
        return "", mail.decode("utf-8", "surrogateescape")
    subject = " ".join(str(message["subject"]).split())
    body = message.get_body(("plain",))
    coded = body.get_payload(decode=True) if body else b""
    assert isinstance(coded, bytes)
    text = coded.decode("utf-8", "surrogateescape")
    return subject, text.replace("\r\n", "\n")
