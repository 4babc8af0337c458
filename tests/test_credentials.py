"""Credentials: where they are looked for, and what is refused, without ever showing one."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

import pytest

from lab.base import credentials, paths
from lab.base.credentials import Credential
from lab.base.errors import UsageError

GOOD = 'virtual-bmc: {user: admin, password: "fromfile"}\n'


@pytest.fixture(autouse=True)
def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("XENLAB_CREDENTIAL_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


def write(text: str, *, mode: int = 0o600) -> Path:
    path = paths.config() / "credentials.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)
    return path


def test_environment_comes_first_then_the_users_file_then_the_virtual_labs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    credentials.store(paths.state() / "lab" / "credentials.yaml", {"virtual-bmc": Credential("lab", "fromlab")})
    assert credentials.lookup("virtual-bmc") == Credential("lab", "fromlab")
    write(GOOD)
    assert credentials.lookup("virtual-bmc") == Credential("admin", "fromfile")
    monkeypatch.setenv("XENLAB_CREDENTIAL_VIRTUAL_BMC", "root:with:colon")
    assert credentials.lookup("virtual-bmc") == Credential("root", "with:colon")


def test_virtual_labs_file_serves_what_the_users_file_lacks() -> None:
    write("other: {user: a, password: b}\n")
    credentials.store(paths.state() / "lab" / "credentials.yaml", {"virtual-bmc": Credential("lab", "x")})
    assert credentials.lookup("virtual-bmc").user == "lab"


def test_unknown_name_says_where_it_was_looked_for() -> None:
    with pytest.raises(UsageError) as caught:
        credentials.lookup("rack-7")
    text = str(caught.value)
    assert "'rack-7'" in text and "XENLAB_CREDENTIAL_RACK_7" in text
    assert str(paths.config() / "credentials.yaml") in text
    assert str(paths.state() / "lab" / "credentials.yaml") in text


@pytest.mark.parametrize("value", ["", "canary", ":canary", "canary:"])
def test_malformed_variable_is_named_and_not_shown(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("XENLAB_CREDENTIAL_X", value)
    with pytest.raises(UsageError, match="XENLAB_CREDENTIAL_X: must be user:password") as caught:
        credentials.lookup("x")
    assert "canary" not in str(caught.value)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644])
def test_file_open_to_others_is_refused_with_the_remedy(mode: int) -> None:
    path = write(GOOD, mode=mode)
    with pytest.raises(UsageError, match=f"chmod 600 {path}"):
        credentials.lookup("virtual-bmc")


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("a:\n  user: u\n  password: CANARY\n  pasword: CANARY\n", 4, "a: unknown key 'pasword'"),
        ("a:\n  user: u\n  password: CANARY\n  user: k\n", 4, "a: duplicate key 'user'"),
        (GOOD + "virtual-bmc: {user: u, password: CANARY}\n", 2, "duplicate key 'virtual-bmc'"),
        ("a:\n  user: u\n  password: 12345\n", 3, "a.password: must be text; put it in quotes"),
        ("a:\n  user: u\n  password: [CANARY]\n", 3, "a.password: must be text"),
        ("a:\n  user: u\n  password: ''\n", 3, "a.password: must be text"),
        ("a: {password: CANARY}\n", 1, "a: lacks user"),
        ("\na: CANARY\n", 2, "a: must be a mapping of user and password"),
        ("- CANARY\n", 1, "the file: must be a mapping of names"),
        ("a: {user: u, password: 'CANARY\nb: 1\n", 3, "not YAML"),
        ("a: {user: u, password: *CANARY}\n", 1, "not YAML"),
    ],
)
def test_malformed_file_is_answered_with_line_and_key_and_no_value(text: str, line: int, says: str) -> None:
    path = write(text)
    with pytest.raises(UsageError) as caught:
        credentials.lookup("a")
    assert str(caught.value).startswith(f"{path}:{line}: ") and says in str(caught.value)
    seen: BaseException | None = caught.value
    while seen is not None:
        assert "CANARY" not in str(seen)
        seen = seen.__cause__


@pytest.mark.parametrize("name", ["", "../x", "a b", "a\n", "-x"])
def test_name_that_cannot_be_one_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="letters, digits"):
        credentials.lookup(name)


def test_password_is_not_in_repr() -> None:
    assert repr(Credential("admin", "canary")) == "Credential(user='admin')"


@pytest.mark.parametrize("password", ["12345", "yes", "a: b #c", "'\"\\", "é€", " lead", "{x}", "null", "~"])
def test_what_is_stored_is_what_is_read(tmp_path: Path, password: str) -> None:
    path = tmp_path / "new" / "credentials.yaml"
    credentials.store(path, {"a": Credential("u", password)})
    assert credentials.load(path) == {"a": Credential("u", password)}


def test_stored_file_is_private_from_its_first_moment(tmp_path: Path) -> None:
    path = tmp_path / "credentials.yaml"
    modes: set[int] = set()
    stop = threading.Event()

    def watch() -> None:
        while not stop.is_set():
            for entry in tmp_path.iterdir():
                try:
                    modes.add(stat.S_IMODE(entry.stat().st_mode))
                except FileNotFoundError:
                    continue

    watcher = threading.Thread(target=watch)
    mask = os.umask(0)
    watcher.start()
    try:
        for number in range(20):
            credentials.store(path, {"a": Credential("u", str(number))})
    finally:
        os.umask(mask)
        stop.set()
        watcher.join()
    assert modes == {0o600} and [entry.name for entry in tmp_path.iterdir()] == ["credentials.yaml"]


def test_failed_store_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "credentials.yaml"
    credentials.store(path, {"a": Credential("u", "old")})
    with pytest.raises(UsageError):
        credentials.store(path, {"b/c": Credential("u", "new")})
    assert credentials.load(path)["a"].password == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["credentials.yaml"]
