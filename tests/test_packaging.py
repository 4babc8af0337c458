"""The wheel: installed into an empty environment, xenlab has all it needs, and `xenlab init` writes a lab.

The environment has no package index: the libraries come from the environment that runs this test, by a ``.pth`` file.
What the wheel brings is only found in it.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

import lab
from lab import inventory
from lab.base import paths
from lab.base.errors import UsageError
from lab.cli import starter

pytestmark = pytest.mark.timeout(600)


@dataclass(frozen=True)
class Installed:
    """An environment with the wheel in it."""

    folder: Path
    wheel: Path

    @property
    def bin(self) -> Path:
        return self.folder / "venv" / "bin"

    def run(self, *words: str, cwd: Path | None = None, status: int = 0) -> str:
        plain = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "XENLAB_", "LG_"))}
        own = {f"XDG_{kind}_HOME": str(self.folder / kind.lower()) for kind in ("STATE", "CONFIG", "CACHE")}
        done = subprocess.run(
            words,
            cwd=cwd or self.folder,
            env=plain | own | {"PATH": f"{self.bin}:{os.environ['PATH']}", "LC_ALL": "C.UTF-8"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout + done.stderr


def _build(folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-q"]
    copy = folder / "source"  # as it is committed or about to be: what lies about in the checkout is not in it
    listed = subprocess.run(
        ["git", "-C", str(paths.CHECKOUT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    for name in filter(None, listed.stdout.split("\0")):
        source = paths.CHECKOUT / name
        if source.is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            (copy / name).write_bytes(source.read_bytes())
            (copy / name).chmod(source.stat().st_mode)
    subprocess.run([*command, "-w", str(folder), str(copy)], check=True, timeout=300, stdin=subprocess.DEVNULL)
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    folder = tmp_path_factory.mktemp("installed")
    there = Installed(folder, _build(folder))
    venv.create(folder / "venv", with_pip=False)
    (site,) = (folder / "venv" / "lib").glob("python3*/site-packages")
    libraries = sysconfig.get_paths()["purelib"]
    pip = [sys.executable, "-m", "pip", "--python", str(there.bin / "python")]
    install = [*pip, "install", "-q", "--no-index", "--no-deps", str(there.wheel)]
    subprocess.run(install, check=True, timeout=300, stdin=subprocess.DEVNULL)
    (site / "libraries.pth").write_text(f"{libraries}\n", encoding="utf-8")
    return there


def test_wheel_has_what_a_run_needs_and_nothing_else(installed: Installed) -> None:
    names = zipfile.ZipFile(installed.wheel).namelist()
    shipped = "lab/_shipped/"
    for name in (
        "lab/reporting/style.css",
        "lab/reporting/run.html.j2",
        "lab/console/askpass",
        "lab/history/migrations/versions/first.py",
        f"{shipped}firmware/packages.txt",
        f"{shipped}firmware/builds/pv32-debug.yaml",
        f"{shipped}inventory/virtual.yaml",
        f"{shipped}testcases/boot/test_build.py",
        f"{shipped}docs/findings/relocation.md",
        f"{shipped}contrib/starter/.github/workflows/xenlab.yaml",
        f"{shipped}conftest.py",
        f"{shipped}tox.ini",
    ):
        assert name in names, name
    assert not [name for name in names if name.endswith(".pyc") or "/.git/" in name]
    assert {name.split("/")[0] for name in names} == {"lab", f"xenlab-{lab.__version__}.dist-info"}


def test_every_file_of_a_shipped_folder_is_in_the_wheel(installed: Installed) -> None:
    project = tomllib.loads((paths.CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))
    mapped = project["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    names = set(zipfile.ZipFile(installed.wheel).namelist())
    listed = subprocess.run(
        ["git", "-C", str(paths.CHECKOUT), "ls-files", "-z", "--", *mapped],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    there = [name for name in listed.stdout.split("\0") if name and (paths.CHECKOUT / name).exists()]
    assert there and not [name for name in there if f"lab/_shipped/{name}" not in names]


def test_installed_xenlab_is_the_one_that_runs(installed: Installed) -> None:
    where = installed.run("python", "-c", "from lab.base import paths; print(paths.IS_INSTALLED, paths.SHIPPED)")
    assert where == f"True {next(installed.folder.glob('venv/lib/python3*/site-packages'))}/lab/_shipped\n"
    assert installed.run("xenlab", "--version").startswith(f"xenlab {lab.__version__} ")


def test_installed_xenlab_knows_boards_builds_and_cases(installed: Installed) -> None:
    assert {one["board"] for one in json.loads(installed.run("xenlab", "boards", "--json"))} == {"virt1", "virt2"}
    cases = {one["nodeid"] for one in json.loads(installed.run("xenlab", "cases", "--json"))}
    assert "testcases/boot/test_build.py::test_build_under_test_runs" in cases and len(cases) > 100
    assert "| `test_build_under_test_runs` |" in installed.run("xenlab", "cases")
    said = installed.run("xenlab", "build", "relese", status=2)
    assert "did you mean release?" in said
    assert installed.run("xenlab", "report").strip().endswith("/state/xenlab/site/index.html")


def test_installed_xenlab_says_what_the_machine_lacks(installed: Installed, tmp_path: Path) -> None:
    (tmp_path / "dpkg-query").write_text("#!/bin/sh\necho 'bash installed'\n")
    (tmp_path / "dpkg-query").chmod(0o755)
    said = installed.run("env", f"PATH={tmp_path}:{installed.bin}:/usr/bin:/bin", "xenlab", "doctor", status=1)
    assert re.search(r"BAD  packages: missing: .*qemu-system-x86", said), said
    assert "as root: apt-get update && apt-get install -y" in said


def test_what_needs_a_checkout_says_so(installed: Installed) -> None:
    for words in (("selftest",), ("bench",), ("cases", "--write")):
        said = installed.run("xenlab", *words, status=2)
        assert f"{' '.join(words)} needs a checkout of xenlab" in said


def test_init_writes_a_lab_whose_cases_are_collected(installed: Installed) -> None:
    mine = installed.folder / "my lab"
    assert "README.md" in installed.run("xenlab", "init", str(mine))
    said = installed.run("python", "-m", "pytest", "--collect-only", "-q", "-p", "no:labgrid", cwd=mine)
    assert "testcases/example/test_memory.py::test_free_memory_is_less_than_all" in said
    boards = json.loads(installed.run("xenlab", "boards", "--json", "--inventory", "inventory.yaml", cwd=mine))
    assert len(boards) == 2
    # xenlab's own way to the cases, as `nightly testcases` goes it: names are relative to the lab's folder.
    script = (
        "from pathlib import Path; from lab.night import planning; from lab.night.options import NightlyOptions\n"
        "found = planning.collect(NightlyOptions(paths=(str(Path('testcases').resolve()),)), 'quick')\n"
        "print([(one.nodeid, one.area) for one in found])"
    )
    wanted = [("testcases/example/test_memory.py::test_free_memory_is_less_than_all", "example")]
    assert installed.run("python", "-c", script, cwd=mine).strip() == str(wanted)
    said = installed.run("xenlab", "build", "builds/mine.yaml", cwd=mine, status=2)
    assert "src/xen" in said and "Traceback" not in said, "the recipe is read; there is no repository here"


def test_init_overwrites_nothing(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text("mine")
    with pytest.raises(UsageError, match=r"has conftest\.py already; choose an empty folder"):
        starter.write(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["conftest.py"]


def test_lab_is_called_as_its_folder(tmp_path: Path) -> None:
    starter.write(tmp_path / "My Lab #1")
    tree = yaml.safe_load((tmp_path / "My Lab #1" / "inventory.yaml").read_text(encoding="utf-8"))
    assert tree["all"]["vars"]["xenlab"]["lab"] == "My-Lab-1"


def test_a_new_lab_has_the_boards_of_the_virtual_lab_at_other_ports(tmp_path: Path) -> None:
    starter.write(tmp_path / "mine")
    new, own = inventory.load(tmp_path / "mine" / "inventory.yaml"), inventory.load(paths.INVENTORY / "virtual.yaml")
    assert new.boards.keys() == own.boards.keys()
    for name, board in new.boards.items():
        assert (board.capabilities, board.nics) == (own.boards[name].capabilities, own.boards[name].nics)
        assert board.virtual and board.virtual.shapes == own.boards[name].virtual.shapes  # type: ignore[union-attr]
    ports = [set(re.findall(r"\b2\d{4}\b", lab.path.read_text(encoding="utf-8"))) for lab in (new, own)]
    assert len(ports[0]) == len(ports[1]) > 10 and ports[0].isdisjoint(ports[1])


def test_init_says_where_it_cannot_write() -> None:
    with pytest.raises(UsageError, match="cannot write /proc/x"):
        starter.write(Path("/proc/x"))
