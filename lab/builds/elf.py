"""Reads hypervisor images: the GNU build id, which Xen itself reports in ``xl info``, and symbols."""

from __future__ import annotations

import bisect
import functools
import gzip
import logging
import re
import struct
import zlib
from pathlib import Path

from lab.base.errors import BenchError
from lab.builds import command

log = logging.getLogger(__name__)

NM_TIMEOUT = 60.0  # seconds; takes a tenth of one
_SYMBOL = re.compile(r"([0-9a-f]{6,16}) (?:([0-9a-f]{6,16}) )?(\w) (\S+)$")

IMAGE_LIMIT = 256 << 20  # bytes of an image, unpacked; Xen has 2 to 30 MiB
NOTES_LIMIT = 1 << 16  # bytes of a segment of notes; Xen has some dozen
SEGMENTS_LIMIT = 64  # program headers; Xen has 2 or 3
_PT_NOTE = 4
_NT_GNU_BUILD_ID = 3


def build_id(image: Path) -> str:
    """Hexadecimal build id of ``image`` (ELF, plain or gzipped), or "" when it carries none.

    ``xen.gz`` is stripped and made a 32-bit ELF for multiboot, but ``mkelf32`` keeps the note in a PT_NOTE
    program header (xen/arch/x86/boot/mkelf32.c). It is what ld wrote (``--build-id``) and ``xl info`` tells.

    :raises ValueError: not an ELF image.
    """
    data = image.read_bytes()
    if data[:2] == b"\x1f\x8b":
        try:
            with gzip.open(image) as packed:
                data = packed.read(IMAGE_LIMIT + 1)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{image}: damaged gzip file: {error}") from None
    if len(data) > IMAGE_LIMIT:
        raise ValueError(f"{image}: larger than {IMAGE_LIMIT >> 20} MiB: no hypervisor")
    if data[:4] != b"\x7fELF" or data[4:6] not in (b"\x01\x01", b"\x02\x01"):
        raise ValueError(f"{image}: not a little-endian ELF image")
    try:
        for offset, size in _note_segments(data):
            if found := _find(data[offset : offset + min(size, NOTES_LIMIT)]):
                return found
    except (struct.error, IndexError, OverflowError):  # the latter: an offset that is no address
        raise ValueError(f"{image}: cut short") from None
    return ""


def symbolise(address: int, elf: Path) -> tuple[str, int] | None:
    """The function of ``elf`` (``xen-syms``) that ``address`` is in, and the offset into it.

    None where there is none, or where the symbols cannot be read, which is logged. They are read once a file.
    """
    try:
        about = elf.stat()
    except OSError:
        return None
    starts, names = _symbols(elf, about.st_mtime_ns, about.st_size)
    index = bisect.bisect_right(starts, address) - 1
    return (names[index], address - starts[index]) if index >= 0 and names[index] else None


@functools.lru_cache(maxsize=8)
def _symbols(elf: Path, changed: int, size: int) -> tuple[list[int], list[str]]:
    """Addresses in order, and the function that begins at each; "" where something else does."""
    try:
        said = command.run(["nm", "-n", "-S", str(elf)], timeout=NM_TIMEOUT)
    except BenchError as error:
        log.warning("no symbols: %s", error)
        return [], []
    found: dict[int, tuple[bool, bool, str]] = {}
    for line in said.splitlines():
        if match := _SYMBOL.match(line):
            at, length, kind, name = match.groups()
            # Of several at one address: rather one that has a length, and is global. "A": a number, no place.
            wanted = (bool(length), kind.isupper(), name if kind in "TtWw" else "")
            if kind not in "Aa" and wanted > found.get(int(at, 16), (False, False, "")):
                found[int(at, 16)] = wanted
            elif kind not in "Aa":
                found.setdefault(int(at, 16), wanted)
    starts = sorted(found)
    return starts, [found[start][2] for start in starts]


def _note_segments(data: bytes) -> list[tuple[int, int]]:
    """(offset, size) of each PT_NOTE. Source: System V gABI, chapter 5, Program Header."""
    is_64 = data[4] == 2
    (start,) = struct.unpack_from("<Q", data, 32) if is_64 else struct.unpack_from("<I", data, 28)
    entry_size, count = struct.unpack_from("<HH", data, 54 if is_64 else 42)
    found = []
    for number in range(min(count, SEGMENTS_LIMIT)):
        at = start + number * entry_size
        if is_64:
            kind, _, offset, _, _, size = struct.unpack_from("<IIQQQQ", data, at)
        else:
            kind, offset, _, _, size = struct.unpack_from("<IIIII", data, at)
        if kind == _PT_NOTE:
            found.append((offset, size))
    return found


def _find(notes: bytes) -> str:
    at = 0
    while at + 12 <= len(notes):
        name_size, size, kind = struct.unpack_from("<III", notes, at)
        name = notes[at + 12 : at + 12 + name_size]
        start = at + 12 + (name_size + 3 & ~3)
        if kind == _NT_GNU_BUILD_ID and name == b"GNU\0":
            return notes[start : start + size].hex()
        at = start + (size + 3 & ~3)
    return ""
