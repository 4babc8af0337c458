"""The proxy as it runs in dom0: a process of its own between a sender and a receiver."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from lab.base import paths
from lab.on_board.proxy import Action
from lab.on_board.stream import BANNER, BATCH, GO, READY, REPORT, Scanner, Step
from lab.xen.migration_matrix.fuzz import made_up

# Keeps what comes, and answers as `xl migrate-receive` does when so many bytes have come.
RECEIVER = """
import os, sys
kept, wanted = open(sys.argv[1], "wb", 0), int(sys.argv[2])
def take(count):
    while count:
        data = os.read(0, min(count, 65536))
        if not data:
            os._exit(1)
        kept.write(data)
        count -= len(data)
os.write(1, BANNER)
take(wanted)
os.write(1, READY)
take(len(GO))
os.write(1, REPORT)
os.write(1, b"\\0")
while data := os.read(0, 65536):
    kept.write(data)
"""
RECEIVER = f"BANNER, READY, GO, REPORT = {BANNER!r}, {READY!r}, {GO!r}, {REPORT!r}\n{RECEIVER}"
SENDER = """
import os, sys
def answer(count):
    while count:
        data = os.read(0, count)
        if not data:
            os._exit(1)
        os.write(2, data)
        count -= len(data)
answer(len(BANNER))
with open(sys.argv[1], "rb") as stream:
    while data := stream.read(1 << 20):
        while data:
            data = data[os.write(1, data):]
answer(len(READY))
os.write(1, GO)
answer(len(REPORT) + 1)
"""
SENDER = f"BANNER, READY, GO, REPORT = {BANNER!r}, {READY!r}, {GO!r}, {REPORT!r}\n{SENDER}"
PASSES = (range(2 * BATCH), range(50, 150), (7, 8, 9))
LIMIT = 60.0


def steps(kind: str = "pvh64") -> dict[Step, tuple[int, bytes]]:
    """The first of each step: its offset and bytes."""
    found: dict[Step, tuple[int, bytes]] = {}
    at = 0
    for step, data in made_up(kind, PASSES):
        found.setdefault(step, (at, data))
        at += len(data)
    return found


STEPS = steps()
STREAM = b"".join(data for step, data in made_up("pvh64", PASSES) if step is not Step.GO)


@dataclass
class Outcome:
    """What both ends saw, and the log."""

    received: bytes
    answers: bytes
    sender_status: int
    status: int
    log: list[dict[str, Any]]
    seconds: float

    def acted(self) -> list[dict[str, Any]]:
        return [line for line in self.log if "action" in line]


def relocate(tmp_path: Path, *actions: str, stream: bytes = STREAM, wanted: int | None = None) -> Outcome:
    """Send a stream through the proxy. ``wanted``: bytes after which the receiver is ready."""
    kept, log, sent = tmp_path / "received", tmp_path / "log", tmp_path / "sent"
    sent.write_bytes(stream)
    count = len(stream) if wanted is None else wanted
    proxy = [sys.executable, "-S", "-m", "lab.on_board.proxy", "--log", str(log), "--control", str(tmp_path)]
    proxy += [word for action in actions for word in ("--action", action)]
    receiver = [sys.executable, "-c", RECEIVER, str(kept), str(count)]
    environment = os.environ | {"PYTHONPATH": str(paths.CHECKOUT)}
    started = time.monotonic()
    there, here = os.pipe()
    proxied = subprocess.Popen([*proxy, "--", *receiver], stdin=there, stdout=subprocess.PIPE, env=environment)
    sender = subprocess.Popen(
        [sys.executable, "-c", SENDER, str(sent)], stdin=proxied.stdout, stdout=here, stderr=subprocess.PIPE
    )
    os.close(there)
    os.close(here)
    assert proxied.stdout
    proxied.stdout.close()
    answers = sender.communicate(timeout=LIMIT)[1]
    status = proxied.wait(LIMIT)
    seconds = time.monotonic() - started
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    return Outcome(kept.read_bytes(), answers, sender.returncode, status, lines, seconds)


def test_without_actions_nothing_is_changed(tmp_path: Path) -> None:
    outcome = relocate(tmp_path)
    assert outcome.received == STREAM + GO
    assert outcome.answers == BANNER + READY + REPORT + b"\0"
    assert (outcome.sender_status, outcome.status) == (0, 0)


def test_the_log_has_every_step_of_both_directions(tmp_path: Path) -> None:
    log = relocate(tmp_path).log
    log.sort(key=lambda line: line["t"])  # a line of PAGE_DATA is written when it is complete
    wanted = [step.value for step, _ in made_up("pvh64", PASSES)]
    wanted.remove("PAGE_DATA")  # the first pass has two records, and one line
    assert [line["step"] for line in log if line.get("way") == ">" and "step" in line] == wanted
    assert [line["step"] for line in log if line.get("way") == "<" and "step" in line] == [
        "BANNER",
        "READY",
        "REPORT",
        "STATUS",
    ]
    keys = ("pass", "records", "pages", "data")
    pages = [tuple(line[key] for key in keys) for line in log if line.get("step") == "PAGE_DATA"]
    assert pages == [(1, 2, 2 * BATCH, 2 * BATCH), (2, 1, 100, 100), (3, 1, 3, 3), (4, 1, 1, 1)]
    assert all(line["t"] <= line["until"] for line in log if "until" in line)
    assert log[-1] == log[-1] | {"event": "end", "status": 0, "cut": False}


@pytest.mark.parametrize("step", [Step.XL_HEADER, Step.IMAGE_HEADER, Step.PAGE_DATA, Step.TSC_INFO, Step.LIBXL_END])
def test_a_cut_lets_nothing_of_the_step_through(tmp_path: Path, step: Step) -> None:
    outcome = relocate(tmp_path, f"cut@{step.value}")
    assert outcome.received == STREAM[: STEPS[step][0]]
    assert outcome.status == 99 and outcome.sender_status != 0
    [acted] = outcome.acted()
    assert (acted["action"], acted["step"], acted["asked"]) == ("cut", step.value, f"cut@{step.value}")


def test_a_cut_at_go_comes_when_go_was_sent(tmp_path: Path) -> None:
    outcome = relocate(tmp_path, "cut@GO")
    assert outcome.received == STREAM and outcome.answers == BANNER + READY
    assert outcome.sender_status == 1


@pytest.mark.parametrize(("step", "before"), [(Step.BANNER, b""), (Step.READY, BANNER), (Step.REPORT, BANNER + READY)])
def test_answers_can_be_cut_off_too(tmp_path: Path, step: Step, before: bytes) -> None:
    outcome = relocate(tmp_path, f"cut@{step.value}")
    assert outcome.answers == before and outcome.sender_status == 1 and outcome.status == 99


def test_the_status_can_be_kept_from_its_report(tmp_path: Path) -> None:
    assert relocate(tmp_path, "cut@STATUS").answers == BANNER + READY + REPORT


def test_a_later_record_of_a_kind_can_be_named(tmp_path: Path) -> None:
    outcome = relocate(tmp_path, "cut@PAGE_DATA:2")
    at, data = STEPS[Step.PAGE_DATA]
    assert outcome.received == STREAM[: at + len(data)]


def test_a_pass_can_be_named(tmp_path: Path) -> None:
    outcome = relocate(tmp_path, "cut@PAGE_DATA:pass2")
    at, data = STEPS[Step.PAGE_DATA]
    assert outcome.received == STREAM[: at + 2 * len(data)]
    assert outcome.acted()[0]["pass"] == 2


def test_a_byte_can_be_named(tmp_path: Path) -> None:
    assert relocate(tmp_path, "cut@>12345").received == STREAM[:12345]
    assert relocate(tmp_path, "cut@<10").answers == BANNER[:10]


def test_truncate_lets_half_of_the_step_through(tmp_path: Path) -> None:
    at, data = STEPS[Step.HVM_CONTEXT]
    assert relocate(tmp_path, "truncate@HVM_CONTEXT").received == STREAM[: at + len(data) // 2]
    assert relocate(tmp_path, "truncate@HVM_CONTEXT=9").received == STREAM[: at + 9]
    assert relocate(tmp_path, "truncate@STATUS").answers == BANNER + READY + REPORT


def test_drop_swallows_the_step(tmp_path: Path) -> None:
    at, data = STEPS[Step.PAGE_DATA]
    outcome = relocate(tmp_path, "drop@PAGE_DATA", wanted=len(STREAM) - len(data))
    assert outcome.received == STREAM[:at] + STREAM[at + len(data) :] + GO
    assert outcome.sender_status == 0


def test_duplicate_sends_it_twice(tmp_path: Path) -> None:
    at, data = STEPS[Step.PAGE_DATA]
    outcome = relocate(tmp_path, "duplicate@PAGE_DATA", wanted=len(STREAM) + len(data))
    assert outcome.received == STREAM[: at + len(data)] + data + STREAM[at + len(data) :] + GO
    small = relocate(tmp_path, "duplicate@READY")
    assert small.answers[: len(BANNER + READY + READY)] == BANNER + READY + READY


@pytest.mark.parametrize(
    ("argument", "offset", "bits"),
    [("", 0, 1), ("=5", 5, 1), ("=5.7", 5, 128), ("=-1", -1, 1), ("=type", 0, 0x70), ("=length", 7, 0x80)],
)
def test_corrupt_turns_bits_over(tmp_path: Path, argument: str, offset: int, bits: int) -> None:
    at, data = STEPS[Step.PAGE_DATA]
    wanted = bytearray(STREAM)
    wanted[at + offset + (len(data) if offset < 0 else 0)] ^= bits
    assert relocate(tmp_path, f"corrupt@PAGE_DATA{argument}").received == bytes(wanted) + GO


def test_corrupt_magic_and_status(tmp_path: Path) -> None:
    outcome = relocate(tmp_path, "corrupt@LIBXL_HEADER=magic", "corrupt@STATUS")
    at = STEPS[Step.LIBXL_HEADER][0]
    assert outcome.received[at] == STREAM[at] ^ 1
    assert outcome.answers[-1:] == b"\x01"


def test_hold_goes_on_by_itself(tmp_path: Path) -> None:
    outcome = relocate(tmp_path, "hold@TSC_INFO=1.5")
    assert outcome.received == STREAM + GO and outcome.seconds > 1.5
    held = next(line["t"] for line in outcome.log if line.get("action") == "hold")
    passed = next(line["t"] for line in outcome.log if line.get("step") == "TSC_INFO" and "action" not in line)
    assert passed - held >= 1.5
    assert [line["by_lab"] for line in outcome.log if line.get("event") == "released"] == [False]


def test_hold_goes_on_when_told(tmp_path: Path) -> None:
    outcome = relocate(tmp_path, f"run@PAGE_DATA=touch {tmp_path}/release", "hold@TSC_INFO=50")
    assert outcome.seconds < 30
    assert [line["by_lab"] for line in outcome.log if line.get("event") == "released"] == [True]


def test_an_answer_that_is_held_is_delivered_though_its_writer_is_gone(tmp_path: Path) -> None:
    outcome = relocate(tmp_path, "hold@REPORT=1")
    assert outcome.answers == BANNER + READY + REPORT + b"\0" and outcome.sender_status == 0


def test_run_is_waited_for_and_its_end_is_in_the_log(tmp_path: Path) -> None:
    outcome = relocate(tmp_path, "run@LIBXC_END=sleep 1; echo done; exit 3")
    [ran] = [line for line in outcome.log if line.get("event") == "ran"]
    assert (ran["status"], ran["said"]) == (3, "done\n") and outcome.seconds > 1


def test_throttle_slows_what_follows(tmp_path: Path) -> None:
    outcome = relocate(tmp_path, f"throttle@PAGE_DATA:pass2={4096 * 100}")
    assert outcome.received == STREAM + GO
    times = {line["pass"]: line["t"] for line in outcome.log if line.get("step") == "PAGE_DATA"}
    assert times[3] - times[2] > 0.8


def test_delay_comes_with_each_piece(tmp_path: Path) -> None:
    outcome = relocate(tmp_path, "delay@TSC_INFO=0.3")
    assert outcome.received == STREAM + GO and outcome.seconds > 5 * 0.3


def test_what_was_not_come_to_is_said(tmp_path: Path) -> None:
    outcome = relocate(tmp_path, "cut@PAGE_DATA:99", "hold@VERIFY=1", "drop@>99999999999")
    assert {line["asked"] for line in outcome.log if "missed" in line} == {
        "cut@PAGE_DATA:99",
        "hold@VERIFY=1",
        "drop@>99999999999",
    }
    assert not outcome.acted()


def test_how_far_the_sender_was_ahead_is_said(tmp_path: Path) -> None:
    [acted] = relocate(tmp_path, "cut@PAGE_DATA:2").acted()
    assert 0 < acted["ahead"] <= 2 * 65536 + 4096


def test_a_stream_of_another_kind_passes_untouched(tmp_path: Path) -> None:
    noise = os.urandom(300000)
    outcome = relocate(tmp_path, stream=noise)
    assert outcome.received == noise + GO
    assert any(line.get("event") == "not the protocol" for line in outcome.log)


def test_a_transport_that_dies_is_passed_on(tmp_path: Path) -> None:
    proxy = [
        sys.executable,
        "-S",
        "-m",
        "lab.on_board.proxy",
        "--log",
        str(tmp_path / "log"),
        "--",
        "sh",
        "-c",
        "exit 7",
    ]
    done = subprocess.run(
        proxy, stdin=subprocess.DEVNULL, capture_output=True, timeout=LIMIT, cwd=paths.CHECKOUT, check=False
    )
    assert done.returncode == 7 and done.stdout == b""


@pytest.mark.parametrize(
    "text",
    [
        "cut",
        "break@TSC_INFO",
        "cut@NOWHERE",
        "cut@TSC_INFO:pass2",
        "hold@GO=long",
        "hold@GO=-1",
        "corrupt@GO=x",
        "corrupt@>5=type",
        "run@GO",
    ],
)
def test_a_wrong_action_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        Action.parse(text)


def test_dom0_needs_nothing_but_the_standard_library() -> None:
    script = "import sys, lab.on_board.proxy; print([m for m in sys.modules if 'site-packages' in str(sys.modules[m])])"
    done = subprocess.run(
        [sys.executable, "-S", "-E", "-c", f"import sys; sys.path.insert(0, {str(paths.CHECKOUT)!r}); {script}"],
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=True,
    )
    assert done.stdout.strip() == "[]"


def test_the_sample_is_a_whole_stream() -> None:
    scanner = Scanner.of_sender()
    scanner.feed(STREAM + GO)
    assert not scanner.error
