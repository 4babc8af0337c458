"""The kinds of failure, kept apart so that a verdict can be decided from the type alone.

A failure of the *product* is neither a usage error nor one of the bench: it is an ``AssertionError`` in a case, a
:class:`ProductFailure`, or :class:`HypervisorCrash`, raised when the console shows the hypervisor or dom0 dying.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence


class LabError(Exception):
    """Root of everything this project raises on purpose. ``board``: the name of the one board it is about, if any."""

    board: str | None = None


class UsageError(LabError):
    """The caller is wrong: configuration, arguments, code. Exit status 2."""


class BenchError(LabError):
    """The bench failed. It says nothing about the hypervisor: verdict MISS."""


class NotProved(BenchError):
    """A case's precondition could not be established. It says nothing about the board either."""


class BoardError(BenchError):
    """The bench failed with one board."""

    board: str

    def __init__(self, board: str, reason: str) -> None:
        super().__init__(f"{board}: {reason}")
        self.board, self.reason = board, reason


class Overdue(LabError):
    """Something did not come to pass within ``timeout`` seconds; ``last`` is what was seen last.

    Raised as :class:`WaitTimeout` or :class:`ProductTimeout`, by who owes it.
    """

    def __init__(self, what: str, timeout: float, last: object = None, *, board: str | None = None) -> None:
        seen = "" if last is None else f"; last seen: {last}"
        super().__init__(f"{what}: not within {timeout:.1f} s{seen}")
        self.what, self.timeout, self.last, self.board = what, timeout, last, board


class BadStatus(LabError):
    """A command on a board, or to its BMC, ended with a status that its caller did not expect.

    Raised as :class:`CommandFailed` or :class:`ToolstackFailed`, by whose command it is.
    """

    board: str

    def __init__(self, board: str, command: str, status: int, output: str) -> None:
        super().__init__(f"{board}: `{command}` ended with status {status}: {output.strip()[-400:]}")
        self.board, self.command, self.status, self.output = board, command, status, output


class WaitTimeout(Overdue, BenchError):
    """The bench owed it."""


class CommandOverdue(WaitTimeout):
    """A command did not end in time, and dom0 ended it and said so: dom0 and the way to it are well."""


class PowerTimeout(BenchError):
    """The BMC did not report the wanted chassis power in time. ``reason``: why it refused a command meanwhile."""

    def __init__(self, board: str, wanted: str, waited: float, reason: str | None = None) -> None:
        said = f"; the BMC's last refusal: {reason}" if reason else ""
        super().__init__(f"{board}: chassis power not {wanted} after {waited:.1f} s{said}")
        self.board, self.wanted, self.waited, self.reason = board, wanted, waited, reason


class BmcUnreachable(BoardError):
    """No session with the board's BMC could be had, or the BMC fell silent."""


class BmcFellSilent(BmcUnreachable):
    """The BMC answered at first, and then no more: it is there, and may answer again."""


class NoSessionNow(BmcUnreachable):
    """The BMC answers, and gives no session at the moment. This passes by itself."""


class SessionsExhausted(NoSessionNow):
    """All sessions of the BMC are in use. It has few, and keeps those of clients that died for a minute."""


class SessionInactive(NoSessionNow):
    """The BMC forgot the session while it was being opened."""


class BmcRefused(BoardError):
    """The BMC answers, and gives no session. Trying again changes nothing, and may lock the user out."""


class LoginRefused(BmcRefused):
    """The BMC does not take this user with this password."""


class PasswordExpired(BmcRefused):
    """The BMC demands another password before it does anything else."""


class PrivilegeRefused(BmcRefused):
    """The BMC's user may not have the privilege that was asked for."""


class LicenceMissing(BmcRefused):
    """The BMC does not do this without a licence that it does not have."""


class CipherRefused(BmcRefused):
    """The BMC does not take the cipher suite."""


class AuthenticationRefused(BmcRefused):
    """The BMC and its client have no authentication type in common."""


class NoIpmi2(BmcRefused):
    """The BMC speaks IPMI 1.5 alone, or its IPMI 2.0 is switched off."""


class CertificateRefused(BmcRefused):
    """The BMC's certificate is not the one that the inventory trusts."""


class TlsRefused(BmcRefused):
    """The BMC and its client have no TLS in common, or the BMC speaks none at this port."""


class BoardUnreachable(BoardError):
    """dom0 does not answer over SSH."""


class CommandFailed(BadStatus, BenchError):
    """It was the bench's command. ``code`` is a BMC's own: a completion code (``D4h``), or a Redfish message's id."""

    def __init__(self, board: str, command: str, status: int, output: str, code: str | None = None) -> None:
        super().__init__(board, command, status, output)
        self.code = code

    def __str__(self) -> str:
        return f"{super().__str__()}{f' [{self.code}]' if self.code else ''}"


class BmcBusy(CommandFailed):
    """The BMC cannot do it at the moment. This passes by itself.

    ``retry_after`` is the time in seconds after which the BMC wants to be asked again. ``was_dropped`` is false where
    the BMC may have acted nevertheless.
    """

    retry_after: float = 0.0
    was_dropped: bool = True


class CommandRefused(CommandFailed):
    """The BMC will not do it, however often it is asked."""


class PowerUnknown(CommandFailed):
    """The BMC does not know whether the board has power: neither on nor off."""


class ProductFailure(LabError):
    """The product failed at what it must do, seen without an assertion: verdict FAIL."""


class ToolstackFailed(BadStatus, ProductFailure):
    """dom0 answers, and its toolstack (``xl``) failed at what was asked of it."""


class ProductTimeout(Overdue, ProductFailure):
    """The product owed it: a guest that never comes up, a dom0 that never answers. Verdict FAIL."""


class SilentConsole(BoardError):
    """A console shows nothing although its host answers over SSH, so that what was awaited on it is not known."""

    def __init__(self, board: str) -> None:
        super().__init__(
            board, "dom0 answers over SSH, and the console is silent: is its cable or its server at fault?"
        )


class BuildFailed(ProductFailure):
    """A build under test cannot be made: its source does not compile, or a patch does not apply.

    ``lines`` are what the compiler or patch(1) said, ``cause`` the one that names the error; ``log`` is the file that
    has all of it.
    """

    def __init__(
        self, what: str, lines: tuple[str, ...] = (), cause: str | None = None, log: str | None = None
    ) -> None:
        more = "".join(f"\n  {line}" for line in lines) + (f"\nlog: {log}" if log else "")
        super().__init__(f"{what}{more}")
        self.what, self.lines, self.cause, self.log = what, lines, cause, log
        self.source: dict[str, str] = {}  # the commit or package, as far as it is known: lab.results.build_source


class BuildDoesNotBoot(BoardError):
    """The build under test did not come up on this board before; the case that found out is FAIL."""


class CaseTimeout(LabError):
    """The body of a case took longer than it may, and was ended: verdict ERROR, since the cause is not known."""

    def __init__(self, limit: float) -> None:
        super().__init__(f"the case did not end within {limit:.0f} s")
        self.limit = limit


class MissingCapability(LabError):
    """This case does not apply to this board: verdict SKIP, naming the capability."""

    def __init__(self, board: str, capability: str, *, is_declared: bool = False) -> None:
        super().__init__(f"{board}: lacks capability {capability}" + ", which it declares" * is_declared)
        self.board, self.capability = board, capability


class HypervisorCrash(LabError):
    """The console shows the hypervisor or dom0 dying: a failure of the product.

    ``lines`` are the console lines that say so, first the one that matched.
    """

    def __init__(self, board: str, signature: str, lines: tuple[str, ...]) -> None:
        super().__init__(f"{board}: {signature}: {lines[0].strip() if lines else ''}")
        self.board, self.signature, self.lines = board, signature, lines


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """`` (did you mean X?)``, or nothing; for the message of an error."""
    near = [one for one in known if one.casefold() == word.casefold()] or difflib.get_close_matches(word, known, n=1)
    return f" (did you mean {near[0]}?)" if near else ""
