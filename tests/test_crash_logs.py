"""Crashes, warnings and harmless lines in the formats of real machines: ``tests/data/crashes``."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
import yaml

from lab.console import damaged, untold
from lab.console.crashes import Crash, parse
from lab.console.lines import message, speaker
from lab.console.patterns import classify, crash_excerpt
from lab.console.recalled import REACH, Live, crashes
from lab.console.signatures import SIGNATURES
from lab.console.wrapped import unwrapped

DATA = Path(__file__).parent / "data" / "crashes"


@dataclass(frozen=True)
class Record:
    text: str
    kind: str = "line"


def records_of(entry: dict) -> list[Record]:
    if "records" in entry:
        return [Record(**one) for one in entry["records"]]
    return [Record(line.rstrip("\r")) for line in entry["log"].split("\n")]


@cache
def entries() -> dict[str, dict]:
    found = [
        entry for file in sorted(DATA.glob("*.yaml")) for entry in yaml.safe_load(file.read_text(encoding="utf-8"))
    ]
    by_name = {entry["name"]: entry for entry in found}
    assert len(by_name) == len(found), "a name stands twice"
    return by_name


def with_key(key: str) -> list[str]:
    return [name for name, entry in entries().items() if key in entry]


def first_crash(records: Sequence[Record]) -> tuple[int, Crash] | None:
    """The line, from 1, of the first crash, and what was read of it."""
    for index, signature in crashes(records):
        if records[index].kind in ("line", "partial"):
            return index + 1, parse(signature.name, crash_excerpt(records, index))
    return None


def crash_of(name: str) -> Crash:
    found = first_crash(records_of(entries()[name]))
    assert found is not None, f"{name}: no crash"
    return found[1]


@pytest.mark.parametrize("name", with_key("crash"))
def test_a_crash_is_found_and_read(name: str) -> None:
    entry = entries()[name]
    found = first_crash(records_of(entry))
    assert found is not None
    line, crash = found
    assert line in entry["crash"]
    assert crash.kind == entry.get("kind", crash.kind)
    assert entry.get("message", "") in crash.message
    assert crash.cpu == entry.get("cpu", crash.cpu)
    assert list(crash.functions) == entry.get("functions", list(crash.functions))
    for told in (crash.label, crash.fingerprint):
        assert "label_lacks" not in entry or entry["label_lacks"] not in told
    assert crash.fingerprint.endswith(crash.label)


@pytest.mark.parametrize("name", with_key("crash"))
def test_a_message_begins_with_the_message_and_not_with_what_stands_before_it(name: str) -> None:
    crash = crash_of(name)
    assert crash.message
    assert message(crash.message) == crash.message


@pytest.mark.parametrize("name", [name for name in entries() if "crash" not in entries()[name]])
def test_harmless_lines_are_no_crash(name: str) -> None:
    found = first_crash(records_of(entries()[name]))
    assert found is None, found


@pytest.mark.parametrize("name", [name for name in entries() if "records" not in entries()[name]])
def test_a_crash_is_known_while_its_lines_come(name: str) -> None:
    """As the bench follows a console: the same line is the first crash, and one that was taken back is none."""
    records = records_of(entries()[name])
    live, last = Live[Record](), [Record("and so on")] * REACH
    told = next((found for one in [*records, *last] if (found := live.take(one))), None)
    found = first_crash(records)
    assert (told and records.index(told[0]) + 1) == (found and records.index(records[found[0] - 1]) + 1)


@pytest.mark.parametrize("name", with_key("untold"))
def test_a_crash_that_no_line_tells_is_seen_and_read(name: str) -> None:
    entry, records = entries()[name], records_of(entries()[name])
    at = untold.shown([one.text for one in records])
    assert at is not None and at + 1 in entry["untold"]
    found = untold.crash(records)
    assert found is not None
    crash = parse(*found)
    assert crash.message and list(crash.functions) == entry.get("untold_functions", [])
    assert untold.crash([*records, Record("(XEN) Xen goes on, and says so")]) is None


@pytest.mark.parametrize("name", [name for name in entries() if not {"crash", "untold"} & entries()[name].keys()])
def test_harmless_lines_show_no_crash_that_is_not_told(name: str) -> None:
    assert untold.crash(records_of(entries()[name])) is None


@pytest.mark.parametrize("name", with_key("warns"))
def test_a_warning_is_found(name: str) -> None:
    entry = entries()[name]
    records = records_of(entry)
    said = [classify(records[line - 1].text) for line in entry["warns"]]
    assert [(one.kind, one.name) if one else None for one in said] == [("warning", entry["warning"])] * len(said)


@pytest.mark.parametrize("name", with_key("same_as"))
def test_one_crash_has_one_name(name: str) -> None:
    assert crash_of(name).fingerprint == crash_of(entries()[name]["same_as"]).fingerprint


@pytest.mark.parametrize("name", with_key("unlike"))
def test_two_crashes_have_two_names(name: str) -> None:
    assert crash_of(name).fingerprint != crash_of(entries()[name]["unlike"]).fingerprint


def test_crashes_that_nobody_calls_the_same_have_names_of_their_own() -> None:
    """All entries against all: a name that two share must be said by a chain of ``same_as``."""
    family = {name: name for name in with_key("crash")}
    for name in with_key("same_as"):
        old, new = family[name], family[entries()[name]["same_as"]]
        family = {one: new if head == old else head for one, head in family.items()}
    seen: dict[str, str] = {}
    for name in family:
        other = seen.setdefault(crash_of(name).fingerprint, name)
        assert family[other] == family[name], f"{name} and {other} share {crash_of(name).fingerprint}"


@pytest.mark.parametrize("name", [name for name in with_key("records") if name != "partial-gap"])
def test_beginnings_of_lines_are_told_from_lines_without_their_records_kinds(name: str) -> None:
    """As where a console was kept as text: each record is a line."""
    records = [Record(one.text) for one in records_of(entries()[name]) if one.kind in ("line", "partial")]
    found = first_crash(records)
    assert found and found[1].fingerprint == crash_of(name).fingerprint


@pytest.mark.parametrize("text", damaged.TEXTS)
def test_a_telling_word_that_lost_or_changed_a_letter_is_still_read(text: str) -> None:
    for at in range(1, len(text.rstrip(" '")) - 1):
        for instead in ("", "\ufffd", "~"):
            line = f"(XEN) {text[:at]}{instead}{text[at + 1 :]}7: and so on"
            assert damaged.repaired(line).split() == f"(XEN) {text}7: and so on".split()


@pytest.mark.parametrize(
    "line",
    [
        "(XEN) Panic on CPU 3:",
        "(XEN) Brought up 4 CPUs",
        "[    0.1] NMI watchdog: Enabled. Permanently consumes one hw-PMU counter.",
        "(XEN) *** Dumping CPU0 host state: ***",
        "(XEN) Hardware Dom0 shutdown: rebooting machine",
        "[   12.3] xl: task is not blocked for more time than it is",
    ],
)
def test_a_line_that_is_whole_stays_as_it_is(line: str) -> None:
    assert damaged.repaired(line) == line


@pytest.mark.parametrize(
    ("line", "kind", "message_"),
    [
        ("(XEN) FAT\ufffdL PAGE FAULT", "xen-page-fault", "FATAL PAGE FAULT"),
        ("(XEN) Pnic on CPU 3:", "xen-panic", "the reason is lost"),
        ("[   12.3] Kernel panc - not syncing: Fatal exception", "linux-panic", "Kernel panic - not syncing: Fatal"),
        ("(XEN) \x1b[1mPanic\x1b[0m on CPU 3:", "xen-panic", "the reason is lost"),
        ("(d1) (XEN) Pnic on CPU 3:", "", ""),
        ("sshd[812]: (XEN) Pnic on CPU 3:", "", ""),
    ],
)
def test_a_damaged_line_is_judged_as_the_whole_one(line: str, kind: str, message_: str) -> None:
    found = first_crash([Record(line)])
    assert (found[1].kind if found else "") == kind
    assert not found or found[1].message.startswith(message_)


DISGUISES = {
    "a host's stamp": lambda line: f"[2026-01-02 03:04:05] {line}",
    "a log collector's": lambda line: f"2026-01-02T03:04:05.123456Z 01O {line}",
    "a console server's": lambda line: f"Jan  2 03:04:05 rack3-con7 {line}",
    "colours": lambda line: f"\x1b[1;31m{line}\x1b[0m",
    "a carriage return": lambda line: f"\r{line}\r",
}


@pytest.mark.parametrize("width", [72, 80, 132])
def test_lines_that_a_terminal_broke_are_whole_again(width: int) -> None:
    lines = [f"[   12.{at:06d}] {'x' * (40 + 9 * at)} end" for at in range(40)]
    broken = [line[begin : begin + width] for line in lines for begin in range(0, len(line), width)]
    assert unwrapped(broken, len(broken) - 1) == (lines, len(lines) - 1)
    assert unwrapped(lines, 7) == (lines, 7)


@pytest.mark.parametrize("disguise", DISGUISES)
def test_a_prefix_more_on_each_line_changes_no_fingerprint(disguise: str) -> None:
    """Of all entries with marks or stamps on their lines; without any, a prefix cannot be told from other words."""
    tried = 0
    for name in with_key("crash"):
        records = records_of(entries()[name])
        telling = records[entries()[name]["crash"][0] - 1].text
        if {"records", "is_broken"} & entries()[name].keys() or (
            "(XEN)" not in telling and not telling.startswith("[")
        ):
            continue
        wanted = first_crash(records)
        found = first_crash([Record(DISGUISES[disguise](one.text)) for one in records])
        assert wanted and found, name
        assert found[1].fingerprint == wanted[1].fingerprint, name
        tried += 1
    assert tried > 80


# who speaks


@pytest.mark.parametrize(
    ("before", "who"),
    [
        ("(XEN) ", "xen"),
        ("(XEN) [   12.345678] ", "xen"),
        ("lab4 login: (XEN) ", "xen"),
        ("[   12.345678] sshd[812]: Accepted publick(XEN) ", "xen"),
        (" * Starting xenconsoled, which handles closed rings ...(XEN) ", "xen"),
        ("[    1.0] systemd[1]: Starting the tail of cat.service...(XEN) ", "xen"),
        ("(EN) ", "xen"),
        ("XEN) ", "xen"),
        ("(XEN) (d0v0) ", "linux"),
        ("(XEN) (d0v0) sshd[812]: ", "other"),
        ("[2026-01-02 03:04:05] Jan  2 03:04:05 host1 mcelog: ", "other"),
        ("2026-01-02T03:04:05.123456Z 01O echo ", "other"),
        ("12:34:56.789 [   12.345678] ", "linux"),
        ("(d0) [   12.345678] ", "linux"),
        ("", "linux"),
        ("<4>[   12.345678] ", "linux"),
        ("Jan  2 03:04:05 host1 kernel: [   12.345678] ", "linux"),
        ("host1 login: [   12.345678] NMI watchdog: ", "linux"),
        ("sshd[812]: Accepted publick[   12.345678] ", "linux"),
        ("[   12.345678] sshd[812]: ", "other"),
        ("[   12.345678] (udev-worker)[331]: ", "other"),
        ("Jan  2 03:04:05 host1 mcelog: ", "other"),
        ("journalctl[9]: (XEN) ", "other"),
        ("kdump[7]: earlier: [   12.345678] ", "other"),
        ('root@host1:~# grep "', "other"),
        ("  * Fix ", "other"),
        ("    ", "other"),
    ],
)
def test_who_speaks_is_judged_by_what_stands_before(before: str, who: str) -> None:
    assert speaker(before) == who


# what lines can come to

MEGABYTE = 1_000_000
UNITS = (
    *("(XEN) ", "[   12.345678] ", "(d1) ", "<4>", '"', "]: ", "a[1]: ", "\x1b[0m", "Jan  2 03:04:05 host1 mcelog: "),
    *("[ 1 2]", "sshd[1]: [    1.0] ", "* fix ", "(XEN", "9" * 50, " ", "[#1] "),
)


def hostile_lines() -> Iterator[str]:
    yield from UNITS
    for signature in SIGNATURES:
        for text in signature.formats:
            yield from (text.partition("%")[0], f'"{text.replace("%", "")} ')


def seconds(call: Callable[[], object]) -> float:
    best = float("inf")
    for _ in range(3):
        started = time.process_time()
        call()
        best = min(best, time.process_time() - started)
    return best


def test_a_line_costs_no_more_than_in_proportion_to_its_length() -> None:
    """Ten times as long is ten times as dear, or three times that where a cache is small."""
    slow = []
    for unit in dict.fromkeys(hostile_lines()):
        short, long = (unit * (size // len(unit) + 1) for size in (MEGABYTE // 200, MEGABYTE // 20))
        few, many = seconds(lambda text=short: classify(text)), seconds(lambda text=long: classify(text))
        if many > 30 * max(few, 0.0005):
            slow.append((unit, few, many))
    assert not slow


def test_a_line_of_a_megabyte_is_read_at_a_bounded_cost_a_byte() -> None:
    plain = "x" * MEGABYTE
    unit_cost = max(seconds(lambda: plain.count("y")), 0.0001)  # what it costs to look at each byte once
    for unit in UNITS:
        text = unit * (MEGABYTE // len(unit))
        assert seconds(lambda text=text: classify(text)) < 20_000 * unit_cost, unit
        assert seconds(lambda text=text: parse("xen-panic", [text] * 3)) < 2_000 * unit_cost, unit


def test_an_excerpt_of_a_million_lines_costs_as_of_ten_thousand() -> None:
    lines = [Record("(XEN) CPU1\td[IDLE]v1\te008:ffff82d04026c31b in Xen: mwait_idle+0xfb/0x140")] * MEGABYTE
    lines[500_000] = Record("(XEN) Panic on CPU 0:")
    few = lines[480_000:510_000]
    whole = seconds(lambda: crash_excerpt(lines, 500_000))
    part = seconds(lambda: crash_excerpt(few, 20_000))
    assert whole < 10 * max(part, 0.001)
    assert len(crash_excerpt(lines, 500_000)) < 200


def test_a_dump_a_thousand_lines_before_its_panic_belongs_to_it() -> None:
    entry = records_of(entries()["xen-nmi-128-cpus"])
    panic = next(index for index, record in enumerate(entry) if "Panic on CPU" in record.text)
    far = [*entry[:panic], *[entry[7]] * 5000, *entry[panic:]]
    excerpt = crash_excerpt(far, panic + 5000)
    assert any("lines are left out here" in line for line in excerpt)
    assert len(excerpt) < 300
    assert parse("xen-panic", excerpt).fingerprint == crash_of("xen-nmi-128-cpus").fingerprint
