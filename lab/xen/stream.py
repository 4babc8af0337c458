"""Xen's live-migration protocol, taken apart as its bytes pass. Standard library only: it runs in dom0 too.

Sources: docs/specs/libxc-migration-stream.pandoc and libxl-migration-stream.pandoc, tools/xl/xl_migrate.c,
tools/xl/xl.h of Xen 4.17; the code writes HVM_CONTEXT before HVM_PARAMS, unlike the specification.
"""

from __future__ import annotations

import struct
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from enum import Enum


class Step(str, Enum):  # noqa: UP042  (dom0's Python may be older than StrEnum)
    """What passes, in order. The point of no return is GO."""

    BANNER = "BANNER"  # receiver: ready
    XL_HEADER = "XL_HEADER"
    LIBXL_HEADER = "LIBXL_HEADER"
    LIBXC_CONTEXT = "LIBXC_CONTEXT"
    IMAGE_HEADER = "IMAGE_HEADER"
    DOMAIN_HEADER = "DOMAIN_HEADER"
    PAGE_DATA = "PAGE_DATA"  # many; live at first, then, with the guest suspended, the rest
    X86_PV_INFO = "X86_PV_INFO"
    X86_PV_P2M_FRAMES = "X86_PV_P2M_FRAMES"
    X86_PV_VCPU_BASIC = "X86_PV_VCPU_BASIC"
    X86_PV_VCPU_EXTENDED = "X86_PV_VCPU_EXTENDED"
    X86_PV_VCPU_XSAVE = "X86_PV_VCPU_XSAVE"
    SHARED_INFO = "SHARED_INFO"
    TSC_INFO = "TSC_INFO"  # the first record that is sure to come after the guest was suspended
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

BANNER = b"xl migration receiver ready, send binary domain data.\n"
READY = b"domain received, ready to unpause\0"
GO = b"domain is yours, you are cleared to unpause\0"
REPORT = b"my copy unpause results are as follows\0"
XL_MAGIC = b"Xen saved domain, xl format\n \0 \r"
LIBXL_MAGIC = 0x4C6962786C466D74  # "LibxlFmt"
IMAGE_MARKER = 0xFFFFFFFFFFFFFFFF
OPTIONAL = 0x80000000  # bit 31 of a libxc record's type
FRESH_RECORD = 8  # bytes of a record's header


class StreamError(ValueError):
    """The bytes are not what the protocol says."""


@dataclass(frozen=True)
class Piece:
    """Bytes to be passed on together. ``starts`` is set on the first one of a step, whose whole ``length`` is known."""

    step: Step
    data: bytes
    starts: bool = False
    length: int = 0


_Need = tuple[int, bool]  # so many bytes; True: only when all of them are there


class Splitter:
    """Cuts a byte stream into pieces at the protocol's borders. One for each direction."""

    def __init__(self, side: str) -> None:
        self._buffer, self._out = bytearray(), list[Piece]()
        self.offset = 0  # bytes taken apart so far
        self._script = self._sender() if side == "sender" else self._receiver()
        self._need: _Need | None = next(self._script)

    @classmethod
    def of_sender(cls) -> Splitter:
        """For what the sender writes."""
        return cls("sender")

    @classmethod
    def of_receiver(cls) -> Splitter:
        """For what the receiver answers."""
        return cls("receiver")

    def feed(self, data: bytes) -> Iterator[Piece]:
        """Take bytes in; give the pieces that are complete by now.

        :raises StreamError: not this protocol; what was not given yet is :meth:`rest`.
        """
        self._buffer += data
        while self._buffer and self._need is not None:
            count, whole = self._need
            if whole and len(self._buffer) < count:
                break
            taken = bytes(self._buffer[:count])
            try:
                self._need = self._script.send(taken)
            except StopIteration:
                self._need = None
            del self._buffer[: len(taken)]
            self.offset += len(taken)
            yield from self._take()
        if self._need is None and self._buffer:
            rest = self.rest()
            yield Piece(Step.UNKNOWN, rest, True, len(rest))

    def rest(self) -> bytes:
        """What came in and belongs to no complete piece."""
        rest = bytes(self._buffer)
        self._buffer.clear()
        return rest

    def _take(self) -> list[Piece]:
        taken, self._out = self._out, []
        return taken

    def _whole(self, step: Step, size: int) -> Generator[_Need, bytes, bytes]:
        data = yield size, True
        self._out.append(Piece(step, data, True, size))
        return data

    def _sender(self) -> Generator[_Need, bytes, None]:
        head = yield 48, True
        if head[:32] != XL_MAGIC:
            raise StreamError("not xl's magic number")
        size = struct.unpack("<I", head[44:48])[0]
        self._out.append(Piece(Step.XL_HEADER, head, True, 48 + size))
        yield from self._body(Step.XL_HEADER, size)
        head = yield from self._whole(Step.LIBXL_HEADER, 16)
        if struct.unpack(">Q", head[:8])[0] != LIBXL_MAGIC:
            raise StreamError("not libxl's magic number")
        while True:
            step = yield from self._record(LIBXL)
            if step is Step.LIBXC_CONTEXT:
                yield from self._libxc()
            elif step is Step.LIBXL_END:
                break
        yield from self._whole(Step.GO, len(GO))

    def _libxc(self) -> Generator[_Need, bytes, None]:
        head = yield from self._whole(Step.IMAGE_HEADER, 24)
        if struct.unpack(">Q", head[:8])[0] != IMAGE_MARKER:
            raise StreamError("no libxc image header")
        yield from self._whole(Step.DOMAIN_HEADER, 16)
        while (yield from self._record(LIBXC)) is not Step.LIBXC_END:
            pass

    def _record(self, names: dict[int, Step]) -> Generator[_Need, bytes, Step]:
        head = yield FRESH_RECORD, True
        kind, size = struct.unpack("<II", head)
        step = names.get(kind & ~OPTIONAL, Step.UNKNOWN)
        padded = (size + 7) & ~7
        self._out.append(Piece(step, head, True, FRESH_RECORD + padded))
        yield from self._body(step, padded)
        return step

    def _body(self, step: Step, size: int) -> Generator[_Need, bytes, None]:
        while size:
            data = yield size, False
            size -= len(data)
            self._out.append(Piece(step, data))

    def _receiver(self) -> Generator[_Need, bytes, None]:
        for step, text in ((Step.BANNER, BANNER), (Step.READY, READY), (Step.REPORT, REPORT)):
            data = yield from self._whole(step, len(text))
            if data != text:
                raise StreamError(f"not the receiver's {step.value}")
        yield from self._whole(Step.STATUS, 1)
