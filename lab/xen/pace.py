"""How long Xen takes to answer dom0's toolstack, next to what dom0 computes meanwhile without asking Xen.

A hypervisor can die slowly: each domain, or each hour, makes it slower. Seconds alone do not show that, since a board
may be slow because its emulator or its machine is busy. Load slows both of what is measured here, in turn and a moment
apart; a hypervisor that loses time slows the first alone.
"""

from __future__ import annotations

from collections.abc import Iterable

from lab.xen.host import Host

SLOWER = 2.0  # times: more than what differs from one measurement to the next


def script(ask: str) -> str:
    """Shell commands that measure while they do ``ask`` (``xl list``, ``xl info``), and print a line for :func:`of`."""
    compute = "i=0; while [ $i -lt 2000 ]; do i=$((i + 1)); done"  # as long as one command of xl
    stamps = "echo $((b - a)) $(($(date +%s%N) - b))"
    return f"a=$(date +%s%N); {ask}; xl vcpu-list 0 >/dev/null; b=$(date +%s%N); {compute}; {stamps}"


def of(lines: Iterable[str]) -> float | None:
    """The pace of some lines, each of one round: the shortest answer by the shortest computation; None: of no line.

    A round that something interrupted is so left out.
    """
    rounds = [words for line in lines if len(words := line.split()) == 2 and all(map(str.isdigit, words))]
    if not rounds:
        return None
    asked, computed = (min(int(words[place]) for words in rounds) for place in (0, 1))
    return asked / max(computed, 1)


def measure(host: Host, rounds: int) -> float | None:
    """The pace of several rounds, each of about a second on a board that is emulated.

    :raises BenchError: dom0 does not answer, or one of its tools fails.
    """
    one = script("xl list >/dev/null; xl info >/dev/null")
    return of(str(host.run(f"for n in {' '.join(map(str, range(rounds)))}; do {one}; done").stdout).splitlines())
