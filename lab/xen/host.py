"""A host as a case speaks to it: the dom0 of a board, and guests that are created there."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from lab.base.errors import BenchError, WaitTimeout
from lab.base.wait import wait_until
from lab.xen.dom0 import Dom0
from lab.xen.domain import Domain, DomainConfig, nodes_free


class Host(Dom0):
    """dom0 of a board whose hypervisor is up, with the means to create guests."""

    def free_pages(self, timeout: float = 60.0) -> int:
        """Pages of 4 KiB that Xen has to give, on all NUMA nodes, once no domain is dying (debug key ``u``).

        :raises ProductTimeout: a domain is still dying after ``timeout`` seconds.
        """
        self.all_dead(timeout)
        return sum(nodes_free(self.debug_keys("u")).values())

    def all_dead(self, timeout: float = 60.0) -> None:
        """Wait until Xen has let all domains go that were destroyed.

        :raises ProductTimeout: a domain is still dying after ``timeout`` seconds.
        """
        self.expect(lambda: "(null)" not in self.xl("list").stdout, timeout, "no domain is dying")

    @contextlib.contextmanager
    def domain(self, config: DomainConfig, *, paused: bool = False) -> Iterator[Domain]:
        """Create a domain, and have it gone at the end whatever happens.

        :raises ToolstackFailed: ``xl create`` refused.
        """
        domain = Domain(self, config)
        try:
            domain.create(paused=paused)
            yield domain
        except BaseException:
            with contextlib.suppress(Exception):  # what a guest has said belongs to every failure
                self.notes.keep(f"console of {domain.name}, when the case failed", domain.printed())
            raise
        finally:
            with contextlib.suppress(BenchError):  # a crashed host must not hide what the case found
                domain.destroy()

    def destroy_all(self) -> list[str]:
        """Destroy every guest there is; the names of those that were."""
        names = list(self.domains())
        for name in names:
            self.xl("destroy", name, check=False)
        if names:
            with contextlib.suppress(WaitTimeout):
                wait_until(lambda: not self.domains(), 20, f"{self.name}: guests gone")
        return names
