"""One board brought to the build under test: ``python -m lab.case.ready INVENTORY BOARD BUILD RUN-FOLDER``.

One process brings its boards up one after the other, since labgrid's steps are one global stack. So each board of a
pair is brought up by a process of its own, side by side, before the process that runs the cases takes both.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from lab import inventory
from lab.base.errors import LabError
from lab.case.taking import take, variant_of
from lab.results.run_folder import RunFolder

log = logging.getLogger(__name__)


def main() -> int:
    """Exit status 3: the board did not come up. The case that runs on it next finds out why, and gets the verdict."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s")
    file, board, build, directory = sys.argv[1:]
    try:
        folder = RunFolder.open(Path(directory))
        held, rig = take(inventory.load(Path(file)), [board], variant_of(folder, build), folder.path)
        with held:
            rig.ready(board)
    except LabError as error:
        log.error("%s: %s", type(error).__name__, error)
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main())
