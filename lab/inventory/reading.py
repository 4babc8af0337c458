"""An inventory file read and checked: all that is wrong is said at once, by file, line and key."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from lab.base.daytime import Daytime
from lab.base.errors import UsageError, did_you_mean
from lab.base.files import Key, Problems, at, node_at, read_yaml, validate
from lab.base.loopback import is_loopback
from lab.inventory import capabilities, emulated, ports, structure
from lab.inventory.entries import BmcFile, BoardFile, HostFile, LabFile
from lab.inventory.specs import (
    BMC_PORTS,
    BmcSpec,
    BoardSpec,
    ConsoleSpec,
    HostSpec,
    Lab,
    NetbootSpec,
    NicSpec,
    PduSpec,
    ShapeSpec,
    SwitchSpec,
    VirtualSpec,
)

_HOST_KEYS = ("ansible_host", "ansible_port", "ansible_user", "ansible_python_interpreter", "xenlab")


def load(path: Path, *, may_be_empty: bool = False) -> Lab:
    """Read an inventory file; the lab's ports are where its state folder has moved them (:mod:`lab.inventory.ports`).

    Boards are the hosts that have the key ``xenlab``, in whatever group they stand; other hosts are Ansible's alone.

    :param may_be_empty: an inventory without boards will do: it is to get its first one.
    :raises UsageError: file, line and key of each thing that is wrong, and what would be right.
    """
    tree = read_yaml(path)
    whole = structure.group_of_all(path, tree)
    problems = Problems()
    with problems.gathered():
        structure.check(path, tree)
    unknown = [word for word in whole if word not in ("vars", "hosts", "children")]
    for word in unknown:
        with problems.gathered():
            raise UsageError(f"{at(path, tree, ('all', word))}: unknown key; known here: vars, hosts, children")
    named = whole.get("vars")
    variables: dict[str, object] = named if isinstance(named, dict) else {}
    head: LabFile | None = None
    with problems.gathered():
        if "xenlab" in variables:
            head = validate(LabFile, path, tree, ("all", "vars", "xenlab"))
        elif not unknown:  # which may be a misspelt `vars`
            raise UsageError(f"{at(path, tree, ('all', 'vars'))}: lacks xenlab: {{lab: NAME}}")
    shapes = _shapes(path, tree, head, problems)
    hosts = _hosts_of(head)
    found: dict[str, tuple[Key, BoardSpec | None]] = {}
    for key in _entries(tree, ("all",)):
        host = node_at(tree, key) or {}
        if not isinstance(host, dict) or "xenlab" not in host:
            with problems.gathered():
                if word := _meant(host):
                    found[str(key[-1])] = (key, None)
                    raise UsageError(f"{at(path, tree, (*key, word))}: unknown key (did you mean xenlab?)")
            continue
        name = str(key[-1])
        with problems.gathered():
            if name in found:
                first = at(path, tree, found[name][0]).rsplit(": ", 1)[0]
                raise UsageError(f"{at(path, tree, key)}: this board is described twice, first at {first}")
            found[name] = (key, None)
            found[name] = (key, _board(path, tree, key, host, variables, shapes, hosts))
    if not found and not may_be_empty and problems.is_empty:  # a host that cannot be read may have been one
        with problems.gathered():
            raise UsageError(f"{path}: no host has the key xenlab, so the inventory has no boards")
    _check_sharing(path, tree, {name: key for name, (key, _) in found.items()}, problems)
    if all(board for _, board in found.values()):  # what a board's own mistake is about may be its link
        _check_links(path, tree, {name: key for name, (key, _) in found.items()}, problems)
    netboot = NetbootSpec(**head.netboot.model_dump()) if head and head.netboot else None
    for key, board in found.values():
        if head and board and board.boot == "network":
            with problems.gathered():
                _check_network_boot(path, tree, key, board, netboot)
    problems.raise_all()
    assert head is not None
    boards = {name: board for name, (_, board) in sorted(found.items()) if board}
    yields = Daytime.read(head.nightly_yields)
    lab = Lab(head.lab, path.resolve(), boards, head.coordinator, yields, netboot, head.group, hosts)
    return emulated.applied(ports.applied(lab))


def _shapes(path: Path, tree: object, head: LabFile | None, problems: Problems) -> dict[str, ShapeSpec]:
    shapes: dict[str, ShapeSpec] = {}
    for name, shape in head.shapes.items() if head else ():
        with problems.gathered():
            _check_capabilities(path, tree, ("all", "vars", "xenlab", "shapes", name), shape.capabilities)
        shapes[name] = ShapeSpec(**shape.model_dump() | {"capabilities": frozenset(shape.capabilities)})
    return shapes


def _hosts_of(head: LabFile | None) -> dict[str, HostSpec]:
    hosts = {}
    for name, entry in head.hosts.items() if head else ():
        user, address, port = HostFile.login(entry.ssh)
        assert head is not None
        netboot = NetbootSpec(**entry.netboot.model_dump()) if entry.netboot else None
        hosts[name] = HostSpec(name, head.lab, user, address, port, entry.identity or "", entry.xenlab, netboot)
    return hosts


def _entries(tree: object, key: Key, depth: int = 0) -> Iterator[Key]:
    group = node_at(tree, key) or {}
    for part in ("hosts", "children"):
        members = group.get(part) if isinstance(group, dict) else None
        if not isinstance(members, dict) or depth > structure.DEPTH:
            continue  # lab.inventory.structure says so
        for name in members:
            if part == "hosts":
                yield (*key, "hosts", name)
            else:
                yield from _entries(tree, (*key, "children", name), depth + 1)


def _meant(host: object) -> str:
    """The key of a host without the key xenlab that is nearly that."""
    words = [str(word) for word in host] if isinstance(host, dict) else []
    return next((word for word in words if did_you_mean(word.lower(), ("xenlab",))), "")


def _board(
    path: Path,
    tree: object,
    key: Key,
    host: Mapping[str, object],
    variables: Mapping[str, object],
    shapes: Mapping[str, ShapeSpec],
    hosts: Mapping[str, HostSpec],
) -> BoardSpec:
    """:raises UsageError: a line for each thing that is wrong with this board."""
    name, problems = str(key[-1]), Problems()
    with problems.gathered():
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9-]*", name):
            raise UsageError(f"{at(path, tree, key)}: a board's name is letters, digits and - only")
    for word in host:
        with problems.gathered():
            if word not in _HOST_KEYS:
                hint = did_you_mean(str(word), _HOST_KEYS)
                raise UsageError(
                    f"{at(path, tree, (*key, word))}: unknown key{hint}; known here: {', '.join(_HOST_KEYS)} "
                    "(variables of your own playbooks go into host_vars/)"
                )
    data: BoardFile | None = None
    with problems.gathered():
        data = validate(BoardFile, path, tree, (*key, "xenlab"))
    with problems.gathered():
        _check_capabilities(path, tree, (*key, "xenlab"), _words(node_at(host, ("xenlab", "capabilities"))))
    ssh_host = host.get("ansible_host", name)
    ssh_port = host.get("ansible_port", 22)
    with problems.gathered():
        if not isinstance(ssh_host, str):
            raise UsageError(f"{at(path, tree, (*key, 'ansible_host'))}: must be a host name or address")
    with problems.gathered():
        if not isinstance(ssh_port, int) or isinstance(ssh_port, bool) or not 0 < ssh_port < 65536:
            raise UsageError(f"{at(path, tree, (*key, 'ansible_port'))}: must be a port number")
    with problems.gathered():
        there = node_at(host, ("xenlab", "at"))
        if isinstance(there, str) and there not in hosts:
            hint = did_you_mean(there, list(hosts))
            known = f"there are: {', '.join(hosts)}" if hosts else "all.vars.xenlab.hosts has none"
            raise UsageError(f"{at(path, tree, (*key, 'xenlab', 'at'))}: no host {there!r}{hint}; {known}")
    problems.raise_all()
    assert data is not None
    nics: dict[str, NicSpec] = {}
    for role in ("management", "lab", "spare"):
        if nic := getattr(data.nics, role):
            nics[role] = NicSpec(role, nic.mac, nic.address or "", nic.pci or "")
    return BoardSpec(
        name=name,
        ssh_host=ssh_host,
        ssh_port=ssh_port,
        ssh_user=str(host.get("ansible_user", variables.get("ansible_user", "root"))),
        bmc=_bmc(path, data),
        console=ConsoleSpec(
            **data.console.model_dump(exclude={"ipmi"}) | {"credential": data.console.credential or ""}
        ),
        nics=nics,
        capabilities=capabilities.ASSUMED.union(data.capabilities),
        tags=dict(data.tags),
        link=data.link or "",
        xen_options=data.xen_options,
        dom0_options=data.dom0_options,
        boot=data.boot,
        jobs=data.jobs or "",
        virtual=VirtualSpec(**data.virtual.model_dump() | {"shapes": shapes}) if data.virtual else None,
        pdu=PduSpec(**data.pdu.model_dump()) if data.pdu else None,
        sol=_sol(data),
        accepted_faults=dict(data.accepted_faults),
        switch=SwitchSpec(**data.switch.model_dump()) if data.switch else None,
        kdump=data.kdump,
        at=hosts[data.at] if data.at else None,
    )


def _words(value: object) -> list[str]:
    """The words of a list; what is none is pydantic's to say."""
    return [word for word in value if isinstance(word, str)] if isinstance(value, list) else []


def _check_capabilities(path: Path, tree: object, key: Key, words: Sequence[str]) -> None:
    problems = Problems()
    for index, word in enumerate(words):
        with problems.gathered():
            capabilities.check(word, at(path, tree, (*key, "capabilities", index)))
    problems.raise_all()


def _bmc(path: Path, board: BoardFile) -> BmcSpec:
    data: BmcFile = board.bmc
    values = data.model_dump()
    values["port"] = data.port or BMC_PORTS[data.protocol]
    values["credential"] = data.credential or ""
    values["ca_file"] = str(path.resolve().parent / data.ca_file) if data.ca_file else ""
    values["firmware"] = board.firmware or (board.virtual.firmware if board.virtual else "bios")
    return BmcSpec(**values)


def _sol(board: BoardFile) -> BmcSpec | None:
    """The BMC that the console is asked of, where that is not how power goes."""
    if board.console.via != "sol" or board.bmc.protocol == "ipmi":
        return None
    own = board.console.ipmi
    return BmcSpec(
        host=(own and own.host) or board.bmc.host,
        credential=(own and own.credential) or board.bmc.credential or "",
        port=own.port if own else BMC_PORTS["ipmi"],
        cipher=own.cipher if own else None,
        privilege=own.privilege if own else "administrator",
    )


def _check_sharing(path: Path, tree: object, boards: Mapping[str, Key], problems: Problems) -> None:
    """Ports and BMCs that boards share; of boards that are otherwise wrong, too."""
    taken: dict[tuple[object, object], str] = {}
    logins: dict[tuple[object, object], tuple[object, str]] = {}  # address -> where the board is, and its name
    for name, key in boards.items():
        own = (*key, "xenlab")
        opened = [(what, (*own, *what.split("."))) for what in ("console.serve_port", "console.lines_port")]
        if node_at(tree, (*own, "virtual")):  # QEMU listens there; of a machine it is a port of its own address
            opened += [
                ("virtual.serial_port", (*own, "virtual", "serial_port")),
                ("ansible_port", (*key, "ansible_port")),
            ]
        for what, where in opened:
            port, user = node_at(tree, where), f"{name}'s {what}"
            with problems.gathered():
                if isinstance(port, int) and (other := taken.setdefault(("tcp", port), user)) != user:
                    raise UsageError(f"{at(path, tree, where)}: port {port} is {other} already")
        there = node_at(tree, (*own, "at"))
        where = (*key, "ansible_port" if node_at(tree, (*key, "ansible_port")) else "ansible_host")
        address = (node_at(tree, (*key, "ansible_host")) or name, node_at(tree, (*key, "ansible_port")) or 22)
        with problems.gathered():
            is_address = isinstance(address[0], str) and isinstance(address[1], int)
            first, other = logins.setdefault(address, (there, name)) if is_address else (there, name)
            if first != there:  # ssh, rsync and Ansible tell boards by it
                said = f"{address[0]}:{address[1]} is {other}'s already, which is at another host"
                raise UsageError(f"{at(path, tree, where)}: {said}: give one of them another port")
        host, user = node_at(tree, (*own, "bmc", "host")), f"{name}'s bmc"
        protocol = node_at(tree, (*own, "bmc", "protocol")) or "ipmi"
        port = node_at(tree, (*own, "bmc", "port")) or BMC_PORTS.get(str(protocol))
        system = node_at(tree, (*own, "bmc", "system"))  # several systems may stand behind one BMC
        place = str(there) if isinstance(host, str) and is_loopback(host) else ""  # each host has its own loopback
        with problems.gathered():
            if (
                isinstance(host, str)
                and host
                and (other := taken.setdefault((host, (str(port), str(system), place)), user)) != user
            ):
                raise UsageError(f"{at(path, tree, (*own, 'bmc'))}: {host}:{port} is {other} already")


def _check_links(path: Path, tree: object, boards: Mapping[str, Key], problems: Problems) -> None:
    """A link joins two boards."""
    links: dict[object, list[str]] = {}
    for name, key in boards.items():
        if link := node_at(tree, (*key, "xenlab", "link")):
            links.setdefault(link, []).append(name)
    for link, ends in links.items():
        with problems.gathered():
            if len(ends) != 2:
                where = (*boards[ends[-1]], "xenlab", "link")
                said = f"link {link!r} joins {', '.join(ends)}: it must join exactly two boards"
                raise UsageError(f"{at(path, tree, where)}: {said}")


def _check_network_boot(path: Path, tree: object, key: Key, board: BoardSpec, netboot: NetbootSpec | None) -> None:
    """A board that boots by network needs somebody who answers it, and an address that it is given."""
    if board.at:
        netboot = board.at.netboot
    if netboot is None:
        where = at(path, tree, ("all", "vars", "xenlab", *(("hosts", board.at.name) if board.at else ())))
        raise UsageError(
            f"{where}: {board.name} boots by network: lacks netboot: {{address: A.B.C.D/N, interface: PORT}}"
        )
    nic = board.nics.get("management")
    if nic is None or not nic.address:
        where = at(path, tree, (*key, "xenlab", "boot"))
        raise UsageError(f"{where}: a board that boots by network needs nics.management with mac and address")
    if ipaddress.ip_interface(nic.address).network != ipaddress.ip_interface(netboot.address).network:
        where = at(path, tree, (*key, "xenlab", "nics", "management", "address"))
        raise UsageError(f"{where}: must be in the network that it boots from, that of {netboot.address}")
