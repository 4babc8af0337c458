"""Files from elsewhere that are made to harm, or damaged: archives, images, names, text that costs time to read."""

from __future__ import annotations

import gzip
import io
import struct
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lab import inventory
from lab.base.errors import UsageError
from lab.base.files import read_yaml
from lab.builds import apt, blame, elf, matrix, recipes, trees
from lab.builds.recipes import Recipe, Tarball
from lab.grid import rescue
from lab.history import comparing
from lab.history.store import History
from lab.xen import domain, payloads

# -- archives ------------------------------------------------------------------------------------------------------


def archive(tmp_path: Path, *members: tuple[str, bytes, str], mtime: float = 1e9) -> Path:
    """A tar of ``xen/Makefile`` and these: name, type, and what a link points to."""
    path = tmp_path / "source.tar"
    with tarfile.open(path, "w") as tar:
        for name, kind, target in [("top/xen/Makefile", tarfile.REGTYPE, ""), *members]:
            member = tarfile.TarInfo(name)
            member.type, member.linkname, member.mtime = kind, target, mtime  # type: ignore[assignment]
            tar.addfile(member, io.BytesIO())
    return path


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()
    outside = tmp_path / "outside"
    (outside / "xen").mkdir(parents=True)
    (outside / "xen" / "Makefile").touch()
    return outside


def unpack(path: Path, tmp_path: Path) -> None:
    trees._unpack_into(Tarball(path), tmp_path / "cache" / "tree")


def test_a_tree_whose_note_a_power_cut_damaged_is_unpacked_anew(tmp_path: Path, cached: Path) -> None:
    recipe = Recipe("own", Tarball(archive(tmp_path)))
    for note in ("", "null", '{"epoch": "soon"}', "[" * 9):
        with trees.checked_out(recipe, trees.identify(recipe.source), lambda text: None) as tree:
            assert tree.epoch == 1e9
        (tree.directory / trees._FACTS).write_text(note)


def test_an_archive_is_unpacked(tmp_path: Path, cached: Path) -> None:
    unpack(archive(tmp_path, ("top/xen/link", tarfile.SYMTYPE, "Makefile")), tmp_path)
    assert (tmp_path / "cache" / "tree" / "xen" / "Makefile").is_file()


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ([("top/xen/arch", tarfile.SYMTYPE, "{outside}")], "a link that leads out of the archive"),
        ([("top/xen/arch", tarfile.SYMTYPE, "../../../../../../etc")], "a link that leads out of the archive"),
        ([("top/xen/pipe", tarfile.FIFOTYPE, "")], "neither a file, a folder nor a link"),
        ([("top/.xenlab-busy", tarfile.REGTYPE, "")], "a name that begins with .xenlab- is not for sources"),
        ([("top/xen/arch/.xenlab-x", tarfile.REGTYPE, "")], "is not for sources"),
    ],
)
def test_what_leads_out_of_an_archive_is_refused(
    tmp_path: Path, cached: Path, members: list[tuple[str, bytes, str]], said: str
) -> None:
    path = archive(tmp_path, *[(name, kind, link.format(outside=cached)) for name, kind, link in members])
    before = sorted(cached.rglob("*"))
    with pytest.raises(UsageError, match=said):
        unpack(path, tmp_path)
    assert sorted(cached.rglob("*")) == before
    assert not (tmp_path / "cache" / "tree").exists()


def test_an_archive_that_is_one_link_to_a_tree_elsewhere_is_refused(tmp_path: Path, cached: Path) -> None:
    path = tmp_path / "link.tar"
    with tarfile.open(path, "w") as tar:
        member = tarfile.TarInfo("top")
        member.type, member.linkname = tarfile.SYMTYPE, str(cached)
        tar.addfile(member)
    with pytest.raises(UsageError, match="a link that leads out of the archive"):
        unpack(path, tmp_path)
    assert not list(cached.glob(".xenlab*"))


@pytest.mark.parametrize("mtime", [-1e6, 2.0**34])
def test_a_source_of_an_odd_date_has_one_that_can_be_printed(tmp_path: Path, cached: Path, mtime: float) -> None:
    unpack(archive(tmp_path, mtime=mtime), tmp_path)
    assert '{"epoch": ' in (tmp_path / "cache" / "tree" / ".xenlab-tree").read_text()


# -- images --------------------------------------------------------------------------------------------------------


def image(count: int = 1, start: int = 64, offset: int = 120, size: int = 20, notes: bytes = b"") -> bytes:
    """A 64-bit ELF of program headers."""
    head = (
        b"\x7fELF\x02\x01" + bytes(26) + struct.pack("<Q", start) + bytes(14) + struct.pack("<HH", 56, count) + bytes(6)
    )
    entry = struct.pack("<IIQQQQQQ", 4, 0, offset, 0, 0, size, 0, 0)
    return head + entry * min(count, 70000) + notes


GOOD = image(notes=struct.pack("<III", 4, 4, 3) + b"GNU\0" + b"\1\2\3\4")


def test_a_build_id_is_read(tmp_path: Path) -> None:
    (tmp_path / "xen").write_bytes(GOOD)
    assert elf.build_id(tmp_path / "xen") == "01020304"


@pytest.mark.parametrize(
    "data",
    [
        image(start=2**64 - 1),
        image(start=2**63),
        image(offset=2**64 - 1),
        image(size=2**64 - 1),
        image(count=65535, offset=0, size=2**40, notes=bytes(1 << 22)),
        GOOD[:70],
        GOOD[:6],
        b"\x7fELF\x01\x01",
        b"",
        b"\x1f\x8b",
        gzip.compress(GOOD, mtime=0)[:-5],
    ],
)
def test_a_damaged_image_is_told_in_time(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "xen.gz").write_bytes(data)
    began = time.monotonic()
    try:
        assert elf.build_id(tmp_path / "xen.gz") == ""
    except ValueError as error:
        assert str(tmp_path / "xen.gz") in str(error)  # noqa: PT017
    assert time.monotonic() - began < 2


def test_an_image_that_unpacks_to_gigabytes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(elf, "IMAGE_LIMIT", 1 << 20)
    (tmp_path / "xen.gz").write_bytes(gzip.compress(bytes(8 << 20)))
    with pytest.raises(ValueError, match="larger than 1 MiB"):
        elf.build_id(tmp_path / "xen.gz")


# -- names ---------------------------------------------------------------------------------------------------------

LONG = "x" * 5000
INVENTORY = """\
all:
  vars:
    xenlab: {{lab: {lab}}}
  hosts:
    {host}:
      ansible_host: '{address}'
      xenlab: {{}}
"""


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f"source:\n  tarball: {LONG}\n", "is not there"),
        (f"source:\n  prebuilt: {{xen: a/{LONG}}}\n", "is not there"),
        (f"source:\n  git: {{path: '~nobody-of-this-name/{LONG}'}}\n", "is not there"),
        (f"source:\n  git: {{path: .}}\nfragments: [{LONG}]\n", "no fragment"),
    ],
)
def test_a_name_in_a_recipe_that_is_too_long_is_not_there(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "own.yaml").write_text(text)
    with pytest.raises(UsageError, match=said) as raised:
        recipes.recipe(str(tmp_path / "own.yaml"))
    assert str(tmp_path / "own.yaml") in str(raised.value)


@pytest.mark.parametrize("word", [LONG, f"{LONG}.yaml", "a/" * 3000, "~nobody-of-this-name/x.yaml"])
def test_a_word_that_is_too_long_for_a_file_is_an_error_of_the_user(tmp_path: Path, word: str) -> None:
    with pytest.raises(UsageError):
        recipes.recipe(word)
    (tmp_path / "m.yaml").write_text(f"rows: [{{builds: ['{word}']}}]\n")
    with pytest.raises(UsageError):
        matrix.load(tmp_path / "m.yaml")
    store = History(f"sqlite:///{tmp_path}/h.sqlite")
    with pytest.raises(UsageError):
        store.select(word)
    with pytest.raises(UsageError):
        comparing._selections(store, word)
    with pytest.raises(UsageError):
        inventory.load(Path(word))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"lab": LONG}, "all.vars.xenlab.lab: must be a name of at most 63 characters"),
        ({"host": "x" * 64}, "must be a name of at most 63 characters"),
        ({"address": "-oProxyCommand=id"}, "ansible_host: must be a host name or address, not '-oProxyCommand=id'"),
        ({"address": "a b"}, "ansible_host: must be a host name or address"),
        ({"address": "root@a"}, "ansible_host: must be a host name or address"),
    ],
)
def test_words_that_ssh_and_files_are_named_by_are_checked(tmp_path: Path, change: dict[str, str], said: str) -> None:
    file = tmp_path / "inventory.yaml"
    file.write_text(INVENTORY.format(**{"lab": "x", "host": "a", "address": "10.0.0.1"} | change))
    with pytest.raises(UsageError) as raised:
        inventory.load(file)
    assert said in str(raised.value)
    assert str(raised.value).startswith(f"{file}:")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("ansible_user", "-l root"),
        ("bmc", {"host": "-H", "credential": "x"}),
        ("console", {"via": "ssh", "host": "-oProxyCommand=id"}),
        ("pdu", {"host": "a b"}),
    ],
)
def test_the_other_words_are_checked_too(tmp_path: Path, key: str, value: object) -> None:
    import json

    host = {"xenlab": {key: value}} if not isinstance(value, str) else {key: value, "xenlab": {}}
    file = tmp_path / "inventory.yaml"
    file.write_text(json.dumps({"all": {"vars": {"xenlab": {"lab": "x"}}, "hosts": {"a": host}}}))
    with pytest.raises(UsageError, match="must be a (host name|user's name)"):
        inventory.load(file)


# -- YAML ----------------------------------------------------------------------------------------------------------

HEAD = "all:\n  vars:\n    xenlab: {lab: x}\n"


@pytest.mark.parametrize(
    "text",
    [
        "all:\n  vars: 5\n",
        "all:\n  vars: [xenlab]\n",
        "all: 5\n",
        "5\n",
        "",
        f"{HEAD}  hosts:\n    a: text xenlab\n",
        f"{HEAD}  hosts: 5\n",
        f"{HEAD}  hosts: {{a: 5}}\n",
        f"{HEAD}  children: [a]\n",
        f"{HEAD}  children: {{a: 5}}\n",
        f"{HEAD}  children: &x {{a: {{children: *x}}}}\n",
        "%YAML 9.9\n---\nall: {}\n",
        "? [a]\n: b\n",
        "? {a: b}\n: c\n",
        "all:\n  {a: b}: c\n",
        "[" * 50_000,
        "{a: " * 50_000,
        "&a [*a]\n",
        "a: !!python/object:os.system x\n",
        "a: !!binary x\n",
        "a: !!timestamp x\n",
        "a: 2026-99-99\n",
        "a: 1e99999\n",
        "- " * 50_000,
        "\x00",
        "a: \ud800".encode("utf-8", "surrogatepass").decode("utf-8", "replace"),
    ],
)
def test_whatever_is_wrong_in_yaml_is_one_error_with_its_file(tmp_path: Path, text: str) -> None:
    file = tmp_path / "file.yaml"
    file.write_text(text)
    readers: tuple[Callable[[Path], object], ...] = (
        inventory.load,
        matrix.load,
        lambda path: recipes.recipe(str(path)),
    )
    for read in readers:
        with pytest.raises(UsageError) as raised:
            read(file)
        assert str(raised.value).startswith(f"{file}:")


def test_two_places_that_are_wrong_are_two_lines(tmp_path: Path) -> None:
    file = tmp_path / "inventory.yaml"
    file.write_text(f"{HEAD}  hosts: {{a: 5, b: text}}\n")
    with pytest.raises(UsageError) as raised:
        inventory.load(file)
    assert len(str(raised.value).splitlines()) == 2


def test_a_tree_of_aliases_is_read_in_time(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x]", *(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}, *a{n - 1}]" for n in range(1, 40))]
    (tmp_path / "bomb.yaml").write_text("\n".join(lines) + "\n")
    began = time.monotonic()
    read_yaml(tmp_path / "bomb.yaml")
    with pytest.raises(UsageError):
        recipes.recipe(str(tmp_path / "bomb.yaml"))
    assert time.monotonic() - began < 5


# -- text that costs time ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("read", "unit"),
    [
        (lambda text: domain.numbers(text), "a"),
        (lambda text: domain.numbers(text), "a="),
        (lambda text: rescue._text(text.encode()), "\r"),
        (lambda text: payloads.parse_line(text), "[x]"),
        (lambda text: payloads.parse_line(text), "[x] "),
        (lambda text: blame._QUOTED.search(text), " "),
        (lambda text: apt.of_any_architecture(text), "deb [\n"),
        (lambda text: apt.of_suite(text, "bookworm", "trixie"), "\n"),
        (lambda text: apt.one_line_with_sources(text), "deb  "),
    ],
)
def test_text_is_read_in_a_time_that_grows_with_its_length(read: Callable[[str], object], unit: str) -> None:
    """200 kB of the same in a row: with a pattern that begins anew at each place, it takes minutes."""
    began = time.monotonic()
    read(unit * (200_000 // len(unit)))
    assert time.monotonic() - began < 3


def test_numbers_of_a_payload_are_read_with_or_without_leading_zeros() -> None:
    assert domain.numbers("pages=512 high=0x13ffff low=-7 at=007 x=y") == {
        "pages": 512,
        "high": 0x13FFFF,
        "low": -7,
        "at": 7,
    }
