"""Where Linux was when it said that something is wrong: RIP and the call trace of an oops, a BUG, a panic, a hang.

Formats are those of arch/x86/kernel/dumpstack.c, kernel/hung_task.c, kernel/watchdog.c and kernel/rcu/tree_stall.h,
Linux 2.6.16 to 7.x.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lab.console.frames import Frame, frame
from lab.console.lines import XEN
from lab.console.naming import plain_name

_THAT_TELL = 3  # frames; a place that all of these share with others is none
# Kinds that the timer, an NMI or another task notices: where it was is not where it is told.
_NOTICED = ("linux-hung-task", "linux-rcu-stall", "linux-soft-lockup", "linux-hard-lockup", "linux-workqueue-lockup")

# "EIP is at" is that of 32 bits, "PC is at" that of ARM, "pc :" that of arm64, "IP:" that of a head to 4.10. Linux 2.6
# puts a module before the name. Copies that took <...> for markup have no address.
_RIP = re.compile(
    r"(?:[RE]IP: [0-9a-f]{4}:|EIP is at |EIP: |\bIP: (?:[0-9a-f]{4}:)?|\bpc : |\bPC is at )"
    r"\s*(?:\[(?:<([0-9a-f]{6,16})>)?\]\s*)*(?::\w{1,60}:)?"
    r"([^\s+:]+)\+(0x[0-9a-f]{1,8})/0x"
)
_BRACED = re.compile(r"<([0-9a-f]{6,16})>\{(?::\w{1,60}:)?([A-Za-z_][\w.$]{0,200})\+(\d{1,8})\}")  # Linux 2.6.16
_FRAME = re.compile(
    r"(?:^|[\s>\]:])(?:\[<([0-9a-f]{6,16})>\]\s*)?(\? ?)?([A-Za-z_][\w.$]{0,200})\+(0x[0-9a-f]{1,8})/0x[0-9a-f]+"
    r"(?:\s+\[[\w -]{1,80}\]|\s+\([A-Z]{1,4}\)|\s+[\w./-]{1,200}\.[chS]:-?\d{1,6})*\s*$"
)
_CALLED_FROM = re.compile(  # ARM's 32 bits
    r"\bfrom \[<([0-9a-f]{6,16})>\] \(([A-Za-z_][\w.$]{0,200})\+(0x[0-9a-f]{1,8})/0x[0-9a-f]+(?: [^()]{1,200})?\)\s*$"
)
# As scripts/decode_stacktrace.sh tells it: "f (mm/foo.c:12) module".
_DECODED = re.compile(r"(?:^|[\s>\]:])(\? ?)?([A-Za-z_][\w.$]{0,200}) \([\w./-]{1,200}\.[chS]:\d")
_DECODED_RIP = re.compile(r"RIP: [0-9a-f]{4}:([A-Za-z_][\w.$]{0,200}) \([\w./-]{1,200}\.[chS]:\d")
_ENDS = re.compile(
    r"RIP: (?:00[23][0-9a-f]|e033):(?:0x|\[<0)|Modules linked in|---\[ end|Kernel panic|Rebooting in"
    r"|INFO: task .* blocked|NMI backtrace for cpu|Showing all locks"
)
_SECTION = re.compile(r"<(/?)(IRQ|NMI|SOFTIRQ|#DF|EOI|EOE)>")


def _functions(patterns: str) -> re.Pattern[str]:
    """One pattern of many, each for the whole of a function's name."""
    return re.compile("|".join(patterns.split()))


# Functions that tell of an oops, a warning or a panic: not where it was.
_TELLERS = _functions(r"""
    dump_stack\w*  show_(?:stack|trace|regs|task|state)\w*  v?panic  n?mi_panic  oops_\w+  __?die\w*  die_addr
    (?:asm_|xen_asm_|xenpv_|__)?(?:exc|do)_(?:page_fault|invalid_op|general_protection|error_trap|divide_error|nmi)
    (?:asm_|xen_asm_|xenpv_|__)?(?:exc|do)_(?:double_fault|int3|control_protection|stack_segment|machine_check|debug)
    page_fault_oops  no_context  __?bad_area\w*  mm_fault_error  (?:async_)?page_fault  invalid_op  general_protection
    kernelmode_fixup_or_oops  do_(?:user|kern)_addr_fault  spurious_kernel_fault\w*  do_trap\w*  early_fixup_exception
    __stack_chk_fail  __?fortify_panic  usercopy_abort  __check_heap_object  __?check_object_size
    rust_helper_BUG  \w*rust_begin_unwind  _RN\w*4core9panicking\w+  ubsan_epilogue  __ubsan_\w+
    handle_bug  report_bug  check_panic_on_warn  __warn\w*  warn_slowpath\w*  fixup_bad_\w+  watchdog_timer_fn
    bad_page  print_bad_p\w+  __schedule_bug  spin_(?:bug|dump)
    check_memory_region\w*  kasan_check_range  kmsan_\w+  __msan_\w+  stack_depot_\w+  __sanitizer_cov_\w+
    fixup_bug  bug_handler  brk_handler  call_break_hook  dump_backtrace  unwind_backtrace  __do_kernel_fault
    do_debug_exception  print_tainted  get_taint  (?:panic_|handle_|__)bad_stack
    do_tag_check_fault  do_mem_abort  el1\w*_(?:abort|dbg|sync)\w*
    print_report  print_address_description  kasan_\w+  __asan_\w+  __kasan_\w+  kfence_\w+
""")
# Functions in which all that waits is: not what it waits for.
_SLEEPERS = _functions(r"""
    _*switch_to  _*schedule  _*schedule_(?:timeout|preempt_disabled|hrtimeout)\w*  io_schedule\w*  schedule_hrtimeout\w*
    _*cond_resched  context_switch  kthread  ret_from_fork\w*
    (?:__|do_)?wait_for_common\w*  (?:__)?wait_for_completion\w*  wait_woken  do_wait_intr\w*  prepare_to_wait\w*
    _*mutex_lock\w*  _*ww_mutex_lock\w*  _*rt_mutex_\w*lock\w*  rwbase_\w+  rwsem_\w+  call_rwsem_down_\w+
    _*down  _*down_(?:read|write|common|killable|interruptible|timeout)\w*  _*percpu_down_\w+  ldsem_down_\w+
    out_of_line_wait_on_bit\w*  _*wait_on_bit\w*  bit_wait\w*  wait_on_page_bit\w*
    _*folio_wait_bit\w*  _*folio_lock\w*  _*lock_page\w*
""")
# Functions of the timer, the NMI and RCU that notice a hang: not where it hangs.
_TICKS = _functions(r"""
    _?sched_show_task  dump_cpu_task  rcu_\w+  (?:print|check)_(?:other_)?cpu_stall\w*
    update_process_times  tick_\w+  _*(?:run_)?hrtimer\w*  xen_timer_interrupt
    _*handle_irq_event\w*  handle_(?:percpu|edge|fasteoi)_irq  generic_handle_irq\w*  _*evtchn_\w*handle_events
    _*xen_\w*evtchn_do_upcall  _*xen_(?:do_)?(?:hypervisor|hvm)_callback\w*
    asm_\w+  exc_\w+  _*sysvec_\w+  _*(?:smp_|local_)?apic_timer_interrupt  irq_exit\w*  _*do_softirq\w*
    arch_timer_handler\w*  handle_percpu_devid_irq  _*(?:generic_)?handle_domain_irq  gic_handle_irq  __irq_svc
    el\d\w*_irq\w*  call_on_irq_stack  do_interrupt_handler
    nmi_\w+  default_do_nmi  do_nmi  end_repeat_nmi  arch_trigger\w*  trigger_\w*backtrace\w*
    watchdog_\w+  softlockup_\w+  _*perf_event_\w+  intel_pmu_\w+  amd_pmu_\w+
""")
# Functions in which a processor takes a lock or waits for it: not which.
_SPINNERS = _functions(r"""
    _*(?:native_|pv_)?queued_(?:spin|read|write)_lock_slowpath  xen_qlock_wait  xen_poll_irq\w*  xen_hypercall_\w+
    _*(?:do_)?raw_(?:spin|read|write)_(?:try)?lock\w*  osq_lock  cpu_relax
    (?:__)?lock_acquire  register_lock_class  look_up_lock_class  reacquire_held_locks
""")


@dataclass(frozen=True, slots=True)
class _Place:
    frame: Frame
    is_rip: bool
    is_guess: bool
    section: str  # IRQ, NMI, or ""


def frames(kind: str, lines: Sequence[str]) -> tuple[Frame, ...]:
    """Where it was, innermost first: of the first trace that tells, without the functions that only tell or wait.

    ``lines`` are those from the telling one on. Where a kernel marks all frames as guesses (``?``), they are taken.
    """
    places = list(_places(lines))
    found = _noticed(places) if kind in _NOTICED else _told(places)
    return tuple(place.frame for place in found)


def _told(places: Sequence[_Place]) -> list[_Place]:
    is_schedules = any(plain_name(place.frame.function) == "__schedule_bug" for place in places)
    return _beyond_locks(_without(places, _TELLERS, *([_SLEEPERS] if is_schedules else [])))


def _noticed(places: Sequence[_Place]) -> list[_Place]:
    told = [place for place in places if place.section != "NMI"]
    if not (places and places[0].is_rip):  # the trace is that of who noticed, up to the place where it broke in
        within = next((index for index, place in enumerate(told) if place.is_rip), 0)
        told = [place for place in told[within:] if not place.section] or told
    return _beyond_locks(_without(told, _TELLERS, _SLEEPERS, _TICKS))


def _beyond_locks(places: Sequence[_Place]) -> list[_Place]:
    """Who took the lock, where all frames that tell would be those of taking it."""
    is_deep = all(_is(_SPINNERS, place) for place in places[:_THAT_TELL])
    return _without(places, _SPINNERS) if is_deep else list(places)


def _without(places: Sequence[_Place], *machinery: re.Pattern[str]) -> list[_Place]:
    """The places that are sure, or else the guesses, without those of machinery; RIP always counts."""
    left = [place for place in places if place.is_rip or not any(_is(one, place) for one in machinery)]
    return [place for place in left if not place.is_guess] or left


def _is(pattern: re.Pattern[str], place: _Place) -> bool:
    return bool(pattern.fullmatch(plain_name(place.frame.function)))


def _places(lines: Sequence[str]) -> Iterator[_Place]:
    """RIPs and frames of the first trace, in order."""
    section, traces, has_frames = "", 0, False
    is_of_kthread = False  # kernel/rcu/tree_stall.h: first the trace of RCU's own thread
    for line in _frame_a_line(lines):
        if XEN in line and "(d0" not in line:
            continue
        if "BUG: KFENCE: " in line:  # mm/kfence/report.c: its first trace has no head
            traces = 1
        elif "kthread stack dump:" in line:
            is_of_kthread = not has_frames
        elif is_of_kthread:
            is_of_kthread = "NMI backtrace" not in line and "Sending NMI" not in line
        elif "Call Trace:" in line or "Call trace:" in line or "Backtrace:" in line:
            traces += 1
            if has_frames and traces > 1:
                return
        elif "lr : " in line or "LR is at" in line:  # ARM: where pc returns to, which the trace tells again
            continue
        elif match := _RIP.search(line):
            if _ENDS.search(line):
                return
            yield _Place(frame(match[1], match[2], match[3]), True, False, section)
            traces = max(traces, 1)
        elif match := _DECODED_RIP.search(line):
            yield _Place(frame(None, match[1], None), True, False, section)
            traces = max(traces, 1)
        elif has_frames and _ENDS.search(line):
            return
        else:
            section = _section_after(line, section)
            if traces and (match := _CALLED_FROM.search(line)):
                place, guess = frame(match[1], match[2], match[3]), ""
            elif traces and (match := _FRAME.search(line)):
                place = frame(match[1], match[3], match[4], is_sure=not match[2])
                guess = match[2]
            elif traces and (match := _DECODED.search(line)):
                place = frame(None, match[2], None, is_sure=not match[1])
                guess = match[1]
            else:
                continue
            has_frames = True
            yield _Place(place, False, bool(guess), section)


def _frame_a_line(lines: Sequence[str]) -> Iterator[str]:
    """The lines, with the frames of Linux 2.6.16 as later kernels write them: each on a line of its own."""
    for line in lines:
        found = list(_BRACED.finditer(line)) if "}" in line else []
        if not found:
            yield line
            continue
        lead = line[: found[0].start()]
        frames = [f" [<{one[1]}>] {one[2]}+{int(one[3]):#x}/0x0" for one in found]
        if "IP: " in lead:
            yield lead + frames[0]
        else:
            yield from (lead, *frames)


def _section_after(line: str, section: str) -> str:
    """Which stack the next frames are on."""
    for closes, name in _SECTION.findall(line):
        section = "" if closes or name.startswith("EO") else name
    return section
