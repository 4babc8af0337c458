"""``labgrid-client`` for the boards of one lab: ``python -m lab.grid.labgrid_client FOLDER WORDS...``.

labgrid 26 acquires and releases every place that its environment file names, whatever ``-p`` says. So no file with all
boards is in a shell's environment: this picks the file of the one board that is named, and runs labgrid's own client.
A lab's ``env.sh`` puts it on the path. An environment file that the user names (``-c``, ``LG_ENV``) is left alone.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from labgrid.remote import client


def choose(folder: Path, words: list[str]) -> Path | None:
    """The environment file of the board that these words of a command line, or ``LG_PLACE``, name; None: no board."""
    called, _ = client.get_parser().parse_known_args(words)
    if called.config or os.environ.get("LG_ENV"):
        return None
    place = called.place or os.environ.get("LG_PLACE") or os.environ.get("PLACE")
    return next((file for file in folder.glob("*.yaml") if file.stem == place), None)


def main() -> None:
    """Run labgrid's client in this process; it ends it."""
    folder, *words = sys.argv[1:]
    sys.argv = ["labgrid-client", *words]
    if file := choose(Path(folder), words):
        os.environ["LG_ENV"] = str(file)
    client.main()


if __name__ == "__main__":
    main()
