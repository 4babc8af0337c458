"""A domain (guest): its xl configuration, its life, and what it prints on its console."""

from __future__ import annotations

import contextlib
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from lab.base.errors import BenchError, MissingCapability, ProductFailure, ProductTimeout, ToolstackFailed
from lab.grid.ssh import CommandResult, until
from lab.on_board.poke import POKE
from lab.results.record import GuestConsole
from lab.xen.dom0 import Dom0
from lab.xen.payloads import Heartbeat, PayloadLine, parse_line

CONSOLE_DIR = "/var/log/xen/console"
_DETAIL = re.compile(r": (debug|detail): |^xencall:buffer: ")  # of `xl -vvv`, which hide what went wrong
_LAST_BEAT = '{ i = index($0, "XL HB ") } i { n = int(substr($0, i + 6)) } END { print n + 0 }'  # awk; its number


@dataclass(frozen=True, slots=True)
class DomainConfig:
    """What ``xl create`` reads. Paths are paths on the board."""

    name: str
    kind: Literal["pv", "pvh", "hvm"]
    kernel: str = ""
    ramdisk: str = ""
    memory_mib: int = 16
    vcpus: int = 1
    cmdline: str = ""
    pci: tuple[str, ...] = ()
    more: Mapping[str, str] = field(default_factory=dict)  # further xl.cfg lines: key -> value as written
    files: Mapping[str, str] = field(default_factory=dict)  # further files it needs: path on the board -> text
    system: str | None = None  # the Linux that it runs, a name of lab.xen.payloads.LINUXES; None: a small program

    def text(self) -> str:
        """The xl.cfg(5) file."""
        lines = [
            f'name = "{self.name}"',
            f'type = "{self.kind}"',
            f"memory = {self.memory_mib}",
            f"vcpus = {self.vcpus}",
        ]
        if self.kernel:
            lines += [f'kernel = "{self.kernel}"', f'extra = "{self.cmdline}"']
        if self.ramdisk:
            lines.append(f'ramdisk = "{self.ramdisk}"')
        if self.pci:
            lines.append("pci = [ " + ", ".join(f'"{device}"' for device in self.pci) + " ]")
        ends = {"on_crash": '"preserve"', "on_poweroff": '"destroy"'}
        lines += [f"{key} = {value}" for key, value in {**ends, **self.more}.items()]
        return "\n".join(lines) + "\n"


class Domain:
    """One guest on one host. After a migration :meth:`on` is the same guest on the other host."""

    def __init__(self, host: Dom0, config: DomainConfig) -> None:
        self.host = host
        self.config = config
        self.name = config.name
        self.builder_output = ""  # what `xl -vvv create` printed: page orders, ELF notes

    def __repr__(self) -> str:
        return f"<Domain {self.name} on {self.host.name}>"

    def create(self, *, paused: bool = False, timeout: float = 75.0) -> CommandResult:
        """``xl -vvv create``. ``timeout``: seconds, more than libxl itself waits for a device model.

        :raises ToolstackFailed: xl refused; the message has the end of what xl printed.
        :raises ProductTimeout: xl did not end in time.
        """
        path = f"/run/xenlab/{self.name}.cfg"
        flag = "-p " if paused else ""
        files = {path: self.config.text(), **self.config.files}
        writes = "".join(f"printf %s {shlex.quote(text)} > {shlex.quote(file)} && " for file, text in files.items())
        command = f"mkdir -p /run/xenlab && {writes}xl -vvv create {flag}{path}"
        with self.host.phase("create"):
            result = self.host.toolstack(command, timeout=timeout, what=f"xl create {self.name}")
        self.builder_output = result.stdout + result.stderr
        if result.status:
            said = [line for line in self.builder_output.splitlines() if not _DETAIL.search(line)]
            raise ToolstackFailed(self.host.name, f"xl create {self.name}", result.status, "\n".join(said))
        return result

    @contextlib.contextmanager
    def saved(self, *, keep_running: bool = False) -> Iterator[str]:
        """Within the block the guest is in a file of dom0, for :meth:`restore`, and nowhere else unless it is to
        keep running. Yields the path.

        :raises ToolstackFailed: ``xl save`` failed.
        """
        path = f"/var/tmp/{self.name}.saved"
        try:
            self.host.xl("save", *(["-c"] if keep_running else []), self.name, path, timeout=180)
            yield path
        finally:
            self.host.run(f"rm -f {shlex.quote(path)}")

    def restore(self, path: str) -> CommandResult:
        """``xl restore``. :raises ToolstackFailed: xl failed."""
        return self.host.xl("restore", path, timeout=180)

    def destroy(self) -> None:
        """Destroy it; no error when it is not there."""
        self.host.run(f"xl destroy {shlex.quote(self.name)} 2>/dev/null; true", timeout=60)

    def on(self, host: Dom0) -> Domain:
        """The same guest seen on another host, after a migration."""
        return Domain(host, self.config)

    def domid(self) -> int:
        """Its number, which changes by a migration or a restart. :raises ToolstackFailed: it is not there."""
        return int(self.host.xl("domid", self.name).stdout)

    @property
    def is_there(self) -> bool:
        """Whether xl lists it."""
        return self.name in self.host.domains()

    def table_pages(self) -> int:
        """Pages of 4 KiB that its paging tables take: one for each 2 MiB that no single entry maps, and a few more.

        :raises MissingCapability: Xen does not report it (before 4.17), or a PV guest has no such tables.
        """
        said = self.host.run(f"{POKE} tables {self.domid()}").stdout.strip()
        if not said.isdigit():
            raise MissingCapability(self.host.name, f"a count of paging tables ({said})")
        return int(said)

    # -- console ---------------------------------------------------------------------------------------------

    def _logs(self) -> str:
        """Arguments of ``cat`` that print all the guest said on this host; the log that grew last comes last."""
        files = " ".join(f"{CONSOLE_DIR}/guest-{shlex.quote(name)}.log" for name in self.host.log_names(self.name))
        return f"/dev/null $(ls -tr {files} 2>/dev/null)"

    def console(self) -> list[str]:
        """All lines that the guest printed on this host (xenconsoled's log)."""
        text = self.host.run(f"cat {self._logs()} 2>/dev/null; true").stdout
        return text.replace("\r", "").splitlines()  # a PV shim begins lines with it

    def printed(self) -> GuestConsole:
        """:meth:`console`, to be kept beside a verdict."""
        return GuestConsole(self.host.name, self.name, self.config.kind, self.config.system, tuple(self.console()))

    def wait_for(self, pattern: str, timeout: float, *, after: int = 0) -> str:
        """Wait for a console line that matches the extended regular expression; the first one.

        ``after`` skips so many lines.

        :raises ProductTimeout: no line matched within ``timeout`` seconds, or more on a slow board
            (:meth:`lab.xen.dom0.Dom0.limits`); carries the last lines.
        """
        lines = f"cat {self._logs()} 2>/dev/null | tail -n +{after + 1} | tr -d '\\r'"
        result, waited = self._wait(f"{lines} | grep -m1 -aE {shlex.quote(pattern)}", timeout)
        if result.status:
            last = "\n".join(self.console()[-8:])
            raise ProductTimeout(f"{self.name} on {self.host.name}: /{pattern}/", waited, last)
        return result.stdout.strip("\r\n")

    def _wait(self, condition: str, timeout: float) -> tuple[CommandResult, float]:
        """Have dom0 wait until ``condition`` has status 0; the result, and the seconds waited."""
        waited = 0.0
        with self.host.phase("wait"):
            for seconds in self.host.limits(timeout):
                waited += seconds
                result = self.host.run(until(condition, seconds), timeout=seconds + 30, check=False)
                if not result.status:
                    break
        return result, waited

    def payload_lines(self) -> list[PayloadLine | Heartbeat]:
        """What the payload has reported so far."""
        return [parsed for line in self.console() if (parsed := parse_line(line)) is not None]

    def results(self, timeout: float = 30.0) -> dict[str, PayloadLine]:
        """Wait for the payload's final line; its results by case.

        :raises ProductTimeout: no final line within ``timeout`` seconds.
        :raises ProductFailure: the payload faulted, or could not go on; carries its last line.
        """
        last = self.wait_for(r"^XL (done|trap|window|start) ", timeout)
        if not last.startswith("XL done"):
            raise ProductFailure(f"{self.name} on {self.host.name}: {last}")
        return {line.case: line for line in self.payload_lines() if isinstance(line, PayloadLine)}

    def heartbeats(self) -> list[Heartbeat]:
        """All heartbeats on this host, in order."""
        return [line for line in self.payload_lines() if isinstance(line, Heartbeat)]

    def beats(self, more: int = 3, timeout: float = 20.0) -> Heartbeat:
        """Wait for ``more`` heartbeats from now on; the last one.

        :raises ProductTimeout: they did not come within ``timeout`` seconds; carries the last one.
        """
        last = f"awk '{_LAST_BEAT}' {self._logs()}"
        wanted = int(self.host.run(last).stdout) + more  # asked once: those that came late count, too
        result, waited = self._wait(f"[ $({last}) -ge {wanted} ]", timeout)
        beats = self.heartbeats()
        if result.status or not beats:
            seen = f"beat {beats[-1].n}" if beats else "no heartbeat at all"
            raise ProductTimeout(f"{self.name} on {self.host.name}: {more} more heartbeats", waited, seen)
        return beats[-1]


def assert_unbroken(beats: list[Heartbeat]) -> None:
    """No heartbeat is lost or doubled. :raises AssertionError: names the first one that is."""
    for before, after in zip(beats, beats[1:], strict=False):
        assert after.n == before.n + 1, f"heartbeat {before.n} is followed by {after.n}"


def numbers(detail: str) -> dict[str, int]:
    """The ``KEY=NUMBER`` words of a payload's detail, decimal or 0x: ``{"pages": 512, "high": 0x13ffff}``."""
    found = re.findall(r"\b(\w+)=(-?(?:0x[0-9a-f]{1,32}|\d{1,40}))\b", detail)
    return {key: int(value, 16 if "0x" in value else 10) for key, value in found}


_ALLOCATION = re.compile(r"^.*?\b(4KB|2MB|1GB) PAGES: (0x[0-9a-f]+)", re.MULTILINE)


def page_orders(builder_output: str) -> dict[str, int]:
    """Extents that the domain builder allocated, by size: ``{"4KB": 512, "2MB": 60, "1GB": 0}``.

    Source: tools/libs/guest/xg_dom_x86.c, meminit_hvm. PV guests print none.

    :raises BenchError: the output has no summary of them (xl was not run with -vvv).
    """
    found = {size: int(count, 16) for size, count in _ALLOCATION.findall(builder_output)}
    if not found:
        raise BenchError("xl's output has no PHYSICAL MEMORY ALLOCATION summary")
    return found


_NODE_FREE = re.compile(r"\bNODE(\d+) start->\d+ size->\d+ free->(\d+)")


def nodes_free(dump: str) -> dict[int, int]:
    """Free pages of each NUMA node, read from the output of debug key ``u`` (xen/arch/x86/numa.c, dump_numa)."""
    return {int(node): int(pages) for node, pages in _NODE_FREE.findall(dump)}


def node_pages(dump: str, domid: int) -> dict[int, int]:
    """A domain's pages on each NUMA node, read from the output of debug key ``u`` (xen/arch/x86/numa.c, dump_numa).

    :raises BenchError: the output does not have the domain.
    """
    head = re.search(rf"(?:Domain |\bd){domid} \(total: \d+\):", dump)
    if head is None:
        raise BenchError(f"the output of debug key u does not have d{domid}: {dump[-300:]}")
    rest = re.split(r"\(total: \d+\):", dump[head.end() :])[0]
    return {int(node): int(pages) for node, pages in re.findall(r"\bNode (\d+): (\d+)", rest)}


def assert_unhurt(*guests: Domain) -> None:
    """No guest has reported a failure on its host. :raises AssertionError: names the first one that has."""
    for guest in guests:
        for line in guest.payload_lines():
            is_bad = isinstance(line, PayloadLine) and line.outcome == "FAIL"
            assert not is_bad, f"{guest.name} on {guest.host.name}: {line}"
