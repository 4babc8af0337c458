"""A BMC that shares no code with ipmi_sim: pyghmi's. Run by test_independent_ipmi.py.

Arguments: port, and a file to write each power command to. The password is PASSWORD of the environment.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from pyghmi.ipmi import bmc


class IndependentBmc(bmc.Bmc):
    def __init__(self, port: int, commands: Path) -> None:
        super().__init__({"lab": os.environ["PASSWORD"]}, port, address="::ffff:127.0.0.1")
        self._commands, self._power, self._boot = commands, "off", "default"

    def get_power_state(self) -> str:
        return self._power

    def power_on(self) -> None:
        self._note("on")
        self._power = "on"

    def power_off(self) -> None:
        self._note("off")
        self._power = "off"

    def power_reset(self) -> None:
        self._note("reset")

    def power_shutdown(self) -> None:
        self._note("soft")

    def get_boot_device(self) -> str:
        return self._boot

    def set_boot_device(self, bootdevice: str) -> None:
        self._note(f"boot {bootdevice}")
        self._boot = bootdevice

    def _note(self, command: str) -> None:
        with self._commands.open("a") as stream:
            stream.write(command + "\n")


if __name__ == "__main__":
    server = IndependentBmc(int(sys.argv[1]), Path(sys.argv[2]))
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    server.listen()
