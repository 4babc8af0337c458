"""Xen's live-migration protocol, split into its steps as the bytes pass. Standard library only: it runs in dom0 too.

Sources: docs/specs/libxc-migration-stream.pandoc and libxl-migration-stream.pandoc, tools/xl/xl_migrate.c,
tools/xl/xl.h of Xen 4.17. The code writes HVM_CONTEXT before HVM_PARAMS, unlike the specification.
"""

from __future__ import annotations

import struct
from collections.abc import Generator
from enum import Enum
from typing import NamedTuple


class Step(str, Enum):  # noqa: UP042  (dom0's Python may be older than StrEnum)
    """The steps of a migration, in order. The point of no return is GO."""

    BANNER = "BANNER"  # receiver: ready
    XL_HEADER = "XL_HEADER"
    LIBXL_HEADER = "LIBXL_HEADER"
    LIBXC_CONTEXT = "LIBXC_CONTEXT"
    IMAGE_HEADER = "IMAGE_HEADER"
    DOMAIN_HEADER = "DOMAIN_HEADER"
    PAGE_DATA = "PAGE_DATA"  # many: passes over live memory, and then the rest while the guest is suspended
    X86_PV_INFO = "X86_PV_INFO"
    X86_PV_P2M_FRAMES = "X86_PV_P2M_FRAMES"
    X86_PV_VCPU_BASIC = "X86_PV_VCPU_BASIC"
    X86_PV_VCPU_EXTENDED = "X86_PV_VCPU_EXTENDED"
    X86_PV_VCPU_XSAVE = "X86_PV_VCPU_XSAVE"
    SHARED_INFO = "SHARED_INFO"
    TSC_INFO = "TSC_INFO"  # the first record that surely comes after the guest was suspended
    HVM_CONTEXT = "HVM_CONTEXT"
    HVM_PARAMS = "HVM_PARAMS"
    TOOLSTACK = "TOOLSTACK"
    X86_PV_VCPU_MSRS = "X86_PV_VCPU_MSRS"
    VERIFY = "VERIFY"
    CHECKPOINT = "CHECKPOINT"
    CHECKPOINT_DIRTY_PFN_LIST = "CHECKPOINT_DIRTY_PFN_LIST"
    STATIC_DATA_END = "STATIC_DATA_END"
    X86_CPUID_POLICY = "X86_CPUID_POLICY"
    X86_MSR_POLICY = "X86_MSR_POLICY"
    LIBXC_END = "LIBXC_END"
    EMULATOR_XENSTORE_DATA = "EMULATOR_XENSTORE_DATA"
    EMULATOR_CONTEXT = "EMULATOR_CONTEXT"
    CHECKPOINT_END = "CHECKPOINT_END"
    CHECKPOINT_STATE = "CHECKPOINT_STATE"
    LIBXL_END = "LIBXL_END"
    READY = "READY"  # receiver: may I unpause it?
    GO = "GO"
    REPORT = "REPORT"  # receiver: my copy's unpause results follow
    STATUS = "STATUS"  # one byte; 0 is good
    GIVE_BACK = "GIVE_BACK"  # receiver, after a bad STATUS: my copy is gone, take yours back
    UNKNOWN = "UNKNOWN"


LIBXC = {
    0x0: Step.LIBXC_END,
    0x1: Step.PAGE_DATA,
    0x2: Step.X86_PV_INFO,
    0x3: Step.X86_PV_P2M_FRAMES,
    0x4: Step.X86_PV_VCPU_BASIC,
    0x5: Step.X86_PV_VCPU_EXTENDED,
    0x6: Step.X86_PV_VCPU_XSAVE,
    0x7: Step.SHARED_INFO,
    0x8: Step.TSC_INFO,
    0x9: Step.HVM_CONTEXT,
    0xA: Step.HVM_PARAMS,
    0xB: Step.TOOLSTACK,
    0xC: Step.X86_PV_VCPU_MSRS,
    0xD: Step.VERIFY,
    0xE: Step.CHECKPOINT,
    0xF: Step.CHECKPOINT_DIRTY_PFN_LIST,
    0x10: Step.STATIC_DATA_END,
    0x11: Step.X86_CPUID_POLICY,
    0x12: Step.X86_MSR_POLICY,
}
LIBXL = {
    0: Step.LIBXL_END,
    1: Step.LIBXC_CONTEXT,
    2: Step.EMULATOR_XENSTORE_DATA,
    3: Step.EMULATOR_CONTEXT,
    4: Step.CHECKPOINT_END,
    5: Step.CHECKPOINT_STATE,
}

ANSWERS = (Step.BANNER, Step.READY, Step.REPORT, Step.STATUS, Step.GIVE_BACK)  # the receiver writes these

BANNER = b"xl migration receiver ready, send binary domain data.\n"
READY = b"domain received, ready to unpause\0"
GO = b"domain is yours, you are cleared to unpause\0"
REPORT = b"my copy unpause results are as follows\0"
XL_MAGIC = b"Xen saved domain, xl format\n \0 \r"
LIBXL_MAGIC = b"LibxlFmt"
IMAGE_MARKER = b"\xff" * 8
OPTIONAL = 0x80000000  # bit 31 of a libxc record's type
RECORD_HEADER = 8
_PAGE_DATA = struct.Struct("<IIIIQ")  # type, length, count, reserved, first pfn
BATCH = 1024  # pfns in a full PAGE_DATA record: MAX_BATCH_SIZE, tools/libs/guest/xg_save_restore.h
PAGE = 4096
_PFN = (1 << 52) - 1  # the upper bits of an entry are the page's type


class StreamError(ValueError):
    """The bytes do not follow the protocol."""


class Pages(NamedTuple):  # a migration makes thousands of these and of Mark
    """What a PAGE_DATA record carries. ``turn`` is the number of its pass over memory, from 1."""

    turn: int
    starts_turn: bool
    pfns: int  # how many the record names
    data: int  # pages whose contents it has: some types of page have none
    first: int  # the lowest pfn


class Mark(NamedTuple):
    """A step that begins at ``offset`` of its direction and has ``length`` bytes, header and padding included."""

    step: Step
    offset: int
    length: int
    pages: Pages | None = None


class Scanner:
    """Finds the steps in one direction of a migration while somebody else passes the bytes on.

    Passes over memory have no marker in the stream. The sender walks the dirty bitmap upwards, and a record of fewer
    than ``BATCH`` pfns ends the walk (xg_sr_save.c, send_dirty_pages and flush_batch). So a record begins a pass if the
    record before it was not full, or if it goes back to lower pfns. Two passes are taken for one if the first has a
    whole number of batches and the second begins at a higher pfn.
    """

    def __init__(self, side: str) -> None:
        self._held = bytearray()
        self._marks: list[Mark] = []
        self._begun = 0  # offset of the step that is not known yet
        self._is_known = False  # the bytes asked for belong to a step that is marked already
        self._is_at_record = False  # the bytes asked for are the header of a libxc record
        self._turn, self._last, self._was_full = 0, 0, False
        self.fed = 0  # bytes seen so far
        self.idle = 0  # so many bytes need not be looked at
        self.error: str | None = None  # why the rest is not understood
        self._script = self._sender() if side == "sender" else self._receiver()
        self._want = next(self._script)

    @classmethod
    def of_sender(cls) -> Scanner:
        """A scanner for what the sender writes."""
        return cls("sender")

    @classmethod
    def of_receiver(cls) -> Scanner:
        """A scanner for what the receiver answers."""
        return cls("receiver")

    @property
    def safe(self) -> int:
        """All bytes before this offset belong to marked steps, and may be passed on."""
        return self.fed if self.idle or self._is_known or not self._held and self._begun == self.fed else self._begun

    def feed(self, data: bytes) -> list[Mark]:
        """Look at the next bytes; the steps that begin in them, or whose beginning is complete now.

        Bytes that do not follow the protocol set ``error``; everything from there on is one step UNKNOWN.
        """
        at, size = 0, len(data)
        while at < size:
            passing = min(self.idle, size - at)
            self.idle -= passing
            self.fed += passing
            at += passing
            if self._is_at_record and not self._held:
                at = self._pages_at(data, at)
            if at == size:
                break
            taken = data[at : at + self._want - len(self._held)]
            self._held += taken
            at += len(taken)
            self.fed += len(taken)
            if len(self._held) == self._want:
                self._step()
        marks, self._marks = self._marks, []
        return marks

    def _pages_at(self, data: bytes, at: int) -> int:
        """Read whole heads of PAGE_DATA records at once: a sparse guest has a thousand with hardly a page in them.

        A head that is not complete yet is left to :meth:`_page_data`, which asks for its parts.
        """
        size = len(data)
        while size - at >= _PAGE_DATA.size:
            kind, body, count, _, entry = _PAGE_DATA.unpack_from(data, at)
            end = at + 16 + 8 * count
            if kind != 1 or count < 1 or 8 + 8 * count > body or end > size:
                break
            length = RECORD_HEADER + (body + 7 & ~7)
            last = int.from_bytes(data[end - 8 : end], "little") & _PFN
            self._mark_pages(count, max(body - 8 - 8 * count, 0) // PAGE, entry & _PFN, last, length)
            passing = min(length, size - at)
            self.fed += passing
            at += passing
            self.idle = length - passing
            self._begun += length
            if self.idle:
                break
        return at

    def skipped(self, count: int) -> None:
        """Note that ``count`` of the ``idle`` bytes passed without being looked at."""
        self.idle -= count
        self.fed += count

    def _step(self) -> None:
        held, self._held = bytes(self._held), bytearray()
        try:
            self._want = self._script.send(held)
        except StopIteration:
            self._ignore("bytes after the end of the protocol")
        except StreamError as error:
            self._ignore(str(error))

    def _ignore(self, why: str) -> None:
        self.error = self.error or why
        self._is_known, self.idle = True, 1 << 62
        if self._begun < self.fed:
            self._marks.append(Mark(Step.UNKNOWN, self._begun, 0))

    # -- the protocol, as generators that ask for so many bytes ---------------------------------------------------

    def _begin(self) -> None:
        self._begun, self._is_known = self.fed + self.idle, False

    def _mark(self, step: Step, length: int) -> None:
        """Mark a step; the rest of it need not be looked at."""
        self._marks.append(Mark(step, self._begun, length))
        self.idle = self._begun + length - self.fed

    def _whole(self, step: Step, size: int, prefix: bytes = b"") -> Generator[int, bytes, None]:
        self._begin()
        data = yield size
        if not data.startswith(prefix):
            raise StreamError(f"these bytes do not begin a {step.value}")
        self._mark(step, size)

    def _sender(self) -> Generator[int, bytes, None]:
        self._begin()
        head = yield 48
        if head[:32] != XL_MAGIC:
            raise StreamError("these bytes do not begin an XL_HEADER")
        size = int(struct.unpack("<I", head[44:48])[0])
        if size:
            yield size  # whole: xl writes two parts, and exits if the second one fails (save_domain_core_writeconfig)
        self._mark(Step.XL_HEADER, 48 + size)
        yield from self._whole(Step.LIBXL_HEADER, 16, LIBXL_MAGIC)
        while True:
            step = yield from self._record(LIBXL)
            if step is Step.LIBXC_CONTEXT:
                yield from self._libxc()
            elif step is Step.LIBXL_END:
                break
        yield from self._whole(Step.GO, len(GO), GO)
        self._begin()
        yield 1

    def _libxc(self) -> Generator[int, bytes, None]:
        yield from self._whole(Step.IMAGE_HEADER, 24, IMAGE_MARKER)
        yield from self._whole(Step.DOMAIN_HEADER, 16)
        while (yield from self._record(LIBXC)) is not Step.LIBXC_END:
            pass

    def _record(self, names: dict[int, Step]) -> Generator[int, bytes, Step]:
        self._begin()
        self._is_at_record = names is LIBXC
        kind, size = struct.unpack("<II", (yield RECORD_HEADER))
        self._is_at_record = False
        step = names.get(kind & ~OPTIONAL, Step.UNKNOWN)
        length = RECORD_HEADER + (size + 7 & ~7)
        if step is Step.PAGE_DATA and size >= 16:
            yield from self._page_data(size, length)
        else:
            self._mark(step, length)
        return step

    def _page_data(self, size: int, length: int) -> Generator[int, bytes, None]:
        count, _, entry = struct.unpack("<IIQ", (yield 16))
        first = entry & _PFN
        self._mark_pages(count, max(size - 8 - 8 * count, 0) // PAGE, first, first, length)
        self.idle = self._begun + length - self.fed
        if 1 < count <= (size - 8) // 8:
            after = length - 24 - 8 * (count - 1)  # bytes behind the last pfn
            self.idle, self._is_known = 8 * (count - 2), True
            self._last = struct.unpack("<Q", (yield 8))[0] & _PFN
            self.idle = after

    def _mark_pages(self, count: int, data: int, first: int, last: int, length: int) -> None:
        starts = not self._was_full or first <= self._last
        self._turn += starts
        self._marks.append(Mark(Step.PAGE_DATA, self._begun, length, Pages(self._turn, starts, count, data, first)))
        self._last, self._was_full = last, count == BATCH

    def _receiver(self) -> Generator[int, bytes, None]:
        for step, text in ((Step.BANNER, BANNER), (Step.READY, READY), (Step.REPORT, REPORT)):
            yield from self._whole(step, len(text), text)
        yield from self._whole(Step.STATUS, 1)
        yield from self._whole(Step.GIVE_BACK, len(GO), GO)
        self._begin()
        yield 1
