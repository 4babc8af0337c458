"""Saved states of a board: an ability that few boards have. Such a board can go on from what it was, without a boot.

Who saves and restores is the board's own business. It answers on its socket (:mod:`lab.grid.board_socket`):
``state has KEY`` by ``yes`` or ``no``, ``state save KEY``, ``state restore KEY`` and ``state drop KEY`` by ``ok``,
``state current`` by a key or ``none``. A key says what the board carries; what else a state depends on is the board's
to know.
"""

from __future__ import annotations

from lab.grid import board_socket


class SavedStates:
    """The saved states of one board."""

    def __init__(self, board: str, path: str) -> None:
        self.board, self._path = board, path

    def has(self, key: str) -> bool:
        """Whether the board can go on from this state. :raises BoardError: it does not say."""
        return self._ask(f"has {key}") == "yes"

    def save(self, key: str) -> None:
        """Save what the board is now. It stands still for seconds, and its clock is behind then. :raises BoardError:"""
        self._ask(f"save {key}")

    def restore(self, key: str) -> None:
        """Go on from a state; what the board is now is lost.

        :raises BoardError: it does not, for the state is not there or not sound. The power is then off.
        """
        self._ask(f"restore {key}")

    def drop(self, key: str) -> None:
        """Forget a state. :raises BoardError:"""
        self._ask(f"drop {key}")

    def is_restored(self) -> bool:
        """Whether the board goes on from a state, and has not booted since. :raises BoardError: it does not say."""
        return self._ask("current") != "none"

    def _ask(self, request: str) -> str:
        return board_socket.ask(self.board, self._path, f"state {request}")
