"""BMC secrets by name. They live in the environment or in files of mode 0600, never in ``inventory/``.

A file is YAML, one entry a credential, and nothing else is allowed in it::

    virtual-bmc: {user: admin, password: "..."}

No message of this module quotes a value: what is wrong is said by file, line and key.
"""

from __future__ import annotations

import io
import os
import re
import stat
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode

from lab.base import paths
from lab.base.errors import UsageError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_KEYS = ("user", "password")


@dataclass(frozen=True, slots=True)
class Credential:
    """Who logs in to a BMC. The password is not in ``repr``."""

    user: str
    password: str = field(repr=False)


def lookup(name: str) -> Credential:
    """The credential of this name: from the environment, the user's file, or the virtual lab's file.

    ``XENLAB_CREDENTIAL_<NAME>`` (upper case, ``-`` as ``_``) holds ``user:password``.

    :raises UsageError: no such name, or what holds it is malformed or open to other users.
    """
    if not _NAME.fullmatch(name):
        raise UsageError(f"credential name {name!r}: letters, digits, - and _ only")
    setting = variable(name)
    if setting in os.environ:
        user, colon, password = os.environ[setting].partition(":")
        if not (user and colon and password):
            raise UsageError(f"environment variable {setting}: must be user:password")
        return Credential(user, password)
    files = (paths.config() / "credentials.yaml", paths.state() / "lab" / "credentials.yaml")
    for path in files:
        known = load(path) if path.exists() else {}
        if name in known:
            return known[name]
    places = ", ".join([f"environment variable {setting}", *(str(path) for path in files)])
    raise UsageError(f"no credential {name!r}; looked in {places}")


def variable(name: str) -> str:
    """The environment variable that may hold a credential."""
    return "XENLAB_CREDENTIAL_" + name.upper().replace("-", "_")


def load(path: Path) -> dict[str, Credential]:
    """Everything in one file.

    :raises UsageError: unreadable, open to group or others, or not of the documented shape.
    """
    try:
        with paths.open_regular(path) as stream:
            mode = stat.S_IMODE(os.fstat(stream.fileno()).st_mode)
            if mode & 0o077:
                raise UsageError(f"{path}: mode {mode:04o} lets other users read it: chmod 600 {path}")
            text = stream.read().decode()
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError:
        raise UsageError(f"{path}: is not UTF-8 text") from None
    try:
        root = YAML(pure=True).compose(io.StringIO(text))
    except MarkedYAMLError as error:  # its own text shows the line, and with it the secret
        mark = error.problem_mark or error.context_mark
        raise UsageError(f"{_at(path, mark.line if mark else 0)}: not YAML: check the quotes") from None
    except Exception:  # ruamel lets its own mistakes through; their words could show the secret
        raise UsageError(f"{path}: not YAML: control characters, or nested too deeply?") from None
    if root is None:
        return {}
    return {name: _credential(path, name, node) for name, node in _entries(path, root, "the file").items()}


def store(path: Path, credentials: Mapping[str, Credential]) -> None:
    """Replace the file by one that holds these, mode 0600; readers see the old one or the new one.

    :raises UsageError: a name that :func:`lookup` would not take.
    """
    for name in credentials:
        if not _NAME.fullmatch(name):
            raise UsageError(f"credential name {name!r}: letters, digits, - and _ only")
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # made with mode 0600
    try:
        with open(handle, "w", encoding="utf-8") as stream:
            yaml = YAML(typ="safe", pure=True)
            yaml.default_flow_style = False
            yaml.dump({name: {key: getattr(c, key) for key in _KEYS} for name, c in credentials.items()}, stream)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _credential(path: Path, name: str, node: Node) -> Credential:
    values = _entries(path, node, name)
    for key, value in values.items():
        if key not in _KEYS:
            raise UsageError(f"{_of(path, value)}: {name}: unknown key {key!r}; known: {', '.join(_KEYS)}")
        if not isinstance(value, ScalarNode) or not value.value or value.tag != "tag:yaml.org,2002:str":
            raise UsageError(f"{_of(path, value)}: {name}.{key}: must be text; put it in quotes")
    missing = [key for key in _KEYS if key not in values]
    if missing:
        raise UsageError(f"{_of(path, node)}: {name}: lacks {' and '.join(missing)}")
    return Credential(str(values["user"].value), str(values["password"].value))


def _entries(path: Path, node: Node, what: str) -> dict[str, Node]:
    if not isinstance(node, MappingNode):
        raise UsageError(f"{_of(path, node)}: {what}: must be a mapping of {_wanted(what)}")
    found: dict[str, Node] = {}
    for key, value in node.value:
        if not isinstance(key, ScalarNode):
            raise UsageError(f"{_of(path, key)}: {what}: a key must be text")
        if key.value in found:
            raise UsageError(f"{_of(path, key)}: {what}: duplicate key {key.value!r}")
        found[key.value] = value
    return found


def _wanted(what: str) -> str:
    return "names to {user, password}" if what == "the file" else "user and password"


def _of(path: Path, node: Node) -> str:
    return _at(path, node.start_mark.line)


def _at(path: Path, line: int) -> str:
    return f"{path}:{line + 1}"
