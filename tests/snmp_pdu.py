"""The outlets of a PDU for snmpd's ``pass_persist``: run by snmpd, started for test_pdus.py.

Arguments: a file with the state of each outlet, and the vendor. The protocol is in snmpd.conf(5), pass_persist.
Sources of the objects: PowerNet-MIB, EATON-EPDU-MIB, POWER-ETHERNET-MIB, PDU2-MIB, Sentry3-MIB.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

# Vendor: (objects that tell, value when on, when off), (objects that switch on, and off, with the value that does).
OBJECTS = {
    "apc": (("1.3.6.1.4.1.318.1.1.4.4.2.1.3.{}", 1, 2), "1.3.6.1.4.1.318.1.1.4.4.2.1.3.{}", {1: True, 2: False}),
    "poe_mib": (("1.3.6.1.2.1.105.1.1.1.3.1.{}", 1, 2), "1.3.6.1.2.1.105.1.1.1.3.1.{}", {1: True, 2: False}),
    "raritan": (
        ("1.3.6.1.4.1.13742.6.4.1.2.1.3.1.{}", 7, 8),
        "1.3.6.1.4.1.13742.6.4.1.2.1.2.1.{}",
        {1: True, 0: False},
    ),
    "sentry": (
        ("1.3.6.1.4.1.1718.3.2.3.1.10.1.2.{}", 5, 4),
        "1.3.6.1.4.1.1718.3.2.3.1.11.1.2.{}",
        {1: True, 2: False},
    ),
}
EATON = "1.3.6.1.4.1.534.6.6.7.6.6.1"


def get(vendor: str, oid: str, on: dict[str, bool]) -> int | None:
    """The value of an object; None: there is none."""
    pattern = (f"{EATON}.2.0.{{}}", 1, 0) if vendor == "eaton" else OBJECTS[vendor][0]
    for name in on:
        if pattern[0].format(name) == oid:
            return pattern[1 if on[name] else 2]
    return 0 if put(vendor, oid, 1, dict(on)) else None  # one that switches can be read as well


def put(vendor: str, oid: str, value: int, on: dict[str, bool]) -> bool:
    """Set an object; whether there is one, and it takes the value."""
    for name in on:
        if vendor == "eaton":
            for column, is_on in ((3, False), (4, True)):
                if oid == f"{EATON}.{column}.0.{name}":
                    on[name] = is_on
                    return True
        elif oid == OBJECTS[vendor][1].format(name) and value in OBJECTS[vendor][2]:
            on[name] = OBJECTS[vendor][2][value]
            return True
    return False


def main(file: Path, vendor: str) -> None:
    def line() -> str:
        return sys.stdin.readline().strip()

    def say(*words: str) -> None:
        sys.stdout.write("".join(f"{word}\n" for word in words))
        sys.stdout.flush()

    while command := line():
        if command == "PING":
            say("PONG")
            continue
        oid = line().lstrip(".")
        on = json.loads(file.read_text())
        if command == "set":
            _, _, value = line().partition(" ")
            is_set = put(vendor, oid, int(value.strip('"')), on)
            file.write_text(json.dumps(on))
            say("DONE" if is_set else "not-writable")
            continue
        found = get(vendor, oid, on) if command == "get" else None
        say(*(("NONE",) if found is None else (f".{oid}", "integer", str(found))))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
