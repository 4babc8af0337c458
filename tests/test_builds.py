"""Hypervisor builds: package sources, recipes, the matrix; and trees that real make and gcc compile."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lab import builds
from lab.base import paths
from lab.base.errors import BenchError, BuildFailed, UsageError
from lab.builds import apt, blame, compiling, elf, kconfig, matrix, recipes, tools, trees
from lab.builds.command import CommandError

FRAGMENTS = paths.CHECKOUT / "firmware" / "kconfig"

# --- package sources ----------------------------------------------------------------------------------------

DEB822 = """\
Types: deb deb-src
URIs: http://mirror.invalid/debian
Suites: bookworm bookworm-updates
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb deb-src
URIs: http://tools.invalid
Suites: nodistro
Components: main
"""
ONE_LINE = """\
deb [arch=amd64 signed-by=/k.gpg] http://mirror.invalid/debian bookworm main contrib
deb http://mirror.invalid/debian bookworm-security main
deb http://tools.invalid cloud-bookworm main
"""


def test_another_release_is_asked_at_the_same_mirrors() -> None:
    moved = apt.of_suite(DEB822, "bookworm", "trixie")
    assert "Suites: trixie trixie-updates\n" in moved
    assert "URIs: http://mirror.invalid/debian\n" in moved
    assert "Signed-By:" in moved
    assert "tools.invalid" not in moved


def test_another_release_in_one_line_form() -> None:
    assert apt.of_suite(ONE_LINE, "bookworm", "trixie").splitlines() == [
        "deb [arch=amd64 signed-by=/k.gpg] http://mirror.invalid/debian trixie main contrib",
        "deb http://mirror.invalid/debian trixie-security main",
    ]


def test_another_architecture_is_asked_for_whatever_the_machine_is_limited_to(tmp_path: Path) -> None:
    assert apt.of_any_architecture(ONE_LINE).splitlines()[0] == (
        "deb [signed-by=/k.gpg] http://mirror.invalid/debian bookworm main contrib"
    )
    assert (
        apt.of_any_architecture("deb [arch=amd64] http://mirror.invalid x main") == "deb http://mirror.invalid x main"
    )
    assert apt.of_any_architecture("Suites: x\nArchitectures: amd64\n") == "Suites: x\n"
    assert apt.of_any_architecture(DEB822) == DEB822
    machine = tmp_path / "machine"
    machine.mkdir()
    (machine / "sources.list").write_text("deb [arch=amd64] http://mirror.invalid/debian bookworm main\n")
    private = apt.PrivateApt(tmp_path / "apt", machine, architecture="i386")
    private._write_config()
    said = subprocess.run(
        ["apt-config", "-c", str(tmp_path / "apt" / "apt.conf"), "dump"], capture_output=True, text=True, timeout=20
    ).stdout
    assert 'APT::Architecture "i386";' in said and 'APT::Architectures:: "i386";' in said
    assert "amd64" not in (tmp_path / "apt" / "sources.list.d" / "sources.list").read_text()


# --- recipes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", recipes.names())
def test_every_shipped_recipe_can_be_read(name: str, tmp_path: Path) -> None:
    found = builds.recipe(name)
    assert found.description
    kconfig.wishes(found.fragments)
    written = tmp_path / f"{name}.yaml"
    recipes.write(found, written)
    assert builds.recipe(str(written)) == found


def _recipe(tmp_path: Path, text: str) -> recipes.Recipe:
    file = tmp_path / "mine.yaml"
    file.write_text(text, encoding="utf-8")
    return builds.recipe(str(file))


BINARY = "source:\n  debian_binary: {package: xen-hypervisor-4.20-amd64, suite: trixie}\n"


def test_tools_may_be_packages_of_the_suite_of_the_hypervisor(tmp_path: Path) -> None:
    found = _recipe(tmp_path, f"{BINARY}tools: [xen-utils-4.20]\n")
    assert found.tools == ("xen-utils-4.20",)
    assert found.suite == "trixie"


def test_tools_may_be_package_files_beside_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "mine.deb").touch()
    assert _recipe(tmp_path, f"{BINARY}tools: [mine.deb]\n").tools == (str(tmp_path / "mine.deb"),)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("tools: sources", "mine.yaml:3: tools: must be debian, source, or a list of Debian packages"),
        ("tools: []", "mine.yaml:3: tools: must be debian, source, or a list of Debian packages"),
        ("tools: source", "mine.yaml:3: tools: only a build from source can have its tools from there"),
        ("tools: [not-there.deb]", "mine.yaml:3: tools.0: package 'not-there.deb' is not there"),
        ("fragments: [debug]", "mine.yaml:3: fragments: only a build from source can have fragments"),
        ("tool: source", "mine.yaml:3: tool: unknown key (did you mean tools?)"),
    ],
)
def test_what_is_wrong_in_a_recipe_is_said_with_its_place(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(UsageError, match=".") as caught:
        _recipe(tmp_path, f"{BINARY}{text}\n")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_tools_have_their_place_by_the_hypervisors_version() -> None:
    assert tools.place("4.20.4+63-g7abfd2bce2-0+deb13u1") == "usr/lib/xen-4.20"


# --- the matrix ---------------------------------------------------------------------------------------------


def _matrix(tmp_path: Path, text: str) -> tuple[matrix.Variant, ...]:
    file = tmp_path / "night.yaml"
    file.write_text(text, encoding="utf-8")
    return matrix.load(file)


def test_a_row_of_the_matrix_is_every_build_with_every_line_and_mode(tmp_path: Path) -> None:
    text = """\
command_lines: {credit: sched=credit}
rows:
  - {builds: [debian, release]}
  - {builds: [debian, release], command_lines: [plain, credit], dom0: [pv, pvh]}
"""
    found = _matrix(tmp_path, text)
    assert [variant.name for variant in found] == [
        "debian",
        "release",
        "debian+pvh-dom0",
        "debian+credit",
        "debian+credit+pvh-dom0",
        "release+pvh-dom0",
        "release+credit",
        "release+credit+pvh-dom0",
    ]
    last = found[-1]
    assert (last.build, last.xen_options, last.needs) == ("release", "sched=credit dom0=pvh", "pvh-dom0")


def test_a_recipe_file_in_the_matrix_is_looked_for_beside_it(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(BINARY, encoding="utf-8")
    (found,) = _matrix(tmp_path, "rows: [{builds: [mine.yaml]}]\n")
    assert (found.name, found.build) == ("mine", str(tmp_path / "mine.yaml"))


def test_a_variant_survives_the_run_folder(tmp_path: Path) -> None:
    variant = matrix.Variant("debian+credit", "debian", "sched=credit")
    assert matrix.Variant.of_facts(variant.name, variant.facts()) == variant
    assert matrix.Variant.of_facts("debian", {}) == matrix.Variant("debian", "debian")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("rows:\n  - builds: [debain]\n", "night.yaml:2: rows.0.builds.0: there is no build 'debain' (did you mean"),
        (
            "rows:\n  - builds: [debian]\n    command_lines: [credit]\n",
            "night.yaml:3: rows.0.command_lines.0: no command",
        ),
        ("rows:\n  - builds: [debian]\n    dom0: [hvm]\n", "night.yaml:3: rows.0.dom0.0: "),
        ("rows:\n  - build: debian\n", "night.yaml:2: rows.0.build: unknown key (did you mean builds?)"),
        ("rows: []\n", "night.yaml:1: rows: must have at least 1 item"),
        (
            "command_lines: {plain: dom0=pvh}\nrows:\n  - builds: [debian]\n",
            "night.yaml:1: command_lines.plain: this name",
        ),
    ],
)
def test_what_is_wrong_in_a_matrix_is_said_with_its_place(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        _matrix(tmp_path, text)
    assert said in str(caught.value)


def test_a_recipe_that_this_machine_cannot_make_says_which_key(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="the recipe's key compiler: 'nocc' is no program of this machine"):
        compiling.version_of("nocc")


def test_what_a_recipe_asks_of_a_repository_in_vain_is_said_with_file_line_and_key(tmp_path: Path) -> None:
    def said(folder: Path, revision: str) -> str:
        file = tmp_path / "mine.yaml"
        file.write_text(f"source:\n  git:\n    path: {folder}\n    revision: {revision}\n")
        with pytest.raises(UsageError) as caught:
            builds.make(str(file))
        text = str(caught.value)
        assert text.startswith(f"{file}:4: source.git.revision: ")
        return text.partition("revision: ")[2]

    clone = tmp_path / "clone"
    (tmp_path / "empty").mkdir()
    git = ("git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(clone))
    subprocess.run(["git", "init", "-q", "-b", "main", str(clone)], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "nothing"], check=True)
    assert said(tmp_path / "empty", "main").endswith("is no git repository; source.git.path is that of a clone of Xen")
    assert said(clone, "mian") == f"no revision 'mian' in {clone} (did you mean main?)"
    assert said(clone, "v9") == f"no revision 'v9' in {clone}; its branches: main"
    assert said(clone, "main").endswith("is no Xen source: xen/Makefile is missing")


def test_a_bad_matrix_ends_the_command_before_anything_is_set_up(tmp_path: Path) -> None:
    file = tmp_path / "night.yaml"
    file.write_text("rows:\n  - builds: [debian]\n    line: [credit]\n", encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-P", "-m", "lab.cli", "nightly", "--matrix", str(file)],
        env=paths.environment() | {"XDG_STATE_HOME": str(tmp_path / "state")},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr == (f"xenlab: {file}:3: rows.0.line: unknown key; known here: builds, command_lines, dom0\n")
    assert not (tmp_path / "state" / "xenlab" / "runs").exists()


def test_the_shipped_matrices_can_be_read() -> None:
    for file in (paths.CHECKOUT / "firmware" / "matrices").glob("*.yaml"):
        assert len({variant.name for variant in matrix.load(file)}) > 1


# --- compiled ------------------------------------------------------------------------------------------------

# A tree of Xen's shape, small: what is tried is how it is compiled and kept, with make, gcc and git as they are.
MAKEFILE = """\
all: xen.gz
vpath %.c lib
-include $(wildcard .*.d)
%.o: %.c .config
\tgcc -MD -MF .$@.d -c -o $@ $<
\t@echo $@ >> $(HOME)/compiled
xen-syms: main.o other.o
\tgcc -nostdlib -static -Wl,--build-id=sha1 -Wl,-e,main -o $@ $^
xen.gz: xen-syms
\tgzip -n < $< > $@
defconfig:
\t@echo $@ >> $(HOME)/compiled
\techo '# CONFIG_DEBUG is not set' > .config
olddefconfig:
\tgrep -q CONFIG_DEBUG=y .config && echo CONFIG_DEBUG=y > .config || true
xenversion:
\t@echo 4.99.0
"""


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository of one commit; caches and $HOME are the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path))
    repository = tmp_path / "xen.git"
    (repository / "xen").mkdir(parents=True)
    for name, text in {
        "Makefile": MAKEFILE,
        "main.c": "int other(void); int main(void) { return other(); }\n",
        "other.c": "int other(void) { return 1; }\n",
    }.items():
        (repository / "xen" / name).write_text(text, encoding="utf-8")
    (repository / ".gitignore").write_text("*.o\n*.d\nxen-syms\nxen.gz\n.config\n", encoding="utf-8")
    _git(repository, "init", "-q")
    _commit(repository)
    return repository


def _git(repository: Path, *words: str) -> None:
    identity = ["-c", "user.name=test", "-c", "user.email=test@localhost"]
    subprocess.run(["git", "-C", str(repository), *identity, *words], check=True, capture_output=True, timeout=30)


def _commit(repository: Path) -> None:
    _git(repository, "add", "-A")
    _git(repository, "commit", "-q", "-m", "a change")


def _own(tree: Path, *more: str) -> str:
    file = tree.parent / "own.yaml"
    file.write_text("\n".join(["source:", "  git: {path: xen.git}", "fragments: [debug]", *more]), encoding="utf-8")
    # The tiny tree knows CONFIG_DEBUG alone; the shipped fragment asks for EXPERT too.
    return str(file)


@pytest.fixture
def fragments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "kconfig"
    folder.mkdir()
    (folder / "debug.config").write_text("CONFIG_DEBUG=y\n", encoding="utf-8")
    (folder / "more.config").write_text("CONFIG_MORE=y\n", encoding="utf-8")
    return folder


def _make(tree: Path, fragments: Path, *more: str) -> builds.Build:
    return builds.make(recipes.recipe(_own(tree, *more), fragments=fragments))


def _compiled(tree: Path) -> list[str]:
    """What make did since the last call."""
    file = tree.parent / "compiled"
    text = file.read_text(encoding="utf-8") if file.exists() else ""
    file.unlink(missing_ok=True)
    return sorted(text.split())


def test_a_build_is_made_once(tree: Path, fragments: Path) -> None:
    first = _make(tree, fragments)
    assert _compiled(tree) == ["defconfig", "main.o", "other.o"]
    assert (first.version, first.build_id) == ("4.99.0", elf.build_id(first.xen))
    assert len(first.build_id) == 40
    assert first.config and first.config.read_text(encoding="utf-8") == "CONFIG_DEBUG=y\n"
    again = _make(tree, fragments)
    assert (again.key, again.seconds) == (first.key, first.seconds)
    assert _compiled(tree) == []


def test_the_next_revision_compiles_what_differs_and_configures_nothing(tree: Path, fragments: Path) -> None:
    first = _make(tree, fragments)
    _compiled(tree)
    (tree / "xen" / "other.c").write_text("int other(void) { return 2; }\n", encoding="utf-8")
    _commit(tree)
    second = _make(tree, fragments)
    assert _compiled(tree) == ["other.o"]
    assert second.key != first.key
    assert second.build_id != first.build_id


def test_a_source_that_moved_is_compiled_anew_alone(tree: Path, fragments: Path) -> None:
    (tree / "xen" / "lib").mkdir()
    _git(tree, "mv", "xen/other.c", "xen/lib/other.c")
    _commit(tree)
    first = _make(tree, fragments)
    _compiled(tree)
    _git(tree, "mv", "xen/lib/other.c", "xen/other.c")
    _commit(tree)
    assert _make(tree, fragments).key != first.key
    assert _compiled(tree) == ["other.o"]


def test_each_release_of_a_repository_has_a_tree_of_its_own(tree: Path, fragments: Path) -> None:
    for release in ("21", "22"):
        numbers = f"export XEN_VERSION       = 4\nexport XEN_SUBVERSION    = {release}\n"
        (tree / "xen" / "Makefile").write_text(numbers + MAKEFILE, encoding="utf-8")
        _commit(tree)
        _make(tree, fragments)
        assert _compiled(tree) == ["defconfig", "main.o", "other.o"]
    assert sorted(path.name[-5:] for path in (paths.cache() / "trees").glob("git-*[0-9]")) == ["-4.21", "-4.22"]


def test_a_damaged_build_is_made_anew(tree: Path, fragments: Path) -> None:
    first = _make(tree, fragments)
    with open(first.xen, "ab") as file:
        file.write(b"x")
    again = _make(tree, fragments)
    assert elf.build_id(again.xen) == first.build_id
    assert again.sha256 == first.sha256


def test_what_does_not_compile_leaves_no_build_and_says_why(tree: Path, fragments: Path) -> None:
    (tree / "xen" / "other.c").write_text("int other(void) { return missing; }\n", encoding="utf-8")
    _commit(tree)
    with pytest.raises(BuildFailed, match="other.c:1:26: error: .missing. undeclared") as caught:
        _make(tree, fragments)
    log_file = Path(str(caught.value).rpartition("log: ")[2])
    assert "missing" in log_file.read_text(encoding="utf-8")
    kept = [entry for entry in (paths.cache() / "builds").iterdir() if entry.is_dir()]
    assert kept == []


GCC = "gcc -c -o other.o other.c"


@pytest.mark.parametrize(
    "line",
    [
        "other.c:7:1: internal compiler error: Segmentation fault",
        "x86_64-linux-gnu-gcc: fatal error: Killed signal terminated program cc1",
        "make[1]: *** [Makefile:3: other.o] Killed",
        "/usr/bin/ld: final link failed: No space left on device",
        "cc1: out of memory allocating 65536 bytes after a total of 1 bytes",
        "/bin/sh: 1: python3: not found",
    ],
)
def test_a_compiler_or_a_disk_that_fails_is_no_failure_of_the_build(line: str, tmp_path: Path) -> None:
    error = CommandError("make ended with status 2", ended=True, output=[GCC, line, "make: *** [all] Error 2"])
    assert blame.of_build(error, "the build", tmp_path) is error


@pytest.mark.parametrize(
    "lines",
    [
        ["other.c:1:26: error: 'missing' undeclared", "    1 | int other(void) { return missing; }"],
        ["other.c:1:2: error: #error No space left on device"],
        [
            "other.c:4:9: warning: unused",
            '    4 |   puts("internal compiler error");',
            "ld: undefined reference to `x'",
        ],
        ["make[1]: *** [Makefile:3: other.o] Error 1"],
    ],
)
def test_what_the_source_says_of_machines_is_not_believed(lines: list[str], tmp_path: Path) -> None:
    error = CommandError("make ended with status 2", ended=True, output=[GCC, *lines])
    failed = blame.of_build(error, "the build", tmp_path)
    assert isinstance(failed, BuildFailed)
    assert failed.lines[-1] == lines[-1] and str(failed).splitlines()[0] == "the build"


def test_a_compiler_that_is_cut_off_is_no_failure_of_the_build(tmp_path: Path) -> None:
    error = CommandError("not done after 3600 s", ended=False, output=["other.c:1: error: x"])
    assert blame.of_build(error, "the build", tmp_path) is error


def test_a_patch_that_does_not_apply_is_the_builds_failure(tree: Path, fragments: Path) -> None:
    hunk = "--- a/xen/other.c\n+++ b/xen/other.c\n@@ -1 +1 @@\n-int gone;\n+int there;\n"
    (tree.parent / "late.patch").write_text(hunk, encoding="utf-8")
    with pytest.raises(BuildFailed, match=r"late\.patch: does not apply") as caught:
        _make(tree, fragments, "patches: [late.patch]")
    assert any("FAILED" in line for line in caught.value.lines)


def test_a_build_knows_commit_subject_date_and_branch(tree: Path, fragments: Path) -> None:
    _git(tree, "checkout", "-q", "-b", "staging")
    _git(
        tree, "commit", "-q", "--allow-empty", "-m", "x86: a subject\n\nand more", "--date", "2026-11-24T09:00:00+01:00"
    )
    made = _make(tree, fragments)
    source = made.facts()["source"]
    assert isinstance(source, dict)
    assert made.source == f"git {source['commit']}"
    assert (source["subject"], source["branch"]) == ("x86: a subject", "staging")
    assert source["date"].startswith("20") and "T" in source["date"]
    _git(tree, "checkout", "-q", "--detach")
    detached = _make(tree, fragments).facts()["source"]
    assert isinstance(detached, dict) and "branch" not in detached and detached["commit"] == source["commit"]


def test_a_debian_build_knows_its_package_and_version() -> None:
    source = recipes.DebianSource("xen", "4.17.5-1")
    assert trees.origin(source, trees.identify(source)).facts() == {"package": "xen", "version": "4.17.5-1"}


def test_what_was_fetched_is_used_without_a_network_and_that_is_said(tree: Path, fragments: Path) -> None:
    _git(tree, "checkout", "-q", "-b", "staging")
    file = Path(_own(tree))
    file.write_text(file.read_text().replace("path: xen.git", f"url: 'file://{tree}', revision: staging"))
    before = builds.make(recipes.recipe(str(file), fragments=fragments))
    tree.rename(tree.with_name("unplugged"))
    said: list[str] = []
    after = builds.make(recipes.recipe(str(file), fragments=fragments), progress=said.append)
    assert (after.key, after.origin.branch) == (before.key, "staging")
    commit, today = before.source.split()[-1], time.strftime("%Y-%m-%d")
    assert said[0].startswith(f"build own: no network: using {commit[:12]} of staging, fetched on {today} (fatal: ")
    never = recipes.Git(f"file://{tree}/never", "staging")
    with pytest.raises(BenchError, match="nothing of it was fetched before: fatal: "):
        trees.identify(never)


def test_a_clone_stands_in_for_a_url(tree: Path, fragments: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = tree.parent / "gitconfig"
    settings.write_text(f'[url "{tree}"]\n\tinsteadOf = https://host.invalid/xen.git\n')
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(settings))
    assert trees.identify(recipes.Git("https://host.invalid/xen.git", "HEAD")) == _make(tree, fragments).source


def test_a_run_stays_with_its_commit_while_the_branch_moves_on(tree: Path, fragments: Path) -> None:
    first = _make(tree, fragments)
    (tree / "xen" / "other.c").write_text("int other(void) { return 2; }\n", encoding="utf-8")
    _commit(tree)
    own = recipes.recipe(_own(tree), fragments=fragments)
    commit = first.facts()["source"]["commit"]  # type: ignore[index]
    bound = builds.make(own, commit=commit)
    assert (bound.key, bound.origin) == (first.key, first.origin)
    assert builds.make(own).key != first.key


def test_a_recipe_file_that_moves_keeps_its_name(tree: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere" / "own.yaml"
    moved.parent.mkdir()
    here, there = matrix.Variant.plain(_own(tree)), matrix.Variant.plain(str(moved))
    assert here.name == there.name == "own"
    assert here.build != there.build and matrix.Variant.of_facts(here.name, here.facts()) == here


def test_a_setting_that_is_not_offered_is_an_error(tree: Path, fragments: Path) -> None:
    file = Path(_own(tree))
    file.write_text(file.read_text(encoding="utf-8").replace("[debug]", "[debug, more]"), encoding="utf-8")
    with pytest.raises(UsageError, match=r"more\.config:1: asked for CONFIG_MORE=y, resolved to n"):
        builds.make(recipes.recipe(str(file), fragments=fragments))


MAKE_ONE = """\
import sys
from pathlib import Path
from lab import builds
from lab.builds import recipes
print(builds.make(recipes.recipe(sys.argv[1], fragments=Path(sys.argv[2]))).build_id)
"""


def _start(tree: Path, fragments: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-P", "-c", MAKE_ONE, _own(tree), str(fragments)],
        env=os.environ | {"PYTHONPATH": str(paths.CHECKOUT)},
        stdout=subprocess.PIPE,
        text=True,
    )


def test_two_makers_at_once_make_it_once(tree: Path, fragments: Path) -> None:
    makers = [_start(tree, fragments) for _ in range(2)]
    said = {maker.communicate(timeout=60)[0] for maker in makers}
    assert len(said) == 1 and "" not in said
    assert _compiled(tree) == ["defconfig", "main.o", "other.o"]


def test_a_maker_that_is_killed_leaves_nothing_half_made(tree: Path, fragments: Path) -> None:
    makefile = (tree / "xen" / "Makefile").read_text(encoding="utf-8")
    slow = makefile.replace("gcc -MD", "[ -e $(HOME)/hurry ] || sleep 10; gcc -MD")
    (tree / "xen" / "Makefile").write_text(slow, encoding="utf-8")
    _commit(tree)
    maker = _start(tree, fragments)
    deadline = time.monotonic() + 30
    while not list((paths.cache() / "trees").glob("*/.xenlab-busy")):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    maker.kill()
    maker.communicate(timeout=30)
    assert not [entry for entry in (paths.cache() / "builds").iterdir() if (entry / "build.json").exists()]
    (tree.parent / "hurry").touch()
    assert _make(tree, fragments).build_id


def test_several_builds_are_made_and_one_that_fails_keeps_none_back(tree: Path, tmp_path: Path) -> None:
    (tree / "xen" / "Makefile").write_text(MAKEFILE.replace("CONFIG_DEBUG", "CONFIG_EXPERT"), encoding="utf-8")
    _commit(tree)
    _git(tree, "tag", "good")
    (tree / "xen" / "other.c").write_text("int other(void) { return missing; }\n", encoding="utf-8")
    _commit(tree)
    for name, revision in (("first", "good"), ("bad", "HEAD"), ("second", "good~1")):
        recipe = f"source:\n  git: {{path: xen.git, revision: {revision}}}\n"
        (tmp_path / f"{name}.yaml").write_text(recipe, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-P", "-m", "lab.cli", "build", "first.yaml", "bad.yaml", "second.yaml"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(paths.CHECKOUT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1
    assert {line.split()[0] for line in done.stdout.splitlines()} == {"first", "second"}
    assert "build bad: compiling: make ended with status 2" in done.stderr
    assert "build first: compiling" in done.stderr
