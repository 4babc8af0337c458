"""Source trees: identifies a source, and keeps a tree of it to compile in, for incremental builds."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lab.base import lock, paths, processes
from lab.base.errors import BenchError, LabError, UsageError, did_you_mean
from lab.builds import blame
from lab.builds.apt import PrivateApt
from lab.builds.command import CommandError, run
from lab.builds.recipes import DebianBinary, DebianSource, Git, Prebuilt, Recipe, Source, Tarball

log = logging.getLogger(__name__)

LONGEST_BUILD = 3600.0  # seconds; also how long the tree of another maker is waited for
_BUSY = ".xenlab-busy"  # is there while a compiler may write; found later, it says that the tree cannot be trusted
_OURS = ".xenlab-"  # how the names of our own notes in a tree begin
_FACTS = ".xenlab-tree"
_PATCHES = ".xenlab-patches"  # a folder of copies of what is applied now, in order
_PATCH = ("patch", "-p1", "--batch", "--no-backup-if-mismatch")
_FETCHED = "xenlab-fetched"  # in a mirror; its time is that of the last fetch
_NUMBERS = ("XEN_VERSION", "XEN_SUBVERSION")  # in xen/Makefile
_COMMIT = re.compile(r"[0-9a-f]{40}")
_LET_BE = (
    300.0  # seconds for which a URL that did not answer is not asked again: where packets are dropped, it takes long
)
_silent: dict[str, tuple[float, str]] = {}  # such URLs: when they were asked (time.monotonic), and what git said


@dataclass(frozen=True, slots=True)
class Tree:
    """A patched source tree that this process alone holds; ``epoch`` is the source's date, in seconds since 1970."""

    directory: Path
    epoch: int
    lock: int  # descriptor for children, so that the lock outlives us with them


def digest(*files: Path) -> str:
    """SHA-256 over the contents of ``files``, in order."""
    summed = hashlib.sha256()
    for file in files:
        with open(file, "rb") as opened:
            summed.update(hashlib.file_digest(opened, "sha256").digest())
    return summed.hexdigest()


def identify(source: Source, say: Callable[[str], None] = log.warning) -> str:
    """Name the source to the byte, in one line. The network is used for a git URL or an unnamed version.

    :param say: is told when a repository does not answer, and what was fetched of it before is used.
    :raises BenchError: the package sources do not answer; or the repository does not, and nothing of it is here.
    :raises UsageError: no such revision.
    """
    match source:
        case DebianSource(package, version):
            return f"debian-source {package} {version}"
        case DebianBinary(package, version, suite):
            return f"debian-binary {package} {version or PrivateApt(suite=suite).newest(package)}"
        case Git():
            return f"git {_resolve(source, say)}"
        case Tarball(path):
            return f"tarball {digest(path)}"
        case Prebuilt(xen, symbols, version):
            return f"prebuilt {digest(xen, *[symbols] if symbols else [])} {version}"


@dataclass(frozen=True, slots=True)
class Origin:
    """Where the source of a build comes from, for readers. None: not known."""

    commit: str | None = None
    subject: str | None = None  # the first line of the commit's message
    date: str | None = None  # of the commit, ISO 8601
    branch: str | None = None  # the one that the recipe names, or the clone's own where it names HEAD
    package: str | None = None  # Debian's, source or binary
    version: str | None = None  # of the package

    def facts(self) -> dict[str, str]:
        """The fields that are known."""
        return {key: value for key, value in dataclasses.asdict(self).items() if value}


def origin(source: Source, identity: str) -> Origin:
    """Describe a source that :func:`identify` has identified. Nothing is fetched.

    :raises BenchError: the repository cannot be read.
    """
    match source:
        case DebianSource(package) | DebianBinary(package):
            return Origin(package=package, version=identity.split()[-1])
        case Git(location, revision):
            commit = identity.split()[-1]
            repository = ("-C", str(_repository(location)))
            subject, date = _git(*repository, "log", "-1", "--format=%s%n%cI", commit).splitlines()[-2:]
            return Origin(commit, subject or None, date, _branch(repository, revision))
    return Origin()


def _branch(repository: tuple[str, ...], revision: str) -> str | None:
    """The branch that ``revision`` names; None if it names another thing."""
    try:
        if revision == "HEAD":
            return _git(*repository, "symbolic-ref", "--quiet", "--short", "HEAD").strip() or None
        name = revision.removeprefix("origin/")
        _git(*repository, "show-ref", "--verify", "--quiet", f"refs/heads/{name}")
        return name
    except CommandError:
        return None


@contextmanager
def checked_out(recipe: Recipe, identity: str, report: Callable[[str], None]) -> Iterator[Tree]:
    """Hold the patched tree of a recipe's source for the block, which compiles in it.

    When the block is cut off, the tree is made anew the next time. When it fails in an orderly way (the compiler ended
    by itself), the tree stays as it is.

    :raises BenchError: the source cannot be had.
    :raises BuildFailed: a patch does not apply.
    :raises UsageError: the archive holds no Xen.
    """
    source = recipe.source
    if isinstance(source, Git):  # one tree for the revisions of a release: bisection compiles only what differs
        place = hashlib.sha256(source.location.encode()).hexdigest()[:16]
        name = f"git-{place}{_release(source, identity.split()[1])}"
    else:
        # One tree for all patches: a build that differs in one compiles only what the patch touches.
        name = "src-" + hashlib.sha256(identity.encode()).hexdigest()[:16]
    trees = paths.cache() / "trees"
    directory = trees / name
    lock_file = trees / f"{name}.lock"

    def is_gone() -> bool:
        return not directory.exists()

    with lock.held(lock_file, LONGEST_BUILD, f"source tree {directory}", has_to_go=is_gone) as descriptor:
        if (directory / _BUSY).exists():
            log.info("%s: left in the middle of a build, made anew", directory)
            shutil.rmtree(directory)
        if isinstance(source, Git):
            epoch = _check_out(source, identity.split()[1], directory, recipe.patches, report)
        else:
            known = _epoch(directory)
            if known is None or not _is_patchable(directory, recipe.patches):
                report("fetching the source")
                known = _unpack_into(source, directory)
            epoch = known
        (directory / _BUSY).touch()
        try:
            if not isinstance(source, Git):
                _put_on(directory, recipe.patches)
            yield Tree(directory, epoch, descriptor)
        except LabError as error:
            if not isinstance(error, CommandError) or error.ended:
                (directory / _BUSY).unlink(missing_ok=True)
            raise
        (directory / _BUSY).unlink(missing_ok=True)


def _is_patchable(directory: Path, patches: tuple[Path, ...]) -> bool:
    """Reverse the patches that are applied, unless they are ``patches``. False: one cannot be reversed."""
    applied = sorted((directory / _PATCHES).iterdir())
    if [digest(patch) for patch in applied] == [digest(patch) for patch in patches]:
        return True
    (directory / _BUSY).touch()
    try:
        for patch in reversed(applied):
            # Exactly: what went on only nearly would leave a tree that is not the source's.
            run([*_PATCH, "--reverse", "--fuzz=0", "-i", str(patch)], cwd=directory, timeout=60)
            patch.unlink()
    except CommandError as error:
        log.info("%s: made anew, since a patch does not come off: %s", directory, error)
        return False
    (directory / _BUSY).unlink()
    return True


def _put_on(directory: Path, patches: tuple[Path, ...]) -> None:
    """Patch a clean tree, and note the patches. A tree that has these patches already is left alone."""
    kept = directory / _PATCHES
    if any(kept.iterdir()):
        return
    for number, patch in enumerate(patches):
        _patch(directory, (patch,))
        shutil.copyfile(patch, kept / f"{number:03}")


def _epoch(directory: Path) -> int | None:
    """When the source of an unpacked tree was made; None: there is no tree, or a power cut damaged the note of it."""
    try:
        return int(json.loads((directory / _FACTS).read_text(encoding="utf-8"))["epoch"])
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _unpack_into(source: Source, directory: Path) -> int:
    """Fetch and unpack beside ``directory``, then move the tree there, so that an interrupt leaves nothing.

    Returns when the source was made, in seconds since the epoch.
    """
    shutil.rmtree(directory, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=directory.parent, prefix="unpacking-") as scratch:
        work = Path(scratch)
        root = work / "tree"
        if isinstance(source, DebianSource):
            archive = PrivateApt(suite=source.suite).fetch_source(source.package, source.version, work)
            if not shutil.which("dpkg-source"):
                raise BenchError("dpkg-source is not installed here: it is in Debian's dpkg-dev")
            run(["dpkg-source", "--no-check", "-x", archive.name, "tree"], cwd=work, timeout=300)
            dated = root / "debian" / "changelog"
        elif isinstance(source, Tarball):
            root = _unpack_tarball(source.path, root)
            dated = root / "xen" / "Makefile"
        else:
            raise AssertionError(source)  # the others have no tree
        if not (root / "xen" / "Makefile").is_file():
            where = source.path if isinstance(source, Tarball) else source
            raise UsageError(f"{where}: no Xen source in it (xen/Makefile is missing)")
        epoch = min(max(int(dated.stat().st_mtime), 0), 2**32 - 1)  # an archive may say any time
        (root / _PATCHES).mkdir()
        (root / _FACTS).write_text(json.dumps({"epoch": epoch}), encoding="utf-8")
        root.rename(directory)
        return epoch


def _unpack_tarball(archive: Path, root: Path) -> Path:
    root.mkdir()
    try:
        # Python's tarfile cannot be told to be careful on Debian 12; tar(1) is: no absolute names, none with `..`.
        careful = ["--no-same-owner", "--no-same-permissions"]
        run(["tar", "-xf", str(archive), *careful, "-C", str(root)], timeout=300)
    except CommandError as error:
        raise UsageError(f"{archive}: cannot be unpacked: {error}") from None
    _check_unpacked(archive, root)
    entries = list(root.iterdir())
    return entries[0] if len(entries) == 1 and entries[0].is_dir() and not entries[0].is_symlink() else root


def _check_unpacked(archive: Path, root: Path) -> None:
    """See that nothing of an archive leads out of it, since the tree is written to: patches, objects, marks of ours.

    :raises UsageError: a link to outside, a device, a pipe, or a name that marks our own trees.
    """
    inside = f"{os.path.realpath(root)}{os.sep}"
    for folder, folders, files in os.walk(root):
        for name in (*folders, *files):
            path = Path(folder, name)
            shown = repr(str(path.relative_to(root)))
            mode = path.lstat().st_mode
            if name.startswith(_OURS):
                raise UsageError(f"{archive}: {shown}: a name that begins with {_OURS} is not for sources")
            if stat.S_ISLNK(mode):
                if not f"{os.path.realpath(path)}{os.sep}".startswith(inside):
                    raise UsageError(f"{archive}: {shown}: a link that leads out of the archive")
            elif not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                raise UsageError(f"{archive}: {shown}: neither a file, a folder nor a link")


def _patch(root: Path, patches: tuple[Path, ...]) -> None:
    for patch in patches:
        try:
            for dry in (("--dry-run",), ()):  # a patch that applies only in part would leave a tree that is neither
                run([*_PATCH, "--forward", *dry, "-i", str(patch)], cwd=root, timeout=60)
        except CommandError as error:
            raise blame.of_build(error, f"{patch}: {blame.DOES_NOT_APPLY}", root) from None


# git


def _git(*arguments: str, timeout: float = 120.0) -> str:
    quiet = {"GIT_TERMINAL_PROMPT": "0"}  # a question would never be answered
    return run(["git", *arguments], timeout=timeout, environment=quiet, needs=processes.NETWORK)


def _repository(location: str) -> Path:
    """The repository on this machine that has the objects of ``location``: the clone itself, or a mirror of the URL."""
    if "://" not in location:
        return Path(location)
    return paths.cache() / "git" / (hashlib.sha256(location.encode()).hexdigest()[:16] + ".git")


def fetched(location: str, say: Callable[[str], None] = log.warning) -> Path:
    """The repository on this machine with what ``location`` has now: the clone itself, or the mirror of a URL.

    :param say: is told when a URL does not answer, and what was fetched of it before is used.
    :raises BenchError: the URL does not answer, and nothing of it is here.
    """
    repository = _repository(location)
    if "://" in location and (trouble := _refresh(location, repository, say)):
        say(f"no network: using what was fetched of {location} on {_fetched_on(repository)} ({trouble})")
    return repository


def _fetched_on(mirror: Path) -> str:
    noted = mirror / _FETCHED
    when = (noted if noted.exists() else mirror / "HEAD").stat().st_mtime  # older mirrors have no note
    return time.strftime("%Y-%m-%d", time.localtime(when))


def _resolve(source: Git, say: Callable[[str], None]) -> str:
    """The commit that the source's revision names now; the one that it is bound to, if any."""
    location, revision = source.location, source.commit or source.revision
    repository = _repository(location)
    trouble: str | None = None
    if "://" in location and not (_COMMIT.fullmatch(revision) and _commit(repository, revision)):
        trouble = _refresh(location, repository, say)
    commit = _commit(repository, revision)
    if not commit and trouble:
        raise BenchError(f"{location}: no revision {revision!r} in what was fetched before, and no network: {trouble}")
    if not commit and not _is_repository(repository):
        raise UsageError(f"{_said(source)}{location} is no git repository; source.git.path is that of a clone of Xen")
    if not commit:
        hint = did_you_mean(revision, branches := _branches(repository))
        there = (
            f"; its branches: {', '.join(branches[:3])}{', ...' if len(branches) > 3 else ''}"
            if branches and not hint
            else ""
        )
        raise UsageError(f"{_said(source)}no revision {revision!r} in {location}{hint}{there}")
    if trouble:
        say(f"no network: using {commit[:12]} of {revision}, fetched on {_fetched_on(repository)} ({trouble})")
    return commit


def _said(source: Git) -> str:
    """How a message about what a recipe says begins."""
    return f"{source.place}: " if source.place else ""


def _branches(repository: Path) -> list[str]:
    """The branches, the newest first."""
    said = _git(
        "-C", str(repository), "for-each-ref", "--sort=-committerdate", "--format=%(refname:short)", "refs/heads"
    )
    return said.split()


def _is_repository(folder: Path) -> bool:
    try:
        return bool(_git("-C", str(folder), "rev-parse", "--git-dir"))
    except CommandError:
        return False


def _commit(repository: Path, revision: str) -> str:
    if not repository.exists():
        return ""
    try:
        asked = f"{revision}^{{commit}}"
        return _git("-C", str(repository), "rev-parse", "--verify", "--quiet", "--end-of-options", asked).split()[-1]
    except CommandError as error:
        if "dubious ownership" in str(error):
            raise
        return ""


def _refresh(url: str, mirror: Path, say: Callable[[str], None]) -> str | None:
    """Fetch all branches and tags. Returns None, or why that failed, where something was fetched before.

    :raises BenchError: the repository does not answer, and nothing of it is here.
    """

    def is_gone() -> bool:
        return not mirror.exists()

    with lock.held(mirror.with_suffix(".lock"), LONGEST_BUILD, f"mirror {mirror}", has_to_go=is_gone):
        if mirror.exists():
            asked, trouble = _silent.get(url, (0.0, ""))
            if trouble and time.monotonic() - asked < _LET_BE:
                return trouble
            try:
                _git("-C", str(mirror), "fetch", "--quiet", "--prune", "origin", timeout=600)
            except CommandError as error:
                _silent[url] = (time.monotonic(), error.cause or error.what)
                return _silent[url][1]
            (mirror / _FETCHED).touch()
            return None
        say(f"fetching {url} for the first time")
        with tempfile.TemporaryDirectory(dir=mirror.parent, prefix="cloning-") as scratch:
            try:
                _git("clone", "--quiet", "--mirror", url, f"{scratch}/mirror", timeout=1800)
            except CommandError as error:
                raise BenchError(
                    f"{url}: cannot be fetched, and nothing of it was fetched before: {error.cause or error.what}\n"
                    f"  a clone on this machine can stand in for it:"
                    f" git config --global url.CLONE.insteadOf {url} (docs/builds.md)"
                ) from None
            Path(scratch, "mirror", _FETCHED).touch()
            os.rename(f"{scratch}/mirror", mirror)
    return None


def _release(source: Git, commit: str) -> str:
    """``-X.Y`` of Xen at ``commit``, or nothing where it is not said.

    Releases differ in nearly all files, so that a tree of two of them would be compiled from nothing at each change.
    """
    try:
        makefile = _git("-C", str(_repository(source.location)), "show", f"{commit}:xen/Makefile")
    except CommandError:
        return ""  # no Xen, which the check-out says
    numbers = [re.search(rf"^(?:export )?{word}\s*:?=\s*(\d+)", makefile, re.MULTILINE) for word in _NUMBERS]
    return "-" + ".".join(number[1] for number in numbers if number) if all(numbers) else ""


def _forget(directory: Path, gone: set[str]) -> None:
    """Remove each object that was made from a file of one of these names, with the note of what it was made from.

    make does not compile an object anew whose source has moved: it stops, since the note (gcc's ``-MD``) names the old
    place and nothing makes that.
    """
    for note in directory.rglob("*.d"):
        if note.is_file() and gone & {Path(word).name for word in note.read_text(errors="replace").split()}:
            note.with_name(note.name.removeprefix(".").removesuffix(".d")).unlink(missing_ok=True)
            note.unlink()


def _check_out(
    source: Git, commit: str, directory: Path, patches: tuple[Path, ...], report: Callable[[str], None]
) -> int:
    """Check ``commit`` out in ``directory``; files that do not differ keep their times. Returns the commit's date."""
    repository = _repository(source.location)
    inside = ("-C", str(directory))
    if directory.exists() and not (directory / _FACTS).exists():
        shutil.rmtree(directory)
    if not directory.exists():
        report("checking out the source")
        with tempfile.TemporaryDirectory(dir=directory.parent, prefix="cloning-") as scratch:
            _git(
                "clone",
                "--quiet",
                "--shared",
                "--no-checkout",
                str(repository),
                f"{scratch}/tree",
                timeout=600,
            )
            os.rename(f"{scratch}/tree", directory)
        (directory / ".git" / "info" / "exclude").write_text(
            f"{_BUSY}\n{_FACTS}\n.xenlab-configured\n.xenlab-tools-configured\n", encoding="utf-8"
        )
        (directory / _FACTS).write_text("{}", encoding="utf-8")
    try:
        held = _commit(directory, "HEAD")
        moved = _git(*inside, "diff", "--name-only", "--no-renames", "--diff-filter=D", held, commit) if held else ""
        _git(*inside, "checkout", "--quiet", "--force", "--detach", commit, timeout=300)
        _git(*inside, "clean", "-qfd")  # what an earlier patch added; ignored files are the objects
    except CommandError as error:
        shutil.rmtree(directory)
        raise BenchError(f"{source.location}: cannot check out {commit}: {error}") from None
    if moved:
        _forget(directory, {Path(name).name for name in moved.splitlines()})
    if not (directory / "xen" / "Makefile").is_file():
        raise UsageError(f"{_said(source)}{source.location} at {commit[:12]} is no Xen source: xen/Makefile is missing")
    _patch(directory, patches)
    return int(_git(*inside, "log", "-1", "--format=%ct").split()[-1])
