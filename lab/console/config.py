"""What a recorder is told: one JSON file, written by :mod:`lab.grid.services`, which runs the recorders."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from lab.base import shape
from lab.base.errors import UsageError
from lab.inventory import BmcSpec, ConsoleSpec

ROTATE_BYTES = 16 << 20  # size of a board's log file at which the recorder begins a new one


def sockets(folder: Path, board: str) -> tuple[Path, Path]:
    """The Unix sockets of a board's recorder in a folder: of raw bytes, and of records. Their paths must be short."""
    name = hashlib.sha256(board.encode()).hexdigest()[:10]
    return folder / f"{name}.raw", folder / f"{name}.lines"


@dataclass(frozen=True, slots=True)
class RecorderConfig:
    """What a recorder is told. Holds no secret: the BMC's credential is named."""

    board: str
    console: ConsoleSpec
    bmc: BmcSpec
    directory: Path
    rotate_bytes: int = ROTATE_BYTES
    group: str | None = None  # Unix group whose members may use the console, beside root and the lab's user
    served_in: Path | None = None  # folder for Unix sockets, where it is not served on ports
    host: str = ""  # the machine that has the recorder; this one copies from it. Empty: there is no other
    reached_in: Path | None = None  # folder of the Unix sockets by which that recorder is reached

    def sockets(self) -> tuple[Path, Path] | None:
        """Where raw bytes and records are served; None: on the console's ports."""
        return sockets(self.served_in, self.board) if self.served_in else None

    def write(self, path: Path) -> None:
        """Save as JSON for :meth:`read`."""
        path.write_text(json.dumps(asdict(self), indent=2, default=str) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> RecorderConfig:
        """Load what :meth:`write` saved.

        :raises UsageError: unreadable, or something is missing, unknown or of the wrong type.
        """
        try:
            return shape.read(cls, path.read_bytes())
        except (OSError, ValueError) as error:
            raise UsageError(f"{path}: {error}") from None
