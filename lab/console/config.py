"""What a recorder is told: one JSON file, written by :mod:`lab.grid.services`, which runs the recorders."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

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
            values = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UsageError(f"{path}: {error}") from None
        own = _checked(path, "", values, cls)
        own["console"] = ConsoleSpec(**_checked(path, "console.", own["console"], ConsoleSpec))
        own["bmc"] = BmcSpec(**_checked(path, "bmc.", own["bmc"], BmcSpec))
        own["directory"] = Path(own["directory"])
        return cls(**own)


def _checked(path: Path, prefix: str, values: object, wanted: type[Any]) -> dict[str, Any]:
    """``values`` as keyword arguments of the dataclass ``wanted``."""
    if not isinstance(values, dict):
        raise UsageError(f"{path}: {prefix or 'the file'} must be an object")
    known = {field.name: field for field in fields(wanted)}
    for key in values:
        if key not in known:
            raise UsageError(f"{path}: unknown key {prefix}{key}; known: {', '.join(known)}")
    for key, field in known.items():
        kind = {"str": str, "int": int, "Path": str}.get(str(field.type))
        if key in values and kind and type(values[key]) is not kind:
            raise UsageError(f"{path}: {prefix}{key}: must be {'a number' if kind is int else 'text'}")
    try:
        wanted(**values)
    except TypeError as error:
        raise UsageError(f"{path}: {prefix or 'the file'}: {error}") from None
    return dict(values)
