"""What the lines of a console say: crashes, warnings and milestones of Xen, of its dom0, and of what boots them.

A new pattern is one row of :data:`SIGNATURES`, and nothing else. Texts are those of Xen 3 to 4.23, of Linux 2.6.16 to
7.x, of FreeBSD 9 to 15 and of NetBSD 7 to 11; the source file stands beside those of Xen.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from lab.console.lines import Speaker

Kind = Literal["crash", "warning", "milestone"]

_PLACEHOLDERS = {  # all bounded: a hostile line must not make a search slow
    "%d": r"-?\d{1,20}",
    "%x": r"[0-9a-fA-F]{1,32}",
    "%w": r"\S{1,120}?",
    "%s": r".{1,160}?",
}


@dataclass(frozen=True, slots=True)
class Signature:
    """One thing that a console line can say.

    ``formats`` are the texts that say it, as in a printk: ``%d`` is a number, ``%x`` a hexadecimal one, ``%s`` any
    text, ``%w`` any text without blanks. A crash's message begins where its format does. ``by`` is whose words
    they must be; None: anybody's. A line that has one of ``unless`` does not say it. One that ``is_first`` begins its
    line: prefixes may stand before it, or a login prompt that waited.
    """

    kind: Kind
    name: str
    by: Speaker | None
    formats: tuple[str, ...]
    unless: tuple[str, ...] = ()
    is_marked: bool = False  # Linux has the same words: without Xen's mark they are not Xen's
    is_first: bool = False

    @property
    def pattern(self) -> str:
        """The regular expression of its formats."""
        return "|".join(_regex(text) for text in self.formats)


def pieces(text: str) -> list[str]:
    """A format as texts, with a placeholder between two."""
    return re.split(r"(%[dxws])", text)


def _regex(text: str) -> str:
    """A format as a regular expression."""
    return "".join(_PLACEHOLDERS.get(piece) or re.escape(piece) for piece in pieces(text))


# What GRUB says behind "error: "; since 2.12 behind a place in its source, too.
_GRUB = (
    *("file `%s' not found", "disk `%s' not found", "no such device: %s", "no such partition", "unknown filesystem"),
    *("out of memory", "no multiboot header found", "invalid magic number", "invalid arch-dependent ELF magic"),
    *("bad shim signature", "%w has invalid signature", "shim_lock protocol not found", "symbol `%w' not found"),
    *("you need to load the kernel first", "You need to load the kernel first"),
)

# The first that matches is the answer, so crashes stand before warnings, and these before milestones.
SIGNATURES = (
    # Xen
    Signature(  # drivers/char/console.c: its head; and its end, by which a panic is known whose head was lost
        "crash",
        "xen-panic",
        "xen",
        ("Panic on CPU %d:", "Reboot in five seconds...", "Manual reset required ('noreboot' specified)"),
    ),
    Signature(  # arch/x86/traps.c, arch/arm/traps.c
        "crash",
        "xen-fatal-trap",
        "xen",
        ("FATAL TRAP: ve", "FATAL TRAP: type %d", "CPU%d: Unexpected Trap: "),
    ),
    Signature(
        "crash", "xen-page-fault", "xen", ("FATAL PAGE FAULT", "Early fatal page fault", "Faulting linear address: ")
    ),
    Signature("crash", "xen-protection-fault", "xen", ("GENERAL PROTECTION FAULT", "CONTROL-FLOW PROTECTION FAULT")),
    Signature(
        "crash",
        "xen-double-fault",
        "xen",
        ("*** DOUBLE FAULT ***", "DOUBLE FAULT -- system shutdown", "*** DOUBLE FAULT: Xen-"),
    ),
    Signature("crash", "xen-bug", "xen", ("Xen BUG at ",)),  # common/bug.c
    Signature(  # debug builds; the second is that of Xen before 4.4
        "crash",
        "xen-assertion",
        "xen",
        ("Assertion '%s' failed at ", "Assertion '%s' failed, line %d, file "),
        unless=(", function ",),
    ),
    Signature("crash", "xen-watchdog", "xen", ("Watchdog timer detects that CPU%d is stuck",)),  # arch/x86/nmi.c
    Signature(  # arch/x86/cpu/mcheck/mce.c
        "crash",
        "machine-check",
        "xen",
        (
            *(
                "Fatal machine check: ",
                "MCE: Fatal error happened",
                "HARDWARE ERROR",
                "CPU%d: Machine Check Exception:",
            ),
            "The processor has reported a hardware error",
        ),
        unless=("HARDWARE ERROR.", "HARDWARE ERROR "),  # mcelog's, others'
    ),
    Signature(  # common/shutdown.c; "Domain 0" is what Xen before 4.4 says
        "crash",
        "dom0-watchdog",
        "xen",
        ("Hardware Dom%d shutdown: watchdog", "Domain 0 shutdown: watchdog"),
    ),
    Signature(
        "crash",
        "dom0-crash",
        "xen",
        (
            *("Hardware Dom%d crashed", "Hardware Dom%d shutdown (unknown reason", "did unsupported soft reset"),
            *("Domain 0 crashed: ", "Domain 0 shutdown (unknown reason"),
            *("Domain 0 (vcpu#%d) crashed on cpu", "Domain 0 reported crashed by domain"),  # common/domain.c
            "d0v%d Triple fault - invoking HVM shutdown",  # arch/x86/hvm/hvm.c
        ),
    ),
    Signature(
        "crash",
        "iommu-fault",
        "xen",
        (
            *("[VT-D]DMAR:[%s] Request device", "[VT-D]INTR-REMAP: Request device"),  # drivers/passthrough/vtd/iommu.c
            *("[VT-D]UNKNOWN: Request device", "DMAR:[%s] Request device", "AMD-Vi: IO_PAGE_FAULT"),
        ),
        is_marked=True,
    ),
    # Firmware: xen.efi, or the boot loader before it, died in it (edk2, ArchExceptionHandler.c)
    Signature("crash", "firmware-exception", "linux", ("!!!! %w Exception Type - ",)),
    Signature(  # AArch64/DefaultExceptionHandler.c; DebugLib.h
        "crash",
        "firmware-exception",
        "linux",
        ("Synchronous Exception at 0x%x", "ASSERT_EFI_ERROR (Status = ", "ASSERT [%w] %w(%d): "),
        is_first=True,
    ),
    # xen.efi gives up, back to the firmware: common/efi/boot.c, arch/x86/efi/efi-boot.h, arch/x86/boot/head.S,
    # arch/arm/efi/efi-boot.h, arch/arm/arm64/head.S
    Signature(
        "crash",
        "xen-efi-loader",
        "linux",
        (
            *(
                "Couldn't obtain the File System Protocol Interface",
                "OpenVolume failure: ",
                "No Loaded Image Protocol: ",
            ),
            *("Open failed for %s: ", "Seek failed for %s: ", "Get size failed for %s: ", "Allocation failed for %s: "),
            *("Read failed for %s: ", "No configuration file found.", "Configuration file not found."),
            *("No Dom0 kernel image specified.", "No initial domain kernel specified.", "No memory for trampoline"),
            *(
                "Unable to allocate memory for EFI memory map",
                "Cannot obtain memory map: ",
                "Cannot exit boot services: ",
            ),
            *("Cannot load files without a usable file system", "Refusing to boot unverified kernel with UEFI"),
            *("Xen must be loaded below 4Gb.", "Xen must be loaded at a ", "This build of Xen requires NX support"),
            *("EFI memory map processing failed", "Updating FDT failed: ", "Unable to create new FDT"),
            *("Error processing boot modules on DT.", "- Xen must be entered in NS EL2 mode -", "- Boot failed -"),
            *("ERR: Not a 64-bit CPU!", "ERR: Not a Multiboot bootloader!", "ERR: Not an NX-capable CPU!"),
            *("ERR: Bootloader shutdown EFI x64 boot services!", "ERR: EFI IA-32 platforms are not supported!"),
            "ERR: Xen must be loaded at a 2Mb boundary!",
        ),
        unless=("found. ",),
        is_first=True,
    ),
    # Linux in dom0
    Signature(  # arch/x86/xen/setup.c: and then it gives up, before it can say more
        "crash",
        "linux-panic",
        "linux",
        ("Kernel panic - not syncing", "Kernel panic: ", "hypervisor allocated %s conflicts with E820"),
    ),
    Signature("crash", "linux-panic", "linux", ("Rebooting in %d seconds..",), unless=("...",), is_first=True),
    Signature(
        "crash",
        "linux-bug",
        "linux",
        (
            *("kernel BUG at %w", "BUG: Bad page %w in process", "BUG: scheduling while atomic: ", "BUG: KASAN: "),
            *("BUG: KFENCE: ", "BUG: stack guard page was hit", "BUG: %w stack guard page was hit"),
            *("BUG: spinlock %s on CPU#%d, ", "BUG: rwlock %s on CPU#%d, ", "BUG: KMSAN: "),
            *("BUG %w (Not tainted): ", "BUG %w (Tainted: %s): "),  # mm/slub.c
            *("Kernel BUG at %w:%d", "Bad page state in process '"),  # Linux 2.6.18
        ),
    ),
    Signature(  # the second of each is that of Linux 2.6
        "crash",
        "linux-soft-lockup",
        "linux",
        ("BUG: soft lockup - CPU#%d stuck for", "BUG: soft lockup detected on CPU#%d"),
    ),
    Signature(
        "crash",
        "linux-hard-lockup",
        "linux",
        ("Watchdog detected hard LOCKUP on cpu", "NMI Watchdog detected LOCKUP on CPU"),
    ),
    Signature(
        "crash",
        "linux-oops",
        "linux",
        (
            *("Oops: %s [#%d]", "BUG: unable to handle ", "BUG: kernel NULL pointer", "PANIC: double fault"),
            *("PANIC: early exception %w IP", "general protection fault, %w for "),
            *("general protection fault%s [#%d]", "invalid opcode: %x [#%d]", "divide error: %x [#%d]"),
            *("double fault: %x [#%d]", "stack segment: %x [#%d]", "invalid TSS: %x [#%d]", "int3: %x [#%d]"),
            *("segment not present: %x [#%d]", "alignment check: %x [#%d]", "simd exception: %x [#%d]"),
            *("bounds: %x [#%d]", "overflow: %x [#%d]", "iret exception: %x [#%d]", "fpu exception: %x [#%d]"),
            *("Bad pagetable: %x [#%d]", "kernel stack overflow (%w): %x [#%d]"),
            "Unable to handle kernel ",  # arch/arm64/mm/fault.c; Linux 2.6.18, as are the next
            *("Oops: %x [%d]", "general protection fault: %x [%d]", "invalid opcode: %x [%d]", "divide error: %x [%d]"),
            *("stack segment: %x [%d]", "double fault: %x [%d]", "control protection%s [#%d]"),
            *("divide_error: %x [#%d]", "Unhandled fault: %s (0x%x) at 0x%x"),
            *(
                "Internal error: %s: %x [#%d]",
                "SError Interrupt on CPU%d, code ",
                "Bad mode in %s handler detected on CPU%d",
            ),
        ),
    ),
    Signature(
        "crash",
        "linux-hung-task",
        "linux",
        (
            "INFO: task %s blocked for more than %d",
            "INFO: task %s blocked in I/O wait for more than %d",
            "INFO: task %s can't die for more than %d",
        ),
    ),
    Signature(
        "crash",
        "linux-rcu-stall",
        "linux",
        (
            *("INFO: rcu%w self-detected stall", "INFO: rcu%w detected stall", "INFO: rcu%w detected expedited stall"),
            *("rcu%w kthread starved for %d jiffies", "rcu%w kthread timer wakeup didn't happen for %d jiffies"),
        ),
        unless=("CPUs/tasks: {}", "CPUs/tasks: { }"),  # it was over before it was told
    ),
    Signature(  # fatal, or on the way to it: MCG_STATUS, the number, is 0 for what a poll or the last boot left
        "crash",
        "machine-check",
        "linux",
        ("CPU %d: Machine Check Exception: ",),
        unless=(" 0 Bank ",),
    ),
    # dom0's userland: it has not come up, and nobody will log in
    Signature(
        "crash",
        "dom0-gives-up",
        "linux",
        (
            *("Gave up waiting for root", "ALERT! %s does not exist.  Dropping to a shell!"),  # initramfs-tools
            *("Entering emergency mode. Exit the shell", "dracut: FATAL: ", "dracut: Refusing to continue"),  # dracut
            *("dracut-initqueue[%d]: Warning: Could not boot.", "Warning: Could not boot."),
            *("You are in emergency mode", "Welcome to emergency mode", "Reached target emergency.target"),  # systemd
            *("Reached target Emergency Mode", "systemd[1]: Reached target emergency.target"),
            *("systemd[1]: Reached target Emergency Mode", "Cannot open access to console, the root account is locked"),
            *("initramfs emergency recovery shell launched", "You are now being dropped into an emergency shell"),
            *("UNEXPECTED INCONSISTENCY; RUN fsck MANUALLY", "An error occurred in stage 1 of the boot process"),
        ),
    ),
    Signature("crash", "dom0-gives-up", "linux", ("(initramfs) ",), is_first=True),
    # FreeBSD or NetBSD in dom0: kern_shutdown.c, trap.c, subr_kdb.c, db_run.c; subr_prf.c, db_panic.c
    Signature(
        "crash",
        "bsd-panic",
        "linux",
        (
            *("panic: %s", "Fatal trap %d: ", "Fatal double fault", "fatal %s in supervisor mode", "KDB: enter: panic"),
            *("Stopped at %s+0x%x", "Stopped in pid %d", "db> ", "db{%d}> ", "cpu%d: Begin traceback"),
            "Automatic reboot in %d seconds - press a key on the console to abort",
        ),
        unless=(  # those of programs in Go
            *("runtime error", "goroutine", "[recovered]", "nil map", "closed channel", "interface conversion"),
            *("reflect: ", "sync: "),
        ),
        is_first=True,
    ),
    # Marked, and the test goes on
    Signature(  # Linux's
        "warning",
        "iommu-fault",
        None,
        ("DMAR: [%s] Request device", "INTR-REMAP: Request device", "AMD-Vi: Event logged [", "AMD-Vi: IO_PAGE_FAULT"),
    ),
    Signature(  # drivers/passthrough/amd/iommu_init.c: those that name no fault of a device
        "warning",
        "iommu-fault",
        "xen",
        (
            *("ILLEGAL_DEV_TABLE_ENTRY %x %x", "DEV_TABLE_HW_ERROR %x %x", "PAGE_TABLE_HW_ERROR %x %x"),
            *("ILLEGAL_COMMAND_ERROR %x %x", "COMMAND_HW_ERROR %x %x", "IOTLB_INV_TIMEOUT %x %x"),
            *("INVALID_DEV_REQUEST %x %x", "event %x %x %x %x"),
        ),
    ),
    Signature("warning", "xen-warn", "xen", ("Xen WARN at ", "UBSAN: Undefined behaviour in ")),  # common/ubsan/ubsan.c
    Signature(  # common/domain.c: the guest's fault, the host is fine
        "warning",
        "guest-crash",
        "xen",
        (
            *("Domain %d (vcpu#%d) crashed on cpu", "Domain %d reported crashed by domain"),
            "Triple fault - invoking HVM shutdown",
            *("VIRIDIAN CRASH: ", "VIRIDIAN GUEST_CRASH: "),  # arch/x86/hvm/viridian: what Windows says of its own
        ),
    ),
    Signature("warning", "domain-crash", "xen", ("domain_crash called from", "domain_crash_sync called from")),
    Signature("warning", "guest-watchdog", "xen", ("Watchdog timer fired for domain",)),
    Signature("warning", "pod-exhausted", "xen", ("out of PoD memory!",)),
    Signature(
        "warning",
        "cpu-lost",
        None,
        (
            *("Error bringing CPU%d up", "Error taking CPU%d down", "Failed to bring up CPU"),  # common/cpu.c
            *("Non-responding CPUs", "stuck while starting up"),  # arch/x86/traps.c, smpboot.c
        ),
    ),
    Signature("warning", "cpu-lost", "xen", ("Stuck ??", "Not responding.")),  # arch/x86/smpboot.c of 4.8 to 4.17
    Signature("warning", "iommu-ats", "xen", ("ATS device %w flush failed",)),
    Signature(  # drivers/passthrough/vtd/qinval.c, amd/iommu_cmd.c
        "warning",
        "iommu-slow",
        "xen",
        ("wait descriptor taking too long", "completion wait taking too long"),
    ),
    Signature("warning", "lines-lost", None, ("printk: %d messages suppressed",)),
    Signature(
        "warning",
        "linux-warning",
        "linux",
        (
            *("WARNING: CPU: ", "WARNING: %w at %w, CPU#%d", "WARNING: at %w, CPU#%d", "WARNING: [%s at %w, CPU#%d"),
            *("UBSAN: %w in ", "BUG: sleeping function called from invalid", "BUG: using %w in preemptible"),
            *("BUG: Bad rss-counter state", "BUG: workqueue leaked", "WARNING: suspicious RCU usage"),
            *("BUG: KCSAN: ", "BUG: Invalid wait context", "NETDEV WATCHDOG: "),
            *("WARNING: at %w:%d ", "BUG: warning at %w:%d"),  # Linux 3, 2.6.18
            *("WARNING: possible circular locking", "WARNING: possible recursive locking"),  # lockdep
            *("WARNING: possible irq lock inversion", "WARNING: inconsistent lock state"),
            *("WARNING: bad unlock balance", "WARNING: held lock freed", "[ BUG: bad unlock", "[ BUG: held lock"),
            *(
                "[ INFO: possible %w lock",
                "[ INFO: inconsistent lock state",
                "[ INFO: suspicious RCU usage",
            ),  # before 4.11
            *("irq %d: nobody cared", "BUG: non-zero pgtables_bytes", "Marking clocksource '%w' as unstable"),
            " multicall(s) failed: cpu",  # arch/x86/xen/multicalls.c
            *("UBSAN: Undefined behaviour in ", "-safe -> %w-unsafe lock order detected", "still has locks held!"),
            *("lock held when returning to user space!", "INFO: trying to register non-static key"),
            *("BUG: MAX_STACK_TRACE_ENTRIES too low", "BUG: MAX_LOCK", "WARNING: kernel stack "),
            *("unregister_netdevice: waiting for %w to become free", "kmemleak: %d new suspected memory leak"),
            *("VFS: Busy inodes after unmount of ", "VFS: Close: file count is 0"),
        ),
    ),
    Signature("warning", "linux-workqueue-lockup", "linux", ("BUG: workqueue lockup - pool",)),
    Signature(
        "warning",
        "oom-killer",
        "linux",
        (
            *("Out of memory: Kill", "invoked oom-killer", "oom-kill:constraint=", "Memory cgroup out of memory: Kill"),
            "page allocation failure: order:",
        ),
    ),
    Signature(
        "warning",
        "ext4-error",
        "linux",
        (
            *("EXT4-fs error", "EXT3-fs error", "Aborting journal on device", "JBD2: Error "),
            *("EXT4-fs (%w): Remounting filesystem read-only", "EXT4-fs warning (device %w): ext4_end_bio"),
        ),
    ),
    Signature(
        "warning",
        "fs-error",
        "linux",
        (
            *(
                "XFS (%w): Corruption ",
                "XFS (%w): metadata I/O error",
                "XFS (%w): Log I/O Error",
                "XFS (%w): log I/O error",
            ),
            *("XFS (%w): Filesystem has been shut down", "BTRFS error (device ", "BTRFS critical (device "),
            "BTRFS: error (device ",
        ),
    ),
    Signature(
        "warning",
        "io-error",
        "linux",
        (
            *("I/O error, dev", "Buffer I/O error", "critical medium error, dev", "critical target error, dev"),
            *("nvme %w: I/O %s timeout, ", "nvme %w: controller is down; will reset"),
        ),
    ),
    Signature(
        "warning",
        "hardware-error",
        "linux",
        (
            *("[Hardware Error]: event severity: ", "[Hardware Error]: Machine check events logged"),
            *("EDAC %w: %d CE ", "EDAC %w: %d UE ", "AER: %srror received: ", "AER: %srror message received from"),
        ),
    ),
    Signature(  # arch/x86/traps.c, arch/x86/kernel/nmi.c
        "warning",
        "nmi",
        None,
        (
            *("Uhhuh. NMI received for unknown reason", "NMI - PCI system error (SERR)", "NMI - I/O ERROR"),
            *("NMI - MEMORY ERROR", "NMI: PCI system error (SERR)", "NMI: IOCK error"),
        ),
    ),
    Signature(  # systemd: process 1 has died, and what runs goes on without it
        "warning",
        "dom0-init",
        "linux",
        ("systemd[1]: Freezing execution", "systemd[1]: Caught <", "[!!!!!!] "),
    ),
    # What a crash and others say alike: all that is left where the telling line was lost
    Signature("warning", "xen-dump", "xen", ("----[ Xen-%w",)),
    Signature("warning", "linux-trace", "linux", ("Call Trace:", "Call trace:")),
    Signature(
        "warning",
        "bsd-warning",
        "linux",
        (
            "lock order reversal:",
            "KDB: stack backtrace:",
            "UBSan: Undefined Behavior in ",
            "ASan: Unauthorized Access In ",
        ),
        is_first=True,
    ),
    # The boot ends before Xen, or goes on with something else: what the lab's files or the firmware's settings lack
    Signature(
        "warning",
        "boot-loader",
        "linux",
        (
            *(f"error: {text}" for text in _GRUB),
            *(f"error: ../%w:{text}" for text in _GRUB),
            *("Entering rescue mode...", "grub rescue>", "alloc magic is broken at", "free magic is broken at"),
            *("Verification failed: (0x", "Verification failed: Security", "ERROR: Verification failed: "),  # shim
            *(
                "Failed to load image: ",
                "Failed to load image %w: ",
                "start_image() returned ",
                "Failed to open \\%w - ",
            ),
            "Something has gone seriously wrong: ",
            *("BdsDxe: failed to load ", "BdsDxe: failed to start ", "BdsDxe: No bootable option or device"),  # edk2
            *("UEFI Interactive Shell v", "No bootable device", "Boot failed: not a bootable disk"),
            *("Boot failed: could not read the boot disk", "Reboot and Select proper Boot device"),
            *("Operating System not found", "Missing operating system", "No boot device available"),
            *("PXE-E%x: ", "PXE-M%x: ", "No more network devices"),
        ),
        # what GRUB's configurations ask for, and do without
        unless=("/fonts/", ".pf2'", "/locale/", "/themes/", ".png'", ".mod'", "/grubenv'", "/.disk/"),
        is_first=True,
    ),
    # Milestones
    Signature("milestone", "press-any-key", None, ("Press any key", "press any key")),
    Signature("milestone", "grub-menu", None, ("GNU GRUB",)),
    Signature("milestone", "xen-banner", "xen", (" Xen version %d",)),  # Linux says "Xen version: 4.17"
    Signature("milestone", "xen-cmdline", "xen", (" Command line: ",)),
    Signature("milestone", "iommu-enabled", None, ("I/O virtualisation enabled",)),
    Signature("milestone", "dom0-building", None, ("*** Building a PV Dom0 ***", "*** Building a PVH Dom0 ***")),
    Signature("milestone", "dom0-linux", None, ("Linux version %d",)),
    Signature("milestone", "dom0-up", None, ("xenlab: dom0 is up", "login:"), unless=("Last login:",)),
    Signature("milestone", "s3-prepare", None, ("Preparing system for ACPI S3 state",)),  # arch/x86/acpi/power.c
    Signature("milestone", "s3-enter", None, ("Entering ACPI S3 state",)),
    Signature("milestone", "s3-finish", None, ("Finishing wakeup from ACPI S3 state",)),
)

# In the order in which a boot, and then a sleep, passes them.
MILESTONES = tuple(signature.name for signature in SIGNATURES if signature.kind == "milestone")
