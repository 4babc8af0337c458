"""``xenlab init``: a lab of one's own, copied from what xenlab ships."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from lab.base import paths
from lab.base.errors import UsageError

STARTER = paths.SHIPPED / "contrib" / "starter"


def write(folder: Path) -> list[Path]:
    """Write the files of a new lab into ``folder``, and give them. The lab is called as the folder is.

    :raises UsageError: one of the files exists already, or the folder cannot be written. Nothing is changed then.
    """
    files = sorted(file.relative_to(STARTER) for file in STARTER.rglob("*") if file.is_file() and _is_kept(file))
    if there := [str(file) for file in files if (folder / file).exists()]:
        raise UsageError(f"{folder} has {', '.join(there)} already; choose an empty folder")
    try:
        for file in files:
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(STARTER / file, folder / file)
        inventory = folder / "inventory.yaml"
        text = inventory.read_text(encoding="utf-8")
        inventory.write_text(text.replace("lab: mine\n", f"lab: {_name(folder)}\n"), encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot write {error.filename or folder}: {error.strerror}") from None
    return [folder / file for file in files]


def _is_kept(file: Path) -> bool:
    return "__pycache__" not in file.parts


def _name(folder: Path) -> str:
    """A lab's name from a folder's; an inventory takes letters, digits, ``-`` and ``_``."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", folder.resolve().name).strip("-_") or "mine"
