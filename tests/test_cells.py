"""The matrix of failed relocations: what there can be, what must come of it, and what excuses what."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from itertools import pairwise, product
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from lab.base import files, paths
from lab.base.errors import BoardError, BoardUnreachable, ProductTimeout, UsageError
from lab.case.rig import Rig
from lab.on_board.proxy import Action
from lab.on_board.stream import Step
from lab.reporting import findings
from lab.results.observation import StealTime
from lab.results.record import Check
from lab.xen import dom0, domain
from lab.xen.dom0 import ARRIVED, DomainRow
from lab.xen.domain import Domain, DomainConfig
from lab.xen.host import Host
from lab.xen.migration import Ending, Pass
from lab.xen.migration_matrix import attempt, cells, checks, known_findings, reproduce
from lab.xen.migration_matrix import expected as expected_module
from lab.xen.migration_matrix.cells import CELLS, PLACES, Cell, ProtocolPhase, find, possible
from lab.xen.migration_matrix.expected import Where, expected, is_followed
from lab.xen.migration_matrix.faults import FAULTS, THROTTLE, Effect, Fault
from lab.xen.migration_matrix.one_board import on_one_board
from lab.xen.migration_matrix.strikes import Command, Ends, LinkDown, variables
from lab.xen.payloads import KERNELS

KNOWN = paths.CHECKOUT / "testcases" / "relocation" / "known.yaml"
SIDES = ("source", "destination")
EVERY = [Cell(guest, fault, place, "weekly") for guest, fault, place in product(KERNELS, FAULTS.values(), PLACES)]


def ending(cell: str) -> tuple[Ending, Where]:
    wanted = expected(find(cell))
    return wanted.ending, wanted.where


# -- the table ---------------------------------------------------------------------------------------------------


def test_the_table_has_no_cell_twice() -> None:
    lines = [cell.id for cell in cells.read(cells.TABLE)]
    assert len(lines) == len(set(lines)) == len(CELLS)


def test_the_selections_are_as_large_as_they_should_be() -> None:
    count = {name: sum(cell.selection == name for cell in possible()) for name in ("quick", "full", "weekly")}
    assert 3 <= count["quick"] <= 5  # they run in CI on each change
    assert 18 <= count["full"] <= 28
    assert sum(count.values()) >= 100


def test_every_fault_every_guest_and_every_phase_is_in_the_table() -> None:
    there = possible()
    assert {cell.fault.name for cell in there} == set(FAULTS)
    assert {cell.guest for cell in there} == set(KERNELS)
    assert {cell.phase for cell in there} == set(ProtocolPhase)


def test_ids_are_readable_and_lead_back() -> None:
    for cell in CELLS.values():
        assert re.fullmatch(r"[a-z0-9]+-[a-z0-9_]+-[A-Za-z0-9_]+", cell.id)
        assert find(cell.id) == cell


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("pvh64-cut-TSC_INF0", "did you mean TSC_INFO?"),
        ("pvh65-cut-GO", "did you mean pvh64?"),
        ("pvh64-cuts-GO", "did you mean cut?"),
        ("nonsense", "GUEST-FAULT-STEP"),
    ],
)
def test_an_unknown_cell_is_refused_with_a_hint(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=re.escape(said)):
        find(text)


# -- every combination there is ------------------------------------------------------------------------------------


def test_every_combination_has_an_ending_or_a_reason() -> None:
    impossible = 0
    for cell in EVERY:
        if cell.impossible:
            impossible += 1
            with pytest.raises(UsageError, match=re.escape(cell.impossible)):
                expected(cell)
        else:
            assert expected(cell).why
    assert 0 < impossible < len(EVERY)


def test_the_proxy_understands_every_cell() -> None:
    for cell in EVERY:
        for action in cell.actions:
            parsed = Action.parse(action)
            assert parsed.step is (Step.PAGE_DATA if action == THROTTLE else cell.step)


def test_the_guest_never_runs_twice_and_is_lost_only_with_a_machine_or_by_itself() -> None:
    for cell in possible(EVERY):
        if expected(cell).where is Where.NOWHERE:
            assert cell.fault.effect in (
                Effect.SOURCE_DIES,
                Effect.DESTINATION_DIES,
                Effect.GUEST_CRASHES,
                Effect.GUEST_GOES,
            )


def test_before_go_the_source_keeps_the_guest_unless_somebody_dies() -> None:
    safe = (Effect.SEVERED, Effect.SPOILED, Effect.RESTORER_DIES, Effect.SAVER_DIES)
    early = (ProtocolPhase.HANDSHAKE, ProtocolPhase.SETUP, ProtocolPhase.LIVE, ProtocolPhase.SUSPENDED)
    for cell in possible(EVERY):
        if cell.fault.effect in safe and cell.phase in early:
            assert expected(cell).where is Where.SOURCE, cell.id


def test_undefined_endings_are_those_after_go_was_written() -> None:
    for cell in possible(EVERY):
        if expected(cell).ending is Ending.UNDEFINED:
            assert cell.phase in (ProtocolPhase.COMPLETE, ProtocolPhase.GO, ProtocolPhase.STARTED), cell.id


@pytest.mark.parametrize(
    ("cell", "wanted"),
    [
        ("pvh64-cut-BANNER", (Ending.REFUSED, Where.SOURCE)),
        ("pvh64-cut-PAGE_DATA", (Ending.RESUMED_AT_SENDER, Where.SOURCE)),
        ("pvh64-cut-TSC_INFO", (Ending.RESUMED_AT_SENDER, Where.SOURCE)),
        ("pvh64-cut-READY", (Ending.RESUMED_AT_SENDER, Where.SOURCE)),
        ("pvh64-cut-GO", (Ending.UNDEFINED, Where.NEITHER)),
        ("pvh64-cut-REPORT", (Ending.UNDEFINED, Where.DESTINATION)),
        ("pvh64-cut-STATUS", (Ending.UNDEFINED, Where.DESTINATION)),
        ("pvh64-bad_bit-GO", (Ending.GIVEN_BACK, Where.SOURCE)),
        ("pvh64-name_taken-GO", (Ending.GIVEN_BACK, Where.SOURCE)),
        ("pvh64-noack-TSC_INFO", (Ending.NOT_SUSPENDED, Where.SOURCE)),
        ("pvh64-sender_kill-PAGE_DATA", (Ending.KILLED, Where.SOURCE)),
        ("pvh64-sender_kill-TSC_INFO", (Ending.KILLED, Where.NEITHER)),
        ("pvh64-sender_kill-GO", (Ending.KILLED, Where.DESTINATION)),
        ("pvh64-receiver_kill-READY", (Ending.UNDEFINED, Where.NEITHER)),
        ("pvh64-destination_off-REPORT", (Ending.SUCCESS, Where.NOWHERE)),
        ("pvh64-source_off-GO", (Ending.LOST, Where.NOWHERE)),
        ("pvh64-source_off-REPORT", (Ending.LOST, Where.DESTINATION)),
        ("pvh64-link_5s-TSC_INFO", (Ending.SUCCESS, Where.DESTINATION)),
        ("pvh64-link_60s-TSC_INFO", (Ending.RESUMED_AT_SENDER, Where.SOURCE)),
        ("pvh64-duplicate-LIBXC_END", (Ending.GIVEN_BACK, Where.SOURCE)),
    ],
)
def test_endings_follow_from_phase_and_effect(cell: str, wanted: tuple[Ending, Where]) -> None:
    assert ending(cell) == wanted


def test_what_may_be_dropped_and_doubled_has_an_ending() -> None:
    assert set(expected_module.DROPPED) == set(cells.DROPPABLE) and set(expected_module.DOUBLED) == set(cells.DOUBLABLE)


def test_what_cannot_be_told_is_no_cell() -> None:
    for text in ("pvh64-cut-X86_PV_VCPU_BASIC", "pv64-cut-HVM_CONTEXT", "pvh64-saver_kill-GO", "pvh64-drop-PAGE_DATA"):
        assert find(text).impossible
    assert find("pvh64-bad_bit-TSC_INFO").impossible, "the protocol does not say what that bit means"


def test_a_late_cut_leaves_the_guest_time_to_dirty_its_memory() -> None:
    assert find("pvh64-cut-PAGE_DATA_late").actions == ("throttle@PAGE_DATA=4000000", "cut@PAGE_DATA:pass2")


def test_a_guest_needs_what_its_log_dirty_mode_stands_on() -> None:
    assert find("pv32-cut-GO").needs == ("self-ssh", "shadow", "pv32")
    assert find("pvh32-cut-GO").needs == ("self-ssh", "hap")
    assert find("pvh64-cut-READY").needs == ("migration-pair", "hap")


def test_what_must_fail_at_one_end_alone_takes_two_boards() -> None:
    assert {fault.name for fault in FAULTS.values() if fault.needs_two} == {
        "destination_off",
        "source_off",
        "panic",
        "link_5s",
        "link_60s",
        "link_off",
        "xenstored_gone",
        "xenconsoled_gone",
        "name_taken",
    }
    assert all(cell.boards == 2 for cell in CELLS.values() if cell.fault.needs_two)
    for guest in ("pvh64", "pv64"):  # and each kind of guest crosses a real link at the point of no return
        assert any(
            cell.boards == 2 and cell.phase in (ProtocolPhase.GO, ProtocolPhase.COMPLETE)
            for cell in possible()
            if cell.guest == guest
        )


def test_a_following_relocation_is_asked_for_once_per_guest_and_phase() -> None:
    followed = [cell for cell in CELLS.values() if is_followed(cell)]
    assert len({(cell.guest, cell.phase) for cell in followed}) == len(followed) >= 16


# -- how faults are made -------------------------------------------------------------------------------------------


def command_of(fault: Fault) -> Command | None:
    strike = fault.strike.by_dom0 if isinstance(fault.strike, LinkDown) else fault.strike
    return strike if isinstance(strike, Command) else None


COMMANDS = [pytest.param(command, id=fault.name) for fault in FAULTS.values() if (command := command_of(fault))]


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_are_shell_and_do_not_hit_their_own_shell(command: Command) -> None:
    host = SimpleNamespace(board=SimpleNamespace(spec=SimpleNamespace(nics={})))
    text = variables("guest 1", host) + command.script  # type: ignore[arg-type]
    for line in (text, command.cure or ""):
        subprocess.run(["sh", "-n", "-c", line], check=True, timeout=20)
        for pattern in re.findall(r"-of? '([^']*)'", line):
            assert not re.search(pattern, line), pattern


class Link:
    """A switch port that says what was asked of it; the real one is in test_switch.py."""

    name = "203.0.113.60 port Gi0/3"

    def __init__(self) -> None:
        self.told: list[str] = []

    def cut(self, seconds: float) -> None:
        self.told.append(f"cut {seconds:.0f}")

    def restore(self) -> None:
        self.told.append("restore")


@pytest.mark.parametrize(("fault", "seconds"), [("link_5s", 5), ("link_60s", 60), ("link_off", 900)])
@pytest.mark.parametrize("side", SIDES)
def test_a_link_that_goes_through_a_switch_is_cut_there(fault: str, seconds: int, side: str) -> None:
    """By whichever end's port there is, and without a word to either dom0."""
    link = Link()
    ends = {end: SimpleNamespace(board=SimpleNamespace(switch_port=link if end == side else None)) for end in SIDES}
    guest: Any = SimpleNamespace(host=ends["source"], beats=lambda *_: None)
    cell, outcome = Cell("pvh64", FAULTS[fault], "PAGE_DATA", "full"), attempt.Outcome(cast(Any, None), Ending.LOST)
    attempt.strike(cell, Ends(guest, ends["source"], ends["destination"]), outcome)  # type: ignore[arg-type]
    attempt.cure(cell, Ends(guest, ends["source"], ends["destination"]))  # type: ignore[arg-type]
    assert link.told == [f"cut {seconds}", "restore"]
    assert outcome.said == {f"{fault} at the switch": f"203.0.113.60 port Gi0/3: down, for {seconds} s"}


def test_what_runs_on_both_boards_is_found_by_the_patterns() -> None:
    sender = "/usr/lib/xen-4.17/bin/xl -v migrate -s  pvh64-1 env PYTHONPATH=/x python3 -m lab.on_board.proxy"
    assert re.search(attempt.SENDER, sender)
    assert not re.search(
        attempt.SENDER, "sh -c env PYTHONPATH=/x python3 -m lab.on_board.proxy -- ssh virt2 xl migrate-receive"
    )
    assert re.search(attempt.RECEIVER, "/usr/lib/xen-4.17/bin/xl migrate-receive")
    assert re.search(
        attempt.RESTORER, "/usr/lib/xen-4.17/bin/libxl-save-helper --restore-domain 11 20 12 1 0 2 0 768 0"
    )
    assert not re.search(attempt.RESTORER, "/usr/lib/xen-4.17/bin/libxl-save-helper --save-domain 15 11 8 1 136 0")


# -- what is looked at ---------------------------------------------------------------------------------------------

KEY_Q = """\
(XEN) General information for domain 0:
(XEN)     refcnt=3 dying=0 pause_count=0
(XEN) General information for domain 7:
(XEN)     refcnt=1 dying=0 pause_count=0
(XEN)     paging assistance: hap refcounts log_dirty translate external
(XEN) General information for domain 8:
(XEN)     paging assistance: hap refcounts translate external
"""


def test_the_paging_modes_of_a_domain_are_found() -> None:
    assert checks.paging(KEY_Q, 7) == "hap refcounts log_dirty translate external"
    assert checks.paging(KEY_Q, 8) == "hap refcounts translate external"
    assert checks.paging(KEY_Q, 0) is None


class FakeHost(Host):
    """What a host says when it is asked."""

    def __init__(self, *rows: DomainRow, said: str = "---\n---\n---\n", name: str = "virt2") -> None:
        spec = SimpleNamespace(nics={}, link_name=name)
        super().__init__(SimpleNamespace(spec=spec, name=name, run=None, steal_meter=None))
        self._rows, self._said = list(rows), said

    def rows(self) -> list[DomainRow]:
        return [row("Domain-0", 0), *self._rows]

    def run(self, command: str, **_: object) -> SimpleNamespace:
        return SimpleNamespace(stdout=self._said)


def row(name: str, domid: int = 5, state: str = "-b----") -> DomainRow:
    return DomainRow(name, domid, 16, 1, state, 1.0)


def test_nothing_left_is_nothing() -> None:
    assert checks.leftovers(FakeHost(), "g", set(), "source") == []


def test_leftovers_are_named() -> None:
    said = "  812 /usr/lib/xen-4.17/bin/xl migrate-receive\n---\n0\n5\n9\n---\nqemu-save.4\n---\n5\n9\n"
    host = FakeHost(row("g--incoming", state="--p---"), row("(null)", 7, "----pd"), said=said)
    assert checks.leftovers(host, "g", {"g"}, "destination") == [
        "domain g--incoming (--p---)",
        "dead domain 7 (----pd)",
        "process 812 /usr/lib/xen-4.17/bin/xl migrate-receive",
        "xenstore /local/domain/9",
        "device model of domain 9",
        "/var/lib/xen/qemu-save.4",
    ]


def test_the_monitor_of_a_guest_that_arrived_is_no_leftover() -> None:
    said = "  812 /usr/lib/xen-4.17/bin/xl migrate-receive\n---\n0\n5\n---\n---\n"
    assert checks.leftovers(FakeHost(row("g"), said=said), "g", {"g"}, "destination") == []


def test_on_one_board_each_end_sees_its_own_domains() -> None:
    board = FakeHost(row("g", 5), row("g--incoming", 6), row("other", 2))
    source, destination = on_one_board(board)
    source.rows = destination.rows = board.rows  # type: ignore[method-assign]
    source.made.add(5)  # type: ignore[attr-defined]
    assert set(source.domains()) == {"g"} and set(destination.domains()) == {"g--incoming", "other"}
    guest = Domain(source, DomainConfig("g", "pvh", "/kernel"))
    assert "/guest-g.log " in guest._logs() and ARRIVED not in guest._logs()
    assert "/guest-g--incoming.log " in guest.on(destination)._logs()
    assert source.link_name == destination.link_name == "localhost"


def test_a_guest_that_came_back_is_heard_in_the_order_of_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It began here under its name, went, and is back under that of its arrival; or the other way round."""
    monkeypatch.setattr(domain, "CONSOLE_DIR", str(tmp_path))
    board: Any = SimpleNamespace(name="virt1", run=lambda command, **_: sh(command), steal_meter=None)
    guest = Domain(Host(board), DomainConfig("g", "pvh", "/kernel"))
    assert guest.console() == []
    began, came = tmp_path / "guest-g.log", tmp_path / f"guest-g{ARRIVED}.log"
    began.write_text("XL HB 1 10 1.0\n")
    came.write_text("XL HB 2 20 2.0\n")
    os.utime(began, (1, 1))
    assert [beat.n for beat in guest.heartbeats()] == [1, 2]
    assert guest.wait_for("HB", 1, after=1) == "XL HB 2 20 2.0"
    with subprocess.Popen(["sh", "-c", f"sleep 0.3; echo 'XL HB 3 30 3.0' >> {came}"]):
        assert guest.beats(1, 5).n == 3
    with pytest.raises(ProductTimeout, match="last seen: beat 3"):
        guest.beats(1, 0)
    os.utime(came, (0, 0))
    assert [beat.n for beat in guest.heartbeats()] == [2, 3, 1]


def test_a_slow_board_is_waited_for_in_its_measure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A limit is stretched by how slow dom0 is when the time is up: a late guest is not a broken one."""
    monkeypatch.setattr(domain, "CONSOLE_DIR", str(tmp_path))
    monkeypatch.setattr(dom0, "_WORK", "sleep 0.6")
    board: Any = SimpleNamespace(name="virt1", run=lambda command, **_: sh(command), steal_meter=None)
    host = Host(board)
    guest = Domain(host, DomainConfig("g", "pvh", "/kernel"))
    with pytest.raises(ProductTimeout, match=r"not within 1\.0 s"):
        guest.wait_for("late", 1)
    with pytest.raises(ProductTimeout, match=r"virt1: it is: not within 0\.\d s"):
        host.expect(lambda: False, 0.1, "it is")
    monkeypatch.setattr(dom0, "_WORK_SECONDS", 0.1)
    assert host.slowness() == 4.0
    with subprocess.Popen(["sh", "-c", f"sleep 2.5; echo late > {tmp_path}/guest-g.log"]):
        assert guest.wait_for("late", 1) == "late"
    dead: Any = SimpleNamespace(
        name="virt1", run=lambda *_, **__: raising(BoardUnreachable("virt1", "gone")), steal_meter=None
    )
    assert Host(dead).slowness() == 1.0


def test_heartbeats_that_come_late_count_as_those_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Five beats are five beats: a wait that goes on does not begin to count anew."""
    monkeypatch.setattr(domain, "CONSOLE_DIR", str(tmp_path))
    monkeypatch.setattr(dom0.Dom0, "slowness", lambda _: 2.0)
    log, waits = tmp_path / "guest-g.log", iter([(2, 3, 4, 5), (6,)])
    log.write_text("XL HB 1 1000 101.0\n")

    def run(command: str, **_: object) -> Any:
        if "until" in command:  # four beats come in the first stretch, and one in the second
            with open(log, "a") as file:
                file.writelines(f"XL HB {n} {n}000 10{n}.0\n" for n in next(waits))
        return sh(command)

    board: Any = SimpleNamespace(name="virt1", run=run, steal_meter=None)
    assert Domain(Host(board), DomainConfig("g", "pvh", "/kernel")).beats(5, timeout=0.5).n == 6


@pytest.mark.parametrize(
    ("ran", "stolen", "waits"),
    [
        (25.0, 75.0, [100.0, 300.0]),
        (40.0, 60.0, [100.0, pytest.approx(150.0)]),
        (60.0, 40.0, [100.0]),
        (1.0, 99.0, [100.0, 300.0]),
        (0.0, 0.0, [100.0]),
    ],
)
def test_what_was_stolen_from_a_board_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, ran: float, stolen: float, waits: list[float]
) -> None:
    """A guest was late on a board that got a quarter of a processor, and dom0 was quick when it was asked."""
    monkeypatch.setattr(dom0.Dom0, "slowness", lambda _: 1.0)
    said = iter([StealTime(10.0, 5.0), *(StealTime(10.0 + ran, 5.0 + stolen) for _ in range(3))])
    board: Any = SimpleNamespace(name="virt1", run=None, steal_meter=SimpleNamespace(read=lambda: next(said)))
    assert list(Host(board).limits(100.0)) == waits


def test_a_board_that_does_not_tell_its_steal_time_is_waited_for_as_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    def read() -> StealTime:
        raise BoardError("virt1", "get steal: no answer")

    monkeypatch.setattr(dom0.Dom0, "slowness", lambda _: 1.0)
    board: Any = SimpleNamespace(name="virt1", run=None, steal_meter=SimpleNamespace(read=read))
    assert list(Host(board).limits(100.0)) == [100.0]


def test_a_hang_on_a_slow_board_is_told_before_the_limit_of_the_case(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dom0.Dom0, "slowness", lambda _: 4.0)
    board: Any = SimpleNamespace(name="virt1", run=None, steal_meter=None)
    rig = object.__new__(Rig)
    assert list(Host(board).limits(300.0)) == [300.0, 900.0]
    timer = signal.setitimer(signal.ITIMER_REAL, 0)  # that of this test
    try:
        assert list(Host(board, rig).limits(300.0)) == [300.0, 900.0], "a case without a limit"
        signal.setitimer(signal.ITIMER_REAL, 200.0)  # as pytest-timeout does
        assert list(Host(board, rig).limits(300.0)) == [300.0, pytest.approx(100.0, abs=1.0)], "half of what is left"
    finally:
        signal.setitimer(signal.ITIMER_REAL, *timer)


def raising(error: Exception) -> None:
    raise error


def sh(command: str) -> Any:
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=20)
    return SimpleNamespace(status=done.returncode, stdout=done.stdout, stderr=done.stderr)


# -- a trial, with boards that are not there -----------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _in_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "SETTLING", 0.1)
    monkeypatch.setattr(checks, "BEATS_LIMIT", 0.5)
    monkeypatch.setattr(checks, "start_migration", moved)


class FakeBoard(FakeHost):
    """A host whose guests are in a mapping; each look at a console finds another heartbeat."""

    def __init__(self, name: str) -> None:
        super().__init__(name=name)
        self.states, self.first, self.last = dict[str, str](), 1, 0
        self.asked: list[str] = []

    def rows(self) -> list[DomainRow]:
        return [row("Domain-0", 0), *(row(name, 5, state) for name, state in self.states.items())]

    def run(self, command: str, **_: object) -> SimpleNamespace:
        self.asked.append(command)
        for destroyed in re.findall(r"xl destroy (\S+)", command):
            self.states.pop(destroyed, None)
        if "poke resume" in command:
            self.states["g"] = "-b----"
        if command.startswith("awk "):  # the number of the last beat
            return SimpleNamespace(stdout=f"{self.last}\n", stderr="", status=0)
        if "$(awk " in command:  # wait for beats
            before, _ = self.last, self._console()
            return SimpleNamespace(stdout="", stderr="", status=0 if self.last > before else 9)
        if command.startswith("cat "):
            return SimpleNamespace(stdout=self._console(), stderr="", status=0)
        entries = "".join("5\n" for _ in self.states)
        return SimpleNamespace(stdout=f"---\n{entries}---\n---\n", stderr="", status=0)

    def _console(self) -> str:
        if self.states.get("g", "").strip("-") == "b":
            self.last += 4
        return "".join(f"XL HB {n} {n}00 {n}.0\n" for n in range(self.first, self.last + 1))

    def clock(self) -> float:
        return float(self.last)

    def xl(self, *words: str, **_: object) -> None:
        if words[0] == "rename":
            self.states[words[2]] = self.states.pop(words[1])

    def free_memory_mib(self) -> int:
        return 1000 - 16 * len(self.states)

    def debug_keys(self, keys: str) -> str:
        return KEY_Q.replace("domain 8", "domain 5")


def moved(guest: Domain, other: FakeBoard) -> FakeMigration:
    """A relocation that works: its heart goes on beating at the other end."""
    host = guest.host
    assert isinstance(host, FakeBoard)
    other.states["g"] = host.states.pop("g")
    other.first, other.last = host.last + 1, host.last
    return FakeMigration(Ending.SUCCESS.value)


def tried(text: str, end: Ending, here: dict[str, str], there: dict[str, str]) -> dict[str, checks.Check]:
    """The checks of a trial that ends so, with these domains on either side."""
    source, destination, cell = FakeBoard("virt1"), FakeBoard("virt2"), find(text)
    guest = Domain(source, DomainConfig("g", "pvh", "/kernel"))  # type: ignore[arg-type]
    before = checks.Before.of(source, destination)  # type: ignore[arg-type]
    source.states["g"] = "-b----"
    guest.beats(1)
    source.states, destination.states = dict(here), dict(there)
    outcome = attempt.Outcome(SimpleNamespace(skew=0.0), end, seconds=1.0)  # type: ignore[arg-type]
    found = checks.examine(cell, guest, destination, outcome, before)  # type: ignore[arg-type]
    assert not source.states and not destination.states
    return {check.name: check for check in found}


def test_a_good_end_is_good_in_every_check() -> None:
    found = tried("pvh64-cut-HVM_CONTEXT", Ending.RESUMED_AT_SENDER, {"g": "-b----"}, {})
    assert set(found) == set(checks.CHECKS)
    assert not [check.line() for check in found.values() if check.is_bad]


def test_an_undefined_end_is_resolved_at_the_source() -> None:
    here, there = {"g--migratedaway": "---ss-"}, {"g--incoming": "--p---"}
    found = tried("pvh64-cut-GO", Ending.UNDEFINED, here, there)
    assert [name for name, check in found.items() if check.is_bad] == ["left-destination"]
    assert found["resolved"].said.startswith(Where.SOURCE.value)


def test_two_copies_are_seen() -> None:
    found = tried("pvh64-cut-TSC_INFO", Ending.RESUMED_AT_SENDER, {"g": "-b----"}, {"g": "-b----"})
    bad = {name for name, check in found.items() if check.is_bad}
    assert {"one-copy", "where", "left-destination"} <= bad


def test_a_relocation_that_fails_afterwards_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "start_migration", lambda *_: FakeMigration())
    found = tried("pvh64-cut-HVM_CONTEXT", Ending.RESUMED_AT_SENDER, {"g": "-b----"}, {})
    assert [name for name, check in found.items() if check.is_bad] == ["follow-up"]
    assert found["follow-up"].said.endswith("8 bytes | + 95.000 s  PAGE_DATA x 2  1000 bytes")


def test_a_relocation_that_does_not_end_afterwards_says_how_far_it_came(monkeypatch: pytest.MonkeyPatch) -> None:
    class Endless(FakeMigration):
        def ending(self, timeout: float = 1.0) -> Ending:
            raise ProductTimeout("xl migrate of g ends", timeout, "Restoring domain")

    monkeypatch.setattr(checks, "start_migration", lambda *_: Endless())
    found = tried("pvh64-cut-HVM_CONTEXT", Ending.RESUMED_AT_SENDER, {"g": "-b----"}, {})
    assert [name for name, check in found.items() if check.is_bad] == ["follow-up"]
    assert f"not within {checks.FOLLOW_LIMIT}" in found["follow-up"].said
    assert "pass 1: 300 pages in 90 s" in found["follow-up"].said


def test_a_clock_that_goes_wrong_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeBoard, "clock", lambda board: board.last + 100.0)
    found = tried("pvh64-cut-TSC_INFO", Ending.RESUMED_AT_SENDER, {"g": "-b----"}, {})
    assert [name for name, check in found.items() if check.is_bad] == ["time"]


def test_a_wrong_ending_and_a_guest_that_stands_still_are_seen() -> None:
    found = tried("pvh64-cut-TSC_INFO", Ending.UNDEFINED, {"g": "---s--"}, {})
    assert found["ending"].is_bad and found["where"].is_bad


class FakeMigration:
    """A migration in which the proxy comes to every step."""

    skew, started = 0.0, 0.0

    def __init__(self, said: str = Ending.RESUMED_AT_SENDER.value, *, hangs: bool = False) -> None:
        self.said, self.hangs, self.done = said, hangs, list[str]()

    def wait_acted(self, timeout: float, *, kind: str) -> None:
        self.done.append(f"wait {kind}")

    def not_taken(self) -> list[str]:
        return []

    def release(self) -> None:
        self.done.append("release")

    def ends_within(self, timeout: float) -> bool:
        return not self.hangs or "break off" in self.done

    def break_off(self) -> None:
        self.done.append("break off")

    def ending(self, timeout: float = 1.0) -> Ending:
        return Ending(self.said)

    def output(self) -> str:
        return self.said

    def passes(self) -> list[Pass]:
        return [Pass(1, 5.0, 95.0, 300)]

    def text(self) -> str:
        return "+  5.000 s  STATIC_DATA_END  8 bytes\n+ 95.000 s  PAGE_DATA x 2  1000 bytes"


def attempted(
    monkeypatch: pytest.MonkeyPatch, text: str, migration: FakeMigration
) -> tuple[attempt.Outcome, FakeBoard]:
    source, destination = FakeBoard("virt1"), FakeBoard("virt2")
    monkeypatch.setattr(attempt, "start_migration", lambda *_, **__: migration)
    guest = Domain(source, DomainConfig("g", "pvh", "/kernel"))  # type: ignore[arg-type]
    return attempt.attempt(find(text), Ends(guest, source, destination)), destination  # type: ignore[arg-type]


def test_a_fault_by_hand_is_made_while_the_stream_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    migration = FakeMigration()
    outcome, destination = attempted(monkeypatch, "pvh64-receiver_kill-PAGE_DATA", migration)
    assert migration.done == ["wait hold", "release"]
    assert any("pkill -KILL" in command for command in destination.asked)
    assert outcome.ending is Ending.RESUMED_AT_SENDER and not outcome.unproved and not outcome.hung


def test_what_hangs_is_broken_off_and_put_right(monkeypatch: pytest.MonkeyPatch) -> None:
    migration = FakeMigration(hangs=True)
    outcome, destination = attempted(monkeypatch, "pvh64-receiver_stop-PAGE_DATA", migration)
    assert outcome.hung and migration.done[-1] == "break off"
    assert "pkill -CONT" in destination.asked[-1]


def test_a_fault_that_was_not_come_to_is_unproved(monkeypatch: pytest.MonkeyPatch) -> None:
    migration = FakeMigration(Ending.SUCCESS.value)
    monkeypatch.setattr(migration, "not_taken", lambda: ["cut@TSC_INFO"])
    assert "cut@TSC_INFO" in attempted(monkeypatch, "pvh64-cut-TSC_INFO", migration)[0].unproved


# -- what is known -------------------------------------------------------------------------------------------------


def read(tmp_path: Path, text: str) -> known_findings.Known:
    file = tmp_path / "known.yaml"
    file.write_text(text, encoding="utf-8")
    return known_findings.read(file, known_findings.MIGRATION, checks.CHECKS)


GOOD = """\
findings:
  left-paused: a copy stays
known:
  - finding: left-paused
    xen: ["4.17"]
    check: left-destination
    cells: [pvh64-cut-GO]
"""


def test_the_projects_own_file_is_good() -> None:
    content = known_findings.read(KNOWN, known_findings.MIGRATION, checks.CHECKS)
    assert set(content.findings) == set(content.entries.values())
    assert all(cell not in CELLS or not CELLS[cell].impossible for _, cell, _ in content.entries)


@pytest.mark.parametrize("file", sorted(KNOWN.parents[1].glob("*/known.yaml")), ids=lambda file: file.parent.name)
def test_each_finding_that_excuses_is_told(file: Path) -> None:
    told = {one.name: one for one in findings.seen()}
    read = files.read_yaml(file)
    assert read["findings"] and set(read["findings"]) <= set(told)
    for name in read["findings"]:
        excused = {release for entry in read["known"] if entry["finding"] == name for release in entry["xen"]}
        assert excused == {release for release, word in told[name].releases.items() if word == "seen"}, name
        assert told[name].page == f"docs/findings/{file.parent.name}.md#{name}"


def test_each_finding_in_xen_says_its_releases() -> None:
    headings = [line for file in findings.FOLDER.glob("*.md") for line in file.read_text().splitlines()]
    of_xen = [line for line in headings if line.startswith("## ") and "not Xen" not in line]
    assert len(findings.seen()) == len(of_xen)
    assert all(len(line) <= 180 and ("seen" in line or "finding" in line) for line in findings.table())


def test_a_finding_excuses_one_check_of_one_cell_on_one_release(tmp_path: Path) -> None:
    content = read(tmp_path, GOOD)
    assert content.finding("4.17.5", "pvh64-cut-GO", "left-destination") == "left-paused"
    assert content.finding("4.17", "pvh64-cut-GO", "left-destination") == "left-paused"
    assert content.finding("4.17-unstable", "pvh64-cut-GO", "left-destination") == "left-paused"
    assert not content.finding("4.170.1", "pvh64-cut-GO", "left-destination")
    assert not content.finding("4.20.0", "pvh64-cut-GO", "left-destination")
    assert not content.finding("4.17.5", "pvh64-cut-GO", "memory")
    assert not content.finding("4.17.5", "pvh64-cut-READY", "left-destination")


def test_excuses_are_visible_and_say_when_they_are_not_needed(tmp_path: Path) -> None:
    content, cell = read(tmp_path, GOOD), find("pvh64-cut-GO")
    bad = [Check("left-destination", False, "domain"), Check("memory", False, "page")]
    left, memory = checks.excused(bad, cell, "4.17.5", content)
    assert not left.is_bad and left.line() == "left-destination: known: left-paused: domain"
    assert memory.is_bad
    good = [Check("left-destination", True, "nothing")]
    assert checks.no_longer(good, cell, "4.17.5", content) == ["left-paused (left-destination)"]
    assert checks.no_longer(good, cell, "4.20.1", content) == []


def test_a_check_outside_the_matrix_is_excused_in_the_same_way(tmp_path: Path) -> None:
    content = read(tmp_path, GOOD.replace("pvh64-cut-GO", "balloon-up-pvh64"))
    said, made = list[tuple[str, str]](), list[Check]()
    evidence = SimpleNamespace(add=lambda title, body, kind: said.append((title, body)), checked=made.extend)
    where = (content, evidence, "4.17.5", "balloon-up-pvh64")
    with known_findings.excusing(*where, "left-destination"):
        raise AssertionError("a domain")
    with known_findings.excusing(*where, "left-destination"):
        pass
    with pytest.raises(AssertionError), known_findings.excusing(*where, "memory"):
        raise AssertionError("a page")
    assert said == [("known finding no longer shows", "left-paused (left-destination)")]
    assert made == [Check("left-destination", False, "a domain", "left-paused"), Check("memory", False, "a page")]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("pvh64-cut-GO", "pvh64-cut-GOO"), "known.yaml:7: known.0.cells.0: there is no pvh64-cut-GOO"),
        (("check: left-destination", "check: left"), "known.yaml:6: known.0.check: there is no left"),
        (("finding: left-paused", "finding: right"), "known.yaml:4: known.0.finding: there is no right"),
        (("[pvh64-cut-GO]", "[pvh64-cut-GO, pvh64-cut-GO]"), "excused twice"),
        (("    check:", "    checks:"), "unknown key (did you mean check?)"),
    ],
)
def test_mistakes_are_said_with_their_line(tmp_path: Path, change: tuple[str, str], said: str) -> None:
    with pytest.raises(UsageError) as error:
        read(tmp_path, GOOD.replace(*change))
    assert said in str(error.value)


# -- by hand -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cell", possible(), ids=lambda cell: cell.id)
def test_a_reproducer_is_shell_and_has_the_cells_action(cell: Cell) -> None:
    text = reproduce.commands(cell, "virt2", "52:54:00:00:00:01")
    done = subprocess.run(["bash", "-n"], input=text, text=True, capture_output=True, timeout=20, check=False)
    assert done.returncode == 0 and not done.stderr
    assert all(action in text for action in cell.actions)
    command = command_of(cell.fault)
    assert expected(cell).ending.name in text and (command is None or command.script in text)
    places = re.findall("^# ---.*", text, re.M)
    assert "# --- source" in places
    assert all(here != there for here, there in pairwise(places))


def test_what_cannot_be_cannot_be_reproduced() -> None:
    with pytest.raises(UsageError, match="no X86_PV_VCPU_BASIC"):
        reproduce.commands(find("pvh64-cut-X86_PV_VCPU_BASIC"), "virt2")
