"""Mutation points: found in C as Xen writes it, compiled behind numbers, tried by cases, and what is told of them."""

from __future__ import annotations

import difflib
import json
import os
import re
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from lab import inventory
from lab.base import paths
from lab.base.errors import BuildFailed, HypervisorCrash, UsageError
from lab.builds import mutating, recipes
from lab.builds.gcov import Source
from lab.builds.mutating import Mutating
from lab.case import conclude
from lab.case.conclude import ConsoleSlice
from lab.case.seat import After
from lab.case.switch import Switch
from lab.coverage.measured import CaseCoverage, Measured
from lab.mutation import listing, points, writing
from lab.mutation.listing import Listing, Point
from lab.mutation.points import Kind, Site
from lab.night import mutation
from lab.reporting.mutation import Score
from lab.results.mutation import Fate, Outcome, Ran, ScoreFolder, Trial
from lab.results.record import Verdict
from lab.xen.dom0 import CommandResult, Toolstack

# As Xen writes C: macros that loop, attributes, printk with a prefix, GNU's block as an expression.
XEN_C = """\
#define LIMIT 4
#define FLAG_a 1u
#define FLAG_b 2u
#define for_each_slot(d, i) for ( (i) = 0; (i) < (d)->slots; (i)++ )
#define XENLOG_WARNING "<1>"
#define printk(...) do { } while ( 0 )
#define ASSERT(x) do { } while ( 0 )
#define __init
#define EBUSY 16
#define EINVAL 22

struct domain {
    int slots, used;
    unsigned int flags;
    int entry[LIMIT];
};

static const int sizes[LIMIT] = { FLAG_a | FLAG_b, 1 < 2 };

static int place(int from, int to)
{
    return from - to;
}

int __init boot(struct domain *d)
{
    if ( d->slots > LIMIT )
        return -EINVAL;
    d->slots = LIMIT;
    return 0;
}

int take(struct domain *d, int from, int to)
{
    int i, sum = 0, rc;
    static int once = 1 < 2;

    ASSERT(d->slots < LIMIT);
    if ( d->used >= d->slots )
        return -EBUSY;
    if ( from < 0 || to < 0 )
    {
        printk(XENLOG_WARNING "from %d\\n", from);
        return -EINVAL;
    }
    for_each_slot ( d, i )
        sum += d->entry[i];
    switch ( sum )
    {
    case FLAG_a | FLAG_b:
        d->used += ({ int two = 2; two; });
        break;

    default:
        d->used++;
        break;
    }
    d->flags |= FLAG_a | FLAG_b;
    rc = place(from, to);

    return rc;
}
"""
MAIN_C = """\
#include <stdio.h>
#include <stdlib.h>
#include <xen/mutant.h>
struct domain { int slots, used; unsigned int flags; int entry[4]; };
int take(struct domain *d, int from, int to);
unsigned int mutant_number, mutant_reached;
int main(int count, char **words)
{
    static const int calls[][3] = { {0, 5, 2}, {3, 9, 4}, {1, -1, 2}, {1, 1, -2}, {0, 0, 0} };
    mutant_number = count > 1 ? atoi(words[1]) : 0;
    for ( unsigned int i = 0; i < 5; i++ )
    {
        struct domain d = { .slots = 3, .used = calls[i][0], .entry = { i == 4 ? 1 : i, 1, 1, 7 } };
        int rc = take(&d, calls[i][1], calls[i][2]);
        printf("%d %d %u;", rc, d.used, d.flags);
    }
    printf(" %u", mutant_reached);
    return 0;
}
"""


def found(text: str = XEN_C) -> list[Site]:
    return points.find(text.encode())


def shown(site: Site, text: str = XEN_C) -> str:
    """A point as ``kind: what stands there now -> what the mutant has``."""
    raw = text.encode()
    return f"{site.kind}: {raw[site.cut_from : site.cut_to].decode().strip()} -> {site.mutant.decode()}"


def test_points_are_found_in_c_as_xen_writes_it() -> None:
    assert sorted(map(shown, found())) == sorted(
        [
            "negated: d->used >= d->slots -> !(d->used >= d->slots)",
            "shifted: >= -> >",
            "no error: -EBUSY -> 0",
            "negated: from < 0 || to < 0 -> !(from < 0 || to < 0)",
            "negated: from < 0 -> !(from < 0)",
            "shifted: < -> <=",
            "negated: to < 0 -> !(to < 0)",
            "shifted: < -> <=",
            "no error: -EINVAL -> 0",
            "left out: sum += d->entry[i]; -> ;",
            "left out: d->used += ({ int two = 2; two; }); -> ;",
            "left out: break; -> ;",
            "left out: d->used++; -> ;",
            "left out: d->flags |= FLAG_a | FLAG_b; -> ;",
            "flag dropped: FLAG_a | -> ",
            "flag dropped: | FLAG_b -> ",
            "swapped: from, to -> to, from",
        ]
    )


@pytest.mark.parametrize(
    "code",
    [
        "#define F(x) do { if ( (x) < 1 ) g(x); } while ( 0 )",
        "static int a[3] = { A_FLAG | B_FLAG };\nenum { X = 1 < 2 };",
        "void f(int x) { switch ( x ) { case A_FLAG | B_FLAG: break; } }",
        'void f(int x) { asm volatile ( "nop" :: "r" (x < 1) ); }',
        "void f(int x) { BUILD_BUG_ON(sizeof(int) < 4); int a[1 < 2]; }",
        "void __init f(int x) { if ( x ) g(x); }",
        "int f(void) { int x; x = g(); return x; }",  # without it, x would have no value
        "int f(void) { int x; g(&x); return x; }",
        "void f(int x) { printk(XENLOG_ERR PREFIX, x); ASSERT(x < 1); spin_lock(&l); perfc_incr(calls); }",
        "int f(void) { if ( IS_ENABLED(CONFIG_HVM) ) return 1; return ({ int x = 0; x++; }); }",
        "int f(int x) { return x ?: g(x); }",  # the condition is the value
        "void f(int x) {\n if ( x\n#ifdef A\n && a\n#endif\n ) return; }",
    ],
)
def test_what_cannot_be_written_safely_is_left_alone(code: str) -> None:
    assert [site for site in found(f"{code}\n") if site.kind is not Kind.LEFT_OUT or b"return" not in site.mutant] == []


def test_an_error_in_one_statement_hides_no_other() -> None:
    code = "void f(struct d *d) { weird(d) d->x = 1;\n if ( d->y ) h(d); }\nvoid g(int a) { if ( a ) h(a); }\n"
    assert {site.function for site in found(code)} >= {"g"}


# -- written behind numbers --------------------------------------------------------------------------------------------


def program(folder: Path, text: str = XEN_C) -> tuple[Path, dict[int, Site]]:
    """A program of the code with all its points in it, made by the real compiler."""
    numbers = {site: number for number, site in enumerate(found(text), 1)}
    header = folder / "include" / "xen" / "mutant.h"
    header.parent.mkdir(parents=True)
    header.write_text(writing.HEADER_TEXT)
    (folder / "take.c").write_bytes(writing.write(text.encode(), numbers))
    (folder / "main.c").write_text(MAIN_C)
    words = ["gcc", "-O1", "-Wall", "-Werror", "-Wno-unused", "-I", "include", "take.c", "main.c", "-o", "program"]
    subprocess.run(words, cwd=folder, check=True, timeout=60)
    return folder / "program", {number: site for site, number in numbers.items()}


def said(program: Path, number: int = 0) -> str:
    return subprocess.run([program, str(number)], capture_output=True, text=True, timeout=10, check=True).stdout


def test_a_number_switches_one_mutant_on_and_none_switches_all_off(tmp_path: Path) -> None:
    made, sites = program(tmp_path)
    plain = "3 1 3;-16 3 0;-22 1 0;-22 1 0;0 2 3;"
    assert said(made) == f"{plain} 0"
    of = {shown(site): said(made, number) for number, site in sites.items()}
    assert all(not one.startswith(plain) for one in of.values()), of
    assert of["no error: -EBUSY -> 0"] == "3 1 3;0 3 0;-22 1 0;-22 1 0;0 2 3; 1"
    assert of["swapped: from, to -> to, from"] == "-3 1 3;-16 3 0;-22 1 0;-22 1 0;0 2 3; 2"
    assert of["left out: d->flags |= FLAG_a | FLAG_b; -> ;"] == "3 1 0;-16 3 0;-22 1 0;-22 1 0;0 2 0; 2"
    assert of["flag dropped: | FLAG_b -> "].startswith("3 1 1;")


def test_no_line_moves() -> None:
    numbers = {site: number for number, site in enumerate(found(), 1)}
    lines = writing.write(XEN_C.encode(), numbers).decode().splitlines()
    assert lines[:2] == ["#include <xen/mutant.h>", "#line 1"]
    before = XEN_C.splitlines()
    assert len(lines) == len(before) + 2
    touched = {site.line for site in numbers}
    assert [line for number, line in enumerate(lines[2:], 1) if number not in touched] == [
        line for number, line in enumerate(before, 1) if number not in touched
    ]


def test_a_mutant_is_shown_as_a_programmer_would_have_written_it() -> None:
    site = next(one for one in found() if shown(one) == "swapped: from, to -> to, from")
    assert writing.diff(XEN_C.encode(), site, "xen/common/x.c").splitlines()[2:] == [
        "@@ line 59, take @@",
        "     }",
        "     d->flags |= FLAG_a | FLAG_b;",
        "-    rc = place(from, to);",
        "+    rc = place(to, from);",
        " ",
        "     return rc;",
    ]


@pytest.mark.parametrize("text", [XEN_C, "int f(int a)\n{ return a < 1; }", XEN_C.rstrip("\n")])
def test_a_diff_is_that_of_the_whole_files(text: str) -> None:
    """It is made from a few lines of each, since a file of Xen has a thousand points."""
    whole = text.encode()
    assert (sites := points.find(whole))
    for site in sites:
        wrong = whole[: site.cut_from] + site.mutant + whole[site.cut_to :]
        old, new = (one.decode().splitlines() for one in (whole, wrong))
        lines = [line for line in difflib.unified_diff(old, new, n=2, lineterm="") if not line.startswith("@@")]
        said = writing.diff(whole, site, "x.c").splitlines()
        assert [line for line in said if not line.startswith("@@")][2:] == lines[2:], site


def test_the_name_of_a_point_outlives_what_happens_elsewhere_in_its_file() -> None:
    def ids(text: str) -> list[str]:
        numbers = {site: number for number, site in enumerate(found(text), 1)}
        return [one.id for one in listing.points("xen/x.c", text.encode(), numbers)]

    later = XEN_C.replace("int take(", "int more(int a)\n{\n    return a < 3 ? -EBUSY : 0;\n}\n\nint take(")
    assert set(ids(XEN_C)) < set(ids(later))
    assert len(set(ids(XEN_C))) == len(ids(XEN_C))


# -- compiled ----------------------------------------------------------------------------------------------------------

BAD_C = """\
struct domain { int id; };
struct domain *dom(int id);
long place(struct domain *d, int id);
int pick(struct domain *d, int id)
{
    int rc = place(d, id) < 0 ? -1 : 0;

    if ( __builtin_constant_p(id) )
        rc = 5;
    else
        rc = id < 3;

    return rc + place(dom(id), rc);
}
"""


def tree_of(folder: Path, **files: str) -> Path:
    """A source tree with these files in xen/common."""
    for name, text in {"Makefile": "obj-y += domain.o\n", **files}.items():
        file = folder / "xen" / "common" / name.replace("_c", ".c")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    (folder / "xen" / "include" / "xen").mkdir(parents=True)
    return folder


def make(folder: Path, keep: object) -> None:
    done = subprocess.run(
        ["gcc", "-O1", "-g", "-Wall", "-Werror", "-Iinclude", "-c", "common/domain.c", "-o", "xen-syms"],
        cwd=folder / "xen",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"},
    )
    for line in done.stderr.splitlines():
        keep(line)  # type: ignore[operator]
    if done.returncode:
        raise BuildFailed("gcc", tuple(done.stderr.splitlines()))


def test_what_does_not_compile_is_dropped_and_the_rest_stays(tmp_path: Path) -> None:
    tree = tree_of(tmp_path, domain_c=BAD_C)
    mutating_it = Mutating(tree, ["xen/common/*.c"])
    mutating_it.put()
    told: list[str] = []
    mutating_it.compile(lambda keep: make(tree, keep), told.append)
    kept = mutating_it.keep(tree / "xen" / "xen-syms", tmp_path / "kept")
    mutating_it.take_off()
    diffs = "".join(point.diff for point in kept.points)
    assert "place(id, d)" not in diffs  # of two types
    assert "id <= 3" in diffs and "place(d, id) <= 0" in diffs
    assert (
        kept.does_not_compile and told[-1] == f"{kept.does_not_compile} mutation points do not compile and are dropped"
    )
    assert Listing.load(tmp_path / "kept") == kept


def test_the_tree_is_put_back(tmp_path: Path) -> None:
    tree = tree_of(tmp_path, domain_c=BAD_C)
    before = {path: path.read_text() for path in tree.rglob("*") if path.is_file()}
    mutating_it = Mutating(tree, ["xen/common/domain.c"])
    mutating_it.put()
    assert (tree / writing.HEADER).is_file() and "mutant_is" in (tree / "xen/common/domain.c").read_text()
    mutating_it.take_off()
    assert {path: path.read_text() for path in tree.rglob("*") if path.is_file()} == before


def test_code_that_is_not_compiled_has_no_points(tmp_path: Path) -> None:
    tree = tree_of(tmp_path, domain_c=f"{BAD_C}#ifdef CONFIG_NO\nint no(int a)\n{{\n    return a < 2;\n}}\n#endif\n")
    mutating_it = Mutating(tree, ["xen/common/domain.c"])
    mutating_it.put()
    mutating_it.compile(lambda keep: make(tree, keep), str)
    kept = mutating_it.keep(tree / "xen" / "xen-syms", tmp_path / "kept")
    assert kept.no_code >= 1
    assert not [point for point in kept.points if point.function == "no"]


def test_a_source_that_is_wrong_itself_is_said_to_be(tmp_path: Path) -> None:
    tree = tree_of(tmp_path, domain_c="int f(int a)\n{\n    return b < a;\n}\n")
    mutating_it = Mutating(tree, ["xen/common/domain.c"])
    mutating_it.put()
    with pytest.raises(BuildFailed, match="gcc"):
        mutating_it.compile(lambda keep: make(tree, keep), str)


def test_a_pattern_without_a_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="xen/common/none.c matches no C file"):
        Mutating(tree_of(tmp_path), ["xen/common/none.c"])


def test_a_complaint_has_its_places_from_the_inside_out() -> None:
    lines = """\
./include/xen/lib.h: In function ‘take’:
./include/xen/lib.h:7:40: error: ‘prev’ may be used uninitialized [-Werror=maybe-uninitialized]
common/a.c:12:27: note: ‘prev’ was declared here
common/a.c: In function ‘give’:
./include/xen/mutant.h:14:17: error: size of unnamed array is negative
common/a.c:33:9: note: in expansion of macro ‘mutant_same’
ld: common/b.o: in function `link':
./common/b.c:50: undefined reference to `gone'
"""
    first, second, third = mutating.complaints(lines.splitlines())
    assert (first.function, first.variable, first.places[-1]) == ("take", "prev", ("xen/common/a.c", 12, 27))
    assert (second.function, second.places[-1]) == ("give", ("xen/common/a.c", 33, 9))
    assert (third.function, third.places) == ("link", (("xen/common/b.c", 50, 0),))


def test_a_recipe_names_files_with_points(tmp_path: Path) -> None:
    recipe = recipes.recipe("mutation")
    assert "xen/common/compat/*.c" in recipe.mutation
    recipes.write(recipe, tmp_path / "again.yaml")
    assert recipes.recipe(str(tmp_path / "again.yaml")).mutation == recipe.mutation
    (tmp_path / "wrong.yaml").write_text("source: {debian_binary: {package: xen}}\nmutation: [xen/common/a.c]\n")
    with pytest.raises(UsageError, match="only a build from source can have mutation"):
        recipes.recipe(str(tmp_path / "wrong.yaml"))


# -- tried -------------------------------------------------------------------------------------------------------------


def test_the_number_is_on_between_the_beginning_and_the_end_of_a_case() -> None:
    commands: list[str] = []

    def run(command: str, *, timeout: float = 60.0, check: bool = True) -> CommandResult:
        commands.append(command)
        return CommandResult(command, 0, "17\n", "", 0.1)

    switch, host = Switch(), Toolstack("virt1", run)
    switch.begin(host)
    assert switch.end(host, crashed=False) is None and not commands
    switch.number = 7
    switch.begin(host)
    switch.begin(host)  # a case may ask for its board twice
    assert switch.end(host, crashed=False) is None
    assert commands == [
        "xenhypfs write /params/mutant-reached 0 && xenhypfs write /params/mutant 7",
        "xenhypfs write /params/mutant 0 && xenhypfs cat /params/mutant-reached",
    ]
    assert switch.reached == 17


CASES = """
    def test_notices(bench):
        assert bench.switch.number != 7

    def test_never_notices():
        pass

    def test_is_broken():
        assert False

    def test_cannot_tell(bench):
        if bench.switch.number:
            raise ValueError("what is this")
"""


def tried(folder: Path, *trials: Trial) -> tuple[dict[int, Outcome], str]:
    """Have a pytest session try these points with :data:`CASES`."""
    file = folder / "testcases" / "tried" / "test_tried.py"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(textwrap.dedent(CASES))
    score = ScoreFolder(folder / "score")
    (score.path / "points").mkdir(parents=True, exist_ok=True)
    score.write_plan(trials)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", f"--rootdir={folder}", "-c", str(paths.PYTEST_SETTINGS), "-q"]
        + ["-p", "lab.case.plugin", "-p", "no:cacheprovider", f"--mutation={score.plan}", str(file)],
        cwd=folder,
        env=paths.environment() | {"XDG_STATE_HOME": str(folder / "state")},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return {one.number: one for one in score.outcomes()}, done.stdout + done.stderr


def case(name: str) -> str:
    return f"testcases/tried/test_tried.py::test_{name}"


def test_a_mutant_is_killed_by_a_case_that_passes_without_it(tmp_path: Path) -> None:
    outcomes, log = tried(
        tmp_path,
        Trial("aaaaaaaaaaaa", 7, (case("never_notices"), case("notices"), case("is_broken"))),
        Trial("bbbbbbbbbbbb", 8, (case("notices"), case("never_notices"))),
        Trial("cccccccccccc", 9, (case("is_broken"),)),
        Trial("dddddddddddd", 10, (case("cannot_tell"), case("notices"))),
    )
    assert {number: one.fate for number, one in outcomes.items()} == {
        7: Fate.KILLED,
        8: Fate.NOT_COVERED,  # nothing executed it
        9: Fate.NOT_JUDGED,
        10: Fate.NOT_JUDGED,
    }, log
    assert [one.case for one in outcomes[7].ran] == [case("never_notices"), case("notices")]
    assert outcomes[9].ran[0].reason.startswith("it fails without the mutant, too")
    assert (outcomes[10].ran[0].verdict, outcomes[10].ran[1].verdict) == (Verdict.ERROR, Verdict.PASS)


@pytest.mark.parametrize(("number", "distrusted"), [(0, ["virt1"]), (7, [])])
def test_a_crash_costs_the_saved_state_only_without_a_mutant(number: int, distrusted: list[str]) -> None:
    done: list[str] = []
    rig = SimpleNamespace(after=lambda name, **_: After(), distrust=done.append, take_evidence=lambda: ())
    switch = Switch()
    switch.number = number
    running = SimpleNamespace(seats={"virt1": None}, outcome=None, evidence=[], expected=frozenset())
    crash = HypervisorCrash("virt1", "xen-panic", ("Panic on CPU 0",))
    bench = SimpleNamespace(acquired_rig=rig, switch=switch)
    conclude._clean_up(cast(Any, bench), cast(Any, running), [ConsoleSlice("virt1", (), crash, frozenset())])
    assert done == distrusted


def test_what_was_tried_or_is_in_hand_is_not_tried_again(tmp_path: Path) -> None:
    first = Trial("aaaaaaaaaaaa", 7, (case("notices"),))
    tried(tmp_path, first)
    score = ScoreFolder(tmp_path / "score")
    assert score.claim("bbbbbbbbbbbb")
    before = (score.of_point("aaaaaaaaaaaa") / "outcome.json").stat().st_mtime_ns
    outcomes, log = tried(tmp_path, first, Trial("bbbbbbbbbbbb", 8, (case("notices"),)))
    assert set(outcomes) == {7}, log
    assert (score.of_point("aaaaaaaaaaaa") / "outcome.json").stat().st_mtime_ns == before
    score.forget_unfinished()
    assert score.claim("bbbbbbbbbbbb") and not score.claim("aaaaaaaaaaaa")


def test_what_cases_execute_is_compared_within_the_points_function() -> None:
    file = "xen/common/one.c"
    everything = {file: Source({3, 4, 12, 13, 20}, functions={"before": 3, "f": 10, "after": 20})}
    cases = tuple(
        CaseCoverage(name, "boot", Verdict.PASS, {file: Source(executed=executed)}, 0.0)
        for name, executed in (("a", {3, 12, 13, 20}), ("b", {4, 12}), ("c", {12}))
    )
    known = Measured("run", "coverage", "aa", "4.17", Path("/none"), everything, cases, ())
    point = Point(1, "one-a", "negated", file, "f", 12, 12, "")
    assert mutation.lines_by(known, point, {"a", "b"}) == {"a": {12, 13}, "b": {12}}


def test_a_case_that_adds_nothing_to_a_function_is_not_tried_unless_it_is_of_the_area() -> None:
    lines = {
        "own-slow": frozenset({1, 2, 3}),
        "own-fast": frozenset({1, 2}),
        "as-any-guest": frozenset({1, 3}),
        "adds": frozenset({1, 9}),
        "adds-the-same": frozenset({9}),
    }
    seconds = {"own-slow": 60.0, "own-fast": 5.0, "as-any-guest": 5.0, "adds": 5.0, "adds-the-same": 5.0}
    own = {"own-slow", "own-fast", "of-another-file"}
    assert mutation.order(lines, own, seconds.__getitem__, every=False) == ["own-fast", "own-slow", "adds"]
    assert mutation.order(lines, own, seconds.__getitem__, every=True) == [
        *("own-fast", "own-slow", "adds", "as-any-guest", "adds-the-same")
    ]


@pytest.mark.parametrize(
    ("name", "able"), [("virtual", {"virt1", "virt2"}), ("counted", set()), ("rack-example", set())]
)
def test_boards_that_can_do_it_go_on_from_saved_states(name: str, able: set[str], tmp_path: Path) -> None:
    lab = inventory.load(paths.INVENTORY / f"{name}.yaml")
    folder = ScoreFolder(tmp_path)
    found = mutation.with_states(lab, folder)
    assert {one.name for one in found.boards.values() if one.has_states} == able
    assert replace(found, path=lab.path, boards={}) == replace(lab, boards={})
    assert (found.path != lab.path) is bool(able)


# -- told --------------------------------------------------------------------------------------------------------------


def score_of(fates: dict[str, Fate | None], equivalents: dict[str, str]) -> Score:
    made, outcomes = [], {}
    for number, (name, fate) in enumerate(fates.items(), 1):
        file = f"xen/common/{name.partition('-')[0]}.c"
        made.append(Point(number, name, "negated", file, "f", 10, 10, "--- a\n+++ b\n@@ line 10, f @@\n-x\n+y\n"))
        if fate:
            ran = (Ran("testcases/guest32/test_a.py::test_a", Verdict.PASS, "", 12.0, 3),)
            outcomes[name] = Outcome(name, number, fate, ran, "virt1", 1795000000.0, 15.0)
    areas = {"guest32": ("xen/common/one.c",), "sleep": ("xen/common/none.c",)}
    return Score("mutation", "4.17.5", "aa11", Listing(tuple(made), 3, 4), outcomes, equivalents, areas)


def test_the_score_counts_killed_among_those_whose_code_was_executed() -> None:
    score = score_of(
        {
            "one-a": Fate.KILLED,
            "one-b": Fate.KILLED,
            "one-c": Fate.SURVIVED,
            "one-d": Fate.NOT_COVERED,
            "one-e": Fate.SURVIVED,
            "one-f": None,
            "two-a": Fate.SURVIVED,
        },
        {"one-e": "it is only a hint"},
    )
    ((area, tally),) = score.by_area()
    assert (area, f"{tally.percent:.1f}") == ("guest32", "66.7")
    assert dict(tally.parts) == {"killed": 2, "survived": 1, "not covered": 1, "equivalent": 1, "not tried": 1}
    assert [point.id for point in score.survivors(["xen/common/one.c"])] == ["one-c"]
    text = "\n".join(score.lines())
    assert re.search(r"guest32 +67 % +2 +1 +1 +0 +1 +1\n", text)
    assert "PASS  test_a  12 s, executed 3 times" in text
    data = json.loads(json.dumps(score.as_data(), default=lambda one: one.case))
    assert data["areas"]["guest32"]["killed"] == 2 and data["points"][2]["fate"] == "survived"
    assert score_of({"one-a": None}, {}).tally(["xen/common/one.c"]).percent is None


def test_trials_are_a_fair_sample_whenever_they_stop() -> None:
    made = list(listing.points("xen/x.c", XEN_C.encode(), {site: n for n, site in enumerate(found(), 1)}))
    ordered = listing.in_trial_order(made)
    assert ordered == listing.in_trial_order(reversed(made)) and ordered != made
