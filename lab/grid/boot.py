"""One boot of a board, followed by what its console prints from power on to a dom0 that logs people in.

:class:`Boot` reads lines and keeps deadlines; it neither waits nor asks anybody. :mod:`lab.grid.strategy` does that.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from lab.base.errors import Overdue, ProductFailure, ProductTimeout, ToolstackFailed, WaitTimeout
from lab.console.client import ConsoleLine
from lab.console.formats import Signature
from lab.console.lines import clean
from lab.console.patterns import classify
from lab.console.recalled import Live
from lab.console.said_by_loaders import GRUB_GOES_ON
from lab.grid.ssh import CommandResult
from lab.netboot import Entry

MENU_TIMEOUT = 90.0  # seconds; firmware of a steel board takes a minute to its boot loader
XEN_TIMEOUT = 60.0  # from the menu to the hypervisor's first line
DOM0_TIMEOUT = 240.0  # from there to a dom0 that answers
TOOLS_TIMEOUT = 20.0  # from a dom0 that answers to a toolstack that does
XEN_SILENCE = 90.0  # a hypervisor that has printed nothing for so long, and no dom0 yet: it hangs
SILENCE = 10.0  # a console quiet for so long while Linux boots: dom0 may be up, and not say so there
ASK_INTERVAL = 0.3  # between two questions to a dom0 that has printed its login prompt
LOADED = re.compile(r"Booting `(known-good|under-test)")  # GRUB, grub-core/normal/menu.c
LOADER_ERROR = re.compile(r"\berror: ")
LOADER = "boot-loader"  # lab.console.said_by_loaders
LAST_LINES = 6  # how many an error shows
LIMIT = MENU_TIMEOUT + 2 * XEN_TIMEOUT + DOM0_TIMEOUT + TOOLS_TIMEOUT  # of a whole boot, whatever the console prints


@dataclass
class Boot:
    """What the console has shown of one boot. All times are seconds since the epoch."""

    board: str
    entry: Entry  # what the boot loader was told to boot
    started: float  # power on
    milestones: dict[str, float] = field(default_factory=dict)  # name -> seconds after power on
    is_old_news: Callable[[str, str], bool] = lambda signature, text: False  # a crash that is none: XenStrategy's
    lines: list[ConsoleLine] = field(default_factory=list)
    has_banner: bool = False  # of the hypervisor
    has_login: bool = False  # of dom0, on the console
    _loaded: list[Entry] = field(default_factory=list)  # entries that the boot loader says it has started, in order
    _live: Live[ConsoleLine] = field(default_factory=Live)
    _has_loader_error: bool = False
    _loader_said: str = ""  # why nothing boots, by the firmware or the boot loader: the first since one tried
    _asked: float = 0.0
    _refused: float | None = None  # since when dom0 answers and its toolstack does not work
    _deadline: float = field(init=False)
    _spoke: float = field(init=False)  # when the console printed last

    def __post_init__(self) -> None:
        self._deadline, self._spoke = self.started + MENU_TIMEOUT + XEN_TIMEOUT, self.started

    def read(self, fresh: Sequence[ConsoleLine], now: float) -> tuple[Signature, int] | None:
        """Take in further lines. Returns a crash that is among them, and the place of its line in :attr:`lines`.

        :raises ProductFailure: the build under test has reset the board, and the boot loader starts anew.
        """
        self._spoke = now if fresh else self._spoke
        self.lines += fresh
        for line in fresh:
            self._read_loader(line.text, now)
            if (crash := self._live.take(line)) and not self.is_old_news(crash[1].name, crash[0].text):
                return crash[1], self.lines.index(crash[0])
            signature = classify(line.text)
            if signature is None:
                continue
            if signature.kind == "milestone":
                self._reach(signature.name, line.time, now)
            elif signature.name == LOADER and not (self.has_banner or self._loader_said):
                self._loader_said = clean(line.text).strip()
        return None

    def _read_loader(self, text: str, now: float) -> None:
        if match := LOADED.search(text):
            entry: Entry = "under-test" if match[1] == "under-test" else "known-good"
            if entry not in self._loaded:  # a prompt has a record of its own, before its line's
                self._loaded.append(entry)
                self._loader_said = ""
            self._deadline = now + XEN_TIMEOUT
        elif self._loaded and not self.has_banner and LOADER_ERROR.search(text):
            self._has_loader_error |= not any(harmless in text for harmless in GRUB_GOES_ON)
        if self.entry == "under-test" and self._loaded == ["under-test", "known-good"]:
            raise ProductFailure(f"{self.board}: the build reset the board before dom0 was up")

    def _reach(self, milestone: str, when: float, now: float) -> None:
        if milestone == "dom0-up" and not self.has_banner:
            return  # an old login prompt, ended by the first newline after power on
        self.milestones.setdefault(milestone, when - self.started)
        if milestone == "xen-banner" and not self.has_banner:
            self.has_banner, self._deadline = True, now + DOM0_TIMEOUT
        if milestone == "dom0-up":
            self.has_login = True

    def is_to_be_asked(self, now: float) -> bool:
        """Whether dom0 may answer over SSH by now.

        A dom0 that prints no login is asked when the console falls silent. While the boot goes on printing it is not
        asked, since a question that nobody hears yet holds up the reading of what is printed meanwhile.
        """
        if self.has_login:
            return now - self._asked >= ASK_INTERVAL
        return "dom0-linux" in self.milestones and now - max(self._spoke, self._asked) > SILENCE

    def take_answer(self, answer: CommandResult | None, asked: float, now: float) -> bool:
        """Whether dom0's answer to ``xl info`` ends the boot. ``answer``: None if nobody answered.

        :raises ToolstackFailed: dom0 has answered for :data:`TOOLS_TIMEOUT`, and its toolstack does not work.
        """
        self._asked = asked
        if answer is None:
            self._refused = None
            return False
        if answer.status == 0:
            self.milestones["ready"] = now - self.started
            return True
        self._refused = asked if self._refused is None else self._refused
        if asked - self._refused > TOOLS_TIMEOUT:
            raise ToolstackFailed(self.board, "xl info", answer.status, answer.stderr or answer.stdout)
        return False

    def overdue(self, now: float) -> Overdue | None:
        """What to raise when the boot takes too long: the product's failure once the hypervisor was started, else None.

        A hypervisor that the boot loader has started without an error, and that prints nothing, is wrong.
        """
        is_hung = self.has_banner and "dom0-linux" not in self.milestones and now - self._spoke > XEN_SILENCE
        if now <= self._deadline and not is_hung:
            return None
        what = f"{self.board}: {'dom0 answers' if self.has_banner else 'hypervisor starts'} ({self.entry})"
        if self._loader_said and not self.has_banner:
            what += f"; it does not, since the boot loader or the firmware says: {self._loader_said}"
        is_started = self._loaded == [self.entry] and not (self._has_loader_error or self._loader_said)
        kind = ProductTimeout if self.has_banner or is_started else WaitTimeout
        return kind(what, now - self.started, tail(self.lines), board=self.board)


def tail(lines: Sequence[ConsoleLine]) -> str:
    """The last lines on a console, for an error."""
    said = [line.text for line in lines if line.text.strip()]
    return "\n".join(said[-LAST_LINES:]) or "nothing on the console since power on"
