"""From "this build is wanted" to "this build answers, proved".

:func:`deploy` copies a :class:`Wanted` onto boards; :func:`prove` asks a running board whether it is what runs.
"""

from lab.provision.deployment import deploy
from lab.provision.playbook import play as _play
from lab.provision.proof import Proof, parse, prove
from lab.provision.wanted import ON_BOARD, Wanted

__all__ = ["ON_BOARD", "Proof", "Wanted", "_play", "deploy", "parse", "prove"]
