"""The inventory: what is refused and how it is said, and what labgrid and Ansible get out of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from lab import inventory
from lab.base import paths
from lab.base.errors import UsageError
from lab.grid import services

VIRTUAL = paths.CHECKOUT / "inventory" / "virtual.yaml"
RACK = paths.CHECKOUT / "inventory" / "rack-example.yaml"
SHIPPED = (VIRTUAL, RACK)

GOOD = """\
all:
  vars:
    xenlab: {lab: small}
  children:
    boards:
      hosts:
        left:
          ansible_host: 192.0.2.1
          xenlab:
            bmc:
              host: 203.0.113.1
              credential: rack-bmc
            console:
              via: sol
              serve_port: 5001
              lines_port: 5002
            link: wire
            nics:
              lab:
                mac: 02:00:00:00:01:01
                address: 198.51.100.1/30
            capabilities:
            - iommu
            tags:
              class: server
        right:
          ansible_host: 192.0.2.2
          xenlab:
            bmc: {host: 203.0.113.2, credential: rack-bmc}
            console: {via: tcp, host: 203.0.113.9, port: 2002, serve_port: 5003, lines_port: 5004}
            link: wire
    others:
      hosts:
        builder: {ansible_host: 192.0.2.9}
"""


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "lab.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def complaint(path: Path) -> str:
    """What is said about the file, one line, without its path."""
    with pytest.raises(UsageError) as caught:
        inventory.load(path)
    text = str(caught.value)
    assert text.startswith(f"{path}:") and "\n" not in text, text
    return text.removeprefix(f"{path}:")


# -- what is read --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_inventories_load(path: Path) -> None:
    lab = inventory.load(path)
    assert lab.path == path and lab.boards
    assert [len(pair) for pair in lab.pairs()] == [2]
    for board in lab.boards.values():
        assert board.capabilities <= inventory.capabilities.TABLE.keys()
        assert ("migration-pair" in board.capabilities) == bool(board.link)
        assert ("spare-nic" in board.capabilities) == ("spare" in board.nics)


def test_the_virtual_lab_is_virtual_and_the_rack_is_not() -> None:
    assert inventory.load(VIRTUAL).is_virtual
    assert not inventory.load(RACK).is_virtual


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (
            "ansible_port: 22120",
            "ansible_port: 22110",
            "virt2.ansible_port: port 22110 is virt1's ansible_port already",
        ),
        ("serial_port: 22124", "serial_port: 22112", "port 22112 is virt1's console.serve_port already"),
    ],
)
def test_two_virtual_boards_open_no_port_twice(tmp_path: Path, old: str, new: str, said: str) -> None:
    assert said in complaint(write(tmp_path, VIRTUAL.read_text().replace(old, new)))


def test_the_rack_shows_each_kind_of_console_and_power_that_steel_has() -> None:
    boards = inventory.load(RACK).boards.values()
    assert {board.console.via for board in boards} == {"sol", "tcp", "rfc2217", "device"}
    assert {board.bmc.protocol for board in boards} == {"ipmi", "redfish", "none"}
    assert any(board.pdu for board in boards)


def test_both_shipped_labs_can_be_up_on_one_machine() -> None:
    ports: list[int] = []
    for path in SHIPPED:
        lab = inventory.load(path)
        ports.append(int(lab.coordinator.rpartition(":")[2]))
        for board in lab.boards.values():
            ports += [board.console.serve_port, board.console.lines_port]
    assert len(set(ports)) == len(ports)


def test_boards_are_the_hosts_that_have_the_key_xenlab(tmp_path: Path) -> None:
    lab = inventory.load(write(tmp_path, GOOD))
    assert list(lab.boards) == ["left", "right"]
    assert lab.name == "small" and lab.coordinator == "127.0.0.1:20408"
    left = lab.boards["left"]
    assert (left.ssh_host, left.ssh_port, left.ssh_user) == ("192.0.2.1", 22, "root")
    assert (left.bmc.protocol, left.bmc.port, left.bmc.interface, left.bmc.cipher) == ("ipmi", 623, "lanplus", None)
    assert left.nics["lab"].mac == "02:00:00:00:01:01" and left.virtual is None
    assert [board.name for board in lab.pairs()[0]] == ["left", "right"]


def test_hosts_may_stand_in_any_group_and_take_users_from_above(tmp_path: Path) -> None:
    text = GOOD.replace("    xenlab: {lab: small}", "    ansible_user: admin\n    xenlab: {lab: small}")
    text = text.replace("        right:\n", "        right:\n          ansible_user: operator\n")
    text = text.replace("  children:\n", "  hosts:\n    spare: {}\n  children:\n")
    boards = inventory.load(write(tmp_path, text)).boards
    assert boards["left"].ssh_user == "admin"
    assert boards["right"].ssh_user == "operator"


@pytest.mark.parametrize(
    "said",
    ["02:00:00:00:01:0a", "02:00:00:00:01:0A", "02-00-00-00-01-0A", "0200.0000.010a", "02000000010a", "020000:00010A"],
)
def test_a_mac_in_any_common_form_is_the_same(tmp_path: Path, said: str) -> None:
    text = GOOD.replace("02:00:00:00:01:01", f'"{said}"')
    assert inventory.load(write(tmp_path, text)).boards["left"].nics["lab"].mac == "02:00:00:00:01:0a"


def test_a_board_may_be_powered_by_redfish_and_have_its_console_by_ipmi(tmp_path: Path) -> None:
    text = GOOD.replace("{host: 203.0.113.2,", "{protocol: redfish, tls: unverified, host: 203.0.113.2,")
    sol = "{via: sol, ipmi: {cipher: 3, privilege: operator}, "
    text = text.replace("{via: tcp, host: 203.0.113.9, port: 2002, ", sol)
    board = inventory.load(write(tmp_path, text)).boards["right"]
    assert (board.bmc.protocol, board.console_bmc.protocol) == ("redfish", "ipmi")
    assert (board.console_bmc.host, board.console_bmc.port, board.console_bmc.cipher) == ("203.0.113.2", 623, 3)
    assert (board.console_bmc.credential, board.console_bmc.privilege) == ("rack-bmc", "operator")
    lab = inventory.load(write(tmp_path, text))
    services.write_files(lab, tmp_path)
    told = json.loads((tmp_path / "console" / "right.recorder.json").read_text())
    assert told["bmc"] | {"protocol": "ipmi", "host": "203.0.113.2", "port": 623} == told["bmc"]


def test_sol_needs_no_more_than_the_word_where_redfish_has_the_power(tmp_path: Path) -> None:
    text = GOOD.replace(
        "              host: 203.0.113.1\n", "              protocol: redfish\n              host: 203.0.113.1\n"
    )
    board = inventory.load(write(tmp_path, text)).boards["left"]
    assert (board.console_bmc.host, board.console_bmc.credential, board.console_bmc.cipher) == (
        "203.0.113.1",
        "rack-bmc",
        None,
    )


def test_a_bmc_is_told_the_boards_kind_of_firmware(tmp_path: Path) -> None:
    text = GOOD.replace("              serve_port: 5001", "              serve_port: 5001").replace(
        "            link: wire\n            nics:",
        "            firmware: uefi\n            link: wire\n            nics:",
    )
    boards = inventory.load(write(tmp_path, text)).boards
    assert (boards["left"].bmc.firmware, boards["right"].bmc.firmware) == ("uefi", "bios")
    assert services.exported(boards["left"])["IPMIPort"]["firmware"] == "uefi"
    assert inventory.load(paths.CHECKOUT / "inventory" / "uefi.yaml").boards["uefi1"].bmc.firmware == "uefi"


def test_faults_that_stand_are_accepted_by_name(tmp_path: Path) -> None:
    accepted = '            accepted_faults: {"INLET FAN 1": the bay is empty}\n'
    text = GOOD.replace(
        "            link: wire\n            nics:", f"            link: wire\n{accepted}            nics:"
    )
    board = inventory.load(write(tmp_path, text)).boards["left"]
    assert board.accepted_faults == {"INLET FAN 1": "the bay is empty"}


def test_redfish_has_a_port_and_keys_of_its_own(tmp_path: Path) -> None:
    text = GOOD.replace("{host: 203.0.113.2,", "{protocol: redfish, ca_file: bmc.pem, host: 203.0.113.2,")
    board = inventory.load(write(tmp_path, text)).boards["right"]
    assert (board.bmc.port, board.bmc.tls, board.bmc.ca_file) == (443, "verified", str(tmp_path / "bmc.pem"))
    offered = services.exported(board)
    assert offered["RedfishPort"] == {
        "host": "203.0.113.2",
        "port": 443,
        "credential": "rack-bmc",
        "tls": "verified",
        "ca_file": str(tmp_path / "bmc.pem"),
        "system": "",
    }
    assert "IPMIPort" not in offered


def test_board_without_bmc_is_an_outlet(tmp_path: Path) -> None:
    old = "bmc: {host: 203.0.113.2, credential: rack-bmc}"
    new = "bmc: {protocol: none}\n            pdu: {model: netio, host: 203.0.113.50, outlet: 3}"
    board = inventory.load(write(tmp_path, GOOD.replace(old, new))).boards["right"]
    offered = services.exported(board)
    assert offered["NetworkPowerPort"] == {"model": "netio", "host": "203.0.113.50", "index": "3"}
    assert not {"IPMIPort", "RedfishPort"} & set(offered)


@pytest.mark.parametrize(
    ("coordinator", "is_private"), [("127.0.0.1:1", True), ("localhost:1", True), ("192.0.2.1:1", False)]
)
def test_coordinator_is_private_on_loopback_only(tmp_path: Path, coordinator: str, is_private: bool) -> None:
    text = GOOD.replace("{lab: small}", f"{{lab: small, coordinator: '{coordinator}'}}")
    assert inventory.load(write(tmp_path, text)).is_private is is_private


def test_lab_restricted_to_boards_has_no_others(tmp_path: Path) -> None:
    lab = inventory.load(write(tmp_path, GOOD))
    assert list(lab.restricted(["left"]).boards) == ["left"] and lab.restricted(["left"]).pairs() == ()
    assert lab.restricted([]) == lab
    with pytest.raises(UsageError, match=r"no board lefft \(did you mean left\?\); there are: left, right"):
        lab.restricted(["lefft"])


# -- what is refused -----------------------------------------------------------------------------------------

LEFT = "all.children.boards.hosts.left"
RIGHT = "all.children.boards.hosts.right"

# (what is replaced, by what, the line and the text of the complaint)
MISTAKES: dict[str, tuple[str, str, str]] = {
    "unknown key": (
        "            link: wire\n            nics:",
        "            lnik: wire\n            nics:",
        f"17: {LEFT}.xenlab.lnik: unknown key (did you mean link?); known here: bmc, console, nics,",
    ),
    "at an unknown host": (
        "            link: wire\n            nics:",
        "            link: wire\n            at: shelf\n            nics:",
        f"18: {LEFT}.xenlab.at: no host 'shelf'; all.vars.xenlab.hosts has none",
    ),
    "ssh of a host": (
        "{lab: small}",
        "{lab: small, hosts: {shelf: {ssh: 'shelf.example:22'}}}",
        "3: all.vars.xenlab.hosts.shelf.ssh: must be USER@HOST or USER@HOST:PORT",
    ),
    "port of a host": (
        "{lab: small}",
        "{lab: small, hosts: {shelf: {ssh: 'lab@shelf:99999'}}}",
        "3: all.vars.xenlab.hosts.shelf.ssh: must be USER@HOST or USER@HOST:PORT",
    ),
    "program of a host": (
        "{lab: small}",
        "{lab: small, hosts: {shelf: {ssh: lab@shelf, xenlab: 'xenlab; reboot'}}}",
        "3: all.vars.xenlab.hosts.shelf.xenlab: must match pattern",
    ),
    "unknown key within": (
        "credential: rack-bmc\n            console:",
        "credental: rack-bmc\n              credential: x\n            console:",
        f"12: {LEFT}.xenlab.bmc.credental: unknown key (did you mean credential?); known here: protocol, host,",
    ),
    "unknown key of a port": (
        "                mac: 02:00:00:00:01:01\n",
        "                mac: 02:00:00:00:01:01\n                adress: 198.51.100.1/30\n",
        f"21: {LEFT}.xenlab.nics.lab.adress: unknown key (did you mean address?)",
    ),
    "unknown variable of a host": (
        "          ansible_host: 192.0.2.1\n",
        "          ansible_hots: 192.0.2.1\n",
        f"8: {LEFT}.ansible_hots: unknown key (did you mean ansible_host?); known here: ansible_host,",
    ),
    "unknown key of a group": ("  vars:\n", "  variables:\n", "2: all.variables: unknown key; known here: vars, hosts"),
    "unknown key of the lab": ("{lab: small}", "{lab: small, cordinator: 'a:1'}", "3: all.vars.xenlab.cordinator: unk"),
    "text for a number": (
        "serve_port: 5001",
        'serve_port: "5001"',
        f"15: {LEFT}.xenlab.console.serve_port: must be a whole number, not ",
    ),
    "number for text": ("class: server", "class: 7", f"25: {LEFT}.xenlab.tags.class: must be text"),
    "port out of range": (
        "serve_port: 5001",
        "serve_port: 70000",
        f"15: {LEFT}.xenlab.console.serve_port: must be less than 65536, not 70000",
    ),
    "list for a mapping": (
        "            bmc: {host: 203.0.113.2, credential: rack-bmc}",
        "            bmc: [203.0.113.2, rack-bmc]",
        f"29: {RIGHT}.xenlab.bmc: must be a mapping (key: value)",
    ),
    "required key missing": (
        "              credential: rack-bmc\n            console:",
        "            console:",
        f"10: {LEFT}.xenlab.bmc: protocol ipmi needs credential",
    ),
    "duplicate key": (
        "            link: wire\n            nics:",
        "            bmc: {}\n            nics:",
        "17: found dup",
    ),
    "unknown capability": (
        "- iommu",
        "- iomu",
        f"23: {LEFT}.xenlab.capabilities.0: unknown capability 'iomu' (did you mean iommu?); there are: pv32,",
    ),
    "console without host": (
        "{via: tcp, host: 203.0.113.9, port: 2002,",
        "{via: tcp, port: 2002,",
        f"30: {RIGHT}.xenlab.console: via tcp needs host and port",
    ),
    "console without port": (
        "{via: tcp, host: 203.0.113.9, port: 2002,",
        "{via: rfc2217, host: 203.0.113.9,",
        f"30: {RIGHT}.xenlab.console: via rfc2217 needs host and port",
    ),
    "console without device": (
        "via: sol",
        "via: device",
        f"13: {LEFT}.xenlab.console: via device needs device, e.g. /dev/serial/by-id/",
    ),
    "unknown kind of console": (
        "via: sol",
        "via: modem",
        f"14: {LEFT}.xenlab.console.via: must be 'sol', 'ssh', 'tcp', 'telnet'",
    ),
    "telnet console without a port": (
        "{via: tcp, host: 203.0.113.9, port: 2002, ",
        "{via: telnet, host: 203.0.113.9, ",
        f"30: {RIGHT}.xenlab.console: via telnet needs host and port",
    ),
    "options of ssh for another kind of console": (
        "{via: tcp, host: 203.0.113.9, port: 2002, ",
        "{via: tcp, host: 203.0.113.9, port: 2002, ssh_options: {Ciphers: +aes128-cbc}, ",
        f"30: {RIGHT}.xenlab.console: ssh_options is for via ssh, and this is tcp",
    ),
    "option of ssh that runs a command": (
        "{via: tcp, host: 203.0.113.9, port: 2002, ",
        "{via: ssh, host: 203.0.113.9, port: 2002, credential: c, ssh_options: {ProxyCommand: x}, ",
        f"30: {RIGHT}.xenlab.console.ssh_options.ProxyCommand",
    ),
    "algorithm of ssh that holds another option": (
        "{via: tcp, host: 203.0.113.9, port: 2002, ",
        "{via: ssh, host: 203.0.113.9, port: 2002, credential: c, ssh_options: {Ciphers: 'a b'}, ",
        f"30: {RIGHT}.xenlab.console.ssh_options.Ciphers: must match pattern",
    ),
    "configuration of ssh by a relative path": (
        "{via: tcp, host: 203.0.113.9, port: 2002, ",
        "{via: ssh, host: 203.0.113.9, port: 2002, credential: c, ssh_config: config, ",
        f"30: {RIGHT}.xenlab.console.ssh_config: must be a path that begins with / or ~/",
    ),
    "group that is no name": (
        "{lab: small}",
        "{lab: small, group: 7 men}",
        "3: all.vars.xenlab.group: must match pattern",
    ),
    "console behind SSH without a user": (
        "{via: tcp, host: 203.0.113.9, port: 2002, ",
        "{via: ssh, host: 203.0.113.9, port: 2002, ",
        f"30: {RIGHT}.xenlab.console: via ssh needs credential",
    ),
    "switch without a link": (
        "lines_port: 5004}\n            link: wire",
        "lines_port: 5004}\n            switch: {host: 203.0.113.60, port: Gi1/0/3, credential: switch}",
        f"28: {RIGHT}.xenlab: switch is where the lab link is cut, and this board has none",
    ),
    "switch that shows its community and encrypts": (
        "lines_port: 5004}",
        "lines_port: 5004}\n            switch: {host: h, port: p, credential: c, snmp: 2c, auth: sha}",
        f"31: {RIGHT}.xenlab.switch: auth is for SNMPv3",
    ),
    "link with one end": (
        "            link: wire\n            nics:",
        "            nics:",
        f"30: {RIGHT}.xenlab.link: link 'wire' joins right: it must join exactly two boards",
    ),
    "port used twice": (
        "serve_port: 5003",
        "serve_port: 5002",
        f"30: {RIGHT}.xenlab.console.serve_port: port 5002 is left's console.lines_port already",
    ),
    "BMC used twice": (
        "host: 203.0.113.2,",
        "host: 203.0.113.1,",
        f"29: {RIGHT}.xenlab.bmc: 203.0.113.1:623 is left's bmc already",
    ),
    "key of the other protocol": (
        "{host: 203.0.113.2,",
        "{host: 203.0.113.2, tls: unverified,",
        f"29: {RIGHT}.xenlab.bmc: tls is for protocol redfish, and this is ipmi",
    ),
    "cipher for Redfish": (
        "{host: 203.0.113.2,",
        "{protocol: redfish, cipher: 3, host: 203.0.113.2,",
        f"29: {RIGHT}.xenlab.bmc: cipher is for protocol ipmi, and this is redfish",
    ),
    "certificate that nobody looks at": (
        "{host: 203.0.113.2,",
        "{protocol: redfish, tls: unverified, ca_file: bmc.pem, host: 203.0.113.2,",
        f"29: {RIGHT}.xenlab.bmc: ca_file says what to verify by, and tls: unverified says not to",
    ),
    "pinned to nothing": (
        "{host: 203.0.113.2,",
        "{protocol: redfish, tls: pinned, host: 203.0.113.2,",
        f"29: {RIGHT}.xenlab.bmc: tls: pinned needs ca_file",
    ),
    "SOL of a board without a BMC": (
        "              host: 203.0.113.1\n              credential: rack-bmc\n",
        "              protocol: none\n            pdu: {model: netio, host: 203.0.113.50, outlet: 3}\n",
        f"9: {LEFT}.xenlab: console.via sol needs a BMC: bmc.protocol is none, so console.ipmi needs host and ",
    ),
    "a second way to the same BMC": (
        "via: sol\n",
        "via: sol\n              ipmi: {cipher: 3}\n",
        f"9: {LEFT}.xenlab: console.ipmi is for a BMC whose power goes by another protocol",
    ),
    "IPMI of a console that is no SOL": (
        "{via: tcp, host: 203.0.113.9,",
        "{via: tcp, ipmi: {cipher: 3}, host: 203.0.113.9,",
        f"30: {RIGHT}.xenlab.console: ipmi is for via sol, and this is tcp",
    ),
    "firmware of a board that boots by network": (
        "lines_port: 5004}\n            link: wire",
        "lines_port: 5004}\n            boot: network\n            link: wire",
        f"28: {RIGHT}.xenlab: boot: network needs firmware: bios or uefi",
    ),
    "privilege level that no user has": (
        "{host: 203.0.113.2,",
        "{privilege: admin, host: 203.0.113.2,",
        f"29: {RIGHT}.xenlab.bmc.privilege: must be 'administrator', 'operator' or 'user'",
    ),
    "fault that is accepted without a reason": (
        "lines_port: 5004}\n            link: wire",
        "lines_port: 5004}\n            accepted_faults: [FAN 1]\n            link: wire",
        f"31: {RIGHT}.xenlab.accepted_faults: must be a mapping",
    ),
    "no way to power": (
        "{host: 203.0.113.2, credential: rack-bmc}",
        "{protocol: none}",
        f"28: {RIGHT}.xenlab: bmc.protocol none needs pdu",
    ),
    "address of a BMC that is not there": (
        "{host: 203.0.113.2, credential: rack-bmc}",
        "{protocol: none, host: 203.0.113.2}\n            pdu: {model: netio, host: 203.0.113.50, outlet: 3}",
        f"29: {RIGHT}.xenlab.bmc: host is for a BMC, and with protocol none there is none",
    ),
    "PDU that labgrid does not know": (
        "{host: 203.0.113.2, credential: rack-bmc}",
        "{host: 203.0.113.2, credential: rack-bmc}\n            pdu: {model: netoi, host: 203.0.113.50, outlet: 3}",
        f"30: {RIGHT}.xenlab.pdu: labgrid has no model 'netoi' (did you mean netio?); there are: apc, ",
    ),
    "serial port without its folder": (
        "lines_port: 5004}",
        "lines_port: 5004, device: ttyUSB0}",
        f"30: {RIGHT}.xenlab.console.device: must be a path, such as /dev/serial/by-id/...",
    ),
    "PDU in capitals": (
        "{host: 203.0.113.2, credential: rack-bmc}",
        "{host: 203.0.113.2, credential: rack-bmc}\n            pdu: {model: APC, host: 203.0.113.50, outlet: 3}",
        f"30: {RIGHT}.xenlab.pdu: labgrid has no model 'APC' (did you mean apc?)",
    ),
    "login of a PDU": (
        "{host: 203.0.113.2, credential: rack-bmc}",
        "{host: 203.0.113.2, credential: rack-bmc}\n            pdu: {model: rest, host: 'http://u:p@h/', outlet: 3}",
        f"30: {RIGHT}.xenlab.pdu: host must not hold a login",
    ),
    "MAC too short": ("02:00:00:00:01:01", "'02:00:00'", f"20: {LEFT}.xenlab.nics.lab.mac: must be a MAC address of"),
    "MAC that YAML takes for a number": (
        "02:00:00:00:01:01",
        "020000000101",
        f"20: {LEFT}.xenlab.nics.lab.mac: must be in quotes",
    ),
    "MAC that no port has": (
        "02:00:00:00:01:01",
        "01:00:5e:00:01:01",
        f"20: {LEFT}.xenlab.nics.lab.mac: is a multicast address",
    ),
    "address without prefix": (
        "198.51.100.1/30",
        "198.51.100.1",
        f"21: {LEFT}.xenlab.nics.lab.address: must be an IPv4 address and its prefix",
    ),
    "host name of a wrong shape": (
        "        left:\n",
        "        left_one:\n",
        "7: all.children.boards.hosts.left_one: a board's",
    ),
    "ssh port no number": (
        "ansible_host: 192.0.2.1\n",
        "ansible_host: 192.0.2.1\n          ansible_port: ssh\n",
        f"9: {LEFT}.ansible_port: must be a port number",
    ),
    "host twice": (
        "        builder: {ansible_host: 192.0.2.9}\n",
        "        left:\n"
        "          xenlab: {bmc: {host: h, credential: c}, console: {via: sol, serve_port: 1, lines_port: 2}}\n",
        "34: all.children.others.hosts.left: this board is described twice, first at ",
    ),
    "group no mapping": (
        "    others:\n      hosts:\n        builder: {ansible_host: 192.0.2.9}\n",
        "    others: [a]\n",
        "32: all.children.others: must be a mapping",
    ),
    "no lab": ("    xenlab: {lab: small}\n", "    ansible_user: root\n", "2: all.vars: lacks xenlab: {lab: NAME}"),
    "name of the lab": (
        "{lab: small}",
        "{lab: 'a/b'}",
        "3: all.vars.xenlab.lab: must be a name of letters, digits, - and _",
    ),
    "not an inventory": ("all:\n", "hosts:\n", "1: must be an Ansible inventory: a mapping with the key all"),
    "address of a host with the port": (
        "ansible_host: 192.0.2.1\n",
        "ansible_host: 192.0.2.1:2222\n",
        f"8: {LEFT}.ansible_host: must be a host name or address, not '192.0.2.1:2222'; the port is a key of its own",
    ),
    "address that is none": (
        "ansible_host: 192.0.2.1\n",
        "ansible_host: 192.0.2.300\n",
        f"8: {LEFT}.ansible_host: must be a host name or address, not '192.0.2.300'",
    ),
    "address of three numbers": (
        "ansible_host: 192.0.2.1\n",
        "ansible_host: 192.0.2\n",
        f"8: {LEFT}.ansible_host: must be",
    ),
    "login in an address": (
        "ansible_host: 192.0.2.1\n",
        "ansible_host: root:canary@192.0.2.1\n",
        f"8: {LEFT}.ansible_host: must be a host name or address, without a login",
    ),
    "key of the lab's in capitals": (
        "192.0.2.1\n          xenlab:\n",
        "192.0.2.1\n          Xenlab:\n",
        f"9: {LEFT}.Xenlab: unknown key (did you mean xenlab?)",
    ),
    "coordinator that is a number": (
        "{lab: small}",
        "{lab: small, coordinator: 20408}",
        "3: all.vars.xenlab.coordinator: must be text, not a number: quote it",
    ),
    "coordinator that is a URL": (
        "{lab: small}",
        "{lab: small, coordinator: 'ws://127.0.0.1:20408/ws'}",
        "3: all.vars.xenlab.coordinator: must be HOST:PORT, such as 127.0.0.1:20408",
    ),
    "name that is nothing": ("{lab: small}", "{lab: }", "3: all.vars.xenlab.lab: must be text, not nothing"),
    "host twice in one place": ("        right:\n", "        left:\n", '26: found duplicate key "left"'),
    "INI": ("all:\n", "[boards]\nleft ansible_host=192.0.2.1\n", "3: not YAML, but what looks like an INI file"),
    "not YAML": ("    xenlab: {lab: small}", "    xenlab: {lab: small", "4: "),
    "tab": ("  children:\n", "\tchildren:\n", "4: "),
}


@pytest.mark.parametrize(("old", "new", "said"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_is_one_line_with_place_key_and_hint(tmp_path: Path, old: str, new: str, said: str) -> None:
    assert GOOD.count(old) == 1, "the mistake must be made in one place"
    assert complaint(write(tmp_path, GOOD.replace(old, new))).startswith(said)


@pytest.mark.parametrize("key", ["host", "port", "system", "protocol"])
def test_a_list_where_the_bmc_needs_a_word_is_said_at_its_key(tmp_path: Path, key: str) -> None:
    bmc = {"host": "203.0.113.1", "credential": "rack-bmc"} | {key: ["a"]}
    said = GOOD.replace("bmc: {host: 203.0.113.2, credential: rack-bmc}", f"bmc: {json.dumps(bmc)}")
    with pytest.raises(UsageError, match=rf"lab\.yaml:\d+: all\.children\.boards\.hosts\.right\.xenlab\.bmc\.{key}: "):
        inventory.load(write(tmp_path, said))


def test_variables_that_are_a_list_are_said_at_their_key(tmp_path: Path) -> None:
    said = GOOD.replace("xenlab: {lab: small}", "- xenlab")
    with pytest.raises(UsageError, match=r"lab\.yaml:\d+: all\.vars: must be a mapping of variables"):
        inventory.load(write(tmp_path, said))


def test_a_link_with_three_ends(tmp_path: Path) -> None:
    third = (
        "        third:\n          xenlab:\n            bmc: {host: 203.0.113.3, credential: c}\n"
        "            console: {via: sol, serve_port: 5005, lines_port: 5006}\n            link: wire\n"
    )
    said = complaint(write(tmp_path, GOOD + third))
    where = "39: all.children.others.hosts.third.xenlab.link"
    assert said == f"{where}: link 'wire' joins left, right, third: it must join exactly two boards"


def test_all_mistakes_of_a_file_are_said_at_once(tmp_path: Path) -> None:
    """Wrong words and types, keys that contradict each other, and boards that do."""
    text = GOOD.replace("via: sol", "via: modem").replace("class: server", "class: 7")
    text = text.replace("{lab: small}", "{lab: small, coordinator: here}").replace("- iommu", "- iomu")
    text = text.replace("02:00:00:00:01:01", "02:00")
    text = text.replace("{host: 203.0.113.2,", "{tls: pinned, host: 203.0.113.1,").replace(
        "serve_port: 5003", "serve_port: 5002"
    )
    path = write(tmp_path, text)
    with pytest.raises(UsageError) as caught:
        inventory.load(path)
    lines = [line.removeprefix(f"{path}:").partition(": ") for line in str(caught.value).splitlines()]
    assert [(line, said.split(": ")[0].removeprefix("all.")) for line, _, said in lines] == [
        ("3", "vars.xenlab.coordinator"),
        ("14", f"{LEFT.removeprefix('all.')}.xenlab.console.via"),
        ("20", f"{LEFT.removeprefix('all.')}.xenlab.nics.lab.mac"),
        ("25", f"{LEFT.removeprefix('all.')}.xenlab.tags.class"),
        ("23", f"{LEFT.removeprefix('all.')}.xenlab.capabilities.0"),
        ("29", f"{RIGHT.removeprefix('all.')}.xenlab.bmc"),
        ("29", f"{RIGHT.removeprefix('all.')}.xenlab.bmc"),
        ("30", f"{RIGHT.removeprefix('all.')}.xenlab.console.serve_port"),
        ("29", f"{RIGHT.removeprefix('all.')}.xenlab.bmc"),
    ]


def test_two_contradictions_in_one_place_are_two_lines(tmp_path: Path) -> None:
    text = GOOD.replace("{host: 203.0.113.2,", "{protocol: redfish, cipher: 3, tls: pinned, host: 203.0.113.2,")
    with pytest.raises(UsageError) as caught:
        inventory.load(write(tmp_path, text))
    assert [line.partition("xenlab.bmc: ")[2].split()[0] for line in str(caught.value).splitlines()] == [
        "cipher",
        "tls:",
    ]


def test_an_inventory_without_boards(tmp_path: Path) -> None:
    path = write(tmp_path, "all:\n  vars:\n    xenlab: {lab: small}\n  hosts:\n    builder: {}\n")
    assert complaint(path) == " no host has the key xenlab, so the inventory has no boards"


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    assert complaint(tmp_path / "none.yaml") == " No such file or directory"


# -- what labgrid is given -----------------------------------------------------------------------------------


@pytest.fixture(params=SHIPPED, ids=lambda path: path.stem)
def lab(request: pytest.FixtureRequest) -> inventory.Lab:
    return inventory.load(request.param)


@pytest.fixture
def folder(lab: inventory.Lab, tmp_path: Path) -> Path:
    """Where the files of the lab's services were written."""
    services.write_files(lab, tmp_path)
    return tmp_path


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def test_a_place_offers_what_its_board_has(lab: inventory.Lab) -> None:
    for board in lab.boards.values():
        offered = services.exported(board)
        power = {"ipmi": ["IPMIPort"], "redfish": ["RedfishPort"], "none": []}[board.bmc.protocol]
        power += ["NetworkPowerPort"] if board.pdu else []
        assert list(offered) == [*power, "NetworkSerialPort", "ConsoleRecorder", "NetworkService", "SleepState"]
        for port in set(power) - {"NetworkPowerPort"}:
            assert offered[port]["host"] == board.bmc.host
            assert offered[port]["credential"] == board.bmc.credential
        assert offered["NetworkSerialPort"]["port"] == board.console.serve_port
        assert offered["NetworkSerialPort"]["protocol"] == "raw"
        assert offered["NetworkService"]["address"] == board.ssh_host
        for parameters in offered.values():  # labgrid's exporter takes nothing else
            assert all(isinstance(value, str | int) for value in parameters.values())


def test_a_virtual_board_is_offered_as_one_of_steel() -> None:
    virtual, steel = inventory.load(VIRTUAL).boards["virt1"], inventory.load(RACK).boards["pair-a"]
    shapes = [{cls: sorted(values) for cls, values in services.exported(board).items()} for board in (virtual, steel)]
    assert shapes[0] == shapes[1]


def test_what_the_services_read_later_names_the_same_files(lab: inventory.Lab, folder: Path) -> None:
    """A BMC's certificate lies beside the inventory, not beside the copy of it."""
    assert services.copied_inventory(folder).boards == lab.boards
    if lab.path == RACK:
        assert lab.boards["numa1"].bmc.ca_file == str(RACK.parent / "numa1-bmc.pem")


def test_labgrids_exporter_reads_its_file(lab: inventory.Lab, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from labgrid.remote.config import ResourceConfig

    read = ResourceConfig(str(folder / "exporter.yaml")).data
    capsys.readouterr()  # it prints
    offered = {board.name: services.exported(board) for board in lab.boards.values()}
    sockets = {name: read[name].pop("BoardSocket") for name in read if lab.boards[name].virtual}
    assert read == offered and (lab.name != "virtual" or sockets)
    for name, socket in sockets.items():
        assert socket == {"path": str(folder / "boards" / name / "control.sock")}


def test_labgrids_coordinator_reads_the_places(
    lab: inventory.Lab, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from labgrid.remote.coordinator import Coordinator

    monkeypatch.chdir(folder)
    coordinator = object.__new__(Coordinator)  # its constructor wants an event loop
    coordinator.load()
    assert coordinator.places.keys() == lab.boards.keys()
    for name, place in coordinator.places.items():
        board = lab.boards[name]
        assert (place.name, place.acquired, place.reservation) == (name, None, None)
        assert place.hasmatch(("xenlab", name, "IPMIPort", "IPMIPort"))
        assert not place.hasmatch(("xenlab", f"{name}0", "IPMIPort", "IPMIPort"))
        assert board.tags.items() <= place.tags.items()
        assert place.tags["lab"] == lab.name
        assert all(place.tags[capability] == "yes" for capability in board.capabilities)
        assert all(isinstance(value, str) for value in place.tags.values())
        assert place.as_pb2().name == name


def test_labgrids_environment_reads_its_file(lab: inventory.Lab, folder: Path) -> None:
    from labgrid import Environment
    from labgrid.factory import target_factory

    environment = Environment(str(folder / "env.yaml"))
    targets = environment.config.get_targets()
    assert targets.keys() == lab.boards.keys()
    assert environment.config.get_option("coordinator_address") == lab.coordinator
    for name, target in targets.items():
        assert target["resources"] == {"RemotePlace": {"name": name}}
        for driver in target["drivers"]:
            assert driver in target_factory.drivers
    for board in lab.boards.values():
        assert set(services.exported(board)) <= set(target_factory.resources)


def test_recorders_read_their_files(lab: inventory.Lab, folder: Path) -> None:
    from lab.console.config import RecorderConfig

    for board in lab.boards.values():
        config = RecorderConfig.read(services.recorder_config(folder, board.name))
        assert (config.board, config.console, config.bmc) == (board.name, board.console, board.bmc)
        assert config.directory == folder / "console"


def test_a_shell_gets_the_lab_from_env_sh(lab: inventory.Lab, folder: Path) -> None:
    script = '. ./env.sh; printf "%s\\n" "$LG_COORDINATOR" "${LG_ENV-unset}" "$(command -v labgrid-client)"'
    script += ' "$(command -v labgrid-exporter)"'
    environment = os.environ | {"LG_ENV": str(folder / "env.yaml")}  # left by whoever had another lab in this shell
    command = ["sh", "-euc", script]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=20, check=True)
    programs = [str(folder / "bin" / "labgrid-client"), str(Path(sys.executable).with_name("labgrid-exporter"))]
    assert done.stdout.splitlines() == [lab.coordinator, "unset", *programs]


def test_labgrids_client_gets_an_environment_of_one_board(lab: inventory.Lab, folder: Path) -> None:
    for board in lab.boards.values():
        assert list(load(folder / "env" / f"{board.name}.yaml")["targets"]) == [board.name]


def test_no_secret_is_in_any_of_it(lab: inventory.Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lab.base import credentials

    secret = "hunter2-in-clear"
    for name in {board.bmc.credential for board in lab.boards.values()} - {""}:
        monkeypatch.setenv("XENLAB_CREDENTIAL_" + name.upper().replace("-", "_"), f"someone:{secret}")
        assert credentials.lookup(name).password == secret
    services.write_files(lab, tmp_path)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == 8 + 2 * len(lab.boards)
    for path in files:
        text = path.read_text(encoding="utf-8")
        assert secret not in text and "someone" not in text
        assert path.name == "inventory.yaml" or "password" not in text.lower()  # there people comment on them


# -- what Ansible is given -----------------------------------------------------------------------------------


def ansible(path: Path, home: Path) -> dict[str, Any]:
    program = Path(sys.executable).with_name("ansible-inventory")
    done = subprocess.run(
        [str(program), "-i", str(path), "--list"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=os.environ
        | {"ANSIBLE_HOME": str(home), "LC_ALL": "C.UTF-8", "ANSIBLE_INVENTORY_ANY_UNPARSED_IS_FAILED": "1"},
    )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def test_ansible_reads_the_same_boards(lab: inventory.Lab, tmp_path: Path) -> None:
    hosts = ansible(lab.path, tmp_path)["_meta"]["hostvars"]
    assert hosts.keys() == lab.boards.keys()
    for name, board in lab.boards.items():
        variables = hosts[name]
        assert variables["ansible_host"] == board.ssh_host
        assert variables.get("ansible_port", 22) == board.ssh_port
        assert variables["ansible_user"] == board.ssh_user
        assert variables["xenlab"]["bmc"].get("credential", "") == board.bmc.credential


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_board_is_in_one_group(path: Path, tmp_path: Path) -> None:
    listed = ansible(path, tmp_path)
    groups = [group["hosts"] for name, group in listed.items() if name != "_meta" and "hosts" in group]
    names = [name for group in groups for name in group]
    assert sorted(names) == sorted(inventory.load(path).boards)


HOSTS = "{lab: small, hosts: {shelf: {ssh: 'lab@[2001:db8::7]:2222', identity: ~/.ssh/shelf}, desk: {ssh: me@desk}}}"


def test_a_board_is_at_a_host_that_the_lab_reaches_by_ssh(tmp_path: Path) -> None:
    text = GOOD.replace("{lab: small}", HOSTS).replace("link: wire\n            nics:", "at: shelf\n            nics:")
    lab = inventory.load(write(tmp_path, text.replace("            link: wire\n", "")))
    shelf = inventory.HostSpec("shelf", "small", "lab", "2001:db8::7", 2222, "~/.ssh/shelf")
    assert lab.hosts == {"shelf": shelf, "desk": inventory.HostSpec("desk", "small", "me", "desk")}
    assert (lab.boards["left"].at, lab.boards["right"].at) == (shelf, None)
    assert [board.name for board in lab.boards_at("shelf")] == ["left"]
    assert [board.name for board in lab.boards_at("")] == ["right"]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("at: shelf", "at: shelv", "no host 'shelv' (did you mean shelf?); there are: shelf, desk"),
        (
            "at: shelf",
            "at: shelf\n            boot: network\n            firmware: uefi",
            "hosts.shelf: left boots by network: lacks netboot: {address: A.B.C.D/N, interface: PORT}",
        ),
        (
            "at: shelf",
            "at: shelf\n            boot: network\n            virtual: {serial_port: 1, link_port: 2}",
            "a virtual board that boots by network must be at the lab machine",
        ),
        ("192.0.2.2", "192.0.2.1", "ansible_host: 192.0.2.1:22 is left's already, which is at another host"),
    ],
)
def test_what_a_board_at_a_host_cannot_have_is_said(tmp_path: Path, old: str, new: str, said: str) -> None:
    text = GOOD.replace("{lab: small}", HOSTS).replace("link: wire\n            nics:", "at: shelf\n            nics:")
    text = text.replace("            link: wire\n", "").replace(old, new, 1)
    with pytest.raises(UsageError) as caught:
        inventory.load(write(tmp_path, text))
    assert said in str(caught.value)
