"""Writes mutation points behind a number into C files, without moving a line."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence

from lab.mutation.points import Kind, Site

HEADER = "xen/include/xen/mutant.h"
SOURCE = "xen/common/mutant.c"
BESIDE = 2  # lines that a diff shows above and below what it changes
SECTION = ".mutants"  # of an object: the numbers that the compiler kept
PARAMETER = "mutant"  # of Xen, at runtime: the number that is on; 0: none
REACHED = "mutant-reached"  # how often its point was executed while it was on

HEADER_TEXT = f"""\
#ifndef XEN_MUTANT_H
#define XEN_MUTANT_H

/* With a number between two equal conditions, gcc no longer sees that what the first one sets, the second one uses. */
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"

extern unsigned int mutant_number, mutant_reached;

/* The number is noted in a section that is not loaded: what the compiler left out of the code is not there. */
#define mutant_is(n) ({{ \\
    asm volatile ( ".pushsection {SECTION},\\"\\",@progbits; .long " #n "; .popsection" ); \\
    (__builtin_expect(*(volatile unsigned int *)&mutant_number == (n), 0) \\
     ? (++*(volatile unsigned int *)&mutant_reached, 1) : 0); }})

/* 1; it does not compile unless both are of one type. */
#define mutant_same(a, b) \\
    (sizeof(char[__builtin_types_compatible_p(__typeof__(a), __typeof__(b)) ? 1 : -1]))

#endif
"""

SOURCE_TEXT = f"""\
#include <xen/param.h>
#include <xen/mutant.h>

unsigned int __read_mostly mutant_number;
integer_runtime_param("{PARAMETER}", mutant_number);

unsigned int mutant_reached;
integer_runtime_param("{REACHED}", mutant_reached);
"""


def write(text: bytes, numbers: Mapping[Site, int]) -> bytes:
    """The file with these points behind their numbers. Each line keeps its number."""
    if not numbers:
        return text
    sites = sorted(numbers, key=lambda site: (site.start, -site.end, list(Kind).index(site.kind)))
    return b"#include <xen/mutant.h>\n#line 1\n" + _written(text, 0, len(text), sites, numbers)


def _written(text: bytes, start: int, end: int, sites: Sequence[Site], numbers: Mapping[Site, int]) -> bytes:
    parts, at, index = [], start, 0
    while index < len(sites):
        site = sites[index]
        after = index + 1
        while after < len(sites) and sites[after].end <= site.end:
            after += 1
        inner = _written(text, site.start, site.end, sites[index + 1 : after], numbers)
        parts += [text[at : site.start], _behind(site, numbers[site], inner, _one_line(_mutant(text, site)))]
        at, index = site.end, after
    return b"".join([*parts, text[at:end]])


def _mutant(text: bytes, site: Site) -> bytes:
    """The site's own stretch, made wrong."""
    if not (site.start <= site.cut_from and site.cut_to <= site.end):
        return b""
    return text[site.start : site.cut_from] + site.mutant + text[site.cut_to : site.end]


def _one_line(text: bytes) -> bytes:
    return re.sub(rb"\s*\n\s*", b" ", re.sub(rb"/\*.*?\*/", b" ", text, flags=re.DOTALL))


def _behind(site: Site, number: int, inner: bytes, mutant: bytes) -> bytes:
    is_on = b"mutant_is(%d)" % number
    match site.kind:
        case Kind.LEFT_OUT:
            return b"{ if ( !%s ) %s }" % (is_on, inner)
        case Kind.NEGATED:
            return b"(%s ^ !!(%s))" % (is_on, inner)
        case Kind.SHIFTED:
            return b"(%s ? (%s) : (%s))" % (is_on, mutant, inner)
        case Kind.NO_ERROR | Kind.FLAG_DROPPED:
            return b"(%s ? 0 : (%s))" % (is_on, inner)
        case Kind.SWAPPED:
            first, second = (_one_line(one) for one in site.same)
            return b"(%s && mutant_same(%s, %s) ? %s : %s)" % (is_on, first, second, mutant, inner)


def diff(text: bytes, site: Site, file: str) -> str:
    """What a programmer would have done to the file to make the mutant."""
    first, last = site.cut_from, site.cut_to
    for _ in range(BESIDE + 1):  # to the end of the line above what is shown, and to the end of its last line
        first = text.rfind(b"\n", 0, max(first, 0))
        last = (text.find(b"\n", last) + 1) or len(text)
    shown = text[first + 1 : site.cut_from], text[site.cut_to : last]
    old, new = (
        cut.join(shown).decode(errors="replace").splitlines(keepends=True)
        for cut in (text[site.cut_from : site.cut_to], site.mutant)
    )
    lines = difflib.unified_diff(old, new, f"a/{file}", f"b/{file}", n=BESIDE)
    whole = [line if line.endswith("\n") else f"{line}\n" for line in lines]
    return "".join(re.sub(r"^@@.*@@", f"@@ line {site.line}, {site.function} @@", line) for line in whole)
