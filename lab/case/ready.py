"""One board brought to the build under test: ``python -m lab.case.ready INVENTORY BOARD BUILD RUN-FOLDER``.

A process drives its boards in sequence (labgrid's steps are one global stack), so boards that a case needs together
are brought up side by side by a process each, before the one that runs the case finds them as it wants them.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from lab import inventory
from lab.base.errors import LabError
from lab.case.rig import take, variant_of
from lab.results.run_folder import RunFolder

log = logging.getLogger(__name__)


def main() -> int:
    """Status 3 when the board did not come up; whoever runs a case on it finds out why, and has the verdict for it."""
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
