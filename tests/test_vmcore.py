"""What the crash kernel's program finds in a vmcore: here one that was made by hand, with a Xen of a few pages."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
from pathlib import Path

import pydantic
import pytest

from lab.base import paths
from lab.on_board import vmcore
from lab.on_board.vmcore import Core, Facts, Unreadable, notes_of, read

MEMORY, AT = 1 << 22, 0x200000  # 4 MiB from 2 MiB on
IMAGE, TABLES, STACK = 0x300000, 0x210000, 0x220000  # where Xen, its page tables and a stack are
CODE, STACK_VIRTUAL = 0xFFFF82D040200000, 0xFFFF830000020000  # Xen's code; 32 KiB of stack end at ...28000
FRAMES = 0x280000  # of dom0
HERE = struct.pack("<Q", FRAMES >> 12)
BUILD_ID = bytes(range(20))


def note(name: bytes, kind: int, body: bytes) -> bytes:
    return b"".join(
        (
            struct.pack("<III", len(name) + 1, len(body), kind),
            name + bytes(4 - len(name) % 4),
            body + bytes(-len(body) % 4),
        )
    )


def processor(rip: int, rsp: int, cr3: int) -> bytes:
    registers = [0] * 27
    registers[vmcore.RIP], registers[vmcore.RSP] = rip, rsp
    status = bytes(vmcore.REGISTERS_AT) + struct.pack("<27Q", *registers) + bytes(8)
    return note(b"CORE", 1, status) + note(b"Xen", 0x1000002, struct.pack("<4Q", 0, 0, cr3, 0))


def memory() -> bytearray:
    """Page tables that map one page of stack, the last of eight; its words; Xen's build id and texts."""
    made = bytearray(MEMORY)

    def put(address: int, content: bytes) -> None:
        made[address - AT : address - AT + len(content)] = content

    page = STACK_VIRTUAL + 0x7000
    for level, shift in enumerate((39, 30, 21, 12)):
        following = STACK if shift == 12 else TABLES + (level + 1) * 0x1000
        put(TABLES + level * 0x1000 + (page >> shift & 511) * 8, struct.pack("<Q", following | 0x63))
    put(STACK + 0xF00, struct.pack("<4Q", 1, CODE + 0x1234, STACK_VIRTUAL, CODE + 0x5678))
    put(FRAMES, struct.pack("<Q", (FRAMES >> 12) + 1))
    put(FRAMES + 0x1000, struct.pack("<4Q", 0x1000, 0x2000, 0x3000, 0x3000))  # the last is a hole's
    put(IMAGE + 0x80000, vmcore.BUILD_ID_HEADER + BUILD_ID)
    put(IMAGE + 0x1000, b".5-pre\0")
    put(IMAGE + 0x1100, b"Thu Sep 7 10:00:00 2023 git:1234\0")
    return made


def core(notes: bytes, loads: bytes | None = None) -> bytes:
    content = memory() if loads is None else loads
    at = 64 + 2 * 56
    header = struct.pack(
        "<16sHHIQQQIHHHHHH", b"\x7fELF\x02\x01\x01" + bytes(9), 4, 62, 1, 0, 64, 0, 0, 64, 56, 2, 0, 0, 0
    )
    segments = struct.pack("<IIQQQQQQ", 4, 0, at, 0, 0, len(notes), len(notes), 0)
    segments += struct.pack("<IIQQQQQQ", 1, 7, at + len(notes), 0, AT, len(content), len(content), 0)
    return header + segments + notes + content


INFO = note(
    b"Xen", 0x1000001, struct.pack("<10Q", 4, 17, IMAGE + 0x1000, IMAGE + 0x1100, 0, 0, 0, 0, IMAGE, FRAMES >> 12)
)
NOTES = b"".join(
    (
        processor(CODE + 0x42, STACK_VIRTUAL + 0x7F00, TABLES),
        INFO,
        processor(0, 0, 0),
        note(b"VMCOREINFO", 0, b"OSRELEASE=6.1.0-1-amd64\nPAGESIZE=4096\n"),
    )
)


def found(content: bytes) -> Facts:
    return read(Core(io.BytesIO(content)), len(content))


def test_the_notes_say_which_xen_crashed_and_where() -> None:
    facts = found(core(NOTES))
    assert facts.xen and facts.xen.version == "4.17.5-pre" and facts.xen.build_id == BUILD_ID.hex()
    assert facts.xen.changeset.startswith("Thu Sep 7") and facts.xen.dom0_mib == 4
    assert [cpu.rip for cpu in facts.cpus] == [CODE + 0x42, 0]
    assert facts.cpus[0].stack == (CODE + 0x1234, CODE + 0x5678)  # neither 1 nor the stack's own address
    assert facts.memory == MEMORY and [name for name, _, _ in facts.notes] == [
        *("CORE", "Xen", "Xen", "CORE", "Xen", "VMCOREINFO")
    ]


def test_a_stack_that_is_not_mapped_is_said() -> None:
    facts = found(core(processor(CODE, STACK_VIRTUAL + 0x6F00, TABLES)))
    assert "nothing is mapped" in facts.cpus[0].not_read
    assert facts.cpus[0].stack == (CODE + 0x1234, CODE + 0x5678)  # of the page above


def test_a_vmcore_without_a_note_of_xen_tells_of_none() -> None:
    facts = found(core(processor(CODE, 0, 0)))
    assert facts.xen is None and "no note of Xen" in facts.text()


def test_an_image_that_is_not_in_the_vmcore_has_no_build_id() -> None:
    wrong = INFO.replace(struct.pack("<Q", IMAGE) + HERE, struct.pack("<Q", AT + MEMORY) + HERE)
    facts = found(core(wrong))
    assert facts.xen and facts.xen.build_id == ""


@pytest.mark.parametrize(
    "content", [b"", b"\x7fELF\x01\x01" + bytes(100), core(NOTES)[:200], core(NOTES)[:64]], ids=range(4)
)
def test_what_is_no_core_is_refused(content: bytes) -> None:
    with pytest.raises(Unreadable):
        Core(io.BytesIO(content))


def test_damaged_notes_end_the_reading() -> None:
    assert [name for name, _, _ in notes_of(NOTES[:500] + b"\xff" * 40)] == ["CORE", "Xen", "Xen"]


def test_the_program_keeps_notes_and_facts(tmp_path: Path) -> None:
    (tmp_path / "vmcore").write_bytes(core(NOTES))
    words = [sys.executable, "-S", "-m", "lab.on_board.vmcore", str(tmp_path / "kept"), str(tmp_path / "vmcore")]
    done = subprocess.run(words, capture_output=True, text=True, cwd=paths.PYTHON, timeout=60, check=True)
    assert "vmcore: Xen 4.17.5-pre, build id 000102" in done.stdout
    kept = tmp_path / "kept"
    assert pydantic.TypeAdapter(Facts).validate_json((kept / vmcore.FACTS).read_bytes()) == found(core(NOTES))
    with open(kept / vmcore.NOTES, "rb") as file:
        alone = Core(file)
    assert alone.notes == NOTES and not alone.loads


def test_the_program_says_what_it_cannot_read(tmp_path: Path) -> None:
    words = [sys.executable, "-S", "-m", "lab.on_board.vmcore", str(tmp_path), str(tmp_path / "none")]
    done = subprocess.run(words, capture_output=True, text=True, cwd=paths.PYTHON, timeout=60, check=False)
    assert done.returncode == 1 and "cannot be read" in done.stdout and not done.stderr
    assert not (tmp_path / vmcore.FACTS).exists()
