"""The self-test leaves nothing behind."""

from __future__ import annotations

import os
import subprocess
import sys

from lab.base.wait import wait_until
from lab.selfcheck import selftest

# As a worker of xdist whose master has ended: it takes no notice of SIGINT, and outlives who started it.
STRAY = "trap '' INT; echo; sleep 60"


def test_an_interrupted_step_leaves_no_worker_behind() -> None:
    begin = f"import subprocess, time; subprocess.Popen(['sh', '-c', {STRAY!r}]); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", begin], stdout=subprocess.PIPE, start_new_session=True) as process:
        assert process.stdout and process.stdout.readline() == b"\n"
        selftest._end(process)
        assert process.returncode
        pipe = process.stdout  # the stray has the other end of it, too
        os.set_blocking(pipe.fileno(), False)
        wait_until(lambda: pipe.read(1) == b"", 10, "the end of the stray")
