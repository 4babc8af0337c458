"""The container: made from plain Debian by podman; a board boots in it, and stopping it ends the boards.

`xenlab selftest container`. An ordinary user's podman is rootless; root's is not, and gets no privileges either.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.base import paths
from lab.base.wait import wait_until

DEBIAN = "debian:12"  # the default of Containerfile
MADE = "localhost/xenlab-debian:12"  # the same, made here where no registry of images can be reached
IMAGE = "localhost/xenlab-selftest"
STATE = "/var/lib/xenlab"
# What a mirror with a certificate of its own needs: file here, and in the container that is built.
OF_THIS_MACHINE = {
    "/etc/ssl/certs/ca-certificates.crt": "/usr/local/share/ca-certificates/machine.crt",
    "/etc/pip.conf": "/etc/pip.conf",
}
# For a root that may not raise its limits, as in a sandbox, and whose machine has no packet filter.
MODEST = """
[engine]
runtime = "runc"
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
netns = "slirp4netns"
"""


def podman(*words: str, timeout: float, check: bool = True) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        ["podman", *words],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, timeout=timeout, check=False, cwd=paths.CHECKOUT,
    )  # fmt: skip
    assert not check or done.returncode == 0, f"podman {words[0]}: status {done.returncode}\n{done.stdout[-3000:]}"
    return done


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Plain Debian in podman's store, in which a program runs."""
    known = [one for one in (DEBIAN, MADE) if podman("image", "exists", one, timeout=60, check=False).returncode == 0]
    if not known and podman("pull", "-q", DEBIAN, timeout=300, check=False).returncode == 0:
        known = [DEBIAN]
    name = known[0] if known else MADE
    if not known:
        root = tmp_path_factory.mktemp("debian") / "root.tar"
        subprocess.run(["mmdebstrap", "--quiet", "--variant=minbase", "bookworm", str(root)], timeout=600, check=True)
        podman("import", str(root), name, timeout=300)
        root.unlink()
    with pytest.MonkeyPatch.context() as environment:
        if podman("run", "--rm", name, "true", timeout=120, check=False).returncode:
            (modest := tmp_path_factory.mktemp("podman") / "containers.conf").write_text(MODEST, encoding="utf-8")
            environment.setenv("CONTAINERS_CONF", str(modest))
            ran = podman("run", "--rm", name, "true", timeout=120, check=False)
            if ran.returncode:
                pytest.skip(f"podman cannot run a container here: {ran.stdout.strip()[-300:]}")
        yield name


@pytest.fixture(scope="session")
def image(base: str) -> str:
    there = [f"{file}:{inside}:ro" for file, inside in OF_THIS_MACHINE.items() if Path(file).exists()]
    more = ["--network", "host", *(word for one in there for word in ("-v", one))]
    podman("build", "-q", "--build-arg", f"BASE={base}", *more, "-t", IMAGE, ".", timeout=2400)
    return IMAGE


@pytest.fixture
def state(tmp_path: Path) -> Path:
    folder = tmp_path / "state"
    folder.mkdir()
    return folder


def test_boards_boot_and_their_run_comes_out(image: str, state: Path) -> None:
    ran = podman(
        "run", "--rm", "-v", f"{state}:{STATE}:Z", image, "nightly", "testcases/boot", timeout=1200, check=False
    )
    assert ran.returncode == 0, ran.stdout[-3000:]
    (folder,) = (state / "runs").iterdir()
    results = [json.loads(line) for line in (folder / "results.jsonl").read_text(encoding="utf-8").splitlines()]
    assert results and {result["verdict"] for result in results} <= {"PASS", "SKIP"}
    assert any(result["verdict"] == "PASS" for result in results)
    assert (folder / "report.html").stat().st_size and (state / "site" / "index.html").exists()
    assert {file.lstat().st_uid for file in state.rglob("*")} == {os.getuid()}


def test_stopping_it_ends_the_boards(image: str, state: Path) -> None:
    name, volume = f"xenlab-selftest-{os.getpid()}", f"{state}:{STATE}:Z"
    podman("run", "-d", "--name", name, "-v", volume, image, "lab", "up", timeout=300)
    try:
        is_up = "the lab in the container"
        status = ("exec", name, "xenlab", "lab", "status")
        wait_until(lambda: podman(*status, timeout=60, check=False).returncode == 0, 300, is_up, interval=2)
        namespace = os.readlink(
            f"/proc/{podman('inspect', '-f', '{{.State.Pid}}', name, timeout=60).stdout.strip()}/ns/pid"
        )
        assert len(_members(namespace)) > 5  # tini, supervisor, coordinator, exporter, two boards
        second = podman("run", "--rm", "-v", volume, image, "lab", "status", timeout=120, check=False)
        assert second.returncode == 2 and "another container" in second.stdout
        podman("stop", name, timeout=120)
        assert not _members(namespace)
    finally:
        podman("rm", "-f", "-t", "0", name, timeout=120)
    after = podman("run", "--rm", "-v", volume, image, "lab", "status", timeout=120, check=False)
    assert after.returncode == 3, after.stdout  # the lab is down


def _members(namespace: str) -> list[str]:
    """Processes of this machine in that PID namespace."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if os.readlink(process / "ns" / "pid") == namespace:
                found.append(process.name)
        except OSError:  # it ended, or it is somebody else's
            continue
    return found
