"""Boards that boot by network: what the lab machine serves them, and which entry a boot gets.

A board's port asks by DHCP and gets GRUB by TFTP (both are dnsmasq's); GRUB gets its menu, Xen, the kernel and an
initrd by HTTP, and the initrd gets the root, which stays in memory. No boot loader on the board could remember what to
boot next, so the lab machine does: the menu it hands out has the known-good entry as its default, and the entry under
test for the one boot after :func:`choose` asked for it.

The folder of a lab (:func:`folder`)::

    dnsmasq.conf              for the lab machine's own dnsmasq, or that of a virtual board's network
    tftp/grub.pc, grub.efi    GRUB, told to ask for its menu by HTTP
    image/                    known-good: xen.gz, vmlinuz, initrd, root.squashfs
    boards/NAME/menu.cfg      the known-good entry
    boards/NAME/identity.tar  the board's name, addresses and keys
    boards/NAME/under-test/   menu.cfg, xen.gz, files.tar, marker: the build under test (:func:`publish`)
    boards/NAME/job.cfg       a job of another CI: has GRUB do what the file grub.cfg in gitlab-ci says
    boards/NAME/gitlab-ci     -> the folder that this CI writes (key ``jobs`` of the inventory)
    boards/NAME/next          there: what the next boot is, under-test or job
    serving                   there: the server listens
    addresses/ADDRESS         -> boards/NAME: a board is known by the address that dnsmasq gives its port
    at/HOST/ADDRESS           the same of a board at a host, whose requests come through SSH (:mod:`lab.netboot.relay`)
"""

from __future__ import annotations

import contextlib
import getpass
import io
import ipaddress
import os
import re
import shutil
import subprocess
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from lab.base import paths, processes
from lab.base.errors import BenchError, BoardError
from lab.inventory import BoardSpec, Lab, NetbootSpec

Entry = Literal["known-good", "under-test", "job"]

PORT = 80  # GRUB 2.06 speaks HTTP to no other
ENTRY_IDS: Mapping[str, str] = {"known-good": "known-good", "under-test": "xenlab-under-test", "job": "job"}
SERVING = "serving"
GRUBS = {"grub.pc": ("i386-pc-pxe", "pxe"), "grub.efi": ("x86_64-efi", "efinet")}  # format, and what its network is
GRUB_MODULES = (
    "net tftp http normal configfile multiboot2 serial terminal test echo sleep reboot boot minicmd gzio true"
)
GRUB_START = """\
serial --unit=0 --speed=115200
terminal_output --append serial
set root=(http,$net_default_server)
configfile /board/grub.cfg
echo "no menu from http://$net_default_server/board/grub.cfg; again in 10 s"
sleep 10
reboot
"""
# Their file has commands and no entries. Where they fail nothing else may boot in the job's time.
JOBS = "gitlab-ci"  # the name by which Xen's own CI asks for its files
JOB = f"""\
source /{JOBS}/grub.cfg
boot
echo "the files of the job do not boot"
while true; do sleep 60; done
"""


def folder(lab: Lab) -> Path:
    """What is served for a lab."""
    return paths.state() / "lab" / lab.name / "netboot"


def home(lab: Lab, board: BoardSpec) -> Path:
    """The board's own part of it."""
    return folder(lab) / "boards" / board.name


def places(host: str) -> Path:
    """Where boards are known by their addresses: those of a host, or for an empty name those at the lab machine."""
    return Path("at", host) if host else Path("addresses")


def _network(lab: Lab, board: BoardSpec) -> NetbootSpec:
    network = lab.netboot_of(board)
    assert network, "the inventory was checked"
    return network


def write(lab: Lab, *, boot: Path, root: Path, identities: Mapping[str, Path]) -> None:
    """All that is served for the boards of ``lab`` that boot by network; no build under test is offered.

    ``boot`` has the known-good Xen, the kernel and ``initrd.network``, ``root`` is the squashfs; ``identities`` has
    a tar a board.

    :raises BenchError: GRUB cannot be made.
    """
    where = folder(lab)
    shutil.rmtree(where, ignore_errors=True)
    for name in ("tftp", "image", "addresses"):
        (where / name).mkdir(parents=True)
    if lab.netboot:
        here = [board for board in lab.network_booted() if not board.at]
        (where / "dnsmasq.conf").write_text(dnsmasq_conf(lab.netboot, here, where), encoding="utf-8")
    (where / "start.cfg").write_text(GRUB_START, encoding="ascii")
    for name, (form, modules) in GRUBS.items():
        command = ["grub-mkimage", "-O", form, "-p", "/grub", "-c", str(where / "start.cfg")]
        _run([*command, "-o", str(where / "tftp" / name), *modules.split(), *GRUB_MODULES.split()])
    kernel = sorted(boot.glob("vmlinuz-*"))[-1]
    xen = sorted(boot.glob("xen-*.gz"))[-1]
    image = {"xen.gz": xen, "vmlinuz": kernel, "initrd": boot / "initrd.network", "root.squashfs": root}
    for name, path in image.items():
        (where / "image" / name).symlink_to(path.resolve())
    for board in lab.network_booted():
        own = home(lab, board)
        own.mkdir(parents=True)
        (own / "menu.cfg").write_text(_head(board) + _known_good(_network(lab, board), board), encoding="utf-8")
        if board.jobs:
            (own / JOBS).symlink_to(board.jobs)
            (own / "job.cfg").write_text(_head(board) + JOB, encoding="utf-8")
        (own / "identity.tar").touch(mode=0o600)  # it has the board's keys
        shutil.copyfile(identities[board.name], own / "identity.tar")
        place = where / places(board.at.name if board.at else "")
        place.mkdir(parents=True, exist_ok=True)
        (place / _address(board)).symlink_to(os.path.relpath(own, place))


def publish(
    lab: Lab,
    board: BoardSpec,
    files: Mapping[str, Path],
    *,
    title: str,
    options: str,
    digest: str,
    dom0_options: str = "",
) -> bool:
    """Offer a build under test to the board: what it boots from now on when :func:`choose` asks for it.

    ``files``: path from the board's root -> local file, with the hypervisor among them; ``options`` are Xen's,
    ``dom0_options`` more for its kernel; ``digest`` names all of it and is what the board will say was deployed.
    False: it was offered already.

    :raises BenchError: the lab is not up.
    """
    own = home(lab, board)
    if not own.is_dir():
        raise BoardError(board.name, f"nothing is served to it: {own} is not there; is the lab up?")
    new, offered = own / "under-test.new", own / "under-test"
    marker = f"{title} {digest}\n"
    if (offered / "marker").exists() and (offered / "marker").read_text(encoding="utf-8") == marker:
        return False
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir()
    shutil.copyfile(files["boot/xenlab/xen-under-test.gz"], new / "xen.gz")
    with tarfile.open(new / "files.tar", "w", format=tarfile.GNU_FORMAT) as tar:
        for name, path in sorted(files.items()):
            tar.add(path, name, filter=_owned_by_root)
        said = tarfile.TarInfo("var/lib/xenlab/deployed")
        said.size = len(digest) + 1
        tar.addfile(said, io.BytesIO(f"{digest}\n".encode("ascii")))
    (new / "menu.cfg").write_text(
        _under_test(_network(lab, board), board, title, options, dom0_options), encoding="utf-8"
    )
    (new / "marker").write_text(marker, encoding="utf-8")
    shutil.rmtree(offered, ignore_errors=True)  # ended here, the board has its known-good build
    os.rename(new, offered)
    return True


def choose(own: Path, entry: Entry) -> None:
    """What the board boots next, once: ``own`` is its :func:`home`.

    :raises BenchError: a job, and the lab came up without a folder of jobs for this board.
    """
    if entry == "job" and not (own / "job.cfg").exists():
        raise BenchError(f"{own / 'job.cfg'} is not there: `xenlab lab down` and `xenlab lab up` write it")
    if entry == "known-good":
        (own / "next").unlink(missing_ok=True)
    else:
        (own / "next").write_text(entry, encoding="ascii")


def menu(own: Path) -> str:
    """GRUB's menu for a boot that begins now; what :func:`choose` asked for is used up.

    :raises OSError: nothing is served to such a board.
    """
    try:
        entry, timeout = (own / "next").read_text(encoding="ascii"), 0
        (own / "next").unlink()
    except FileNotFoundError:
        entry, timeout = "known-good", 2
    text = (own / ("job.cfg" if entry == "job" else "menu.cfg")).read_text(encoding="utf-8")
    if entry != "job":
        with contextlib.suppress(FileNotFoundError):
            text += (own / "under-test" / "menu.cfg").read_text(encoding="utf-8")
    return f"set default={ENTRY_IDS[entry]}\nset timeout={timeout}\n{text}"


def dnsmasq_conf(netboot: NetbootSpec, boards: Sequence[BoardSpec], where: Path) -> str:
    """DHCP and TFTP for these boards and for nobody else; no DNS. GRUB is in ``tftp`` of the folder ``where``."""
    network = ipaddress.ip_interface(netboot.address).network
    hosts = [f"dhcp-host={b.nics['management'].mac},{_address(b)},{b.name}" for b in boards]
    return "\n".join(
        [
            "# Written by xenlab: the boards that boot by network, and nobody else, are answered.",
            "port=0",
            f"user={getpass.getuser()}",
            f"interface={netboot.interface}",
            "bind-interfaces",
            f"dhcp-range={network.network_address},static,{network.netmask}",
            *hosts,
            "dhcp-option=option:router",  # none
            *(f"dhcp-match=set:uefi,option:client-arch,{number}" for number in (7, 9)),  # RFC 4578; both are seen
            "dhcp-boot=tag:!uefi,grub.pc",
            "dhcp-boot=tag:uefi,grub.efi",
            "enable-tftp",
            f"tftp-root={where / 'tftp'}",
            f"dhcp-leasefile={where / 'dnsmasq.leases'}",
            "log-dhcp",
            "",
        ]
    )


def _address(board: BoardSpec) -> str:
    return board.nics["management"].address.split("/")[0]


def _head(board: BoardSpec) -> str:
    """GRUB on the port that Xen's console is on: com1 is its unit 0."""
    ports = re.findall(r"\bconsole=com([12])\b", board.xen_command_line())
    return (
        f"serial --unit={int(ports[-1]) - 1} --speed={board.console.speed}\n"
        "terminal_input serial\nterminal_output serial\nset timeout_style=menu\n"
    )


def _known_good(netboot: NetbootSpec, board: BoardSpec) -> str:
    return _entry(
        "known-good: Debian's Xen", "known-good", "k", "/image/xen.gz", board.xen_command_line(), _dom0(netboot, board)
    )


def _under_test(netboot: NetbootSpec, board: BoardSpec, title: str, options: str, dom0_options: str) -> str:
    more = f" xenlab.overlay=http://{netboot.server}/board/under-test/files.tar xenlab.entry=under-test"
    dom0 = f"{_dom0(netboot, board)}{more} {dom0_options}".rstrip()
    return _entry(f"under-test: {title}", ENTRY_IDS["under-test"], "t", "/board/under-test/xen.gz", options, dom0)


def _dom0(netboot: NetbootSpec, board: BoardSpec) -> str:
    """The command line that firmware/image/initrd-init reads."""
    nic, served = board.nics["management"], f"http://{netboot.server}"
    words = [f"root={served}/image/root.squashfs", f"xenlab.mac={nic.mac}", f"xenlab.address={nic.address}"]
    words += [f"xenlab.overlay={served}/board/identity.tar", "console=hvc0 net.ifnames=0", board.dom0_options]
    return " ".join(words).rstrip()


def _entry(title: str, name: str, hotkey: str, xen: str, options: str, dom0: str) -> str:
    return f"""\
menuentry "{title}" --id {name} --hotkey={hotkey} {{
    multiboot2 {xen} {options}
    module2 /image/vmlinuz {dom0}
    module2 --nounzip /image/initrd
}}
"""


def _owned_by_root(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = "root"
    return member


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=60, check=False, env=processes.environment()
        )
    except FileNotFoundError as error:
        raise BenchError(f"{command[0]} is not installed; `xenlab doctor` says what is missing") from error
    if done.returncode:
        raise BenchError(f"{command[0]} ended with status {done.returncode}: {done.stderr[-400:]}")
