"""What is said before Xen runs: by firmware, shim, GRUB, and by xen.efi as a program of the firmware."""

from __future__ import annotations

from lab.console.formats import Signature

# What GRUB says behind "error: "; since 2.06 behind a place in its source, since 2.13 with the function, too.
_GRUB = (
    *("file %s not found", "disk %s not found", "no such device: %s", "no such partition", "unknown filesystem"),
    *("out of memory", "no multiboot header found", "invalid magic number", "invalid arch-dependent ELF magic"),
    *("bad shim signature", "%w has invalid signature", "shim_lock protocol not found", "symbol `%w' not found"),
    *("you need to load the kernel first", "You need to load the kernel first", "can't find command `%w'"),
    *("attempt to read or write outside of", "failure reading sector 0x%x from", "premature end of "),
    *("verification requested but nobody cares", "prohibited by secure boot policy", "cannot allocate kernel buffer"),
    *("timeout reading `%s'", "couldn't send network packet", "no server is specified", "invalid file name `%s'"),
    *("cannot load image", "invalid EFI file path", "unsupported tag: 0x%x", "checksum verification failed"),
    *("couldn't find suitable memory target", "unable to allocate ", "you need to load the Xen Hypervisor first"),
    *("time out opening `%s'", "timeout: could not resolve hardware address", "no DNS record found"),
    *("couldn't autoconfigure %w", "not a regular file", "access denied.", "unknown command `%w'"),
    *("syntax error", "Incorrect command", "incorrect command"),
)

# What it says of a boot that goes on all the same.
GRUB_GOES_ON = (
    *("no suitable video mode", "no video mode activated", "sparse file not allowed", "diskfilter writes are not"),
    *("serial port `", "terminal `", "environment block"),
)

SIGNATURES = (
    # Firmware: xen.efi, or the boot loader before it, died in it (edk2, ArchExceptionHandler.c)
    Signature("crash", "firmware-exception", "linux", ("!!!! %w Exception Type - ",)),
    Signature(  # AArch64/DefaultExceptionHandler.c; DebugLib.h
        "crash",
        "firmware-exception",
        "linux",
        (
            *(
                "Synchronous Exception at 0x%x",
                "ASSERT_EFI_ERROR (Status = ",
                "ASSERT_RETURN_ERROR (Status = ",
                "ASSERT [%w] %w(%d): ",
            ),
            *("Unhandled Exception in EL3.", "PANIC in EL3.", "PANIC at PC : 0x%x", "E/TC:%s Panic "),  # TF-A, OP-TEE
        ),
        is_first=True,
    ),
    Signature(  # coreboot, x86/exception.c; U-Boot, arch/arm/lib/interrupts_64.c: amid a line, too
        "crash",
        "firmware-exception",
        "linux",
        (
            *("Unexpected Exception: %d @ %x:%x - Halting", "Unexpected Exception:%d @ %x:%x - Halting"),
            *('"Synchronous Abort" handler, esr 0x%x', '"Error" handler, esr 0x%x'),
        ),
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
            *("ERR: Xen must be loaded at a 2Mb boundary!", "- Xen must be entered in NS Hyp mode -"),
            *("- CPU doesn't support the virtualization ext", "- Unable to build boot page tables - "),
            *("Unable to find chosen node", "Unable to setup chosen node", "Unable to add %w FDT node."),
            *("Unable to set %w property.", "FDT string overflow", "No space left for modules", "Unknown module type"),
            *("Chained configuration file '%w'not found.", "Out of static memory", "PE invalid section size + address"),
            *("Increase BUFFERSIZE", "BUG: !dir_handle in read_file()", "Unsupported relocation type"),
        ),
        unless=("found. ",),
        is_first=True,
    ),
    Signature(  # edk2 indents these, and Linux that cannot unpack itself; each of iPXE's errors names its page
        "warning",
        "boot-loader",
        None,
        (
            *("PXE-E%x: ", "PXE-M%x: ", "Error: Server response timeout.", "Error: Could not retrieve NBP file size"),
            *(" (http://ipxe.org/%x)", " (https://ipxe.org/%x)", " -- System halted"),
        ),
    ),
    # The boot ends before Xen, or goes on with something else: what the lab's files or the firmware's settings lack
    Signature(
        "warning",
        "boot-loader",
        "linux",
        (
            *(f"error: {text}" for text in _GRUB),
            *(f"error: %w.c:%w:{text}" for text in _GRUB),
            *(f"error: %w.c:%w: {text}" for text in _GRUB),
            *(
                "Entering rescue mode...",
                "grub rescue>",
                "grub> ",
                "Shell> ",
                "alloc magic is broken at",
                "free magic is broken at",
            ),
            *("Verification failed: (0x", "Verification failed: Security", "ERROR: Verification failed: "),  # shim
            *("Verifying shim SBAT data failed: ", "Could not create MokListRT: "),
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
            "No more network devices",
            *("Could not boot image: ", "Nothing to boot: ", "Could not start download: "),  # iPXE
            *("Boot failed: Could not read", "Boot Failed. EFI ", "Non-System disk or disk error"),
            *("No boot disk has been detected", "Strike the F1 key to continue"),  # POST waits for somebody
            *("Wrong Image Type for bootm", "ERROR: can't get kernel image!", "Bad Linux ARM64 Image magic!"),  # U-Boot
            *("** Unable to read file ", "Retry count exceeded; starting again", "Retry time exceeded; starting again"),
            *("** File not found ", "** Bad device ", "** Invalid partition ", "TFTP error: '", "No ethernet found."),
            *("ERROR: Did not find a cmdline Flattened Device Tree", "Could not find a valid device tree"),
            *("### ERROR ### Please RESET the board ###", "Card did not respond to voltage select!"),
            *("Failed to load ldlinux.c32", "Failed to load COM32 file %w", "Could not find kernel image: "),
            "Unable to locate configuration file",
            *("No DEFAULT or UI configuration directive found!", "Invalid or corrupt kernel image."),  # SYSLINUX
            *(
                "Loading %w... failed!",
                "Error loading EFI binary \\",
                "Error loading \\%w: ",
            ),  # mboot.c32, systemd-boot
            *(
                "An operating system wasn't found. ",
                "No Operating System was Found",
                "Default Boot Device Missing or Boot",
            ),
            *("FATAL: No bootable medium found!", "BOOTMGR is missing", "Invalid system disk", "PXE-MOF: Exiting"),
            *("[EMERG]  Payload not loaded", "Payload not loaded"),  # coreboot, prog_loaders.c
            *("FatalError: SocketId = %d registered Major Code", "Fatal Error: MMC registered Major Code"),  # Intel's
            *("FatalError: BSP - SocketId = %d registered Major Code", "ERROR: BSP Found error on SocketId = %d "),
            "EFI stub: ERROR: ",  # Linux as a program of the firmware, libstub
            *("This kernel requires an %w CPU, but only", "Unable to boot - please use a kernel "),  # boot/cpu.c
        ),
        # what GRUB's configurations ask for, and do without
        unless=("/fonts/", ".pf2'", "/locale/", "/themes/", ".png'", ".mod'", "/grubenv'", "/.disk/", "FIRMWARE BUG: "),
        is_first=True,
    ),
)
