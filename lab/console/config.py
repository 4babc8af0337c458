"""What a recorder is told: one JSON file, written by :mod:`lab.grid.services`, which runs the recorders."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from lab.base.errors import UsageError
from lab.inventory import BmcSpec, ConsoleSpec

ROTATE_BYTES = 16 << 20  # size of a board's log file at which the recorder begins a new one

# A field's type as it is written, what JSON has for it, and how a message calls it.
_KINDS: dict[str, tuple[tuple[type, ...], str]] = {
    "str": ((str,), "text"),
    "str | None": ((str, type(None)), "text or null"),
    "int": ((int,), "a number"),
    "bool": ((bool,), "true or false"),
    "Path": ((str,), "text"),
}


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
        kinds, words = _KINDS.get(str(field.type), (None, ""))
        if key in values and kinds and type(values[key]) not in kinds:
            raise UsageError(f"{path}: {prefix}{key}: must be {words}")
    try:
        wanted(**values)
    except TypeError as error:
        raise UsageError(f"{path}: {prefix or 'the file'}: {error}") from None
    return dict(values)
