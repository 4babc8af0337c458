"""Xen's command line: the options that every board boots with, known-good and under test, from disk and by network.

A board adds its own (``xen_options`` in the inventory), then come those of the recipe, the matrix and the case.
"""

from __future__ import annotations

# com1, console: the serial console is the first port; a board whose console is elsewhere says so in its xen_options.
# loglvl, guest_loglvl: everything is logged.
# conring_size: the ring holds the boot whatever is said after it, since capabilities are probed from what boot printed.
XEN_OPTIONS = "com1=115200,8n1 console=com1 loglvl=all guest_loglvl=all conring_size=256k dom0_mem=768M,max:768M"


def command_line(*later: str) -> str:
    """The options of every board, then ``later`` ones in their order: of one option said twice Xen takes the last."""
    return " ".join(part for part in (XEN_OPTIONS, *later) if part)
