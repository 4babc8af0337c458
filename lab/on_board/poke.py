"""What cases do in dom0 and no tool of Xen's does: a device's registers, a domain's pages, a hypercall, an alarm.

``python3 -m lab.on_board.poke WORD...`` in dom0, with the standard library and Xen's own libraries alone. It prints the
answer on stdout. A refusal is ``refused: ERRNO-NAME`` there. Both have status 0.

=====================================  ==================================================================
``acpi-sleep STATE``                   XENPF_enter_acpi_sleep for S-state STATE, without dom0's kernel
``frequency-limit CPU STEP``           XENPF_set_processor_pminfo with _PPC alone: the highest step that is allowed
``alarm SECONDS``                      a timer of dom0's kernel that wakes the machine; prints when it expired
``crash DOMID``                        SHUTDOWN_crash, as the guest itself would ask for it
``resume DOMID``                       cancels the suspend of a domain, as ``xl resume`` of 4.20
``page DOMID MFN``                     SHA-256 of the beginning of a domain's page
``fill DOMID MFN TEXT``                fills the beginning of a domain's page with repetitions of TEXT
``dma BDF from|to MFN``                the device reads the beginning of a page into its buffer, or writes it
``storm BDF MFN SECONDS``              the device writes to a page again and again; prints how often
``share DOMID SECONDS``                grants a page to a domain; prints the reference, and SHA-256 at each change
``tables DOMID``                       prints how many pages the tables of a guest's nested paging take
=====================================  ==================================================================

The device is QEMU's "edu" or one with the same registers (QEMU's docs/specs/edu.rst): BAR 0 has the DMA engine's
source, destination, count and command at 0x80, 0x88, 0x90 and 0x98; its buffer of 4 KiB is at 0x40000 in its own space.
"""

from __future__ import annotations

import ctypes
import errno
import glob
import hashlib
import mmap
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from lab.on_board import RUN

POKE = f"{RUN} lab.on_board.poke"  # the command in dom0; words follow

PAGE = 4096
DEVICES = "/sys/bus/pci/devices"
ID, SOURCE, DESTINATION, COUNT, COMMAND = 0x00, 0x80, 0x88, 0x90, 0x98
START, TO_MEMORY = 1, 2  # bits of COMMAND; START is cleared when it is done
BUFFER = 0x40000
SPAN = 2048  # bytes that one DMA copies and that are compared; QEMU 7.2 refuses a DMA of the whole buffer
DMA_LIMIT = 5.0  # seconds; the device takes 0.1
CONFIG_COMMAND, MEMORY_AND_MASTER = 4, 6  # PCI's command register: answer to memory accesses, be a bus master

PLATFORM_OP, ENTER_ACPI_SLEEP, INTERFACE = 7, 51, 0x03000001  # xen/include/public/{xen,platform}.h
SET_PROCESSOR_PMINFO, GET_CPUINFO, PERFORMANCE, LIMIT = 54, 55, 1, 4
SHUTDOWN_CRASH, FAST = 3, 1  # xen/include/public/sched.h; xenctrl.h, xc_domain_resume: the suspend returns 1
VERSION = "/sys/hypervisor/version"
LIBRARIES = ("/usr/lib/xen-{}/lib", "/usr/lib/*-linux-gnu", "/usr/local/lib")  # a build's own tools come first
LOADER = "ld-linux-x86-64.so.2"
BOOTTIME_ALARM = 9  # CLOCK_BOOTTIME_ALARM: include/uapi/linux/time.h


class DmaDevice:
    """The DMA engine of a device, driven through its BAR."""

    def __init__(self, address: str) -> None:
        self._device = f"{DEVICES}/{address}"
        self.enable()
        file = os.open(f"{self._device}/resource0", os.O_RDWR | os.O_SYNC)
        self._registers = mmap.mmap(file, PAGE)
        os.close(file)
        found = ctypes.c_uint32.from_buffer(self._registers, ID).value
        if found & 0xFF != 0xED:
            raise SystemExit(f"{address}: its identification register holds {found:#x}")

    def enable(self) -> None:
        """Have the device answer and do DMA, whatever its last user left in its command register."""
        with open(f"{self._device}/config", "r+b", buffering=0) as config:
            config.seek(CONFIG_COMMAND)
            command = int.from_bytes(config.read(2), "little") | MEMORY_AND_MASTER
            config.seek(CONFIG_COMMAND)
            config.write(command.to_bytes(2, "little"))

    def _put(self, register: int, value: int) -> None:
        ctypes.c_uint64.from_buffer(self._registers, register).value = value  # one store of 8 bytes

    def run(self, address: int, *, to_memory: bool) -> None:
        """Copy the buffer to ``address``, as the device sees it, or the other way."""
        source, destination = (BUFFER, address) if to_memory else (address, BUFFER)
        self._put(SOURCE, source)
        self._put(DESTINATION, destination)
        self._put(COUNT, SPAN)
        self._put(COMMAND, START | (TO_MEMORY if to_memory else 0))
        deadline = time.monotonic() + DMA_LIMIT
        while ctypes.c_uint64.from_buffer(self._registers, COMMAND).value & START:
            if time.monotonic() > deadline:
                raise SystemExit(f"the DMA was not done within {DMA_LIMIT:.0f} s")
            time.sleep(0.002)


def _with_page(domid: int, mfn: int, use: Callable[[int], object], *, writable: bool = False) -> None:
    """Map a domain's page, and call ``use`` with the address at which it is mapped. Page tables can only be read."""
    library = ctypes.CDLL("libxenforeignmemory.so.1", use_errno=True)
    library.xenforeignmemory_open.restype = library.xenforeignmemory_map.restype = ctypes.c_void_p
    handle = ctypes.c_void_p(library.xenforeignmemory_open(None, 0))
    frame, error = ctypes.c_uint64(mfn), ctypes.c_int(0)
    protection = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
    words = (ctypes.c_uint32(domid), protection, ctypes.c_size_t(1), ctypes.byref(frame), ctypes.byref(error))
    at = library.xenforeignmemory_map(handle, *words)
    if not at or error.value:  # the page's own error: then the address is there, and a touch is a SIGBUS
        reason = abs(error.value) or ctypes.get_errno()
        raise SystemExit(f"d{domid}: frame {mfn:#x} cannot be mapped: {os.strerror(reason)}")
    use(at)
    library.xenforeignmemory_unmap(handle, ctypes.c_void_p(at), ctypes.c_size_t(1))


def page(domid: int, mfn: int) -> str:
    """SHA-256 of the beginning of a page."""
    found: list[bytes] = []
    _with_page(domid, mfn, lambda at: found.append(ctypes.string_at(at, SPAN)))
    return hashlib.sha256(found[0]).hexdigest()


def fill(domid: int, mfn: int, text: str) -> str:
    """Fill the beginning of a page with repetitions of ``text``; its SHA-256."""
    data = (text.encode() * SPAN)[:SPAN]
    _with_page(domid, mfn, lambda at: ctypes.memmove(at, data, SPAN), writable=True)
    return hashlib.sha256(data).hexdigest()


def _platform_op(*words: int) -> list[int] | None:
    """A platform hypercall, whose first words are its ``cmd`` and, in a union, what it takes; the union as Xen left it.

    None: Xen refuses, for :func:`_refused`.
    """
    library = ctypes.CDLL("libxencall.so.1", use_errno=True)
    library.xencall_open.restype = library.xencall_alloc_buffer.restype = ctypes.c_void_p
    handle = ctypes.c_void_p(library.xencall_open(None, 0))
    buffer = ctypes.c_void_p(library.xencall_alloc_buffer(handle, ctypes.c_size_t(PAGE)))
    assert buffer.value
    ctypes.memset(buffer, 0, PAGE)
    given = (ctypes.c_uint32 * (len(words) + 1))(words[0], INTERFACE, *words[1:])
    ctypes.memmove(buffer.value, given, ctypes.sizeof(given))
    if library.xencall1(handle, ctypes.c_uint(PLATFORM_OP), buffer):
        return None
    return list((ctypes.c_uint32 * 32).from_address(buffer.value)[2:])


def acpi_sleep(state: int) -> str:
    """Ask Xen for an ACPI sleep state that nothing is prepared for; Xen's answer."""
    # pm1a_cnt_val and pm1b_cnt_val (16 bits each), sleep_state, flags
    return _refused() if _platform_op(ENTER_ACPI_SLEEP, 0, state, 0) is None else "done"


def frequency_limit(cpu: int, step: int) -> str:
    """Tell Xen the platform's limit of a CPU's frequency; Xen's answer."""
    found = _platform_op(GET_CPUINFO, cpu)  # xen_cpuid, max_present, flags, apic_id, acpi_id
    if found is None:
        return _refused()
    # id, type; then, in another union: flags, platform_limit
    done = _platform_op(SET_PROCESSOR_PMINFO, found[4], PERFORMANCE, LIMIT, step)
    return _refused() if done is None else "done"


def _refused() -> str:
    return f"refused: {errno.errorcode.get(ctypes.get_errno(), ctypes.get_errno())}"


def library_file(pattern: str) -> str:
    """The library of the tools in use; a library that issues domctls fits one version of Xen only."""
    version = ".".join(Path(VERSION, part).read_text(encoding="ascii").strip() for part in ("major", "minor"))
    folders = [one.format(version) for one in LIBRARIES]
    found = [path for folder in folders for path in glob.glob(f"{folder}/{pattern.format(version)}")]
    if not found:
        raise SystemExit(f"no {pattern.format(version)} in {', '.join(folders)}")
    return found[0]


def _xenctrl() -> tuple[ctypes.CDLL, ctypes.c_void_p]:
    """libxenctrl and a handle. If it came with a C library of its own, this program restarts itself with that one."""
    path = library_file("libxenctrl.so.{}")
    loader = Path(path).with_name(LOADER)
    if loader.exists() and "XENLAB_LOADER" not in os.environ:
        words = [str(loader), "--library-path", str(loader.parent), sys.executable, "-S", "-m", "lab.on_board.poke"]
        os.execve(loader, [*words, *sys.argv[1:]], {**os.environ, "XENLAB_LOADER": str(loader)})
    library = ctypes.CDLL(path, use_errno=True)
    library.xc_interface_open.restype = ctypes.c_void_p
    handle = ctypes.c_void_p(library.xc_interface_open(None, None, 0))
    if not handle.value:
        raise SystemExit(f"{path}: {os.strerror(ctypes.get_errno())}")
    return library, handle


def tables(domid: int) -> str:
    """How many pages a guest's tables take: the rest of its paging pool after all free pages are taken from the pool.

    The guest is paused meanwhile, and gets its pool back. With HAP these pages are the tables from guest to machine
    memory (one more for each 2 MiB that is not mapped by one entry), a page for each vCPU, and the bitmap of log-dirty
    mode (xen/arch/x86/mm/hap/hap.c, hap_set_allocation). Xen 4.17 is the first one to report the pool's size.
    """
    library, handle = _xenctrl()
    if not hasattr(library, "xc_get_paging_mempool_size"):
        return "refused: ENOSYS"
    domain, pool, taken = ctypes.c_uint32(domid), ctypes.c_uint64(), ctypes.c_uint64()
    if library.xc_get_paging_mempool_size(handle, domain, ctypes.byref(pool)):
        return _refused()
    library.xc_domain_pause(handle, domain)
    try:
        # It fails with ENOMEM, since the pool cannot become so small, but frees all free pages first.
        library.xc_set_paging_mempool_size(handle, domain, ctypes.c_uint64(0))
        library.xc_get_paging_mempool_size(handle, domain, ctypes.byref(taken))
        if library.xc_set_paging_mempool_size(handle, domain, pool):
            raise SystemExit(f"d{domid}: Xen does not give its paging pool back: {os.strerror(ctypes.get_errno())}")
    finally:
        library.xc_domain_unpause(handle, domain)
    return str(taken.value // PAGE)


def crash(domid: int) -> str:
    """Have a domain shut down as if it crashed."""
    library, handle = _xenctrl()
    return _refused() if library.xc_domain_shutdown(handle, ctypes.c_uint32(domid), SHUTDOWN_CRASH) else "done"


def resume(domid: int) -> str:
    """Let a suspended domain go on, and tell xenstored, which otherwise would not notice when it dies again."""
    _, handle = _xenctrl()
    guest = ctypes.CDLL(library_file("libxenguest.so.{}"), use_errno=True)
    if guest.xc_domain_resume(handle, ctypes.c_uint32(domid), FAST):
        return _refused()
    store = ctypes.CDLL(library_file("libxenstore.so.*"), use_errno=True)
    store.xs_open.restype = ctypes.c_void_p
    store.xs_resume_domain.restype = ctypes.c_bool
    return "done" if store.xs_resume_domain(ctypes.c_void_p(store.xs_open(0)), ctypes.c_uint(domid)) else _refused()


def alarm(seconds: int) -> str:
    """Wait for a timer of CLOCK_BOOTTIME_ALARM, which runs on during a suspend; the kernel sets the RTC for it."""
    libc = ctypes.CDLL(None, use_errno=True)
    timer = libc.timerfd_create(BOOTTIME_ALARM, 0)
    setting = (ctypes.c_long * 4)(0, 0, seconds, 0)  # struct itimerspec: interval, value
    if timer < 0 or libc.timerfd_settime(timer, 0, setting, None):
        raise SystemExit(f"no alarm timer: {os.strerror(ctypes.get_errno())}")
    _say("armed")
    os.read(timer, 8)
    return f"expired {time.time():.3f}"


def storm(address: str, mfn: int, seconds: float) -> str:
    """Write to a page for so many seconds, as a device that no reset reaches would."""
    device, count, deadline = DmaDevice(address), 0, time.monotonic() + seconds
    while time.monotonic() < deadline:
        device.enable()
        device.run(mfn * PAGE, to_memory=True)
        if count == 0:
            _say("begun")
        count += 1
    return f"writes {count}"


def share(domid: int, seconds: float) -> str:
    """Grant a page of this program's to a domain for so many seconds; every change of the page is told."""
    library = ctypes.CDLL("libxengnttab.so.1", use_errno=True)
    library.xengntshr_open.restype = library.xengntshr_share_pages.restype = ctypes.c_void_p
    handle, reference = ctypes.c_void_p(library.xengntshr_open(None, 0)), ctypes.c_uint32()
    at = library.xengntshr_share_pages(handle, ctypes.c_uint32(domid), 1, ctypes.byref(reference), 1)
    if not at:
        raise SystemExit(f"d{domid}: no page can be granted: {os.strerror(ctypes.get_errno())}")
    _say(f"reference {reference.value}")
    told, deadline = b"", time.monotonic() + seconds
    while time.monotonic() < deadline:
        if (now := ctypes.string_at(at, SPAN)) != told:
            told = now
            _say(f"page {hashlib.sha256(told).hexdigest()}")
        time.sleep(0.2)
    return "done"


def main(words: list[str]) -> int:
    """Do what the words ask for, and print the answer."""
    answer = "done"
    match words:
        case ["acpi-sleep", state]:
            answer = acpi_sleep(int(state))
        case ["frequency-limit", cpu, step]:
            answer = frequency_limit(int(cpu), int(step))
        case ["alarm", seconds]:
            answer = alarm(int(seconds))
        case ["crash", domid]:
            answer = crash(int(domid))
        case ["resume", domid]:
            answer = resume(int(domid))
        case ["page", domid, mfn]:
            answer = page(int(domid), int(mfn, 16))
        case ["fill", domid, mfn, text]:
            answer = fill(int(domid), int(mfn, 16), text)
        case ["dma", address, "from" | "to" as way, mfn]:
            DmaDevice(address).run(int(mfn, 16) * PAGE, to_memory=way == "to")
        case ["storm", address, mfn, seconds]:
            answer = storm(address, int(mfn, 16), float(seconds))
        case ["share", domid, seconds]:
            answer = share(int(domid), float(seconds))
        case ["tables", domid]:
            answer = tables(int(domid))
        case _:
            raise SystemExit(__doc__)
    _say(answer)
    return 0


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
