"""A directory of built XTF tests becomes cases; what is wrong with it is said."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import xtf_tree

from lab.base.errors import UsageError
from lab.night.options import NightlyOptions
from lab.night.planning import collect
from lab.xen import dom0, xtf
from lab.xen.host import Host


@pytest.fixture(name="tree")
def tree_fixture(tmp_path: Path) -> Path:
    kernel = tmp_path / "kernel"
    kernel.write_bytes(b"\x7fELF")
    return xtf_tree.make(tmp_path / "xtf", dict.fromkeys(xtf_tree.KERNELS.values(), kernel))


def test_each_instance_is_found(tree: Path) -> None:
    found = {one.name: one for one in xtf.instances(tree)}
    assert {name for name in found if "good" in name} == {
        "pv64-good~one",
        "pv64-good~two",
        "pv32pae-good~one",
        "pv32pae-good~two",
    }
    assert found["pv32pae-failing"].needs == ("pv", "pv32")
    assert found["pv64-crashing"].category == "xsa"


@pytest.mark.parametrize(
    ("environment", "variation", "needs"),
    [
        ("hvm32pae", "", ("hvm", "qemu", "pae-guests")),
        ("hvm64", "shadow", ("hvm", "qemu", "shadow")),
        ("pv64", "vmassist", ("pv",)),
    ],
)
def test_what_an_instance_needs(environment: str, variation: str, needs: tuple[str, ...]) -> None:
    assert xtf.Instance("x", "xsa", environment, variation, Path("k"), Path("c")).needs == needs


def test_cases_are_collected_with_needs_and_selection(tree: Path) -> None:
    """Functional and XSA tests are a night's work, the other categories a week's; without --xtf there are none."""
    cases = {
        case.nodeid.partition("[")[2]: case for case in collect(NightlyOptions(xtf=tree), "full") if case.area == "xtf"
    }
    assert set(cases) == {
        "functional-pv64-good~one]",
        "functional-pv64-good~two]",
        "functional-pv32pae-good~one]",
        "functional-pv32pae-good~two]",
        "functional-hvm64-firmware]",
        "functional-hvm32-firmware]",
        "functional-pv64-skipping]",
        "xsa-pv64-erring]",
        "xsa-pv32pae-failing]",
        "xsa-pv64-crashing]",
    }
    assert cases["xsa-pv32pae-failing]"].needs == ("pv", "pv32")
    assert [case for case in collect(NightlyOptions(), "weekly") if case.area == "xtf"] == []


def test_a_configuration_keeps_all_but_name_and_place(tree: Path) -> None:
    instance = next(one for one in xtf.instances(tree) if one.name == "pv64-good~one")
    host: Any = Host(SimpleNamespace(name="virt1", run=None, steal_meter=None))
    text = xtf.config(host, instance).text()
    assert 'kernel="/var/lib/xenlab/guests/xtf/good/test-pv64-good"' in text
    assert 'extra="work=mode xtf=1"' in text
    assert 'loader="generic" # Legacy' in text
    assert 'name = "xtf-pv64-good-one-' in text
    assert "/opt/xtf" not in text


def test_the_kernel_of_an_hvm_test_is_its_firmware(tree: Path) -> None:
    instance = next(one for one in xtf.instances(tree) if one.name == "hvm32-firmware")
    host: Any = Host(SimpleNamespace(name="virt1", run=None, steal_meter=None))
    config = xtf.config(host, instance)
    assert config.kind == "hvm" and instance.needs == ("hvm", "qemu")
    assert 'firmware_override="/var/lib/xenlab/guests/xtf/firmware/test-hvm32-firmware"' in config.text()


def test_a_test_that_is_late_on_a_slow_board_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    host: Any = Host(SimpleNamespace(name="virt1", run=None, steal_meter=None))
    ends = time.monotonic() + 0.4
    late: Any = SimpleNamespace(
        name="g", host=host, is_there=True, console=lambda: ["Test result: SUCCESS"] * (time.monotonic() > ends)
    )
    monkeypatch.setattr(dom0.Dom0, "slowness", lambda _: 1.0)
    assert xtf.outcome(late, 0.1) == ("CRASH", "no result within 0.1 s")
    monkeypatch.setattr(dom0.Dom0, "slowness", lambda _: 300.0)
    assert xtf.outcome(late, 0.1) == ("SUCCESS", "Test result: SUCCESS")


def test_a_directory_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no built XTF: it has no tests/NAME/info\.json"):
        xtf.instances(tmp_path)
    with pytest.raises(UsageError, match="no built XTF"):
        collect(NightlyOptions(xtf=tmp_path), "full")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"environments": "pv64"}, r"info\.json: environments: must be a list"),
        ({"environments": ["arm64"]}, r"info\.json: environments\.0: must match"),
        ({"environments": ["pv64", "hvm32"]}, r"it names hvm32, but .*test-hvm32-extra is not there"),
        ({"variations": ["hap"]}, r"it names pv64, but .*test-pv64-extra~hap\.cfg is not there"),
    ],
)
def test_a_test_that_lacks_something_is_refused(tree: Path, change: dict[str, object], said: str) -> None:
    file = tree / "tests" / "extra" / "info.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(UsageError, match=said):
        xtf.instances(tree)
