"""Hypervisor builds: reads recipes, makes or fetches builds, and keeps them in the cache by their content.

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
