"""Words that all reports share."""

from __future__ import annotations


def seconds_text(seconds: float) -> str:
    """``0.4 s``, ``12 s``, ``3 min 20 s``"""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def short_name(nodeid: str) -> str:
    """The case's own name."""
    return nodeid.rpartition("::")[2] or nodeid


def area_of(nodeid: str) -> str:
    """The folder below ``testcases/`` that a case is in, told from its name."""
    return nodeid.split("/")[1] if nodeid.count("/") > 1 else "other"


def some_of(names: list[str], limit: int = 3) -> str:
    """``a, b, c and 4 more``"""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def shortened(text: str, limit: int) -> str:
    """``text``, its middle left out when it is longer than ``limit`` characters, which is said."""
    if len(text) <= limit:
        return text
    half = limit // 2
    return f"{text[:half]}\n... {len(text) - 2 * half} characters left out ...\n{text[-half:]}"
