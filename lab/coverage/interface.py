"""The hypervisor's interface beside the cases that use it: each hypercall, and each operation of one.

The names are those of Xen's public headers (``xen/include/public``). A hypercall is the function ``do_NAME``, or
``compat_NAME`` for a guest of 32 bits. An operation is a ``case NAME:`` of a switch; who executes the line behind that
label has asked for the operation. Labels with no code between them cannot be told apart, and the table says so.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from lab.base.errors import BenchError
from lab.builds.gcov import INTERFACE
from lab.coverage.measured import Measured

# The families of operations, by what their names begin with; a define that is a flag or a limit has no label.
FAMILIES = {
    "domctl": "XEN_DOMCTL_",
    "sysctl": "XEN_SYSCTL_",
    "platform_op": "XENPF_",
    "physdev_op": "PHYSDEVOP_",
    "memory_op": "XENMEM_",
    "mmuext_op": "MMUEXT_",
    "vcpu_op": "VCPUOP_",
    "event_channel_op": "EVTCHNOP_",
    "grant_table_op": "GNTTABOP_",
    "sched_op": "SCHEDOP_",
    "hvm_op": "HVMOP_",
    "dm_op": "XEN_DMOP_",
    "xen_version": "XENVER_",
    "console_io": "CONSOLEIO_",
    "callback_op": "CALLBACKOP_",
    "nmi_op": "XENNMI_",
    "kexec_op": "KEXEC_CMD_",
    "hypfs_op": "XEN_HYPFS_OP_",
    "xenpmu_op": "XENPMU_",
    "argo_op": "XEN_ARGO_OP_",
}
_HYPERCALL = re.compile(r"^#\s*define\s+__HYPERVISOR_(?!arch_)(\w+)\s+\d+\b", re.MULTILINE)
_DEFINE = re.compile(r"^#\s*define\s+([A-Z][A-Z_]+_\w+)\s+\(?(?:0x)?\d", re.MULTILINE)
_LABEL = re.compile(r"\bcase\s+(\w+)\s*:")


@dataclass(frozen=True, slots=True)
class Operation:
    """A hypercall (``family`` is empty) or an operation. ``places``: FILE:LINE of what serves it, if anything does."""

    family: str
    name: str
    places: tuple[str, ...]
    cases: tuple[str, ...]  # that ask for it
    shares_with: tuple[str, ...] = ()  # operations whose labels stand beside its own


def of(measured: Measured) -> list[Operation]:
    """All hypercalls and operations of the build, by family and name.

    :raises BenchError: the build kept no headers.
    """
    headers = measured.folder / "source" / INTERFACE
    text = "\n".join(path.read_text(encoding="utf-8", errors="replace") for path in sorted(headers.rglob("*.h")))
    if not text:
        raise BenchError(f"{headers}: the build kept no public headers; make it again: xenlab build {measured.build}")
    return [*_hypercalls(measured, text), *_operations(measured, text)]


def _hypercalls(measured: Measured, headers: str) -> Iterator[Operation]:
    names = {name for name in _HYPERCALL.findall(headers) if not name.endswith("_compat")}
    for name in sorted(names):
        functions = {f"do_{name}", f"compat_{name}"}
        places = [
            f"{file}:{line}"
            for file, source in measured.everything.items()
            for function, line in source.functions.items()
            if function in functions
        ]
        cases = [
            case.case for case in measured.cases if any(functions & source.entered for source in case.sources.values())
        ]
        yield Operation("", name, tuple(sorted(places)), tuple(cases))


def _operations(measured: Measured, headers: str) -> Iterator[Operation]:
    labels = _labels(measured)
    at: dict[tuple[str, int], list[str]] = {}
    for name, places in labels.items():
        for place in places:
            at.setdefault(place, []).append(name)
    defined = set(_DEFINE.findall(headers)) | labels.keys()
    for family, prefix in FAMILIES.items():
        for name in sorted(one for one in defined if one.startswith(prefix)):
            places = labels.get(name, [])
            if not places and not name.removeprefix(prefix).islower():
                continue  # a flag, a limit, a version
            cases = [case.case for case in measured.cases if any(case.executes(*place) for place in places)]
            beside = {other for place in places for other in at[place]} - {name}
            told = tuple(f"{file}:{line}" for file, line in places)
            yield Operation(family, name, told, tuple(cases), tuple(sorted(beside)))


def _labels(measured: Measured) -> dict[str, list[tuple[str, int]]]:
    """Operation -> the first line with code behind each of its labels, with the file."""
    prefixes = tuple(FAMILIES.values())
    found: dict[str, list[tuple[str, int]]] = {}
    for file, source in sorted(measured.everything.items()):
        kept = measured.folder / "source" / file
        if not file.endswith(".c") or not kept.is_file():
            continue
        waiting: list[str] = []  # labels that no code stands behind yet
        for number, line in enumerate(kept.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
            waiting += [name for name in _LABEL.findall(line) if name.startswith(prefixes)]
            if number in source.lines and _LABEL.sub("", line).strip():
                for name in waiting:
                    found.setdefault(name, []).append((file, number))
                waiting = []
    return found


def table(measured: Measured) -> Iterator[str]:
    """The operations for reading: first how many of each family are asked for, then each with its cases."""
    found = of(measured)
    served = [one for one in found if one.places]
    families: Mapping[str, list[Operation]] = {
        family: [one for one in served if one.family == family] for family in ("", *FAMILIES)
    }
    yield f"run {measured.run}  build {measured.build}  Xen {measured.version}"
    if measured.not_read:
        yield f"  ({len(measured.not_read)} cases or boards were not read)"
    for family, of_it in families.items():
        if of_it:
            asked = sum(bool(one.cases) for one in of_it)
            yield f"{family or 'hypercalls':18}{asked:4} of {len(of_it):4} are used by a case"
    for family, of_it in families.items():
        if of_it:
            yield ""
            yield f"{family or 'hypercalls'}:"
        for one in of_it:
            shared = f"  (not told apart from {', '.join(one.shares_with)})" if one.shares_with and one.cases else ""
            yield f"  {one.name:42}{_who(one.cases)}{shared}"
    if lacking := [one.name for one in found if not one.places]:
        yield ""
        yield f"not in this build: {', '.join(lacking)}"


def _who(cases: tuple[str, ...]) -> str:
    if not cases:
        return "no case"
    first = cases[0].rpartition("/")[2]
    return f"{len(cases)} cases, {first} among them" if cases[1:] else first
