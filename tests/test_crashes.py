"""Crashes read from consoles: what the dump says, and that one crash has one name."""

from __future__ import annotations

import random
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from lab.base.errors import HypervisorCrash
from lab.builds.elf import symbolise
from lab.case import conclude
from lab.case.bench import Bench
from lab.case.evidence import Running
from lab.console.client import ConsoleLine
from lab.console.crashes import LABEL_LIMIT, Crash, Frame, normalised, parse, with_symbols
from lab.console.patterns import classify, crash_excerpt
from lab.console.recalled import REACH
from lab.console.signatures import SIGNATURES
from lab.results.record import TestResult, Verdict
from lab.results.verdicts import Observation, decide

DATA = Path(__file__).parent / "data" / "console"

REGISTERS = """\
(XEN) RFLAGS: 0000000000010286   CONTEXT: hypervisor
(XEN) rax: 0000000000000000   rbx: ffff83013a816548   rcx: 0000000000000001
(XEN) Xen stack trace from rsp=ffff83013a80fe30:
(XEN)    ffff82d04027e412 0000000148d48d5a 0000000000000000 0000000000000000
"""

# xen/arch/x86/traps.c: do_invalid_op (BUGFRAME_assert), show_trace with frame pointers;
# xen/arch/x86/x86_64/traps.c: print_xen_info, _show_registers; xen/drivers/char/console.c: panic
ASSERTION = f"""\
(XEN) Assertion 'x' failed at common/sched/core.c:123
(XEN) ----[ Xen-4.17.5  x86_64  debug=y  Tainted:   C    ]----
(XEN) CPU:    2
(XEN) RIP:    e008:[<ffff82d040221234>] do_foo+0x12/0x34
{REGISTERS}(XEN) Xen call trace:
(XEN)    [<ffff82d040221234>] R do_foo+0x12/0x34
(XEN)    [<ffff82d040222345>] F common/sched/core.c#bar+0x45/0x67
(XEN)    [<ffff82d040223456>] F common/sched/core.c#bar+0x56/0x67
(XEN)    [<ffff82d040224567>] F baz.isra.0+0x67/0x89
(XEN)    [<ffff82d040225678>] F idle_loop+0x1/0x2
(XEN)
(XEN)
(XEN) ****************************************
(XEN) Panic on CPU 2:
(XEN) Assertion 'x' failed at common/sched/core.c:123
(XEN) ****************************************
"""
ASSERTION_LABEL = "xen-assertion: Assertion 'x' failed at common/sched/core.c / do_foo from bar from baz"

# xen/arch/x86/traps.c: do_page_fault, show_page_walk
PAGE_FAULT = f"""\
(XEN) [   12.345678] ----[ Xen-4.17.5  x86_64  debug=n  Not tainted ]----
(XEN) [   12.345680] CPU:    0
(XEN) [   12.345690] RIP:    e008:[<ffff82d040221234>] p2m.c#p2m_lookup+0x12/0x34
{REGISTERS}(XEN) [   12.345700] Xen call trace:
(XEN) [   12.345710]    [<ffff82d040221234>] R p2m.c#p2m_lookup+0x12/0x34
(XEN) [   12.345720]    [<ffff82d040222345>] F do_memory_op+0x45/0x67
(XEN) [   12.345730]
(XEN) [   12.345740] Pagetable walk from 0000000000000008:
(XEN) [   12.345750]  L4[0x000] = 0000000000000000 ffffffffffffffff
(XEN) [   12.345760]
(XEN) [   12.345770] ****************************************
(XEN) [   12.345780] Panic on CPU 0:
(XEN) [   12.345790] FATAL PAGE FAULT
(XEN) [   12.345800] [error_code=0002]
(XEN) [   12.345810] Faulting linear address: 0000000000000008
(XEN) [   12.345820] ****************************************
"""

# Linux: arch/x86/kernel/dumpstack.c, arch/x86/mm/fault.c
OOPS = """\
[   93.100000] BUG: kernel NULL pointer dereference, address: 0000000000000010
[   93.100001] #PF: supervisor read access in kernel mode
[   93.100003] Oops: 0000 [#1] PREEMPT SMP NOPTI
[   93.100004] CPU: 3 PID: 1234 Comm: xl Tainted: G        W          6.1.0-18-amd64 #1  Debian 6.1.76-1
[   93.100006] RIP: e030:evtchn_interrupt+0x2b/0x90 [xen_evtchn]
[   93.100007] Code: 48 8b 07 <48> 8b 40 10
[   93.100009] Call Trace:
[   93.100010]  <IRQ>
[   93.100011]  ? __die_body.cold+0x1a/0x1f
[   93.100012]  ? page_fault_oops+0xd2/0x2b0
[   93.100013]  __handle_irq_event_percpu+0x4d/0x1a0
[   93.100014]  handle_irq_event+0x3a/0x80
[   93.100015]  </IRQ>
[   93.100016]  <TASK>
[   93.100017]  asm_exc_xen_hypervisor_callback+0x21/0x30
[   93.100018]  </TASK>
[   93.100019] Modules linked in: xen_evtchn
[   93.100020] ---[ end trace 0000000000000000 ]---
[   93.100021] Kernel panic - not syncing: Fatal exception in interrupt
"""


def read(text: str, at: int | None = None) -> Crash:
    """As the plugin does: the first line that is a crash, and what is around it."""
    lines = [SimpleNamespace(text=line) for line in text.split("\n")]
    for index, line in enumerate(lines):
        signature = classify(line.text)
        if signature and at in (None, index) and signature.kind == "crash":
            return parse(signature.name, crash_excerpt(lines, index))
    raise AssertionError("no crash in it")


def recorded(name: str) -> Crash:
    return read((DATA / f"{name}.log").read_text(errors="replace"))


def names(crash: Crash) -> list[str]:
    return [frame.function for frame in crash.frames]


# what is read


def test_a_recorded_trap_is_read_though_its_dump_stands_far_before_the_panic() -> None:
    crash = recorded("417-boot-panic-EPYC")
    assert (crash.kind, crash.message) == ("xen-protection-fault", "GENERAL PROTECTION FAULT")
    assert (crash.cpu, crash.where, crash.version) == (1, "mwait_idle_with_hints", "4.17.7")
    assert (crash.is_debug, crash.tainted) == (False, "")
    assert crash.frames[0] == Frame("mwait_idle_with_hints", 0xD0, 0xFFFF82D04027DE30)
    assert crash.frames[1] == Frame(
        "arch/x86/acpi/cpu_idle.c#acpi_processor_idle", 0x322, 0xFFFF82D04027E412, is_sure=False
    )
    assert len(crash.frames) == 6


def test_one_crash_has_one_fingerprint_on_two_releases_and_cpus() -> None:
    old, new = recorded("417-boot-panic-EPYC"), recorded("420-EPYC-mwait-panic")
    assert (old.cpu, new.cpu) == (1, 3)
    assert old.fingerprint == new.fingerprint
    assert re.fullmatch(
        "[0-9a-f]{10} xen-protection-fault: GENERAL PROTECTION FAULT / mwait_idle_with_hints from acpi_processor_idle",
        old.fingerprint,
    )


def test_a_recorded_end_of_dom0_names_who_ended_it() -> None:
    crash = recorded("417-dom0-crash-smap-tcg")
    assert (crash.kind, crash.cpu, crash.where) == ("dom0-crash", 0, "entry.S")
    assert crash.message.startswith("domain_crash_sync called from entry.S: fault at ffff82d040204b78")
    assert crash.frames[0] == Frame("x86_64/entry.S#create_bounce_frame", 0x14F, 0xFFFF82D040204B78)
    assert crash.frames[1] == Frame("", None, 0xFFFFFFFF81A4603F)
    other = recorded("417-amdiommu-1G-crash")
    assert other.where == "drivers/passthrough/amd/iommu_map.c:457"
    assert other.label == "dom0-crash: domain_crash called from drivers/passthrough/amd/iommu_map.c"
    assert other.fingerprint != crash.fingerprint


def test_recorded_dma_faults_are_told_by_what_was_tried() -> None:
    crash = recorded("417-edu-dma-fault")
    assert crash.label == "iommu-fault: [VT-D]DMAR:[DMA Read] Request device [#] fault addr #"
    assert crash.frames == ()


def test_an_assertion() -> None:
    crash = read(ASSERTION)
    assert (crash.kind, crash.message) == ("xen-assertion", "Assertion 'x' failed at common/sched/core.c:123")
    assert (crash.cpu, crash.where) == (2, "common/sched/core.c:123")
    assert (crash.version, crash.is_debug, crash.tainted) == ("4.17.5", True, "C")
    assert names(crash)[:2] == ["do_foo", "common/sched/core.c#bar"]
    assert crash.label == ASSERTION_LABEL
    told = crash.text()
    assert "do_foo+0x12  [<ffff82d040221234>]" in told and crash.fingerprint in told and "debug=true" in told


def test_the_panic_of_an_assertion_tells_the_same_as_its_first_line() -> None:
    lines = ASSERTION.split("\n")
    panic = next(index for index, line in enumerate(lines) if "Panic on" in line)
    assert read(ASSERTION, panic).fingerprint == read(ASSERTION).fingerprint


def test_a_bug() -> None:  # xen/arch/x86/traps.c, do_invalid_op; 4.20: xen/common/bug.c, do_bug_frame
    crash = read(ASSERTION.replace("Assertion 'x' failed at", "Xen BUG at"))
    assert (crash.kind, crash.where) == ("xen-bug", "common/sched/core.c:123")
    assert crash.label == "xen-bug: Xen BUG at common/sched/core.c / do_foo from bar from baz"


def test_a_fatal_page_fault() -> None:
    crash = read(PAGE_FAULT)
    assert (crash.kind, crash.message, crash.cpu) == ("xen-page-fault", "FATAL PAGE FAULT", 0)
    assert crash.label == "xen-page-fault: FATAL PAGE FAULT / p2m_lookup from do_memory_op"


@pytest.mark.parametrize(
    ("said", "label"),
    [  # xen/arch/x86/traps.c: fatal_trap, do_invalid_op; the last is any panic() of Xen
        ("FATAL TRAP: vec 6, #UD[0000]", "xen-fatal-trap: FATAL TRAP: vec #, #UD[#]"),
        ("FATAL TRAP: vector = 6 (invalid opcode)", "xen-fatal-trap: FATAL TRAP: vector = # (invalid opcode)"),
        ("Could not construct domain 0", "xen-panic: Could not construct domain #"),
    ],
)
def test_a_panic_is_told_by_its_message(said: str, label: str) -> None:
    crash = read(PAGE_FAULT.replace("FATAL PAGE FAULT", said))
    assert (crash.message, crash.label) == (said, f"{label} / p2m_lookup from do_memory_op")


def test_words_of_others_amid_a_dump_do_not_matter() -> None:
    lines = PAGE_FAULT.split("\n")
    amid = [f"[   12.3] dom0 talks\n(XEN) (d3) Xen call trace: [<ffff82d040000000>] R evil+0x1/0x2\n{x}" for x in lines]
    crash = read("\n".join(amid))
    assert crash.fingerprint == read(PAGE_FAULT).fingerprint
    assert crash.frames == read(PAGE_FAULT).frames


def test_of_two_dumps_that_of_the_crash_is_taken() -> None:
    # xen/arch/x86/traps.c: BUGFRAME_warn prints a dump too, and Xen goes on
    warning = (
        ASSERTION.partition("(XEN)\n")[0].replace("Assertion 'x' failed", "Xen WARN").replace("do_foo", "harmless")
    )
    assert read(warning + PAGE_FAULT).fingerprint == read(PAGE_FAULT).fingerprint
    assert read(warning + ASSERTION).fingerprint == read(ASSERTION).fingerprint


def test_a_watchdog_and_a_double_fault() -> None:  # xen/arch/x86/nmi.c; xen/arch/x86/x86_64/traps.c: do_double_fault
    rest = ASSERTION.partition("\n")[2]
    crash = read(f"(XEN) Watchdog timer detects that CPU7 is stuck!\n{rest}")
    assert crash.label == "xen-watchdog: Watchdog timer detects that CPU# is stuck! / do_foo from bar from baz"
    assert crash.cpu == 7
    assert read(f"(XEN) *** DOUBLE FAULT ***\n{rest}").label.startswith(
        "xen-double-fault: *** DOUBLE FAULT *** / do_foo"
    )


def test_a_guest_that_was_crashed() -> None:
    # xen/include/xen/sched.h: domain_crash; xen/common/domain.c: __domain_crash
    lines = [
        "(XEN) Domain 3 (vcpu#0) crashed on cpu#1:",
        "(XEN) domain_crash called from arch/x86/hvm/vmx/vmx.c:3456",
        "(XEN) Domain 3 (vcpu#0) crashed on cpu#1:",
        "(XEN) ----[ Xen-4.17.5  x86_64  debug=y  Not tainted ]----",
        "(XEN) CPU:    1",
        "(XEN) RIP:    0010:[<ffffffff81000123>]",
    ]
    crash = parse("guest-crash", lines)
    assert (crash.cpu, crash.where, crash.is_debug) == (1, "arch/x86/hvm/vmx/vmx.c:3456", True)
    assert crash.label == "guest-crash: domain_crash called from arch/x86/hvm/vmx/vmx.c"
    other = parse("guest-crash", ["(XEN) Domain 12 (vcpu#3) crashed on cpu#0:"])
    assert (other.cpu, other.label) == (0, "guest-crash: Domain # (vcpu#) crashed on cpu#:")


def test_an_oops_of_dom0() -> None:
    crash = read(OOPS)
    assert (crash.kind, crash.cpu, crash.where) == ("linux-oops", 3, "evtchn_interrupt")
    assert names(crash) == [
        "evtchn_interrupt",
        "__handle_irq_event_percpu",
        "handle_irq_event",
        "asm_exc_xen_hypervisor_callback",
    ]
    assert crash.tainted == "G        W"
    assert crash.label == (
        "linux-oops: BUG: kernel NULL pointer dereference, address: # / "
        "evtchn_interrupt from __handle_irq_event_percpu from handle_irq_event"
    )


def test_a_panic_of_dom0_without_an_oops() -> None:  # kernel/panic.c: the trace comes after
    crash = read(
        "[    2.0] Kernel panic - not syncing: VFS: Unable to mount root fs on unknown-block(0,0)\n"
        "[    2.1] CPU: 0 PID: 1 Comm: swapper/0 Not tainted 6.1.0-18-amd64 #1\n"
        "[    2.2] RIP: 0010:mount_root+0x12/0x34\n"
        "[    2.2] Call Trace:\n[    2.3]  <TASK>\n[    2.4]  dump_stack_lvl+0x44/0x5c\n[    2.5]  panic+0x118/0x2ed\n"
        "[    2.6]  mount_block_root+0x1d1/0x1e6\n[    2.7]  prepare_namespace+0x136/0x165\n"
    )
    assert crash.cpu == 0
    assert crash.label == (
        "linux-panic: Kernel panic - not syncing: VFS: Unable to mount root fs on unknown-block(#,#) / "
        "mount_root from mount_block_root from prepare_namespace"
    )


# fingerprints


def elsewhere(text: str) -> str:
    """The same crash at another time, on another build: addresses, offsets, sizes, CPUs, lines, stamps differ."""
    text = re.sub(r"ffff82d0402", "ffff82d0407", text)
    text = re.sub(r"\+0x[0-9a-f]+/0x[0-9a-f]+", lambda match: f"+{len(match[0]) * 7:#x}/0x7ff", text)
    text = re.sub(r"(CPU:?\s+)\d", r"\g<1>9", text)
    text = re.sub(r"\.c:\d+", ".c:4567", text)
    text = re.sub(r"0000000000000010|0000000000000008", "00000000deadbeef", text)
    text = re.sub(r"\[ +\d+\.\d+\]", "[ 4321.000009]", text)
    return text.replace("Xen-4.17.5", "Xen-4.20.1").replace("PID: 1234", "PID: 77")


@pytest.mark.parametrize("text", [ASSERTION, PAGE_FAULT, OOPS])
def test_what_differs_by_chance_does_not_change_the_fingerprint(text: str) -> None:
    assert elsewhere(text) != text
    assert read(elsewhere(text)).fingerprint == read(text).fingerprint
    plain = re.sub(r"(?m)^((?:\(XEN\) )?)\[ +\d+\.\d+\] ", r"\1", text)
    assert read(plain).fingerprint == read(text).fingerprint


@pytest.mark.parametrize(
    ("text", "this", "that"),
    [
        (ASSERTION, "do_foo", "do_other"),
        (ASSERTION, "baz", "qux"),
        (ASSERTION, "'x'", "'y'"),
        (ASSERTION, "sched/core.c:", "sched/credit.c:"),
        (PAGE_FAULT, "do_memory_op", "do_domctl"),
        (PAGE_FAULT, "FATAL PAGE FAULT", "GENERAL PROTECTION FAULT"),
        (OOPS, "evtchn_interrupt", "blkif_interrupt"),
    ],
)
def test_another_place_is_another_fingerprint(text: str, this: str, that: str) -> None:
    assert read(text.replace(this, that)).fingerprint != read(text).fingerprint


def test_what_is_far_down_the_trace_does_not_change_the_fingerprint() -> None:
    assert read(ASSERTION.replace("idle_loop", "guest_loop")).fingerprint == read(ASSERTION).fingerprint


@pytest.mark.parametrize(
    ("message", "told"),
    [
        ("x86_64/entry.S#create_bounce_frame+0x14f/0x177", "create_bounce_frame"),
        ("Device 0000:03:00.1 of d12v3 on CPU11", "Device # of d# on CPU#"),
        ("watchdog: BUG: soft lockup - CPU#0 stuck for 22s! [kworker/1:2]", None),
        ("Assertion 'pv_32on64(d)' failed at arch/x86/mm.c:12", "Assertion 'pv_32on64(d)' failed at arch/x86/mm.c"),
        ("  two   blanks\t", "two blanks"),
    ],
)
def test_messages_lose_what_varies(message: str, told: str | None) -> None:
    said = normalised(message)
    assert said == told if told else not re.search(r"\d", said)
    assert normalised(said) == said


# symbols


@pytest.fixture(scope="module")
def elf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ELF at Xen's addresses, made by binutils."""
    if not shutil.which("as") or not shutil.which("ld"):
        pytest.skip("binutils is not installed")
    folder = tmp_path_factory.mktemp("elf")
    source = """
        .text
        .globl do_foo
        .type do_foo, @function
do_foo: .skip 32, 0x90
        .size do_foo, 32
        .type bar, @function
bar:    .skip 16, 0x90
        .size bar, 16
        .data
        .globl some_data
some_data: .quad 0
        .set an_absolute, 0xffff82d040200008
"""
    (folder / "x.s").write_text(source)
    subprocess.run(["as", "-o", "x.o", "x.s"], cwd=folder, check=True, timeout=60)
    words = ["ld", "-Ttext=0xffff82d040200000", "-e", "do_foo", "-o", "xen-syms", "x.o"]
    subprocess.run(words, cwd=folder, check=True, timeout=60)
    return folder / "xen-syms"


def test_an_address_is_in_the_function_before_it(elf: Path) -> None:
    start = 0xFFFF82D040200000
    assert symbolise(start, elf) == ("do_foo", 0)
    assert symbolise(start + 0x12, elf) == ("do_foo", 0x12)
    assert symbolise(start + 32, elf) == ("bar", 0)
    assert symbolise(start - 1, elf) is None
    assert symbolise(0xFFFFFFFF81000000, elf) is None


def test_without_symbols_there_are_none(tmp_path: Path) -> None:
    assert symbolise(1, tmp_path / "none") is None
    (tmp_path / "text").write_text("no ELF")
    assert symbolise(1, tmp_path / "text") is None


def test_a_dump_without_names_gets_them_from_the_build(elf: Path) -> None:
    bare = re.sub(r"\] R do_foo\S*|\] do_foo\S*", lambda match: "] R" if "R" in match[0] else "]", ASSERTION)
    bare = bare.replace("ffff82d040221234", "ffff82d040200012").replace("ffff82d040222345", "ffff82d040200024")
    bare = re.sub(r"F common/sched/core.c#bar\+0x45/0x67", "F ffff82d040200024", bare)
    crash = read(bare)
    assert crash.frames[0] == Frame("", None, 0xFFFF82D040200012)
    named = with_symbols(crash, elf)
    assert named.frames[:2] == (Frame("do_foo", 0x12, 0xFFFF82D040200012), Frame("bar", 4, 0xFFFF82D040200024))
    assert named.label == ASSERTION_LABEL
    assert named.fingerprint == read(ASSERTION).fingerprint
    assert with_symbols(crash, None) == with_symbols(crash, elf.parent / "none") == crash


# where it is used


def test_the_verdict_names_the_crash_and_the_record_keeps_it(elf: Path) -> None:
    lines = tuple(ASSERTION.split("\n"))
    decision = decide(Observation(crashes=(HypervisorCrash("virt1", "xen-assertion", lines),), symbols=elf))
    assert decision.reason.startswith(f"virt1: {ASSERTION_LABEL}; the console: (XEN) Assertion 'x' failed")
    assert [(one.kind, one.title) for one in decision.evidence] == [
        ("console", "xen-assertion"),
        ("crash", "what crashed"),
    ]
    assert "baz.isra.0+0x67" in decision.evidence[1].body
    assert decision.fingerprint == read(ASSERTION).fingerprint
    trap = HypervisorCrash("virt1", "xen-panic", ("(XEN) Panic on CPU 1:", "(XEN) FATAL PAGE FAULT"))
    assert decide(Observation(trap)).reason.startswith("virt1: xen-panic: xen-page-fault: FATAL PAGE FAULT; ")


def test_a_record_without_the_field_is_read() -> None:
    result = TestResult("a::b", "a", Verdict.FAIL, "console-crash", "x", 1.0, 2.0, fingerprint="01 xen-bug: x")
    assert TestResult.from_json(result.to_json()) == result
    old = result.to_json().replace('"fingerprint": "01 xen-bug: x", ', "")
    assert "fingerprint" not in old
    assert TestResult.from_json(old) == replace(result, fingerprint="")


# what consoles can come to


def hostile(rng: random.Random, text: str) -> str:
    noise = (
        "\x1b[2J",
        "\x00",
        "\ud800",
        "\u202e",
        "\u0663",
        "#" * 5000,
        "a+0x" * 900,
        "[<",
        "(XEN) ",
        "\r",
        "\x9b",
        "9" * 4000,
    )
    for _ in range(rng.randint(1, 6)):
        at = rng.randrange(len(text))
        match rng.randrange(4):
            case 0:
                text = text[:at]
            case 1:
                text = text[at:]
            case 2:
                text = text[:at] + rng.choice(noise) + text[at:]
            case _:
                text = text[:at] + text[at + rng.randrange(200) :]
        text = text or "x"
    return text


def test_no_damage_makes_it_raise() -> None:
    rng = random.Random(1)
    signatures = [signature.name for signature in SIGNATURES] + ["", "no such"]
    for number in range(600):
        lines = hostile(rng, (ASSERTION, PAGE_FAULT, OOPS)[number % 3]).split("\n")
        crash = parse(rng.choice(signatures), [rng.choice(lines), *lines] if number % 2 else lines)
        assert len(crash.label) <= LABEL_LIMIT
        assert not re.search(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff\u202e]", crash.fingerprint)
        crash.text().encode()


@pytest.mark.parametrize("lines", [[], [""], ["(XEN) Panic on CPU 0:"], ["\x00" * 10**6], ["(XEN) " * 10**6] * 3])
def test_next_to_nothing_is_a_crash_too(lines: list[str]) -> None:
    for signature in SIGNATURES:
        assert parse(signature.name, lines).kind


def test_a_cut_dump_gives_what_it_has() -> None:
    lines = PAGE_FAULT.split("\n")
    call_trace = next(index for index, line in enumerate(lines) if "call trace" in line)
    crash = read("\n".join([*lines[:call_trace], "(XEN) Panic on CPU 0:", "(XEN) FATAL PAGE FAULT"]))
    assert names(crash) == ["p2m.c#p2m_lookup"]
    assert read("(XEN) Xen BUG at common/x.c:12").label == "xen-bug: Xen BUG at common/x.c"


# -- a crash that is taken back ----------------------------------------------------------------------------------

STALL = "[   42.9] rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:"
OVER = "[   42.9] rcu: INFO: Stall ended before state dump start"
FRAMES = [f"[   43.0]  frame_{number}+0x1/0x2" for number in range(REACH)]


def on_the_way(texts: list[str]) -> tuple[Running, HypervisorCrash | None]:
    """A case whose board prints these lines: what is seen as it runs, and what it is concluded to be."""
    strategy = SimpleNamespace(is_under_test=True, since=0, is_old_news=lambda signature, text: False)
    running = Running(cast(pytest.Item, None), marks={"virt1": 0})
    running.seats["virt1"] = cast(Any, SimpleNamespace(board=SimpleNamespace(strategy=strategy)))
    bench = cast(Bench, SimpleNamespace(running=running, is_armed=False))
    lines = [ConsoleLine("virt1", number, 0.0, "line", text) for number, text in enumerate(texts)]
    for line in lines:
        Bench._on_console(bench, line)
    return running, conclude._crash(running, "virt1", lines)


def test_a_stall_that_linux_calls_over_ends_no_case() -> None:
    running, crash = on_the_way([STALL, "[   42.9] rcu: \t(detected by 0, t=2102 jiffies)", OVER, *FRAMES])
    assert running.crash is None and crash is None


def test_a_stall_that_stays_ends_the_case_by_the_line_that_told_it() -> None:
    running, crash = on_the_way([STALL, *FRAMES])
    assert running.crash and running.crash.lines == (STALL,) and running.crash_numbers == {"virt1": {0}}
    assert crash and crash.signature == "linux-rcu-stall" and crash.lines[0] == STALL


def test_a_stall_behind_which_the_board_falls_silent_is_concluded_to_be_a_crash() -> None:
    running, crash = on_the_way([STALL])
    assert running.crash is None and crash and crash.signature == "linux-rcu-stall"


def test_a_panic_behind_a_stall_ends_the_case_at_once() -> None:
    running, _ = on_the_way([STALL, "[   43.0] Kernel panic - not syncing: RCU Stall"])
    assert running.crash and running.crash.lines == (STALL,)
