"""What ``ipmi_sim`` runs when its chassis is asked something: passes it on to the board daemon.

``python3 -I -S chassis.py CONTROL_SOCKET get|set WHAT [VALUE]...``; prints ``power:1`` and the like for a get.
Standard library only, few imports: it is started for each request. Source: ipmi_lan(5), chassis_control.
"""

import socket
import sys


def main(argv: list[str]) -> int:
    """One or several settings in one call; the exit status tells the simulator."""
    path, verb, *rest = argv
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(20)
        connection.connect(path)
        stream = connection.makefile("rw", encoding="ascii")
        pairs = (
            [(rest[i], rest[i + 1]) for i in range(0, len(rest), 2)] if verb == "set" else [(what, "") for what in rest]
        )
        for what, value in pairs:
            stream.write(f"{verb} {what} {value}".strip() + "\n")
            stream.flush()
            answer = stream.readline().strip()
            if answer.startswith("error"):
                sys.stderr.write(answer + "\n")
                return 1
            if verb == "get":
                sys.stdout.write(f"{what}:{answer}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
