"""Migration streams that are made up, and recorded ones that are broken field by field, for ``xl migrate-receive``.

Sources: docs/specs/libxc-migration-stream.pandoc, libxl-migration-stream.pandoc; tools/xl/xl.h (save_file_header).
"""

from __future__ import annotations

import json
import random
import shlex
import struct
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lab.base.errors import BenchError
from lab.on_board.stream import (
    BATCH,
    GO,
    IMAGE_MARKER,
    LIBXC,
    LIBXL,
    LIBXL_MAGIC,
    PAGE,
    RECORD_HEADER,
    XL_MAGIC,
    Mark,
    Scanner,
    Step,
)
from lab.xen.domain import Domain
from lab.xen.host import Host

XTAB = 0xF << 60  # the type of an entry that has no page (XEN_DOMCTL_PFINFO_XTAB)
LIBXL_STEPS = frozenset(LIBXL.values())
HEADERS = {Step.XL_HEADER: 48, Step.LIBXL_HEADER: 16, Step.IMAGE_HEADER: 24, Step.DOMAIN_HEADER: 16}


def made_up(kind: str, passes: Sequence[Sequence[int]], *, final: Sequence[int] = (0,)) -> Iterator[tuple[Step, bytes]]:
    """The steps that the sender of a guest of this kind writes, with these pfns in the passes and after the suspend."""
    is_pv = kind.startswith("pv") and not kind.startswith("pvh")
    config = b'{"c_info": {"type": "%s", "name": "made-up"}}' % (b"pv" if is_pv else b"pvh")
    optional = struct.pack("<I", len(config) + 1) + config + b"\0"
    yield Step.XL_HEADER, XL_MAGIC + struct.pack("<IIII", 0x01020304, 3, 0, len(optional)) + optional
    yield Step.LIBXL_HEADER, LIBXL_MAGIC + struct.pack(">II", 2, 0)
    yield _record(Step.LIBXC_CONTEXT)
    yield Step.IMAGE_HEADER, IMAGE_MARKER + struct.pack(">IIHHI", 0x58454E46, 3, 0, 0, 0)
    yield Step.DOMAIN_HEADER, struct.pack("<IHHII", 1 if is_pv else 2, 12, 0, 4, 17)
    if is_pv:
        yield _record(
            Step.X86_PV_INFO, bytes((8 if kind == "pv64" else 4, 4 if kind == "pv64" else 3, 0, 0, 0, 0, 0, 0))
        )
    yield _record(Step.X86_CPUID_POLICY, bytes(48))
    yield _record(Step.X86_MSR_POLICY, bytes(16))
    yield _record(Step.STATIC_DATA_END)
    if is_pv:
        yield _record(Step.X86_PV_P2M_FRAMES, struct.pack("<IIQ", 0, 511, 0))
    for pfns in (*passes, final):
        for at in range(0, len(pfns), BATCH):
            yield page_data(pfns[at : at + BATCH])
    yield _record(Step.TSC_INFO, bytes(24))
    if is_pv:
        yield _record(Step.SHARED_INFO, bytes(PAGE))
        yield _record(Step.X86_PV_VCPU_BASIC, bytes(8 + 5168))
        yield _record(Step.X86_PV_VCPU_EXTENDED, bytes(8 + 128))
        yield _record(Step.X86_PV_VCPU_MSRS, bytes(8 + 16))
    else:
        yield _record(Step.HVM_CONTEXT, bytes(3001))
        yield _record(Step.HVM_PARAMS, struct.pack("<IIQQ", 1, 0, 1, 0xFEFF8))
    yield _record(Step.LIBXC_END)
    yield _record(Step.LIBXL_END)
    yield Step.GO, GO


def page_data(pfns: Sequence[int]) -> tuple[Step, bytes]:
    """A PAGE_DATA record of pages with contents."""
    head = struct.pack(f"<II{len(pfns)}Q", len(pfns), 0, *pfns)
    return _record(Step.PAGE_DATA, head + b"".join(struct.pack("<Q", pfn) * (PAGE // 8) for pfn in pfns))


def holes(pfns: Sequence[int]) -> tuple[Step, bytes]:
    """A PAGE_DATA record of pfns that have no page, as most of a PVH guest's nearly 4 GiB of address space."""
    entries = (XTAB | pfn for pfn in pfns)
    return _record(Step.PAGE_DATA, struct.pack(f"<II{len(pfns)}Q", len(pfns), 0, *entries))


_TYPES = {step: kind for kind, step in LIBXC.items()} | {step: kind for kind, step in LIBXL.items()}


def _record(step: Step, body: bytes = b"") -> tuple[Step, bytes]:
    return step, struct.pack("<II", _TYPES[step], len(body)) + body + bytes(-len(body) % 8)


# -- broken ones -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class BrokenStream:
    """One way to break a stream: other bytes at ``offset``, or the end of the stream there."""

    name: str  # "012-TSC_INFO-length-zero"
    offset: int
    data: bytes = b""
    ends: bool = False

    def of(self, stream: bytes) -> bytes:
        """The broken stream."""
        if self.ends:
            return stream[: self.offset]
        return stream[: self.offset] + self.data + stream[self.offset + len(self.data) :]


def variants(stream: bytes, seed: int, *, a_field: int = 1) -> Iterator[BrokenStream]:
    """Every field of every kind of step broken, in the order of the stream; the same seed gives the same variants.

    Of steps that come again and again, the first and the last one are broken. Each field gets ``a_field`` random values
    besides the values that are known to be nasty.

    :raises ValueError: the bytes are no migration stream.
    """
    chance = random.Random(seed)
    for mark in _telling(_marks(stream)):
        if mark.step is Step.GO:
            continue
        yield BrokenStream(f"{mark.offset:08x}-{mark.step.value}-ends", mark.offset, ends=True)
        yield BrokenStream(
            f"{mark.offset:08x}-{mark.step.value}-ends-within", mark.offset + mark.length // 2, ends=True
        )
        for name, at, size in _fields(mark):
            value = int.from_bytes(stream[mark.offset + at : mark.offset + at + size], "little")
            top = (1 << 8 * size) - 1
            broken = {"zero": 0, "ones": top, "one-more": value + 1 & top, "one-less": value - 1 & top}
            broken["high"] = value ^ 1 << 8 * size - 1
            broken |= {f"random{n}": chance.getrandbits(8 * size) for n in range(a_field)}
            for how, new in broken.items():
                if new != value:
                    data = new.to_bytes(size, "little")
                    yield BrokenStream(f"{mark.offset:08x}-{mark.step.value}-{name}-{how}", mark.offset + at, data)
        start = HEADERS.get(mark.step, RECORD_HEADER)
        if mark.length > start:
            for n in range(a_field):
                at = chance.randrange(start, mark.length)
                data = bytes((stream[mark.offset + at] ^ 1 << chance.randrange(8),))
                yield BrokenStream(f"{mark.offset:08x}-{mark.step.value}-body-bit{n}", mark.offset + at, data)


# Run in dom0 by its Python: FOLDER has `stream`, `variants` (lines of JSON) and gets `results`. A domain that a
# receiver leaves behind is noted, and destroyed before the next receiver starts. The receiver's answers go to a file,
# so that it can always write them. The variant's name goes to the console (level 1: alert) before the receiver
# starts, because that is all that is left if the host dies.
FEEDER = """\
import json, os, subprocess, sys, time
folder, limit, console = sys.argv[1], float(sys.argv[2]), sys.argv[3]
stream = open(os.path.join(folder, "stream"), "rb").read()
with open(os.path.join(folder, "results"), "w") as results:
    for line in open(os.path.join(folder, "variants")):
        one = json.loads(line)
        data = bytes.fromhex(one["data"])
        broken = stream[: one["offset"]]
        if not one["ends"]:
            broken += data + stream[one["offset"] + len(data) :]
        started = time.monotonic()
        with open(console, "w") as kernel:
            kernel.write("<1>xenlab: variant %s\\n" % one["variant"])
        with open(os.path.join(folder, "broken"), "wb") as file:
            file.write(broken)
        command = "xl migrate-receive < %s/broken > %s/answers 2> %s/said" % (folder, folder, folder)
        child = subprocess.Popen(["sh", "-c", "exec " + command], start_new_session=True)
        try:
            status = child.wait(limit)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, 9)
            child.wait()
            status = "hangs"
        said = open(os.path.join(folder, "said"), errors="replace").read()
        left = subprocess.run(["xl", "domid", one["name"]], capture_output=True, text=True)
        if left.returncode == 0:
            subprocess.run(["xl", "destroy", one["name"]], capture_output=True)
        seconds = time.monotonic() - started
        result = {"variant": one["variant"], "status": status, "left": left.returncode == 0, "seconds": seconds}
        results.write(json.dumps(result | {"said": said[-300:]}) + "\\n")
        results.flush()
"""
VARIANT_LIMIT = 40.0  # seconds a receiver may take for one variant, on an emulated board
FOLDER = "/var/tmp/xenlab-fuzz"


@dataclass(frozen=True, slots=True)
class Fed:
    """What a receiver did with a variant. ``status`` is the receiver's exit status, or ``hangs``."""

    variant: str
    status: int | str
    is_left: bool  # a copy of the guest was left behind
    seconds: float
    said: str


def record(guest: Domain) -> bytes:
    """The stream of a guest as ``xl save`` writes it: a migration's stream without GO. The guest goes on.

    :raises ToolstackFailed: xl cannot save the guest.
    """
    host = guest.host
    host.run(f"mkdir -p {FOLDER}")
    host.xl("save", "-c", guest.name, f"{FOLDER}/stream", timeout=120)
    with tempfile.TemporaryDirectory(prefix="xenlab-fuzz-") as scratch:
        host.board.get(f"{FOLDER}/stream", Path(scratch) / "stream")
        return (Path(scratch) / "stream").read_bytes()


def feed(host: Host, name: str, chosen: Sequence[BrokenStream]) -> list[Fed]:
    """Feed the variants of the stream that was recorded on this host to ``xl migrate-receive`` there, one by one.

    ``name`` is the guest's name; its copies arrive as ``NAME--incoming``.

    :raises BenchError: the board does not answer any more, or the feeder failed.
    """
    lines = "".join(
        json.dumps(
            {
                "variant": one.name,
                "offset": one.offset,
                "data": one.data.hex(),
                "ends": one.ends,
                "name": f"{name}--incoming",
            }
        )
        + "\n"
        for one in chosen
    )
    host.board.run(f"cat > {FOLDER}/variants", input=lines.encode())
    job = host.board.spawn(f"python3 -c {shlex.quote(FEEDER)} {FOLDER} {VARIANT_LIMIT:.0f} /dev/kmsg")
    status = job.wait(VARIANT_LIMIT * len(chosen))
    if status:
        raise BenchError(f"{host.name}: the feeder ended with status {status}: {job.output()[-300:]}")
    text = str(host.run(f"cat {FOLDER}/results; rm -rf {FOLDER}").stdout)
    found = [json.loads(line) for line in text.splitlines()]
    return [Fed(one["variant"], one["status"], one["left"], one["seconds"], one["said"]) for one in found]


def _marks(stream: bytes) -> list[Mark]:
    scanner = Scanner.of_sender()
    marks = scanner.feed(stream)
    if scanner.error or not marks:
        raise ValueError(f"not a migration stream: {scanner.error or 'empty'}")
    return [mark for mark in marks if mark.offset + mark.length <= len(stream)]


def _telling(marks: Sequence[Mark]) -> list[Mark]:
    found: dict[tuple[Step, bool], Mark] = {}
    for mark in marks:
        found.setdefault((mark.step, True), mark)
        found[mark.step, False] = mark
    return sorted(set(found.values()), key=lambda mark: mark.offset)


def _fields(mark: Mark) -> list[tuple[str, int, int]]:
    """Name, offset and size of the fields of a step."""
    if mark.step is Step.XL_HEADER:
        names = (("magic", 0, 4), ("byteorder", 32, 4), ("mandatory", 36, 4), ("optional", 40, 4), ("optlen", 44, 4))
        return [*names, ("config-length", 48, 4)]
    if mark.step is Step.LIBXL_HEADER:
        return [("magic", 0, 8), ("version", 8, 4), ("options", 12, 4)]
    if mark.step is Step.IMAGE_HEADER:
        return [("marker", 0, 8), ("id", 8, 4), ("version", 12, 4), ("options", 16, 2)]
    if mark.step is Step.DOMAIN_HEADER:
        return [("type", 0, 4), ("page-shift", 4, 2), ("major", 8, 4), ("minor", 12, 4)]
    fields = [("type", 0, 4), ("length", 4, 4)]
    if mark.pages:
        fields += [("count", 8, 4), ("pfn", 16, 8)]
    elif mark.step is Step.X86_PV_P2M_FRAMES:
        fields += [("start", 8, 4), ("end", 12, 4)]
    elif mark.step in (Step.X86_PV_VCPU_BASIC, Step.X86_PV_VCPU_EXTENDED, Step.X86_PV_VCPU_MSRS):
        fields += [("vcpu", 8, 4)]
    elif mark.step is Step.HVM_PARAMS:
        fields += [("count", 8, 4), ("index", 16, 8), ("value", 24, 8)]
    return [field for field in fields if field[1] + field[2] <= mark.length]
