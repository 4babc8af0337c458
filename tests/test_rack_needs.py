"""`xenlab doctor --inventory FILE`: what a rack's inventory needs on this machine, before anything is spoken to."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lab import inventory
from lab.base import paths
from lab.cli.main import main
from lab.selfcheck import rack_needs
from lab.selfcheck.doctor import Requirement

RACK = """\
all:
  vars: {xenlab: {lab: needs, coordinator: "127.0.0.1:31990", netboot: {address: 192.0.2.1/24, interface: nosuch0}}}
  hosts:
    ipmi1:
      ansible_host: 192.0.2.11
      xenlab:
        bmc: {host: 203.0.113.11, credential: rack-bmc}
        console: {via: sol, serve_port: 31991, lines_port: 31992}
    dell1:
      ansible_host: 192.0.2.12
      ansible_port: 2222
      xenlab:
        bmc: {protocol: redfish, host: bmc.invalid, tls: pinned, ca_file: dell1.pem, credential: rack-bmc}
        console:
          {via: ssh, host: 203.0.113.12, port: 22, credential: dell-console, serve_port: 31993, lines_port: 31994}
    desk1:
      ansible_host: 192.0.2.13
      xenlab:
        bmc: {protocol: none}
        pdu: {model: apc, host: 203.0.113.50, outlet: 3}
        boot: network
        nics: {management: {mac: "02:00:00:00:15:00", address: 192.0.2.13/24}}
        console: {via: device, device: DEVICE, serve_port: 31995, lines_port: 31996}
"""


def look(folder: Path, device: str) -> dict[str, Requirement]:
    """What is found, by subject."""
    file = folder / "rack.yaml"
    file.write_text(RACK.replace("DEVICE", device))
    return {finding.subject: finding for finding in rack_needs.examine(inventory.load(file))}


@pytest.fixture(name="home", autouse=True)
def home_fixture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for word in ("CONFIG", "STATE", "CACHE"):
        monkeypatch.setenv(f"XDG_{word}_HOME", str(tmp_path / word.lower()))
    return tmp_path


def test_what_is_missing_is_said_with_what_to_do(home: Path) -> None:
    found = look(home, "/dev/serial/by-id/none")
    bad = {subject: finding for subject, finding in found.items() if not finding.is_good}
    assert "no credential 'rack-bmc'" in bad["ipmi1 BMC login"].detail
    assert "credentials.yaml (mode 0600) the line rack-bmc:" in bad["ipmi1 BMC login"].remedy
    assert "no credential 'dell-console'" in bad["dell1 console login"].detail
    assert "bmc.invalid: " in bad["dell1 BMC address"].detail
    assert "none is known for 203.0.113.12" in bad["dell1 console host key"].detail
    assert "none is known for [192.0.2.12]:2222" in bad["dell1 dom0 host key"].detail
    assert "ssh-keyscan -p 2222 192.0.2.12 >>" in bad["dell1 dom0 host key"].remedy
    assert "is not there" in bad["desk1 console"].detail
    assert "no nosuch0 here; there are: " in bad["port that boards boot from"].detail
    assert "key of the lab for SSH" in bad and "desk1 dom0 host key" not in found, "its identity is made here"
    assert found["ports"].is_good


def test_what_is_there_is_good(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RACK_BMC", "DELL_CONSOLE"):
        monkeypatch.setenv(f"XENLAB_CREDENTIAL_{name}", "lab:canary-J2k")
    key = paths.state() / "lab" / "ssh" / "id_ed25519"
    key.parent.mkdir(parents=True)
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True, timeout=30)
    public = " ".join(key.with_suffix(".pub").read_text().split()[:2])
    places = ("203.0.113.12", "192.0.2.11", "[192.0.2.12]:2222")
    paths.known_hosts()[0].parent.mkdir(parents=True)
    paths.known_hosts()[0].write_text("".join(f"{place} {public}\n" for place in places))
    (home / "dell1.pem").write_text("there")
    _, terminal = os.openpty()
    found = look(home, os.ttyname(terminal))
    bad = {subject for subject, finding in found.items() if not finding.is_good}
    assert bad <= {"dell1 BMC address", "port that boards boot from", "dnsmasq", "ipmitool"}
    assert "canary" not in repr(found)


def test_a_certificate_that_is_not_there_is_the_bmcs(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XENLAB_CREDENTIAL_RACK_BMC", "lab:x")
    assert "dell1.pem: no such file" in look(home, "/dev/null")["dell1 BMC login"].detail


def test_a_login_that_ipmi_cannot_carry_is_found_before_the_first_night(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XENLAB_CREDENTIAL_RACK_BMC", "lab:" + "canary" * 4)
    found = look(home, "/dev/null")["ipmi1 BMC login"]
    assert "16 bytes of user and 20 of password" in found.detail and "canary" not in repr(found)


def test_the_command_fails_where_something_is_missing(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    look(home, "/dev/null")
    monkeypatch.setitem(sys.modules, "lab.virtual", None)  # a lab of machines needs none of it
    with pytest.raises(SystemExit) as ended:
        main(["doctor", "--inventory", str(home / "rack.yaml")])
    said = capsys.readouterr()
    assert ended.value.code == 1 and "BAD  ipmi1 BMC login: no credential 'rack-bmc'" in said.out
    assert "virtual boards" not in said.out
    (home / "rack.yaml").write_text("all: {}\n")
    with pytest.raises(SystemExit) as ended:
        main(["doctor", "--inventory", str(home / "rack.yaml")])
    assert ended.value.code == 2 and "lacks xenlab" in capsys.readouterr().err


def test_a_board_at_a_host_needs_the_way_there_and_no_device_here(home: Path) -> None:
    text = RACK.replace("lab: needs,", "lab: needs, hosts: {shelf: {ssh: lab@203.0.113.7:2200}},")
    text = text.replace("        boot: network\n", "        at: shelf\n")
    file = home / "rack.yaml"
    file.write_text(text.replace("DEVICE", "/dev/serial/by-id/none"))
    found = {finding.subject: finding for finding in rack_needs.examine(inventory.load(file))}
    assert not found["host shelf key"].is_good
    assert found["host shelf host key"].detail == "none is known for [203.0.113.7]:2200"
    assert "desk1 dom0 host key" in found, "dom0's key is looked at by the lab machine's ssh"
    assert not {"desk1 console", "desk1 dom0 address", "ipmi1 address"} & set(found)
    paths.ssh_key().parent.mkdir(parents=True)
    for target in (paths.ssh_key(), home / "host"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", target], check=True)
    paths.config().mkdir(parents=True)
    (paths.config() / "known_hosts").write_text(f"[203.0.113.7]:2200 {(home / 'host.pub').read_text()}")
    found = {finding.subject: finding for finding in rack_needs.examine(inventory.load(file))}
    assert found["host shelf key"].is_good and found["host shelf host key"].is_good
