"""Disks of guests, guests that serve others, and the program that writes blocks."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from test_cells import sh

from lab.base import paths
from lab.base.errors import ProductFailure
from lab.xen import domain
from lab.xen.disks import blank, digest, disk, numbered, with_disk
from lab.xen.domain import Domain
from lab.xen.driver_domains import network, served, serves, storage
from lab.xen.guests import payload
from lab.xen.host import Host


@pytest.fixture
def host() -> Host:
    board: Any = SimpleNamespace(name="virt1", run=lambda command, **_: sh(command), steal_meter=None)
    return Host(board)


def test_a_numbered_file_holds_the_numbers_of_its_words_and_goes(host: Host) -> None:
    with numbered(host) as path:
        data = Path(path).read_bytes()
        assert len(data) == 1 << 20
        assert [int.from_bytes(data[at : at + 4], "little") for at in (0, 4, 512, len(data) - 4)] == [
            1,
            2,
            129,
            1 << 18,
        ]
        assert digest(host, path) == hashlib.sha256(data).hexdigest()
    assert not Path(path).exists()
    with blank(host, 2) as path:
        assert Path(path).stat().st_size == 2 << 20 and Path(path).stat().st_blocks == 0


def test_a_guest_is_given_a_disk_of_dom0_or_of_a_driver_domain(host: Host) -> None:
    assert disk("/var/tmp/a") == "format=raw,vdev=xvda,access=rw,target=/var/tmp/a"
    text = with_disk(payload(host, "pv64", "disk"), "/dev/xvda", backend="driver").text()
    assert 'disk = [ "format=raw,vdev=xvda,access=rw,backendtype=phy,backend=driver,target=/dev/xvda" ]\n' in text
    assert 'on_crash = "preserve"\n' in text


def test_a_driver_domain_that_crashes_is_destroyed(host: Host) -> None:
    driver = network(host, "0000:00:04.0", "0000:00:05.0")
    for text in (driver.text(), storage(host, "/var/tmp/a").text()):
        assert text.count("on_crash") == 1 and 'on_crash = "destroy"\n' in text and "driver_domain = 1\n" in text
    assert 'pci = [ "0000:00:04.0", "0000:00:05.0" ]' in driver.text()
    guest = served(host, Domain(host, driver), "netfront,again", hb_ms=500).text()
    assert f'vif = [ "backend={driver.name},mac=00:16:3e:00:00:01" ]' in guest
    assert "xl_work=netfront,again ip=10.0.2.15/24 peer=10.0.2.2 count=5 hb_ms=500" in guest


def test_a_driver_domain_without_its_device_is_told(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(domain, "CONSOLE_DIR", str(tmp_path))
    driver = Domain(host, storage(host, "/var/tmp/a"))
    said = tmp_path / f"guest-{driver.name}.log"
    said.write_text("XL diskback PASS sectors=8\nXL done PASS n=1 failed=0\n")
    serves(driver)
    said.write_text("XL diskback FAIL no disk\nXL done FAIL n=1 failed=1\n")
    with pytest.raises(ProductFailure, match="serves nobody: diskback: no disk"):
        serves(driver)


def test_blocks_that_were_acknowledged_are_looked_for(tmp_path: Path) -> None:
    """The guest's program, on a file of this machine: what is written is found; what was lost, or is old, is not."""
    program, disk_file, notes = tmp_path / "blocks", tmp_path / "disk", tmp_path / "notes"
    source = paths.FIRMWARE / "guests" / "linux" / "blocks.c"
    subprocess.run(
        ["gcc", "-O1", "-Wall", "-Wextra", "-Werror", str(source), "-o", str(program)], check=True, timeout=60
    )
    disk_file.touch()

    def run(*words: str, size_kib: int = 400) -> str:
        command = f"trap '' XFSZ; ulimit -f {size_kib // 4 * 8}; exec " + " ".join(words)  # blocks of 512 bytes
        done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=60)
        return done.stdout

    first = run(str(program), "write", str(disk_file), "7", str(notes))
    written = int(notes.read_text())
    assert written == disk_file.stat().st_size // 4096 > 32
    assert "XL acknowledged INFO blocks=32\n" in first and f"blocks={written}, then an error: File too large" in first
    read = (str(program), "read", str(disk_file))
    assert run(*read, "7", str(written)) == f"XL kept PASS blocks={written} lost=0 first=0\n"
    assert run(*read, "8", "40") == "XL kept FAIL blocks=40 lost=40 first=0\n"
    assert run(*read, "7", str(written + 1)) == f"XL kept FAIL blocks={written + 1} lost=1 first={written}\n"
    assert run(*read, "7", "0") == "XL kept FAIL blocks=0 lost=0 first=0\n"
    with open(disk_file, "r+b") as file:
        file.seek(5 * 4096 + 100)
        file.write(b"x")
    assert run(*read, "7", str(written)) == f"XL kept FAIL blocks={written} lost=1 first=5\n"
