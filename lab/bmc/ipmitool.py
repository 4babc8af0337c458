"""``ipmitool`` towards one BMC: its command line, and what its words mean when a command fails.

``ipmitool`` tells a failure in words alone. They are read here, and nowhere else.
Source: ipmitool 1.8.19, src/plugins/lanplus/lanplus.c, src/plugins/lan/lan.c, lib/ipmi_strings.c.
"""

from __future__ import annotations

import re
import signal
from dataclasses import dataclass

from lab.base import processes
from lab.base.credentials import Credential
from lab.base.errors import (
    AuthenticationRefused,
    BmcBusy,
    BmcFellSilent,
    BmcRefused,
    BmcUnreachable,
    CipherRefused,
    CommandFailed,
    CommandRefused,
    LoginRefused,
    NoIpmi2,
    NoSessionNow,
    PrivilegeRefused,
    SessionInactive,
    SessionsExhausted,
)
from lab.inventory import BmcSpec

# Retransmission belongs to ipmitool: its waits are N, N+1, ... (R of them), twice when nothing ever answers. A
# retransmitted command may be executed twice (ipmi_sim does), so the first wait is longer than a loaded BMC takes to
# answer. A dead BMC is given up after 2 x (3 + 4) = 14 s [measured on 1.8.19].
PATIENT = ("-N", "3", "-R", "2")
IMPATIENT = ("-N", "1", "-R", "1")  # 2 s
CIPHERS = (17, 3)  # in this order where the inventory names none: the better first
DEAD_AFTER = 13.0  # seconds; a patient try that failed sooner had an answer

# Completion codes: IPMI v2.0 table 5-2. The words are ipmitool's (`completion_code_vals`).
COMPLETION_CODES = {
    "Node busy": 0xC0,
    "Invalid command": 0xC1,
    "Invalid command on LUN": 0xC2,
    "Timeout": 0xC3,
    "Out of space": 0xC4,
    "Reservation cancelled or invalid": 0xC5,
    "Request data truncated": 0xC6,
    "Request data length invalid": 0xC7,
    "Request data field length limit exceeded": 0xC8,
    "Parameter out of range": 0xC9,
    "Cannot return number of requested data bytes": 0xCA,
    "Requested sensor, data, or record not found": 0xCB,
    "Invalid data field in request": 0xCC,
    "Command illegal for specified sensor or record type": 0xCD,
    "Command response could not be provided": 0xCE,
    "Cannot execute duplicated request": 0xCF,
    "SDR Repository in update mode": 0xD0,
    "Device firmeware in update mode": 0xD1,
    "Device firmware in update mode": 0xD1,
    "BMC initialization in progress": 0xD2,
    "Destination unavailable": 0xD3,
    "Insufficient privilege level": 0xD4,
    "Command not supported in present state": 0xD5,
    "Cannot execute command, command disabled": 0xD6,
    "Unspecified error": 0xFF,
}
BUSY_CODES = frozenset({0xC0, 0xC3, 0xCE, 0xCF, 0xD0, 0xD1, 0xD2})
_MAYBE_DONE = frozenset({0xC3, 0xCE, 0xCF})  # the BMC gave up on the answer, perhaps not on the act
FINAL_CODES = frozenset({0xC1, 0xC2, 0xC6, 0xC7, 0xC8, 0xC9, 0xCC, 0xCD, 0xD4, 0xD6})
UNSUPPORTED_CODES = frozenset({0xC1, 0xC2, 0xD6})
_SIGNALS = {int(one): one.name for one in (signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGSEGV)}
_RESPONSE = re.compile(r"\brsp=0x([0-9a-f]{2})\b")
_WORDS = re.compile(
    rf"(?:: |^|0x[0-9a-f]+ )({'|'.join(map(re.escape, sorted(COMPLETION_CODES, key=len, reverse=True)))})\s*$", re.M
)

NO_SESSION = "Unable to establish"
# There was a session, and then no answer any more: what had one is told with the reason behind a colon.
_FELL_SILENT = re.compile(
    r"Close Session command failed|^(?:Unable to get Chassis Power Status|Unable to set Chassis Power Control to \S+"
    r"|Unable to send RAW command \([^)\n]*\)|Error [gs]etting Chassis Boot Parameter \d+"
    r"|Error sending Chassis Status command|Get Device ID command failed|Get SDR Repository Info command failed)\s*$"
    r"|lanplus\.c:\d+: \w+: Assertion ",  # it sends in a session that has gone (ipmi_lanplus_send_payload)
    re.M | re.I,
)
_SILENT_OPENING = re.compile(r"Error: (no response from RAKP \d message)")
NOISE = "Get HPM.x Capabilities request failed"  # of a session below Administrator; nothing failed
# What it says in front of a BMC that does not answer at all.
_NO_REASON = re.compile(
    r"Unable to Get Channel Cipher Suites|IANA PEN [Rr]egistry|Get (?:Auth Capabilities|Session Challenge)|"
    r"Error issuing Get Channel Authentication|Unable to [gs]et Chassis Power|"
    r"Close Session command failed|no response from|HPM\.x|Activate Session|Set Session Privilege Level to \S+ failed$"
)
_PRIVILEGE = re.compile(r"Set Session Privilege Level to \S+ failed(?:: (?P<why>.+))?")
_NOBODY = re.compile(r"Get Auth Capabilities (?:error|command failed)\s*$", re.M)

_LOGIN = "refused the login ({why}): check user and password; {who}"
_LEVEL = (
    "refuses the privilege level {level} ({why}): give the BMC's user that level, or say in bmc.privilege which one it "
    "has; {who}"
)
_SUITE = "refused the session ({why}): check bmc.cipher ({cipher}) in the inventory; {who}"
_FULL = "has no free session ({why}): it has few, and keeps those of clients that died for a minute"
_LOST = "forgot the session while it was opened ({why})"
_TWICE = "gave another answer while the session was opened ({why}): packets come late or twice; is its network sound?"
_TYPE = (
    "refused the session ({why}): the BMC's LAN channel must allow MD5 or password authentication for the level {level}"
)
_OLD = (
    "speaks no IPMI 2.0 (RMCP+): switch it on in the BMC, or say bmc.interface: lan, which is IPMI 1.5 without serial "
    "over LAN"
)


@dataclass(frozen=True, slots=True)
class _Failure:
    """Words of ipmitool after which there was no session, the error they are, and what it says."""

    said: re.Pattern[str]
    error: type[BmcRefused] | type[BmcUnreachable]
    text: str


def _of(said: str, error: type[BmcRefused] | type[BmcUnreachable], text: str) -> _Failure:
    return _Failure(re.compile(said), error, text)


# The status codes of RMCP+ and RAKP are those of IPMI v2.0 table 13-15. In order: the first that fits counts.
_AT_OPENING = r"(?:Error in open session response message|RAKP \d.* error) ?: ?"
_FAILURES = (
    _of(_AT_OPENING + r"(?P<why>insufficient resources for (?:session|role))", SessionsExhausted, _FULL),
    _of(_AT_OPENING + r"(?P<why>(?:inactive|invalid) session ID)", SessionInactive, _LOST),
    _of(
        _AT_OPENING + r"(?P<why>invalid name length|unauthorized name|unauthorized GUID|invalid integrity check value)",
        LoginRefused,
        _LOGIN,
    ),
    _of(_AT_OPENING + r"(?P<why>invalid role|unauthorized role.*)", PrivilegeRefused, _LEVEL),
    _of(
        _AT_OPENING
        + r"(?P<why>(?:invalid|no matching) (?:authentication|integrity|confidentiality) (?:algorithm|payload)"
        r"|no matching cipher suite)",
        CipherRefused,
        _SUITE,
    ),
    _of(
        r"(?P<why>(?:Authentication|Integrity|Encryption) algorithm 0x\w+ is not what we requested 0x\w+)",
        CipherRefused,
        _SUITE,
    ),
    _of(r"(?P<why>Unsupported cipher suite ID) ?: \d+", CipherRefused, _SUITE),
    _of(_AT_OPENING + r"(?P<why>.+)", BmcRefused, _SUITE),
    _of(r"Error: (?P<why>Received an Unexpected (?:Open Session Response|RAKP \d message))", NoSessionNow, _TWICE),
    _of(r"(?P<why>RAKP 2 HMAC is invalid)", LoginRefused, _LOGIN),
    _of(
        r"(?P<why>RAKP 4 message has invalid integrity check value)",
        LoginRefused,
        "refused the login ({why}): check user and password, and that the BMC has no key of its own (K_g); {who}",
    ),
    _of(r"This BMC does not support IPMI v2", NoIpmi2, _OLD),
    _of(
        r"(?P<why>Authentication type \S+ not supported|No supported authtypes found|Invalid Session AuthType.*)",
        AuthenticationRefused,
        _TYPE,
    ),
    _of(r"(?P<why>Invalid user name|NULL user name not enabled)", LoginRefused, _LOGIN),
    _of(r"Activate Session error:\s*(?P<why>No (?:session )?slot available.*)", SessionsExhausted, _FULL),
    _of(
        r"Activate Session error:\s*(?P<why>Session sequence out of range|Invalid session ID.*)",
        SessionInactive,
        _LOST,
    ),
    _of(
        r"Activate Session error:\s*(?P<why>Requested privilege level exceeds limit|Insufficient privilege level)",
        PrivilegeRefused,
        _LEVEL,
    ),
    _of(r"Activate Session error:\s*(?P<why>.+)", LoginRefused, _LOGIN),
    _of(r"(?P<why>password is longer.*)", LoginRefused, _LOGIN),
    _of(
        r"(?:Get Auth Capabilities|Get Session Challenge|Activate Session) (?:error|command failed): (?P<why>.+)",
        BmcRefused,
        "gives no session ({why}); {who}",
    ),
    _of(
        r"(?m)^(?P<why>(?:socket|bind|connect|sendto) failed: .+)",
        BmcUnreachable,
        "cannot be reached from here ({why}): is this machine in its network?",
    ),
)


def suites(spec: BmcSpec) -> tuple[int, ...]:
    """The cipher suites to try, in this order: each after the first only where the one before it was refused."""
    return CIPHERS if spec.cipher is None else (spec.cipher,)


def words(spec: BmcSpec, credential: Credential, cipher: int) -> tuple[str, ...]:
    """The beginning of each command line. The password is not in it: :func:`environment` has it."""
    suite = ("-C", str(cipher)) if spec.interface == "lanplus" else ()
    level = () if spec.privilege == "administrator" else ("-L", spec.privilege.upper())
    where = ("-I", spec.interface, *suite, *level, "-H", spec.host, "-p", str(spec.port))
    return ("ipmitool", *where, "-U", credential.user, "-E")


def environment(credential: Credential) -> dict[str, str]:
    """What ``ipmitool -E`` is run with."""
    # IPMITOOL_PASSWORD must not be among them: with -E it would win over IPMI_PASSWORD.
    return processes.environment() | {"IPMI_PASSWORD": credential.password, "LC_ALL": "C"}


def is_without_session(output: str) -> bool:
    """Whether a command that failed had no session."""
    return NO_SESSION in output or any(failure.said.search(output) for failure in _FAILURES)


def why_no_session(
    board: str, spec: BmcSpec, user: str, cipher: int, told: str, *, is_verbose: bool
) -> BmcRefused | BmcUnreachable | None:
    """Why ipmitool had no session; None when its words do not say, as those of a dead BMC do not.

    ``told`` is what a command wrote. Only one with ``-v`` (``is_verbose``) tells a wrong password from a dead BMC.
    """
    address = f"{spec.host}:{spec.port}"
    who = f"user {user!r}, credential {spec.credential!r}"

    def error(kind: type[BmcRefused] | type[BmcUnreachable], text: str, why: str) -> BmcRefused | BmcUnreachable:
        if COMPLETION_CODES.get(why.strip()) in BUSY_CODES:
            kind, text = NoSessionNow, "gives no session at the moment ({why})"
        said = text.format(why=why.strip(), who=who, level=spec.privilege, cipher=cipher)
        return kind(board, f"BMC {address} {said}")

    for failure in _FAILURES:
        if match := failure.said.search(told):
            return error(failure.error, failure.text, match.groupdict().get("why") or match[0])
    if "Address lookup" in told:
        return BmcUnreachable(board, f"BMC {address}: host name not known")
    # Whatever is told behind it is not the BMC's answer: some do so while the board's power changes.
    if match := _SILENT_OPENING.search(told):
        return error(
            BmcFellSilent,
            "fell silent while the session was opened ({why}): some BMCs do so for a user they do not know; {who}",
            match[1],
        )
    # A level that is refused without a reason had no answer: from a BMC that drops what it does not allow, or died.
    match = _PRIVILEGE.search(told)
    if match and (match["why"] or (is_verbose and not _NOBODY.search(told))):
        return error(PrivilegeRefused, _LEVEL, match["why"] or "no reason given: bmc.cipher may be it, too")
    return None


def unknown_words(told: str) -> str | None:
    """What ``ipmitool`` says of a session that it did not get, beside what it says of a BMC that does not answer."""
    lines = [line.strip() for line in told.splitlines()]
    return next((line for line in lines if line and NO_SESSION not in line and not _NO_REASON.search(line)), None)


def fell_silent(output: str) -> bool:
    """Whether a command that failed in a session had no answer."""
    return bool(_FELL_SILENT.search(output))


def data(output: str) -> bytes:
    """The bytes that a raw command was answered with, without what else ipmitool tells; none where it is no answer."""
    lines = [line for line in output.splitlines() if re.fullmatch(r"(?:\s*[0-9a-f]{2})+\s*", line)]
    return bytes.fromhex("".join("".join(lines).split()))


def completion_code(output: str) -> int | None:
    """The completion code that a failed command names; None when it names none."""
    if match := _RESPONSE.search(output):
        return int(match[1], 16)
    match = _WORDS.search(output)
    return COMPLETION_CODES[match[1]] if match else None


def failure(board: str, command: str, status: int, output: str) -> CommandFailed:
    """A command that failed in a session, as the error that it is.

    A busy BMC is a :class:`BmcBusy`; what will not change is a :class:`CommandRefused`.
    """
    number = -status if status < 0 else status - 128 if status > 128 else 0  # of a shell's
    if number in _SIGNALS:
        output = f"ipmitool crashed ({_SIGNALS[number]}) {output}"
    code = completion_code(output)
    shown = None if code is None else f"{code:02X}h"
    kind = BmcBusy if code in BUSY_CODES else CommandRefused if code in FINAL_CODES else CommandFailed
    error = kind(board, command, status, output, shown)
    if isinstance(error, BmcBusy):
        error.was_dropped = code not in _MAYBE_DONE
    return error
