"""Fetches Debian packages and sources by apt with a private state directory: without root, installing nothing.

The package sources are the machine's own entries, with ``deb-src`` added, so mirrors, keys, proxies and pins are the
machine's. Packages of another release of Debian come from the same mirrors.
"""

from __future__ import annotations

import json
import logging
import platform
import re
import time
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from lab.base import lock, paths, processes
from lab.base.errors import BenchError
from lab.builds.command import CommandError, run

log = logging.getLogger(__name__)

MACHINE = Path("/etc/apt")
DOM0_SUITE = "bookworm"  # the release of Debian that virtual boards' dom0 is of, and all that runs there
FRESH = 24 * 3600.0  # seconds for which package lists, and the newest version of a package, are believed
_FIELD = re.compile(r"^(?P<name>[A-Za-z-]+):(?P<value>.*)$")
_ONE_WITH_SUITE = re.compile(r"(deb(?:-src)?\s+(?:\[[^\]]*\]\s*)?\S+\s+)(\S+)(\s.*)")
_ONE_LINE = re.compile(r"^deb(?:-src)?\s+(?P<rest>(?:\[[^\]]*\]\s*)?\S+\s+\S+.*)$")


def deb822_with_sources(text: str) -> str:
    """Stanzas of a ``.sources`` file as both ``deb`` and ``deb-src``, without comments and disabled ones."""
    stanzas: list[list[str]] = [[]]
    for line in text.splitlines():
        if line.startswith("#"):
            continue  # a comment does not end a stanza: sources.list(5)
        if line.strip():
            stanzas[-1].append(line)
        elif stanzas[-1]:
            stanzas.append([])
    kept = []
    for stanza in stanzas:
        fields = {found["name"].lower(): found["value"].strip() for line in stanza if (found := _FIELD.match(line))}
        if "uris" not in fields or fields.get("enabled", "yes").lower() in (
            "no",
            "false",
            "without",
            "off",
            "disable",
        ):
            continue
        lines = [line for line in stanza if not line.lower().startswith(("types:", "enabled:"))]
        kept.append("\n".join(["Types: deb deb-src", *lines]) + "\n")
    return "\n".join(kept)


def one_line_with_sources(text: str) -> str:
    """Lines of a ``.list`` file as both ``deb`` and ``deb-src``, each once."""
    entries: dict[str, None] = {}
    for line in text.splitlines():
        if match := _ONE_LINE.match(line.split("#")[0].strip()):
            entries[" ".join(match["rest"].split())] = None
    return "".join(f"deb {entry}\ndeb-src {entry}\n" for entry in entries)


def of_suite(text: str, own: str, suite: str) -> str:
    """Entries of the release ``own`` turned into those of ``suite``; entries of anything else are left out.

    ``text`` is of either form, as :func:`deb822_with_sources` and :func:`one_line_with_sources` give it.
    """

    def moved(suites: str) -> str:
        words = [word for word in suites.split() if word == own or word.startswith(f"{own}-")]
        return " ".join(suite + word.removeprefix(own) for word in words)

    kept = []
    for stanza in text.split("\n\n"):
        if found := re.search(r"^Suites:(.*)$", stanza, re.MULTILINE | re.IGNORECASE):
            if suites := moved(found[1]):
                kept.append(f"{stanza[: found.start()]}Suites: {suites}{stanza[found.end() :]}".rstrip() + "\n")
            continue
        lines = [_ONE_WITH_SUITE.fullmatch(line) for line in stanza.splitlines()]
        kept.append("".join(f"{one[1]}{to}{one[3]}\n" for one in lines if one and (to := moved(one[2]))))
    return "\n".join(kept)


def of_any_architecture(text: str) -> str:
    """Entries without what limits them to architectures: ``[arch=amd64]``, or the field ``Architectures``."""
    text = re.sub(r"^Architectures:.*\n", "", text, flags=re.MULTILINE | re.IGNORECASE)
    return re.sub(r"^(deb(?:-src)?[ \t]+\[[^\]\n]*?)\barch\+?=[^\]\s]*\s*", r"\1", text, flags=re.MULTILINE).replace(
        "[] ", ""
    )


class PrivateApt:
    """apt with its lists under ``directory`` and the package sources found under ``machine``.

    ``suite`` names a release of Debian. Packages of one that is not the machine's are asked for at the same mirrors.
    ``architecture`` is Debian's word for one that is not the machine's.

    :raises BenchError: a release is named, and the machine does not tell its own.
    """

    def __init__(
        self, directory: Path | None = None, machine: Path = MACHINE, suite: str = "", architecture: str = ""
    ) -> None:
        if suite and not architecture and suite == own_suite():
            suite = ""
        self.directory = directory or paths.cache() / "-".join(word for word in ("apt", suite, architecture) if word)
        self.machine, self.suite, self.architecture = machine, suite, architecture
        self._was_asked = False  # so that a source without an answer is asked once

    def fetch_source(self, package: str, version: str, into: Path) -> Path:
        """Download a source package to the folder ``into``; gives its ``.dsc``.

        :raises BenchError: apt failed; names the versions there are.
        """
        name = f"{package}={version}"
        command = ["apt-get", "-q", "source", "--only-source", "--download-only", name]
        with self._locked():
            self._fetch(command, into, f"source package {name}")
        found = sorted(into.glob("*.dsc"))
        if not found:
            raise BenchError(f"source package {name}: apt-get was content, but left no .dsc in {into}")
        return found[0]

    def fetch_binary(self, package: str, version: str, into: Path) -> Path:
        """Download a binary package to the folder ``into``.

        :raises BenchError: apt failed; names the versions there are.
        """
        name = f"{package}={version}"
        with self._locked():
            self._fetch(["apt-get", "-q", "download", name], into, f"package {name}")
        found = sorted(into.glob("*.deb"))
        if not found:
            raise BenchError(f"package {name}: apt-get was content, but left no .deb in {into}")
        return found[0]

    def fetch_newest(self, packages: Sequence[str], into: Path) -> list[Path]:
        """Download the versions of binary packages that an installation would take now to the empty folder ``into``.

        :raises BenchError: apt failed.
        """
        with self._locked():
            self._fetch(["apt-get", "-q", "download", *packages], into, f"packages {' '.join(packages)}")
        found = sorted(into.glob("*.deb"))
        if len(found) != len(packages):
            raise BenchError(f"{len(packages)} packages: apt-get was content, but left {len(found)} in {into}")
        return found

    def newest(self, package: str) -> str:
        """The version that an installation would take now; asked anew once a day.

        Without a network the last answer stands.

        :raises BenchError: apt knows no such package.
        """
        file = self.directory / "newest.json"
        if known := self._known(file, package, FRESH):
            return known
        with self._locked():
            try:
                if not self._is_fresh():
                    self._update()
                version = self._candidate(package)
            except BenchError as error:
                if known := self._known(file, package, float("inf")):
                    log.warning("%s: taking %s, known from before: %s", package, known, error)
                    return known
                raise
            answers = self._answers(file) | {package: [version, time.time()]}
            temporary = file.with_suffix(".new")
            temporary.write_text(json.dumps(answers), encoding="utf-8")
            temporary.replace(file)
        return version

    def depends(self, *packages: str) -> tuple[str, ...]:
        """The packages that ``packages`` depend on, as apt would take them now.

        :raises BenchError: apt knows no such package.
        """
        with self._locked():
            if not self._is_fresh():
                self._update()
            said = run([*self._with_config("apt-cache"), "depends", "--important", *packages], timeout=60)
        return tuple(dict.fromkeys(re.findall(r"^ *\|?(?:Pre)?Depends: ([\w.+-]+)$", said, re.MULTILINE)))

    def libraries(self, *packages: str) -> tuple[str, ...]:
        """``packages`` and all libraries they need, down to the C library, as package names.

        :raises BenchError: apt knows no such package.
        """
        found, new = list(packages), list(packages)
        while new:
            new = [one for one in self.depends(*new) if one.startswith(("lib", "zlib")) and one not in found]
            found += new
        return tuple(found)

    def binary_sources(self) -> dict[str, str]:
        """The package sources without ``deb-src``: name of a file as sources.list(5) wants it, and its text."""
        found = {}
        for name, text in self._sources():
            lines = text.replace("Types: deb deb-src", "Types: deb").splitlines(keepends=True)
            if kept := "".join(line for line in lines if not line.startswith("deb-src")):
                found[name] = kept
        return found

    def _answers(self, file: Path) -> dict[str, list[object]]:
        try:
            answers = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return answers if isinstance(answers, dict) else {}

    def _known(self, file: Path, package: str, age: float) -> str:
        match self._answers(file).get(package):
            case [str(version), float(when)] if 0 <= time.time() - when < age:
                return version
        return ""

    def _candidate(self, package: str) -> str:
        said = run([*self._with_config("apt-cache"), "policy", package], timeout=60)
        match = re.search(r"^[ \t]*Candidate: (\S+)$", said, re.MULTILINE)
        if not match or match[1] == "(none)":
            raise BenchError(f"package {package}: the machine's package sources ({self.machine}) have none")
        return match[1]

    def _fetch(self, command: list[str], into: Path, what: str) -> None:
        command = [*self._with_config(command[0]), *command[1:]]
        if not self._is_fresh():
            self._update()
        try:
            run(command, timeout=600, cwd=into, what=what, needs=processes.NETWORK)
        except CommandError:
            log.warning("%s: not fetched; asking for new package lists and trying once more", what)
            self._update()  # lists may be older than the mirror
            try:
                run(command, timeout=600, cwd=into, what=what, needs=processes.NETWORK)
            except CommandError as error:
                raise BenchError(f"{error}\n{self._offered(what.split()[-1].split('=')[0])}") from None

    def _offered(self, package: str) -> str:
        said = run([*self._with_config("apt-cache"), "madison", package], timeout=60)
        versions = dict.fromkeys(line.split("|")[1].strip() for line in said.splitlines() if line.count("|") == 2)
        return f"versions on offer: {', '.join(versions) or 'none'}"

    def _locked(self) -> AbstractContextManager[int]:
        return lock.held(self.directory / "lock", 900, "the private apt state")

    def _is_fresh(self) -> bool:
        stamp = self.directory / "updated"
        return self._was_asked or (
            stamp.exists()
            and time.time() - stamp.stat().st_mtime < FRESH
            and stamp.read_text(encoding="utf-8") == self._sources_text()
        )

    def _sources_text(self) -> str:
        return "\n".join(text for _, text in self._sources())

    def _update(self) -> None:
        """Fetch the lists. A source that does not answer is no failure: the package may be in another."""
        (self.directory / "updated").unlink(missing_ok=True)
        self._write_config()
        try:
            run(
                [*self._with_config("apt-get"), "-q", "update"],
                timeout=300,
                what="package lists",
                needs=processes.NETWORK,
            )
        except CommandError as error:
            self._was_asked = True
            first = next((line.strip() for line in str(error).splitlines() if line.strip().startswith("E: ")), "")
            log.warning("some package lists could not be fetched (%s); going on with those that are there", first)
            log.info("%s", error)
            return
        (self.directory / "updated").write_text(self._sources_text(), encoding="utf-8")

    def _sources(self) -> Iterable[tuple[str, str]]:
        for file in (self.machine / "sources.list", *sorted((self.machine / "sources.list.d").glob("*"))):
            if not file.is_file() or file.suffix not in (".list", ".sources"):
                continue
            text = file.read_text(encoding="utf-8", errors="replace")
            text = deb822_with_sources(text) if file.suffix == ".sources" else one_line_with_sources(text)
            text = of_any_architecture(text) if self.architecture else text
            yield file.name, of_suite(text, own_suite(), self.suite) if self.suite else text

    def _write_config(self) -> None:
        parts = self.directory / "sources.list.d"
        for folder in (parts, self.directory / "lists" / "partial", self.directory / "archives" / "partial"):
            folder.mkdir(parents=True, exist_ok=True)
        for old in parts.iterdir():
            old.unlink()
        written = 0
        for name, text in self._sources():
            if text:
                (parts / name).write_text(text, encoding="utf-8")
                written += 1
        if not written:
            raise BenchError(f"{self.machine}: no Debian package source there that could be asked")
        (self.directory / "status").touch()
        architecture = f'APT::Architecture "{self.architecture}";\n#clear APT::Architectures;\n'
        # A file, since "#clear" has no option form: the machine's update hooks need not run for our state.
        self._config.write_text(
            f'Dir::State "{self.directory}/";\n'
            f'Dir::State::lists "{self.directory}/lists/";\n'
            f'Dir::State::status "{self.directory}/status";\n'
            f'Dir::Cache "{self.directory}/";\n'
            'Dir::Etc::sourcelist "/dev/null";\n'
            f'Dir::Etc::sourceparts "{parts}";\n'
            'APT::Sandbox::User "root";\n'  # the _apt user cannot write below a home directory
            'Acquire::Languages "none";\n'
            f"{architecture if self.architecture else ''}"
            "#clear APT::Update::Post-Invoke;\n"
            "#clear APT::Update::Post-Invoke-Success;\n",
            encoding="utf-8",
        )

    @property
    def _config(self) -> Path:
        return self.directory / "apt.conf"

    def _with_config(self, program: str) -> list[str]:
        return [program, "-c", str(self._config)]


def own_suite() -> str:
    """The release this machine runs: ``bookworm``. :raises BenchError: os-release(5) does not tell."""
    if codename := platform.freedesktop_os_release().get("VERSION_CODENAME"):
        return codename
    raise BenchError("/etc/os-release: no VERSION_CODENAME, so the mirror of another release cannot be told")
