"""Cases that leave things behind. tests/boards/test_verdicts_on_boards.py runs them and looks at what is said of it."""

import time

import pytest

from lab.xen import leftovers
from lab.xen.guests import payload

pytestmark = pytest.mark.quick
FORGOTTEN: list[object] = []  # what is collected as garbage is closed, and that would destroy it

# Holds a page of a guest, so that it cannot die (tools/libs/foreignmemory); says so, and stays.
HOLD = """\
import ctypes, sys, time
lib = ctypes.CDLL("libxenforeignmemory.so.1")
lib.xenforeignmemory_open.restype = lib.xenforeignmemory_map.restype = ctypes.c_void_p
handle = lib.xenforeignmemory_open(None, 0)
page, error = (ctypes.c_ulong * 1)(16), (ctypes.c_int * 1)()
held = lib.xenforeignmemory_map(
    ctypes.c_void_p(handle), ctypes.c_uint32(int(sys.argv[1])), 1, ctypes.c_size_t(1), page, error
)
print("held" if held and not error[0] else f"not held: {error[0]}", flush=True)
time.sleep(600)
"""


def test_nothing_left(host, evidence):
    """Nobody is to be blamed for anything yet; how long the look takes that says so: PASS."""
    evidence.add("look", str(host.run(leftovers._LOOK).stdout))
    started = time.monotonic()
    seen = leftovers.look(host)
    evidence.figure("look_s", time.monotonic() - started)
    assert seen.free_mib > 0 and not seen.domains


def test_guest_left(host):
    """A guest that the case never destroys: PASS, and it is noted and gone."""
    domain = host.domain(payload(host, "pv64", "idle"))
    domain.__enter__()
    FORGOTTEN.append(domain)


def test_processes_left(host):
    """What looks like the toolstack's goes on when the case has ended: PASS, and it is noted and gone."""
    host.run("cp /bin/sleep /tmp/xl; (setsid /tmp/xl 1000 </dev/null >/dev/null 2>&1 &)")


def test_guest_that_cannot_die(host, evidence):
    """Somebody in dom0 holds a page of a guest that is destroyed, so it stays dead: FAIL."""
    with host.domain(payload(host, "pvh64", "idle")) as guest:  # whose frame 16 is its own, not the machine's
        host.run(f"cat > /tmp/hold.py <<'END'\n{HOLD}END")
        host.run(f"(setsid python3 /tmp/hold.py {guest.domid()} </dev/null >/tmp/held 2>&1 &)")
        said = host.run("for i in $(seq 50); do [ -s /tmp/held ] && break; sleep 0.2; done; cat /tmp/held").stdout
        evidence.add("holder", said)
        if said.strip() != "held":
            evidence.unproved(said)


def test_entry_that_comes_back(host):
    """The dead guest is gone; what this leaves cannot be taken away, so the board is brought up anew: PASS."""
    assert "(null)" not in host.xl("list").stdout
    host.run("(setsid sh -c 'while sleep 0.1; do xenstore-write /vm/left here; done' </dev/null >/dev/null 2>&1 &)")


def test_clean_again_afterwards(host):
    """The next case has a board on which nothing is left, and nobody who writes: PASS."""
    assert not host.domains()
    assert host.run("pgrep -fa [x]enstore-write", check=False).stdout == ""
