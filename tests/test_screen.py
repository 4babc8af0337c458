"""What of a console's bytes reaches a person's terminal: text, cursor and colours, and nothing else it would obey."""

from __future__ import annotations

import os
import random
import re
import threading
import time
from pathlib import Path

import pytest
from consoles import Recording, Wire
from test_console import console_fixture, record_fixture, recording_fixture, wire_fixture  # noqa: F401

from lab.base.wait import wait_until
from lab.console.client import Console
from lab.console.screen import Screen
from lab.inventory import BmcSpec, BoardSpec
from lab.leases import console_access
from lab.leases.ledger import Ledger

DATA = Path(__file__).parent / "data" / "console"

SHOWN = {
    "text": "(XEN) grün, ☃ and 漢字\r\n",
    "colours": "\x1b[1;31mred\x1b[m \x1b[38;5;12mblue\x1b[38:2::1:2:3m",
    "a boot loader's menu": "\x1b[H\x1b[J\x1b[1;1H\x1b[?25l\x1b[2;24HGNU GRUB\x1b[25;80H\x1b[?25h",
    "reset": "\x1bc\x1b[2J",
    "an editor": "\x1b[?1049h\x1b[1;24r\x1b[4h\x1b[10L\x1b7\x1b8\x1b[?1049l\x1b(B\x1b)0\x0e\x0f",
    "plain controls": "a\bb\tc\ad\fe",
}
HIDDEN = {
    "title": "\x1b]0;owned\x07",
    "title, ended by ST": "\x1b]2;owned\x1b\\",
    "clipboard": "\x1b]52;c;cm0gLXJmIC8=\x07",
    "link": "\x1b]8;;http://x.invalid\x1b\\",
    "palette asked for": "\x1b]4;1;?\x07",
    "DCS": "\x1bP$qm\x1b\\",
    "sixel": "\x1bPq#0;2;0;0;0~~\x1b\\",
    "SOS": "\x1bXhidden\x1b\\",
    "PM": "\x1b^hidden\x1b\\",
    "APC": "\x1b_Gf=24;AAAA\x1b\\",
    "OSC of C1": "\x9d0;owned\x9c",
    "DCS of C1": "\x90q~\x9c",
    "device attributes": "\x1b[c\x1b[>c\x1b[=c\x1b[0c",
    "cursor asked for": "\x1b[6n\x1b[?6n\x1b[5n",
    "answerback": "\x05",
    "identify": "\x1bZ",
    "window": "\x1b[21t\x1b[8;1;1t\x1b[2t",
    "printing": "\x1b[5i\x1b[?5i\x1b[4i",
    "version asked for": "\x1b[>0q",
    "mode asked for": '\x1b[?25$p\x1b[61"p',
    "keys in another way": "\x1b[>4;2m\x1b[>1u",
    "mouse": "\x1b[?1000h\x1b[?1003;1006h\x1b[?25;1002h\x1b[?9h",
    "focus, and pasted text in brackets": "\x1b[?1004h\x1b[?2004h",
    "millions of repeats": "\x1b[99999999b",
    "locking shifts and others": "\x1bn\x1bo\x1b|\x1b6\x1b9",
    "checksum of the screen": "\x1b[1;1;1;1;1;1*y",
    "CSI of C1": "\x9b6n",
}


@pytest.mark.parametrize("text", SHOWN.values(), ids=SHOWN)
def test_text_cursor_and_colours_are_shown(text: str) -> None:
    assert Screen().show(text.encode()).decode() == text


@pytest.mark.parametrize("text", HIDDEN.values(), ids=HIDDEN)
def test_what_a_terminal_would_obey_or_answer_is_left_out(text: str) -> None:
    assert Screen().show(f"before{text}after".encode()) == b"beforeafter"


@pytest.mark.parametrize("text", [*SHOWN.values(), *HIDDEN.values()], ids=[*SHOWN, *HIDDEN])
def test_the_same_comes_of_it_byte_by_byte(text: str) -> None:
    whole, screen = f"before{text}after".encode(), Screen()
    pieces = b"".join(screen.show(whole[at : at + 1]) for at in range(len(whole)))
    assert pieces == Screen().show(whole)


def test_a_string_without_end_hides_no_more_than_its_line() -> None:
    assert Screen().show(b"\x1b]0;never ended\r\n(XEN) Panic on CPU 0:\r\n") == b"\r\n(XEN) Panic on CPU 0:\r\n"
    screen = Screen()
    shown = b"".join(screen.show(b"\x1bP" + b"x" * 100) for _ in range(3))
    shown += b"".join(screen.show(b"y" * 1000) for _ in range(10))
    assert shown.count(b"y") >= 9000, "what is too long for a string is text"
    assert b"\x1b" not in shown


def test_bytes_that_are_no_text_are_replaced() -> None:
    assert Screen().show(b"\xff\x9d0;owned\x07\xc3").decode() == "\ufffd\ufffd0;owned\a"


def test_recorded_boots_look_as_they_did() -> None:
    for name in ("417-good-boot-to-login", "420-S3-xenpm"):
        data = (DATA / f"{name}.log").read_bytes()
        shown = Screen().show(data + b"\n")
        plain = re.compile(rb"\x1b\[[?0-9;]*[A-Za-z]|\x1b.|[^\x20-\x7e\n]")
        assert plain.sub(b"", shown) == plain.sub(b"", data + b"\n")


def test_whatever_comes_no_terminal_is_made_to_answer() -> None:
    """Random pieces of sequences: of what is shown nothing is left when all that is harmless is taken away."""
    chance = random.Random(20261123)
    pieces = [
        "\x1b",
        "[",
        "]",
        "P",
        "_",
        "\x9b",
        "\x9d",
        "?",
        ">",
        "6n",
        "c",
        "t",
        "0;x",
        "\x07",
        "\\",
        "\x05",
        "m",
        "1h",
        "\n",
        "é",
        "Z",
    ]
    harmless = re.compile(
        r"\x1b\[\??[0-9;:]*[@A-HJ-MPSTXZ`abdefghlmrsu]|\x1b[78=>DEHMc]|\x1b[()*+][0-9A-Z<>%]|[^\x00-\x1f\x7f-\x9f]|[\a\b\t\n\v\f\r\x0e\x0f]"
    )
    for _ in range(3000):
        data = "".join(chance.choices(pieces, k=chance.randrange(1, 25))).encode()
        screen, shown = Screen(), b""
        while data:
            cut = chance.randrange(1, len(data) + 1)
            shown, data = shown + screen.show(data[:cut]), data[cut:]
        assert harmless.sub("", shown.decode()) == "", shown


def test_floods_of_beginnings_take_no_time() -> None:
    started = time.process_time()
    for data in (
        b"\x1b" * 200_000,
        b"\x1b]" * 100_000,
        b"\x1b[" * 100_000,
        b"\x1b[1;" * 50_000,
        b"\x1bP" + b"x" * 400_000,
    ):
        screen = Screen()
        for at in range(0, len(data), 65536):
            screen.show(data[at : at + 65536])
    assert time.process_time() - started < 3.0


def test_a_person_at_a_console_sees_no_control_strings(
    wire: Wire, recording: Recording, console: Console, tmp_path: Path
) -> None:
    """Neither in what the console said before, nor in what it says."""
    spec = BoardSpec("virt1", "127.0.0.1", BmcSpec("127.0.0.1", "none"), recording.config.console)
    mark = console.mark()
    wire.say(b"before \x1b]0;owned\x07\x1b[31mred\x1b[m\r\n")
    console.wait_for("before", 5.0, since=mark)
    keys, ours = os.pipe()
    with open(tmp_path / "screen", "w+b", buffering=0) as screen:
        writer = console_access.Writer(Ledger(tmp_path), "virt1", "host/alice")
        thread = threading.Thread(
            target=console_access.attach, args=(spec, writer), kwargs={"types": True, "keys": keys, "screen": screen}
        )
        thread.start()

        def shown() -> bytes:
            return (tmp_path / "screen").read_bytes()

        wait_until(lambda: b"live" in shown(), 10.0, "attached", interval=0.02)
        wire.say(b"now \x1b]52;c;eA==\x07\x1b[6nlogin: ")
        wait_until(lambda: b"now login: " in shown(), 10.0, "what is said now", interval=0.02)
        os.write(ours, b"\x1d")
        thread.join(10.0)
        assert b"before \x1b[31mred\x1b[m\r\n" in shown() and b"owned" not in shown() and b"\x1b]" not in shown()
    for handle in (keys, ours):
        os.close(handle)
