"""What comes from elsewhere, changed by chance: it is read, or it is one error. `xenlab selftest fuzz --for 1h`."""

from __future__ import annotations

import base64
import json
import math
import os
import random
import re
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from html.parser import HTMLParser
from itertools import count
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

from fuzzing import Chances, chances  # noqa: F401
from test_hostile_files import GOOD
from test_ledger import held
from test_shape import HEADER, WHOLE

from lab import inventory
from lab.base import paths, processes
from lab.base.errors import BenchError, UsageError
from lab.base.wait import wait_until
from lab.builds import elf, matrix, recipes
from lab.history.store import History
from lab.leases.ledger import FILE, Ledger, Request
from lab.leases.salvage import salvage
from lab.reporting import ctrf, html, junit, site
from lab.results.record import Evidence, Phase
from lab.results.run_folder import RunFolder

# -- YAML that people write ----------------------------------------------------------------------------------------

WORDS = ("5", "[a]", "{a: b}", "null", "&x", "*x", "~", "x" * 300, "1e400", "-oProxyCommand=id", "!!binary x", "'")


def mangled(dice: random.Random, text: str) -> str:
    """Something of it gone, doubled, moved or of another kind."""
    lines = text.splitlines()
    for _ in range(dice.randint(1, 4)):
        place = dice.randrange(len(lines))
        line = lines[place]
        at = dice.randrange(len(line) + 1)
        changes: tuple[Callable[[], str], ...] = (
            lambda: "",
            lambda line=line: f"{line}\n{line}",
            lambda line=line: f"{line.split(':')[0]}: {dice.choice(WORDS)}",
            lambda line=line, at=at: line[:at],
            lambda line=line: f"  {line}",
            lambda line=line, at=at: line[:at] + dice.choice("[]{}:,#&*!|>'\"%@`\x00\t\u2028-?") + line[at:],
            lambda line=line: line.lstrip(),
        )
        lines[place] = dice.choice(changes)()
    return "\n".join(lines) + "\n"


def test_any_inventory_recipe_or_matrix_is_read_or_is_one_error(tmp_path: Path, chances: Chances) -> None:  # noqa: F811
    readers: tuple[tuple[Callable[[Path], object], list[Path]], ...] = (
        (inventory.load, sorted((paths.CHECKOUT / "inventory").glob("*.yaml"))),
        (lambda path: recipes.recipe(str(path)), sorted((paths.CHECKOUT / "firmware" / "builds").glob("*.yaml"))),
        (matrix.load, sorted((paths.CHECKOUT / "firmware" / "matrices").glob("*.yaml"))),
    )
    assert all(files for _, files in readers)
    file = tmp_path / "file.yaml"

    def one(dice: random.Random) -> None:
        read, files = dice.choice(readers)
        file.write_text(mangled(dice, dice.choice(files).read_text(encoding="utf-8")), encoding="utf-8")
        said = why_not(lambda: read(file))
        assert said is None or str(file) in said

    chances.each(60, one)


def why_not(read: Callable[[], object]) -> str | None:
    """The words of the one error that there may be; None: there was none."""
    try:
        read()
    except UsageError as error:
        return str(error)
    return None


# -- run folders ---------------------------------------------------------------------------------------------------

VALUES: tuple[Any, ...] = (
    *(None, True, 0, -1, 5, 2**31, 2**63, 2**64, 10**400, 1.5, 1e20, -1e300, math.inf, math.nan),
    *("", "x", "\x00", "\ud800", "\u202e", "../../etc/passwd", "<script>", "x" * 5000, "a/b", "]]>", "\x1b]0;"),
    *([], {}, [[]], [None], {"": ""}, {"x": []}, ["\x00"], {"\ud800": "x"}),
)


def mutated(dice: random.Random, data: Any) -> Any:
    """The same with something of it replaced or gone, wherever that is."""
    if isinstance(data, dict) and data and dice.random() < 0.8:
        key = dice.choice(sorted(data))
        if dice.random() < 0.1:
            return {name: value for name, value in data.items() if name != key}
        return data | {key: mutated(dice, data[key])}
    if isinstance(data, list) and data and dice.random() < 0.7:
        place = dice.randrange(len(data))
        return [mutated(dice, one) if index == place else one for index, one in enumerate(data)]
    return dice.choice(VALUES)


def write_reports(folder: Path, root: Path) -> None:
    """All that is made of a run folder. :raises UsageError: it is none."""
    run = RunFolder.open(folder).summary()
    html.write(run)
    ctrf.write(run)
    ET.fromstring(junit.write(run).read_bytes())
    store = History(f"sqlite:///{root}/h.sqlite")
    store.import_run(folder)
    site.write(store, root / "site")


def test_reports_are_made_of_any_run_folder_or_it_is_named(tmp_path: Path, chances: Chances) -> None:  # noqa: F811
    numbers = count()

    def one(dice: random.Random) -> None:
        root = tmp_path / f"{next(numbers)}"
        folder = RunFolder.create(root / "run", HEADER)
        header, record = json.loads(HEADER.to_json()), json.loads(WHOLE.to_json())
        for _ in range(dice.randint(1, 3)):
            header = mutated(dice, header) if dice.random() < 0.4 else header
            record = mutated(dice, record) if dice.random() < 0.8 else record
        (folder.path / "run.json").write_text(json.dumps(header))
        (folder.path / "results.jsonl").write_text(f"{json.dumps(record)}\n{WHOLE.to_json()}\n")
        (folder.path / "builds.json").write_text(json.dumps(mutated(dice, {"b": {"key": "aa", "build id": "bb"}})))
        said = why_not(lambda: write_reports(folder.path, root))
        assert said is None or str(folder.path) in said

    chances.each(20, one)


# -- pages ---------------------------------------------------------------------------------------------------------

ATTACKS = (
    *("<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "<svg/onload=alert(1)>", "</title><b>x</b>"),
    *("'\"><xss-tag>", '" onmouseover="alert(1)', "' onfocus='alert(1)", "javascript:alert(1)", "data:text/html,x"),
    *("{{ 7*7 }}", "{% raw %}", "<!--", "--><i>", "]]><script>", "&lt;script&gt;", "</style><script>", "</td></tr>"),
    *("\u202e<b>", "\x00<u>", "\ud800<s>", "\u2028<q>", "<a href='javascript:x'>", "<base href=//evil>", "${x}", "`"),
)


class Structure(HTMLParser):
    """The tags of a page, the names of their attributes, and where links lead that are no plain paths."""

    def __init__(self, page: Path) -> None:
        super().__init__(convert_charrefs=True)
        self.shapes, self.strange = set[tuple[str, str]](), list[str]()
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.shapes.add((tag, ""))
        for name, value in attrs:
            self.shapes.add((tag, name))
            if name in ("href", "src", "action", "style") and value:
                self._look_at(tag, name, value)

    def _look_at(self, tag: str, name: str, value: str) -> None:
        picture = re.fullmatch(r"data:image/svg\+xml;base64,([\w+/=]+)", value)
        if picture:
            for element in ET.fromstring(base64.b64decode(picture[1])).iter():
                self.shapes.add(("svg", element.tag.rpartition("}")[2]))
                self.shapes |= {("svg", one.rpartition("}")[2]) for one in element.attrib}
        elif name != "style" and re.match(r"\s*[a-z][a-z0-9+.-]*:", value, re.IGNORECASE):
            self.strange.append(f"{tag} {name}={value[:80]}")


def attacked(value: Any, attack: Callable[[], str]) -> Any:
    """All text of it followed by an attack; what decides or is looked up stays."""
    if isinstance(value, str):
        return value + attack()
    if isinstance(value, dict):
        return {f"{name}{attack()}": attacked(one, attack) for name, one in value.items()}
    if isinstance(value, tuple):
        return tuple(attacked(one, attack) for one in value)
    if isinstance(value, Evidence | Phase):
        return replace(value, **{name: attacked(getattr(value, name), attack) for name in value.__slots__})
    return value


def pages_of(root: Path, attack: Callable[[], str]) -> tuple[set[tuple[str, str]], list[str]]:
    """What the pages of a run consist of, with an attack in each field of its records."""
    keep = ("verdict", "consoles", "pictures", "finished", "exit_status", "root", "repeat", "attempt", "started")
    changed = {n: attacked(getattr(WHOLE, n), attack) for n in WHOLE.__slots__ if n not in keep}
    # Pictures are files that the run's own processes drew; their titles are not.
    record = replace(WHOLE, **changed, pictures={f"t{attack()}": "t.svg"}, consoles={f"v{attack()}": "c.log"})
    planned = (record.case, f"testcases/boot/test_b.py::gone{attack()}")
    header = replace(HEADER, run_id=f"r{attack()}", selection=f"s{attack()}", notes=(f"n{attack()}",), planned=planned)
    header = replace(header, builds=(record.build,), boards=attacked(dict(HEADER.boards), attack))
    folder = RunFolder.create(root / "run", header)
    folder.append(record)
    folder.append(replace(record, attempt=1, started=record.started - 9))
    (folder.path / "t.svg").write_text('<svg xmlns="http://www.w3.org/2000/svg"/>')
    (folder.path / "c.log").write_text(f"2026-11-23T08:33:53.123Z (XEN) Panic on CPU 0:{attack()}\n", errors="replace")
    folder.write_builds({record.build: {f"key{attack()}": attack(), "key": f"aa{attack()}", "version": attack()}})
    write_reports(folder.path, root)
    shapes, strange = set[tuple[str, str]](), list[str]()
    for page in [folder.path / "report.html", *(root / "site").rglob("*.html")]:
        found = Structure(page)
        shapes |= found.shapes
        strange += found.strange
    return shapes, strange


def test_nothing_in_a_record_becomes_markup_of_a_page(tmp_path: Path, chances: Chances) -> None:  # noqa: F811
    numbers = count()
    plain, links = pages_of(tmp_path / "plain", lambda: "x")
    assert {("td", ""), ("a", "href"), ("svg", "rect")} <= plain
    assert links == []

    def one(dice: random.Random) -> None:
        shapes, strange = pages_of(tmp_path / f"{next(numbers)}", lambda: dice.choice(ATTACKS))
        assert shapes <= plain, f"more than the same pages have without an attack: {shapes - plain}"
        assert strange == []

    chances.each(10, one)


# -- images --------------------------------------------------------------------------------------------------------


def test_an_image_that_is_damaged_anywhere_is_told(tmp_path: Path, chances: Chances) -> None:  # noqa: F811
    file = tmp_path / "xen"

    def one(dice: random.Random) -> None:
        data = bytearray(GOOD)
        for _ in range(dice.randint(1, 8)):
            data[dice.randrange(4, len(data))] = dice.randrange(256)
        file.write_bytes(data[: dice.randint(1, len(data))] if dice.random() < 0.3 else data)
        try:
            elf.build_id(file)
        except ValueError as error:
            assert str(file) in str(error)  # noqa: PT017

    chances.each(1000, one)


# -- the ledger ----------------------------------------------------------------------------------------------------

CHANGE = """\
import random, sys
from pathlib import Path
from lab.base.errors import LabError
from lab.leases.ledger import Ledger
from lab.leases.records import Request
dice, ledger = random.Random(int(sys.argv[2])), Ledger(Path(sys.argv[1]))
while True:
    board = f"b{dice.randrange(4)}"
    try:
        what = dice.randrange(6)
        if what < 2:
            number = ledger.ask(Request("person", f"desk/{sys.argv[2]}", 600.0, (board,)))
            ledger.grant(number, {board: 1})
            print("granted", number, board, flush=True)
        elif what == 2 and (lease := ledger.lease_of(board)):
            ledger.end(lease.id, "over")
        elif what == 3:
            for lease in ledger.leases("ending"):
                ledger.finish(lease.id)
        elif what == 4:
            ledger.quarantine(board, "chance")
        else:
            ledger.clear(board, "chance", checked=True)
    except LabError:
        pass
"""


def test_writers_that_are_killed_at_any_moment_leave_a_ledger_that_holds_together(
    tmp_path: Path,
    chances: Chances,  # noqa: F811
) -> None:
    said = tmp_path / "said"
    said.touch()
    Ledger(tmp_path)

    def one(dice: random.Random) -> None:
        _write_and_be_killed(tmp_path, said, dice)
        ledger = Ledger(tmp_path)
        leases = ledger.leases()
        boards = [board for lease in leases for board in lease.boards]
        assert len(boards) == len(set(boards)), "a board is held twice"
        assert all(lease.boards for lease in leases if lease.state in ("held", "ending"))
        with closing(sqlite3.connect(tmp_path / FILE)) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
        words = [line.split() for line in said.read_text().splitlines()]
        granted = {int(line[1]) for line in words if len(line) == 3 and line[0] == "granted"}
        audited = {event.lease for event in ledger.audit() if event.what == "granted"}
        assert granted
        assert granted <= audited, "a grant that was told is not in the audit"

    chances.each(3, one)


def _write_and_be_killed(folder: Path, said: Path, dice: random.Random) -> None:
    """Two writers at work, for up to half a second after the first change."""
    words = [sys.executable, "-P", "-c", CHANGE, str(folder)]
    before = said.stat().st_size
    with open(said, "ab") as output:
        environment = processes.environment(processes.PYTHON)
        seeds = [str(dice.randrange(10**9)) for _ in range(2)]
        writers = [subprocess.Popen([*words, seed], stdout=output, env=environment) for seed in seeds]
    wait_until(lambda: said.stat().st_size > before, 30, "the first change")
    time.sleep(0.5 * dice.random())
    for writer in writers:
        writer.kill()
        writer.wait(20)


ASKED: tuple[Callable[[Ledger], object], ...] = (
    Ledger.leases,
    Ledger.audit,
    lambda one: one.boards(["b1"]),
    Ledger.all_tokens,
    lambda one: one.quarantine("b1", "x"),
    lambda one: one.grant(one.ask(Request("person", "desk/a", 600.0, ("b1",))), {"b1": 1}),
    lambda one: one.end(1, "x"),
    lambda one: one.why_stop(1, ["b1"]),
)


def test_a_ledger_that_is_damaged_anywhere_answers_or_says_so(tmp_path: Path, chances: Chances) -> None:  # noqa: F811
    """Whatever the damage, every question ends with an answer or as a bench failure, and it can be salvaged."""
    whole = tmp_path / "whole"
    for number in range(5):
        held(Ledger(whole), f"b{number}")
    numbers = count()

    def one(dice: random.Random) -> None:
        folder = tmp_path / f"{next(numbers)}"
        folder.mkdir()
        data = bytearray((whole / FILE).read_bytes())
        for _ in range(dice.choice((1, 5, 200))):
            data[dice.randrange(len(data))] = dice.randrange(256)
        if dice.random() < 0.3:
            del data[dice.randrange(len(data)) :]
        (folder / FILE).write_bytes(data)
        for question in ASKED:
            try:
                question(Ledger(folder))
            except (BenchError, UsageError) as error:
                assert str(error)  # noqa: PT017
        if why_not(lambda: salvage(folder)) is None:
            Ledger(folder).leases()
            assert FILE in os.listdir(folder)

    chances.each(15, one)
