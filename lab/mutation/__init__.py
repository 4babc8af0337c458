"""Mutation points of Xen's C source: found by a parser, and written behind a number into one hypervisor.

:mod:`lab.builds` compiles it (a recipe with ``mutation``), :mod:`lab.night.mutation` tries the points on boards.
"""
