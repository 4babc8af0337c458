"""Where a console's bytes come from: a BMC's SOL or SSH, a TCP or telnet port, an RFC 2217 server, a serial device."""

from __future__ import annotations

from lab.base.errors import UsageError
from lab.console.sources.base import POLL, Source, SourceLost, SourceRefused
from lab.console.sources.serial_line import SerialSource
from lab.console.sources.sol import SolSource
from lab.console.sources.ssh import SshSource
from lab.console.sources.tcp import TcpSource
from lab.inventory import BmcSpec, ConsoleSpec

__all__ = ["POLL", "SerialSource", "SolSource", "Source", "SourceLost", "SourceRefused", "SshSource", "TcpSource", "of"]


def of(console: ConsoleSpec, bmc: BmcSpec) -> Source:
    """The source this console is read from.

    :raises UsageError: the console's description lacks something.
    """
    if console.via == "sol":
        if bmc.protocol != "ipmi":
            raise UsageError(f"console.via sol needs a BMC that speaks ipmi, not {bmc.protocol}")
        return SolSource(bmc)
    if console.via == "device":
        if not console.device:
            raise UsageError("console.via device needs console.device")
        return SerialSource(console.device, console.speed)
    if not console.host or not console.port:
        raise UsageError(f"console.via {console.via} needs console.host and console.port")
    if console.via == "ssh":
        return SshSource(console)
    if console.via == "tcp":
        return TcpSource(console.host, console.port)
    if console.via == "telnet":
        from lab.console.sources.telnet import TelnetSource  # telnetlib3 takes memory, and few recorders need it

        return TelnetSource(console.host, console.port)
    # DTR and RTS are set, and no answer is waited for: a line without modem control (an adapter, ser2net on one) gives
    # none, and pyserial would take that for a dead server.
    return SerialSource(f"rfc2217://{console.host}:{console.port}?ign_set_control", console.speed)
