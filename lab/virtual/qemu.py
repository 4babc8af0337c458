"""The QEMU command line of a virtual board. Facts and their reasons: docs/virtual-lab.md."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from lab.inventory import BoardSpec, VirtualSpec

BINARY = "qemu-system-x86_64"
DIE_WITH_PARENT = ("setpriv", "--pdeathsig", "KILL")  # a killed daemon leaves nothing running

# An AMD-like CPU with SVM and nested paging, and with little else: what TCG 7.2 emulates wrongly is not there (SMAP
# kills a PV dom0; XSAVE corrupts state over migrations; RDTSCP intercepts are misreported to nested Xen). Family 23:
# to TCG's own family 15 Xen writes an MSR that Xen gives no guest, so that a Xen in a guest, the PV shim, dies.
CPU = "qemu64,family=23,model=1,stepping=2,+svm,+npt,+vgif,+pdpe1gb"

# Xen takes frequencies that are set by I/O ports from an Intel CPU alone, and an AMD CPU of family 23 makes it ignore
# the firmware's idle states (cpufreq.c, cpu_idle.c in xen/arch/x86/acpi). So this is the CPU above under another name;
# its SVM works under it. dom0's Linux tells Xen only the frequencies of a CPU with EST. TCG has neither EST nor an
# invariant TSC to offer; QEMU says so in its log, and shows both to the machine.
CPU_OF_INTEL = "qemu64,vendor=GenuineIntel,family=6,model=15,stepping=11,+svm,+npt,+vgif,+pdpe1gb,+arat"
SAID_ANYWAY = "x-force-features=on"
REGISTERS = "pc-testdev"  # the ports of firmware/acpi

# A clock that counts instructions wants all processors in one thread. All of its clocks then follow the count: 2 ns
# (shift=1) for each instruction, so that the TSC, 1 GHz, ticks twice. An idle machine's clock goes on with real time
# (sleep=on). With sleep=off it would jump to the next timer, and dom0's time limits pass while it awaits the network.
#
# Processors of the machine's clock are a thread each. If there are more of them than cores, they share one thread. A
# processor that awaits another one, such as for a TLB flush, would burn the core that the other one needs; in one
# thread its PAUSE gives way to it (QEMU's target/i386/tcg/misc_helper.c, helper_pause).
ONE_THREAD, THREADS = "tcg,thread=single", "tcg,thread=multi"
COUNTED = "shift=1,sleep=on"

OVMF = "/usr/share/OVMF"  # where Debian's package ovmf has UEFI


@dataclass(frozen=True, slots=True)
class Emulator:
    """A QEMU and the UEFI that goes with it."""

    binary: str = BINARY
    ovmf: str = OVMF
    lacks: tuple[str, ...] = ()  # the capabilities that no emulated board on it has
    profiler: str = ""  # the plugin that counts for figures; "": it has none
    tables: str = ""  # folder of the ACPI tables of boards with power states; "": no board may have them

    @property
    def code(self) -> Path:
        """UEFI without SMM, which no lock on the variables is needed for here; S3 works with it."""
        return Path(self.ovmf) / "OVMF_CODE_4M.fd"

    @property
    def variables(self) -> Path:
        """UEFI's variables: empty, to be copied."""
        return Path(self.ovmf) / "OVMF_VARS_4M.fd"


OF_THE_MACHINE = Emulator()


@dataclass(frozen=True, slots=True)
class Wiring:
    """Where the machine's ends come out. All sockets are the board daemon's."""

    disk: Path  # qcow2, the board's own
    variables: Path  # UEFI's variable store, the board's own
    seed: Path  # tar with the board's identity, read once by its first boot
    uart: Path  # unix socket of the serial cable
    qmp: Path  # unix socket the daemon listens on
    profile: Path  # what a plugin of QEMU counts for figures (lab.virtual.profile)
    kcs_port: int  # TCP port of the BMC's system interface; 0: it has none
    link_peer_port: int  # UDP port of the peer's end of the lab link; 0: no link


def arguments(
    board: BoardSpec,
    shape: VirtualSpec,
    wiring: Wiring,
    *,
    emulator: Emulator = OF_THE_MACHINE,
    boot_device: str = "none",
    tap: int = -1,
) -> list[str]:
    """argv of the board's machine. ``tap``: the descriptor it inherits, if it boots by network."""
    counted = shape.clock == "instructions"
    kvm = shape.accelerator == "kvm" and not (counted or shape.power_states or shape.invariant_tsc)
    argv = [
        *DIE_WITH_PARENT,
        emulator.binary,
        "-name",
        f"{board.name},debug-threads=on",
        "-nodefaults",
        "-display",
        "none",
        "-no-user-config",
    ]
    tcg = ONE_THREAD if counted or shape.vcpus > (os.cpu_count() or 1) else THREADS
    argv += ["-machine", "q35,kernel-irqchip=off", "-accel", "kvm" if kvm else tcg]
    argv += ["-icount", COUNTED] if counted else []
    argv += ["-plugin", f"{emulator.profiler},out={wiring.profile}"] if counted and emulator.profiler else []
    argv += ["-cpu", "host" if kvm else _cpu(shape), "-smp", str(shape.vcpus), "-m", str(shape.memory_mib)]
    argv += _numa(shape)
    argv += _power_states(shape, emulator)
    argv += [] if shape.s3 else ["-global", "ICH9-LPC.disable_s3=1"]
    argv += ["-rtc", f"base=utc,clock={'vm' if counted else 'host'}", "-boot", "reboot-timeout=1000"]
    if shape.firmware == "uefi":
        argv += ["-drive", f"if=pflash,unit=0,format=raw,readonly=on,file={emulator.code}"]
        argv += ["-drive", f"if=pflash,unit=1,format=raw,file={wiring.variables}"]
    argv += ["-device", "intel-iommu,intremap=on"]
    if board.boot == "disk":
        # AHCI, not virtio: with the IOMMU on, a PV dom0 under Xen cannot reach virtio devices.
        argv += ["-drive", f"if=none,id=disk,file={wiring.disk},format=qcow2,cache=unsafe,discard=unmap"]
        argv += ["-device", "ide-hd,drive=disk,bus=ide.0,bootindex=2"]
        argv += ["-drive", f"if=none,id=seed,file={wiring.seed},format=raw,snapshot=on"]
        argv += ["-device", "ide-hd,drive=seed,bus=ide.1"]
    argv += _devices(board, shape, wiring, pxe=boot_device == "pxe", tap=tap)
    argv += ["-chardev", f"socket,id=uart,path={wiring.uart}", "-serial", "chardev:uart"]
    argv += ["-chardev", f"socket,id=qmp,path={wiring.qmp}", "-mon", "chardev=qmp,mode=control"]
    if not wiring.kcs_port:
        return argv
    argv += ["-chardev", f"socket,id=kcs,host=127.0.0.1,port={wiring.kcs_port},reconnect=2"]
    argv += [
        "-device",
        "ipmi-bmc-extern,id=bmc,chardev=kcs",
        "-device",
        "isa-ipmi-kcs,bmc=bmc,ioport=0xca2,irq=0",
    ]
    return argv


def _cpu(shape: VirtualSpec) -> str:
    said = ["+est"] * shape.power_states + ["+invtsc"] * shape.invariant_tsc
    return ",".join([CPU_OF_INTEL if shape.power_states else CPU, *said, *([SAID_ANYWAY] if said else [])])


def _power_states(shape: VirtualSpec, emulator: Emulator) -> list[str]:
    if not shape.power_states:
        return []
    argv = ["-device", REGISTERS]
    for name in ("power", *(f"cpu-{cpu}" for cpu in range(shape.vcpus))):
        argv += ["-acpitable", f"file={emulator.tables}/{name}.aml"]
    return argv


def _numa(shape: VirtualSpec) -> list[str]:
    if shape.numa_nodes < 2:
        return []
    part = shape.memory_mib // shape.numa_nodes
    argv: list[str] = []
    for node in range(shape.numa_nodes):
        cpus = [str(cpu) for cpu in range(shape.vcpus) if cpu % shape.numa_nodes == node]
        argv += ["-object", f"memory-backend-ram,id=mem{node},size={part}M"]
        argv += [
            "-numa",
            ",".join([f"node,nodeid={node},memdev=mem{node}", *(f"cpus={cpu}" for cpu in cpus)]),
        ]
    for node, row in enumerate(shape.numa_distances):  # with these QEMU makes a SLIT, and none without
        for other, distance in enumerate(row):
            argv += ["-numa", f"dist,src={node},dst={other},val={distance}"]
    return argv


def _devices(board: BoardSpec, shape: VirtualSpec, wiring: Wiring, *, pxe: bool, tap: int) -> list[str]:
    """e1000e, a real part with MSI-X: management, the link to the peer, a spare one to pass through; the DMA device.

    ``pxe``: the management port has its boot ROM, and comes before the disk; one of a board without a disk always has.

    Fixed slots, so that adding one does not move the others: 2 management, 3 lab, 4 spare, 5 DMA device.
    """
    argv: list[str] = []
    if nic := board.nics.get("management"):
        if board.boot == "network":
            argv += ["-netdev", f"tap,id=management,fd={tap}"]
        else:
            argv += ["-netdev", f"user,id=management,hostfwd=tcp:127.0.0.1:{board.ssh_port}-:22,restrict=on"]
        rom = "bootindex=1" if pxe or board.boot == "network" else "romfile="
        argv += ["-device", f"e1000e,netdev=management,mac={nic.mac},addr=2,{rom}"]
    if nic := board.nics.get("lab"):
        if wiring.link_peer_port:
            # Datagrams need no connection, so the link survives either side's power cycle.
            ends = f"local.type=inet,local.host=127.0.0.1,local.port={shape.link_port}"
            ends += f",remote.type=inet,remote.host=127.0.0.1,remote.port={wiring.link_peer_port}"
            argv += ["-netdev", f"dgram,id=lab,{ends}"]
        else:
            argv += ["-netdev", "user,id=lab,restrict=on"]
        argv += ["-device", f"e1000e,netdev=lab,mac={nic.mac},addr=3,romfile="]
    if nic := board.nics.get("spare"):
        argv += ["-netdev", "user,id=spare,restrict=on"]
        argv += ["-device", f"e1000e,netdev=spare,mac={nic.mac},addr=4,romfile="]
    if "dma-device" in board.capabilities:  # its DMA reaches all of memory; by itself QEMU's has 28 address bits
        argv += ["-device", f"edu,dma_mask={2**64 - 1},addr=5"]
    return argv
