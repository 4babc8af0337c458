"""constraints.txt: what ./xenlab installs is pinned to a version and to the hashes of its files."""

from __future__ import annotations

import re
import tomllib

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from lab.base import paths

RENEW = "run contrib/renew-constraints"


def pinned() -> dict[str, tuple[str, int]]:
    """The version and the number of hashes of each package."""
    text = (paths.CHECKOUT / "constraints.txt").read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    found = {}
    for line in lines:
        match = re.match(r"([A-Za-z0-9._-]+)(?:\[[^]]*\])?==([^\s;]+)", line)
        assert match, f"{line}: no exact version; {RENEW}"
        found[canonicalize_name(match[1])] = match[2], len(re.findall(r"--hash=sha256:[0-9a-f]{64}\b", line))
    return found


def test_every_package_has_an_exact_version_and_hashes() -> None:
    packages = pinned()
    assert len(packages) > 50
    assert [name for name, (_, hashes) in packages.items() if not hashes] == [], RENEW


def test_what_the_project_needs_is_there_in_a_version_that_it_takes() -> None:
    project = tomllib.loads((paths.CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    packages = pinned()
    wanted = [Requirement(text) for text in (*project["dependencies"], *project["optional-dependencies"]["dev"])]
    assert len(wanted) > 20
    for one in wanted:
        version, _ = packages.get(canonicalize_name(one.name), ("none", 0))
        assert version != "none", f"{one.name} is not in constraints.txt; {RENEW}"
        assert one.specifier.contains(version, prereleases=True), f"{one} and not {version}; {RENEW}"
