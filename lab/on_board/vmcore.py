"""What a crash kernel finds in ``/proc/vmcore``: the notes of the crash, and the memory of the Xen that crashed.

``python3 -m lab.on_board.vmcore FOLDER [VMCORE]`` in the crash kernel, with the standard library alone. FOLDER gets
:data:`NOTES`, an ELF file of the vmcore's notes alone, and :data:`FACTS`, what they say, as JSON. Stdout tells the same
in a few lines. A vmcore that cannot be read ends the program with one line and status 1.

Sources: System V gABI, chapter 5 (program headers and notes); Linux, fs/proc/vmcore.c, which makes one note segment of
all; Xen, xen/include/xen/elfcore.h and public/elfnote.h (the notes), xen/common/kexec.c (who writes them).
"""

from __future__ import annotations

import json
import os
import struct
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import BinaryIO

NOTES, FACTS = "notes.elf", "facts.json"
VMCORE = "/proc/vmcore"

PT_LOAD, PT_NOTE = 1, 4
HEADER, PROGRAM_HEADER = struct.Struct("<16sHHIQQQIHHHHHH"), struct.Struct("<IIQQQQQQ")
HEADERS_LIMIT = 4096  # program headers
NOTES_LIMIT = 4 << 20  # bytes
NT_PRSTATUS, CRASH_INFO, CRASH_REGISTERS = 1, 0x1000001, 0x1000002
REGISTERS_AT = 112  # of a 64-bit prstatus: signal, masks, process ids and four times stand before them
REGISTERS = struct.Struct("<27Q")
RIP, RSP = 16, 19  # their places among the registers
CONTROL, CR3 = struct.Struct("<4Q"), 2  # cr0, cr2, cr3, cr4
INFO = struct.Struct("<10Q")  # crash_xen_info_t
BUILD_ID_HEADER = struct.pack("<III", 4, 20, 3) + b"GNU\0"  # a note of ld's --build-id: 20 bytes of SHA-1 follow
IMAGE = 32 << 20  # bytes; Xen's image is smaller
STACK = 32 << 10  # bytes: 8 pages, aligned to as many (xen/arch/x86/include/asm/config.h, STACK_ORDER)
REACH = 16 << 20  # bytes from an address of Xen's code within which all its code is
PAGE, ADDRESS, PRESENT, LARGE = 4096, 0x000FFFFFFFFFF000, 1, 0x80


class Unreadable(Exception):
    """The vmcore, or a part of it, is not what it must be."""


@dataclass(frozen=True)
class Cpu:
    """What one processor's notes say: its registers when Xen saved them, and addresses of code on its stack.

    ``rip`` is 0 for a processor that was not saved. ``stack`` is innermost first, and has return addresses of calls
    that are over, too.
    """

    rip: int
    rsp: int
    cr3: int = 0
    stack: tuple[int, ...] = ()
    not_read: str = ""  # why a part of the stack is missing


@dataclass(frozen=True)
class Xen:
    """What the crash note of Xen says, and what it points to."""

    version: str = ""  # 4.17.5
    changeset: str = ""
    phys_start: int = 0  # where the image was
    build_id: str = ""  # as it stands in the image
    dom0_mib: int = 0  # memory for which a PV dom0 has tables, by the list of them that the note points to


@dataclass(frozen=True)
class Facts:
    """All that is kept of a vmcore, beside its notes."""

    size: int  # bytes of the vmcore
    memory: int  # bytes of memory in it
    notes: tuple[tuple[str, int, int], ...]  # name, type, bytes
    cpus: tuple[Cpu, ...]
    xen: Xen | None  # None: Xen has left no crash note

    def text(self) -> str:
        """A few lines for people."""
        lines = [f"{self.size} bytes, {self.memory >> 20} MiB of memory, {len(self.notes)} notes"]
        if self.xen:
            lines.append(f"Xen {self.xen.version}, build id {self.xen.build_id or 'none'}")
            lines.append(f"tables of dom0 for {self.xen.dom0_mib} MiB")
        else:
            lines.append("no note of Xen")
        lines += [
            f"CPU {number} was at {cpu.rip:#x}, and {len(cpu.stack)} addresses of code are on its stack"
            for number, cpu in enumerate(self.cpus)
        ]
        return "\n".join(lines)


@dataclass(frozen=True)
class Load:
    """A piece of memory in the vmcore."""

    offset: int
    address: int  # physical
    size: int


class Core:
    """An ELF core with physical memory in it."""

    def __init__(self, file: BinaryIO) -> None:
        """:raises Unreadable: it is no 64-bit ELF core."""
        self._file = file
        head = file.read(HEADER.size)
        if len(head) < HEADER.size or head[:6] != b"\x7fELF\x02\x01":
            raise Unreadable("no 64-bit little-endian ELF file")
        fields = HEADER.unpack(head)
        start, size, count = fields[5], fields[9], fields[10]
        if size != PROGRAM_HEADER.size or not 0 < count <= HEADERS_LIMIT:
            raise Unreadable(f"{count} program headers of {size} bytes")
        self.header, self.loads, self.notes = head, list[Load](), b""
        for number in range(count):
            kind, _, offset, _, physical, length, _, _ = PROGRAM_HEADER.unpack(self._at(start + number * size, size))
            if kind == PT_LOAD:
                self.loads.append(Load(offset, physical, length))
            elif kind == PT_NOTE:
                self.notes += self._at(offset, min(length, NOTES_LIMIT))

    def _at(self, offset: int, size: int) -> bytes:
        self._file.seek(offset)
        found = self._file.read(size)
        if len(found) < size:
            raise Unreadable(f"{len(found)} of {size} bytes at {offset:#x}")
        return found

    def physical(self, address: int, size: int) -> bytes:
        """Memory at a physical address. :raises Unreadable: it is not, or not wholly, in the vmcore."""
        for load in self.loads:
            if load.address <= address and address + size <= load.address + load.size:
                return self._at(load.offset + address - load.address, size)
        raise Unreadable(f"no memory at {address:#x}")

    def virtual(self, address: int, size: int, cr3: int) -> bytes:
        """Memory at an address as a processor with this CR3 sees it, by four levels of page tables.

        Source: Intel SDM 3A, 4.5. :raises Unreadable: nothing is mapped there.
        """
        found = b""
        while len(found) < size:
            at = address + len(found)
            here = min(size - len(found), PAGE - at % PAGE)
            found += self.physical(self._translate(at, cr3), here)
        return found

    def _translate(self, address: int, cr3: int) -> int:
        table = cr3 & ADDRESS
        for shift in (39, 30, 21, 12):
            entry = int.from_bytes(self.physical(table + (address >> shift & 511) * 8, 8), "little")
            if not entry & PRESENT:
                raise Unreadable(f"nothing is mapped at {address:#x}")
            if shift == 12 or (entry & LARGE and shift < 39):
                inside = (1 << shift) - 1
                return (entry & ADDRESS & ~inside) | (address & inside)
            table = entry & ADDRESS
        raise AssertionError("the last level maps a page")

    def text(self, address: int) -> str:
        """A string of Xen's at a physical address; "" where there is none."""
        try:
            return self.physical(address, 128).partition(b"\0")[0].decode(errors="replace").strip()
        except Unreadable:
            return ""

    def frames(self, number: int) -> tuple[int, ...]:
        """The numbers in a frame that is full of frame numbers; none if it is not in the vmcore."""
        try:
            return struct.unpack("<512Q", self.physical(number * PAGE, PAGE))
        except Unreadable:
            return ()

    def dom0_mib(self, top: int) -> int:
        """Memory for which a PV domain has tables: the frames in ``top`` name frames that name them. Holes share one.

        Source: Linux, arch/x86/xen/p2m.c, and Xen, public/arch-x86/xen.h, pfn_to_mfn_frame_list_list.
        """
        lists = {number for number in self.frames(top) if number}
        tables = Counter(number for one in lists for number in self.frames(one) if number)
        return sum(2 for uses in tables.values() if uses == 1)  # a table has 512 frames of 4 KiB

    def build_id(self, image: int) -> str:
        """The build id in the image that begins at a physical address; "" if there is none."""
        step, overlap = 1 << 20, len(BUILD_ID_HEADER) + 20
        for at in range(image, image + IMAGE, step):
            try:
                piece = self.physical(at, step + overlap)
            except Unreadable:
                return ""
            if (place := piece.find(BUILD_ID_HEADER)) >= 0:
                start = place + len(BUILD_ID_HEADER)
                return piece[start : start + 20].hex()
        return ""


def notes_of(raw: bytes) -> Iterator[tuple[str, int, bytes]]:
    """Name, type and description of each note. Linux leaves gaps of zeros behind those of one processor."""
    at = 0
    while at + 12 <= len(raw):
        name_size, size, kind = struct.unpack_from("<III", raw, at)
        if not name_size:
            at += 4
            continue
        start = at + 12 + (name_size + 3 & ~3)
        if start + size > len(raw):
            return
        yield raw[at + 12 : at + 12 + name_size].rstrip(b"\0").decode(errors="replace"), kind, raw[start : start + size]
        at = start + (size + 3 & ~3)


def read(core: Core, size: int) -> Facts:
    """What the notes say, and the memory that they point to."""
    notes, cpus, xen = list(notes_of(core.notes)), list[Cpu](), None
    for name, kind, body in notes:
        if name == "CORE" and kind == NT_PRSTATUS and len(body) >= REGISTERS_AT + REGISTERS.size:
            registers = REGISTERS.unpack_from(body, REGISTERS_AT)
            cpus.append(Cpu(registers[RIP], registers[RSP]))
        elif name == "Xen" and kind == CRASH_REGISTERS and cpus and len(body) >= CONTROL.size:
            cpus[-1] = replace(cpus[-1], cr3=CONTROL.unpack_from(body)[CR3])
        elif name == "Xen" and kind == CRASH_INFO and len(body) >= INFO.size:
            xen = _xen(core, INFO.unpack_from(body))
    return Facts(
        size=size,
        memory=sum(load.size for load in core.loads),
        notes=tuple((name, kind, len(body)) for name, kind, body in notes),
        cpus=tuple(_with_stack(cpu, core) if cpu.rip else cpu for cpu in cpus),
        xen=xen,
    )


def _xen(core: Core, info: tuple[int, ...]) -> Xen:
    major, minor, extra, changeset, _, _, _, _, image, frames = info
    version = f"{major}.{minor}{core.text(extra)}"
    return Xen(version, core.text(changeset), image, core.build_id(image), core.dom0_mib(frames) if frames else 0)


def _with_stack(cpu: Cpu, core: Core) -> Cpu:
    """The same with what is on its stack, as far as that is mapped: guard pages are not."""
    found, missing, at, end = list[int](), "", cpu.rsp & ~7, (cpu.rsp | STACK - 1) + 1
    while at < end:
        upto = min((at | PAGE - 1) + 1, end)
        try:
            raw = core.virtual(at, upto - at, cpu.cr3)
            found += [word for word in struct.unpack(f"<{len(raw) // 8}Q", raw) if abs(word - cpu.rip) < REACH]
        except Unreadable as error:
            missing = str(error)
        at = upto
    return replace(cpu, stack=tuple(found), not_read=missing)


def notes_file(core: Core) -> bytes:
    """An ELF core file with the vmcore's notes and no memory."""
    fields = list(HEADER.unpack(core.header))
    fields[5], fields[6], fields[10] = HEADER.size, 0, 1
    offset = HEADER.size + PROGRAM_HEADER.size
    head = PROGRAM_HEADER.pack(PT_NOTE, 0, offset, 0, 0, len(core.notes), len(core.notes), 4)
    return HEADER.pack(*fields) + head + core.notes


def main() -> int:
    """Keep the notes, and say what they tell."""
    folder, path = sys.argv[1], (*sys.argv[2:], VMCORE)[0]
    os.makedirs(folder, exist_ok=True)
    try:
        with open(path, "rb") as file:
            core = Core(file)
            facts = read(core, os.stat(path).st_size)
    except (OSError, Unreadable) as error:
        sys.stdout.write(f"vmcore: {path} cannot be read: {error}\n")
        return 1
    for name, content in ((NOTES, notes_file(core)), (FACTS, json.dumps(asdict(facts), indent=1).encode())):
        with open(f"{folder}/{name}", "wb") as kept:
            kept.write(content)
            os.fsync(kept.fileno())
    sys.stdout.write("".join(f"vmcore: {line}\n" for line in facts.text().splitlines()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
