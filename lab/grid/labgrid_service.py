"""``python -m lab.grid.labgrid_service coordinator|exporter WORDS``: labgrid's own program, with a sign of life.

labgrid's coordinator and exporter are event loops. The sign is given from within the loop, so it says that the loop
turns, and not only that the process is there. The exporter ends with status 100 where nobody listens, so it waits for
its coordinator.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import sys

from lab.base import processes
from lab.base.errors import WaitTimeout
from lab.base.wait import wait_until

PROGRAMS = {"coordinator": "labgrid.remote.coordinator", "exporter": "labgrid.remote.exporter"}
INTERVAL = 2.0  # seconds
FIRST_LISTENS = 30.0  # seconds that an exporter waits for its coordinator, which starts beside it


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
    name, words = sys.argv[1], sys.argv[2:]
    program = importlib.import_module(PROGRAMS[name])
    if name == "exporter":
        address = words[words.index("-c") + 1]
        with contextlib.suppress(WaitTimeout):  # labgrid's own message says it better
            wait_until(
                lambda: processes.is_listening(address), FIRST_LISTENS, f"coordinator at {address}", interval=0.1
            )
    sys.argv = [f"labgrid-{name}", *words]
    asyncio.set_event_loop_policy(SigningPolicy())
    program.main()


if __name__ == "__main__":
    main()
