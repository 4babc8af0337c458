"""The records of a console on disk, whatever a crash or a power cut made of the files."""

from __future__ import annotations

import json
import os
import random
import threading
from pathlib import Path

import pytest

from lab.console.log import RECORD_LIMIT, ROTATED_KEPT, ConsoleLog

SEED = 20261123


def record(number: int, text: str = "x", kind: str = "line") -> bytes:
    return json.dumps({"n": number, "t": number + 0.5, "kind": kind, "text": text}).encode() + b"\n"


def numbers(log: ConsoleLog, since: int = 0, until: int = 1 << 40) -> list[int]:
    return [json.loads(line)["n"] for line in log.read(since, until)]


def filled(path: Path, count: int, text: str = "x", rotate_bytes: int = 1 << 24) -> None:
    log = ConsoleLog(path, rotate_bytes)
    first = log.open()
    for number in range(first, first + count):
        log.append(record(number, text))
    log.close()


NULS = "\0" * 8192  # six bytes each in JSON: the longest record there is
DAMAGE = {
    "nothing": b"",
    "half a record": record(21)[:17],
    "half a record behind a long one": record(21, NULS)[:40_000],
    "a record without its newline": record(21)[:-1],
    "100 KB of zeros": b"\0" * 100_000,
    "zeros and a newline": b"\0" * 70_000 + b"\n",
    "3 MB of zeros": b"\0" * 3_000_000,
    "zeros behind half a record": record(21)[:25] + b"\0" * 100_000,
    "a block of another file": bytes(range(256)) * 400,
    "empty lines": b"\n" * 5000,
    "a record of another kind": b'{"n": 21, "t": "now", "kind": "line", "text": "x"}\n',
    "a number that is none": b'{"n": ' + b"9" * 5000 + b', "t": 1.0, "kind": "line", "text": "x"}\n',
    "a time without end": b'{"n": 21, "t": ' + b"9" * 400 + b', "kind": "line", "text": "x"}\n',
    "nested without end": b'{"n": 21, "t": ' + b"[" * 30_000 + b"\n",
}


@pytest.mark.parametrize("text", ["x", NULS], ids=["short lines", "long lines"])
@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_numbers_go_on_behind_any_damage_and_nothing_whole_is_lost(tmp_path: Path, damage: bytes, text: str) -> None:
    path = tmp_path / "b.jsonl"
    filled(path, 20, text)
    whole = path.read_bytes()
    path.write_bytes(whole + damage)
    log = ConsoleLog(path, 1 << 24)
    assert log.open() == 21
    assert path.read_bytes() == whole, "what is behind the last whole record is cut off"
    log.append(record(21) + record(22))
    assert numbers(log) == list(range(1, 23))
    log.close()


def test_any_tear_of_any_log_loses_no_more_than_the_torn_record(tmp_path: Path) -> None:
    """Records of all sizes, cut or overwritten with zeros anywhere in the last ones."""
    chance = random.Random(SEED)
    path = tmp_path / "b.jsonl"
    for _ in range(150):
        sizes = [chance.choice([0, 1, 40, 8192]) for _ in range(chance.randrange(1, 12))]
        records = [record(n, chance.choice(["\0", "ü", "x", '"']) * size) for n, size in enumerate(sizes, 1)]
        whole = b"".join(records)
        cut = chance.randrange(max(0, len(whole) - len(records[-1]) - 200), len(whole) + 1)
        zeros = b"\0" * chance.choice([0, 1, 511, 4096, 200_000])
        path.write_bytes(whole[:cut] + zeros)
        kept = sum(len(b"".join(records[:count])) <= cut for count in range(1, len(records) + 1))
        log = ConsoleLog(path, 1 << 24)
        assert log.open() == kept + 1
        log.append(record(kept + 1))
        assert numbers(log) == list(range(1, kept + 2))
        log.close()


def test_a_pipe_in_place_of_the_log_keeps_no_recorder_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "b.jsonl")
    with pytest.raises(OSError, match="No such device"):
        ConsoleLog(tmp_path / "b.jsonl", 1 << 24).open()


def test_a_record_that_older_recorders_wrote_behind_zeros_is_read(tmp_path: Path) -> None:
    path = tmp_path / "b.jsonl"
    path.write_bytes(record(1) + b"\0" * 100_000 + record(2) + record(3))
    log = ConsoleLog(path, 1 << 24)
    assert log.open() == 4 and numbers(log) == [1, 2, 3]
    log.close()


def test_numbers_go_on_when_the_newest_file_is_lost_or_empty(tmp_path: Path) -> None:
    path = tmp_path / "b.jsonl"
    filled(path, 20)
    os.replace(path, tmp_path / "b.jsonl.1")
    for content in (None, b"", b"\0" * 5000):
        if content is not None:
            path.write_bytes(content)
        log = ConsoleLog(path, 1 << 24)
        assert log.open() == 21 and numbers(log) == list(range(1, 21))
        log.close()


def test_a_rotation_while_history_is_read_takes_nothing_away(tmp_path: Path) -> None:
    path = tmp_path / "b.jsonl"
    log = ConsoleLog(path, 1000)
    log.open()
    number = 1
    for _ in range(ROTATED_KEPT):
        for _ in range(30):
            log.append(record(number))
            number += 1
        assert log.rotate()
    read: list[int] = []
    with log.history(1, number) as blocks:
        for block in blocks:
            read += [json.loads(line)["n"] for line in block.splitlines()]
            log.append(record(number + len(read)))
            assert log.rotate()
    assert read == list(range(1, number))
    log.close()


def test_history_begins_and_ends_where_it_is_asked_to(tmp_path: Path) -> None:
    path = tmp_path / "b.jsonl"
    filled(path, 5000, "y" * 100)
    log = ConsoleLog(path, 1 << 24)
    assert log.open() == 5001
    assert numbers(log, 4321, 4330) == list(range(4321, 4330))
    assert numbers(log, 4990) == list(range(4990, 5001))
    assert numbers(log, 6000) == []
    log.close()


def test_records_that_wait_for_room_on_the_disk_are_history_too(tmp_path: Path) -> None:
    (tmp_path / "b.jsonl").symlink_to("/dev/full")
    log = ConsoleLog(tmp_path / "b.jsonl", 1 << 24)
    log.open()
    log.append(record(1) + record(2))
    assert log.trouble == "No space left on device"
    assert numbers(log, 2) == [2]
    log.close()


def test_what_was_appended_is_synced_with_the_folder_of_a_renamed_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []

    def note(handle: int) -> None:
        synced.append(Path(os.readlink(f"/proc/self/fd/{handle}")).name)

    monkeypatch.setattr(os, "fsync", note)
    monkeypatch.setattr(os, "fdatasync", note)
    path = tmp_path / "b.jsonl"
    log = ConsoleLog(path, 1 << 24)
    log.open()
    assert synced == [tmp_path.name], "the file's name is on the disk"
    log.append(record(1))
    assert not log.is_synced
    log.sync()
    assert log.is_synced and synced.pop() == "b.jsonl"
    log.rotate()
    assert not log.is_synced
    log.sync()
    assert synced[1:] == ["b.jsonl.1", tmp_path.name, "b.jsonl"]
    synced.clear()
    log.append(record(2))
    log.close()
    assert synced == ["b.jsonl"]
    path.write_bytes(path.read_bytes() + b"torn")
    synced.clear()
    ConsoleLog(path, 1 << 24).open()
    assert synced == ["b.jsonl", tmp_path.name], "the cut is on the disk before a number is given"


def test_syncing_in_another_thread_does_not_meet_a_rotation(tmp_path: Path) -> None:
    log = ConsoleLog(tmp_path / "b.jsonl", 1 << 24)
    number, done = log.open(), threading.Event()
    failures: list[BaseException] = []

    def keep_syncing() -> None:
        try:
            while not done.is_set():
                log.sync()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=keep_syncing)
    thread.start()
    for _ in range(200):
        log.append(record(number))
        number += 1
        assert log.rotate()
    done.set()
    thread.join()
    log.close()
    assert not failures
    assert len(os.listdir("/proc/self/fd")) < 200, "rotated files are closed"


def test_when_a_board_was_heard_last_is_found_behind_gaps(tmp_path: Path) -> None:
    path = tmp_path / "b.jsonl"
    log = ConsoleLog(path, 1 << 24)
    log.open()
    assert log.last_heard() is None
    log.append(record(1, '"kind": "line"', "gap") + record(2, "", "open"))
    assert log.last_heard() is None, "a gap's text is not the board's"
    log.append(record(3, "(XEN) hello") + record(4, "grub> ", "partial"))
    assert log.rotate()
    for number in range(5, 3000):
        log.append(record(number, "the source is lost", "gap"))
    assert log.last_heard() == 4.5
    log.append(record(3000, "again"))
    assert log.last_heard() == 3000.5
    log.close()


def test_the_longest_record_is_within_the_limit() -> None:
    assert len(record(10**15, NULS)) < RECORD_LIMIT
