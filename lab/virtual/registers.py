"""Registers of a machine's PCI functions, read and written past its processors, through QEMU's monitor.

For what the firmware of a mainboard sets up, and for what QEMU does not save. All processors must stand still: they use
the same two ports.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from qemu.qmp import QMPClient

# SeaBIOS does not set up the ICH9's LPC bridge again when it resumes from S3, as a mainboard's firmware does: after
# the first sleep the ACPI registers (PMBASE) are gone, and a second S3 "wakes" at once without having slept.
# So the board does it. Registers: PMBASE, ACPI_CNTL, PIRQ[A-D], PIRQ[E-H], RCBA (Intel ICH9 datasheet, 13.1).
LPC = 31  # the device's slot on bus 0
OF_LPC = (0x40, 0x44, 0x60, 0x68, 0xF0)

_ADDRESS, _DATA = 0xCF8, 0xCFC  # configuration mechanism 1


async def monitor(client: QMPClient, line: str) -> str:
    """What QEMU's monitor answers. :raises QMPError:"""
    return str(await client.execute("human-monitor-command", {"command-line": line}))


async def read(client: QMPClient, slot: int, registers: Iterable[int]) -> dict[int, int]:
    """These registers of the device in this slot of bus 0, function 0. :raises QMPError:"""
    selected = await _in(client, _ADDRESS)
    values = {}
    for register in registers:
        await _select(client, slot, register)
        values[register] = await _in(client, _DATA)
    await monitor(client, f"o /w {_ADDRESS:#x} {selected:#x}")
    return values


async def write(client: QMPClient, slot: int, values: Mapping[int, int]) -> None:
    """Write registers of the device in this slot of bus 0, function 0, in this order. :raises QMPError:"""
    selected = await _in(client, _ADDRESS)
    for register, value in values.items():
        await _select(client, slot, register)
        await monitor(client, f"o /w {_DATA:#x} {value:#x}")
    await monitor(client, f"o /w {_ADDRESS:#x} {selected:#x}")


async def _select(client: QMPClient, slot: int, register: int) -> None:
    await monitor(client, f"o /w {_ADDRESS:#x} {0x80000000 | slot << 11 | register:#x}")


async def _in(client: QMPClient, port: int) -> int:
    """``i`` answers ``portl[0x0cfc] = 0x00000601``."""
    return int((await monitor(client, f"i /w {port:#x}")).split("=")[1], 16)
