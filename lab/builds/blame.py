"""Whose failure it is when a command of a build fails: that of the source under test, or this machine's."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from lab.base.errors import BuildFailed, LabError
from lab.builds.command import CommandError

DOES_NOT_APPLY = "does not apply"  # how the message about a patch ends
FREE_MIB = 16  # a disk with less than this is full
# What a compiler, make or the C library print when the machine lets them down: gcc's driver ("internal compiler error",
# "Killed signal terminated program"), clang ("PLEASE submit a bug report"), make ("Killed"), strerror(3), sh(1).
_OF_THE_MACHINE = re.compile(
    r"internal compiler error|PLEASE submit a bug report|signal terminated program"
    r"|\] (Killed|Terminated|Aborted|Segmentation fault|Bus error)"
    r"|No space left on device|Disk quota exceeded|Read-only file system|Input/output error"
    r"|Cannot allocate memory|virtual memory exhausted|out of memory allocating|Too many open files"
    r"|: (command )?not found$|Permission denied$"
)
_QUOTED = re.compile(r"^\s*(?:\d+\s*)?\||#\s*(error|warning)\b")  # source text that a compiler shows


def of_build(error: CommandError, what: str, place: Path) -> LabError:
    """What to raise for a command that failed at the source in ``place``: a :class:`BuildFailed`, or the error itself.

    The machine is to blame where the command was cut off or could not be run, where the compiler itself crashed, and
    where the disk or the memory is full. All else is the source's.
    """
    said = [line for line in error.output if not _QUOTED.search(line)]
    is_full = shutil.disk_usage(place).free < FREE_MIB << 20
    if not error.ended or not error.output or is_full or any(_OF_THE_MACHINE.search(line) for line in said):
        return error
    return BuildFailed(what, error.lines, error.cause, str(error.log) if error.log else None)
