"""The structure of an inventory, looked at before what stands in it: groups, hosts, and words that ssh is given."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator
from pathlib import Path

from lab.base.errors import UsageError
from lab.base.files import Key, at, node_at

NAME_LIMIT = 63  # characters of a host's or a lab's name, which becomes that of files; a DNS label has as many
DEPTH = 20  # groups within groups; an alias could make a group its own child
# Each is a word of ssh's, rsync's or ipmitool's command line: not an option, not two words.
_HOST = re.compile(r"[A-Za-z0-9:._%\[\]][A-Za-z0-9:._%\[\]-]*")
# labgrid's models take URLs, some with {index} in them; `@` is refused later.
_PDU = re.compile(r"[A-Za-z0-9:._%\[\]][A-Za-z0-9:._%\[\]@/~{}?=&-]*")
_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*\$?")


def is_host(text: str) -> bool:
    """Whether it is a name or an address: one that is all digits at its end, or has colons, must be an address."""
    if not _HOST.fullmatch(text):
        return False
    is_v6, is_v4 = ":" in text, text.rpartition(".")[2].isdigit()
    try:
        return not (is_v6 or is_v4) or bool(ipaddress.ip_address(re.sub(r"^\[(.*)\]$", r"\1", text)))
    except ValueError:
        return False


def _is_user(text: str) -> bool:
    return bool(_USER.fullmatch(text))


def _is_pdu(text: str) -> bool:
    return bool(_PDU.fullmatch(text))


_A_HOST = (is_host, "a host name or address")
_WORDS = {
    ("ansible_host",): _A_HOST,
    ("ansible_user",): (_is_user, "a user's name"),
    ("xenlab", "bmc", "host"): _A_HOST,
    ("xenlab", "console", "host"): _A_HOST,
    ("xenlab", "console", "ipmi", "host"): _A_HOST,
    ("xenlab", "pdu", "host"): (_is_pdu, "a host name, an address or an http URL"),
    ("xenlab", "switch", "host"): _A_HOST,
}


def check(path: Path, tree: object) -> None:
    """See that the file is an Ansible inventory of mappings.

    :raises UsageError: a line for each place where it is not, with what would be right.
    """
    whole = group_of_all(path, tree)
    if wrong := list(dict.fromkeys(f"{at(path, tree, key)}: {said}" for key, said in _wrong(whole))):
        raise UsageError("\n".join(wrong))


def group_of_all(path: Path, tree: object) -> dict[str | int, object]:
    """Ansible's group ``all``, which holds the others.

    :raises UsageError: there is none.
    """
    whole = node_at(tree, ("all",))
    if not isinstance(whole, dict):
        raise UsageError(f"{path}:1: must be an Ansible inventory: a mapping with the key all")
    return whole


def _wrong(whole: dict[str | int, object]) -> Iterator[tuple[Key, str]]:
    variables = whole.get("vars")
    named = variables.get("xenlab") if isinstance(variables, dict) else None
    if isinstance(named, dict) and len(str(named.get("lab", ""))) > NAME_LIMIT:
        yield ("all", "vars", "xenlab", "lab"), f"must be a name of at most {NAME_LIMIT} characters"
    if variables is not None and not isinstance(variables, dict):
        yield ("all", "vars"), "must be a mapping of variables"
    elif variables:
        yield from _words(("all", "vars"), variables)
    yield from _group(("all",), whole, 0)


def _group(key: Key, group: object, depth: int) -> Iterator[tuple[Key, str]]:
    if group is None:
        return
    if not isinstance(group, dict):
        yield key, "must be a mapping with hosts, vars or children"
        return
    if depth > DEPTH:
        yield key, f"groups are nested deeper than {DEPTH}"
        return
    for part in ("hosts", "children"):
        members = group.get(part)
        if members is None:
            continue
        if not isinstance(members, dict):
            yield (*key, part), f"must be a mapping: the names of {part} are its keys"
            continue
        for name, member in members.items():
            inner = (*key, part, name)
            if len(str(name)) > NAME_LIMIT:
                yield inner, f"must be a name of at most {NAME_LIMIT} characters"
            if part == "children":
                yield from _group(inner, member, depth + 1)
            elif member is not None and not isinstance(member, dict):
                yield inner, "must be a mapping of the host's variables"
            elif member:
                yield from _words(inner, member)


def _words(key: Key, variables: dict[object, object]) -> Iterator[tuple[Key, str]]:
    """Words of command lines. A value that is no text, or a template of Ansible's, is for others to judge."""
    for place, (is_one, what) in _WORDS.items():
        value: object = variables
        for part in place:
            value = value.get(part) if isinstance(value, dict) else None
        if isinstance(value, str) and value and not is_one(value):
            is_port = re.fullmatch(r"[^:@/]+:\d+", value) and is_one is is_host
            shown = "without a login" if "@" in value else f"not {value[:60]!r}"
            yield (*key, *place), f"must be {what}, {shown}{'; the port is a key of its own' if is_port else ''}"
