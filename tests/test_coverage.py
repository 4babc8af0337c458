"""What cases execute: counters as Xen gives them, what gcov makes of them, and what is told of a run."""

from __future__ import annotations

import json
import os
import re
import shutil
import struct
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest
from run_folders import Runs, result
from typer.testing import CliRunner

from lab.base import paths
from lab.base.errors import BenchError, HypervisorCrash, UsageError
from lab.builds import gcov
from lab.case import counting
from lab.case.counting import Counted
from lab.cli.main import app
from lab.coverage import areas, counters, interface, measured, tables
from lab.coverage.interface import Operation
from lab.coverage.measured import CaseCoverage, Measured
from lab.reporting import coverage as pages
from lab.results.record import TestResult, Verdict
from lab.results.run_folder import RunFolder
from lab.xen.dom0 import CommandResult, Toolstack

KEY = "aaaaaaaa11"
FIRST, SECOND, REBOOTS, CRASHES = (f"testcases/guest32/test_x.py::test_{name}" for name in "abcd")
MAIN_C = """\
#include "half.h"
int main(int count, char **words)
{
    if ( count > 1 )
        return half(count);
    return 0;
}
"""
HALF_H = """\
static inline int half(int x)
{
    return x / 2;
}
"""
IDLE_C = """\
int idle(int x)
{
    return x;
}
"""


VCPU_H = """\
#define __HYPERVISOR_vcpu_op 24
#define __HYPERVISOR_tmem_op 38
#define __HYPERVISOR_arch_0 48
#define VCPUOP_up 1
# define VCPUOP_down 2
#define VCPUOP_is_up 3
#define VCPUOP_gone 9
#define VCPUOP_MAX 9
"""
VCPU_C = """\
#include "../include/public/vcpu.h"
int do_vcpu_op(int op)
{
    switch ( op )
    {
    case VCPUOP_up:

        return 1;
    case VCPUOP_down:
    case VCPUOP_is_up:
        return 2;
    }
    return 0;
}
int main(int count, char **words)
{
    return do_vcpu_op(count);
}
"""


def compiled(tree_folder: Path) -> Path:
    """A program of two objects that counts as Xen does, made in ``xen/`` of a tree."""
    (tree_folder / "xen/common").mkdir(parents=True)
    for name, text in (("main.c", MAIN_C), ("half.h", HALF_H), ("idle.c", IDLE_C)):
        (tree_folder / "xen/common" / name).write_text(text)
    for words in (
        ["-c", "common/main.c", "-o", f"{tree_folder}/xen/common/main.o"],
        ["-c", "common/idle.c", "-o", f"{tree_folder}/xen/common/idle.o"],
        ["common/main.o", "common/idle.o", "-o", "program"],
    ):
        subprocess.run(["gcc", "--coverage", *words], cwd=tree_folder / "xen", check=True, timeout=60)
    return tree_folder / "xen/program"


def counted(program: Path, *words: str) -> bytes:
    """Run it, and give its counters in Xen's form."""
    folder = program.parent / "common"
    for old in folder.glob("*.gcda"):
        old.unlink()
    subprocess.run([str(program), *words], check=False, timeout=20)
    blob = b"VOCX"
    for file in sorted(folder.glob("*.gcda")):
        data = file.read_bytes()
        blob += f"{file}".encode() + b"\0" + struct.pack("<I", len(data)) + data
    return blob


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The program; its notes are those of the build :data:`KEY`."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    made = compiled(tmp_path / "tree")
    build = paths.cache() / "builds" / KEY
    gcov.keep(tmp_path / "tree", made, build / gcov.FOLDER, "gcov")
    (build / "build.json").write_text('{"recipe": {"compiler": "gcc"}}')
    return made


@pytest.fixture
def run(program: Path, tmp_path: Path) -> RunFolder:
    """Two cases that were read, one whose board was booted, and one that crashed it."""

    def of(case: str, *words: str) -> TestResult:
        place = f"cases/{case[-1]}/virt1{counters.SUFFIX}"
        (tmp_path / "kept" / place).parent.mkdir(parents=True)
        counters.save(tmp_path / "kept" / place, counters.parse(counted(program, *words)))
        return result(case, counters={"virt1": place})

    folder = Runs(tmp_path).write(
        of(FIRST),
        of(SECOND, "word"),
        result(REBOOTS, not_read={"virt1": "it was booted during the case"}),
        result(CRASHES, Verdict.FAIL, not_read={"virt1": "its console showed a crash"}),
        key=KEY,
        counts=True,
    )
    shutil.copytree(tmp_path / "kept", folder.path, dirs_exist_ok=True)
    return folder


def test_only_objects_that_counted_are_kept(program: Path, tmp_path: Path) -> None:
    given = counters.parse(counted(program))
    assert {Path(name).name: counters.is_counted(data) for name, data in given.items()} == {
        "idle.gcda": False,
        "main.gcda": True,
    }
    counters.save(tmp_path / "kept.xz", given)
    assert counters.load(tmp_path / "kept.xz") == {name: data for name, data in given.items() if "main" in name}


def test_counters_of_xen_are_read() -> None:
    """A sample of what a board gave: Xen 4.17 made by gcc 12."""
    files = counters.load(paths.CHECKOUT / "tests/data/coverage/sample.counters.xz")
    assert sorted(files) == [
        f"/src/xen/{name}.o.gcda" for name in ("common/.domain", "common/coverage/.coverage", "xsm/.xsm_core")
    ]
    assert all(counters.is_counted(data) for data in files.values())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda blob: blob[:-3], "cut off or damaged"),
        (lambda blob: blob[:9], "cut off after 9 bytes"),
        (lambda blob: b"VOCXname\0" + struct.pack("<I", 4) + b"adcg", "cut off or damaged"),
        (lambda blob: b"LLVM" + blob[4:], "no counters of Xen"),
        (lambda blob: b"", "no counters of Xen"),
    ],
)
def test_damaged_counters_are_refused(change, said: str) -> None:  # type: ignore[no-untyped-def]
    sample = counters.load(paths.CHECKOUT / "tests/data/coverage/sample.counters.xz")
    blob = b"VOCX" + b"".join(name.encode() + b"\0" + struct.pack("<I", len(d)) + d for name, d in sample.items())
    assert counters.parse(blob) == sample
    with pytest.raises(BenchError, match=said):
        counters.parse(change(blob))


def test_counters_of_another_build_are_refused(program: Path, tmp_path: Path) -> None:
    given = counters.parse(counted(program))
    compiled(tmp_path / "other")
    other = {name.replace("/tree/", "/other/"): data for name, data in given.items()}
    notes = paths.cache() / "builds" / KEY / gcov.FOLDER
    with pytest.raises(BenchError, match="of another build"):
        gcov.read("gcov", notes, other)
    name = next(one for one in given if "main" in one)
    swapped = {name: given[name][:8] + b"\1\2\3\4" + given[name][12:]}  # the stamp
    with pytest.raises(BenchError, match="mismatch"):
        gcov.read("gcov", notes, swapped)


def test_lines_and_functions_are_told_by_case(run: RunFolder) -> None:
    found = measured.of_run(run.summary())
    main, half = "xen/common/main.c", "xen/common/half.h"
    assert found.everything.keys() == {main, half, "xen/common/idle.c"}
    assert [one.case for one in found.cases] == [FIRST, SECOND]
    assert found.cases[0].sources[main].executed == {2, 4, 6}
    assert found.cases[1].sources[main].executed == {2, 4, 5}
    assert found.cases[1].sources[half].entered == {"half"} and half not in found.cases[0].sources
    assert [(one.case, one.why) for one in found.not_read] == [
        (REBOOTS, "it was booted during the case"),
        (CRASHES, "its console showed a crash"),
    ]
    assert tables.of_line(found, main, 5) == [
        f"{main}:5: 1 of 2 cases execute it",
        f"  PASS  {SECOND}",
        "  (2 cases or boards were not read)",
    ]
    assert measured.of_run(run.summary()) == found  # from what gcov said before
    assert list(run.path.glob("cases/*/virt1.lines.json.gz"))


def test_a_damaged_file_of_counters_costs_its_case_alone(run: RunFolder) -> None:
    damaged = run.path / run.summary().everything[0].counters["virt1"]
    damaged.write_bytes(damaged.read_bytes()[:-9])
    found = measured.of_run(run.summary())
    assert [one.case for one in found.cases] == [SECOND]
    (lost,) = [one for one in found.not_read if one.case == FIRST]
    assert (lost.board, "damaged" in lost.why) == ("virt1", True), lost
    other = run.path / run.summary().everything[1].counters["virt1"]
    other.write_bytes(b"")
    other.with_name("virt1.lines.json.gz").unlink()
    with pytest.raises(BenchError, match="no counters can be read"):
        measured.of_run(run.summary())


def test_a_run_is_told_in_numbers(run: RunFolder) -> None:
    found = measured.of_run(run.summary())
    files = {"guest32": ("xen/common/main.c", "xen/gone/*.c"), "sleep": ("xen/*/idle.c",)}
    text = "\n".join(tables.overview(found, files))
    assert f"{REBOOTS}  virt1: it was booted during the case" in text
    assert re.search(r"guest32 +4 of +4 100\.0 % +1 of +1 100\.0 % +4 100\.0 %", text)
    assert re.search(r"sleep +0 of +2 +0\.0 %", text)
    assert "no file of this build: guest32: xen/gone/*.c" in text
    assert re.search(rf"5 +3  PASS  {SECOND}", text)
    assert "  (2 cases or boards were not read)" in list(tables.of_file(found, "xen/common/main.c"))
    assert list(tables.never(found, files)) == [
        "  (2 cases or boards were not read)",
        "guest32:",
        "sleep:",
        "  xen/common/idle.c: 2 of 2 lines",
        "    idle:1",
    ]


def test_the_command_says_what_is_wrong(run: RunFolder, tmp_path: Path) -> None:
    def ask(*words: str) -> tuple[int, str]:
        said = CliRunner().invoke(app, ["coverage", *words])
        return said.exit_code, said.output or str(said.exception)

    where = str(run.path)
    status, text = ask(where, "main.c:5", "--json")
    assert status == 0 and json.loads(text)["cases"] == [SECOND]
    assert "no file of this build" in ask(where, "xen/none.c")[1]
    assert "want FILE:LINE" in ask(where, "main.c:five")[1]
    assert "want FILE:LINE" in ask(where, ":5")[1]
    assert "--html has all sources" in ask(where, "--html", "--never")[1]
    assert "--interface has all areas" in ask(where, "--interface", "--never")[1]
    assert "no public headers" in ask(where, "--interface")[1]
    assert "no area 'sleeep' (did you mean sleep?)" in ask(where, "--area", "sleeep")[1]
    plain = Runs(tmp_path / "plain").write(result())
    assert "did not count" in ask(str(plain.path))[1]
    hostile = result(FIRST, Verdict.MISS, reason="\x1b]0;title\x07", counters={}, not_read={})
    unread = Runs(tmp_path / "unread").write(hostile, result(SECOND, not_read={"virt1": "lost"}), key=KEY, counts=True)
    assert "nothing is known" in ask(str(unread.path))[1], "0 % would say that the cases execute nothing"
    run.append(hostile)
    status, text = ask(where)
    assert status == 0 and "\\x1b]0;title\\x07" in text and "\x1b" not in text
    shutil.rmtree(paths.cache() / "builds" / KEY)
    assert "xenlab build" in ask(where)[1]


def test_operations_have_the_cases_that_use_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    tree_folder = tmp_path / "tree"
    for name, text in ((f"{gcov.INTERFACE}/vcpu.h", VCPU_H), ("xen/common/main.c", VCPU_C)):
        (tree_folder / name).parent.mkdir(parents=True)
        (tree_folder / name).write_text(text)
    words = ["-c", "common/main.c", "-o", f"{tree_folder}/xen/common/main.o"]
    for step in (words, ["common/main.o", "-o", "program"]):
        subprocess.run(["gcc", "--coverage", *step], cwd=tree_folder / "xen", check=True, timeout=60)
    gcov.keep(tree_folder, tree_folder / "xen/program", tmp_path / "notes", "gcov")
    cases = tuple(
        CaseCoverage(name, "guest32", Verdict.PASS, gcov.read("gcov", tmp_path / "notes", given), 0.0)
        for name, given in (
            (FIRST, counters.parse(counted(tree_folder / "xen/program"))),
            (SECOND, counters.parse(counted(tree_folder / "xen/program", "word", "word"))),
        )
    )
    everything = gcov.everything(tmp_path / "notes")
    run = Measured("run", "coverage", KEY, "4.17", tmp_path / "notes", everything, cases, ())
    found = {one.name: one for one in interface.of(run)}
    assert found["vcpu_op"].cases == (FIRST, SECOND) and found["vcpu_op"].places == ("xen/common/main.c:2",)
    assert found["VCPUOP_up"] == Operation("vcpu_op", "VCPUOP_up", ("xen/common/main.c:8",), (FIRST,))
    assert found["VCPUOP_down"].cases == found["VCPUOP_is_up"].cases == (SECOND,)
    assert found["VCPUOP_down"].shares_with == ("VCPUOP_is_up",)
    assert found["VCPUOP_gone"].places == () == found["tmem_op"].places
    assert not {"VCPUOP_MAX", "arch_0"} & found.keys()
    text = list(interface.table(run))
    assert "vcpu_op              3 of    3 are used by a case" in text
    assert text[-1] == "not in this build: tmem_op, VCPUOP_gone"
    shutil.rmtree(tmp_path / "notes/source/xen/include")
    with pytest.raises(BenchError, match="xenlab build coverage"):
        interface.of(run)


def test_pages_lead_from_the_area_to_the_line_to_its_cases(run: RunFolder) -> None:
    page = pages.write(measured.of_run(run.summary()), {"guest32": ("xen/common/main.c",)}, run.summary())
    assert page == run.path / "coverage/index.html"
    text = page.read_text()
    assert '<a href="#guest32">guest32</a>' in text and REBOOTS in text
    assert '<a href="xen.common.main.c.html">xen/common/main.c</a>' in text[text.index('id="guest32"') :]
    text = (page.parent / "xen.common.main.c.html").read_text()
    rows = re.findall(r'id="L(\d+)"[^\n]*href="#cases-(\d+)">(\d+)</a></b>([^\n]*)</span>', text)
    ((_, both, _, _),) = [one for one in rows if "count &gt; 1" in one[3]]
    ((_, second, count, _),) = [one for one in rows if "return half(count);" in one[3]]
    assert count == "1"
    sections = dict(re.findall(r'<section id="cases-(\d+)">(.*?)</section>', text, re.DOTALL))
    assert FIRST in sections[both] and SECOND in sections[both]
    assert f'<a href="../report.html#case-1">{SECOND}</a>' in sections[second] and FIRST not in sections[second]


def test_shipped_areas_are_folders_of_cases() -> None:
    assert {area for area in areas.load(paths.SHIPPED) if not (paths.TESTCASES / area).is_dir()} == set()


@pytest.mark.parametrize("pattern", ["''", "."])
def test_a_pattern_that_can_match_nothing_is_refused(tmp_path: Path, pattern: str) -> None:
    (tmp_path / "testcases").mkdir()
    (tmp_path / "testcases" / areas.FILE).write_text(f"areas:\n  boot:\n    - {pattern}\n", encoding="utf-8")
    with pytest.raises(UsageError, match=r"areas\.yaml:2: areas\.boot: '.?' is no pattern of files"):
        areas.load(tmp_path)


class Board:
    """A shell in the place of dom0, with a ``xencov`` that gives counters of a real program."""

    def __init__(self, folder: Path, program: Path) -> None:
        self.bin = folder / "bin"
        self.bin.mkdir()
        (folder / "blob").write_bytes(counted(program))
        script = f'#!/bin/sh\n[ "$1" = reset ] || cp {folder}/blob "$2"\n'
        (self.bin / "xencov").write_text(script)
        (self.bin / "xencov").chmod(0o755)

    def run(self, command: str, *, timeout: float = 60.0, check: bool = True) -> CommandResult:
        environment: Mapping[str, str] = os.environ | {"PATH": f"{self.bin}:{os.environ['PATH']}"}
        done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=timeout, env=environment)
        if check and done.returncode:
            raise BenchError(f"status {done.returncode}: {done.stderr}")
        return CommandResult(command, done.returncode, done.stdout, done.stderr, 0.0)


def test_a_case_is_counted_from_its_begin_to_its_end(
    program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(counting, "FOLDER", str(tmp_path / "run"))
    board = Board(tmp_path, program)
    host = Toolstack("virt1", board.run)
    first, second = Counted(), Counted()
    for one in (first, second):
        folder = tmp_path / f"case{one is second:d}"
        folder.mkdir()
        one.begin(host, folder)
        one.end(host, folder, crashed=False)
        assert counters.load(one.files["virt1"]) and not one.not_read
    assert [file.name for file in sorted(tmp_path.glob("case*/*"))] == [
        "virt1.boot.counters.xz",  # before the first reset of a boot alone
        "virt1.counters.xz",
        "virt1.counters.xz",
    ]


def crash(*_: object, **__: object) -> CommandResult:
    raise HypervisorCrash("virt1", "xen-panic", ("Panic on CPU 0:",))


def test_counters_that_are_lost_are_said(program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counting, "FOLDER", str(tmp_path / "run"))
    board = Board(tmp_path, program)
    host = Toolstack("virt1", board.run)
    crashed, booted, refused, absent = Counted(), Counted(), Counted(), Counted()
    crashed.begin(host, tmp_path)
    crashed.end(host, tmp_path, crashed=True)
    booted.begin(host, tmp_path)
    booted.boot_ids["virt1"] = "another"
    booted.end(host, tmp_path, crashed=False)
    absent.end(host, tmp_path, crashed=False)
    (board.bin / "xencov").write_text("#!/bin/sh\necho no coverage >&2; exit 1\n")
    refused.begin(host, tmp_path)
    refused.end(host, tmp_path, crashed=False)
    said = [one.not_read["virt1"] for one in (crashed, booted, absent, refused)]
    assert said[:3] == [
        "its console showed a crash",
        "it was booted during the case",
        "the board did not come up for the case",
    ]
    host.run = crash  # type: ignore[method-assign]
    with pytest.raises(HypervisorCrash):  # seen on the console meanwhile
        Counted().begin(host, tmp_path)
    assert "could not be reset" in said[3] and "no coverage" in said[3]
    assert not any(one.files for one in (crashed, booted, absent, refused))
