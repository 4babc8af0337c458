"""What dom0's kernel and its first programs say of their crashes, and of what goes wrong and goes on.

Texts are those of Linux 2.6.16 to 7.x, of FreeBSD 9 to 15 and of NetBSD 7 to 11.
"""

from __future__ import annotations

from lab.console.formats import Signature

SIGNATURES = (
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
            *("Slab corruption (", "Slab corruption: start=", "slab error in %w(): "),  # mm/slab.c, to 6.7
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
            *(
                "PANIC: early exception %w IP",
                "PANIC: early exception %w rip ",
                "BUG: Int %d: CR2 ",
                "general protection fault, %w for ",
            ),
            *("general protection fault%s [#%d]", "invalid opcode: %x [#%d]", "divide error: %x [#%d]"),
            *("double fault: %x [#%d]", "stack segment: %x [#%d]", "invalid TSS: %x [#%d]", "int3: %x [#%d]"),
            *("segment not present: %x [#%d]", "alignment check: %x [#%d]", "simd exception: %x [#%d]"),
            *("bounds: %x [#%d]", "overflow: %x [#%d]", "iret exception: %x [#%d]", "fpu exception: %x [#%d]"),
            *("Bad pagetable: %x [#%d]", "kernel stack overflow (%w): %x [#%d]"),
            "Fixing recursive fault but reboot is needed!",  # kernel/exit.c
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
            *("INFO: rcu%w self-detected stall", "INFO: rcu%w detected expedited stall"),
            *("rcu%w kthread starved for %d jiffies", "rcu%w kthread timer wakeup didn't happen for %d jiffies"),
        ),
    ),
    Signature(
        "crash",
        "linux-rcu-stall",
        "linux",
        ("INFO: rcu%w detected stall",),
        unless=("CPUs/tasks: {}", "CPUs/tasks: { }"),  # it was over before it was told
        recalled_by="INFO: Stall ended before state dump start",
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
            *("dracut-%w[%d]: FATAL: ", "dracut-%w[%d]: Refusing to continue"),
            *("Target filesystem doesn't have ", "Target file system doesn't have ", "requires a manual fsck"),
            "No init found. Try passing init= bootarg",
            *("dracut-initqueue[%d]: Warning: Could not boot.", "Warning: Could not boot."),
            *("You are in emergency mode", "Welcome to emergency mode", "Reached target emergency.target"),  # systemd
            *("Reached target Emergency Mode", "systemd[1]: Reached target emergency.target"),
            *("systemd[1]: Reached target Emergency Mode", "Cannot open access to console, the root account is locked"),
            *("initramfs emergency recovery shell launched", "You are now being dropped into an emergency shell"),
            *("UNEXPECTED INCONSISTENCY; RUN fsck MANUALLY", "An error occurred in stage 1 of the boot process"),
            *("Unable to find a medium contain", "!! Could not find the root block device in "),  # casper, genkernel
            *("Waiting for device %s-- exiting to /bin/sh", "-- exiting to /bin/sh"),  # mkinitrd
            *("No /sbin/init found on rootdev", "There's no '/sbin/init' on rootfs"),
        ),
    ),
    Signature(  # prompts, of a shell or of sulogin, at which each of them ends
        "crash",
        "dom0-gives-up",
        "linux",
        (
            *("(initramfs) ", "dracut:/# ", "Dropping to debug shell.", "Give root password for maintenance"),
            *("Press Enter for maintenance", "Press enter for maintenance", "give root password for maintenance"),
            "Filesystem couldn't be fixed",
        ),
        is_first=True,
    ),
    # FreeBSD or NetBSD in dom0: kern_shutdown.c, trap.c, subr_kdb.c, db_run.c; subr_prf.c, db_panic.c
    Signature(
        "crash",
        "bsd-panic",
        "linux",
        ("panic: %s",),
        unless=(  # those of programs in Go
            *("runtime error", "goroutine", "[recovered]", "nil map", "closed channel", "interface conversion"),
            *("reflect: ", "sync: "),
        ),
        is_first=True,
        recalled_by="goroutine ",
    ),
    Signature(
        "crash",
        "bsd-panic",
        "linux",
        (
            *("Fatal trap %d: ", "Fatal double fault", "fatal %s in supervisor mode", "KDB: enter: panic"),
            *("Stopped at %s+0x%x", "Stopped in pid %d", "db> ", "db{%d}> ", "cpu%d: Begin traceback"),
            "Automatic reboot in %d seconds - press a key on the console to abort",
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
    Signature(
        "warning",
        "linux-warning",
        "linux",
        (
            *("WARNING: CPU: ", "WARNING: %w at %w, CPU#%d", "WARNING: at %w, CPU#%d", "WARNING: [%s at %w, CPU#%d"),
            *("UBSAN: %w in ", "BUG: sleeping function called from invalid", "BUG: using %w in preemptible"),
            *("BUG: Bad rss-counter state", "BUG: workqueue leaked", "WARNING: suspicious RCU usage"),
            "BUG: Dentry %s still in use (%d)",
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
            *("list_del corruption", "list_add corruption", "BUG: key %w has not been registered", ": bad pmd %x("),
        ),
    ),
    Signature(
        "warning",
        "cpu-lost",
        "linux",
        ("do_boot_cpu failed(", "failed to come online", "failed to report alive", "CPU%d: failed to boot: "),
    ),
    Signature("warning", "linux-workqueue-lockup", "linux", ("BUG: workqueue lockup - pool",)),
    Signature(
        "warning",
        "oom-killer",
        "linux",
        (
            *("Out of memory: Kill", "invoked oom-killer", "oom-kill:constraint=", "Memory cgroup out of memory: Kill"),
            *("page allocation failure: order:", "page allocation stalls for %d", "SLUB: Unable to allocate memory"),
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
            *("BTRFS: error (device ", "FAT-fs (%w): FAT read failed", "FAT-fs (%w): error, "),
        ),
    ),
    Signature(
        "warning",
        "io-error",
        "linux",
        (
            *("I/O error, dev", "Buffer I/O error", "critical medium error, dev", "critical target error, dev"),
            *(
                "nvme %w: I/O %s timeout, ",
                "nvme %w: controller is down; will reset",
                "nvme %w: Device not ready; abort",
            ),
            *("rejecting I/O to offline device", "ata%w: failed command: "),
        ),
    ),
    Signature(
        "warning",
        "hardware-error",
        "linux",
        (
            *("[Hardware Error]: event severity: ", "[Hardware Error]: Machine check events logged"),
            *("[Hardware Error]: CPU %d: Machine Check: ", "MCE: Killing %w due to hardware memory corruption"),
            *("Memory failure: 0x%x: ", "mce: Uncorrected hardware memory error in user-access"),
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
    Signature(  # cryptsetup-initramfs, systemd-ask-password: somebody must type it, or a TPM or Tang unlocks the disk
        "warning",
        "dom0-init",
        "linux",
        ("Please unlock disk %w: ", "Please enter passphrase for disk "),
        is_first=True,
    ),
    Signature(  # a program of dom0 has died: arch/x86/mm/fault.c, traps.c, whose words look like its own; systemd's
        "warning",
        "dom0-program",
        None,
        (
            *("]: segfault at %x ip ", "] general protection fault ip:", "] trap %s ip:"),
            *("systemd[1]: %w: Main process exited, code=killed", "systemd[1]: %w: Main process exited, code=dumped"),
            *("systemd[1]: %w: Failed with result 'core-dump'", "systemd[1]: %w: Failed with result 'signal'"),
            *("[FAILED] Failed to start xen", "[FAILED] Failed to start The Xen xenstore"),
        ),
    ),
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
)
