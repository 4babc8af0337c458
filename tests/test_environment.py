"""What a child process is given: the variables it needs, and no secret that it does not."""

from __future__ import annotations

import ast
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from command_lines import content, watching
from ipmi_sim import Simulator
from shared_lab import Shared, pytestmark  # noqa: F401
from test_builds import _commit, _make, fragments, tree  # noqa: F401
from test_night import Night
from test_provision import wanted  # noqa: F401

from lab import provision
from lab.base import paths, processes
from lab.base.errors import BenchError, UsageError
from lab.grid import ssh
from lab.leases import ledger
from lab.night import workers
from lab.reporting import site

# Everywhere a user may have one, by name; what is said here is looked for.
SECRETS = {
    "XENLAB_CREDENTIAL_RACK": "admin:marked-bmc",
    "XENLAB_HISTORY_URL": "postgresql://xenlab:marked-history@127.0.0.1:1/xenlab",
    "XENLAB_NOTIFY": "json://user:marked-notify@127.0.0.1:1/",
    "CI_JOB_TOKEN": "marked-job",
    "GITHUB_TOKEN": "marked-github",
    "PGPASSWORD": "marked-postgres",
    "IPMI_PASSWORD": "marked-ipmi",
    "IPMITOOL_PASSWORD": "marked-ipmitool",
    "AWS_SECRET_ACCESS_KEY": "marked-cloud",
    "ANSIBLE_BECOME_PASSWORD": "marked-become",
    "GIT_CONFIG_VALUE_0": "marked-header",
    "SOMETHING_OF_THE_USERS": "marked-own",
}
# Programs that run in dom0.
IN_DOM0 = Path("lab/on_board/proxy.py"), Path("lab/on_board/poke.py"), Path("lab/xen/migration_matrix/fuzz.py")
STARTS = re.compile(r"subprocess\.(run|Popen|call|check_call|check_output)|\w+\.create_subprocess_(exec|shell)")
MARKS = {re.search("marked-[a-z]+", value)[0].encode(): name for name, value in SECRETS.items()}  # type: ignore[index]


@pytest.fixture
def marked(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    return SECRETS


def found_in(*folders: Path) -> list[tuple[str, str]]:
    """Files that hold a secret, and which."""
    return [
        (str(file), name)
        for folder in folders
        for file in folder.rglob("*")
        if file.is_file() and not file.is_symlink()
        for mark, name in MARKS.items()
        if mark in file.read_bytes()
    ]


def test_every_program_that_is_started_is_given_an_environment_of_its_own() -> None:
    bare = []
    for file in sorted((paths.CHECKOUT / "lab").rglob("*.py")):
        name = file.relative_to(paths.CHECKOUT)
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))) if name not in IN_DOM0 else ():
            if not isinstance(node, ast.Call) or not STARTS.fullmatch(ast.unparse(node.func)):
                continue
            if "env" not in {word.arg for word in node.keywords}:
                bare.append(f"{name}:{node.lineno}")
    assert bare == []


@pytest.mark.parametrize("needs", [(), (processes.NETWORK,), (processes.ANSIBLE,), (processes.PYTHON,)])
def test_no_secret_is_among_what_children_need(marked: dict[str, str], needs: tuple[tuple[str, ...], ...]) -> None:
    given = processes.environment(*needs)
    assert not set(given) & set(marked)
    assert given["PATH"] == os.environ["PATH"]


def test_credentials_go_only_to_who_speaks_to_bmcs(marked: dict[str, str]) -> None:
    given = processes.environment(processes.PYTHON, processes.NETWORK, processes.ANSIBLE, processes.CREDENTIALS)
    assert set(given) & set(marked) == {"XENLAB_CREDENTIAL_RACK"}


def test_a_user_adds_variables_by_name(marked: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(processes.PASS_ENV, "CCACHE_* SOMETHING_OF_THE_USERS")
    monkeypatch.setenv("CCACHE_DIR", "/cache")
    given = processes.environment()
    assert given["CCACHE_DIR"] == "/cache"
    assert set(given) & set(marked) == {"SOMETHING_OF_THE_USERS"}


def test_make_of_a_foreign_source_sees_no_secret(marked: dict[str, str], tree: Path, fragments: Path) -> None:  # noqa: F811
    """A source can do what it likes with the environment: here its Makefile prints it into the build's log."""
    makefile = tree / "xen" / "Makefile"
    makefile.write_text(makefile.read_text().replace("all: xen.gz", "all: xen.gz\n\t@env | sed s/^/saw:/"))
    _commit(tree)
    made = _make(tree, fragments)
    assert "saw:PATH=" in made.log.read_text()
    assert found_in(tree.parent) == []


def test_a_git_url_with_a_password_is_refused(tmp_path: Path) -> None:
    from lab.builds import recipes

    (tmp_path / "own.yaml").write_text("source:\n  git: {url: 'https://me:marked-git@host/xen.git', revision: main}\n")
    with pytest.raises(UsageError) as raised:
        recipes.recipe(str(tmp_path / "own.yaml"))
    assert "credential helper" in str(raised.value)
    assert "marked-git" not in str(raised.value)


@contextmanager
def environments() -> Iterator[set[tuple[bytes, str]]]:
    """Which process, by its command line, was seen with which secret in its environment or its words."""
    seen = set[tuple[bytes, str]]()

    def look(process: str) -> None:
        if words := content(f"{process}/cmdline"):  # one that begins or ends just now has none; it is looked at again
            held = content(f"{process}/environ")
            seen.update((words, name) for mark, name in MARKS.items() if mark in held + words)

    with watching(look):
        yield seen


@pytest.mark.skipif(not shutil.which("ipmi_sim"), reason="needs openipmi and ipmitool")
def test_a_night_and_its_lab_leave_secrets_nowhere(
    marked: dict[str, str],
    wanted: provision.Wanted,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Run folder, site, state and logs hold none; services and workers have BMC credentials, other children nothing."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("XENLAB_CREDENTIAL_SIMULATED", f"{Simulator.user}:{Simulator.password}")
    monkeypatch.delenv(ledger.LEASE, raising=False)
    with environments() as seen:
        shared = Shared(tmp_path)
        try:
            night = Night(shared, tmp_path / "run", 4, builds=1)
            run = night.ends(0)
            board = replace(shared.lab.boards["sim1"], ssh_port=_closed_port())
            key, hosts = tmp_path / "key", tmp_path / "hosts"
            key.touch(mode=0o600)
            hosts.touch()
            words = ["-F", "none", "-i", str(key), "-o", f"UserKnownHostsFile={hosts}", "-o", "BatchMode=yes"]
            with pytest.raises(BenchError, match="all it said is in"):
                provision.deploy(shared.lab, [board], wanted, run.path / "provision" / "1", ssh_words=words)
            with pytest.raises(BenchError):
                ssh.Ssh("sim1", "127.0.0.1", board.ssh_port, "root").run("true", timeout=2)
            monkeypatch.delenv("XENLAB_HISTORY_URL")
            store = site.History()
            store.import_run(run.path)
            site.write(store, tmp_path / "site")
        finally:
            shared.stop()
            for bmc in shared.bmcs.values():
                bmc.stop()
    (said,) = (run.path / "provision" / "1").rglob("*")
    assert "PLAY [Deploy the build under test]" in said.read_text()
    assert found_in(tmp_path) == []
    mine = Path("/proc/self/cmdline").read_bytes()
    own = (str(night.script).encode(), b"ipmi_sim", b"program.py")  # started by this test, with all it has
    others = {(words, name) for words, name in seen if words != mine and not any(one in words for one in own)}
    strange = sorted(
        {words.replace(b"\0", b" ").decode() for words, name in others if name != "XENLAB_CREDENTIAL_RACK"}
    )
    assert strange == []
    assert others, "the services' own was not seen"
    allowed = ("lab.grid.supervisor", "lab.console.recorder", "lab.grid.reaper", "pytest", "lab.case.ready")
    assert [words for words, _ in others if not any(one.encode() in words for one in allowed)] == []


def test_a_worker_is_given_credentials_and_its_lease(marked: dict[str, str], tmp_path: Path) -> None:

    with workers.spawn([sys.executable, "-c", "import os; print(*os.environ)"], tmp_path / "log", 7) as worker:
        assert worker.wait(20) == 0
    names = (tmp_path / "log").read_text().split()
    assert set(names) & set(marked) == {"XENLAB_CREDENTIAL_RACK"}
    assert ledger.LEASE in names


def _closed_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


CORES = """\
import resource, subprocess, sys
resource.setrlimit(resource.RLIMIT_CORE, (resource.getrlimit(resource.RLIMIT_CORE)[1],) * 2)
from lab.cli import main
try:
    main.main(["--help"])
finally:
    subprocess.run([sys.executable, "-c", "import resource; print('core', *resource.getrlimit(resource.RLIMIT_CORE))"])
"""


def test_no_core_file_is_left_of_a_process_that_may_hold_a_password() -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-c", CORES], env=paths.environment(), capture_output=True, text=True, timeout=60
    )
    assert re.search(r"^core 0 ", done.stdout, re.MULTILINE), done.stdout + done.stderr


def test_a_folder_for_sockets_that_others_made_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", "")
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    squatted = tmp_path / f"xenlab-{os.getuid()}"
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    squatted.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BenchError, match="is not a folder; remove it, or set XDG_RUNTIME_DIR"):
        paths.runtime()
    squatted.unlink()
    squatted.mkdir(mode=0o700)
    squatted.chmod(0o777)
    with pytest.raises(BenchError, match="has mode 0777"):
        paths.runtime()
    squatted.rmdir()
    assert paths.runtime() == squatted
    assert squatted.stat().st_mode & 0o777 == 0o700


def test_the_users_own_runtime_folder_is_preferred_if_it_is_private(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tempfile

    with tempfile.TemporaryDirectory(dir="/tmp") as given:
        monkeypatch.setenv("XDG_RUNTIME_DIR", given)
        assert paths.runtime() == Path(given, "xenlab")
        os.chmod(given, 0o755)
        assert paths.runtime() == Path(tempfile.gettempdir(), f"xenlab-{os.getuid()}")


def test_root_who_may_not_mount_is_known() -> None:
    """As in a container: the dom0 image is then made in namespaces of its own."""
    ask = (sys.executable, "-P", "-c", "from lab.base import processes; print(processes.is_root_without_mounts())")
    root = ("unshare", "--user", "--map-root-user")
    for before, said in ((root, "False"), ((*root, "setpriv", "--bounding-set", "-sys_admin"), "True")):
        environment = processes.environment(processes.PYTHON)
        done = subprocess.run([*before, *ask], capture_output=True, text=True, timeout=60, check=True, env=environment)
        assert done.stdout.strip() == said, before
