"""What ``ipmi_sim`` runs when its chassis is asked something: passes it on to the board daemon.

``python3 -I -S chassis.py CONTROL_SOCKET get|set WHAT [VALUE]...``; prints ``power:1`` and the like for a get.
Standard library only, few imports: it is started for each request. Source: ipmi_lan(5), chassis_control.
"""

import os
import socket
import sys


def ask(control: str | os.PathLike[str], request: str) -> str:
    """The daemon's answer to one request. :raises OSError: it does not answer within 20 s."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(20)
        connection.connect(str(control))
        with connection.makefile("rw", encoding="ascii") as stream:
            stream.write(request + "\n")
            stream.flush()
            return stream.readline().strip()


def main(argv: list[str]) -> int:
    """One or several settings in one call; the exit status tells the simulator."""
    control, verb, *rest = argv
    pairs = [f"{rest[i]} {rest[i + 1]}" for i in range(0, len(rest), 2)] if verb == "set" else rest
    for pair in pairs:
        answer = ask(control, f"{verb} {pair}")
        if answer.startswith("error"):
            sys.stderr.write(answer + "\n")
            return 1
        if verb == "get":
            sys.stdout.write(f"{pair}:{answer}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
