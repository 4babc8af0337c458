"""The documents: links lead somewhere, files that they name are there, and every command is described."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from typer.core import TyperGroup

from lab.base import paths
from lab.cli.main import app

README_LINES = 60  # a screen, with room for the table
PICTURE_BYTES = 100_000


def _documents() -> list[Path]:
    listed = subprocess.run(
        ["git", "-C", str(paths.CHECKOUT), "ls-files", "-z", "--cached", "--others", "--exclude-standard", "*.md"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return [paths.CHECKOUT / name for name in listed.stdout.split("\0") if name and (paths.CHECKOUT / name).exists()]


@pytest.mark.parametrize("file", _documents(), ids=lambda file: str(file.relative_to(paths.CHECKOUT)))
def test_links_lead_somewhere(file: Path) -> None:
    text = re.sub(r"```.*?```", "", file.read_text(encoding="utf-8"), flags=re.DOTALL)
    targets = re.findall(r"\]\(([^)\s#]+)[^)]*\)", text)
    assert not [one for one in targets if not re.match(r"\w+:", one) and not (file.parent / one).exists()]


@pytest.mark.parametrize("name", ["CONTRIBUTING.md", "docs/architecture.md", "docs/cases.md"])
def test_files_that_are_named_are_there(name: str) -> None:
    text = (paths.CHECKOUT / name).read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:lab|benchmarks|testcases|firmware|inventory)/[\w/.-]*)`", text))
    named = {one for one in named if "AREA" not in one and one != "lab/_shipped/"}  # the latter is in a wheel only
    assert named and not [one for one in named if not (paths.SHIPPED / one).exists()]


@pytest.mark.parametrize("name", ["testcases", "tests"])
def test_every_folder_of_cases_and_tests_has_a_line_that_says_what_belongs_there(name: str) -> None:
    folder = paths.CHECKOUT / name
    said = set(re.findall(r"^\| `(\w+)` \| \w", (folder / "README.md").read_text(encoding="utf-8"), re.MULTILINE))
    assert said == {one.name for one in folder.iterdir() if one.is_dir() and one.name[0] not in "_."}


def test_what_contributing_names_in_a_file_is_in_it() -> None:
    """Such as "`lab/leases/queue.py`: `in_order`": who looks for it finds it there."""
    text = (paths.CHECKOUT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    places = re.findall(r"`(lab/[\w/]+\.py)`: (?:a (?:row|class) of )?`(\w+)`", text)
    assert len(places) >= 4
    for file, word in places:
        content = (paths.CHECKOUT / file).read_text(encoding="utf-8")
        assert re.search(rf"^(def {word}\b|class {word}\b|{word}\b)", content, re.MULTILINE), f"{file}: {word}"


def _commands(group: TyperGroup, before: str = "") -> Iterator[str]:
    for name, command in group.commands.items():
        words = f"{before} {name}".strip()
        if isinstance(command, TyperGroup):
            yield from _commands(command, words)
        else:
            yield words


def test_every_command_is_described() -> None:
    top = typer.main.get_command(app)
    assert isinstance(top, TyperGroup)
    text = (paths.CHECKOUT / "docs" / "commands.md").read_text(encoding="utf-8")
    rows = [line.split(" | ")[0] for line in text.splitlines() if line.startswith("| `xenlab")]
    said = {word for row in rows for word in re.findall(r"[a-z]+", row)} | {"man", "version", "nightly"}
    missing = [one for one in _commands(top) if not set(one.split()) <= said | {"quarantine", "clear"}]
    assert not missing


def test_readme_is_one_screen_and_shows_the_report() -> None:
    text = (paths.CHECKOUT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= README_LINES
    (picture,) = re.findall(r"!\[[^]]+\]\((.+)\)", text)
    assert 0 < (paths.CHECKOUT / picture).stat().st_size < PICTURE_BYTES
    assert "./xenlab nightly" in text and "./xenlab selftest" in text
