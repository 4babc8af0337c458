"""The mutant that is on in Xen while a case runs: a number, written on the running board (:mod:`lab.mutation`)."""

from __future__ import annotations

from lab.base.errors import LabError
from lab.mutation.writing import PARAMETER, REACHED
from lab.xen.dom0 import Toolstack


class Switch:
    """The mutant that is on while a case runs. ``number`` 0: none."""

    def __init__(self) -> None:
        self.number = 0
        self.reached: int | None = None  # how often the last case executed it; None: not known
        self._on: set[str] = set()

    def begin(self, host: Toolstack) -> None:
        """Switch it on, once in a case. :raises BenchError: the hypervisor does not take the number."""
        if self.number and host.name not in self._on:
            self._on.add(host.name)
            self.reached = None
            host.run(f"xenhypfs write /params/{REACHED} 0 && xenhypfs write /params/{PARAMETER} {self.number}")

    def end(self, host: Toolstack, *, crashed: bool) -> str | None:
        """Switch it off. Returns why that cannot be known, if so; a crash is known anyhow."""
        if host.name not in self._on:
            return None
        self._on.discard(host.name)
        if crashed:
            return None
        try:
            command = f"xenhypfs write /params/{PARAMETER} 0 && xenhypfs cat /params/{REACHED}"
            self.reached = int(host.run(command, timeout=20.0).stdout.split()[-1])
        except (LabError, ValueError, IndexError) as error:
            return f"the mutant could not be switched off: {str(error).partition(chr(10))[0]}"
        return None
