"""The power of a board at a host: its BMC and its outlet are spoken to there, by the same code as here.

Each object has a command of xenlab at the host, which it starts when it is first asked something. The credential goes
there on its standard input; it is in no argument and in no file there.
"""

from __future__ import annotations

import json
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import IO, Any

from lab.base import credentials, errors
from lab.base.errors import BenchError, BmcUnreachable, LabError, UsageError
from lab.bmc import Bmc, Readings
from lab.grid.host_lines import HELLO, HostAway, Lines, Login, PowerOf, Remote, await_link, encoded
from lab.inventory import BmcSpec, HostSpec, PduSpec

ANSWER = 900.0  # seconds; a BMC whose mains were cut takes four minutes to start, each way
_POLL = 0.2  # seconds between two looks at a proof of power
_PLAIN = (str, int, float, bool, type(None))


class HostPower:
    """A :class:`~lab.bmc.Bmc` at a host. Its errors are those of the BMC; a host that is away is one not reached."""

    def __init__(self, board: str, host: HostSpec, spec: BmcSpec, pdu: PduSpec | None) -> None:
        """:raises UsageError: no such credential, or neither a BMC nor an outlet."""
        has_bmc = spec.protocol != "none"
        if not has_bmc and pdu is None:
            raise UsageError(f"{board}: has neither a BMC nor an outlet")
        self.board, self._host, self._spec, self._pdu = board, host, spec, pdu
        self._login = credentials.lookup(spec.credential) if has_bmc else None
        self._lock = threading.Lock()
        self._remote: Remote | None = None
        self._end: Callable[[], object] = lambda: None

    @property
    def remarks(self) -> tuple[str, ...]:
        return tuple(self._ask("remarks")) if self._remote else ()

    def is_powered(self) -> bool:
        return bool(self._ask("is_powered"))

    def power_on(self, timeout: float = 30.0, *, proof: Callable[[], bool] | None = None) -> None:
        self._ask("power_on", timeout=timeout, proof=proof)

    def power_off(self, timeout: float = 30.0) -> None:
        self._ask("power_off", timeout=timeout)

    def cycle(self, timeout: float = 30.0) -> None:
        self._ask("cycle", timeout=timeout)

    def reset(self) -> None:
        self._ask("reset")

    def soft_off(self) -> None:
        self._ask("soft_off")

    def press_power_button(self) -> None:
        self._ask("press_power_button")

    def nmi(self) -> None:
        self._ask("nmi")

    def set_boot_device(self, device: str, *, once: bool = True) -> None:
        self._ask("set_boot_device", device=device, once=once)

    def boot_device(self) -> str:
        return str(self._ask("boot_device"))

    def sleep_state(self) -> str:
        return str(self._ask("sleep_state"))

    def clock(self) -> datetime:
        return datetime.fromisoformat(self._ask("clock"))

    def sensors(self) -> Readings:
        told = self._ask("sensors")
        readings = Readings(told["readings"])
        readings.unread = tuple(told["unread"])
        return readings

    def info(self) -> Mapping[str, str]:
        return dict(self._ask("info"))

    def _ask(self, what: str, *, proof: Callable[[], bool] | None = None, **arguments: object) -> Any:
        """What the host's answer says; it raises what was raised there."""
        request = {"call": what, "arguments": arguments, "has_proof": proof is not None}
        with self._lock:
            try:
                remote = self._connected()
                remote.send(json.dumps(request).encode() + b"\n")
                answer = json.loads(self._answer(remote, proof))
            except (HostAway, ValueError) as error:
                self._drop()
                await_link(self._host)
                raise BmcUnreachable(self.board, f"{self._what()}: {error}") from None
        if "error" in answer:
            raise _error(answer, self._host.name)
        return answer["value"]

    def _what(self) -> str:
        """What the host was to speak to."""
        if self._spec.protocol != "none":
            return f"BMC {self._spec.host}:{self._spec.port}"
        assert self._pdu
        return f"PDU {self._pdu.model} {self._pdu.host} outlet {self._pdu.outlet}"

    def _answer(self, remote: Remote, proof: Callable[[], bool] | None) -> bytes:
        deadline = time.monotonic() + ANSWER
        while time.monotonic() < deadline:
            line = remote.next(_POLL)
            if line is not None:
                return line
            if proof and proof():
                remote.send(PROVED)
                proof = None
        raise HostAway(f"host {self._host.name}: no answer for {ANSWER:.0f} s")

    def _connected(self) -> Remote:
        """:raises HostAway: it cannot be had."""
        if self._remote and self._remote.is_there(0.0):
            self._drop()  # it has ended since: nothing is due between two requests
        if self._remote is None:
            errors_of = tempfile.TemporaryFile()
            remote = Remote(self._host, errors_of, "power")
            self._remote, self._end = remote, weakref.finalize(self, _end, remote, errors_of)
            remote.greet(HELLO)
            login = Login(self._login.user, self._login.password) if self._login else None
            certificate = Path(self._spec.ca_file).read_text(encoding="ascii") if self._spec.ca_file else ""
            remote.send(encoded(PowerOf(self.board, self._spec, self._pdu, login, certificate)))
        return self._remote

    def _drop(self) -> None:
        self._end()
        self._remote = None


PROVED = b'{"proved": true}\n'


def _end(remote: Remote, errors_of: IO[bytes]) -> None:
    remote.close()
    errors_of.close()


def answer(lines: Lines, make: Callable[[], Bmc], write: Callable[[bytes], None]) -> None:
    """At the host: do what is asked, one request after the other, until there are no more."""
    control: Bmc | None = None
    with suppress(EOFError):
        while True:
            line = lines.next(3600.0)
            if not line or line + b"\n" == PROVED:  # the proof came too late for its command
                continue
            try:
                control = control or make()
                told = _answered(control, json.loads(line), lines)
            except LabError as error:
                values = {name: value for name, value in vars(error).items() if isinstance(value, _PLAIN)}
                told = {"error": type(error).__name__, "text": str(error), "values": values}
            write(json.dumps(told).encode() + b"\n")


def _answered(control: Bmc, request: Mapping[str, Any], lines: Lines) -> dict[str, object]:
    """:raises LabError: what the BMC raises."""
    arguments = dict(request["arguments"])
    if request["has_proof"]:
        arguments["proof"] = lambda: lines.has_one(0.0)
    found = getattr(control, request["call"])
    value = found(**arguments) if callable(found) else found
    if isinstance(value, Readings):
        return {"value": {"readings": value, "unread": value.unread}}
    return {"value": value.isoformat() if isinstance(value, datetime) else value}


def _error(told: Mapping[str, Any], host: str) -> LabError:
    """The error that was raised at the host; its text says where."""
    text = f"{told['text']} (at host {host})"
    kind = getattr(errors, str(told["error"]), None)
    if not (isinstance(kind, type) and issubclass(kind, LabError)):
        return BenchError(text)
    error: LabError = kind.__new__(kind)
    error.args = (text,)
    for name, value in told["values"].items():
        if not name.startswith("_"):
            setattr(error, name, value)
    return error
