"""The kinds of failure, kept apart so that a verdict can be decided from the type alone.

A failure of the *product* is neither a usage error nor one of the bench: it is an ``AssertionError`` in a case, a
:class:`ProductFailure`, or :class:`HypervisorCrash`, raised when the console shows the hypervisor or dom0 dying.
"""

from __future__ import annotations


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


class PowerTimeout(BenchError):
    """The BMC did not report the wanted chassis power in time."""

    def __init__(self, board: str, wanted: str, waited: float) -> None:
        super().__init__(f"{board}: chassis power not {wanted} after {waited:.1f} s")
        self.board, self.wanted, self.waited = board, wanted, waited


class BmcUnreachable(BoardError):
    """No session with the BMC could be had."""


class BmcRefused(BoardError):
    """The BMC answers, but gives no session: wrong user, password, privilege, cipher suite or certificate."""


class BoardUnreachable(BoardError):
    """dom0 does not answer over SSH."""


class CommandFailed(BadStatus, BenchError):
    """It was the bench's command."""


class ProductFailure(LabError):
    """The product failed at what it must do, seen without an assertion: verdict FAIL."""


class ToolstackFailed(BadStatus, ProductFailure):
    """dom0 answers, and its toolstack (``xl``) failed at what was asked of it."""


class ProductTimeout(Overdue, ProductFailure):
    """The product owed it: a guest that never comes up, a dom0 that never answers. Verdict FAIL."""


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
