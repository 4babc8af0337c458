"""``python -m lab.grid.labgrid_service coordinator|exporter WORDS``: labgrid's own program, with a sign of life.

labgrid's coordinator and exporter are event loops. The sign is given from within the loop, so it says that the loop
turns, and not only that the process is there.
"""

from __future__ import annotations

import asyncio
import importlib
import sys

from lab.base import processes

PROGRAMS = {"coordinator": "labgrid.remote.coordinator", "exporter": "labgrid.remote.exporter"}
INTERVAL = 2.0  # seconds


class SigningPolicy(asyncio.DefaultEventLoopPolicy):
    """Each event loop that is made gives signs of life for as long as it turns."""

    def new_event_loop(self) -> asyncio.AbstractEventLoop:
        loop = super().new_event_loop()

        def sign() -> None:
            processes.give_sign_of_life()
            loop.call_later(INTERVAL, sign)

        loop.call_soon(sign)
        return loop


def main() -> None:
    program = PROGRAMS[sys.argv[1]]
    sys.argv = [f"labgrid-{sys.argv[1]}", *sys.argv[2:]]
    asyncio.set_event_loop_policy(SigningPolicy())
    importlib.import_module(program).main()


if __name__ == "__main__":
    main()
