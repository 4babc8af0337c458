"""The steps of a migration are found wherever reads happen to cut the stream."""

from __future__ import annotations

import json
import os
import random
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from lab.on_board.stream import BANNER, BATCH, GO, READY, REPORT, Mark, Scanner, Step
from lab.xen.migration_matrix import fuzz
from lab.xen.migration_matrix.fuzz import BrokenStream, made_up, page_data, variants

PASSES = (range(3 * BATCH), range(100, 400), (7, 8, 9))
KINDS = ("pv32", "pv64", "pvh32", "pvh64")


def stream(kind: str = "pvh64") -> bytes:
    return b"".join(data for _, data in made_up(kind, PASSES))


def short(kind: str) -> bytes:
    return b"".join(data for _, data in made_up(kind, (range(20), (3, 4))))


def scan(data: bytes, sizes: random.Random | None = None, side: str = "sender") -> tuple[list[Mark], Scanner]:
    scanner, marks, at = Scanner(side), [], 0
    while at < len(data):
        size = sizes.choice((1, 2, 7, 8, 100, 5000, 100000)) if sizes else len(data)
        found = scanner.feed(data[at : at + size])
        at += size
        marks += found
        assert scanner.safe <= scanner.fed == min(at, len(data))
        assert all(mark.offset <= scanner.safe for mark in found)
    return marks, scanner


@pytest.mark.parametrize("kind", KINDS)
def test_every_step_is_found_where_it_is(kind: str) -> None:
    wanted, at = [], 0
    for step, data in made_up(kind, PASSES):
        wanted.append((step, at, len(data)))
        at += len(data)
    marks, scanner = scan(stream(kind))
    assert [(mark.step, mark.offset, mark.length) for mark in marks] == wanted
    assert not scanner.error and scanner.safe == at


@pytest.mark.parametrize("seed", range(5))
def test_how_reads_cut_the_stream_makes_no_difference(seed: int) -> None:
    data = stream("pv64")
    assert scan(data, random.Random(seed))[0] == scan(data)[0]


def test_nothing_of_a_step_is_safe_before_it_is_known() -> None:
    data, scanner = stream(), Scanner.of_sender()
    begins = {mark.offset for mark in scan(data)[0]}
    for at in range(3000):
        for mark in scanner.feed(data[at : at + 1]):
            begins.remove(mark.offset)
        assert not any(offset < scanner.safe for offset in begins)


def test_bodies_may_go_by_unseen() -> None:
    data, scanner, at = stream(), Scanner.of_sender(), 0
    marks = []
    while at < len(data):
        if scanner.idle:
            at += (idle := scanner.idle)
            scanner.skipped(idle)
            continue
        marks += scanner.feed(data[at : at + 1])
        at += 1
    assert marks == scan(data)[0]


def test_passes_over_memory_are_told_apart() -> None:
    pages = [mark.pages for mark in scan(stream())[0] if mark.pages]
    assert [(one.turn, one.starts_turn, one.pfns) for one in pages] == [
        (1, True, BATCH),
        (1, False, BATCH),
        (1, False, BATCH),
        (2, True, 300),
        (3, True, 3),
        (4, True, 1),
    ]
    assert [one.data for one in pages] == [one.pfns for one in pages]


def test_a_pass_that_begins_above_the_end_of_the_one_before_is_told_by_its_short_record() -> None:
    data = b"".join(data for _, data in made_up("pvh64", ((5,), (900,)), final=(7000,)))
    assert [mark.pages.turn for mark in scan(data)[0] if mark.pages] == [1, 2, 3]


def test_pages_without_contents_are_counted_apart() -> None:
    head = struct.pack("<II4Q", 4, 0, 1, 0xF << 60 | 2, 0xF << 60 | 3, 4)
    record = struct.pack("<II", 1, len(head) + 2 * 4096) + head + bytes(2 * 4096)
    data = b""
    for step, part in made_up("pvh64", ()):
        data += part if step is not Step.PAGE_DATA else record
    [pages] = [mark.pages for mark in scan(data)[0] if mark.pages]
    assert (pages.pfns, pages.data, pages.first) == (4, 2, 1)


def test_the_answers_are_found() -> None:
    data = BANNER + READY + REPORT + b"\x01" + GO
    marks, scanner = scan(data, random.Random(1), "receiver")
    assert [mark.step for mark in marks] == [Step.BANNER, Step.READY, Step.REPORT, Step.STATUS, Step.GIVE_BACK]
    assert not scanner.error


@pytest.mark.parametrize(
    ("data", "side", "why"),
    [
        (b"x" * 100, "sender", "XL_HEADER"),
        (BANNER + b"x" * 50, "receiver", "READY"),
        (stream() + b"more", "sender", "bytes after the end of the protocol"),
    ],
)
def test_what_is_not_the_protocol_is_said_and_goes_by(data: bytes, side: str, why: str) -> None:
    marks, scanner = scan(data, random.Random(2), side)
    assert why in scanner.error and scanner.safe == len(data)
    assert marks[-1].step is Step.UNKNOWN


def test_an_unknown_record_is_a_step() -> None:
    parts = [data for _, data in made_up("pvh64", ())]
    parts.insert(3 + 3, struct.pack("<II", 0x7F, 5) + bytes(8))
    assert Step.UNKNOWN in [mark.step for mark in scan(b"".join(parts))[0]]


# -- broken ones -------------------------------------------------------------------------------------------------


def test_variants_are_the_same_for_the_same_seed_only() -> None:
    data = short("pv64")
    first, again, other = (list(variants(data, seed)) for seed in (1, 1, 2))
    assert first == again != other


@pytest.mark.parametrize("kind", KINDS)
def test_variants_break_every_field(kind: str) -> None:
    data = short(kind)
    found = list(variants(data, 7))
    assert len({one.name for one in found}) == len(found)
    assert all(one.of(data) != data for one in found)
    steps = {step for step, _ in made_up(kind, PASSES)} - {Step.GO}
    assert {one.name.split("-")[1] for one in found} == {step.value for step in steps}
    for field in ("PAGE_DATA-count-zero", "PAGE_DATA-pfn-ones", "LIBXC_END-length-ones", "IMAGE_HEADER-version-high"):
        assert any(field in one.name for one in found), field


def test_only_a_migration_stream_has_variants() -> None:
    with pytest.raises(ValueError, match="not a migration stream"):
        list(variants(b"x" * 1000, 1))


def test_a_made_up_record_is_padded() -> None:
    assert all(len(data) % 8 == 0 for step, data in made_up("pvh64", ((1,),)) if step is Step.HVM_CONTEXT)
    assert len(page_data((1, 2))[1]) == 8 + 8 + 16 + 2 * fuzz.PAGE


def test_the_feeder_gives_every_variant_to_a_receiver_and_notes_its_end(tmp_path: Path) -> None:
    tools, data = tmp_path / "bin", short("pvh64")
    tools.mkdir()
    xl = tools / "xl"
    # Takes streams that are whole; hangs at an empty one; a copy is left by a stream that is cut short.
    xl.write_text(
        "#!/bin/sh\n"
        f"if [ $1 = migrate-receive ]; then n=$(wc -c); echo $n >> {tmp_path}/sizes; [ $n = 0 ] && sleep 60; "
        f"echo bad >&2; [ $n = {len(data)} ]; exit $?; fi\n"
        f'[ $1 = domid ] && [ "$(tail -n 1 {tmp_path}/sizes)" != {len(data)} ]\n'
    )
    xl.chmod(0o755)
    chosen = [BrokenStream("a", 100, b"\xff"), BrokenStream("b", 200, ends=True), BrokenStream("c", 0, ends=True)]
    lines = [
        {"variant": one.name, "offset": one.offset, "data": one.data.hex(), "ends": one.ends, "name": "g--incoming"}
        for one in chosen
    ]
    (tmp_path / "stream").write_bytes(data)
    (tmp_path / "variants").write_text("".join(json.dumps(line) + "\n" for line in lines))
    subprocess.run(
        [sys.executable, "-c", fuzz.FEEDER, str(tmp_path), "2", str(tmp_path / "console")],
        env=os.environ | {"PATH": f"{tools}:{os.environ['PATH']}"},
        check=True,
        timeout=60,
    )
    results = [json.loads(line) for line in (tmp_path / "results").read_text().splitlines()]
    assert [(one["variant"], one["status"], one["left"]) for one in results] == [
        ("a", 0, False),
        ("b", 1, True),
        ("c", "hangs", True),
    ]
    assert results[0]["said"] == "bad\n"
    assert (tmp_path / "console").read_text() == "<1>xenlab: variant c\n", "a host that dies has said by what"
