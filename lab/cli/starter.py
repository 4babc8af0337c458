"""``xenlab init``: a lab of one's own, copied from what xenlab ships."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from lab.base import paths
from lab.base.errors import UsageError

STARTER = paths.SHIPPED / "contrib" / "starter"
INVENTORY = "inventory.yaml"
_HEAD = """\
# Two virtual boards of QEMU and ipmi_sim on loopback. Add your machines beside them, or in their place:
# `xenlab board probe ADDRESS --inventory inventory.yaml` prints a machine's entry.
# What makes a board virtual is the key `virtual`. The ports differ from those of xenlab's own virtual lab.
"""


def write(folder: Path) -> list[Path]:
    """Write the files of a new lab into ``folder``, and give them. The lab is called as the folder is.

    :raises UsageError: one of the files exists already, or the folder cannot be written. Nothing is changed then.
    """
    files = sorted(file.relative_to(STARTER) for file in STARTER.rglob("*") if file.is_file() and _is_kept(file))
    if there := [str(file) for file in (*files, Path(INVENTORY)) if (folder / file).exists()]:
        raise UsageError(f"{folder} has {', '.join(there)} already; choose an empty folder")
    try:
        for file in files:
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(STARTER / file, folder / file)
        (folder / INVENTORY).write_text(_inventory(_name(folder)), encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot write {error.filename or folder}: {error.strerror}") from None
    return [folder / file for file in (*files, Path(INVENTORY))]


def _inventory(lab: str) -> str:
    """That of xenlab's own virtual lab, at other ports."""
    text = (paths.INVENTORY / "virtual.yaml").read_text(encoding="utf-8")
    body = "".join(line for line in text.splitlines(keepends=True) if not line.startswith("#"))
    body = body.replace("lab: virtual\n", f"lab: {lab}\n").replace(":20408\n", ":24000\n")
    return _HEAD + re.sub(r"\b221(\d\d)\b", r"240\1", body)


def _is_kept(file: Path) -> bool:
    return "__pycache__" not in file.parts


def _name(folder: Path) -> str:
    """A lab's name from a folder's; an inventory takes letters, digits, ``-`` and ``_``."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", folder.resolve().name).strip("-_") or "mine"
