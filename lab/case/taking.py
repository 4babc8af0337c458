"""Boards taken for a process, with the build that it wants on them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from lab import builds, provision
from lab.base import paths
from lab.builds.matrix import Variant
from lab.case.rig import Keep, Rig
from lab.grid import services, session
from lab.inventory import Lab
from lab.results.run_folder import RunFolder
from lab.xen import xtf
from lab.xen.payloads import build_payloads, kernel_roots


def variant_of(folder: RunFolder, build: str) -> Variant:
    """The variant that a run calls ``build``; outside the run's builds, the build of that name or recipe file."""
    facts = folder.builds().get(build)
    return Variant.plain(build) if facts is None else Variant.of_facts(build, facts, folder.sources()[build].commit)


def take(
    lab: Lab,
    names: Sequence[str],
    variant: Variant,
    directory: Path,
    xtf_directory: str = "",
    keep: Keep | None = None,
    progress: Callable[[str], None] | None = None,
    *,
    sound: frozenset[str] = frozenset(),
    boots_first: bool = False,
) -> tuple[session.Session, Rig]:
    """Make or find the build and the guest payloads, and acquire these boards for this process.

    ``directory`` is where provisioning leaves its output: the run folder. ``progress`` is told what is being built.
    The rest is for the :class:`Rig`.

    :raises BenchError: no lab is up, or a board is somebody else's.
    :raises UsageError: unknown build.
    """
    payloads = build_payloads(paths.cache() / "payloads", kernel_roots())
    if xtf_directory:
        payloads |= xtf.payloads(Path(xtf_directory))
    build = builds.make(variant.build, commit=variant.commit, progress=progress)
    wanted = provision.Wanted(build, variant.xen_options, payloads)
    held = session.acquire(lab, names, services.directory(lab), timeout=30.0)
    boards = {name: held.board(name) for name in names}
    return held, Rig(lab, boards, wanted, directory, keep, sound=sound, boots_first=boots_first)
