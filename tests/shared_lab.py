"""Four simulated boards in two pairs behind a lab of their own: services, ledger and BMCs are the real ones.

Import ``lab_of_four_fixture`` and ``shared_fixture`` to have the fixture ``shared``, and use ``pytestmark``.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
import small_disk
from consoles import Wire
from ipmi_sim import Chassis, Simulator

from lab.base import paths
from lab.base.wait import wait_until
from lab.grid import services
from lab.grid.coordinator import Coordinator
from lab.inventory import Lab
from lab.leases import ledger
from lab.leases.ledger import Ledger
from lab.leases.records import Kind, Request
from lab.virtual import simulated

# The supervisor is not ours to wait for: it ends when we do, or is told to.
pytestmark = pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")

BINARIES = Path(sys.executable).parent


class Shared:
    """Four boards in two pairs, the lab's services in front of them, and the command line."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.chassis: dict[str, Chassis] = {}
        self.bmcs: dict[str, Simulator] = {}
        for name in ("sim1", "sim2", "sim3", "sim4"):
            folder = root / name
            folder.mkdir()
            self.chassis[name] = Chassis(folder)
            self.bmcs[name] = Simulator(folder, self.chassis[name], None)
            self.bmcs[name].start()
        ports = {name: bmc.spec.port for name, bmc in self.bmcs.items()}
        self.consoles: dict[str, Wire] = {}
        self.file = root / "shared.yaml"
        self.lab: Lab = simulated.lab(self.file, 4, bmcs=ports, nightly_yields="always")
        self.folder = services.directory(self.lab)
        self.consoles = {name: Wire(board.console.port) for name, board in self.lab.boards.items()}
        self.start()
        self.ledger = Ledger(self.folder)

    def start(self) -> None:
        services.start(self.lab, self.folder, detach=False)
        self.wait_exported()

    def stop(self) -> None:
        services.stop(self.folder)

    def wait_exported(self) -> None:
        def is_exported() -> bool:
            with closing(Coordinator(self.lab.coordinator)) as one, one.acting_as("test/looks") as holder:
                return not any(holder.lacks(board) for board in self.lab.boards.values())

        wait_until(is_exported, 60, "the exporter offers all boards")

    def words(self, user: str = "alice", **more: str) -> dict[str, str]:
        return paths.environment() | {"LG_HOSTNAME": "desk", "LG_USERNAME": user} | more

    def start_xenlab(self, *words: str, user: str = "alice") -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "lab.cli", *words, "--inventory", str(self.file)],
            env=self.words(user),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def xenlab(self, *words: str, user: str = "alice", status: int = 0) -> str:
        process = self.start_xenlab(*words, user=user)
        out, err = process.communicate(timeout=120)
        assert process.returncode == status, out + err
        return out + err

    def labgrid(self, *words: str, user: str = "alice", check: bool = True) -> str:
        done = subprocess.run(
            [str(BINARIES / "labgrid-client"), "-x", self.lab.coordinator, *words],
            env=self.words(user, LG_ENV=str(self.folder / "env.yaml")) if "-c" in words else self.words(user),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    def ask(self, *names: str, user: str = "alice", kind: Kind = "person", **more: Any) -> int:
        request = Request(kind, f"desk/{user}", more.pop("seconds", 600.0), names, **more)
        return self.ledger.ask(request)

    def held(self, number: int, timeout: float = 40.0) -> tuple[str, ...]:
        def boards() -> tuple[str, ...]:
            lease = self.ledger.lease(number)
            assert lease.state in ("waiting", "held"), lease.why_ended
            return lease.boards

        return wait_until(boards, timeout, f"lease {number}", interval=0.05)

    def have(self, *names: str, **more: Any) -> int:
        number = self.ask(*names, **more)
        self.held(number)
        return number

    def acquired(self) -> dict[str, str]:
        with closing(Coordinator(self.lab.coordinator)) as one:
            return {name: place.acquired for name, place in one.places().items() if place.acquired}

    def wait_acquired(self, wanted: dict[str, str], timeout: float = 60.0) -> None:
        def seen() -> bool:
            try:
                return self.acquired() == wanted
            except Exception:
                return False

        wait_until(seen, timeout, f"the coordinator has {wanted}")

    def pid(self, service: str) -> int:
        return services.status(self.folder).processes[service]

    def kill(self, service: str) -> None:
        """As a crash ends it; waits until another one runs."""
        before = self.pid(service)
        os.kill(before, signal.SIGKILL)
        wait_until(
            lambda: services.status(self.folder).processes.get(service, before) != before, 30, f"{service} again"
        )

    def give_all_back(self) -> None:
        for lease in self.ledger.leases():
            self.ledger.end(lease.id, "the test is over")
        wait_until(lambda: not self.ledger.leases(), 60, "all leases ended")
        for name in self.lab.boards:
            self.ledger.clear(name, "the test is over", checked=False)
            self.ledger.note_user(name, "")


@pytest.fixture(name="lab_of_four", scope="module")
def lab_of_four_fixture(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Shared]:
    """A module's ``STATE_SIZE`` is the size of a file system for the state folder; else it is on the disk."""
    if not shutil.which("ipmi_sim") or not shutil.which("ipmitool"):
        pytest.skip("needs openipmi and ipmitool")
    root = tmp_path_factory.mktemp("shared")
    with pytest.MonkeyPatch.context() as patch, ExitStack() as mounts:
        size = getattr(request.module, "STATE_SIZE", "")
        if size and small_disk.can_be_had():
            mounts.enter_context(small_disk.mounted(root / "state", f"size={size}"))
        patch.setenv("XDG_STATE_HOME", str(root / "state"))
        patch.setenv("XENLAB_CREDENTIAL_SIMULATED", f"{Simulator.user}:{Simulator.password}")
        patch.delenv(ledger.LEASE, raising=False)
        made = Shared(root)
        try:
            yield made
        finally:
            made.stop()
            for bmc in made.bmcs.values():
                bmc.stop()
            for console in made.consoles.values():
                console.close()


@pytest.fixture(name="shared")
def shared_fixture(lab_of_four: Shared) -> Iterator[Shared]:
    """With nothing held, nothing dirty and nobody ill."""
    yield lab_of_four
    lab_of_four.give_all_back()
