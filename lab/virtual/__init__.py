"""Boards made of QEMU and OpenIPMI's ``ipmi_sim``: the embedded lab for those without hardware.

Nothing above this package knows that a board is virtual; only :mod:`lab.cli` and :mod:`lab.night.nightly` bring it up.
"""
