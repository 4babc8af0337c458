"""IOMMU faults that a board has at its known-good boot count against no case; any other does."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from lab.base.errors import BenchError, HypervisorCrash
from lab.case import conclude
from lab.console.client import ConsoleLine
from lab.console.fault_baseline import BOOTS, SIGNATURE, FaultBaseline, fault_of
from lab.console.patterns import classify
from lab.grid.boot import Boot
from lab.grid.strategy import XenStrategy

GRAPHICS = "(XEN) [VT-D]DMAR:[DMA Read] Request device [0000:00:02.0] fault addr 8e43c000"
NIC = "(XEN) [VT-D]DMAR:[DMA Write] Request device [0000:03:00.0] fault addr 1000"


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (GRAPHICS, "DMA Read by 0000:00:02.0"),
        (
            "(XEN) [    9.1] [VT-D]DMAR:[DMA Read] Request device [0000:00:02.0] fault addr 0",
            "DMA Read by 0000:00:02.0",
        ),
        (NIC, "DMA Write by 0000:03:00.0"),
        (f"{NIC}, iommu reg = ffff82c000203000", "DMA Write by 0000:03:00.0"),
        ("(XEN) [VT-D]INTR-REMAP: Request device [0000:f0:1f.7] fault index 0", "INTR-REMAP by 0000:f0:1f.7"),
        (
            "(XEN) AMD-Vi: IO_PAGE_FAULT: 0000:00:14.0 d0 addr 00000000fdf80200 flags 0x8 I",
            "IO_PAGE_FAULT by 0000:00:14.0 of dom0",
        ),
        (
            "(XEN) AMD-Vi: IO_PAGE_FAULT: 0000:00:14.0 d7 addr 00000000fdf80200 flags 0",
            "IO_PAGE_FAULT by 0000:00:14.0 of a guest",
        ),
        (
            "(XEN) AMD-Vi: IO_PAGE_FAULT: domain = 0, device id = 0xa0, fault address = 0xfdf8020200, flags = 0",
            "IO_PAGE_FAULT by 0xa0 of dom0",
        ),
        (
            "(XEN) smmu: /smmu@fd800000: Unhandled context fault: fsr=0x402, iova=0xf9030040, fsynr=0x12, cb=0",
            "Unhandled context fault at /smmu@fd800000",
        ),
        ("(XEN) SMMUv3: /smmuv3@9050000: event 0x10 received:", "event 0x10 at /smmuv3@9050000"),
        (
            "(XEN) ipmmu: /soc/iommu@e67b0000: d2: Unhandled fault: status 0x00000101 iova 0x0000000070a00000",
            "Unhandled fault at /soc/iommu@e67b0000",
        ),
        ("(d1) [VT-D]DMAR:[DMA Read] Request device [0000:00:02.0] fault addr 0", None),
        ("(XEN) [VT-D]DMAR: reason 06 - PTE Read access is not set", None),
        ("(XEN) Panic on CPU 0:", None),
    ],
)
def test_a_fault_is_told_by_its_kind_its_device_and_its_owner(text: str, fault: str | None) -> None:
    assert fault_of(text) == fault
    if fault:
        signature = classify(text)
        assert signature and (signature.kind, signature.name) == ("crash", SIGNATURE)


def test_only_faults_of_the_known_good_boot_are_known(tmp_path: Path) -> None:
    file = tmp_path / "faults" / "virt1.json"
    baseline = FaultBaseline(file)
    assert not baseline.knows(GRAPHICS)
    baseline.learn(17, ["(XEN) Xen version 4.17", GRAPHICS, GRAPHICS])
    for one in (baseline, FaultBaseline(file)):
        assert one.knows(GRAPHICS)
        assert not one.knows(NIC)
        assert not one.knows(GRAPHICS.replace("DMA Read", "DMA Write"))
        assert dict(one.faults()) == {"DMA Read by 0000:00:02.0": 2}


def test_what_is_learnt_of_one_boot_twice_is_that_boot_once(tmp_path: Path) -> None:
    baseline = FaultBaseline(tmp_path / "x.json")
    baseline.learn(17, [GRAPHICS])
    baseline.learn(17, [GRAPHICS, NIC, NIC])
    assert dict(baseline.faults()) == {"DMA Read by 0000:00:02.0": 1, "DMA Write by 0000:03:00.0": 2}
    baseline.learn(17, [GRAPHICS])
    assert not baseline.knows(NIC)


def test_a_fault_that_no_boot_has_had_for_long_is_news_again(tmp_path: Path) -> None:
    baseline = FaultBaseline(tmp_path / "x.json")
    baseline.learn(1, [NIC])
    for boot in range(2, BOOTS + 1):
        baseline.learn(boot, [GRAPHICS])
        assert baseline.knows(NIC)
    baseline.learn(BOOTS + 1, [GRAPHICS])
    assert not baseline.knows(NIC)
    assert baseline.knows(GRAPHICS)


@pytest.mark.parametrize("content", ["", "{", "null", "[1, 2]", '[{"boot": 1, "faults": [1]}]', '{"a": 1}'])
def test_a_file_that_is_broken_knows_nothing(tmp_path: Path, content: str) -> None:
    file = tmp_path / "x.json"
    file.write_text(content)
    baseline = FaultBaseline(file)
    assert not baseline.knows(GRAPHICS)
    baseline.learn(1, [GRAPHICS])
    assert FaultBaseline(file).knows(GRAPHICS)


def test_the_record_says_which_known_faults_were_there(tmp_path: Path) -> None:
    baseline = FaultBaseline(tmp_path / "x.json")
    baseline.learn(1, [GRAPHICS] * 3)
    assert baseline.told([GRAPHICS, NIC, GRAPHICS]) == (
        "DMA Read by 0000:00:02.0: 2 times here, 3 at a known-good boot"
    )
    assert baseline.told([NIC]) == ""


class Consoled:
    """The parts of XenStrategy that judge a fault, over a console of lines."""

    _learn_faults = XenStrategy._learn_faults
    is_old_news = XenStrategy.is_old_news

    def __init__(self, entry: str, baseline: FaultBaseline, lines: list[str] | None = None) -> None:
        self.entry, self.since, self.faults = entry, 5, baseline
        self.console = SimpleNamespace(lines=self._lines)
        self._texts = lines

    def _lines(self, since: int) -> list[ConsoleLine]:
        if self._texts is None:
            raise BenchError("no recorder answers")
        return [ConsoleLine("virt1", since + n, 0.0, "line", text) for n, text in enumerate(self._texts)]

    @property
    def is_under_test(self) -> bool:
        return self.entry == "under-test"


def test_the_known_good_boot_teaches_and_the_build_under_test_does_not(tmp_path: Path) -> None:
    baseline = FaultBaseline(tmp_path / "x.json")
    Consoled("under-test", baseline, [NIC])._learn_faults()
    assert not baseline.faults()
    Consoled("known-good", baseline, [GRAPHICS])._learn_faults()
    assert list(baseline.faults()) == ["DMA Read by 0000:00:02.0"]
    Consoled("known-good", baseline, None)._learn_faults()  # the recorder is away
    assert list(baseline.faults()) == ["DMA Read by 0000:00:02.0"]


def test_a_fault_is_old_news_with_the_known_good_build_or_if_it_had_it(tmp_path: Path) -> None:
    baseline = FaultBaseline(tmp_path / "x.json")
    baseline.learn(1, [GRAPHICS])
    under_test, known_good = Consoled("under-test", baseline), Consoled("known-good", baseline)
    assert under_test.is_old_news(SIGNATURE, GRAPHICS)
    assert not under_test.is_old_news(SIGNATURE, NIC)
    assert known_good.is_old_news(SIGNATURE, NIC)
    assert not known_good.is_old_news("xen-panic", "(XEN) Panic on CPU 0:")


def test_a_boot_is_not_ended_by_old_news(tmp_path: Path) -> None:
    baseline = FaultBaseline(tmp_path / "x.json")
    baseline.learn(1, [GRAPHICS])
    lines = [ConsoleLine("virt1", n, 0.0, "line", text) for n, text in enumerate([GRAPHICS, NIC])]
    under_test = Boot("virt1", "under-test", 0.0, is_old_news=Consoled("under-test", baseline).is_old_news)
    assert under_test.read(lines[:1], 1.0) is None
    found = under_test.read(lines[1:], 2.0)
    assert found and (found[0].name, found[1]) == (SIGNATURE, 1)
    known_good = Boot("virt1", "known-good", 0.0, is_old_news=Consoled("known-good", baseline).is_old_news)
    assert known_good.read(lines, 1.0) is None
    panic = ConsoleLine("virt1", 2, 0.0, "line", "(XEN) Panic on CPU 0:")
    assert known_good.read([panic], 2.0) is not None


def concluded(tmp_path: Path, lines: list[str], live: set[int] | None = None) -> HypervisorCrash | None:
    baseline = FaultBaseline(tmp_path / "x.json")
    baseline.learn(1, [GRAPHICS])
    strategy = Consoled("under-test", baseline)
    running = SimpleNamespace(
        seats={"virt1": SimpleNamespace(board=SimpleNamespace(strategy=strategy))},
        crash_numbers={"virt1": live or set()},
        expected=frozenset(),
    )
    told = [ConsoleLine("virt1", 10 + n, 0.0, "line", text) for n, text in enumerate(lines)]
    return conclude._crash(running, "virt1", told)  # type: ignore[arg-type]


def test_a_case_is_judged_by_new_faults_only(tmp_path: Path) -> None:
    assert concluded(tmp_path, [GRAPHICS, "(XEN) d1v0 Over-allocation", GRAPHICS]) is None
    found = concluded(tmp_path, [GRAPHICS, NIC, GRAPHICS])
    assert found and found.signature == SIGNATURE
    assert found.lines[0] == NIC
    found = concluded(tmp_path, [GRAPHICS, "(XEN) Panic on CPU 0:"])
    assert found and found.signature == "xen-panic"


def test_what_ended_the_case_when_it_was_seen_ends_it_still(tmp_path: Path) -> None:
    found = concluded(tmp_path, [GRAPHICS], live={10})
    assert found and found.lines[0] == GRAPHICS
