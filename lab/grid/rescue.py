"""What a board's serial console tells when its dom0 does not answer over SSH.

First a login on the console is tried (pexpect over labgrid's SerialDriver), then Xen's debug keys behind ``conswitch``,
and when even Xen does not answer, the BMC's diagnostic interrupt (NMI). After a crash: what the kdump kernel has left.
"""

from __future__ import annotations

import logging
import re
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pexpect

from lab.base import credentials
from lab.base.errors import LabError, UsageError, WaitTimeout
from lab.base.wait import wait_until
from lab.grid import pulse
from lab.results.record import Evidence

if TYPE_CHECKING:
    from labgrid.driver import SerialDriver

    from lab.grid.board import Board

log = logging.getLogger(__name__)

LOGIN_LIMIT = 15.0  # seconds to a prompt
# Interrupts are printed twice: the difference shows which of them still come.
COMMANDS = (
    "uptime; timeout 5 xl list; ip -br addr; ip -s link; ps -e | grep -c sshd; cat /proc/interrupts; "
    "dmesg | tail -n 15; timeout 5 xl dmesg | tail; sleep 3; cat /proc/interrupts"
)
COMMAND_LIMIT = 30.0
NO_ANSWER = "no answer"
PROMPT = "xenlab-rescue# "
# Registers of each CPU, run queues, domains, memory, event channels, MSIs: each key, and what its handler says first
# (xen/common: keyhandler.c, sched/cpupool.c, page_alloc.c, event_channel.c; xen/arch/x86/msi.c).
KEYS = {
    b"d": "'d' pressed",
    b"r": "NOW=",
    b"q": "'q' pressed",
    b"m": "Physical memory information",
    b"e": "'e' pressed",
    b"M": "MSI information",
}
KEYS_LIMIT = 10.0
NMI_LIMIT = 10.0  # a fatal one prints registers and stacks, on a slow line


@dataclass(frozen=True, slots=True)
class Rescue:
    """What was learnt about a board whose dom0 does not answer."""

    evidence: tuple[Evidence, ...]
    pulse: pulse.Pulse
    after_nmi: tuple[str, ...] | None = None  # console lines that followed an NMI; None: none was sent

    @property
    def loss(self) -> str | None:
        """How the host was lost, after "the host"; None: it was not, or its power or its recorder may be why."""
        return self.pulse.loss if self.pulse.is_powered else None


def collect(board: Board, *, interrupt: bool = False) -> Rescue:
    """Take the board's pulse, log in on its console and look around, then ask Xen itself.

    A console on which nobody answers is not asked further. It takes at most two minutes, mostly half a minute. Nothing
    is raised: the evidence says what failed.

    :param interrupt: the board is lost anyway. If Xen does not answer, the board gets an NMI: a debug build then prints
        where each CPU is, and dies.
    """
    felt = pulse.take(board)
    if felt.voice is pulse.Voice.SILENT and felt.is_powered is not False:
        felt = pulse.take(board)  # a machine that is slow, or about to boot, has something to say by now
    found = [felt.as_evidence()]
    said: tuple[str, ...] | None = None
    if felt.voice in (pulse.Voice.SILENT, pulse.Voice.LOST):
        if interrupt and felt.voice is pulse.Voice.SILENT and felt.is_powered is not False:
            said = nmi(board)
            found.append(_after_nmi(board, said))
        return Rescue(tuple(found), felt, said)
    serial = board.target.get_driver("SerialDriver", activate=False)
    try:
        board.target.activate(serial)
        for title, ask in (("dom0, over the console", _ask_dom0), ("Xen's debug keys, over the console", _ask_xen)):
            try:
                answer: str | None = ask(serial, board.spec.bmc.credential)
            except pexpect.TIMEOUT:
                answer = None
            found.append(Evidence("console", title, answer or NO_ANSWER, time.time(), board.name))
        if interrupt and answer is None:
            said = nmi(board)
            found.append(_after_nmi(board, said))
    except (pexpect.EOF, OSError) as error:
        found.append(Evidence("console", "console", f"cannot be written to: {error}", time.time(), board.name))
    finally:
        board.target.deactivate(serial)
    return Rescue(tuple(found), felt, said)


def _ask_dom0(serial: SerialDriver, credential: str) -> str:
    """Log in as root, run :data:`COMMANDS` and log out. The password is the credential ``CREDENTIAL-console``."""
    serial.sendline("")
    deadline = time.monotonic() + LOGIN_LIMIT
    while time.monotonic() < deadline:
        index, *_ = serial.expect([r"login: ?$", r"[Pp]assword: ?$", r"[#$] ?$"], timeout=LOGIN_LIMIT)
        if index == 0:
            serial.sendline("root")
        elif index == 1:
            try:
                serial.sendline(credentials.lookup(f"{credential}-console").password)
            except UsageError:
                return f"the console asks for root's password; there is no credential {credential}-console"
        else:
            break
    else:
        raise pexpect.TIMEOUT("login")
    serial.sendline(f"stty -echo; PS1='{PROMPT[:6]}''{PROMPT[6:]}'")  # its echo is not the prompt
    serial.expect(PROMPT, timeout=COMMAND_LIMIT)
    serial.sendline(COMMANDS)
    _, before, *_ = serial.expect(PROMPT, timeout=COMMAND_LIMIT)
    serial.sendline("exit")
    return _text(before)


def _ask_xen(serial: SerialDriver, credential: str) -> str:
    serial.write(pulse.SWITCH)
    serial.expect("Serial input to Xen", timeout=KEYS_LIMIT)
    said = b""
    for key, first in KEYS.items():
        serial.write(key)
        try:
            _, before, _, after = serial.expect(rf"\n\(XEN\) [^\n]*{first}", timeout=KEYS_LIMIT)
            said += before + after
        except pexpect.TIMEOUT:
            break
    serial.write(pulse.SWITCH)
    try:
        _, before, *_ = serial.expect("Serial input to DOM0", timeout=KEYS_LIMIT)
        said += before
    except pexpect.TIMEOUT:
        pass
    return _text(said)


def _after_nmi(board: Board, said: tuple[str, ...] | None) -> Evidence:
    body = "the BMC sends none" if said is None else "\n".join(said)[-6000:] or "nothing"
    return Evidence("console", "after an NMI from the BMC", body, time.time(), board.name)


def dump(board: Board, *, since: float, directory: str = "/var/crash") -> Evidence:
    """Wait until a crashed board's kdump kernel has written a dump and rebooted the board; list what it wrote.

    The wait is at most ``spec.kdump`` seconds, and nothing is raised. The dump itself stays on the board's disk.

    :param since: when the board crashed, by this machine's clock. Newer files in dom0's ``directory`` are the dump, in
        the layout of Debian's kdump-tools: one folder for each crash, with ``dump.*`` and ``dmesg.*`` in it.
    """
    started, limit = time.monotonic(), board.spec.kdump

    def is_back() -> bool:
        age = int(time.time() - since)
        if not board.is_reachable(5.0):
            return False
        done = board.run(f"[ $(cut -d. -f1 /proc/uptime) -le {age} ]", check=False)
        return bool(done.status == 0)

    try:
        wait_until(is_back, limit, f"{board.name} is back from its kdump kernel", interval=1.0, board=board.name)
        new = f"find . -mindepth 2 -type f -mmin -{int(time.time() - since) // 60 + 1}"
        last = f"{new} -name 'dmesg*' | sort | tail -n 1 | xargs -r tail -n 40"
        script = f"cd {directory} && {new} -exec ls -l {{}} + && {last}"
        said = str(board.run(script, check=False).stdout).strip() or f"nothing new in {directory}"
    except LabError as error:
        said = str(error)
    title = f"kdump, {time.monotonic() - started:.0f} s after the crash"
    return Evidence("command", title, said[-12000:], time.time(), board.name)


def nmi(board: Board) -> tuple[str, ...] | None:
    """Interrupt the board by its BMC, and give the lines that its console shows then. None: the BMC sends no NMI."""
    mark = board.console.mark()
    try:
        board.power.nmi()
        board.console.wait_for(r"NMI|FATAL TRAP", NMI_LIMIT, since=mark)
        board.console.wait_for(r"Reboot in|Manual reset required", NMI_LIMIT, since=mark)  # its last words
    except WaitTimeout:
        pass
    except LabError as error:  # it has none to send, or the BMC is gone, too
        log.info("%s: no NMI: %s", board.name, error)
        return None
    return tuple(line.text for line in board.console.lines(mark) if line.kind in ("line", "partial"))


def _text(raw: bytes) -> str:
    return re.sub(r"(?<!\r)\r+\n", "\n", raw.decode(errors="replace")).strip()[-40000:] or "nothing"
