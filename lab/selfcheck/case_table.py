"""The table of all cases, made from docstrings and markers, the mutants' manifests and what runs have shown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby

from lab.base import paths
from lab.night import planning
from lab.night.options import NightlyOptions
from lab.night.planning import Case
from lab.results import reference
from lab.selfcheck import mutant_manifest

FILE = paths.SHIPPED / "docs" / "case-table.md"
HEAD = """\
# The cases

`xenlab cases --write` makes this table. What needs `shadow`, shadow paging, is not security supported (XSA-495).

- needs: a case is SKIP on a board that lacks one of these; in parentheses is what only some variants need
- selection: the smallest of quick, full and weekly that has the case
- keeps: the evidence in the report
- mutants: hypervisors that are broken on purpose, on which the case must fail (`xenlab selftest --mutants AREA`). A
  case without a mutant is not proved to notice anything; in parentheses is why no mutant is possible
- virtual boards: how the case ended there, and how often in a row; of variants, the least often
  (`testcases/reference.yaml`)
"""


def every() -> list[Case]:
    """All cases, weekly ones too. :raises UsageError: they cannot be collected."""
    return planning.collect(NightlyOptions(), "weekly")


def text() -> str:
    """The whole file.

    :raises UsageError: the cases cannot be collected, or a manifest of mutants is wrong.
    """
    cases = every()
    rows = reference.read()
    biting: dict[str, list[str]] = {}
    for area in mutant_manifest.areas():
        biting |= {case: [f"({why})"] for case, why in mutant_manifest.unproved(area).items()}
        for mutant in mutant_manifest.load(area):
            for function in dict.fromkeys(map(planning.function_of, mutant.cases)):
                biting.setdefault(function, []).append(mutant.name)
    parts = [HEAD]
    for area, of_area in groupby(sorted(cases, key=lambda case: case.area), key=lambda case: case.area):
        parts.append(
            f"\n## {area}\n\n| case | proves | needs | selection | keeps | mutants | virtual boards |\n"
            "|---|---|---|---|---|---|---|\n"
        )
        parts += _rows(list(of_area), biting, rows)
    return "".join(parts)


def _rows(
    cases: Sequence[Case], biting: Mapping[str, Sequence[str]], rows: Mapping[str, reference.Row]
) -> Iterator[str]:
    by_function: dict[str, list[Case]] = {}
    for case in cases:
        by_function.setdefault(planning.function_of(case.nodeid), []).append(case)
    for function, variants in by_function.items():
        name = function.rpartition("::")[2]
        if len(variants) > 1:
            name += f" ({len(variants)} variants)"
        selection = "/".join(dict.fromkeys(case.selection for case in variants))
        cells = (
            f"`{name}`" if len(variants) == 1 else f"`{name.partition(' ')[0]}` {name.partition(' ')[2]}",
            " ".join(variants[0].doc.split("\n\n")[0].split()),
            _needs(variants),
            selection,
            ", ".join(variants[0].evidence).replace("<", "&lt;"),
            ", ".join(biting.get(function, [])),
            reference.text(rows, [case.nodeid for case in variants]),
        )
        yield "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |\n"


def _needs(variants: Sequence[Case]) -> str:
    """Capabilities that all variants need, those of some in parentheses, and options of Xen."""
    sets = [set(case.needs) for case in variants]
    always, sometimes = set.intersection(*sets), set.union(*sets)
    words = [*sorted(always), *(f"({word})" for word in sorted(sometimes - always))]
    if variants[0].boards == 2:
        words.append("two boards")
    if options := dict.fromkeys(case.xen_options for case in variants if case.xen_options):
        words.append(f"Xen booted with {', '.join(f'`{one}`' for one in options)}")
    return ", ".join(words)
