"""Names a crash by what is the same each time: message without numbers, function without compiler's suffix."""

from __future__ import annotations

import re

# The folders at the top of Linux' and of Xen's source: with which a file's path begins, wherever it was built.
_TOPS = frozenset(
    "arch block certs common crypto drivers fs include init io_uring ipc kernel lib mm net rust samples security sound "
    "test tools usr virt xsm".split()
)
_PATH = re.compile(r"(?<![\w./~+-])(?:/|\.{1,3}/|\.{3})[\w./+~-]{1,300}?\.[chS]\b")

_TASK = re.compile(r"(?<=INFO: task )[^/:]{1,60}|(?<=s! \[)[^\]/:]{1,60}")  # vif1.0-q0: a guest's number

_APPENDED = r"\.(?:cold|isra|constprop|part|lto_priv|llvm)\b"  # to a function's name, by compilers

_VARIABLE = tuple(
    (re.compile(pattern), instead)
    for pattern, instead in (
        # The tail of an oops is its number, its error code and the kind of kernel and processor.
        (r"(?::\s*|\s+)[0-9a-f]{4} \[#?\d+\].*", ""),
        (r"^(?:Oops: )+(?=\w)", ""),
        (r"^Internal error: (?=Oops)", ""),  # ARM, and then what x86 says
        (r'(", line) \d+', r"\1"),  # NetBSD's kern_assert
        (r"((?:Hardware Dom|Domain )\d+ crashed):.*", r"\1"),  # and then: whether Xen reboots
        (r"(rcu\w* (?:self-)?detected (?:expedited )?stalls? on (?:CPU|tasks)\w*(?:/tasks)?).*", r"\1"),
        (r"(hard LOCKUP on cpu \d+).*", r"\1"),  # old kernels forgot the line's end
        # Of a task its name: not its number, its processor, its work
        (r"INFO: task (.{1,60}?)(?:/.{0,60})?:\d+ blocked (?:in I/O wait )?for", r"INFO: task \1 blocked for"),
        (r"INFO: task (.{1,60}?)(?:/.{0,60})?:\d+ can't die for", r"INFO: task \1 can't die for"),
        (r" \[([^\]/]{1,60}?)(?:/[^\]]{0,60})?:\d+\]", r" [\1]"),
        (r"(scheduling while atomic: [^/]{1,40})/.*", r"\1"),
        (r"(BUG: Bad page \w+ in process [^\s/]{1,40}).*", r"\1"),
        (r"(BUG: (?:spin|rw)lock .{1,40} on CPU#\d+, [^/]{1,40})/.*", r"\1"),
        (r" \([\w./-]{1,200}\.[chS]:\d[^)]{0,200}\)", ""),  # behind a function, as decode_stacktrace.sh tells it
        (r"(\bCPUs) [0-9a-f]{1,16}(?:,[0-9a-f]{8})*\s*$", r"\1 #"),  # a bitmap
        (r"\{[\d,\s-]*\}", "{#}"),
        (r"\(null\)", "#"),
        (r"[\w./-]+#(?=[A-Za-z_])", ""),  # file.c#function: how much of the path is told depends on the build
        (r"\+(?:0x[0-9a-f]+|0)/(?:0x)?[0-9a-f]+(?: \[[\w -]{1,80}\])?", ""),  # and the module
        (rf"(?<=\w){_APPENDED}[\w.]*", ""),
        (r"(\.[chS]):\d+", r"\1"),
        (r"\b(?:[0-9a-f]{4}:)?[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]\b", "#"),  # PCI
        (r"\b(addr|index|reg =) [0-9a-f]+\b", r"\1 #"),
        (r", iommu reg = #", ""),  # Xen before 4.13
        (r"\b(?:0x)?[0-9a-fA-F]{8,}\b", "#"),
        (r"\b(CPU|cpu|dom|d|v)\d+(?:v\d+)?\b", r"\1#"),
        (r"#?\b\d\w*", "#"),
        (r"\s*\]?-{3}\s*$", ""),  # "---[ end Kernel panic - ... ]---"
        (r"\s+", " "),
    )
)


def normalised(message: str) -> str:
    """A message without what differs from one time, machine or build to the next."""
    message = _PATH.sub(lambda match: _from_top(match[0]), message)
    message = _TASK.sub(lambda match: re.sub(r"\d+", "#", match[0]), message)
    for pattern, instead in _VARIABLE:
        message = pattern.sub(instead, message)
    return message.strip()


_OF_A_TASK = re.compile(
    r"(?<=INFO: task).{1,60}(?= (?:blocked|can't die) )|(?<=!) \[[^\]]{1,80}\]$|(?<=while atomic): .*"
    r"|(?<= in process) .*|(?<=on CPU#), .*"
)


def without_task(said: str) -> str:
    """A normalised message without the name of the task that met the fault."""
    return _OF_A_TASK.sub("", said)


def _from_top(path: str) -> str:
    """``/build/linux-hYn5Nv/linux-4.15.0/net/core/skbuff.c`` is ``net/core/skbuff.c``."""
    parts = [part for part in path.split("/") if part not in ("", ".", "..", "...")]
    tops = [index for index, part in enumerate(parts[:-1]) if part in _TOPS]
    # The first top folder within a folder with a version, a random part or the project's name; else the first.
    told = [at for at in tops if at and (re.search(r"\d", parts[at - 1]) or parts[at - 1] in ("linux", "xen"))]
    first = next(iter(told or tops), len(parts) - 1)
    return "/".join(parts[first:])


def plain_name(function: str) -> str:
    """Without the file, and what a compiler appends: ``core.c#foo.isra.0`` is ``foo``."""
    return re.sub(rf"{_APPENDED}.*", "", function.rpartition("#")[2])
