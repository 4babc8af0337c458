"""Saved states of a board: a real daemon with a real QEMU that runs its firmware, what names a state, and the rig."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from virtual_board import VirtualBoard, make_board_fixture  # noqa: F401

from lab import inventory
from lab.base import paths
from lab.base.errors import BenchError, BoardError, HypervisorCrash, UsageError
from lab.base.wait import wait_until
from lab.boards import health
from lab.case import rig, saved
from lab.case.rig import Rig
from lab.case.seat import Seat
from lab.grid import services, strategy
from lab.grid.states import SavedStates
from lab.grid.strategy import XenStrategy
from lab.inventory import BmcSpec, BoardSpec, ConsoleSpec, NicSpec, VirtualSpec
from lab.virtual import bare, states
from lab.virtual.daemon import Machine
from lab.virtual.spec import DaemonConfig
from lab.virtual.states import States
from lab.xen import leftovers

MakeBoard = Callable[..., VirtualBoard]


@pytest.fixture(autouse=True)
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the states are."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "xenlab" / "states"


# -- the board itself ---------------------------------------------------------------------------------------------


def saved_board(make_board: MakeBoard) -> tuple[VirtualBoard, SavedStates]:
    board = make_board("redfish", tls="off")
    its = SavedStates("mini", str(board.folder / "control.sock"))
    assert board.ask("set power 1") == "ok"
    its.save("k1")
    return board, its


def test_a_board_goes_on_from_a_saved_state(make_board: MakeBoard) -> None:
    board, its = saved_board(make_board)
    assert (its.has("k1"), its.has("k2"), its.is_restored()) == (True, False, False)
    (board.folder / "disk.qcow2").write_bytes(b"what a case has written")
    its.restore("k1")
    assert (board.ask("get power"), its.is_restored()) == ("1", True)
    assert (board.folder / "disk.qcow2").read_bytes()[:3] == b"QFI"
    board.ask("set reset 1")
    wait_until(lambda: not its.is_restored(), 10.0, "a board that was reset goes on from no state")


def test_power_that_was_cut_ends_what_a_board_goes_on_from(make_board: MakeBoard) -> None:
    board, its = saved_board(make_board)
    its.restore("k1")
    for power in ("0", "1"):
        board.ask(f"set power {power}")
        assert not its.is_restored()


def damage(state: Path, how: str) -> None:
    machine, about = state / states.MACHINE, state / states.ABOUT
    said = json.loads(about.read_text())
    content = bytearray(machine.read_bytes())
    if how == "a flipped bit":
        content[len(content) // 2] ^= 1
    elif how == "cut off":
        del content[len(content) // 2 :]
        said["digests"][states.MACHINE] = None
    elif how == "other devices":
        said["devices"] += "  Bus  0, device   9, function 0:\n"
    elif how == "no disk":
        (state / states.DISK).unlink()
    machine.write_bytes(content)
    if said["digests"][states.MACHINE] is None:  # QEMU itself shall find it
        said["digests"][states.MACHINE] = states._digest(machine)
    about.write_text("{" if how == "nothing is known of it" else json.dumps(said))


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ("a flipped bit", "machine is damaged"),
        ("cut off", r"state restore k1: \S"),  # QEMU ends, and what is said is the end of its line
        ("other devices", "its PCI functions are not as they were"),
        ("no disk", "disk.qcow2"),
        ("nothing is known of it", "Expecting property name"),
    ],
)
def test_a_state_that_is_not_sound_is_refused_and_goes(make_board: MakeBoard, kept: Path, how: str, why: str) -> None:
    board, its = saved_board(make_board)
    damage(next(kept.iterdir()), how)
    with pytest.raises(BoardError, match=why):
        its.restore("k1")
    assert (board.ask("get power"), its.has("k1"), list(kept.iterdir())) == ("0", False, [])
    assert board.ask("set power 1") == "ok"  # and boots, as ever
    assert (board.ask("get power"), its.is_restored()) == ("1", False)


def test_a_board_that_is_off_or_boots_by_order_is_not_saved(make_board: MakeBoard, kept: Path) -> None:
    board = make_board("redfish", tls="off")
    its = SavedStates("mini", str(board.folder / "control.sock"))
    with pytest.raises(BoardError, match="the board does not run"):
        its.save("k1")
    board.ask("set boot pxe")
    board.ask("set power 1")
    with pytest.raises(BoardError, match="not powered on as it usually is"):
        its.save("k1")
    assert not kept.exists() or not list(kept.iterdir())


def test_who_cannot_be_asked_says_so(tmp_path: Path) -> None:
    with pytest.raises(BoardError, match="virt1: state has k: no answer: No such file"):
        SavedStates("virt1", str(tmp_path / "none")).has("k")


# -- what names a state -------------------------------------------------------------------------------------------


def name_of(home: Path, config: DaemonConfig, key: str = "k1", shape: str = "", seed: bytes = b"seed") -> str:
    (home / "seed.tar").write_bytes(seed)
    wiring = bare.wiring(home, config.kcs_port, config.link_peer_port)
    machine = Machine(config.board, home, wiring, shape=shape, emulator=config.emulator)
    return States(config, machine, home)._folder(key).name


def test_whatever_the_board_is_made_of_names_its_state(tmp_path: Path) -> None:
    virtual = VirtualSpec(accelerator="tcg", shapes={"large": inventory.ShapeSpec(vcpus=2)})
    board = BoardSpec("virt1", "127.0.0.1", BmcSpec("127.0.0.1", "c"), ConsoleSpec("sol", 1, 2), virtual=virtual)
    config = DaemonConfig(board, kcs_port=0, link_peer_port=0, stands_on="image a, QEMU 7.2, a CPU")
    other_board = replace(board, virtual=replace(virtual, memory_mib=4096))
    names = [
        name_of(tmp_path, config),
        name_of(tmp_path, config, key="k2"),  # another build, command line or payload
        name_of(tmp_path, config, shape="large"),
        name_of(tmp_path, config, seed=b"another identity"),
        name_of(tmp_path, replace(config, stands_on="image b, QEMU 7.2, a CPU")),
        name_of(tmp_path, replace(config, board=other_board)),
        name_of(tmp_path, replace(config, board=replace(board, dom0_options="quiet"))),
        name_of(tmp_path, replace(config, emulator=replace(config.emulator, binary="/opt/qemu"))),
    ]
    assert len(set(names)) == len(names)
    moved = replace(board, ssh_port=30000, virtual=replace(virtual, link_port=30001), bmc=replace(board.bmc, port=3))
    moved = replace(moved, console=replace(board.console, serve_port=30002, lines_port=30003, port=30004))
    kcs, link = replace(config, kcs_port=22117), replace(config, link_peer_port=22125)
    names += [name_of(tmp_path, one) for one in (kcs, link)]
    assert len(set(names)) == len(names)
    assert name_of(tmp_path, replace(config, board=moved)) == names[0]  # its ports may move
    assert name_of(tmp_path, replace(kcs, kcs_port=30006)) == names[-2]
    assert name_of(tmp_path, replace(link, link_peer_port=30005)) == names[-1]


def test_states_are_bounded(kept: Path) -> None:
    kept.mkdir(parents=True)
    for age, name in enumerate(("newest", "older", "oldest")):
        (kept / name).mkdir()
        (kept / name / states.MACHINE).write_bytes(b"x" * 10000)
        os.utime(kept / name, (1e9 - age, 1e9 - age))
    (kept / ".being-made").mkdir()
    (kept / ".half-made").mkdir()
    os.utime(kept / ".half-made", (1e9, 1e9))
    states.prune(2 * 12288)
    assert {one.name for one in kept.iterdir()} == {"newest", "older", ".being-made"}


def test_a_daemon_says_what_it_does_not_know(tmp_path: Path) -> None:
    one = object.__new__(States)
    one._turn = asyncio.Lock()
    assert asyncio.run(one.answer(["forget"])) == "error: unknown request"


# -- who offers it ------------------------------------------------------------------------------------------------


def test_a_board_offers_states_if_its_inventory_says_so(tmp_path: Path) -> None:
    text = (paths.INVENTORY / "virtual.yaml").read_text(encoding="utf-8")
    file = tmp_path / "lab.yaml"
    file.write_text(text.replace("link_port: 22115}", "link_port: 22115, saved_states: true}"), encoding="utf-8")
    boards = inventory.load(file).boards
    assert [boards[name].has_states for name in ("virt1", "virt2")] == [True, False]
    drivers = [services._target(inventory.load(file), boards[name])["drivers"] for name in ("virt1", "virt2")]
    assert ["SavedStatesDriver" in one for one in drivers] == [True, False]
    assert not replace(boards["virt1"], boot="network").has_states
    file.write_text(text.replace("link_port: 22115}", "link_port: 22115, saved_states: true, clock: instructions}"))
    with pytest.raises(UsageError, match="saved_states needs clock: machine"):
        inventory.load(file)


# -- the rig ------------------------------------------------------------------------------------------------------

CAPABLE = frozenset({"pv", "hvm"})
BEFORE = leftovers.parse("== memory\nfree_memory : 1800\n")


class Board:
    """A board that is off, and has a state; it notes what is done to it."""

    def __init__(self, *, has: bool = True) -> None:
        self.name, self.spec, self.did = "virt1", SimpleNamespace(capabilities=frozenset()), list[str]()
        self.is_up = self.goes_on = self.lacks_payloads = False
        self.boot_id = ""
        self.has = has
        self.fails: Exception | None = None
        self.states = SimpleNamespace(
            has=lambda key: self.has,
            save=lambda key: self.did.append("save"),
            drop=self.drop,
            is_restored=lambda: self.goes_on,
        )
        self.strategy = SimpleNamespace(
            restore=self.restore,
            go_on=lambda: self.did.append("go on"),
            set_clock=lambda: self.did.append("set clock"),
        )

    def restore(self, key: str) -> None:
        self.did.append("restore")
        if self.fails:
            raise self.fails
        self.is_up = self.goes_on = True
        self.boot_id = "of the state"

    def drop(self, key: str) -> None:
        self.did.append("drop")
        self.has = False

    def boot(self, what: str) -> None:
        self.did.append(what)
        self.is_up, self.goes_on = True, False
        self.boot_id = f"boot {len(self.did)}"

    def run(self, command: str) -> SimpleNamespace:
        return SimpleNamespace(stdout="")


@pytest.fixture
def bring(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Rig, Seat]]:
    """``bring(board)``: the board's seat in a rig whose proofs and boots are the fake's."""

    def is_proved(_: Rig, seat: Seat) -> bool:
        board = cast(Any, seat.board)
        if seat.suspect or not board.is_up:
            return False
        seat.proof, seat.boot_id = cast(Any, SimpleNamespace(mismatches=())), board.boot_id
        seat.is_restored = board.goes_on
        return not board.lacks_payloads

    def comes_back(_: Rig, seat: Seat) -> bool:
        cast(Any, seat.board).boot("power cycle")
        seat.suspect = None
        return is_proved(_, seat)

    def install(_: Rig, seat: Seat) -> None:
        board = cast(Any, seat.board)
        if not board.lacks_payloads:
            board.boot("install")
        board.lacks_payloads = False
        seat.suspect = None
        is_proved(_, seat)

    monkeypatch.setattr(Rig, "_is_proved", is_proved)
    monkeypatch.setattr(Rig, "_prove", is_proved)
    monkeypatch.setattr(leftovers, "look", lambda host: BEFORE)
    monkeypatch.setattr(Rig, "_comes_back", comes_back)
    monkeypatch.setattr(Rig, "_install", install)
    monkeypatch.setattr(Rig, "_is_same_boot", lambda *_: True)
    monkeypatch.setattr(Rig, "_probe", lambda _, seat: setattr(seat, "capabilities", CAPABLE))
    monkeypatch.setattr(Rig, "_begin", lambda _, seat: setattr(seat, "before", BEFORE))
    monkeypatch.setattr(Rig, "_wanted_on", lambda *_: SimpleNamespace(digest=lambda spec: "k1"))
    monkeypatch.setattr(Rig, "_take_capabilities", lambda _, seat, found: setattr(seat, "capabilities", found))
    monkeypatch.setattr(saved, "read", lambda board: saved.Facts("b1", CAPABLE, BEFORE, 1.5))
    monkeypatch.setattr(saved, "check", lambda *_: "as saved")

    def make(board: Board) -> tuple[Rig, Seat]:
        one = Rig(cast(Any, None), {"virt1": cast(rig.Board, board)}, cast(Any, None), Path())
        return one, one.seats["virt1"]

    return make


def test_a_board_with_a_state_is_not_booted_and_each_record_says_so(bring: Callable[..., tuple[Rig, Seat]]) -> None:
    one, seat = bring(board := Board())
    for _ in range(2):
        assert one.ready("virt1") is seat
        assert one.take_restored() == ("virt1",)
        titles = [evidence.title for evidence in one.take_evidence()]
        assert "virt1: goes on from a saved state: it was not booted for this case" in titles
    assert board.did == ["restore", "go on"]
    assert seat.pace == 1.5, "as it was measured after the boot"


def test_a_run_that_asks_for_a_boot_gets_one_for_its_first_case(bring: Callable[..., tuple[Rig, Seat]]) -> None:
    one, seat = bring(board := Board(has=False))
    board.is_up, board.boot_id, seat.must_boot = True, "of another process", True
    for _ in range(2):
        one.ready("virt1")
    assert board.did == ["power cycle", "save", "set clock"]


@pytest.mark.parametrize(("running", "did"), [("b1", ["deploy", "boot"]), ("b2", ["known-good", "deploy", "boot"])])
def test_a_board_is_deployed_from_a_build_that_has_proved_itself(
    running: str, did: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    strategy = SimpleNamespace(reboot=lambda **_: done.append("boot"))
    board = SimpleNamespace(name="virt1", run=None, is_reachable=lambda: True, strategy=strategy)
    one = Rig(cast(Any, None), {"virt1": cast(rig.Board, board)}, cast(Any, None), Path(), sound=frozenset({"b1"}))
    monkeypatch.setattr(Rig, "_boot_known_good", lambda *_: done.append("known-good"))
    monkeypatch.setattr(Rig, "_deploy", lambda *_: done.append("deploy"))
    monkeypatch.setattr(Rig, "_is_proved", lambda *_: "boot" in done)
    seat = one.seats["virt1"]
    seat.proof = cast(Any, SimpleNamespace(is_the_build=False, build_id=running))
    one._install(seat)
    assert done == did


def test_a_probe_that_failed_is_made_again(
    bring: Callable[..., tuple[Rig, Seat]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else all later cases would be left out, as on a board that lacks what they need."""
    one, seat = bring(Board(has=False))

    def fails(*_: object) -> None:
        raise BenchError("dom0 did not answer")

    with monkeypatch.context() as once:
        once.setattr(Rig, "_probe", fails)
        with pytest.raises(BenchError, match="did not answer"):
            one.ready("virt1")
    assert one.ready("virt1") is seat and seat.capabilities == CAPABLE


def test_a_board_without_a_state_boots_and_is_saved(bring: Callable[..., tuple[Rig, Seat]]) -> None:
    one, _ = bring(board := Board(has=False))
    one.ready("virt1")
    assert board.did == ["install", "save", "set clock"]
    assert one.take_restored() == ()


def test_a_board_that_has_not_just_booted_is_not_saved(bring: Callable[..., tuple[Rig, Seat]]) -> None:
    for lacks_payloads in (False, True):  # a board that is up, to which nothing or only payloads must be copied
        one, _ = bring(board := Board(has=False))
        board.is_up, board.boot_id, board.lacks_payloads = True, "of another process", lacks_payloads
        one.ready("virt1")
        assert board.did == []


def test_after_a_case_that_left_something_a_board_is_restored(bring: Callable[..., tuple[Rig, Seat]]) -> None:
    one, seat = bring(board := Board())
    one.ready("virt1")
    seat.suspect = "guest: still there"
    one.ready("virt1")
    assert board.did == ["restore", "go on"] * 2
    assert seat.suspect is None


def test_a_restored_board_that_was_lost_boots_next(bring: Callable[..., tuple[Rig, Seat]]) -> None:
    one, seat = bring(board := Board())
    one.distrust("virt1")
    assert board.did == []  # it has booted, for all that is known
    one.ready("virt1")
    one.distrust("virt1")
    seat.suspect = "the console showed a crash"
    one.ready("virt1")
    assert board.did[:4] == ["restore", "go on", "drop", "power cycle"]


def test_a_board_that_a_mutant_lost_is_sound_when_it_goes_on_without_it(bring: Callable[..., tuple[Rig, Seat]]) -> None:
    one, seat = bring(board := Board())
    one.ready("virt1")
    seat.suspect = "dom0 does not answer"
    is_sound, said = one._try_sound_build(seat, is_mutant=True)
    assert (is_sound, seat.suspect, seat.is_renewed) == (True, None, True) and "without the mutant" in said.title
    assert board.did == ["restore", "go on"] * 2
    one.ready("virt1")
    assert board.did == ["restore", "go on"] * 2  # once is enough


def test_a_cold_case_gets_a_boot(bring: Callable[..., tuple[Rig, Seat]]) -> None:
    one, _ = bring(board := Board())
    one.ready("virt1", is_cold=True)
    assert board.did[0] == "install" and one.take_restored() == ()
    assert "restore" not in board.did
    one, _ = bring(board := Board())
    one.ready("virt1")
    one.take_restored()
    one.ready("virt1", is_cold=True)
    assert board.did[:3] == ["restore", "go on", "power cycle"] and one.take_restored() == ()


def test_options_of_a_case_are_booted(bring: Callable[..., tuple[Rig, Seat]]) -> None:
    one, seat = bring(board := Board())
    seat.suspect = "it has crashed"
    one.ready("virt1", "pv=no-32")
    assert board.did == ["install"]


@pytest.mark.parametrize(
    "error", [BenchError("state restore k1: machine is damaged"), HypervisorCrash("virt1", "xen-panic", ("panic",))]
)
def test_a_state_that_is_not_sound_is_dropped_and_the_board_boots(
    bring: Callable[..., tuple[Rig, Seat]], error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    one, seat = bring(board := Board())
    board.fails = error
    one.ready("virt1")
    assert board.did[:3] == ["restore", "drop", "install"] and "go on" not in board.did
    assert (seat.is_restored, seat.suspect, one.take_restored()) == (False, None, ())
    assert [evidence.title for evidence in one.evidence] == ["virt1: a saved state was not sound; the board boots"]
    assert caplog.text.count("a saved state is not sound") == 1


def test_a_restored_board_that_differs_is_not_trusted(
    bring: Callable[..., tuple[Rig, Seat]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def check(*_: object) -> str:
        raise BoardError("virt1", "dom0's clock is +3.2 s off")

    monkeypatch.setattr(saved, "check", check)
    one, seat = bring(board := Board())
    one.ready("virt1")
    assert board.did[:3] == ["restore", "drop", "install"]
    assert not seat.is_restored


@pytest.mark.parametrize(
    ("takes", "dom0", "offset"),
    [
        (0.2, 1000.1, 0.0),
        (0.2, 1003.1, 2.9),  # what is certain
        (0.2, 996.1, -3.9),
        (3.0, 1002.4, 0.0),  # a busy board: its answer may be as old as the question
    ],
)
def test_a_clock_is_only_as_wrong_as_is_certain(
    monkeypatch: pytest.MonkeyPatch, takes: float, dom0: float, offset: float
) -> None:
    times = [1000.0, 1000.0 + takes]
    monkeypatch.setattr(strategy, "time", SimpleNamespace(time=lambda: times.pop(0)))
    ssh = SimpleNamespace(run=lambda *_, **__: SimpleNamespace(stdout=f"{dom0}\n"))
    board = SimpleNamespace(dom0=SimpleNamespace(ssh=ssh))
    board._clock = lambda: XenStrategy._clock(cast(Any, board))
    assert XenStrategy.clock_offset(cast(Any, board)) == pytest.approx(offset)


# -- what is compared ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "wrong"),
    [
        ({}, ""),
        ({"boot_id": "b2"}, "it runs another boot"),
        ({"capabilities": frozenset({"pv"})}, "its capabilities differ by hvm"),
        ({"before": replace(BEFORE, domains=frozenset({"guest"}))}, "guest: guest"),
        ({"before": replace(BEFORE, free_mib=1700)}, "100 MiB not given back"),
        ({"power": False}, "its BMC says that its power is off"),
        ({"mac": "52:54:00:22:11:09"}, "dom0 has no port spare"),
        ({"offset": -2.0}, "dom0's clock is -2.0 s off"),
    ],
)
def test_a_restored_board_is_held_against_what_it_was(
    monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], wrong: str
) -> None:
    monkeypatch.setattr(saved.health, "echo", lambda board: health.HealthFact("console echo", True, ""))
    said: list[str] = []

    def run(command: str) -> SimpleNamespace:
        if command.startswith("cat /sys"):
            return SimpleNamespace(stdout="52:54:00:22:11:02\n00:00:00:00:00:00\n")
        said.append(command.removeprefix("printf %s ").partition(" > ")[0].strip("'"))
        return SimpleNamespace(stdout=said[0])

    facts = saved.Facts("b1", CAPABLE, replace(BEFORE, processes={7: "xl devd"}), 1.5)
    ports = {"spare": NicSpec("spare", change.get("mac", "52:54:00:22:11:02"))}
    board = SimpleNamespace(
        name="virt1",
        run=run,
        spec=SimpleNamespace(nics=ports),
        power=SimpleNamespace(is_powered=lambda: change.get("power", True)),
        strategy=SimpleNamespace(clock_offset=lambda: change.get("offset", 0.1)),
    )
    facts.write(cast(Any, board))
    was = saved.read(cast(Any, board))
    found = replace(facts, **{key: value for key, value in change.items() if hasattr(facts, key)})
    if wrong:
        with pytest.raises(BoardError, match=wrong):
            saved.check(cast(Any, board), found, was)
    else:
        assert "2 capabilities, 1800 MiB free" in saved.check(cast(Any, board), found, was)
