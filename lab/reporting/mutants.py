"""The hypervisors broken on purpose that a case must fail, by the manifests in ``tests/mutants``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from lab.base import paths
from lab.base.errors import UsageError
from lab.base.files import node_at, read_yaml

FOLDER = paths.CHECKOUT / "tests" / "mutants"


@dataclass(frozen=True, slots=True)
class Mutant:
    """One of them, and how it is broken."""

    name: str
    why: str


@cache
def by_case() -> Mapping[str, tuple[Mutant, ...]]:
    """For each case (without its parameters) its mutants; nothing where the manifests are not there or wrong."""
    found: dict[str, list[Mutant]] = {}
    for file in sorted(FOLDER.glob("*.yaml")):
        try:
            mutants = node_at(read_yaml(file), ("mutants",))
            for name, about in mutants.items() if isinstance(mutants, dict) else ():
                mutant = Mutant(str(name), str(about["why"]))
                for case in dict.fromkeys([str(about["case"]), *map(str, about.get("also", {}))]):
                    found.setdefault(case.partition("[")[0], []).append(mutant)
        except (UsageError, KeyError, TypeError, AttributeError, ValueError):
            continue  # `xenlab selftest` says what is wrong with it
    return {case: tuple(dict.fromkeys(mutants)) for case, mutants in found.items()}


def of(case: str) -> tuple[Mutant, ...]:
    """Those of a case, by its node id."""
    return by_case().get(case.partition("[")[0], ())
