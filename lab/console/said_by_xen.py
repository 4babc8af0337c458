"""What Xen says of its crashes, and of what goes wrong and goes on.

Texts are those of Xen 3 to 4.23; the source file stands beside.
"""

from __future__ import annotations

from lab.console.formats import Signature

SIGNATURES = (
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
        ("FATAL TRAP: ve", "FATAL TRAP: type %d", "FATAL RESERVED TRAP: ve", "CPU%d: Unexpected Trap: "),
    ),
    Signature(  # arch/riscv/traps.c, arch/ppc/ppc64/exceptions.c
        "crash",
        "xen-fatal-trap",
        "xen",
        ("Unhandled exception: %s", "Unhandled exception[", "UNRECOVERABLE EXCEPTION: %s (0x%x)"),
        is_marked=True,
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
            *("smmu: %w: Unhandled context fault: fsr=", "smmu: %w: Unexpected global fault"),  # passthrough/arm/smmu.c
            *("SMMUv3: %w: event 0x%x received:", "ipmmu: %w: d%d: Unhandled fault: status"),  # smmu-v3.c, ipmmu-vmsa.c
        ),
        is_marked=True,
    ),
    # Marked, and the test goes on
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
    Signature(  # common/livepatch.c, arch/x86/cpu/microcode/core.c: the host is half changed
        "warning",
        "half-patched",
        "xen",
        (
            *("livepatch: %s: Timed out on semaphore in ", "livepatch: %s: unable to quiesce!"),
            *("livepatch: %s: SYSTEM MIGHT BE INSECURE: ", "livepatch: %s with inconsistent applied state"),
            "ERROR: Updating microcode succeeded on %d cores and failed",
        ),
    ),
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
    Signature(
        "warning", "cpu-lost", "xen", ("Stuck ??", "Not responding.", "CPU %d still not dead...")
    ),  # arch/x86/smpboot.c of 4.8 to 4.17
    Signature("warning", "iommu-ats", "xen", ("ATS device %w flush failed",)),
    Signature(  # drivers/passthrough/vtd/qinval.c, amd/iommu_cmd.c, arm/smmu.c
        "warning",
        "iommu-slow",
        "xen",
        ("wait descriptor taking too long", "completion wait taking too long", "TLB sync timed out -- "),
    ),
    Signature("warning", "lines-lost", None, ("printk: %d messages suppressed",)),
    # What a crash and others say alike: all that is left where the telling line was lost
    Signature("warning", "xen-dump", "xen", ("----[ Xen-%w",)),
)
