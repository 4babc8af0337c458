"""Counters as ``xencov read`` gives them, and as a run folder keeps them.

Source: xen/common/coverage/gcov.c, public/sysctl.h (XEN_GCOV_FORMAT_MAGIC): the magic number, then for each object
the name of its file, a zero byte, a length and a ``.gcda`` file; all little-endian. gcc/gcov-io.h: what a ``.gcda``
file holds.
"""

from __future__ import annotations

import lzma
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path

from lab.base.errors import BenchError

SUFFIX = ".counters.xz"
BOOT = f".boot{SUFFIX}"  # what was counted from a boot to the first reset
_MAGIC = struct.pack("<I", 0x58434F56)  # "XCOV"
_GCDA = b"adcg"
_HEAD = 12  # bytes before the first record, at least: magic number, version, stamp
_BYTES_FROM = 12  # this gcc and later ones count lengths in bytes; those before, in words
_COUNTERS = range(0x01A10000, 0x01C00000)  # tags of counters


def parse(blob: bytes) -> dict[str, bytes]:
    """The ``.gcda`` file of each object, by the name that the hypervisor gives it.

    :raises BenchError: these are no counters, or they are cut off.
    """
    if not blob.startswith(_MAGIC):
        raise BenchError(f"no counters of Xen: they begin with {blob[:4]!r}, and XCOV is wanted (made by clang?)")
    found, at = {}, len(_MAGIC)
    while at < len(blob):
        end = blob.find(b"\0", at)
        size_at = end + 1
        if end < 0 or size_at + 4 > len(blob):
            raise BenchError(f"the counters are cut off after {len(blob)} bytes")
        (size,) = struct.unpack_from("<I", blob, size_at)
        data = blob[size_at + 4 : size_at + 4 + size]
        if len(data) < max(size, _HEAD) or not data.startswith(_GCDA):
            raise BenchError(f"the counters are cut off or damaged at byte {at} of {len(blob)}")
        found[blob[at:end].decode(errors="replace")] = data
        at = size_at + 4 + size
    return found


def is_counted(data: bytes) -> bool:
    """Whether any counter in a ``.gcda`` file is not 0."""
    return any(any(values) for values in _values(data))


def _values(data: bytes) -> Iterator[bytes]:
    """The values of each record of counters."""
    # B22* is gcc 12.2, B32* 13.2, A95* 9.5: a letter for tens, then a digit.
    gcc = (data[7] - ord("A")) * 10 + data[6] - ord("0")
    unit = 1 if gcc >= _BYTES_FROM else 4
    at = 16 if gcc >= _BYTES_FROM else 12
    while at + 8 <= len(data):
        tag, length = struct.unpack_from("<Ii", data, at)
        length = max(length, 0) * unit  # negative: so many zeros, which are left out
        if tag in _COUNTERS:
            yield data[at + 8 : at + 8 + length]
        at += 8 + length


def save(path: Path, files: Mapping[str, bytes]) -> int:
    """Keep the objects of which something was counted. Returns the bytes written."""
    kept = [_MAGIC]
    for name, data in files.items():
        if is_counted(data):
            kept += [name.encode(), b"\0", struct.pack("<I", len(data)), data]
    packed = lzma.compress(b"".join(kept), preset=6)
    path.write_bytes(packed)
    return len(packed)


def load(path: Path) -> dict[str, bytes]:
    """What :func:`save` kept. :raises BenchError: it cannot be read, or is damaged."""
    try:
        return parse(lzma.decompress(path.read_bytes()))
    except (OSError, lzma.LZMAError) as error:
        raise BenchError(f"{path}: {error}") from None
