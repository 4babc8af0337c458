"""Hypervisor builds: recipes read, builds made or fetched, kept by content.

``make(name)`` is the way in. A recipe is ``firmware/builds/NAME.yaml``; its Kconfig fragments are in
``firmware/kconfig``. Builds are kept in the cache under ``builds/KEY``, source trees under ``trees/ID``.
"""

from lab.builds.making import Build, make
from lab.builds.recipes import DebianBinary, DebianSource, Git, Prebuilt, Recipe, Tarball, names, recipe

__all__ = [
    "Build",
    "DebianBinary",
    "DebianSource",
    "Git",
    "Prebuilt",
    "Recipe",
    "Tarball",
    "make",
    "names",
    "recipe",
]
