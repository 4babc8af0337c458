"""What a recorder is told: one JSON file, written by :mod:`lab.grid.services`, which runs the recorders."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from lab.base import shape
from lab.base.errors import UsageError
from lab.inventory import BmcSpec, ConsoleSpec

ROTATE_BYTES = 16 << 20  # size of a board's log file at which the recorder begins a new one


@dataclass(frozen=True, slots=True)
class RecorderConfig:
    """What a recorder is told. Holds no secret: the BMC's credential is named."""

    board: str
    console: ConsoleSpec
    bmc: BmcSpec
    directory: Path
    rotate_bytes: int = ROTATE_BYTES
    group: str | None = None  # Unix group whose members may use the console, beside root and the lab's user

    def write(self, path: Path) -> None:
        """Save as JSON for :meth:`read`."""
        values = asdict(self) | {"directory": str(self.directory)}
        path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> RecorderConfig:
        """Load what :meth:`write` saved.

        :raises UsageError: unreadable, or something is missing, unknown or of the wrong type.
        """
        try:
            return shape.read(cls, path.read_bytes())
        except (OSError, ValueError) as error:
            raise UsageError(f"{path}: {error}") from None
