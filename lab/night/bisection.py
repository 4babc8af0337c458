"""Finds the commit, or the build of a list, with which a case began to fail: ``git bisect``, run on boards.

First it is confirmed that the bad one fails and the good one passes, on the same boards. How often the bad one
fails says how often another must pass to be called good. A build that cannot be made, does not come up, or whose runs
say nothing of the product, is skipped.

All that was seen is in a folder, run by run, from which ``git bisect`` is replayed: what was killed goes on when it is
started with the same words. Its clone is only asked for the way; no work tree is touched.
"""

from __future__ import annotations

import enum
import hashlib
import json
import math
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from lab import builds
from lab.base import paths, processes, shape
from lab.base.errors import BenchError, LabError, UsageError
from lab.builds import recipes, trees
from lab.builds.command import CommandError, run
from lab.builds.recipes import Git
from lab.night import nightly, planning
from lab.night.options import DEFAULT_BUILD, VIRTUAL_LAB, NightlyOptions
from lab.night.workers import root_of
from lab.reporting import html
from lab.results.record import Verdict
from lab.results.run_folder import RunFolder, replace_file, visible_line
from lab.results.summary import INTERRUPTED

TRIES = 3  # attempts that show how often the bad revision fails
ALPHA = 0.05  # accepted probability, at each step, that a bad revision is called good
UNCOUNTED = 2  # attempts in a row without PASS or FAIL after which a revision is skipped
ONLY_SKIPPED_LEFT = 2  # exit status of `git bisect`: git's bisect.h, BISECT_ONLY_SKIPPED_LEFT
GIT_LIMIT = 900.0  # seconds; a clone of Xen takes some

Runner = Callable[[str, Path], None]  # a recipe (name or file) and the run folder to be made


class Word(enum.StrEnum):
    """What ``git bisect`` calls a revision."""

    GOOD = "good"
    BAD = "bad"
    SKIP = "skip"


@dataclass(frozen=True, slots=True)
class Asked:
    """What the user asks to find."""

    case: str  # node id
    good: str  # revisions, or names of builds
    bad: str
    recipe: str = DEFAULT_BUILD  # how a revision is built
    source: str = ""  # repository; empty: the recipe's own
    among: tuple[str, ...] = ()  # builds, the oldest first, instead of revisions
    inventory: Path = VIRTUAL_LAB
    tries: int = TRIES
    root: Path = paths.SHIPPED  # folder that the node id is relative to

    def folder(self) -> Path:
        """The folder for all attempts. The same request has the same folder, and so goes on there."""
        words = json.dumps([self.case, self.good, self.bad, self.recipe, self.source, self.among, str(self.inventory)])
        return paths.state() / "bisect" / hashlib.sha256(words.encode()).hexdigest()[:12]


@dataclass(frozen=True, slots=True)
class TriedRevision:
    """One run of the case with a build. ``verdict`` is empty when there is no result."""

    verdict: str
    reason: str
    folder: str
    boards: tuple[str, ...] = ()
    came_up: bool = False  # the build under test was proved to run


@dataclass(frozen=True, slots=True)
class Judged:
    """What a revision is called, and why."""

    word: Word
    why: str


@dataclass(frozen=True, slots=True)
class _Kept:
    """What the file holds."""

    attempts: Mapping[str, tuple[TriedRevision, ...]]
    judged: Mapping[str, Judged]


@dataclass
class _Memory:
    """The attempts and judgements so far, kept on disk."""

    file: Path
    attempts: dict[str, list[TriedRevision]] = field(default_factory=dict)
    judged: dict[str, Judged] = field(default_factory=dict)

    @classmethod
    def read(cls, file: Path) -> _Memory:
        memory = cls(file)
        if file.exists():
            try:
                kept = shape.read(_Kept, file.read_bytes())
            except ValueError as error:
                raise UsageError(f"{file}: damaged: {error}; remove it to begin the bisection anew") from None
            memory.attempts = {revision: list(found) for revision, found in kept.attempts.items()}
            memory.judged = dict(kept.judged)
        return memory

    def save(self) -> None:
        attempts = {key: [asdict(one) for one in found] for key, found in self.attempts.items()}
        judged = {key: asdict(one) for key, one in self.judged.items()}
        replace_file(self.file, json.dumps({"attempts": attempts, "judged": judged}, indent=1))


@dataclass(frozen=True, slots=True)
class Found:
    """The result: one revision, or several that could not be told apart. ``lines`` is the text for readers."""

    revisions: tuple[str, ...]
    lines: tuple[str, ...]


def run_case(asked: Asked) -> Runner:
    """The runner that uses boards: a nightly run of the one case, which is not imported into the history."""

    def runner(recipe: str, folder: Path) -> None:
        options = NightlyOptions(
            paths=(str(asked.root / asked.case),),
            inventory=asked.inventory,
            output=folder,
            builds=(recipe,),
            select="weekly",
            is_remembered=False,
        )
        if nightly.run(options) == INTERRUPTED:
            raise KeyboardInterrupt

    return runner


def find(asked: Asked, runner: Runner, say: Callable[[str], None]) -> Found:
    """Find the first bad revision. Goes on where an earlier call with the same request was cut off.

    :raises UsageError: no such revision, build or repository; good is not an ancestor of bad.
    :raises BenchError: good or bad could not be confirmed.
    """
    return _Bisection(asked, runner, say).find()


class _Bisection:
    def __init__(self, asked: Asked, runner: Runner, say: Callable[[str], None]) -> None:
        self._asked, self._runner, self._say = asked, runner, say
        self._folder = asked.folder()
        is_new = not self._folder.exists()
        self._folder.mkdir(parents=True, exist_ok=True)
        try:
            self._history = _Builds(self._folder, asked) if asked.among else _Revisions(self._folder, asked)
            self._good, self._bad = self._history.resolve(asked.good), self._history.resolve(asked.bad)
        except LabError:
            if is_new:  # nothing was seen that another call could go on from
                shutil.rmtree(self._folder, ignore_errors=True)
            raise
        self._memory = _Memory.read(self._folder / "state.json")
        self._needed = 1  # passes by which one is good
        self._came_up = True  # whether the bad one does
        self._boards: tuple[str, ...] = ()

    def find(self) -> Found:
        self._say(f"what is seen is kept in {self._folder}; started again, it goes on there")
        self._confirm()
        while True:
            step = self._history.step(self._good, self._bad, self._memory.judged)
            if isinstance(step, tuple):
                return Found(step, tuple(self._told(step)))
            self._say(f"{self._history.describe(step)}: to be tried")
            judged = self._judge(step)
            self._memory.judged[step] = judged
            self._memory.save()
            self._say(f"{self._history.describe(step)}: {judged.word}: {judged.why}")

    # -- what is seen ------------------------------------------------------------------------------------------

    def _confirm(self) -> None:
        """Confirm that bad fails and good passes. How often bad fails says how often a good one must pass."""
        seen = self._attempts(self._bad, self._asked.tries)
        fails = [one for one in seen if one.verdict == Verdict.FAIL]
        if not fails:
            raise BenchError(f"the bad revision does not fail: {self._history.describe(self._bad)}: {_summed(seen)}")
        self._came_up, self._boards = fails[0].came_up, fails[0].boards
        share = len(fails) / len(seen)
        if share < 1:
            self._needed = math.ceil(math.log(ALPHA) / math.log(1 - share))
        self._say(f"{self._history.describe(self._bad)}: bad: {_summed(seen)}; {self._needed} PASS make a good one")
        seen = self._attempts(self._good, self._needed)
        if [one for one in seen if one.verdict != Verdict.PASS]:
            raise BenchError(f"the good revision does not pass: {self._history.describe(self._good)}: {_summed(seen)}")
        if (where := seen[0].boards) != self._boards:
            raise BenchError(f"good ran on {', '.join(where)}, bad on {', '.join(self._boards)}: no board ran both")
        self._say(f"{self._history.describe(self._good)}: good: {_summed(seen)}, on {', '.join(where)} as the bad one")

    def _attempts(self, revision: str, number: int) -> list[TriedRevision]:
        """That many attempts with PASS or FAIL.

        :raises BenchError: :data:`UNCOUNTED` attempts in a row had neither.
        """
        counted: list[TriedRevision] = []
        idle = 0
        for one in self._each(revision):
            idle = 0 if _counts(one) else idle + 1
            counted += [one] if _counts(one) else []
            if idle == UNCOUNTED:
                raise BenchError(f"{self._history.describe(revision)} cannot be judged: {one.reason}")
            if len(counted) == number:
                break
        return counted

    def _judge(self, revision: str) -> Judged:
        passes = idle = 0
        for one in self._each(revision):
            if _counts(one) and one.boards != self._boards:
                return Judged(Word.SKIP, f"ran on {', '.join(one.boards)}, the bad one on {', '.join(self._boards)}")
            if one.verdict == Verdict.FAIL and one.came_up is self._came_up:
                return Judged(Word.BAD, one.reason)
            if one.verdict == Verdict.FAIL:
                why = "it came up" if one.came_up else "the build does not come up"
                return Judged(Word.SKIP, f"fails otherwise than the bad one: {why}: {one.reason}")
            passes, idle = (passes + 1, 0) if one.verdict == Verdict.PASS else (passes, idle + 1)
            if passes == self._needed:
                return Judged(Word.GOOD, f"passed {passes} of {passes}")
            if idle == UNCOUNTED:
                return Judged(Word.SKIP, one.reason)
        raise AssertionError("attempts do not end")

    def _each(self, revision: str) -> _Each:
        """The known attempts at a revision, then new ones without end."""
        return _Each(self, revision)

    def known(self, revision: str) -> list[TriedRevision]:
        return self._memory.attempts.setdefault(revision, [])

    def attempt(self, revision: str) -> TriedRevision:
        """Run the case once more, and keep the attempt."""
        known = self.known(revision)
        folder = self._folder / f"{self._history.file_name(revision)}-{len(known) + 1}"
        shutil.rmtree(folder, ignore_errors=True)  # of one that was cut off
        try:
            self._runner(self._history.recipe(revision), folder)
            made = _seen(folder, self._asked.case)
        except (BenchError, UsageError) as error:  # it cannot be built
            made = TriedRevision("", visible_line(str(error).splitlines()[0]), str(folder))
        known.append(made)
        self._memory.save()
        return made

    # -- words -------------------------------------------------------------------------------------------------

    def _told(self, revisions: tuple[str, ...]) -> list[str]:
        skipped = {key: one for key, one in self._memory.judged.items() if one.word is Word.SKIP}
        if len(revisions) > 1:
            lines = ["the first bad one is among these, of which all but the last could not be judged:"]
            lines += [f"  {self._history.describe(one)}" for one in revisions]
        else:
            lines = [f"first bad: {self._history.describe(revisions[0])}", *self._history.log(revisions[0])]
            fail = next(one for one in self.known(revisions[0]) if one.verdict == Verdict.FAIL)
            lines += [f"seen: {fail.reason}", f"proof: {Path(fail.folder) / html.NAME}"]
        good = [key for key, one in self._memory.judged.items() if one.word is Word.GOOD] or [self._good]
        passed = next(one for one in self.known(good[-1]) if one.verdict == Verdict.PASS)
        lines += [f"last seen good: {self._history.describe(good[-1])}: {Path(passed.folder) / html.NAME}"]
        return lines + [f"skipped: {self._history.describe(key)}: {one.why}" for key, one in skipped.items()]


class _Each:
    """Iterates over what is known, then makes more without end."""

    def __init__(self, bisection: _Bisection, revision: str) -> None:
        self._bisection, self._revision, self._next = bisection, revision, 0

    def __iter__(self) -> _Each:
        return self

    def __next__(self) -> TriedRevision:
        known = self._bisection.known(self._revision)
        self._next += 1
        return known[self._next - 1] if self._next <= len(known) else self._bisection.attempt(self._revision)


def _seen(folder: Path, case: str) -> TriedRevision:
    run_folder = RunFolder.open(folder)
    result = next((one for one in run_folder.final_results() if one.case == case), None)
    if result is None:
        return TriedRevision(
            "", visible_line("; ".join(run_folder.header().remarks) or "the case did not run"), str(folder)
        )
    reason = visible_line(f"{result.reason} ({result.rule})")
    return TriedRevision(result.verdict.value, reason, str(folder), result.boards, bool(result.proved))


def _counts(attempt: TriedRevision) -> bool:
    return attempt.verdict in (Verdict.PASS, Verdict.FAIL)


def _summed(attempts: Sequence[TriedRevision]) -> str:
    fails = [one for one in attempts if one.verdict == Verdict.FAIL]
    return (
        f"failed {len(fails)} of {len(attempts)}: {fails[0].reason}"
        if fails
        else f"passed {len(attempts)} of {len(attempts)}"
    )


# -- what is searched ------------------------------------------------------------------------------------------------


class _Revisions:
    """The commits of a repository, in a clone of the lab's own."""

    def __init__(self, folder: Path, asked: Asked) -> None:
        self._folder, self._asked = folder, asked
        self._git_directory = folder / "repository.git"
        self._location = self._locate()
        if not (self._git_directory / "HEAD").exists():
            self._make()

    def _locate(self) -> str:
        if self._asked.source:
            path = Path(self._asked.source).expanduser()
            return str(path.resolve()) if path.exists() else self._asked.source
        source = builds.recipe(self._asked.recipe).source
        if not isinstance(source, Git):
            raise UsageError(f"build {self._asked.recipe} is not made from a repository; --source names one")
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
        try:
            return self._git("rev-parse", "--verify", "--quiet", "--end-of-options", f"{text}^{{commit}}")
        except CommandError:
            raise UsageError(f"{self._location} has no revision {text!r}") from None

    def recipe(self, revision: str) -> str:
        """Write the recipe with this revision as its source. Returns the file."""
        file = self._folder / f"bisect-{revision[:12]}.yaml"
        base = builds.recipe(self._asked.recipe)
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
            raise UsageError(f"{self._asked.good} is not an ancestor of {self._asked.bad}") from None
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


class _Builds(_Revisions):
    """A list of builds as a git history: empty commits whose subjects are the names of the builds."""

    def _locate(self) -> str:
        for name in self._asked.among:
            builds.recipe(name)
        return "the list of builds"

    def _make(self) -> None:
        run(["git", "init", "-q", "--bare", str(self._git_directory)], timeout=GIT_LIMIT)
        tree = self._git("hash-object", "-t", "tree", "-w", "/dev/null")
        parent: list[str] = []
        for name in self._asked.among:
            commit = self._git("commit-tree", tree, *parent, "-m", name)
            parent = ["-p", commit]
        self._git("update-ref", "refs/heads/builds", commit)
        self._git("symbolic-ref", "HEAD", "refs/heads/builds")

    def resolve(self, text: str) -> str:
        for line in self._git("log", "--format=%H %s", "refs/heads/builds").splitlines():
            if line.partition(" ")[2] == text:
                return line.partition(" ")[0]
        raise UsageError(f"{text!r} is not among the builds: {', '.join(self._asked.among)}")

    def recipe(self, revision: str) -> str:
        return self.describe(revision)

    def describe(self, revision: str) -> str:
        return self._git("log", "-1", "--format=%s", revision)

    def log(self, revision: str) -> list[str]:
        return [f"    {builds.recipe(self.describe(revision)).description}"]


def command(asked: Asked, say: Callable[[str], None]) -> int:
    """``xenlab bisect``. Exit status: 0 for one revision found, 3 for several that could not be told apart.

    :raises UsageError: not one case; and what :func:`find` raises.
    """
    asked = replace(asked, case=planning.find(asked.case).nodeid, root=root_of([asked.case]))
    found = find(asked, run_case(asked), say)
    for line in found.lines:
        say(line)
    return 0 if len(found.revisions) == 1 else 3
