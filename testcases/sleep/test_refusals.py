"""Sleep states that Xen or dom0's kernel must refuse, with the host as it was afterwards."""

import pytest

from lab.on_board.poke import POKE
from lab.xen.domain import assert_unbroken
from lab.xen.guests import payload

pytestmark = [pytest.mark.cold, pytest.mark.full]


@pytest.mark.parametrize("state", [0, 1, 2, 4, 6])
def test_xen_refuses_what_is_no_sleep_of_its_own(host, evidence, state):
    """Xen answers EINVAL to a hypercall for any sleep state but S3 and S5, and guests run on.

    Source: xen/arch/x86/acpi/power.c, enter_state: S1, S2 and S4 are refused when devices have stopped already.
    """
    with host.domain(payload(host, "pv64", "heartbeat", hb_ms=200)) as guest:
        guest.beats()
        mark = host.board.console.mark()
        answer = host.run(f"{POKE} acpi-sleep {state}").stdout.strip()
        lines = "\n".join(line.text for line in host.board.console.lines(mark))
        evidence.add("XENPF_enter_acpi_sleep", f"S{state}: {answer}\n{lines}", board=host.name)
        assert answer == "refused: EINVAL", f"Xen's answer to S{state} is: {answer}"
        guest.beats(3)
        assert_unbroken(guest.heartbeats())


@pytest.mark.needs("no-s3")
def test_a_board_without_s3_is_not_put_to_sleep(host, evidence):
    """On a board without S3, dom0's kernel refuses deep sleep, and Xen is never asked for it."""
    mark = host.board.console.mark()
    said = host.run("cat /sys/power/mem_sleep; /bin/echo deep > /sys/power/mem_sleep", check=False)
    evidence.add("/sys/power/mem_sleep", f"{said.stdout}status {said.status}: {said.stderr}", board=host.name)
    assert said.status != 0, "the kernel accepts deep sleep"
    assert "Invalid argument" in said.stderr, said.stderr
    assert not [line.text for line in host.board.console.lines(mark) if "Preparing system" in line.text]


def test_dom0_refuses_standby(host, evidence):
    """On a board without S1, dom0's kernel refuses standby, and Xen is never asked for it."""
    if "standby" in host.run("cat /sys/power/state").stdout.split():
        pytest.skip("the board has S1")
    mark = host.board.console.mark()
    said = host.run("/bin/echo standby > /sys/power/state", check=False)
    evidence.add("echo standby > /sys/power/state", f"status {said.status}: {said.stderr}", board=host.name)
    assert said.status != 0
    assert "Invalid argument" in said.stderr, said.stderr
    assert not [line.text for line in host.board.console.lines(mark) if "Preparing system" in line.text]
