"""What boards say, changed by chance: consoles, their records, crashes, migration streams. See tests/test_fuzz.py."""

from __future__ import annotations

import random
import time
from itertools import count
from pathlib import Path

import yaml
from fuzzing import Chances, chances  # noqa: F401
from test_recorder_log import record
from test_stream import KINDS, scan, short

from lab.console import crashes, screen, xen_dump
from lab.console.client import Console, ConsoleLine
from lab.console.cutting import Lines
from lab.console.log import ConsoleLog
from lab.console.patterns import classify, crash_excerpt
from lab.console.signatures import SIGNATURES

DATA = Path(__file__).parent / "data"
# A processor's seconds for each byte that is read, and for the start; many times what it takes, far below a square.
PER_BYTE, AT_LEAST = 20e-6, 1.0

# -- what a recorder reads and writes ------------------------------------------------------------------------------

PIECES = (
    b"(XEN) ",
    b"\n",
    b"\r\n",
    b"\0",
    b"\xff\xfe",
    "üß€😀".encode(),
    b"\x1b]0;x\x07",
    b"\x1b[31m",
    b"login: ",
    b"{",
)


def said(dice: random.Random) -> bytes:
    """What a board may print."""
    return b"".join(
        dice.choice(PIECES) if dice.random() < 0.7 else dice.randbytes(dice.choice((1, 30, 9000)))
        for _ in range(dice.randrange(60))
    )


def in_pieces(dice: random.Random, data: bytes) -> list[bytes]:
    cuts = sorted(dice.choices(range(len(data) + 1), k=dice.randrange(8)))
    return [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]


def test_lines_are_the_same_however_reads_cut_them(chances: Chances) -> None:  # noqa: F811
    def lines(pieces: list[bytes]) -> list[str]:
        cutter = Lines()
        return [line for piece in pieces for line in cutter.feed(piece)] + [cutter.cut()]

    def one(dice: random.Random) -> None:
        data = said(dice)
        whole, cut = lines([data]), lines(in_pieces(dice, data))
        assert cut == whole
        assert all("\n" not in line for line in whole)
        shown = screen.Screen()
        told = b"".join(shown.show(piece) for piece in in_pieces(dice, data))
        assert b"\x1b]" not in told and b"\x07\x07" not in told.replace(b"\x07", b"")

    chances.each(60, one)


def test_a_log_that_is_damaged_anywhere_keeps_what_is_whole(tmp_path: Path, chances: Chances) -> None:  # noqa: F811
    """Sectors of zeros, a torn end, bytes of another file behind it: as power cuts and full disks leave them."""
    numbers = count()
    reader = Console("b", "127.0.0.1", serve_port=1, lines_port=2)

    def one(dice: random.Random) -> None:
        path = tmp_path / f"{next(numbers)}.jsonl"
        sizes = [dice.choice((0, 1, 40, 500, 8192)) for _ in range(dice.randrange(1, 40))]
        records = [record(n, dice.choice(("\0", "ü", "x", '"', '"}')) * size) for n, size in enumerate(sizes, 1)]
        data = bytearray(b"".join(records))
        lost = []
        for _ in range(dice.choice((0, 0, 1, 2))):
            begin = dice.randrange(len(data) // 512 + 1) * 512
            end = min(begin + 512 * dice.choice((1, 8)), len(data))
            data[begin:end] = bytes(end - begin)
            lost.append((begin, end))
        cut = dice.randrange(len(data)) if dice.random() < 0.5 else len(data)
        rest = dice.choice(
            (b"", b"\0" * 4096, dice.randbytes(300), b'{"n": 7, "t": 1e999, "kind": "line", "text": ""}')
        )
        path.write_bytes(data[:cut] + rest)
        whole, at = [], 0
        for number, line in enumerate(records, 1):  # with the newline before it, which tells where it begins
            if at + len(line) <= cut and not any(a < at + len(line) and b > max(at - 1, 0) for a, b in lost):
                whole.append(number)
            at += len(line)
        log = ConsoleLog(path, 1 << 24)
        following = log.open()
        log.append(record(following))
        read = [line.n for sent in log.read(0, 1 << 40) for line in reader._lines([sent])]
        log.close()
        path.unlink()
        assert read == sorted(set(read))
        assert read[-1] == following
        assert set(whole) <= set(read), f"whole records are not read back: {sorted(set(whole) - set(read))[:5]}"

    chances.each(60, one)


# -- crashes -------------------------------------------------------------------------------------------------------


def samples() -> list[list[str]]:
    """The lines of each crash that the project knows."""
    files = sorted((DATA / "crashes").glob("*.yaml"))
    logs = [one["log"] for file in files for one in yaml.safe_load(file.read_text(encoding="utf-8")) if "log" in one]
    logs += [file.read_text(encoding="utf-8", errors="replace") for file in sorted((DATA / "console").glob("*.log"))]
    return [log.splitlines() for log in logs]


TORN = ("(XEN) ", "[<ffff82d0", "]", "(", " at ", "\t", "[    1.5] ", "0x", "+", "/", "#", "<", "\x00", "?", "CPU")


def broken(dice: random.Random, logs: list[list[str]]) -> list[str]:
    """A part of a log with lines of others in it, cut, doubled, joined, and far too long."""
    log = dice.choice(logs)
    begin = dice.randrange(max(1, len(log) - 60))
    lines = log[begin : begin + dice.randrange(1, 120)]
    for _ in range(dice.randrange(12)):
        at = dice.randrange(len(lines))
        place = dice.randrange(len(lines[at]) + 1)
        lines[at : at + 1] = dice.choice(
            (
                [lines[at][:place], lines[at][place:]],
                [lines[at], lines[at]],
                [lines[at] + dice.choice(dice.choice(logs) or [""])],
                [lines[at][:place] + dice.choice(TORN) * dice.choice((1, 3, 5000)) + lines[at][place:]],
                dice.choices(dice.choice(logs) or [""], k=5),
            )
        )
    return lines


def test_any_crash_is_read_in_a_time_that_grows_with_its_length(chances: Chances) -> None:  # noqa: F811
    logs = samples()
    assert len(logs) > 30

    def one(dice: random.Random) -> None:
        lines = broken(dice, logs)
        size = sum(len(line.encode()) + 1 for line in lines)
        began = time.process_time()
        found = [(index, name) for index, line in enumerate(lines) if (name := classify(line))]
        records = [ConsoleLine("virt1", index, float(index), "line", line) for index, line in enumerate(lines)]
        index, signature = dice.choice(found or [(0, dice.choice(SIGNATURES))])
        crash = crashes.parse(signature.name, crash_excerpt(records, index))
        assert crash.label and crash.text() and crash.fingerprint
        assert len(crash.label.splitlines()) == 1
        crashes.of_nmi(lines)
        xen_dump.has_interrupts_off(lines)
        took = time.process_time() - began
        assert took < AT_LEAST + PER_BYTE * size, f"{took:.2f} s for {size} bytes"

    chances.each(60, one)


# -- migrations ----------------------------------------------------------------------------------------------------


def test_a_stream_that_is_broken_anywhere_is_scanned_to_its_end(chances: Chances) -> None:  # noqa: F811
    """However reads cut it, the same steps are found up to the same error, and every byte goes by."""
    streams = [short(kind) for kind in KINDS]

    def one(dice: random.Random) -> None:
        data = bytearray(dice.choice(streams))
        for _ in range(dice.randrange(1, 6)):
            at = dice.randrange(len(data))
            match dice.randrange(4):
                case 0:
                    data[at] = dice.randrange(256)
                case 1:
                    data[at : at + 8] = dice.choice((b"\xff" * 8, bytes(8), b"\0\0\0\x80" * 2))
                case 2:
                    del data[at : at + dice.choice((1, 8, 4096))]
                case _:
                    data[at:at] = dice.choice(streams)[: dice.choice((1, 24, 5000))]
            data = data or bytearray(b"\0")
        side = dice.choice(("sender", "receiver"))
        began = time.process_time()
        marks, scanner = scan(bytes(data), side=side)
        again, cut = scan(bytes(data), random.Random(dice.random()), side)
        assert (again, cut.error) == (marks, scanner.error)
        assert scanner.fed == cut.fed == len(data)
        took = time.process_time() - began
        assert took < AT_LEAST + PER_BYTE * len(data), f"{took:.2f} s for {len(data)} bytes"

    chances.each(40, one)
