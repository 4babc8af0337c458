"""The rig: the acquired boards of one pytest process, brought to the build under test and kept there.

The rig stands between the plugin and the grid. It decides which board a case gets and when a reboot is needed, and
clears away what a case leaves behind.
"""

from __future__ import annotations

import logging
import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from lab import builds, provision
from lab.base.errors import (
    BenchError,
    BmcRefused,
    BmcUnreachable,
    BoardError,
    BuildDoesNotBoot,
    HypervisorCrash,
    LabError,
    PowerTimeout,
    ProductFailure,
    SilentConsole,
)
from lab.case import saved
from lab.case.seat import After, Seat
from lab.grid import rescue, ssh
from lab.grid.board import Board
from lab.inventory import Lab
from lab.inventory.capabilities import OF_THE_BUILD, TABLE
from lab.results.record import LACKING, PROVISION, Evidence, GuestConsole, Phase
from lab.results.verdicts import HostLoss
from lab.xen import leftovers, pace, probing
from lab.xen.host import Host

log = logging.getLogger(__name__)

PROOF_TIMEOUT = 240.0  # seconds; 50 were seen, for checksums on an emulated board that had an eighth of a processor
MUTE = "lost its console: dom0 answers over SSH, and nothing on the console"
RESET = "was reset: it booted, and nobody had asked for that"  # after "the host"
Keep = Callable[[str, GuestConsole], None]  # a title, and what a guest has printed


class Rig:
    """The boards of one process, and the build under test that they run."""

    def __init__(
        self,
        lab: Lab,
        boards: Mapping[str, Board],
        wanted: provision.Wanted,
        run_directory: Path,
        keep: Keep | None = None,
        *,
        sound: frozenset[str] = frozenset(),
        boots_first: bool = False,
    ) -> None:
        """``keep`` takes what a guest has printed, for the running case; without it nothing is kept.

        ``sound``: build ids of builds that have proved themselves, so that a board may be deployed from them.
        ``boots_first``: each board boots before its first case, whatever runs on it.
        """
        self._lab = lab
        self._keep = keep
        self._sound = sound
        self.seats = {name: Seat(board, Host(board, self), must_boot=boots_first) for name, board in boards.items()}
        self._wanted = wanted
        self._directory = run_directory
        self.phases: list[Phase] = []
        self.evidence: list[Evidence] = []
        self._proved: set[str] = set()
        self._restored: set[str] = set()

    @property
    def build(self) -> builds.Build:
        return self._wanted.build

    @property
    def wanted(self) -> provision.Wanted:
        return self._wanted

    # -- readiness -------------------------------------------------------------------------------------------

    def ready(self, name: str, options: str = "", *, is_cold: bool = False) -> Seat:
        """Bring a board to the build under test, and prove that the build runs. Provision and reboot only if needed.

        ``options`` are options of Xen that a case asks for. They come last on the command line, so they win.
        ``is_cold``: the board must have booted. Otherwise one that can do it may go on from a saved state.

        :raises HypervisorCrash: the build crashed while it booted.
        :raises BuildDoesNotBoot: the build did not come up on this board with these options before.
        :raises BenchError: the board does not come up.
        """
        seat = self.seats[name]
        if options in seat.refused:
            raise BuildDoesNotBoot(name, f"{self.build.name} did not boot before: {seat.refused[options]}")
        if options != seat.options:
            seat.proof, seat.options = None, options
        is_good = seat.proof and not seat.proof.mismatches and not seat.suspect and self._is_same_boot(seat)
        is_probed = bool(seat.capabilities)  # a board whose probe failed is not known to lack all
        if is_good and is_probed and not (is_cold and seat.is_restored):
            self._proved.add(name)
        else:
            with self.phase(PROVISION):
                self._bring_up(seat, is_cold=is_cold)
        if seat.is_restored:
            self._restored.add(name)
            self.evidence.append(
                _note(name, "goes on from a saved state: it was not booted for this case", seat.boot_id)
            )
        return seat

    def _bring_up(self, seat: Seat, *, is_cold: bool) -> None:
        is_up = self._is_proved(seat)
        former = seat.boot_id
        if is_up and seat.must_boot:
            seat.suspect = "the run asks for a boot"
            is_up = self._comes_back(seat)
        seat.must_boot = False
        if is_up and is_cold and seat.is_restored:
            is_up, seat.suspect = False, "it goes on from a saved state, and the case is about a boot"
        if not is_up:
            if not is_cold and self._restores(seat):
                return
            if not (seat.suspect and seat.deployed and self._comes_back(seat)):
                self._install(seat)
        if not seat.capabilities:
            self._probe(seat)
        self._begin(seat)
        if seat.boot_id != former:  # it has booted just now, and nothing has run on it
            self._save(seat)

    def _restores(self, seat: Seat) -> bool:
        """Have the board go on from a saved state with this very build. Whether it does, and is as after a boot.

        A state that is not sound is dropped; the board then boots.
        """
        board, states, why = seat.board, seat.board.states, seat.suspect
        if states is None or seat.options:  # a case's own options of Xen are few others'
            return False
        key = saved.key(self._wanted_on(seat), board.spec)
        try:
            if not states.has(key):
                return False
            with self.phase("restore"):
                board.strategy.restore(key)
                seat.suspect = None
                if not self._prove(seat):
                    raise BoardError(board.name, "; ".join(seat.proof.mismatches if seat.proof else ("no proof",)))
                was = saved.read(board)
                if not seat.capabilities:
                    self._take_capabilities(seat, was.capabilities)
                seat.before, seat.pace = leftovers.look(seat.host), was.pace
                said = saved.check(board, self._facts(seat), was)
            board.strategy.go_on()
        except (BenchError, HypervisorCrash, ProductFailure) as error:
            log.warning("%s: a saved state is not sound, and goes: the board boots (%s)", board.name, error)
            seat.suspect, seat.proof, seat.is_restored = why or "it did not go on from a saved state", None, False
            self.evidence.append(_note(board.name, "a saved state was not sound; the board boots", str(error)))
            with suppress(BenchError):
                states.drop(key)
            return False
        seat.deployed = True
        log.info("%s: goes on from a saved state", board.name)
        self.evidence.append(_note(board.name, "restored, and as it was when it was saved", said))
        return True

    def _save(self, seat: Seat) -> None:
        """Save a board that has just booted, if it can do that and has no such state yet."""
        if seat.board.states is not None and not seat.options:
            with self.phase("save"):
                saved.keep(seat.board, saved.key(self._wanted_on(seat), seat.board.spec), self._facts(seat))

    def distrust(self, name: str) -> None:
        """Forget what a board goes on from, which crashed or was lost: the next attempt shall have a boot."""
        if (seat := self.seats[name]).is_restored and seat.board.states:
            log.info("%s: it went on from a saved state, which goes: the board boots next", name)
            with suppress(BenchError):
                seat.board.states.drop(saved.key(self._wanted_on(seat), seat.board.spec))

    def _facts(self, seat: Seat) -> saved.Facts:
        assert seat.before is not None
        return saved.Facts(seat.boot_id, seat.capabilities, seat.before, seat.pace)

    def _begin(self, seat: Seat) -> None:
        """Note how the board is before its first case since a boot."""
        seat.host.destroy_all()
        seat.before = leftovers.look(seat.host)
        seat.pace = pace.measure(seat.host, 3)

    def _comes_back(self, seat: Seat) -> bool:
        """Power-cycle a board that has crashed. Whether it then runs the build under test as wanted."""
        log.info("%s: power cycle (%s)", seat.board.name, seat.suspect)
        try:
            with self.phase("boot"):
                seat.board.strategy.reboot(entry="under-test")
        except LabError as error:
            log.info("%s: it did not come back: %s", seat.board.name, error)
            return False
        seat.suspect = None
        return self._is_proved(seat)

    def _install(self, seat: Seat) -> None:
        """Boot the known-good build if need be, deploy the build under test, boot it, and prove that it runs."""
        board = seat.board
        # Deploying works from a sound dom0 of this very build, with other options, or of one that has proved itself;
        # else only from a known-good one.
        is_sound = not seat.proof or seat.proof.is_the_build or seat.proof.build_id in self._sound
        if seat.suspect or not is_sound or not board.is_reachable():
            log.info("%s: to the known-good build (%s)", board.name, seat.suspect or "not reachable")
            self._boot_known_good(seat)
        self._deploy(seat)
        seat.deployed = True
        if self._is_proved(seat):  # only payloads were new
            return
        try:
            with self.phase("boot"):
                board.strategy.reboot(entry="under-test")
        except (HypervisorCrash, ProductFailure) as error:
            seat.refused[seat.options] = str(error).splitlines()[0]
            if isinstance(error, ProductFailure):
                self.evidence += rescue.collect(board).evidence  # Xen shows where it hangs
            raise
        except SilentConsole as error:
            if seat.options in seat.mute:  # and between the two the known-good build was heard
                seat.refused[seat.options] = str(error)
            seat.mute.add(seat.options)
            raise
        seat.suspect = None
        if not self._is_proved(seat):
            missing = seat.proof.mismatches if seat.proof else ("no proof",)
            raise BoardError(board.name, f"came up, but is not what was wanted: {'; '.join(missing)}")

    def _boot_known_good(self, seat: Seat) -> None:
        """Boot the known-good build, with one retry. The board's console is kept as evidence of each failure.

        :raises BenchError: the boot failed twice.
        """
        for attempt in (1, 2):
            try:
                with self.phase("boot"):
                    seat.board.strategy.reboot(entry="known-good")
                return
            except (PowerTimeout, BmcUnreachable, BmcRefused):
                raise
            except BenchError as error:
                title = f"the known-good build did not boot at attempt {attempt}"
                self.evidence += [_note(seat.board.name, title, str(error)), *rescue.collect(seat.board).evidence]
                if attempt == 2:
                    raise

    def _is_same_boot(self, seat: Seat) -> bool:
        """Whether dom0 still runs the boot that was proved. A case may have rebooted its board."""
        try:
            return bool(seat.proof and saved.boot_id(seat.board) == seat.boot_id)
        except BenchError:
            return False

    def _is_proved(self, seat: Seat) -> bool:
        if seat.suspect or not seat.board.is_reachable():
            seat.proof = None
            return False
        return self._prove(seat)

    def _prove(self, seat: Seat) -> bool:
        """The same of a board that answers."""
        try:
            with self.phase("proof"):
                proof = provision.prove(
                    lambda text: str(seat.board.run(text, timeout=PROOF_TIMEOUT).stdout),
                    seat.board.spec,
                    self._wanted_on(seat),
                )
            seat.boot_id = proof.boot_id
            seat.is_restored = seat.board.states is not None and seat.board.states.is_restored()
        except BenchError as error:
            log.info("%s: no proof: %s", seat.board.name, error)
            return False
        seat.proof = proof
        self.evidence.append(proof.as_evidence())
        if not proof.mismatches:
            self._proved.add(seat.board.name)
        return not proof.mismatches

    def _wanted_on(self, seat: Seat) -> provision.Wanted:
        options = f"{self._wanted.xen_options} {seat.options}".strip()
        return replace(self._wanted, xen_options=options)

    def _deploy(self, seat: Seat) -> None:
        with self.phase("deploy"):
            changed = provision.deploy(
                self._lab,
                [seat.board.spec],
                self._wanted_on(seat),
                self._directory / "provision",
                ssh_words=ssh.options(seat.board.spec.at),
            )[seat.board.name]
        title = f"{len(changed)} files changed" if changed else "nothing changed: all files were there"
        self.evidence.append(Evidence("provision", title, "\n".join(changed), time.time(), seat.board.name))

    def _probe(self, seat: Seat) -> None:
        """Find out what the board can do under this build, and which capabilities it declares and lacks."""
        by_racker = {word for word in seat.board.spec.capabilities if not TABLE[word].is_probed}
        self._take_capabilities(seat, probing.of_board(seat.host) | by_racker)

    def _take_capabilities(self, seat: Seat, found: frozenset[str]) -> None:
        seat.capabilities = found
        lacking = seat.board.spec.capabilities - found
        seat.host = Host(seat.board, self, lacking=lacking)
        if by_board := lacking - OF_THE_BUILD:  # what a build leaves out is no fault of the board or of its entry
            words = ", ".join(sorted(by_board))
            log.warning("%s: declared but not found: %s", seat.board.name, words)
            self.evidence.append(
                Evidence(LACKING, f"{seat.board.name} lacks what it declares", words, time.time(), seat.board.name)
            )

    # -- after a case ----------------------------------------------------------------------------------------

    def after(
        self, name: str, *, crashed: bool, was_reset: bool, is_mute: bool = False, is_mutant: bool = False
    ) -> After:
        """Look at what a case left on a board, and bring the board back to what it was. Returns what was found.

        ``was_reset``: the case lost a board that has booted since, and nobody asked for that boot. ``is_mute``: the
        board's console was silent while dom0 answered over SSH. ``is_mutant``: a mutant was on, so that this very build
        is sound without it.
        """
        seat = self.seats[name]
        seat.is_renewed = False
        if crashed:
            seat.suspect = "the console showed a crash"
            return After((rescue.dump(seat.board, since=time.time()),) if seat.board.spec.kdump else ())
        if is_mute:  # the build's fault, or the console's: that of the known-good build shows it
            seat.suspect = "the console is silent"
            is_sound, said = self._try_sound_build(seat, is_mutant=is_mutant)
            return After((said,), loss=HostLoss(name, MUTE, comes_back=is_sound))
        if not (slept := seat.board.sleeps()):
            seat.suspect = "dom0 does not answer" if slept is None else "dom0's sleeps do not end"
            return self._after_loss(seat, was_reset=was_reset, is_mutant=is_mutant)
        if was_reset:  # and it is up again already
            seat.suspect = RESET
            return After(loss=HostLoss(name, RESET, comes_back=True))
        if seat.before is None:  # the board never came up for the case
            return After()
        try:
            left = leftovers.clear(seat.host, seat.before)
        except LabError as error:  # the case judges its toolstack; the next case needs a reboot
            seat.suspect = str(error)
            is_there = seat.board.is_reachable()
            return After() if is_there else self._after_loss(seat, was_reset=was_reset, is_mutant=is_mutant)
        if left.kept or left.stuck:
            seat.suspect = "; ".join((*left.kept, *left.stuck))
        found = [
            _note(name, f"left behind, and {what}", "\n".join(lines))
            for what, lines in (("taken away", left.cleared), ("still there", left.kept), ("owed by Xen", left.stuck))
            if lines
        ]
        return After(
            tuple(found), tuple(f"{name}: {one}" for one in left.stuck), slowing=self._slowing(seat, left.pace)
        )

    def _slowing(self, seat: Seat, now: float | None) -> str:
        """How much slower Xen answers than after a boot of the same build; "" if it is not slower.

        A board that seems slower is measured well, rebooted, and measured again: what slows it from outside is still
        there after the reboot, or slows what dom0 computes as much.
        """
        if now is None or seat.pace is None or seat.suspect or now < pace.SLOWER * seat.pace:
            return ""
        try:
            slow = pace.measure(seat.host, 5)
            if slow is None or slow < pace.SLOWER * seat.pace:
                return ""
            seat.suspect = "Xen answers slower than before"
            if not self._comes_back(seat):
                return ""
            self._begin(seat)
            fresh = pace.measure(seat.host, 5)
        except LabError as error:
            log.info("%s: how fast Xen answers is not known: %s", seat.board.name, error)
            return ""
        said = f"{slow:.2f} before a reboot of the same build, and {fresh or 0:.2f} after it"
        title = "how long Xen takes to answer dom0, as a multiple of what dom0 computes meanwhile"
        self.evidence.append(_note(seat.board.name, title, said))
        if fresh is None or slow < pace.SLOWER * fresh:
            return ""
        return f"{seat.board.name}: Xen takes {slow / fresh:.1f} times as long to answer dom0 as after a boot"

    def keep(self, title: str, guest: GuestConsole) -> None:
        """Keep what a guest has printed as evidence of the running case (:class:`lab.xen.dom0.Notes`)."""
        if self._keep is not None:
            self._keep(title, guest)

    def _after_loss(self, seat: Seat, *, was_reset: bool, is_mutant: bool) -> After:
        """Find out why dom0 does not answer, or its timers do not. If the bench works, the host is at fault.

        The dump that follows an NMI shows where the hypervisor is. Without a dump, a power cycle into the known-good
        build proves that the board's power, console and network work.
        """
        was_up = seat.proof is not None and not seat.proof.mismatches
        found = rescue.collect(seat.board, interrupt=True)
        if not was_up or (how := found.loss) is None:
            return After(found.evidence)
        loss = HostLoss(seat.board.name, RESET if was_reset else how, found.after_nmi or ())
        if loss.is_hang:
            return After(found.evidence, loss=loss)
        is_sound, said = self._try_sound_build(seat, is_mutant=is_mutant)
        return After((*found.evidence, said), loss=replace(loss, comes_back=is_sound))

    def _try_sound_build(self, seat: Seat, *, is_mutant: bool) -> tuple[bool, Evidence]:
        """Whether a power cycle brings the board into the known-good build, and what was found.

        A mutant's own build will do as well, from a saved state, in which no mutant is on.
        """
        if is_mutant and self._restores(seat):
            seat.is_renewed = True
            return True, _note(seat.board.name, "the same build after the loss, without the mutant", "it runs")
        try:
            with self.phase("boot"):
                seat.board.strategy.reboot(entry="known-good")
            is_sound, said = True, "power, console and dom0's network do their part"
        except LabError as error:
            is_sound, said = False, str(error)
        return is_sound, _note(seat.board.name, "the known-good build after the loss", said)

    def phase(self, name: str) -> AbstractContextManager[None]:
        """Time a block, under a name that the record of the case shows."""
        return timed(self.phases, name)

    def left(self) -> float:
        """Seconds that the running case may still take: pytest-timeout's alarm (:class:`lab.xen.dom0.Notes`)."""
        return signal.getitimer(signal.ITIMER_REAL)[0] or math.inf

    def take_phases(self) -> tuple[Phase, ...]:
        """Phases since the last call."""
        taken, self.phases = tuple(self.phases), []
        return taken

    def take_proved(self) -> tuple[str, ...]:
        """Boards on which the build under test was proved to run since the last call."""
        taken, self._proved = tuple(sorted(self._proved)), set()
        return taken

    def take_restored(self) -> tuple[str, ...]:
        """Boards that went on from a saved state since the last call."""
        taken, self._restored = tuple(sorted(self._restored)), set()
        return taken

    def take_evidence(self) -> tuple[Evidence, ...]:
        """Evidence since the last call."""
        taken, self.evidence = tuple(self.evidence), []
        return taken


@contextmanager
def timed(phases: list[Phase], name: str) -> Iterator[None]:
    """Time a block, and add it to ``phases`` however it ends."""
    started, clock = time.time(), time.monotonic()
    try:
        yield
    finally:
        phases.append(Phase(name, started, time.monotonic() - clock))


def _note(board: str, title: str, body: str) -> Evidence:
    return Evidence("note", f"{board}: {title}", body, time.time(), board)
