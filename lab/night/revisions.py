"""What a bisection searches: the commits of a repository, or a list of builds; ``git bisect`` says which comes next."""

from __future__ import annotations

import enum
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lab import builds
from lab.base import processes
from lab.base.errors import UsageError
from lab.builds import recipes, trees
from lab.builds.command import CommandError, run
from lab.builds.recipes import Git
from lab.results.run_folder import visible_line

ONLY_SKIPPED_LEFT = 2  # exit status of `git bisect`: git's bisect.h, BISECT_ONLY_SKIPPED_LEFT
GIT_LIMIT = 900.0  # seconds; a clone of Xen takes some


class Word(enum.StrEnum):
    """What ``git bisect`` calls a revision."""

    GOOD = "good"
    BAD = "bad"
    SKIP = "skip"


@dataclass(frozen=True, slots=True)
class Judged:
    """What a revision is called, and why."""

    word: Word
    why: str


class Revisions:
    """The commits of a repository, in a clone of the lab's own."""

    def __init__(self, folder: Path, recipe: str, source: str, among: Sequence[str] = ()) -> None:
        """``folder`` keeps the clone; ``source`` is the repository, empty for the recipe's own."""
        self._folder, self._recipe, self._source, self._among = folder, recipe, source, among
        self._git_directory = folder / "repository.git"
        self._said: dict[str, str] = {}  # by revision, as the user named it
        self._location = self._locate()
        if not (self._git_directory / "HEAD").exists():
            self._make()

    def _locate(self) -> str:
        if self._source:
            path = Path(self._source).expanduser()
            return str(path.resolve()) if path.exists() else self._source
        source = builds.recipe(self._recipe).source
        if not isinstance(source, Git):
            raise UsageError(f"build {self._recipe} is not made from a repository; --source names one")
        return source.location

    def _make(self) -> None:
        temporary = self._git_directory.with_suffix(".making")
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            source = str(trees.fetched(self._location))
            run(
                ["git", "clone", "-q", "--bare", "--", source, str(temporary)],
                timeout=GIT_LIMIT,
                needs=processes.NETWORK,
            )
        except CommandError as error:
            raise UsageError(f"{self._location}: cannot be cloned: {error}") from None
        temporary.rename(self._git_directory)

    def _git(self, *words: str) -> str:
        settings = {"GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_TERMINAL_PROMPT": "0"}
        names = {f"GIT_{who}_{what}": "xenlab" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
        command = ["git", f"--git-dir={self._git_directory}", *words]
        return run(command, timeout=GIT_LIMIT, environment=settings | names).strip()

    def resolve(self, text: str) -> str:
        """The revision that a user names.

        :raises UsageError: there is none.
        """
        try:
            found = self._git("rev-parse", "--verify", "--quiet", "--end-of-options", f"{text}^{{commit}}")
        except CommandError:
            raise UsageError(f"{self._location} has no revision {text!r}") from None
        self._said[found] = text
        return found

    def recipe(self, revision: str) -> str:
        """Write the recipe with this revision as its source. Returns the file."""
        file = self._folder / f"bisect-{revision[:12]}.yaml"
        base = builds.recipe(self._recipe)
        recipes.write(replace(base, source=Git(self._location, revision)), file)
        return str(file)

    def step(self, good: str, bad: str, judged: Mapping[str, Judged]) -> str | tuple[str, ...]:
        """The revision to be tried next; at the end the first bad one, or the candidates, as a tuple.

        :raises UsageError: good is not an ancestor of bad.
        """
        replay = self._folder / "replay"
        lines = [f"git bisect start '--no-checkout' '{bad}' '{good}'"]
        lines += [f"git bisect {one.word} {revision}" for revision, one in judged.items()]
        replay.write_text("\n".join(lines) + "\n", encoding="utf-8")
        try:
            self._git("merge-base", "--is-ancestor", good, bad)
        except CommandError:
            raise UsageError(f"{self._said[good]} is not an ancestor of {self._said[bad]}") from None
        try:
            self._git("bisect", "replay", str(replay))
        except CommandError as error:
            if error.status != ONLY_SKIPPED_LEFT:
                raise
        log = self._git("bisect", "log")
        if one := re.search(r"^# first bad commit: \[(\w+)\]", log, re.MULTILINE):
            return (one[1],)
        if some := re.findall(r"^# possible first bad commit: \[(\w+)\]", log, re.MULTILINE):
            return tuple(reversed(some))
        return self._git("rev-parse", "BISECT_HEAD")

    def describe(self, revision: str) -> str:
        return visible_line(self._git("log", "-1", "--format=%h %s", revision))

    def file_name(self, revision: str) -> str:
        return revision[:12]

    def log(self, revision: str) -> list[str]:
        """Who, when, the message, and what it touches."""
        text = self._git("log", "-1", "--stat", "--format=%an, %ad%n%n%B", revision)
        return [f"    {visible_line(line)}".rstrip() for line in text.splitlines()]


class Builds(Revisions):
    """A list of builds as a git history: empty commits whose subjects are the names of the builds."""

    def _locate(self) -> str:
        for name in self._among:
            builds.recipe(name)
        return "the list of builds"

    def _make(self) -> None:
        run(["git", "init", "-q", "--bare", str(self._git_directory)], timeout=GIT_LIMIT)
        tree = self._git("hash-object", "-t", "tree", "-w", "/dev/null")
        parent: list[str] = []
        for name in self._among:
            commit = self._git("commit-tree", tree, *parent, "-m", name)
            parent = ["-p", commit]
        self._git("update-ref", "refs/heads/builds", commit)
        self._git("symbolic-ref", "HEAD", "refs/heads/builds")

    def resolve(self, text: str) -> str:
        for line in self._git("log", "--format=%H %s", "refs/heads/builds").splitlines():
            if line.partition(" ")[2] == text:
                return line.partition(" ")[0]
        raise UsageError(f"{text!r} is not among the builds: {', '.join(self._among)}")

    def recipe(self, revision: str) -> str:
        return self.describe(revision)

    def describe(self, revision: str) -> str:
        return self._git("log", "-1", "--format=%s", revision)

    def log(self, revision: str) -> list[str]:
        return [f"    {builds.recipe(self.describe(revision)).description}"]
