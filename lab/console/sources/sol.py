"""Serial over LAN of a BMC that speaks IPMI."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import time

from lab.base import processes
from lab.console.sources.base import SourceLost, reason
from lab.console.sources.program import ProgramSource
from lab.inventory import BmcSpec

_DEACTIVATE_TIMEOUT = 25.0
# ipmitool's own keepalive proves the BMC alive, not that the session still carries the console: it does not
# notice when somebody else deactivates it. So the BMC is asked whenever nothing came for this many seconds.
# (Its other keepalive, by empty SOL packets, does not keep ipmi_sim 2.0.33 from ending an idle session.)
ASK_AFTER = 30.0
_ASK = ("raw", "0x06", "0x4a", "0x01")  # IPMI v2.0 section 24.4, Get Payload Activation Status, of SOL

# As everywhere in this project: the first wait is longer than a loaded BMC takes to answer.
_PATIENT = ("-N", "3", "-R", "2")
# ipmitool obeys commands in what it is sent: this character and another after a newline. 0xFF is never part
# of UTF-8 text, and where C's char is signed ipmitool 1.8.19 does not even recognise it.
_ESCAPE = b"\xff"
_BANNER = re.compile(rb"\[SOL Session operational\.[^\]]*\]\r?\n?")


class SolSource(ProgramSource):
    """Serial over LAN, by ``ipmitool``."""

    _banner = _BANNER

    def __init__(self, bmc: BmcSpec, *, ask_after: float = ASK_AFTER) -> None:
        super().__init__(f"sol {bmc.host}:{bmc.port}", bmc.credential)
        self._bmc, self._ask_after = bmc, ask_after
        self._question: subprocess.Popen[bytes] | None = None
        self._ask_at = 0.0

    def open(self) -> None:
        command, environment = self._ipmitool()
        self._deactivate(command, environment)
        self._ask_at = time.monotonic() + self._ask_after
        self._start([*command, "-e", os.fsdecode(_ESCAPE), "sol", "activate"], environment)

    def read(self) -> bytes:
        data = super().read()
        if data:
            self._ask_at = time.monotonic() + self._ask_after
        else:
            self._check_session()
        return data

    def close(self) -> None:
        super().close()
        self._end_question()

    def _explained(self, said: list[str]) -> SourceLost:
        return SourceLost(f"{self._name}: {said[0]}")

    def _ipmitool(self) -> tuple[list[str], dict[str, str]]:
        """The beginning of each command, and its environment."""
        bmc = self._bmc
        credential = self._credential()
        # IPMITOOL_PASSWORD must not be among them: with -E it would win over IPMI_PASSWORD.
        environment = processes.environment() | {"IPMI_PASSWORD": credential.password, "LC_ALL": "C"}
        where = ("-I", "lanplus", "-C", str(bmc.cipher), "-H", bmc.host, "-p", str(bmc.port))
        return ["ipmitool", *where, "-U", credential.user, "-E", *_PATIENT], environment

    def _deactivate(self, command: list[str], environment: dict[str, str]) -> None:
        """End a session that was not closed, ours or another's: a console has one reader."""
        try:
            done = subprocess.run(
                [*command, "sol", "deactivate"],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=_DEACTIVATE_TIMEOUT,
                env=environment,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise SourceLost(f"{self._name}: `sol deactivate` did not end") from None
        except OSError as error:
            raise SourceLost(f"{self._name}: ipmitool: {reason(error)}") from None
        said = done.stderr.decode(errors="replace").strip()
        if done.returncode and "Unable to establish" in said:
            raise SourceLost(f"{self._name}: {said.splitlines()[-1]}")

    def _check_session(self) -> None:
        """Ask the BMC now and then whether SOL is active; no answer means nothing, ipmitool sees to that."""
        if self._question is None:
            if time.monotonic() < self._ask_at:
                return
            command, environment = self._ipmitool()
            with contextlib.suppress(OSError):
                self._question = subprocess.Popen(
                    [*command, *_ASK],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    env=environment,
                )
            self._ask_at = time.monotonic() + self._ask_after
        elif self._question.poll() is not None:
            said = self._end_question().split()
            # Instances there can be, then a bit for each that is active. ipmitool asks for the first one.
            if len(said) >= 2 and not int(said[1], 16) & 1:
                raise SourceLost(f"{self._name}: the session was ended by somebody else")

    def _end_question(self) -> bytes:
        question, self._question = self._question, None
        if question is None:
            return b""
        if question.poll() is None:
            question.kill()
        return question.communicate()[0]
