"""Serial over LAN of a BMC that speaks IPMI."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import time
from dataclasses import replace

from lab.base.errors import BmcRefused, BmcUnreachable, CipherRefused, LoginRefused, PrivilegeRefused
from lab.bmc import ipmitool
from lab.console.sources.base import SourceLost, SourceRefused, reason
from lab.console.sources.program import ProgramSource
from lab.inventory import BmcSpec

_COMMAND_TIMEOUT = 40.0  # seconds; ipmitool gives a dead BMC up after 14
# ipmitool's own keepalive proves the BMC alive, not that the session still carries the console: it does not
# notice when somebody else deactivates it. So the BMC is asked whenever nothing came for this many seconds.
# (Its other keepalive, by empty SOL packets, does not keep ipmi_sim 2.0.33 from ending an idle session.)
ASK_AFTER = 30.0
_ASK = ("raw", "0x06", "0x4a", "0x01")  # IPMI v2.0 section 24.4, Get Payload Activation Status, of SOL

# ipmitool obeys commands in what it is sent: this character and another after a newline. 0xFF is never part
# of UTF-8 text, and where C's char is signed ipmitool 1.8.19 does not even recognise it.
_ESCAPE = b"\xff"
_BANNER = re.compile(rb"\[SOL Session operational\.[^\]]*\]\r?\n?")

# What ipmitool 1.8.19 says beside the reason, before it or behind it: lib/ipmi_strings.c, lanplus.c, ipmi_hpmfwupg.c.
_NOISE = re.compile(
    r"IANA PEN registry|Get Channel Cipher Suites|Get HPM\.x Capabilities|Close Session command failed|"
    r"already de-activated|SOL parameter '.*' not supported|tcgetattr:|IPMI Request Match NOT FOUND",
    re.IGNORECASE,
)
_REASON = re.compile(r"SOL (?:payload|session)|SOL parameters|SOL data", re.IGNORECASE)  # lib/ipmi_sol.c


class SolSource(ProgramSource):
    """Serial over LAN, by ``ipmitool``. A cipher suite that the inventory does not name is found out."""

    _banner = _BANNER

    def __init__(self, bmc: BmcSpec, *, ask_after: float = ASK_AFTER) -> None:
        super().__init__(f"sol {bmc.host}:{bmc.port}", bmc.credential)
        self._bmc = replace(bmc, interface="lanplus")  # IPMI 1.5 has no serial over LAN
        self._ciphers = ipmitool.suites(bmc)
        self._cipher = self._ciphers[0]
        self._ask_after = ask_after
        self._question: subprocess.Popen[bytes] | None = None
        self._ask_at = 0.0

    def open(self) -> None:
        credential = self._credential()
        self._end_other_session()
        self._ask_at = time.monotonic() + self._ask_after
        command = [*self._words(), *ipmitool.PATIENT, "-e", os.fsdecode(_ESCAPE), "sol", "activate"]
        self._start(command, ipmitool.environment(credential))

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

    def _end_other_session(self) -> None:
        """End a session that was not closed, ours or another's, since a console has one reader; find the cipher suite.

        :raises SourceLost: the BMC gives no session: why.
        """
        refusal: BmcRefused | None = None
        for cipher in self._ciphers:
            self._cipher = cipher
            started = time.monotonic()
            said = self._run(*ipmitool.PATIENT, "sol", "deactivate")
            if said is None or not ipmitool.is_without_session(said):
                return
            error = self._why(said, time.monotonic() - started)
            if not isinstance(error, CipherRefused):
                raise self._told(error)
            refusal = refusal or error
        self._cipher = self._ciphers[0]
        assert refusal
        raise self._told(refusal)

    def _why(self, said: str, seconds: float) -> BmcRefused | BmcUnreachable:
        """Why there was no session: mostly only ``-v`` tells, as a wrong password from a dead BMC."""
        if found := self._meant(said, is_verbose=False):
            return found
        pace = ipmitool.PATIENT if seconds < ipmitool.DEAD_AFTER else ipmitool.IMPATIENT
        more = self._run("-v", *pace, "mc", "info") or ""
        words = ipmitool.unknown_words(said)
        text = f"no session: {words}" if words else f"no answer from the BMC within {seconds:.0f} s"
        silence = BmcUnreachable(self._name, text)
        return self._meant(said + more, is_verbose=True) or silence

    def _meant(self, said: str, *, is_verbose: bool) -> BmcRefused | BmcUnreachable | None:
        assert self._tried
        return ipmitool.why_no_session(
            self._name, self._bmc, self._tried.user, self._cipher, said, is_verbose=is_verbose
        )

    def _told(self, error: BmcRefused | BmcUnreachable) -> SourceLost:
        kind = SourceRefused if isinstance(error, LoginRefused | PrivilegeRefused) else SourceLost
        return kind(f"{self._name}: {error.reason}")

    def _explained(self, said: list[str]) -> SourceLost:
        text = "\n".join(said)
        if ipmitool.is_without_session(text):
            return self._told(self._why(text, 0.0))
        telling = [line for line in said if not _NOISE.search(line)] or said
        reasons = [line for line in telling if _REASON.search(line)] or telling
        return SourceLost(f"{self._name}: {reasons[0]}")

    def _words(self) -> tuple[str, ...]:
        return ipmitool.words(self._bmc, self._credential(), self._cipher)

    def _run(self, *arguments: str) -> str | None:
        """What a command says when it fails, or None.

        :raises SourceLost: it cannot be run, or does not end.
        """
        try:
            done = subprocess.run(
                [*self._words(), *arguments],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=_COMMAND_TIMEOUT,
                env=ipmitool.environment(self._credential()),
                check=False,
            )
        except subprocess.TimeoutExpired:
            shown = " ".join(arguments[-2:])
            raise SourceLost(f"{self._name}: `{shown}` did not end within {_COMMAND_TIMEOUT:.0f} s") from None
        except OSError as error:
            raise SourceLost(f"{self._name}: ipmitool: {reason(error)}") from None
        return (done.stdout + done.stderr).decode(errors="replace") if done.returncode else None

    def _check_session(self) -> None:
        """Ask the BMC now and then whether SOL is active; no answer means nothing, ipmitool sees to that."""
        if self._question is None:
            if time.monotonic() < self._ask_at:
                return
            with contextlib.suppress(OSError):
                self._question = subprocess.Popen(
                    [*self._words(), *ipmitool.PATIENT, *_ASK],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    env=ipmitool.environment(self._credential()),
                )
            self._ask_at = time.monotonic() + self._ask_after
        elif self._question.poll() is not None:
            said = ipmitool.data(self._end_question().decode(errors="replace"))
            # Instances there can be, then a bit for each that is active. ipmitool asks for the first one.
            if len(said) >= 2 and not said[1] & 1:
                raise SourceLost(f"{self._name}: the session was ended by somebody else, or the BMC has restarted")

    def _end_question(self) -> bytes:
        question, self._question = self._question, None
        if question is None:
            return b""
        if question.poll() is None:
            question.kill()
        return question.communicate()[0]
