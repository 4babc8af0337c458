"""The proof that a board runs what was wanted: the running hypervisor itself is asked."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from lab.inventory import BoardSpec
from lab.provision.wanted import HYPERVISOR, TOOLS, Wanted, digest_of
from lab.results.record import Evidence


@dataclass(frozen=True, slots=True)
class Proof:
    """What a running board said of itself, held against what was wanted."""

    board: str
    time: float
    said: str
    mismatches: tuple[str, ...]
    boot_id: str = ""  # of dom0's Linux
    is_the_build: bool = False  # the build under test runs, if perhaps with other options or beside other payloads
    build_id: str = ""  # of the Xen that runs as the build under test; "" of the known-good one

    def as_evidence(self) -> Evidence:
        verdict = "; ".join(self.mismatches) or "as wanted"
        return Evidence("provision", f"{self.board}: {verdict}", self.said, self.time, self.board)


def prove(run: Callable[[str], str], board: BoardSpec, wanted: Wanted) -> Proof:
    """Ask the board what runs on it. ``run`` executes a shell command in dom0 and gives its output.

    The build id of the running Xen must be that of the build file; one that has none is told by its version and
    by the checksum of the file it was booted from. The kernel must be the one that the boot entry names, the running
    xenstored that of the toolstack which fits the hypervisor, and each file what was copied.
    """
    build, checksums, is_the_build, running = wanted.build, wanted.checksums(), False, ""
    said = parse(text := run(_ask(checksums)))
    wrong = []

    def expect(what: str, found: str, right: str) -> None:
        if found != right:
            wrong.append(f"{what} is {found or 'not told'}, not {right}")

    if "xenlab.entry=under-test" not in said.get("dom0_cmdline", "").split():
        wrong.append("the known-good entry runs, not the one under test")
    else:
        running = said.get("build_id", "")
        if build.build_id:
            expect("build id of the running Xen", said.get("build_id", ""), build.build_id)
        else:
            expect("version of the running Xen", said.get("xen_version", ""), build.version)
        expect("dom0's kernel", said.get("release", ""), said.get("entry_kernel", said.get("release", "")))
        if build.tools:
            own = f"{TOOLS}/{build.key}/bin"
            expect("tools_xl, the xl for the running Xen,", said.get("tools_xl", ""), checksums[f"{own}/xl"])
            expect("the running xenstored", said.get("tools_xenstored", ""), checksums[f"{own}/xenstored"])
        expect("checksum of the hypervisor on disk", said.get(f"/{HYPERVISOR}", ""), build.sha256)
        is_the_build = not wrong
        expect("Xen's command line", said.get("xen_commandline", ""), wanted.command_line(board))
        if others := [name for name, checksum in checksums.items() if said.get(f"/{name}", "") != checksum]:
            wrong.append(f"{len(others)} of {len(checksums)} files are not what was copied, /{others[0]} for one")
        expect("what was deployed", said.get("deployed", ""), digest_of(wanted.options(board), checksums))
    return Proof(board.name, time.time(), text, tuple(wrong), said.get("boot_id", ""), is_the_build, running)


def parse(text: str) -> dict[str, str]:
    """``key : value`` lines, as ``xl info`` has them; the first of each key."""
    said: dict[str, str] = {}
    for line in text.splitlines():
        key, colon, value = line.partition(":")
        if colon:
            said.setdefault(key.strip(), value.strip())
    return said


def _ask(names: Iterable[str]) -> str:
    """What is run in dom0 for the proof: it prints ``key : value`` lines."""
    sums = 'sha256sum %s 2>/dev/null | while read -r sum name; do echo "%s : $sum"; done'
    return "\n".join(
        (
            "xl info",
            "echo boot_id : $(cat /proc/sys/kernel/random/boot_id)",
            "echo dom0_cmdline : $(cat /proc/cmdline)",
            "echo deployed : $(cat /var/lib/xenlab/deployed 2>/dev/null)",
            # A board that boots by network has no such file: its kernel is the one that is served with the root.
            "sed -n 's,.*module2 /boot/vmlinuz-\\([^ ]*\\).*,entry_kernel : \\1,p' /boot/grub/custom.cfg 2>/dev/null",
            "read -r major </sys/hypervisor/version/major; read -r minor </sys/hypervisor/version/minor",
            "tools=/usr/lib/xen-$major.$minor/bin",
            # Debian knows the version of its own; what covers its folder for this boot names itself by its place.
            'echo tools : $(sed -n "s,^[^ ]* [^ ]* [^ ]* \\([^ ]*\\) /usr/lib/xen-$major.$minor .*,\\1,p" '
            "/proc/self/mountinfo) $(dpkg-query -W -f '${Package} ${Version}' xen-utils-$major.$minor 2>/dev/null)",
            sums % ("$tools/xl", "tools_xl"),
            sums % ("/proc/$(pidof xenstored)/exe", "tools_xenstored"),
            "grep -q xenlab.entry=under-test /proc/cmdline || exit 0",
            sums % (" ".join(shlex.quote(f"/{name}") for name in names), "$name"),
        )
    )
