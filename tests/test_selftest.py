"""The self-test leaves nothing behind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lab.base.wait import wait_until
from lab.selfcheck import selftest

# As a worker of xdist whose master has ended: it takes no notice of SIGINT, and outlives who started it.
STRAY = "trap '' INT; echo; sleep 60"


def test_an_interrupted_step_leaves_no_worker_behind() -> None:
    begin = f"import subprocess, time; stray = subprocess.Popen(['sh', '-c', {STRAY!r}]); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", begin], stdout=subprocess.PIPE, start_new_session=True) as process:
        assert process.stdout and process.stdout.readline() == b"\n"
        selftest._end(process)
        assert process.returncode
        pipe = process.stdout  # the stray has the other end of it, too
        os.set_blocking(pipe.fileno(), False)
        wait_until(lambda: pipe.read(1) == b"", 10, "the end of the stray")


def test_the_files_that_begin_first_are_there(request: pytest.FixtureRequest) -> None:
    """A file that was renamed would begin with all others, and perhaps last."""
    ours = str(Path(__file__).with_name("conftest.py"))
    options = next(one for one in request.config.pluginmanager.get_plugins() if getattr(one, "__file__", "") == ours)
    assert [name for name in options.LONGEST if not Path(__file__).with_name(f"test_{name}.py").exists()] == []


@pytest.mark.parametrize(("test", "named", "status"), [("pytest.skip()", 3, 0), ("pass", 0, 0), ("assert 0", 1, 1)])
def test_a_step_that_was_named_is_bad_if_nothing_of_it_ran(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, test: str, named: int, status: int
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("XENLAB_PYTHON", sys.executable)
    (tmp_path / "test_it.py").write_text(f"import pytest\ndef test_it():\n    {test}\n", encoding="utf-8")
    command = "{env:XENLAB_PYTHON} -m pytest test_it.py -p no:labgrid --junitxml={env:XENLAB_REPORTS}/it.xml"
    (tmp_path / "tox.ini").write_text(
        f"[tox]\nno_package = true\n[testenv]\nskip_install = true\nallowlist_externals = *\npass_env = *\n"
        f"change_dir = {{toxinidir}}\n[testenv:it]\ncommands = {command}\n",
        encoding="utf-8",
    )
    said: list[str] = []
    steps = (selftest.SelftestStep("it", 60),)
    assert selftest.run(["it"], steps=steps, tox_ini=tmp_path / "tox.ini", say=said.append) == named, said
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "another"))  # reports are told apart by the second
    assert selftest.run(steps=steps, tox_ini=tmp_path / "tox.ini", say=said.append) == status, said
    if named == 3:
        assert any("nothing of it can run here" in line for line in said)
